"""Times as ratios, memory and bytes, and where they were measured."""

import contextlib
import io
import platform
import re
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from dlopt_helpers._require import refuse, require_function, require_kind, require_whole


class Ratio(NamedTuple):
    """How many times as long one thing takes as another: the median and where 90 % of the repeats lie."""

    median: float
    low: float
    high: float

    def __str__(self):
        return f"{self.median:.2f} (90 % of repeats in {self.low:.2f} to {self.high:.2f})"


def ratios(a, b, repeats=30, calls=1):
    """Time ``a()`` and ``b()`` in turn and return the ratio of their times, ``a`` over ``b``.

    A single time depends on the machine and on what else it does. Measured close together, both
    suffer alike, and the ratio holds.

    Args:
      a: a function without arguments.
      b: the one that it is compared with.
      repeats: pairs of measurements, after one that does not count.
      calls: calls in each measurement; more for a function that takes microseconds.

    Raises:
      ValueError: if ``a`` or ``b`` is no function, or ``repeats`` or ``calls`` no whole number >= 1.

    Example:
      >>> ratio = ratios(lambda: sum(range(20_000)), lambda: sum(range(10_000)))
      >>> ratio.low <= ratio.median <= ratio.high
      True
    """
    require_function("a", a)
    require_function("b", b)
    repeats, calls = require_whole("repeats", repeats, 1), require_whole("calls", calls, 1)
    each = [_seconds(a, calls) / _seconds(b, calls) for _ in range(repeats + 1)][1:]
    return Ratio(*(float(q) for q in np.quantile(each, [0.5, 0.05, 0.95])))


def _seconds(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start


def device():
    """Return what the book measures on: ``"cuda"`` where there is one, else ``"mps"``, else ``"cpu"``.

    Example:
      >>> device() in ("cuda", "mps", "cpu")
      True
    """
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def finished(function, device):
    """Return a function that calls ``function`` and waits until ``device`` has done its work.

    Raises:
      ValueError: if ``function`` is none, or ``device`` no device of PyTorch's.

    Example:
      >>> finished(lambda: None, "cpu")()
    """
    require_function("function", function)
    kind = _device(device).type
    if kind == "cpu":
        return function

    def run():
        function()
        getattr(torch, kind).synchronize()

    return run


def _device(device):
    if isinstance(device, str | torch.device):
        with contextlib.suppress(RuntimeError):
            return torch.device(device)
    refuse("device", device, 'a device of PyTorch\'s, such as "cpu" or "cuda"')


def device_name(device):
    """Return what does the work: the GPU, or one thread of the processor, as its system calls it.

    Raises:
      ValueError: if ``device`` is no device of PyTorch's.

    Example:
      >>> device_name("cpu").endswith(", one thread")
      True
    """
    if _device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    if _device(device).type == "mps":
        return f"Apple GPU, {platform.machine()}"
    cpu = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpu.read_text()) if cpu.exists() else None
    return f"{found[1] if found else platform.processor()}, one thread"


def file_bytes(model):
    """Return the bytes of a PyTorch model's file, the one that ``torch.save(model.state_dict())`` writes.

    Raises:
      ValueError: if ``model`` is no ``nn.Module``.

    Example:
      >>> file_bytes(torch.nn.Linear(100, 100)) > 4 * 100 * 101
      True
    """
    require_kind("model", model, torch.nn.Module, "an nn.Module")
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getvalue())


def peak_memory():
    """Return the most memory that this process has held so far, in megabytes (10^6 bytes).

    Example:
      >>> peak_memory() > 1
      True
    """
    if sys.platform == "linux":  # its getrusage hands down the peak of the process that started this one
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        return int(status["VmHWM"].split()[0]) * 1024 / 1e6
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
