"""Time of training steps, of single layers and of small networks, on one thread.

Run from the repository root: python benchmarks/footprint.py
With --store the figures become those that chapter 1 shows.
"""

import datetime
import sys

import onnxruntime
import torch

from dlopt_helpers.chapters.background_speed import STORED, ridge, roofline_rows, speeds, step_shares
from dlopt_helpers.lab.measure import device_name


def main():
    made = speeds()
    print(f"{device_name('cpu')}: {ridge(made):.1f} MACs while a byte is read")
    print(roofline_rows(made)[["neurons", "batch", "intensity", "rate", "roof"]].round(3).to_string())
    print(step_shares(made).round(3).to_string())
    print(made[made.family.isin(["halving", "checkpoint"])].to_string())
    if "--store" in sys.argv:
        versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
        made = made.assign(date=datetime.date.today().isoformat(), device=device_name("cpu"), **versions)
        made.to_csv(STORED, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
