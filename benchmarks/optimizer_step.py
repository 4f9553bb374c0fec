"""Cost of one step of SGD and Adam: the bridge, plain and compiled, against torch.optim's own.

Run from the repository root: python benchmarks/optimizer_step.py
With --store the costs of Adam become those that chapter 3.2 shows.
"""

import datetime
import platform
import re
import sys
from pathlib import Path

import pandas as pd
import torch

from dlopt_helpers.chapters.step_costs import NETWORKS, RULES, STORED, step_costs


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


def name_of(device):
    """Return what did the work: the GPU, or the processor as Linux and others call it."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    return f"{found[1] if found else platform.processor()}, one thread"


def main():
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    networks = {**NETWORKS, "ResNet-50": resnet_shapes()}
    stored = []
    for device in devices:
        for rule in RULES:
            costs = step_costs(rule, networks, device)
            print(f"\n{rule} on {name_of(device)}")
            print(costs.drop(columns="rule").to_string(index=False, float_format="{:.3g}".format), flush=True)
            stored.append(costs.assign(device=name_of(device)))
    if "--store" in sys.argv:
        made = pd.concat(stored).query("rule == 'Adam' and network != 'ResNet-50'")
        made = made.assign(date=datetime.date.today().isoformat(), torch=torch.__version__)
        made.to_csv(STORED, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
