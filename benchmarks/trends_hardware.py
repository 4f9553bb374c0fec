"""Times of bfloat16, of a compiler and of channels-last beside plain float32: chapter 5's trend 4.

Run from the repository root: python benchmarks/trends_hardware.py
It takes about four minutes, most of it compiling. With --store its figures are those that the page shows.
On an x86 processor, ONEDNN_MAX_CPU_ISA=AVX512_CORE python benchmarks/trends_hardware.py --without-units
measures bfloat16 without the processor's units for it; --store works there, too.
"""

import datetime
import sys

import torch
import torch._inductor.config

from dlopt_helpers.chapters.trends_hardware import (
    STORED,
    WITHOUT_UNITS,
    sparse_speed,
    speeds,
    table,
    units,
)
from dlopt_helpers.lab.measure import device, device_name


def main():
    if "--without-units" in sys.argv:
        made, path = speeds(["MLP, width 1,024"], [1_024], ["autocast", "all bfloat16"]), WITHOUT_UNITS
    else:
        torch._inductor.config.force_disable_caches = True  # or a second run would measure no compiler
        torch.compile(lambda x: x.sin() + 1)(torch.ones(8, device=device()))  # loads the compiler
        made, path = speeds(), STORED
    print(f"times as multiples of plain float32's, {device_name(device())}, units for bfloat16: {units()}")
    print(table(made).to_string())
    print("2:4 over dense:", sparse_speed())
    if "--store" in sys.argv:
        made = made.assign(
            date=datetime.date.today().isoformat(),
            device=device_name(device()),
            units=units() if path == STORED else "switched off",
            torch=torch.__version__,
        )
        made.to_csv(path, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
