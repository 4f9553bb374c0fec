"""The pipeline of chapter 4.2 on MNIST, and how fast each of its files answers, measured in one pass.

Run from the repository root: python benchmarks/pipeline_mnist.py FOLDER
FOLDER holds the four files of MNIST. It trains for about an hour where no results are kept from an earlier
call. With --store the figures become those that chapter 4.2 shows.
"""

import argparse

from dlopt_helpers.chapters.pipeline_mnist import STORED, lenets, mnist, table
from dlopt_helpers.chapters.pipeline_runs import stored, timed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", help="it holds the four files of MNIST")
    parser.add_argument("--store", action="store_true", help="make the figures those of the chapter")
    args = parser.parse_args()
    data = mnist(args.folder)
    rows = timed(lenets(args.folder), (data.x_test, data.y_test))
    print(table(rows).to_string())
    if args.store:
        stored(rows, STORED)


if __name__ == "__main__":
    main()
