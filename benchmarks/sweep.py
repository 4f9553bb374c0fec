"""A grid of 60 settings trained one after another, as a multiple of the time it takes at once.

Run from the repository root: python benchmarks/sweep.py
"""

import itertools
import os

import numpy as np
import torch

from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.measure import ratios
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.sweep import _sweep
from dlopt_helpers.lab.training import train
from dlopt_helpers.sgd import SGD

GRID = {"lr": np.geomspace(1e-3, 0.3, 20).tolist(), "momentum": [0.0, 0.5, 0.9]}
STEPS = 200


def main():
    os.environ["DLOPT_STATIC"] = "1"
    data = mnist1d()
    settings = [dict(zip(GRID, v, strict=True)) for v in itertools.product(*GRID.values())]
    print(f"{len(settings)} settings, {STEPS} steps, one thread: one after another over at once")
    for hidden, batch_size in itertools.product([16, 32, 100], [16, 64]):
        fixed = {"hidden": hidden, "batch_size": batch_size}

        def at_once(fixed=fixed):  # past the results on disk
            grid = [setting | fixed for setting in settings]
            _sweep.__wrapped__(grid, SGD, mlp, data, STEPS, STEPS, [0], "float32")

        def one_by_one(hidden=hidden, batch_size=batch_size):
            for setting in settings:
                model = mlp(hidden=hidden)
                optimizer = torch.optim.SGD(model.parameters(), **setting)
                train(model, optimizer, data, STEPS, batch_size, every=STEPS)

        ratio = ratios(one_by_one, at_once, repeats=5)
        print(f"{hidden:3} hidden units, batch {batch_size:2}: {ratio}", flush=True)


if __name__ == "__main__":
    main()
