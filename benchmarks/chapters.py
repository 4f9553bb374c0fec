"""Seconds and peak memory of each chapter's kernel, with and without results on disk.

Run from the repository root: python benchmarks/chapters.py
"""

import os
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

CHAPTERS = sorted((Path(__file__).parents[1] / "chapters").glob("*.ipynb"))
ASK = "from dlopt_helpers.lab.measure import peak_memory\nprint(peak_memory())"


def run(path):
    """Execute a chapter as a learner's kernel does and return its seconds and its megabytes."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ASK))
    start = time.perf_counter()
    NotebookClient(notebook, timeout=1_800, kernel_name="python3").execute()
    return time.perf_counter() - start, float(notebook.cells[-1].outputs[0].text)


def main():
    print(f"{'chapter':24} {'first':>8} {'again':>8}  peak memory")
    for path in CHAPTERS:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["DLOPT_CACHE"] = cache
            (first, _), (again, memory) = run(path), run(path)
        print(f"{path.stem:24} {first:6.0f} s {again:6.0f} s {memory:8.0f} MB", flush=True)


if __name__ == "__main__":
    main()
