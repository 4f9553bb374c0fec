"""Latency in ONNX Runtime of layers of lower rank, of blocks and of single convolutions.

Run from the repository root: python benchmarks/structure_speed.py
With --store the figures become those that chapter 3.6 shows.
"""

import datetime
import sys

import onnxruntime
import torch

from dlopt_helpers.chapters.structure_speed import REFERENCES, STORED, speeds, table
from dlopt_helpers.lab.measure import device_name


def main():
    made = speeds()
    for family, reference in REFERENCES.items():
        print(f"times as multiples of {reference}, {device_name('cpu')}")
        print(table(made, family).to_string())
    if "--store" in sys.argv:
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        made = made.assign(date=datetime.date.today().isoformat(), device=device_name("cpu"), **versions)
        made.to_csv(STORED, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
