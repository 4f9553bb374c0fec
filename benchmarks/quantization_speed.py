"""Latency and bytes of 8-bit networks beside the float ones, in ONNX Runtime and in LiteRT.

Run from the repository root: python benchmarks/quantization_speed.py
With --store the figures become those that chapter 3.5 shows.
"""

import datetime
import sys

from dlopt_helpers.chapters.quantization_speed import STORED, cpu_features, speeds, table
from dlopt_helpers.lab.measure import device_name


def main():
    made, where = speeds(), {"device": device_name("cpu"), "features": cpu_features()}
    print(f"how many times as fast as the float network of the same runtime, {', '.join(where.values())}")
    print(table(made).to_string())
    if "--store" in sys.argv:
        made = made.assign(date=datetime.date.today().isoformat(), **where)
        made.to_csv(STORED, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
