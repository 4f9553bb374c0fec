"""Seconds of each chapter's kernel, the first time and again, and its peak memory.

Run from the repository root: python benchmarks/chapters.py [--store] [CHAPTER ...]

With --store the figures become those of workshop/room.md.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

import nbformat
import pandas as pd
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
CHAPTERS = {path.stem: path for path in sorted((ROOT / "chapters").glob("*.ipynb"))}
STORED = ROOT / "workshop" / "hub" / "kernels.csv"
ASK = "from dlopt_helpers.lab.measure import peak_memory\nprint(peak_memory())"


def run(path):
    """Execute a chapter as a learner's kernel does and return its seconds and its megabytes."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    start = time.perf_counter()
    NotebookClient(notebook, timeout=1_800, kernel_name="python3").execute()
    return time.perf_counter() - start, float(notebook.cells[-1].outputs[0].text)


def measured(path):
    """Return the row of a chapter, of two kernels with a folder of results that is empty at first."""
    with tempfile.TemporaryDirectory() as os.environ["DLOPT_CACHE"]:
        (first, memory), (again, later) = run(path), run(path)
    return {"first time, s": round(first), "again, s": round(again), "memory, MB": round(max(memory, later))}


def store(name, row):
    """Write a chapter's row over the one that was stored before."""
    old = pd.read_csv(STORED, index_col="chapter").T.to_dict() if STORED.exists() else {}
    pd.DataFrame(old | {name: row}).T.astype("Int64").rename_axis("chapter").sort_index().to_csv(STORED)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "chapter", nargs="*", help="name of a file in chapters/, without .ipynb; by default all"
    )
    parser.add_argument("--store", action="store_true", help="make the figures those of workshop/room.md")
    options = parser.parse_args()
    if unknown := set(options.chapter) - set(CHAPTERS):
        parser.error(f"chapter {', '.join(sorted(unknown))} is not allowed: one of {', '.join(CHAPTERS)}")
    for name in options.chapter or CHAPTERS:
        row = measured(CHAPTERS[name])
        print(f"{name:24}", *(f"{what} {value}".ljust(20) for what, value in row.items()), flush=True)
        if options.store:
            store(name, row)


if __name__ == "__main__":
    main()
