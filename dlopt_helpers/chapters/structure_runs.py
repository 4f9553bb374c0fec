"""The trainings of chapter 3.6: a layer of lower rank, and networks of several blocks, with their controls.

SGD with momentum 0.9 and a cosine, as in chapter 3.3. Each network and each way to train it is tried at
two or three learning rates; which one counts is decided on 2,000 validation examples, for all seeds at
once. ``accuracy`` is measured on 10,000 others.
"""

import itertools

import joblib
import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.structure_torch import factorise
from dlopt_helpers.chapters import pruning_runs
from dlopt_helpers.chapters.pruning_runs import accuracy, dense, fresh_accuracy
from dlopt_helpers.lab.blocks import KINDS, block_net
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.summary import at_best_rate
from dlopt_helpers.lab.training import train

SEEDS = range(5)
FIRST = pruning_runs.STEPS  # steps of the dense network's own training
LAYER = "2"  # the MLP's second layer, 512 x 512
RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256]
CONTROLLED = [4, 16, 64]  # ranks with controls
FINE_TUNING = 500
RATES = [0.05, 0.1]  # of training on a factorised network; three for networks from scratch, see WAYS
WIDTHS = [8, 16, 32, 64]
DEPTHS = [2, 4]
BLOCK_SEEDS = range(4)
STEPS = 500  # of a network of blocks
BLOCK_RATES = [0.04, 0.12]


def trained(model, rate, steps, seed):
    """Train ``model`` in place and return it."""
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, fused=True)
    schedule = CosineAnnealingLR(optimizer, steps)
    train(model, optimizer, mnist1d(), steps, seed=seed, schedule=schedule, every=steps)
    return model


def _graded(model):
    """Return the accuracies of a network that has been trained."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "validation": accuracy(model, *fresh_test(2_000, seed=2)),
        "accuracy": fresh_accuracy(model),
    }


# --- rank ----------------------------------------------------------------------------------------


def in_random_subspace(model, rank, seed):
    """Return ``model`` with its layer's inputs projected on a subspace drawn by lot: the control.

    The factors are as large as each other, as those of the singular values are.
    """
    projected = factorise(model, {LAYER: rank})
    first, second = projected.get_submodule(LAYER)
    with torch.no_grad():
        w = model.get_submodule(LAYER).weight
        draw = torch.randn(w.shape[1], rank, generator=torch.Generator().manual_seed(seed))
        basis = torch.linalg.qr(draw)[0]
        scale = ((w @ basis).norm() / basis.norm()).sqrt()
        first.weight.copy_(basis.T * scale)
        second.weight.copy_(w @ basis / scale)
    return projected


def untrained_pair(rank, seed):
    """Return an MLP of the factorised shape, all of its weights drawn anew."""
    model = mlp(hidden=512, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.set_submodule(LAYER, nn.Sequential(nn.Linear(512, rank, bias=False), nn.Linear(rank, 512)))
    return model


def narrow(rank, seed):
    """Return an untrained MLP with two equal hidden layers and nearly as many parameters as rank leaves."""
    size = sum(p.numel() for p in untrained_pair(rank, seed).parameters())
    width = next(h for h in range(512, 0, -1) if 41 * h + (h + 1) * h + 10 * (h + 1) <= size)
    return mlp(hidden=width, seed=seed)


# How each way starts, from a rank and a seed, its steps and its learning rates.
WAYS = {
    "dense": (lambda rank, seed: dense("mlp512", seed), FINE_TUNING, RATES),
    "SVD": (lambda rank, seed: factorise(dense("mlp512", seed), {LAYER: rank}), FINE_TUNING, RATES),
    "random": (
        lambda rank, seed: in_random_subspace(dense("mlp512", seed), rank, seed),
        FINE_TUNING,
        RATES,
    ),
    "from scratch": (
        lambda rank, seed: untrained_pair(rank, seed + 50),
        FIRST + FINE_TUNING,
        [0.05, 0.1, 0.2],
    ),
    "narrow": (lambda rank, seed: narrow(rank, seed + 50), FIRST + FINE_TUNING, [0.1, 0.2, 0.4]),
}
SETTINGS = [
    ("dense", 512),
    *itertools.product(["SVD"], RANKS),
    *itertools.product(["random", "from scratch", "narrow"], CONTROLLED),
]


@published
def _ranked(way, rank):
    start, steps, rates = WAYS[way]
    rows = []
    for rate, seed in itertools.product(rates, SEEDS):
        model = start(rank, seed)
        row = {"rate": rate, "seed": seed, "before": fresh_accuracy(model)}
        rows.append(row | _graded(trained(model, rate, steps, seed + 1)))
    return pd.DataFrame(rows).assign(way=way, rank=rank)


def ranked():
    """Lower the rank of a trained MLP's 512 x 512 layer and train on for 500 steps, five seeds.

    Returns:
      One row per ``way``, ``rank`` and ``seed``, at the best rate: ``rate``, ``parameters``, the accuracy
      ``before`` training on, and ``validation`` and ``accuracy`` after it. The ways are ``SVD``; ``dense``,
      trained on as long (rank 512); ``random``, projected on a random subspace; and, with all 1,500 steps,
      the factorised shape ``from scratch`` and ``narrow``, an MLP with two layers as narrow as the
      parameters of that rank allow.
    """
    jobs = [joblib.delayed(_ranked)(*setting) for setting in SETTINGS]
    return at_best_rate(pd.concat(spread(jobs, "networks"), ignore_index=True), ["way", "rank"])


# --- blocks --------------------------------------------------------------------------------------


@published
def _of_kind(kind, width):
    rows = []
    for depth, rate, seed in itertools.product(DEPTHS, BLOCK_RATES, BLOCK_SEEDS):
        model = trained(block_net(kind, width, depth, seed), rate, STEPS, seed)
        rows.append({"depth": depth, "rate": rate, "seed": seed, **_graded(model)})
    return pd.DataFrame(rows).assign(kind=kind, width=width)


def blocks():
    """Train networks of each kind of block, width and depth, four seeds each.

    Returns:
      One row per ``kind``, ``width``, ``depth`` and ``seed``, at the best rate: ``rate``, ``parameters``,
      ``validation`` and ``accuracy``.
    """
    jobs = [joblib.delayed(_of_kind)(kind, width) for width in reversed(WIDTHS) for kind in KINDS]
    return at_best_rate(pd.concat(spread(jobs, "networks"), ignore_index=True), ["kind", "width", "depth"])
