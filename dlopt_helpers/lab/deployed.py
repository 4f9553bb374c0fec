"""What an exported file is worth in use: how often it is right, its bytes, its time and its memory."""

import functools
import subprocess
import sys
import tempfile
import timeit
import zlib
from pathlib import Path

import numpy as np
from scipy.special import log_softmax

from dlopt_helpers._require import require_array, require_whole
from dlopt_helpers.lab.measure import ratios
from dlopt_helpers.lab.onnxrt import load, read

# Calls in a row, by batch size. With few, a small network would mostly wait for its weights, which the large
# one has just driven out of the processor's cache.
CALLS = {1: 300, 64: 30}


def measured(onnx, reference, x, y, repeats=15):
    r"""Measure a file of a classifier in ONNX Runtime, on one thread.

    Args:
      onnx: bytes of the file.
      reference: bytes of the file that it is compared with.
      x: examples that no training saw, float32 (n, inputs) with n >= 64.
      y: their labels.
      repeats: of each time.

    Returns:
      A dict. On the examples: ``accuracy`` (0 to 1), and ``nll``, the mean of
      :math:`-\log p_\text{true}`, which tells whether the probabilities can be trusted. ``bytes`` of the
      file, and ``zipped``, those of its zlib archive. For batches of 1 and of 64 examples: ``latency 1`` and
      ``latency 64``, the fewest microseconds of all repeats, and ``faster 1`` and ``faster 64``, the time of
      the reference as a multiple of this one's, measured in turn. ``memory``, see :func:`memory`.

    Raises:
      ValueError: if a file is no ONNX file's bytes, there are less than 64 examples, they or their labels do
        not fit the networks, or ``repeats`` is no whole number >= 1.

    Example:
      >>> from dlopt_helpers.lab.data import fresh_test
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.lab.onnxrt import export
      >>> test = fresh_test(n=100)
      >>> row = measured(export(mlp(hidden=8)), export(mlp(hidden=512)), *test, repeats=3)
      >>> row["faster 64"] > 2
      True
    """
    repeats = require_whole("repeats", repeats, 1)
    require_array("x", x, axes=2)
    for name, file in (("onnx", onnx), ("reference", reference)):
        inputs = _inputs(read(file, name))
        if x.shape[1] != inputs or len(x) < max(CALLS):
            raise ValueError(
                f"x has the shape {x.shape}: for {name} it must be (n, {inputs}), n >= {max(CALLS)}"
            )
    run, slow = load(onnx), load(reference)
    log_p = log_softmax(run(x), axis=1)
    _require_labels(y, *log_p.shape)
    times, speeds = {}, {}
    for batch, calls in CALLS.items():
        one, other = (functools.partial(f, x[:batch]) for f in (slow, run))
        speeds[f"faster {batch}"] = ratios(one, other, repeats=repeats, calls=calls).median
        times[f"latency {batch}"] = 1e6 * min(timeit.repeat(other, number=calls, repeat=repeats)) / calls
    return {
        "accuracy": float((log_p.argmax(1) == y).mean()),
        "nll": float(-log_p[np.arange(len(y)), y].mean()),
        "bytes": len(onnx),
        "zipped": len(zlib.compress(onnx, 9)),
        **times,
        **speeds,
        "memory": memory(onnx, x.shape[1]),
    }


def _inputs(model):
    return model.graph.input[0].type.tensor_type.shape.dim[1].dim_value


def _require_labels(y, n, classes):
    require_array("y", y, axes=1)
    if len(y) != n or y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= classes:
        seen = f"y has the shape {y.shape} and values in [{y.min()}, {y.max()}]"
        raise ValueError(f"{seen}: it must be {n} whole numbers in [0, {classes})")


# It imports nothing of this package, whose own memory would hide that of a small network.
_ANSWER = """
import pathlib, sys, numpy, onnxruntime

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6

before = peak()
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = options.inter_op_num_threads = 1
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
session.run(None, {"x": numpy.zeros((64, int(sys.argv[2])), "float32")})
print(peak() - before)
"""


def memory(onnx, inputs):
    """Return how much memory it takes to load the file and answer 64 examples, in megabytes (10^6 bytes).

    That is by how much the peak of a fresh process grows, which has imported ONNX Runtime and NumPy before.
    What the runtime needs for any network, however small, is part of it. NaN on other systems than Linux.

    Args:
      onnx: bytes of the file.
      inputs: numbers in an example.

    Raises:
      ValueError: if ``onnx`` is no ONNX file's bytes, or ``inputs`` another number than it takes.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.lab.onnxrt import export
      >>> memory(export(mlp()), inputs=40) > 1 or sys.platform != "linux"
      True
    """
    inputs = require_whole("inputs", inputs, 1)
    if (wanted := _inputs(read(onnx))) != inputs:
        raise ValueError(f"inputs={inputs} is not allowed: it must be {wanted}, what the network takes")
    if sys.platform != "linux":
        return float("nan")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        file.write_bytes(onnx)
        command = [sys.executable, "-c", _ANSWER, str(file), str(inputs)]
        return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
