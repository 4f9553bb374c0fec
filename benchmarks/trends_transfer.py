"""The trainings of trend 3 in chapter 5: about ten minutes on one core.

    python benchmarks/trends_transfer.py --store

Each number is how many examples were right. The columns of a measure are the five seeds.
"""

import argparse

from dlopt_helpers.chapters.trends_transfer import TABLE, wide
from dlopt_helpers.chapters.trends_transfer_runs import students, teachers

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--store", action="store_true", help=f"write {TABLE.name}")
    arguments = parser.parse_args()
    rows = teachers()
    table = wide(rows, students(rows))
    print(table.to_string())
    if arguments.store:
        table.to_csv(TABLE, index=False)
