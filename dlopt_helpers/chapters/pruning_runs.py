"""The trainings of chapter 3.3: networks cut in several ways and trained on, and their controls.

Every network that is trained on sees 2,000 steps: 1,000 dense and then 1,000 more, whether it is cut or
not, or 2,000 at once where it starts small. Each training has its own cosine. Accuracy along the way is
that on MNIST-1D's own test set; ``final`` is measured once, on 10,000 fresh examples.
"""

import functools
import itertools

import joblib
import pandas as pd
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.pruning_torch import prunable, prune, remove_units
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.memo import memoise
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.training import one_thread, train
from dlopt_helpers.pruning import (
    best_units,
    cubic,
    iterative,
    magnitude_mask,
    n_of_m_mask,
    one_shot,
    threshold_for,
    unit_scores,
)

WIDTHS = {"mlp512": 512, "cnn64": 64}
RATES = {"mlp512": 0.2, "cnn64": 0.1}
STEPS = 1_000
SEEDS = range(5)
METHODS = ["in rounds", "gradual", "one shot", "random", "cut"]
SPARSITIES = [0.5, 0.8, 0.9, 0.95, 0.98]
TICKETS = [0.8, 0.95]
KEPT = [0.5, 0.25, 0.1, 0.05]
CUTTING = 600  # of the steps after the first cut, where cuts are several; the rest only train
SCHEDULES = {"in rounds": (iterative, 5), "gradual": (cubic, 20)}


def untrained(network, seed, width=None):
    """Return a network of the chapter with its initial weights, or a narrower one."""
    width = width or WIDTHS[network]
    return mlp(hidden=width, seed=seed) if network == "mlp512" else cnn(channels=width, seed=seed)


def dense(network, seed):
    """Return a network after its first training."""
    model = untrained(network, seed)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in _dense_weights(network, seed).items()})
    return model


@memoise
def _dense_weights(network, seed):
    model = untrained(network, seed)
    trained_on(model, network, seed)
    return {name: w.numpy() for name, w in model.state_dict().items()}


def trained_on(model, network, seed, steps=None, rounds=()):
    """Train ``model`` in place and return the run, with ``final``.

    Args:
      model: a network.
      network: its name, which decides the learning rate.
      seed: of the order of the examples.
      steps: ``STEPS`` unless given; with 0 it is only measured.
      rounds: functions of ``model``, called one after another during the first ``CUTTING`` steps.
    """
    steps = STEPS if steps is None else steps
    optimizer = torch.optim.SGD(model.parameters(), RATES[network], momentum=0.9, fused=True)
    schedule, runs, done = CosineAnnealingLR(optimizer, steps), [], 0
    for number, change in enumerate(rounds or [lambda model: None]):
        change(model)
        part = CUTTING // len(rounds) if number + 1 < len(rounds) else steps - done
        run = train(model, optimizer, mnist1d(), part, seed=100 * seed + number, schedule=schedule, every=100)
        runs.append(run.assign(step=run.step + done))
        done += part
    runs = pd.concat(runs).drop_duplicates("step", keep="last", ignore_index=True)  # after a cut, not before
    return runs.assign(final=fresh_accuracy(model))


@one_thread()
@torch.no_grad()
def accuracy(model, x, y):
    """Return the share of the examples ``x``, an array, that ``model`` gives the labels ``y``."""
    return (model.eval()(torch.from_numpy(x)).argmax(-1) == torch.from_numpy(y)).double().mean().item()


def fresh_accuracy(model):
    """Return the share of 10,000 fresh examples that ``model`` gets right."""
    return accuracy(model, *fresh_test())


# --- weights -------------------------------------------------------------------------------------


def magnitude_masks(model, sparsity):
    """Return the masks of one threshold for all layers."""
    weights = prunable(model)
    threshold = threshold_for(sparsity, *weights.values())
    return {name: magnitude_mask(w, threshold) for name, w in weights.items()}


def random_masks(model, sparsity, seed):
    """Return masks that keep as many weights in each layer as magnitude would, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    masks = magnitude_masks(model, sparsity)
    return {
        name: mask.flatten()[torch.randperm(mask.numel(), generator=generator)].view_as(mask)
        for name, mask in masks.items()
    }


def _cut(masks_of, sparsity):
    return lambda model: prune(model, masks_of(model, sparsity))


def _rounds(method, sparsity, seed):
    """Return what a method does to a trained network, round by round."""
    if method in SCHEDULES:
        schedule, n = SCHEDULES[method]
        return [_cut(magnitude_masks, schedule(r / n, sparsity)) for r in range(1, n + 1)]
    masks_of = functools.partial(random_masks, seed=seed) if method == "random" else magnitude_masks
    return [_cut(masks_of, one_shot(0.0, sparsity))]


def pruned(network, method, sparsity, seed):
    """Cut one network, train it on, and return the run; for the methods see :func:`prunings`."""
    model = dense(network, seed)
    if method in ("ticket", "from scratch"):
        sparse = untrained(network, seed if method == "ticket" else seed + 50)
        prune(sparse, magnitude_masks(model, sparsity))
        run = trained_on(sparse, network, seed + 1, 2 * STEPS)
    elif method == "cut":
        run = trained_on(prune(model, magnitude_masks(model, sparsity)), network, seed, steps=0)
    else:
        rounds = _rounds(method, sparsity, seed) if sparsity else ()
        run = trained_on(model, network, seed + 1, rounds=rounds)
    return run.assign(network=network, method=method, sparsity=sparsity, seed=seed)


@published
def _prunings(network, seed):
    settings = [("dense", 0.0), *itertools.product(METHODS, SPARSITIES)]
    settings += itertools.product(("ticket", "from scratch"), TICKETS)
    return pd.concat([pruned(network, *setting, seed) for setting in settings], ignore_index=True)


def prunings(networks=tuple(WIDTHS), seeds=SEEDS):
    """Cut both networks at each sparsity by each method, five seeds each, and train them on.

    Returns:
      One row per network, method, sparsity, seed and measured step, with the columns of
      :func:`~dlopt_helpers.lab.training.train` and ``final``. The methods are ``dense`` (nothing is cut),
      ``cut`` (nothing is trained after it), ``one shot``, ``in rounds``, ``gradual``, ``random``; and, 2,000
      steps with the mask of ``one shot``, ``ticket`` (from the weights that the network once started from)
      and ``from scratch`` (from others).
    """
    return _table(_prunings, networks, seeds)


def _table(function, networks, seeds):
    jobs = [joblib.delayed(function)(network, seed) for network in networks for seed in seeds]
    return pd.concat(spread(jobs, "networks"), ignore_index=True)


@published
def _two_of_four(network, seed):
    model = dense(network, seed)
    accuracies = {"dense": fresh_accuracy(model)}
    prune(model, {name: n_of_m_mask(w) for name, w in prunable(model).items()})
    accuracies["cut"] = fresh_accuracy(model)
    accuracies["retrained"] = trained_on(model, network, seed + 1).final.iloc[-1]
    return pd.DataFrame([{**accuracies, "network": network, "seed": seed}])


def two_of_four(networks=("mlp512",), seeds=SEEDS):
    """Keep two of each four neighbouring weights and train on; fresh accuracy, one row for each seed."""
    return _table(_two_of_four, networks, seeds)


# --- units ---------------------------------------------------------------------------------------


def units(model, share, score="L2"):
    """Return which units of each hidden layer stay, the best by ``score``."""
    layers = list(prunable(model).items())[:-1]
    scores = {name: unit_scores(w, axis=0, p=1 if score == "L1" else 2) for name, w in layers}
    if score == "activation":
        scores = {name: unit_scores(outputs, axis=1) for name, outputs in _activations(model, scores).items()}
    return {name: best_units(s, keep=round(share * len(s))) for name, s in scores.items()}


@torch.no_grad()
def _activations(model, names):
    """Return what the layers pass on after their ReLU, for a thousand training examples."""
    x, outputs = torch.from_numpy(mnist1d().x_train[:1_000]), {}
    for (name, layer), following in zip(model.named_children(), [*list(model)[1:], None], strict=True):
        x = layer(x)
        if name in names:
            outputs[name] = following(x)
    return outputs


SCORES = ["L1", "L2", "activation"]


@published
def _removals(network, seed):
    model, rows = dense(network, seed), []
    for share in KEPT:
        cuts = {score: fresh_accuracy(remove_units(model, units(model, share, score))) for score in SCORES}
        small = remove_units(model, units(model, share))
        scratch = untrained(network, seed + 50, width=round(share * WIDTHS[network]))
        row = {"kept": share, **cuts, "parameters": sum(p.numel() for p in small.parameters())}
        row["retrained"] = trained_on(small, network, seed + 1).final.iloc[-1]
        row["from scratch"] = trained_on(scratch, network, seed + 1, 2 * STEPS).final.iloc[-1]
        rows.append(row)
    return pd.DataFrame(rows).assign(network=network, seed=seed)


def removals(networks=tuple(WIDTHS), seeds=SEEDS):
    """Take units out of both networks, five seeds each, and train what is left.

    Returns:
      One row per network, share of units kept and seed: the fresh accuracy after the cut by each score
      (``L1``, ``L2``, ``activation``), after 1,000 more steps (``retrained``), that of a network of the
      same size after 2,000 steps ``from scratch``, and ``parameters``.
    """
    return _table(_removals, networks, seeds)
