"""What a step of an optimiser costs: measured here, or as it was measured for the book."""

import functools
import time
from pathlib import Path

import pandas as pd
import torch

from dlopt_helpers.adam import Adam
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.lab.measure import finished, ratios
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.sgd import SGD

STORED = Path(__file__).with_suffix(".csv")
# The arrays that a step must read and write: weights, gradient and state, then weights and state.
RULES = {
    "SGD": (SGD(lr=1e-6, momentum=0.9), functools.partial(torch.optim.SGD, lr=1e-6, momentum=0.9), 3 + 2),
    "Adam": (Adam(lr=1e-6), functools.partial(torch.optim.Adam, lr=1e-6), 4 + 3),
}
# name -> shapes of the parameters
NETWORKS = {
    "15 thousand": [p.shape for p in mlp().parameters()],
    "3 million": [p.shape for p in mlp(hidden=(1240, 1240, 1100)).parameters()],
}


def stored_step_costs():
    """Return the costs that were measured for the book, with ``date`` and ``device``.

    ``python benchmarks/optimizer_step.py --store`` measures them anew.
    """
    return pd.read_csv(STORED)


@one_thread()
def step_costs(rule="Adam", networks=None, device="cpu", repeats=30):
    """Measure a step of a rule in each variant, on one thread; about a minute, most of it compiling.

    Args:
      rule: one of ``RULES``.
      networks: a dict from names to the shapes of the parameters; ``NETWORKS`` unless given.
      device: ``"cpu"`` or ``"cuda"``.
      repeats: pairs of measurements for each ratio.

    Returns:
      A data frame with one row per network and variant, and one for a copy of the weights: ``default``,
      ``fused`` and ``copy``, the step's time as a multiple of that of PyTorch's default and fused
      optimiser and of the copy, each with ``_low`` and ``_high``, between which 90 % of the repeats
      lie; ``rate``, the bytes per second as a share of the copy's, where each array that the rule has to
      read or write counts once; ``seconds_first``, the time of the first step, in which the compiler
      works; and ``microseconds`` of a step.
    """
    networks = networks or NETWORKS
    return pd.concat([_costs(rule, name, networks[name], device, repeats) for name in networks])


def _costs(rule, network, shapes, device, repeats):
    ours, own, arrays = RULES[rule]
    size = sum(torch.Size(shape).numel() for shape in shapes)
    calls = max(1, 1_000_000 // size)
    steps, first = {}, {}
    for variant, make in _variants(ours, own).items():
        steps[variant] = finished(make(_parameters(shapes, device)).step, device)
        first[variant] = _seconds(steps[variant], 1)
    source, target = torch.randn(2, size, device=device)
    steps["copy"] = finished(lambda: target.copy_(source), device)
    rows = []
    for variant, step in steps.items():
        row = {"rule": rule, "network": network, "variant": variant}
        for base in ("default", "fused", "copy"):
            ratio = ratios(step, steps[base], repeats, calls)
            row |= {base: ratio.median, f"{base}_low": ratio.low, f"{base}_high": ratio.high}
        seconds = sorted(_seconds(step, calls) for _ in range(repeats))[repeats // 2]
        rate = (2 if variant == "copy" else arrays) / 2 / row["copy"]
        rows.append(row | {"rate": rate, "seconds_first": first.get(variant), "microseconds": seconds * 1e6})
    return pd.DataFrame(rows)


def _variants(rule, own):
    """Return the ways to make a step, functions of the parameters."""
    return {
        "default": own,
        "foreach": functools.partial(own, foreach=True),
        "fused": functools.partial(own, fused=True),
        "ours": lambda ps: RuleOptimizer(ps, rule),
        "ours, compiled": lambda ps: RuleOptimizer(ps, rule, compiled=True),
    }


def _parameters(shapes, device):
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(device)
    return made


def _seconds(function, calls):
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def table(costs):
    """Return the costs as the chapters show them."""

    def ratio(base):
        return [
            f"{m:.2g} ({low:.2g} to {high:.2g})"
            for m, low, high in costs[[base, f"{base}_low", f"{base}_high"]].itertuples(index=False)
        ]

    return pd.DataFrame(
        {
            "parameters": costs.network,
            "step": costs.variant,
            "times the default's": ratio("default"),
            "times the fused one's": ratio("fused"),
            "bytes/s, copy = 1": costs.rate.map("{:.2g}".format),
        }
    ).set_index(["parameters", "step"])
