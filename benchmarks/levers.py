"""The 96 runs of chapter 2, and how fast their files answer, measured in one pass over the kept files.

Run from the repository root: python benchmarks/levers.py
It trains for about a quarter of an hour where no results are kept from an earlier call.
With --rates it shows the learning rates that were tried. With --time it measures the times anew, which
wants a quiet machine; without it they are those stored before. With --store the figures become those that
chapter 2 shows.
"""

import sys

import pandas as pd

from dlopt_helpers.chapters.levers import STORED
from dlopt_helpers.chapters.levers_runs import LEVERS, TRIED, made, stored, timed, validated

TIMES = ["faster 1", "faster 64", "time"]


def main():
    if "--rates" in sys.argv:
        for (network, algorithm), rates in TRIED.items():
            found = {rate: round(validated(network, algorithm, rate), 3) for rate in rates}
            print(network, algorithm, found)
        return
    rows = made()
    if "--time" in sys.argv or not STORED.exists():
        rows = timed(rows)
    else:
        rows = rows.merge(pd.read_csv(STORED)[[*LEVERS, "seed", *TIMES]], on=[*LEVERS, "seed"])
    print(rows.groupby(LEVERS)[["accuracy", "bytes", "macs", *TIMES]].mean().to_string())
    if "--store" in sys.argv:
        stored(rows, STORED)


if __name__ == "__main__":
    main()
