"""Spend fixed budgets of multiply-accumulates on networks of several widths.

Run from the repository root: python benchmarks/trends_compute.py
A few minutes on one core. With --store the runs become those that chapter 5 shows.
"""

import datetime
import sys

import torch

from dlopt_helpers.chapters.trends_challenges import STORED, compute_runs
from dlopt_helpers.lab.measure import device_name


def main():
    torch.set_num_threads(1)
    runs = compute_runs()
    print(runs.groupby(["budget", "width"])[["fresh", "seconds"]].mean().round(3).to_string())
    if "--store" in sys.argv:
        runs = runs.assign(date=datetime.date.today().isoformat(), device=device_name("cpu"))
        runs.to_csv(STORED, index=False)


if __name__ == "__main__":
    main()
