"""How long steps, layers and small networks take: measured here, or as it was for the book."""

import functools
import itertools
import math
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from dlopt_helpers.chapters.background_memory import (
    BATCHES,
    DEPTHS,
    INPUTS,
    OPTIMISERS,
    WIDTHS,
    a_batch,
    in_segments,
    sizes,
)
from dlopt_helpers.footprint import mlp_cost, moved_bytes
from dlopt_helpers.lab.measure import Ratio
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.onnxrt import export, load
from dlopt_helpers.lab.training import one_thread

STORED = Path(__file__).with_suffix(".csv")
LAYERS = [256, 1024, 4096]  # of the roofline: as many inputs as outputs
LAYER_BATCHES = [2**k for k in range(11)]
SQUARE = 1024  # the product of matrices that stands for the machine's peak
READ = 1 << 22  # numbers that are read for its bandwidth: 16 MB, which no core's own cache holds
HIDDEN = [8, 16, 32, 64, 128, 256, 512, 1024, 2048]
REFERENCE = 1024  # units of the network whose time is 1
ENOUGH = 4e6  # MACs that a measurement makes at the least, so that no clock is read for a microsecond


def stored_speeds():
    """Return the times that were measured for the book, with ``date`` and ``device``.

    ``python benchmarks/footprint.py --store`` measures them anew.
    """
    return pd.read_csv(STORED)


@one_thread()
def speeds(families=("machine", "roofline", "step", "halving", "checkpoint"), repeats=15):
    """Measure on one thread; about five minutes.

    Returns:
      A data frame. ``family``, ``what``, ``neurons``, ``depth``, ``batch``, ``macs``; ``time``, a multiple
      of the family's reference, with ``low`` and ``high``, between which 90 % of the repeats lie:

      - ``machine``: ``peak``, a product of matrices, over the reading of 16 MB;
      - ``roofline``: a linear layer over that product;
      - ``step``: the passes of a training step, and the optimisers, over the forward pass;
      - ``halving``: networks in ``torch`` and ``onnxruntime``, over that with 1,024 units;
      - ``checkpoint``: a step that computes the forward pass twice over one that does not.
    """
    makers = dict(machine=_machine, roofline=_roofline, step=_steps, halving=_halving, checkpoint=_checkpoint)
    return pd.DataFrame([row for family in families for row in makers[family](repeats)])


def ratios(a, b, repeats, calls=(1, 1)):
    """Time ``calls`` of ``a`` and of ``b`` in turn; return the ratio of the times of one call.

    The time is that of the processor, as all runs on one thread: what else the machine does in between
    does not count.
    """
    each = [_seconds(a, calls[0]) / _seconds(b, calls[1]) for _ in range(repeats + 1)][1:]
    return Ratio(*(float(q) for q in np.quantile(each, [0.5, 0.05, 0.95])))


def _seconds(function, calls):
    start = time.process_time()
    for _ in range(calls):
        function()
    return (time.process_time() - start) / calls


def _enough(macs):
    return math.ceil(ENOUGH / macs)


def _row(family, what, ratio, *, neurons, depth=1, batch=1, macs=0):
    place = dict(family=family, what=what, neurons=neurons, depth=depth, batch=batch, macs=macs)
    return place | dict(zip(["time", "low", "high"], ratio, strict=True))


def _product():
    a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
    return functools.partial(torch.mm, a, b)


def _machine(repeats):
    numbers = torch.randn(READ)
    read = functools.partial(torch.sum, numbers)
    ratio = ratios(_product(), read, repeats, calls=(1, 5))
    yield _row("machine", "peak", ratio, neurons=SQUARE, batch=SQUARE, macs=SQUARE**3)


def _roofline(repeats):
    reference = _product()
    for width, batch in itertools.product(LAYERS, LAYER_BATCHES):
        layer, x = torch.nn.Linear(width, width, bias=False), torch.randn(batch, width)
        macs = batch * width**2
        with torch.no_grad():
            ratio = ratios(functools.partial(layer, x), reference, repeats, calls=(_enough(macs), 1))
        yield _row("roofline", "linear", ratio, neurons=width, batch=batch, macs=macs)


def passes(model, x, y):
    """Return the forward pass, and forward and backward pass together, as functions."""

    def forward():
        return cross_entropy(model(x), y)

    def both():
        model.zero_grad()
        forward().backward()

    return forward, both


def _steps(repeats):
    for width, depth, batch in itertools.product(WIDTHS, DEPTHS, BATCHES):
        model, (x, y) = mlp(hidden=(width,) * depth), a_batch(batch)
        macs = batch * mlp_cost(sizes(width, depth)).macs
        forward, both = passes(model, x, y)
        both()  # so that each optimiser finds gradients
        made = {"forward and backward": both}
        made |= {name: make(model.parameters()).step for name, make in OPTIMISERS.items()}
        calls = _enough(macs)
        for what, function in made.items():
            ratio = ratios(function, forward, repeats, calls=(calls, calls))
            yield _row("step", what, ratio, neurons=width, depth=depth, batch=batch, macs=macs)


def _halving(repeats):
    for runtime, batch in itertools.product(("torch", "onnxruntime"), (1, 64)):
        answers = {hidden: _answers(runtime, hidden, batch) for hidden in HIDDEN}
        whole = batch * mlp_cost((INPUTS, REFERENCE, REFERENCE, 10)).macs
        for hidden, answer in answers.items():
            macs = batch * mlp_cost((INPUTS, hidden, hidden, 10)).macs
            ratio = ratios(answer, answers[REFERENCE], repeats, calls=(_enough(macs), _enough(whole)))
            yield _row("halving", runtime, ratio, neurons=hidden, depth=2, batch=batch, macs=macs)


def _answers(runtime, hidden, batch):
    model, x = mlp(hidden=hidden), a_batch(batch)[0]
    if runtime == "onnxruntime":
        return functools.partial(load(export(model)), x.numpy())

    @torch.no_grad()
    def answer():
        return model(x)

    return answer


def _checkpoint(repeats):
    width, depth, batch = 256, 16, 256
    model, (x, y) = mlp(hidden=(width,) * depth), a_batch(batch)
    again, both = (passes(m, x, y)[1] for m in (in_segments_of(model), model))
    macs = batch * mlp_cost(sizes(width, depth)).macs
    yield _row(
        "checkpoint",
        "4 segments",
        ratios(again, both, repeats),
        neurons=width,
        depth=depth,
        batch=batch,
        macs=macs,
    )


def in_segments_of(model, segments=4):
    """Return the model with checkpoints, as a module."""
    forward = in_segments(model, segments)

    class Again(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return forward(x)

    return Again()


# --- what follows from the stored table -----------------------------------------------------------------


def ridge(speeds):
    """Return how many MACs the machine makes while it reads a byte."""
    machine = speeds[speeds.family == "machine"].iloc[0]
    return machine.macs / (4 * READ) / machine.time


def roofline_rows(speeds):
    """Return the layers with ``intensity``, MACs a byte; ``rate`` and ``roof``, as shares of the peak."""
    rows = speeds[speeds.family == "roofline"].copy()
    moved = [moved_bytes(n, n, b) for n, b in zip(rows.neurons, rows.batch, strict=True)]
    rows["intensity"] = rows.macs / moved
    rows["rate"] = rows.macs / SQUARE**3 / rows.time
    rows["roof"] = (rows.intensity / ridge(speeds)).clip(upper=1)
    return rows


def step_shares(speeds):
    """Return the shares of a training step: ``forward``, ``backward`` and ``optimiser``, summing to 1."""
    rows = speeds[speeds.family == "step"]
    wide = rows.pivot(index=["neurons", "depth", "batch"], columns="what", values="time")
    wide["backward"] = wide["forward and backward"] - 1
    parts = []
    for name in OPTIMISERS:
        whole = 1 + wide.backward + wide[name]
        shares = {"forward": 1 / whole, "backward": wide.backward / whole, "optimiser": wide[name] / whole}
        parts.append(pd.DataFrame(shares).assign(of=name).reset_index())
    return pd.concat(parts, ignore_index=True).rename(columns={"of": "rule"})
