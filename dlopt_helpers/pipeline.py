"""The techniques of chapters 3.3 to 3.6 as stages of one pipeline, as in chapter 4.2.

Stages compose in any order. Each returns a network that costs less, and :func:`run` measures it as a file in
ONNX Runtime. What is finished stays on disk under a key of all that led to it, and is never computed again.

Order matters: a stage that trains or cuts a network of few bits makes it one of floats again.
"""

import copy
import functools
import hashlib
import inspect
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dlopt_helpers._require import refuse, require, require_function, require_kind, require_option
from dlopt_helpers.bridges import pruning_torch, quantization_torch, structure_torch
from dlopt_helpers.bridges.pruning_torch import prunable
from dlopt_helpers.lab import onnx_weights, onnxrt
from dlopt_helpers.lab.deployed import measured
from dlopt_helpers.lab.memo import source_digest
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.training import batches, one_thread, progress
from dlopt_helpers.pruning import best_units, magnitude_mask, threshold_for, unit_scores
from dlopt_helpers.quantization import fake_quantize, min_max, symmetric
from dlopt_helpers.quantization import share_weights as codebook_of
from dlopt_helpers.structure import rank_for

BATCH = 128
LAYERS = [nn.Linear, nn.Conv1d, nn.Conv2d, nn.MaxPool2d, nn.ReLU, nn.Flatten, nn.Unflatten]
# How a file stores and computes: from the bytes of the float file, and calibration data.
FORMS = {
    "float": lambda onnx, x: onnx,
    "int8": onnxrt.quantize_static,
    "int4 weights": lambda onnx, x: onnx_weights.int4_weights(onnx),
    "shared weights": lambda onnx, x: onnx_weights.shared_weights(onnx),
}


class Task(NamedTuple):
    """What every stage trains on, and what its network is measured on.

    Args:
      x: examples, float32 (n, inputs) with n >= 128. The first thousand also calibrate 8-bit integers.
      targets: probabilities of the classes, float32 (n, classes): 1 for the label, or a teacher's softmax.
      test: other examples, float32 (m, inputs), and their labels, int64 (m,).
      seed: of a student's first weights, and of the order of the examples.
    """

    x: np.ndarray
    targets: np.ndarray
    test: tuple
    seed: int = 0


class Made(NamedTuple):
    """A network on its way through the pipeline.

    Args:
      model: a flat ``nn.Sequential`` of the ``LAYERS``.
      form: how its file stores and computes, one of the ``FORMS``.
      sparse: whether zeros among the weights stay zeros in later training.
    """

    model: nn.Sequential
    form: str = "float"
    sparse: bool = False


@dataclass(frozen=True)
class Stage:
    """A step of the pipeline: ``apply(made, task)`` returns another :class:`Made`.

    ``name`` and ``settings``, a dict of JSON values, must tell all that ``apply`` depends on.
    """

    name: str
    settings: dict
    apply: Callable

    def __str__(self):
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in self.settings.items())})"


def stage(**allowed):
    """Turn a function ``(made, task, *settings)`` into one of the settings that returns a :class:`Stage`.

    Args:
      **allowed: for each setting, a function of its name and value that raises ValueError.

    Raises:
      ValueError: if one of ``allowed`` is no function; by the function, if a setting is not allowed.
    """
    for name, check in allowed.items():
        require_function(f"allowed: {name}", check)

    def decorate(apply):
        signature = inspect.Signature(list(inspect.signature(apply).parameters.values())[2:])

        @functools.wraps(apply)
        def make(*args, **kwargs):
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            for name, value in bound.arguments.items():
                _require_json(name, value)
            settings = json.loads(_json(bound.arguments))  # as they come back from a file
            for name, value in settings.items():
                allowed[name](name, value)
            return Stage(apply.__name__, settings, functools.partial(apply, **settings))

        make.__signature__ = signature
        return make

    return decorate


def _require_json(name, value):
    try:
        _json(value)
    except (TypeError, AttributeError, ValueError):
        refuse(name, value, "a number, a word or a list of them")


def _json(value):
    return json.dumps(value, default=lambda number: number.tolist())  # NumPy's


def _number(words, ok):
    return lambda name, value: require(name, value, words, ok)


def _one_of(*values):
    if all(isinstance(value, str) for value in values):
        return lambda name, value: require_option(name, value, values)
    return _number(f"one of {list(values)}", lambda x: x in values)


def _share_or_sizes(name, value):
    if isinstance(value, list):
        if not value:
            refuse(name, value, "a number in (0, 1] or a list of sizes")
        for size in value:
            _size(f"a number of {name}", size)
    else:
        require(name, value, "a number in (0, 1] or a list of sizes", lambda x: 0 < x <= 1)


_size = _number("a whole number >= 1", lambda x: x >= 1 and x % 1 == 0)
_share = _number("a number in (0, 1)", lambda x: 0 < x < 1)
_bits = _number("a whole number in [2, 8]", lambda x: 2 <= x <= 8 and x % 1 == 0)
_training = {
    "steps": _number("a whole number >= 0", lambda x: x >= 0 and x % 1 == 0),
    "rate": _number("a number > 0", lambda x: x > 0),
}


# --- stages --------------------------------------------------------------------------------------


@stage(network=_one_of("mlp", "cnn"), width=_size, **_training)
def distil(made, task, network, width, steps, rate):
    """Train a new network on the task, whose targets may be a teacher's; the one before is gone.

    Args:
      network: "mlp" or "cnn", the latter for the 40 inputs of MNIST-1D.
      width: of each hidden layer: units, or channels.
      steps: of training, here and below: Adam, batches of 128, cross-entropy with the targets.
      rate: the highest learning rate of its OneCycle schedule.
    """
    inputs, classes = task.x.shape[1], task.targets.shape[1]
    student = cnn(width, task.seed) if network == "cnn" else mlp(inputs, width, classes, task.seed)
    return _trained(Made(student), task, steps, rate)


@stage(keep=_share_or_sizes, **_training)
def prune_neurons(made, task, keep, steps=0, rate=0.003):
    """Remove the units with the smallest L2 norm of their weights, and train what is left.

    Args:
      keep: the share of units that stay in each hidden layer, in (0, 1], or a list of their numbers.
    """
    *hidden, _ = prunable(made.model).items()
    sizes = keep if isinstance(keep, list) else [max(1, round(keep * len(w))) for _, w in hidden]
    if len(sizes) != len(hidden):
        raise ValueError(f"keep={keep!r} is not allowed: the model has {len(hidden)} hidden layers")
    scores = {name: unit_scores(w, axis=0, p=2) for name, w in hidden}
    kept = {name: best_units(scores[name], size) for name, size in zip(scores, sizes, strict=True)}
    return _trained(made._replace(model=pruning_torch.remove_units(made.model, kept)), task, steps, rate)


@stage(share=_share, **_training)
def prune_weights(made, task, share, steps=0, rate=0.003):
    """Set the smallest weights to zero, by one threshold for all layers, and train the others.

    Args:
      share: of zeros among all weights, in (0, 1).
    """
    weights = prunable(made.model)
    threshold = threshold_for(share, *weights.values())
    masks = {name: magnitude_mask(w, threshold) for name, w in weights.items()}
    model = pruning_torch.make_permanent(pruning_torch.prune(copy.deepcopy(made.model), masks))
    return _trained(Made(model, sparse=True), task, steps, rate)


@stage(share=_share, **_training)
def factorise(made, task, share, steps=0, rate=0.003):
    """Make each hidden layer two, of lower rank, where that saves parameters, and train them.

    Two factors of a sparse layer have no zeros, so its sparsity is lost.

    Args:
      share: of the full rank that stays, in (0, 1).
    """
    ranks = {}
    for name, w in list(prunable(made.model).items())[:-1]:
        outputs, inputs = w.flatten(1).shape
        rank = max(1, round(share * min(outputs, inputs)))
        if rank <= rank_for(outputs, inputs):
            ranks[name] = rank
    pairs = structure_torch.factorise(made.model, ranks)
    flat = nn.Sequential(*(layer for layer in pairs.modules() if not isinstance(layer, nn.Sequential)))
    return _trained(made._replace(model=flat), task, steps, rate)


@stage(bits=_one_of(4, 8), **_training)
def quantize(made, task, bits, steps=0, rate=0.003):
    """Train with rounded weights, one scale for each output, and keep the rounded ones.

    Args:
      bits: 8 (the file computes in integers) or 4 (it computes in floats).
      steps: of training; 0 rounds and trains nothing.
    """

    def rounded(w):
        low, high = min_max(w.detach(), axis=0)
        high = torch.where((low == 0) & (high == 0), 1, high)  # a channel of zeros has no range
        return fake_quantize(w, symmetric(low, high, bits))

    form = {4: "int4 weights", 8: "int8"}[bits]
    return _trained(made, task, steps, rate, rounded)._replace(form=form)


@stage(bits=_bits)
def share_weights(made, task, bits):
    """Let the weights of each layer share a few numbers, found by k-means. Nothing is trained.

    Args:
      bits: of a code, 2 to 8; there are 2 ** bits numbers. In a sparse network zero is one of them.
    """

    def shared(w):
        w = w.numpy()
        if w.min() == w.max():
            return w
        codebook, codes = codebook_of(w, bits)
        if made.sparse:
            codebook[codes[w == 0]] = 0
        return codebook[codes]

    model = quantization_torch.quantize_weights(made.model, shared)
    return made._replace(model=model, form="shared weights")


@stage(form=_one_of(*FORMS))
def export(made, task, form):
    """Choose how the file stores and computes. The weights stay: those of few bits must be on their grid.

    Args:
      form: one of the ``FORMS``.
    """
    return made._replace(form=form)


@one_thread()
def _trained(made, task, steps, rate, rule=None):
    """Return ``made`` after training, as floats: trained weights leave the grid that they were on.

    With a ``rule`` it computes with what the rule leaves of the weights, and they are its weights at the end.
    """
    model = copy.deepcopy(made.model)
    if made.sparse:
        pruning_torch.prune(model, {name: (w != 0).float() for name, w in prunable(model).items()})
    if rule:
        quantization_torch.quantize_in_training(model, rule)
    if steps:
        _train(model, task, steps, rate)
    model = pruning_torch.make_permanent(quantization_torch.make_permanent(model))
    return made._replace(model=model, form="float")


def _train(model, task, steps, rate):
    x, targets = torch.from_numpy(task.x), torch.from_numpy(task.targets)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
    for chosen in progress(torch.from_numpy(batches(len(x), BATCH, steps, task.seed)), "training"):
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), targets[chosen]).backward()
        optimizer.step()
        schedule.step()


# --- runs ----------------------------------------------------------------------------------------


class StageFailed(RuntimeError):
    """Says which stage failed and why; ``rows`` is the data frame of those before it."""

    def __init__(self, message, rows):
        super().__init__(message, rows)  # both, so that it can pass between processes
        self.rows = rows

    def __str__(self):
        return self.args[0]


def run(start, stages, task, folder, measure=measured):
    """Apply ``stages`` one after another, and return what each has made of the network.

    A stopped run is taken up again by the same call. Runs that begin with the same stages share them, and
    several processes may work in one folder.

    Args:
      start: a :class:`Made`.
      stages: a list of :class:`Stage`.
      task: a :class:`Task`.
      folder: where finished stages are kept; it is made.
      measure: a function of the bytes of a file, of those of the start's, and of the test's examples and
        labels, which returns a dict of numbers. Its name is part of the key.

    Returns:
      A data frame; row 0 is the start. ``stage``, ``settings``, ``form``, ``parameters``, ``raw`` (bytes of
      the parameters as floats), what ``measure`` says, ``seconds`` of the stage itself, and ``key``, with
      which :func:`load` and :func:`onnx_file` bring it back.

    Raises:
      ValueError: if ``start``, ``stages`` or ``task`` is not allowed.
      StageFailed: if a stage raises or cannot be exported or measured. Those before it stay.

    Example:
      >>> x = np.random.default_rng(0).normal(size=(200, 40)).astype("float32")
      >>> task = Task(x, targets=np.full((200, 10), 0.1, "float32"), test=(x, np.zeros(200, int)))
      >>> def size(onnx, reference, x, y): return {"smaller": len(reference) / len(onnx)}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     rows = run(Made(mlp()), [prune_neurons(0.2, steps=10), quantize(4)], task, folder, size)
      >>> rows.smaller.round().tolist()
      [1.0, 10.0, 40.0]
    """
    require_kind("start", start, Made, "a Made")
    require_kind("stages", stages, list | tuple, "a list of Stage")
    require_kind("task", task, Task, "a Task")
    require_kind("folder", folder, str | Path, "a path")
    require_function("measure", measure)
    _require_start(start, stages)
    _require_task(task)
    key, rows, folder = _start_key(start, task, measure), [], Path(folder)
    for number, one in enumerate([Stage("start", {}, lambda made, task: made), *stages]):
        before, key = key, _key(key, one)
        try:
            if not (folder / key).exists():
                made = load(folder, before) if rows else start
                reference = onnx_file(folder, rows[0]["key"]) if rows else None
                _finish(one, made, task, reference, measure, folder / key)
            rows.append(json.loads((folder / key / "row.json").read_text()))
        except Exception as error:
            message = f"stage {number}, {one}, failed: {type(error).__name__}: {error}"
            raise StageFailed(message, pd.DataFrame(rows)) from error
    return pd.DataFrame(rows)


def load(folder, key):
    """Return the :class:`Made` of a row, for instance as the start of another run.

    Raises:
      ValueError: if ``folder`` holds no row of this ``key``.
    """
    _require_row(folder, key)
    with torch.serialization.safe_globals([nn.Sequential, *LAYERS]):
        return Made(**torch.load(Path(folder) / key / "model.pt", weights_only=True))


def onnx_file(folder, key):
    """Return the bytes of the file of a row.

    Raises:
      ValueError: as :func:`load`.
    """
    _require_row(folder, key)
    return (Path(folder) / key / "model.onnx").read_bytes()


def _require_row(folder, key):
    require_kind("folder", folder, str | Path, "the path of a folder of run")
    require_kind("key", key, str, "the key of a row")
    if not Path(folder).is_dir():
        refuse("folder", folder, "a folder that run has made")
    if not (Path(folder) / key / "row.json").exists():
        refuse("key", key, f"the key of a row that is kept in folder {folder}")


def _finish(stage, made, task, reference, measure, target):
    """Apply a stage and keep what it makes: all of it or, whatever happens, nothing."""
    begin = time.perf_counter()
    made = stage.apply(made, task)
    seconds = time.perf_counter() - begin
    onnx = FORMS[made.form](onnxrt.export(made.model, task.x.shape[1]), task.x[:1_000])
    parameters = sum(p.numel() for p in made.model.parameters())
    row = {"stage": stage.name, "settings": str(stage), "form": made.form, "parameters": parameters}
    row |= {"raw": 4 * parameters, **measure(onnx, reference or onnx, *task.test)}
    row |= {"seconds": seconds, "key": target.name}
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="unfinished-") as temporary:
        part = Path(temporary) / target.name
        part.mkdir()
        torch.save(made._asdict(), part / "model.pt")
        (part / "model.onnx").write_bytes(onnx)
        (part / "row.json").write_text(_json(row))
        try:
            part.rename(target)
        except OSError:
            if not target.exists():  # else another process was faster
                raise


def _key(before, stage):
    parts = _json([before, stage.name, stage.settings, source_digest(__file__)])
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _start_key(start, task, measure):
    digest = hashlib.sha256()
    words = [start.model, start.form, start.sparse, task.seed, measure.__module__, measure.__qualname__]
    digest.update(repr(words).encode())
    for array in (*(w.numpy() for w in start.model.state_dict().values()), task.x, task.targets, *task.test):
        digest.update(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _require_start(start, stages):
    for number, one in enumerate(stages):
        if not isinstance(one, Stage):
            raise ValueError(
                f"stages[{number}]={one!r} is not allowed: it must be a Stage, as quantize(8) is"
            )
    _one_of(*FORMS)("start.form", start.form)
    if type(start.model) is not nn.Sequential:
        raise ValueError(f"start.model is {type(start.model).__name__}: it must be an nn.Sequential")
    for name, layer in start.model.named_children():
        if type(layer) not in LAYERS:
            allowed = ", ".join(kind.__name__ for kind in LAYERS)
            seen = f"start.model: layer {name!r} is {type(layer).__name__}"
            raise ValueError(f"{seen}: it must be one of {allowed}")


def _require_task(task):
    if not (isinstance(task.test, tuple) and len(task.test) == 2):
        refuse("task.test", task.test, "a pair of examples and labels")
    x, labels = task.test
    for name, array in {"x": task.x, "targets": task.targets, "test[0]": x, "test[1]": labels}.items():
        require_kind(f"task.{name}", array, np.ndarray, "a NumPy array")
    for name, array, n, least in (
        ("x", task.x, len(task.x), BATCH),
        ("targets", task.targets, len(task.x), BATCH),
        ("test[0]", x, len(labels), 1),
    ):
        if array.ndim != 2 or len(array) != n or array.dtype != np.float32 or n < least:
            seen = f"task.{name} has shape {array.shape} and type {array.dtype}"
            raise ValueError(f"{seen}: it must be float32, one example a row, {least} or more, one for each")
        if not np.isfinite(array).all():
            raise ValueError(f"task.{name} holds a number that is not finite (nan or inf): all must be")
    classes = task.targets.shape[1]
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not (0 <= labels.min() <= labels.max() < classes):
        seen = f"task.test[1] has type {labels.dtype} and values from {labels.min()} to {labels.max()}"
        raise ValueError(f"{seen}: it must hold whole numbers in [0, {classes - 1}]")
    if x.shape[1] != task.x.shape[1]:
        raise ValueError(f"task.test[0] has {x.shape[1]} columns: it must have those of x, {task.x.shape[1]}")
    if task.targets.min() < 0 or abs(task.targets.sum(1) - 1).max() > 1e-3:
        raise ValueError("task.targets are no probabilities: each row must be >= 0 and add up to 1")
    require("task.seed", task.seed, "a whole number >= 0", lambda x: x >= 0 and x % 1 == 0)
