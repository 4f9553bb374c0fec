"""What 8-bit integers save in time and bytes: measured here, or as it was measured for the book."""

import functools
import platform
import re
import timeit
from pathlib import Path

import numpy as np
import pandas as pd

from dlopt_helpers.lab import litert, onnxrt
from dlopt_helpers.lab.measure import ratios
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.lab.twins import keras_twin

STORED = Path(__file__).with_suffix(".csv")
NETWORKS = {
    "mlp512": functools.partial(mlp, hidden=512),
    "mlp1024": functools.partial(mlp, hidden=1_024),
    "cnn25": functools.partial(cnn, channels=25),
    "cnn64": functools.partial(cnn, channels=64),
}
BATCHES = [1, 64, 1_024]
# Those that runtimes look for before they choose how to multiply 8-bit integers.
FEATURES = ["avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "asimddp", "i8mm"]


def stored_speeds():
    """Return the speeds that were measured for the book, with ``date``, ``device`` and ``features``.

    ``python benchmarks/quantization_speed.py --store`` measures them anew.
    """
    return pd.read_csv(STORED)


def cpu_features(cpuinfo="/proc/cpuinfo"):
    """Return which instructions for 8-bit integers this processor has, else what kind it is.

    Example:
      >>> bool(cpu_features())
      True
    """
    text = Path(cpuinfo).read_text() if Path(cpuinfo).exists() else ""
    found = re.search(r"^(?:flags|Features)\s*:(.*)", text, re.MULTILINE)
    has = found[1].split() if found else []
    return " ".join(feature for feature in FEATURES if feature in has) or platform.machine()


@one_thread()
def speeds(networks=tuple(NETWORKS), repeats=20):
    """Measure each file beside the float one of its runtime, on one thread; about three minutes.

    What the weights have learned plays no part, so they are the initial ones.

    Returns:
      A data frame with one row per network, runtime, variant and batch size: ``faster``, the time of
      the runtime's float file as a multiple of the variant's, with ``low`` and ``high``, between which
      90 % of the repeats lie; and for the variant its ``microseconds`` for the batch, the fewest of all
      repeats, and the ``bytes`` of its file.
    """
    return pd.DataFrame([row for network in networks for row in _speeds(network, repeats)])


def _speeds(network, repeats):
    x = np.random.default_rng(0).normal(size=(max(BATCHES), 40)).astype("float32")
    for runtime, (make_files, load) in RUNTIMES.items():
        files = make_files(network)
        run = {variant: load(file) for variant, file in files.items()}
        for variant, file in files.items():
            for batch in BATCHES:
                one, other = (functools.partial(run[name], x[:batch]) for name in ("float", variant))
                ratio, time = _measured(one, other, repeats, calls=max(1, 300 // batch))
                setting = {"network": network, "runtime": runtime, "variant": variant, "batch": batch}
                costs = {"microseconds": time, "bytes": len(file)}
                yield setting | {"faster": ratio.median, "low": ratio.low, "high": ratio.high} | costs


def _measured(one, other, repeats, calls):
    """Return how long ``one`` takes as a multiple of ``other``, and the fewest microseconds of ``other``."""
    ratio = ratios(one, other, repeats=repeats, calls=calls)
    return ratio, 1e6 * min(timeit.repeat(other, number=calls, repeat=repeats)) / calls


def onnx_files(network):
    """Return the files of the PyTorch network for ONNX Runtime, by their variants."""
    onnx = onnxrt.export(NETWORKS[network]())
    static, dynamic = onnxrt.quantize_static(onnx, _calibration()), onnxrt.quantize_dynamic(onnx)
    return {"float": onnx, "int8 static": static, "int8 dynamic": dynamic}


def litert_files(network):
    """Return the files of the network's Keras twin for LiteRT, by their variants."""
    twin = keras_twin(NETWORKS[network]())
    static, dynamic = litert.quantize_static(twin, _calibration()), litert.quantize_dynamic(twin)
    return {"float": litert.convert(twin), "int8 static": static, "int8 dynamic": dynamic}


def _calibration():
    return np.random.default_rng(1).normal(size=(500, 40)).astype("float32")


RUNTIMES = {"ONNX Runtime": (onnx_files, onnxrt.load), "LiteRT": (litert_files, litert.load)}


def table(speeds):
    """Return the speeds as the chapter shows them: a row per variant, a column per batch size."""
    each = zip(speeds.faster, speeds.low, speeds.high, strict=True)
    shown = speeds.assign(  # spaces that do not break keep a cell on one line
        faster=[f"{median:.2g}\xa0({low:.2g}–{high:.2g})" for median, low, high in each],
        runtime=speeds.runtime.str.replace(" ", "\xa0"),
        variant=speeds.variant.str.replace(" ", "\xa0"),
        kB=(speeds.bytes / 1e3).map("{:,.0f}".format),
        batch=speeds.batch.map("batch\xa0{:,}".format),
    )
    rows = ["network", "runtime", "variant", "kB"]
    wide = shown.set_index([*rows, "batch"]).faster.unstack(sort=False).reset_index()
    alone = speeds.query("batch == 1").microseconds.map("{:,.0f}".format)
    wide.insert(4, "µs,\xa0batch\xa01", list(alone))
    return wide.rename_axis(columns=None).set_index("network")
