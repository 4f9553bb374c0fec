"""Latency and bytes of masked, sparse and smaller networks beside the dense one.

Run from the repository root: python benchmarks/pruning_speed.py
With --store the figures become those that chapter 3.3 shows.
"""

import datetime
import sys

import torch

from dlopt_helpers.chapters.pruning_speed import STORED, speeds, table
from dlopt_helpers.lab.measure import device_name


def main():
    device = "cuda" if torch.cuda.is_available() and "--store" not in sys.argv else "cpu"
    made = speeds(device=device)
    print(f"how many times as fast as the dense network, {device_name(device)}")
    print(table(made).to_string())
    if "--store" in sys.argv:
        made = made.assign(date=datetime.date.today().isoformat(), device=device_name(device))
        made.assign(torch=torch.__version__).to_csv(STORED, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
