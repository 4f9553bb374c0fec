"""One training loop for every experiment."""

import contextlib
import os
import sys
from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from dlopt_helpers._require import refuse, require_kind, require_whole

# A fixed thousand of the (shuffled) training examples measures the loss for a quarter of the cost of all.
LOSS_ON = 1_000


def progress(items, what):
    """Show a bar over ``items`` where somebody can watch it: in a terminal or a live notebook.

    Raises:
      ValueError: if ``items`` cannot be gone through, or ``what`` is no text.
    """
    require_kind("items", items, Iterable, "a list or another iterable")
    if not (isinstance(what, str) and what.strip()):
        refuse("what", what, "a few words")
    watched = "ipykernel" in sys.modules or sys.stderr.isatty()
    unwanted = {"DLOPT_STATIC", "TQDM_DISABLE"} & set(os.environ)
    return tqdm(items, desc=what, leave=False, disable=bool(unwanted) or not watched)


@contextlib.contextmanager
def one_thread():
    """Let PyTorch use one thread: on networks this small more threads gain nothing and can cost ten times."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def batches(n, batch_size, steps, seed):
    """Return which examples make each mini-batch, an int array of shape ``(steps, batch_size)``.

    Each epoch shuffles the ``n`` examples anew and leaves out the few that fill no whole batch.

    Raises:
      ValueError: if ``batch_size`` is not in [1, n], or another argument is no whole number >= 0.

    Example:
      >>> batches(n=4, batch_size=2, steps=3, seed=0).shape
      (3, 2)
    """
    n = require_whole("n", n, 1)
    batch_size, steps = require_whole("batch_size", batch_size, 1, n), require_whole("steps", steps, 0)
    seed = require_whole("seed", seed, 0)
    rng, per_epoch = np.random.default_rng(seed), n // batch_size
    epochs = [rng.permutation(n)[: per_epoch * batch_size] for _ in range(-(-steps // per_epoch))]
    return np.concatenate([np.empty(0, int), *epochs])[: steps * batch_size].reshape(steps, batch_size)


def recorded(steps, every):
    """Return the steps at which a run is measured: 0, every ``every``-th, and the last.

    Raises:
      ValueError: if ``steps`` is no whole number >= 0, or ``every`` none >= 1.
    """
    steps, every = require_whole("steps", steps, 0), require_whole("every", every, 1)
    return sorted({*range(0, steps + 1, every), steps})


def tensors(data, dtype):
    """Return the four arrays of ``data`` as tensors, the inputs as ``dtype``, a torch dtype.

    Raises:
      ValueError: if ``data`` is no :class:`~dlopt_helpers.lab.data.Data` whose arrays fit together.
    """
    require_data(data)
    require_kind("dtype", dtype, torch.dtype, "a torch.dtype")
    x_train, y_train, x_test, y_test = map(torch.as_tensor, data)
    return x_train.to(dtype), y_train, x_test.to(dtype), y_test


def require_data(data):
    """Raise ``ValueError`` unless ``data`` holds finite inputs and whole labels, one for each, twice.

    The widths of the two inputs are equal.
    """
    allowed = "x_train, y_train, x_test, y_test: finite numbers of one width, and a label for each row"
    if not (isinstance(data, tuple) and len(data) == 4 and all(isinstance(x, np.ndarray) for x in data)):
        refuse("data", data, f"a Data of arrays, {allowed}")
    inputs, labels = data[::2], data[1::2]
    good = all(x.ndim >= 2 and x.dtype.kind in "iuf" and np.isfinite(x).all() for x in inputs)
    good = good and all(y.ndim == 1 and y.dtype.kind in "iu" for y in labels)
    if not good or [*map(len, inputs)] != [*map(len, labels)] or inputs[0].shape[1:] != inputs[1].shape[1:]:
        shapes = ", ".join(f"{x.dtype} {x.shape}" for x in data)
        raise ValueError(f"data holds arrays of {shapes}: they must be {allowed}")


@torch.no_grad()
def measure(model, data):
    """Return the loss on a fixed thousand training examples and the share of test examples that are right.

    Measured as the model is used, in evaluation mode; the mode it was in comes back.

    Raises:
      ValueError: if ``model`` is no ``nn.Module``, or ``data`` not what :func:`tensors` returns.
    """
    require_kind("model", model, torch.nn.Module, "an nn.Module")
    if not (isinstance(data, tuple) and len(data) == 4 and all(map(torch.is_tensor, data))):
        refuse("data", data, "four tensors, as tensors(data, dtype) returns them")
    x_train, y_train, x_test, y_test = data
    was_training = model.training
    model.eval()
    loss = cross_entropy(model(x_train[:LOSS_ON]), y_train[:LOSS_ON]).item()
    accuracy = (model(x_test).argmax(-1) == y_test).double().mean().item()
    model.train(was_training)
    return loss, accuracy


@one_thread()
def train(model, optimizer, data, steps=1_000, batch_size=64, seed=0, schedule=None, every=50):
    """Train ``model`` in place with the cross-entropy loss and return the run.

    Args:
      model: a classifier; its dtype is the dtype of the run.
      optimizer: a ``torch.optim.Optimizer`` over the parameters of ``model``.
      data: a :class:`~dlopt_helpers.lab.data.Data`.
      steps: number of updates.
      batch_size: examples in a mini-batch.
      seed: of the order of the examples.
      schedule: a ``torch.optim.lr_scheduler``, stepped after each update.
      every: updates between two rows.

    Returns:
      A data frame with one row per measured step: ``step``, ``loss`` (on the first thousand
      training examples), ``accuracy`` (on the test set, 0 to 1) and ``diverged``. When the loss is no
      longer a finite number the run ends, its rows stop before, and ``diverged`` is true in all of them.
      An interrupt (the stop button) ends a run early and returns what is there.

    Raises:
      ValueError: if ``model``, ``optimizer``, ``data`` or ``schedule`` is none, or a number is out of range.

    Example:
      >>> from dlopt_helpers.lab.data import digits
      >>> from dlopt_helpers.lab.models import mlp
      >>> model = mlp(inputs=64)
      >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
      >>> run = train(model, optimizer, digits(), steps=100)
      >>> list(run.step)
      [0, 50, 100]
    """
    require_kind("model", model, torch.nn.Module, "an nn.Module")
    require_kind("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    if schedule is not None and not callable(getattr(schedule, "step", None)):
        refuse("schedule", schedule, "a torch.optim.lr_scheduler or None")
    require_data(data)
    steps = require_whole("steps", steps, 0)
    order = torch.from_numpy(batches(len(data.x_train), batch_size, steps, seed))
    data, due = tensors(data, next(model.parameters()).dtype), set(recorded(steps, every))
    rows, diverged = [], False
    try:
        for step in progress(range(steps + 1), "training"):
            if step in due:
                loss, accuracy = measure(model, data)
                if diverged := not np.isfinite(loss):
                    break
                rows.append((step, loss, accuracy))
            if step < steps:
                _update(model, optimizer, data[0][order[step]], data[1][order[step]])
                if schedule is not None:
                    schedule.step()
    except KeyboardInterrupt:
        print(f"stopped by hand after {step} of {steps} steps")
    return pd.DataFrame(rows, columns=["step", "loss", "accuracy"]).assign(diverged=diverged)


def _update(model, optimizer, x, y):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()
