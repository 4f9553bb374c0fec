"""Seconds and peak memory of each chapter's kernel, with and without results on disk.

Run from the repository root: python benchmarks/chapters.py [--kept] [--store] [CHAPTER ...]

With --kept it runs each chapter once, with the results that this machine has kept: minutes, not hours. With
--store the memory becomes that of workshop/room.md.
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


def store(peaks):
    """Write peaks of memory over those of the same chapters that were stored before."""
    old = pd.read_csv(STORED, index_col="chapter")["MB"] if STORED.exists() else {}
    pd.Series(dict(old) | peaks, name="MB").rename_axis("chapter").sort_index().to_csv(STORED)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "chapter", nargs="*", help="name of a file in chapters/, without .ipynb; by default all"
    )
    parser.add_argument("--kept", action="store_true", help="run once, with the results kept on this machine")
    parser.add_argument("--store", action="store_true", help="make the memory that of workshop/room.md")
    options = parser.parse_args()
    if unknown := set(options.chapter) - set(CHAPTERS):
        parser.error(f"chapter {', '.join(sorted(unknown))} is not allowed: one of {', '.join(CHAPTERS)}")
    print(f"{'chapter':24} {'first':>8} {'again':>8}  peak memory")
    for name in options.chapter or CHAPTERS:
        with tempfile.TemporaryDirectory() as cache:
            if not options.kept:
                os.environ["DLOPT_CACHE"] = cache
            first = "" if options.kept else f"{run(CHAPTERS[name])[0]:.0f} s"
            again, memory = run(CHAPTERS[name])
        print(f"{name:24} {first:>8} {again:6.0f} s {memory:8.0f} MB", flush=True)
        if options.store:
            store({name: round(memory)})


if __name__ == "__main__":
    main()
