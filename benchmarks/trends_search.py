"""Search pipelines under a budget of bytes: TPE, random search, and two fixed recipes.

Run from the repository root: python benchmarks/trends_search.py
About ten minutes on one core. With --store the trials become those that chapter 5 shows.
"""

import datetime
import sys

import torch

from dlopt_helpers.chapters.trends_search import STORED, searches


def main():
    torch.set_num_threads(1)
    found = searches()
    best = found.loc[found.groupby(["searcher", "budget", "seed"]).validation.idxmax()]
    print(best.groupby(["budget", "searcher"])[["validation", "fresh"]].mean().round(3).to_string())
    if "--store" in sys.argv:
        found.assign(date=datetime.date.today().isoformat()).to_csv(STORED, index=False)


if __name__ == "__main__":
    main()
