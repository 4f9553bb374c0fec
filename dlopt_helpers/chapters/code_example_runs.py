"""The trainings of chapter 4.1: the article's network on labels that can be learnt, and on random ones.

Many networks are trained at once: their weights carry a leading axis, and so may the learning rates.
``seed`` stands for everything that is drawn: the examples, their labels and the initial weights.
"""

import itertools
from dataclasses import dataclass

import joblib
import numpy as np
import pandas as pd
import torch

from dlopt_helpers._require import require
from dlopt_helpers.adam import Adam
from dlopt_helpers.code_example import Alternating, binary_cross_entropy, forward
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.training import batches, one_thread, recorded
from dlopt_helpers.sgd import SGD

EXAMPLES, INPUTS, UNITS = 1_000, 10, 16
FRESH = 5_000  # examples of the same kind that no training sees
STEPS, RATE = 100, 0.01  # the article's; the rate is that of both optimisers
SHARES = [0.0, 0.25, 0.5, 0.75, 1.0]
TEN, FIVE, THREE = range(10), range(5), range(3)  # seeds
LONG = 3_000
WIDTHS = [4, 64]  # besides 16
BATCH = 50

# --- what is learnt, by whom ------------------------------------------------------------------------


def target(x):
    """Return the labels that can be learnt, an int array: 1 where the first two inputs have the same sign.

    No weighted sum of the inputs tells that; four units do, for then ``|a + b| > |a - b|``.
    """
    return (x[:, 0] * x[:, 1] > 0).astype(int)


def labels_with_noise(y, share, rng):
    """Return the labels with a ``share`` of them drawn by lot; of these, half stay right by chance."""
    require("share", share, "a number in [0, 1]", lambda s: (s >= 0) & (s <= 1))
    return np.where(rng.random(len(y)) < share, rng.integers(0, 2, len(y)), y)


def examples(seed, share=1.0, n=EXAMPLES, fresh=False):
    """Return ``n`` examples of normal numbers and their labels, float32 of shapes (n, 10) and (n, 1).

    A ``share`` of the labels is random: with 1, as in the article, all are. ``fresh`` ones are others.
    """
    rng = np.random.default_rng([seed, fresh])
    x = rng.normal(size=(n, INPUTS)).astype("float32")
    y = labels_with_noise(target(x), share, rng)
    return x, y[:, None].astype("float32")


def network(seed, units=UNITS):
    """Return initial weights w1, b1, w2, b2, drawn as Keras does: Glorot's uniform, and biases of 0."""
    rng = np.random.default_rng([seed, 2])

    def glorot(m, n):
        return rng.uniform(-1, 1, size=(m, n)).astype("float32") * np.float32((6 / (m + n)) ** 0.5)

    return glorot(INPUTS, units), np.zeros(units, "float32"), glorot(units, 1), np.zeros(1, "float32")


def article(lr_sgd=RATE, lr_adam=RATE, every=1):
    """Return the article's rule: SGD in the steps 0, 2, 4, ..., Adam in the others."""
    return Alternating(SGD(lr_sgd), Adam(lr_adam), every)


# --- training ---------------------------------------------------------------------------------------


def _stacked(runs):
    """Return for each of the arrays that a run has those of all runs; a bias becomes a row."""
    return [torch.from_numpy(np.stack([np.atleast_2d(a) for a in each])) for each in zip(*runs, strict=True)]


@torch.no_grad()
def _graded(weights, data, fresh):
    """Return mean loss and share of right answers of each network, on its examples and on fresh ones.

    ``spread`` is the standard deviation of its fresh probabilities: 0 for a network that ignores x.
    """
    found = {}
    for name, (x, y) in (("", data), ("fresh_", fresh)):
        p = forward(x, *weights)
        pairs = zip(p, y, strict=True)
        found[f"{name}loss"] = [binary_cross_entropy(*pair).item() for pair in pairs]
        found[f"{name}accuracy"] = ((p > 0.5) == (y > 0.5)).double().mean((1, 2)).tolist()
    found["spread"] = p.std((1, 2)).tolist()  # the fresh ones came last
    return pd.DataFrame(found)


@one_thread()
def train(rule, runs, steps=STEPS, every=10, units=UNITS, batch_size=None, loss=binary_cross_entropy):
    """Train a network for each of the ``runs``, all at once.

    Args:
      rule: an update rule; its learning rates may have the shape ``(len(runs), 1, 1)``.
      runs: pairs of a seed and a share of random labels.
      steps: number of updates.
      every: updates between two rows.
      units: in the hidden layer.
      batch_size: examples in a mini-batch; by default each update sees all.
      loss: of probabilities and labels.

    Returns:
      One row per run and measured step: ``run`` (its number), ``seed``, ``share``, ``step``, ``loss``,
      ``accuracy``, ``fresh_loss``, ``fresh_accuracy``, ``spread``. And the length of each step of each
      run, an array of shape ``(steps, len(runs))``.
    """
    data = _stacked(examples(*run) for run in runs)
    fresh = _stacked(examples(*run, n=FRESH, fresh=True) for run in runs)
    weights = _stacked(network(seed, units) for seed, _ in runs)
    states, due = [rule.init(w) for w in weights], set(recorded(steps, every))
    seen = _seen(data, [seed for seed, _ in runs], batch_size, steps)
    rows, lengths = [], []
    for step in range(steps + 1):
        if step in due:
            rows.append(_graded(weights, data, fresh).assign(step=step))
        if step < steps:
            before, (weights, states) = weights, _update(rule, weights, states, next(seen), loss)
            squares = [((w - v) ** 2).sum((1, 2)) for w, v in zip(weights, before, strict=True)]
            lengths.append(sum(squares).sqrt())
    about = pd.DataFrame(runs, columns=["seed", "share"]).rename_axis("run").reset_index()
    rows = [about.join(found) for found in rows]
    return pd.concat(rows, ignore_index=True), torch.stack(lengths).numpy()


def _seen(data, seeds, batch_size, steps):
    """Yield what each update sees of the data: all, or each network's next mini-batch."""
    if batch_size is None:
        yield from itertools.repeat(data, steps)
        return
    orders = [torch.from_numpy(batches(EXAMPLES, batch_size, steps, seed)) for seed in seeds]
    each = torch.arange(len(seeds))[:, None]
    for batch in torch.stack(orders, dim=1):
        yield [a[each, batch] for a in data]


def _update(rule, weights, states, seen, loss):
    x, y = seen
    weights = [w.detach().requires_grad_() for w in weights]
    # The mean over all networks, times their number: no network meets another's loss.
    total = len(x) * loss(forward(x, *weights), y)
    gradients = torch.autograd.grad(total, weights)
    made = zip(weights, gradients, states, strict=True)
    after = [rule.step(w.detach(), gradient, state) for w, gradient, state in made]
    return [w for w, _ in after], [state for _, state in after]


def _together(calls, what):
    return pd.concat(spread([joblib.delayed(f)(*args) for f, *args in calls], what), ignore_index=True)


# --- random labels ----------------------------------------------------------------------------------


@published
def _memorised(share, units, seeds):
    rows, _ = train(article(), [(seed, share) for seed in seeds], LONG, every=50, units=units)
    return rows.assign(units=units)


def memorised():
    """Train for 3,000 steps: each share of random labels, and networks of 4 and 64 units on random ones."""
    settings = [(1.0, UNITS, list(TEN))]
    settings += [(share, UNITS, list(FIVE)) for share in SHARES[:-1]]
    settings += [(1.0, units, list(THREE)) for units in WIDTHS]
    return _together([(_memorised, *setting) for setting in settings], "long trainings")


# --- two optimisers in turn -------------------------------------------------------------------------


@dataclass(frozen=True)
class CountsAll(Alternating):
    """A mistake: the second rule's ``t`` also counts the steps that the first one made."""

    def step(self, w, gradient, state):
        """Return the weights and the state after one step."""
        w, after = super().step(w, gradient, state)
        return w, {**after, "second": {**after["second"], "t": after["t"]}}


@dataclass(frozen=True)
class SeesAll(Alternating):
    """Another program: both rules see every gradient, and the one whose turn it is moves the weights."""

    def step(self, w, gradient, state):
        """Return the weights and the state after one step."""
        made = {name: getattr(self, name).step(w, gradient, state[name]) for name in ("first", "second")}
        states = {name: own for name, (_, own) in made.items()}
        return made[self.turn(state["t"])][0], {"t": state["t"] + 1, **states}


WAYS = {
    "alternating": article(),
    "SGD alone": SGD(RATE),
    "Adam alone": Adam(RATE),
    "t counts all": CountsAll(SGD(RATE), Adam(RATE)),
    "both see all": SeesAll(SGD(RATE), Adam(RATE)),
}


@published
def _alternated(way, share, seeds):
    rows, lengths = train(WAYS[way], [(seed, share) for seed in seeds], STEPS, every=50)
    last = rows.step == STEPS
    for name, own in (("path_even", lengths[::2]), ("path_odd", lengths[1::2])):
        rows.loc[last, name] = own.sum(axis=0)
    return rows.assign(way=way)


def alternated():
    """Train each of ``WAYS`` on random labels and on such that can be learnt, ten seeds each.

    Returns:
      The rows of :func:`train` after 0, 50 and 100 steps, ``way``, and after 100 the summed lengths of
      the steps 0, 2, 4, ... (``path_even``) and of the others (``path_odd``).
    """
    calls = [(_alternated, way, share, list(TEN)) for way, share in itertools.product(WAYS, (0.0, 1.0))]
    return _together(calls, "optimisers in turn")


# --- an epoch -----------------------------------------------------------------------------------------


@published
def _epochs(share, seeds):
    per_epoch = EXAMPLES // BATCH
    rule, runs = article(every=per_epoch), [(seed, share) for seed in seeds]
    return train(rule, runs, STEPS * per_epoch, every=5 * per_epoch, batch_size=BATCH)[0]


def epochs():
    """Train for 100 epochs of mini-batches, random labels and such that can be learnt.

    The optimisers alternate after each epoch, as in the article; here an epoch has 20 steps.
    """
    return _together([(_epochs, share, list(FIVE)) for share in (0.0, 1.0)], "epochs")


# --- the loss that broadcasts -------------------------------------------------------------------------


def against_the_mean(p, y):
    """Return what the loss is where each probability meets each label: that against the mean label.

    The mean over a million pairs, for a thousand examples, without the million.
    """
    return binary_cross_entropy(p, y.mean(-2, keepdim=True).expand_as(p))


LOSSES = {"right": binary_cross_entropy, "broadcast": against_the_mean}


@published
def _broadcast(name, seeds):
    runs = [(seed, 0.0) for seed in seeds]
    return train(article(), runs, 1_000, every=50, loss=LOSSES[name])[0].assign(way=name)


def broadcast():
    """Train for 1,000 steps on labels that can be learnt, with the loss and with the one that broadcasts.

    ``loss`` and ``fresh_loss`` are the right loss for both.
    """
    return _together([(_broadcast, name, list(FIVE)) for name in LOSSES], "losses")


# --- the grid of the explorer ---------------------------------------------------------------------------

LR_SGD = [0.001, 0.01, 0.1, 1.0]
LR_ADAM = [0.001, 0.003, 0.01, 0.03, 0.1]
IN_TURN = {"SGD alone": None, "every step": 1, "every 5": 5, "every 25": 25, "Adam alone": None}


def _rules(turns, lr_sgd, lr_adam):
    if IN_TURN[turns]:
        return article(lr_sgd, lr_adam, IN_TURN[turns])
    return SGD(lr_sgd) if turns == "SGD alone" else Adam(lr_adam)


@published
def _grid(turns, share, seeds):
    rates = list(itertools.product(LR_SGD, LR_ADAM))
    # An optimiser that makes no step needs no second rate.
    tried = {"SGD alone": [(s, LR_ADAM[0]) for s in LR_SGD], "Adam alone": [(LR_SGD[0], a) for a in LR_ADAM]}
    settings = list(itertools.product(tried.get(turns, rates), seeds))
    lr_sgd, lr_adam = torch.tensor([pair for pair, _ in settings]).T[:, :, None, None]
    rows, _ = train(_rules(turns, lr_sgd, lr_adam), [(seed, share) for _, seed in settings], every=5)
    about = pd.DataFrame([pair for pair, _ in settings], columns=["lr_sgd", "lr_adam"])
    rows = rows.join(about, on="run").groupby(["lr_sgd", "lr_adam", "step"], as_index=False)
    rows = rows[["loss", "accuracy", "fresh_accuracy"]].mean().assign(turns=turns, share=share)
    unused = {"SGD alone": "lr_adam", "Adam alone": "lr_sgd"}.get(turns)
    return rows if unused is None else _for_all(rows, unused)


def _for_all(rows, unused):
    every = pd.DataFrame({unused: {"lr_sgd": LR_SGD, "lr_adam": LR_ADAM}[unused]})
    return rows.drop(columns=unused).merge(every, how="cross")


def grid():
    """Train the article's program at each pair of learning rates, order of turns and share of random labels.

    Returns:
      One row per setting and every fifth step: the means over three seeds.
    """
    calls = [(_grid, turns, share, list(THREE)) for turns in IN_TURN for share in SHARES]
    return _together(calls, "grid")
