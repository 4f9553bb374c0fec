import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dlopt_helpers.lab import measure


def test_ratios_compares_neighbours(monkeypatch):
    # the first pair does not count; then the times double, and the ratio stays, but for the last pair
    clock = iter(np.cumsum([0, 9, 0, 1] + [0, 4, 0, 2] * 5 + [0, 8, 0, 4] * 5 + [0, 9, 0, 3]))
    monkeypatch.setattr(measure.time, "perf_counter", lambda: next(clock))
    ratio = measure.ratios(lambda: None, lambda: None, repeats=11)
    assert ratio.median == 2 and ratio.low == 2 and 2 < ratio.high <= 3
    assert str(ratio).startswith("2.00 (90 % of repeats in 2.00 to ")


def test_calls():
    calls = []
    measure.ratios(lambda: calls.append("a"), lambda: calls.append("b"), repeats=2, calls=3)
    assert calls == list("aaabbb" * 3)


@pytest.mark.parametrize("bad", [{"repeats": 0}, {"calls": 0.5}])
def test_refuses(bad):
    with pytest.raises(ValueError, match="a whole number >= 1"):
        measure.ratios(int, int, **bad)


@pytest.mark.parametrize(
    ("cuda", "mps", "chosen"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_cuda_before_mps_before_the_processor(monkeypatch, cuda, mps, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert measure.device() == chosen


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_call_is_finished_when_the_device_is(monkeypatch, kind):
    """What only queues its work looks fast."""
    done = []
    monkeypatch.setattr(getattr(torch, kind), "synchronize", lambda: done.append("waited"))
    measure.finished(lambda: done.append("called"), kind)()
    assert done == ["called", "waited"]


def test_peak_memory_never_falls():
    code = """
import numpy as np
from dlopt_helpers.lab.measure import peak_memory
before = peak_memory()
block = np.ones(25_000_000)  # 200 megabytes
during = peak_memory()
del block
print(during - before, peak_memory() - during)
"""
    root = Path(measure.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, check=True, capture_output=True, text=True)
    rise, fall = map(float, done.stdout.split())
    assert 150 < rise < 250 and abs(fall) < 5
