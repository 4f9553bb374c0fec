"""Cost of one step of SGD and Adam: the bridge, plain and compiled, against torch.optim's own.

Run from the repository root: python benchmarks/optimizer_step.py
With --store the costs of Adam become those that chapter 3.2 shows.
"""

import datetime
import sys

import pandas as pd
import torch

from dlopt_helpers.chapters.step_costs import NETWORKS, RULES, STORED, step_costs
from dlopt_helpers.lab.measure import device_name


def resnet_shapes():
    """Return the shapes of the 161 parameters of a ResNet-50: 25,557,032 numbers, most tensors tiny."""
    shapes, inputs = [(64, 3, 7, 7), (64,), (64,)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [(4 * width, inputs, 1, 1)] * (block == 0)
            shapes += [shape for conv in convolutions for shape in (conv, conv[:1], conv[:1])]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


def main():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    networks = {**NETWORKS, "ResNet-50": resnet_shapes()}
    stored = []
    for device in devices:
        for rule in RULES:
            costs = step_costs(rule, networks, device)
            print(f"\n{rule} on {device_name(device)}")
            print(costs.drop(columns="rule").to_string(index=False, float_format="{:.3g}".format), flush=True)
            stored.append(costs.assign(device=device_name(device)))
    if "--store" in sys.argv:
        made = pd.concat(stored).query("rule == 'Adam' and network != 'ResNet-50'")
        made = made.assign(date=datetime.date.today().isoformat(), torch=torch.__version__)
        made.to_csv(STORED, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
