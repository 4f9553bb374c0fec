"""What other tools make of the start of chapter 4.2, each by itself: measured here, or for the book."""

import copy
import functools
import importlib.util
import io
import tempfile
import zlib
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.utils import prune

from dlopt_helpers.chapters.pipeline_tasks import SEEDS, start
from dlopt_helpers.lab import litert, onnxrt
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.measure import ratios
from dlopt_helpers.lab.runtimes import quiet
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.lab.twins import keras_twin

STORED = Path(__file__).with_suffix(".csv")
BATCHES = (1, 64)
REFERENCE = ("ONNX Runtime", "float")


def stored_peers():
    """Return the rows that were measured for the book, with ``date``, ``device`` and versions.

    ``python benchmarks/pipeline_peers.py --store`` measures them anew.
    """
    return pd.read_csv(STORED)


@one_thread()
def peers(seeds=SEEDS, repeats=15):
    """Measure what each of the ``TOOLS`` makes of the dense networks, without any training of its own.

    TensorFlow has its own threads; ``TF_NUM_INTRAOP_THREADS=1`` before its import makes them one.

    Args:
      seeds: of the networks.
      repeats: of each time.

    Returns:
      A data frame with one row per tool, ``what`` it does, and seed: ``accuracy`` on the fresh test,
      ``bytes`` of the file as the tool stores it, ``zipped``, those of its zlib archive, and for batches of
      1 and of 64 examples ``faster 1`` and ``faster 64``, the time of ONNX Runtime's float file as a
      multiple of this one's. Without torchao, which is no part of the book, its rows are missing.
    """
    return pd.DataFrame([row for seed in seeds for row in _of(start("mlp1024", seed).model, seed, repeats)])


def _of(model, seed, repeats):
    (x, y), calibration, reference = fresh_test(), mnist1d().x_train[:1_000], None
    for (tool, what), make in TOOLS.items():
        if tool == "torchao" and not importlib.util.find_spec("torchao"):
            continue
        with quiet():
            file, run = make(copy.deepcopy(model), calibration)
        reference = reference or run  # ONNX Runtime's float file is the first
        yield {
            "tool": tool,
            "what": what,
            "seed": seed,
            "accuracy": float((run(x).argmax(1) == y).mean()),
            "bytes": len(file),
            "zipped": len(zlib.compress(file, 9)),
            **{f"faster {n}": _faster(reference, run, x[:n], repeats) for n in BATCHES},
        }


def _faster(reference, run, x, repeats):
    one, other = functools.partial(reference, x), functools.partial(run, x)
    return ratios(one, other, repeats=repeats, calls=max(1, 300 // len(x))).median


# --- Tools: each returns the bytes of its file, and a function from examples to logits -----------------


def _onnx(change=lambda onnx, x: onnx):
    def make(model, x):
        onnx = change(onnxrt.export(model), x)
        return onnx, onnxrt.load(onnx)

    return make


def _litert(convert):
    def make(model, x):
        file = convert(keras_twin(model), x)
        return file, litert.load(file)

    return make


def _torch(change=lambda model: None):
    """Of a function that changes the model in place."""

    def make(model, x):
        change(model)
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        return file.getvalue(), functools.partial(_run_torch, model.eval())

    return make


@torch.inference_mode()
def _run_torch(model, x):
    return model(torch.from_numpy(x)).numpy()


def _pruned(model):
    weights = [(layer, "weight") for layer in model if isinstance(layer, nn.Linear)]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=0.9)
    for layer, name in weights:
        prune.remove(layer, name)


def _torchao(config):
    def change(model):
        # No import statement: the book does without torchao.
        torchao = importlib.import_module("torchao.quantization")
        torchao.quantize_(model, getattr(torchao, config)())

    return _torch(change)


def _keras(change=lambda model: None):
    def make(model, x):
        twin = keras_twin(model)
        change(twin)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.weights.h5"
            twin.save_weights(file)
            return file.read_bytes(), twin.predict_on_batch

    return make


TOOLS = {
    REFERENCE: _onnx(),
    ("ONNX Runtime", "int8 static"): _onnx(onnxrt.quantize_static),
    ("ONNX Runtime", "int8 dynamic"): _onnx(lambda onnx, x: onnxrt.quantize_dynamic(onnx)),
    ("LiteRT", "float"): _litert(lambda twin, x: litert.convert(twin)),
    ("LiteRT", "int8 static"): _litert(litert.quantize_static),
    ("PyTorch", "float"): _torch(),
    ("PyTorch", "90 % of the weights pruned"): _torch(_pruned),
    ("torchao", "int8 weights"): _torchao("Int8WeightOnlyConfig"),
    ("torchao", "int8 dynamic"): _torchao("Int8DynamicActivationInt8WeightConfig"),
    ("Keras", "float"): _keras(),
    ("Keras", "int8"): _keras(lambda twin: twin.quantize("int8")),
}


# --- The page ------------------------------------------------------------------------------------------


def table(rows):
    """Return the rows as the chapter shows them: one for each tool, means over seeds.

    ``smaller`` is by the bytes of ONNX Runtime's float file.
    """
    of = rows.groupby(["tool", "what"], sort=False)
    mean = of[["accuracy", "bytes", "zipped", "faster 1", "faster 64"]].mean()
    low, high = 100 * of.accuracy.min(), 100 * of.accuracy.max()
    float_bytes = mean.bytes[REFERENCE]
    shown = {  # spaces that do not break keep a cell on one line
        "accuracy, %": [
            f"{100 * m:.1f}\xa0({a:.1f}–{b:.1f})" for m, a, b in zip(mean.accuracy, low, high, strict=True)
        ],
        "kB": (mean.bytes / 1e3).map("{:,.0f}".format),
        "zipped, kB": (mean.zipped / 1e3).map("{:,.0f}".format),
        "smaller": (float_bytes / mean.bytes).map("{:.2g}".format),
        **{f"faster, batch {n}": mean[f"faster {n}"].map("{:.2g}".format) for n in BATCHES},
    }
    return pd.DataFrame(shown, index=mean.index)
