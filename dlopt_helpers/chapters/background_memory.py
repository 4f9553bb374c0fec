"""The memory of training, measured: what autograd keeps, what the optimiser holds, what was allocated."""

import itertools

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint_sequential

from dlopt_helpers._require import require
from dlopt_helpers.footprint import Memory, kept_numbers, mlp_cost, training_bytes
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.runtimes import quiet
from dlopt_helpers.lab.training import one_thread

INPUTS, CLASSES = 40, 10
OPTIMISERS = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.01),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "Adam": lambda p: torch.optim.Adam(p, lr=0.001),
}
PRECISIONS = ["float32", "bfloat16, float32 copy"]
MIXED = PRECISIONS[1]
WIDTHS, DEPTHS, BATCHES = [64, 256, 1024], [1, 2, 4], [1, 16, 64, 256, 1024]
LABEL = 8  # bytes of a label, an int64


def a_batch(size, dtype=torch.float32):
    """Return ``size`` examples of normal numbers and their labels: how many bytes are kept is all we ask."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(size, INPUTS, generator=rng)
    return x.to(dtype), torch.randint(CLASSES, (size,), generator=rng)


# --- what is kept from the forward to the backward pass ---------------------------------------------


def kept_storages(model, x, y, forward=None):
    """Return the arrays that autograd keeps for the backward pass: bytes by address, without the weights.

    Two tensors may share an array, as ReLU's output and the next layer's input do: it counts once.
    """
    kept = {}
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        # The array lives on, so that no other gets its address. The tensor itself would hold the graph, and
        # the graph the tensor: neither would ever be freed.
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = cross_entropy((forward or model)(x), y)
    del loss
    return kept


def kept_bytes(model, x, y, forward=None):
    """Return the bytes that are kept for the backward pass, without the labels and one number of the loss.

    The labels are 8 bytes an example; the loss keeps the sum of its weights, one float.
    """
    return sum(kept_storages(model, x, y, forward).values()) - LABEL * len(y) - x.element_size()


# --- a step of training ------------------------------------------------------------------------------


class Trainer:
    """A model with its optimiser, in float32, or in bfloat16 with a float32 copy of the weights.

    Args:
      model: it becomes bfloat16 if ``mixed``.
      optimiser: a name of ``OPTIMISERS``.
      mixed: whether to keep a copy and step on that.
    """

    def __init__(self, model, optimiser, mixed=False):
        self.copies = [p.detach().clone() for p in model.parameters()] if mixed else []
        self.model = model.to(torch.bfloat16) if mixed else model
        stepped = self.copies or list(model.parameters())
        # One optimiser for each tensor: of the gradients in float32 only one is there at a time.
        self.optimisers = [OPTIMISERS[optimiser]([p]) for p in stepped]

    def step(self, x, y):
        """Make one step, and leave the gradients where they are."""
        self.model.zero_grad()
        cross_entropy(self.model(x), y).backward()
        if not self.copies:
            for optimiser in self.optimisers:
                optimiser.step()
            return
        for p, copy, optimiser in zip(self.model.parameters(), self.copies, self.optimisers, strict=True):
            copy.grad = p.grad.float()
            optimiser.step()
            copy.grad = None
            p.data.copy_(copy)

    def held(self):
        """Return weights, gradients and state in bytes, as they lie there after a step."""
        parameters = list(self.model.parameters())
        state = [v for o in self.optimisers for s in o.state.values() for k, v in s.items() if k != "step"]
        groups = parameters, [p.grad for p in parameters], self.copies + [v for v in state if v is not None]
        return tuple(sum(t.numel() * t.element_size() for t in group) for group in groups)


def measured(model, optimiser, batch, mixed=False):
    """Train a step and return its :class:`Memory`, measured, and the peak of the allocator in bytes.

    The peak is the most that was there at any moment of a second step: weights, state, the mini-batch,
    and what the step allocated.
    """
    require("batch", batch, "a whole number >= 1", lambda b: b >= 1 and b % 1 == 0)
    trainer = Trainer(model, optimiser, mixed)
    x, y = a_batch(batch, torch.bfloat16 if mixed else torch.float32)
    activations = kept_bytes(trainer.model, x, y)
    trainer.step(x, y)
    weights, gradients, state = trainer.held()
    trainer.model.zero_grad()
    inside = allocated_peak(lambda: trainer.step(x, y))
    data = x.numel() * x.element_size() + LABEL * batch
    return Memory(weights, gradients, state, activations), weights + state + data + inside


def allocated_peak(function):
    """Return the most bytes that ``function`` had allocated at any moment and not yet freed."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        function()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    events.sort(key=lambda e: e.start_ns())
    return max(itertools.accumulate((e.nbytes() for e in events), initial=0))


def peak_formula(rows):
    """Return the peak by formula for the rows of :func:`memory_grid`.

    Weights and state are always there. Besides them there are two moments. As the backward pass begins:
    all activations, and the gradients on both sides of the widest ReLU. As the optimiser steps: all
    gradients, and what it computes with, for the largest matrix: Adam two arrays of its size, a copy
    in float32 one more.
    """
    size = rows.precision.map({PRECISIONS[0]: 4, MIXED: 2})
    matrix = (INPUTS * rows.neurons).where(rows.depth == 1, rows.neurons**2).clip(lower=INPUTS * rows.neurons)
    arrays = 2 * (rows.optimiser == "Adam") + (rows.precision == MIXED)
    backward = rows.activations_formula + 2 * size * rows.batch * rows.neurons
    step = rows.gradients_formula + 4 * arrays * matrix
    return rows.weights_formula + rows.state_formula + np.maximum(backward, step)


# --- the tables ---------------------------------------------------------------------------------------


def sizes(width, depth):
    """Return the sizes of the book's MLP with ``depth`` hidden layers."""
    return (INPUTS, *[width] * depth, CLASSES)


@one_thread()
@published
def memory_grid():
    """Measure training of each MLP of the explorer.

    Returns:
      One row per setting: ``neurons`` in a layer, ``depth``, ``batch``, ``precision``, ``optimiser``;
      for each part of :class:`Memory` its bytes as measured, and by formula with ``_formula``; ``peak``.
    """
    rows = []
    settings = itertools.product(WIDTHS, DEPTHS, BATCHES, PRECISIONS, OPTIMISERS)
    for width, depth, batch, precision, optimiser in settings:
        model, mixed = mlp(hidden=(width,) * depth), precision == MIXED
        found, peak = measured(model, optimiser, batch, mixed)
        shape = sizes(width, depth)
        formula = training_bytes(
            mlp_cost(shape).parameters, kept_numbers(shape), batch, optimiser, mixed=mixed
        )
        setting = dict(neurons=width, depth=depth, batch=batch, precision=precision, optimiser=optimiser)
        said = {f"{part}_formula": value for part, value in formula._asdict().items()}
        rows.append(setting | found._asdict() | said | {"peak": peak})
    return pd.DataFrame(rows)


CNN_KEPT = 40 + 25 * (19 + 10 + 5) + 10  # input, three convolutions with 25 channels, log-probabilities


@one_thread()
def network_table(batch=100):
    """Return formula and measurement for the networks of the book, Adam in float32, in bytes."""
    networks = {
        "mlp": (mlp(), kept_numbers((40, 100, 100, 10))),
        "mlp, GELU": (with_gelu(mlp()), kept_numbers((40, 100, 100, 10), twice=True)),
        "mlp, 1024": (mlp(hidden=1024), kept_numbers((40, 1024, 1024, 10))),
        "cnn": (cnn(), CNN_KEPT),
    }
    rows = []
    for name, (model, kept) in networks.items():
        formula = training_bytes(sum(p.numel() for p in model.parameters()), kept, batch)
        found, peak = measured(model, "Adam", batch)
        rows += [
            {"network": name, "": "formula", **formula._asdict(), "total": formula.total},
            {"network": name, "": "measured", **found._asdict(), "total": found.total, "peak": peak},
        ]
    return pd.DataFrame(rows).astype({"peak": "Int64"}).set_index(["network", ""])


def with_gelu(model):
    """Return the network with GELU in place of ReLU."""
    return nn.Sequential(*(nn.GELU() if isinstance(layer, nn.ReLU) else layer for layer in model))


# --- checkpoints --------------------------------------------------------------------------------------


def in_segments(model, segments):
    """Return a forward pass that keeps only what enters each segment, and computes the rest again.

    Args:
      model: a ``Sequential``; the last segment is kept as usual.
      segments: how many, from 1 to its number of layers.
    """
    return lambda x: checkpoint_sequential(model, segments, x, use_reentrant=False)
