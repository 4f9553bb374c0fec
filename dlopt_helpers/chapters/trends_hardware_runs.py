"""The trainings of chapter 5's trend 4: fewer bits while training, and the 2:4 pattern, with controls."""

import itertools

import joblib
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.pruning_torch import prunable, prune
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.training import train
from dlopt_helpers.pruning import magnitude_mask, n_of_m_mask, threshold_for

SEEDS = range(4)
BITS_SEEDS = range(3)
STEPS = 1_000
RATES = [1e-3, 1e-4]  # of Adam
WAYS = ["float32", "autocast", "bfloat16 weights", "all bfloat16"]
PATTERNS = ["dense", "any half", "2:4", "random 2:4"]
RETRAINING = 500
WIDTH, SGD_RATE = 128, 0.1


class Autocast(nn.Module):
    """A network that computes in bfloat16 where that is safe, as autocast decides; its weights stay."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        with torch.autocast(x.device.type, torch.bfloat16):
            return self.network(x).float()


@torch.no_grad()
def _round_weights(optimizer, *_):
    for p in (p for group in optimizer.param_groups for p in group["params"]):
        p.copy_(p.bfloat16())


@torch.no_grad()
def _accuracy(model):
    x, y = map(torch.from_numpy, fresh_test())
    x = x.to(next(model.parameters()).dtype)
    return (model(x).argmax(-1) == y).double().mean().item()


@published
def _in_bits(way, rate, seed):
    model = mlp(seed=seed)
    model = {"autocast": Autocast, "all bfloat16": nn.Module.bfloat16}.get(way, lambda m: m)(model)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    if way == "bfloat16 weights":
        _round_weights(optimizer)
        optimizer.register_step_post_hook(_round_weights)
    schedule = CosineAnnealingLR(optimizer, STEPS)
    train(model, optimizer, mnist1d(), STEPS, seed=seed, schedule=schedule, every=STEPS)
    return {"way": way, "rate": rate, "seed": seed, "accuracy": _accuracy(model)}


def in_bits():
    """Train the MLP with Adam and a cosine, 1,000 steps, in each way, at each rate, three seeds.

    Returns:
      One row per ``way``, ``rate`` and ``seed`` with ``accuracy`` on 10,000 fresh examples. ``autocast``
      computes in bfloat16 and keeps the weights in float32; ``bfloat16 weights`` is the reverse; ``all
      bfloat16`` has weights, gradients, Adam's state and products in it.
    """
    jobs = [joblib.delayed(_in_bits)(*of) for of in itertools.product(WAYS, RATES, BITS_SEEDS)]
    return pd.DataFrame(spread(jobs, "formats"))


# --- 2:4 -----------------------------------------------------------------------------------------


def _trained(model, seed, steps):
    optimizer = torch.optim.SGD(model.parameters(), SGD_RATE, momentum=0.9)
    schedule = CosineAnnealingLR(optimizer, steps)
    train(model, optimizer, mnist1d(), steps, seed=seed, schedule=schedule, every=steps)
    return model


def masks(pattern, weights, seed):
    """Return masks that keep half of each layer's weights (a dict by layer), in the given pattern.

    Example:
      >>> w = {"0": torch.tensor([[1.0, 2.0, 3.0, 4.0, 8.0, 7.0, 6.0, 5.0]])}
      >>> masks("any half", w, seed=0)["0"]
      tensor([[0., 0., 0., 0., 1., 1., 1., 1.]])
      >>> masks("2:4", w, seed=0)["0"]
      tensor([[0., 0., 1., 1., 1., 1., 0., 0.]])
    """
    draw = torch.Generator().manual_seed(seed)
    make = {
        "dense": torch.ones_like,
        "any half": lambda w: magnitude_mask(w, threshold_for(0.5, w)),
        "2:4": n_of_m_mask,
        "random 2:4": lambda w: n_of_m_mask(torch.rand(w.shape, generator=draw)),
    }[pattern]
    return {name: make(w) for name, w in weights.items()}


@published
def _patterned(seed):
    model, rows = _trained(mlp(hidden=WIDTH, seed=seed), seed, STEPS), []
    start = {name: w.clone() for name, w in model.state_dict().items()}
    for pattern in PATTERNS:
        model = mlp(hidden=WIDTH)
        model.load_state_dict(start)
        prune(model, masks(pattern, prunable(model), seed))
        row = {"pattern": pattern, "seed": seed, "before": _accuracy(model)}
        rows.append(row | {"accuracy": _accuracy(_trained(model, seed + 100, RETRAINING))})
    return rows


def patterned():
    """Train an MLP of width 128, put a mask on half of each layer's weights, and train 500 steps more.

    Returns:
      One row per ``pattern`` and ``seed``: the accuracy on 10,000 fresh examples ``before`` the 500 steps
      and after (``accuracy``). ``dense`` trains as long without zeros; ``random 2:4`` keeps by lot.
    """
    rows = spread([joblib.delayed(_patterned)(seed) for seed in SEEDS], "patterns")
    return pd.DataFrame([row for some in rows for row in some])


# --- float16 -------------------------------------------------------------------------------------


@published
def vanished(powers=(0, 8, 16, 28)):
    """Return what float16 makes of the gradients of the trained MLP's second layer's outputs.

    Returns:
      One row per ``seed`` and ``scale`` (2 to a power): the shares ``lost`` (not zero in float32, zero in
      float16) and ``overflown``, of the gradients for a batch of 1,024 examples.
    """
    rows = []
    for seed in SEEDS:
        model = _trained(mlp(hidden=WIDTH, seed=seed), seed, STEPS)
        x, y = (torch.from_numpy(a[:1_024]) for a in mnist1d()[:2])
        hidden = model[:4](x).detach().requires_grad_()
        g = torch.autograd.grad(cross_entropy(model[4:](hidden), y), hidden)[0]
        for power in powers:
            half, there = (g * 2.0**power).half(), g != 0
            shares = {"lost": (half == 0)[there], "overflown": half.isinf()[there]}
            row = {"seed": seed, "scale": 2**power}
            rows.append(row | {name: share.double().mean().item() for name, share in shares.items()})
    return pd.DataFrame(rows)
