"""The runs of chapter 4.2, and how fast each of their files answers, measured in one pass.

Run from the repository root: python benchmarks/pipeline.py
It trains for an hour where no results are kept from an earlier call. The search comes before it:
python -m dlopt_helpers.chapters.pipeline_search --trials 150 takes another hour.
With --store the figures become those that chapter 4.2 shows.
"""

import sys

import pandas as pd

from dlopt_helpers.chapters.pipeline import STORED, table
from dlopt_helpers.chapters.pipeline_runs import RECIPES, made, stored, timed
from dlopt_helpers.chapters.pipeline_search import repeated, search, searched
from dlopt_helpers.lab.data import fresh_test


def main():
    study = search(0)
    if not study.best_trials:
        sys.exit("Search first: python -m dlopt_helpers.chapters.pipeline_search --trials 150")
    tried = timed(searched(study), fresh_test())  # the search timed them while it trained others
    others = pd.concat([*map(made, RECIPES), repeated(study, tried)])
    rows = pd.concat([timed(others, fresh_test()), tried], ignore_index=True)
    for group, of in rows[rows.group != "search"].groupby("group", sort=False):
        print(f"{group}\n{table(of).to_string()}\n")
    if "--store" in sys.argv:
        stored(rows, STORED)


if __name__ == "__main__":
    main()
