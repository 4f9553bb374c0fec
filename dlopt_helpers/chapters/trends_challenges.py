"""The challenges of chapter 5, measured: what a search costs, what generalises, what compute buys."""

import copy
import math
import time
from pathlib import Path

import altair as alt
import joblib
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from dlopt_helpers._require import require
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.training import batches, one_thread
from dlopt_helpers.page.explorer import BLUE, GREEN, MUTED, RED, Explorer, Slider

STORED = Path(__file__).with_suffix(".csv")
SEEDS = range(3)
PERCENT = alt.Axis(format="%")
_COUNT = ("a whole number >= 1", lambda x: x >= 1 and x % 1 == 0)

# --- Formulas: complexity ----------------------------------------------------------------------------


def pipelines(kinds, strengths):
    r"""Return how many pipelines use each of the kinds of stage once, in any order and strength.

    .. math:: k!\; s^k

    Args:
      kinds: :math:`k`, a whole number >= 1.
      strengths: :math:`s`, of each kind, a whole number >= 1.

    Raises:
      ValueError: if a number is not allowed.

    Example:
      >>> pipelines(3, 5)
      750
    """
    for name, value in (("kinds", kinds), ("strengths", strengths)):
        require(name, value, *_COUNT)
    return math.factorial(kinds) * strengths**kinds


def expected_best(values, n):
    r"""Return the expected best of ``n`` of these values, drawn at random without replacement.

    .. math:: \sum_i v_{(i)}\, \frac{\binom{i}{n} - \binom{i-1}{n}}{\binom{N}{n}}

    where :math:`v_{(1)} \le \dots \le v_{(N)}`. For the values of random trials
    it is an unbiased estimate of what :math:`n` trials find.

    Args:
      values: :math:`v`, of shape (N,).
      n: trials, a whole number in [1, N].

    Raises:
      ValueError: if ``n`` is not allowed.

    Example:
      >>> round(expected_best([1, 2, 3], 2), 3)
      2.667

    References:
      Dodge et al. 2019, "Show your work: improved reporting of experimental results", arXiv 1909.03004 (there
      with replacement).
    """
    v = np.sort(np.asarray(values, dtype=float))
    require("n", n, f"a whole number in [1, {len(v)}]", lambda x: 1 <= x <= len(v) and x % 1 == 0)
    below = [math.comb(i, n) / math.comb(len(v), n) for i in range(len(v) + 1)]
    return float(np.diff(below) @ v)


# --- Formulas: flatness and compute --------------------------------------------------------------------


def perturbed(w, rho, direction, relative=True):
    r"""Return an array of weights after a step of given length in a direction.

    .. math:: w + \rho\, \lVert w \rVert \frac{d}{\lVert d \rVert}

    Args:
      w: weights, of any shape.
      rho: :math:`\rho \ge 0`: length as a share of that of ``w``; or, if not ``relative``, the length itself.
      direction: :math:`d`, of the shape of ``w``, not all zero.
      relative: whether the length of ``w`` counts.

    Raises:
      ValueError: if ``rho`` is negative or the shapes differ.

    Example:
      >>> perturbed(np.array([3.0, 4.0]), 0.1, np.array([0.0, 2.0])).tolist()
      [3.0, 4.5]
    """
    require("rho", rho, "a finite number >= 0", lambda x: x >= 0)
    if w.shape != direction.shape:
        raise ValueError(
            f"direction has shape {tuple(direction.shape)}: it must have that of w, {tuple(w.shape)}"
        )
    length = rho * (w**2).sum() ** 0.5 if relative else rho
    return w + length * direction / (direction**2).sum() ** 0.5


def training_macs(macs, batch, steps):
    r"""Return the multiply-accumulates of a training: forwards once, and backwards twice as many.

    .. math:: 3\, c\, B\, T

    Args:
      macs: :math:`c`, of one example forwards: for dense layers, the number of their weights.
      batch: :math:`B`, examples in a mini-batch.
      steps: :math:`T`.

    Raises:
      ValueError: if a number is not a whole number >= 1.

    Example:
      >>> training_macs(macs=15_000, batch=64, steps=1_000)
      2880000000

    References:
      Hoffmann et al. 2022, "Training compute-optimal large language models", arXiv 2203.15556
      (there in floating-point operations, 6 for each weight and token).
    """
    for name, value in (("macs", macs), ("batch", batch), ("steps", steps)):
        require(name, value, *_COUNT)
    return 3 * macs * batch * steps


# --- Generalisation: wrong labels and stopping early ---------------------------------------------------

SHARES = (0.0, 0.1, 0.2, 0.3, 0.4)
LABEL_STEPS, LABEL_EVERY, LABEL_BATCH = 1_500, 50, 128


def with_wrong_labels(y, share, rng, classes=10):
    """Return labels of which a share is replaced, each by one of the other classes.

    Example:
      >>> y = np.zeros(100, int)
      >>> int((with_wrong_labels(y, 0.2, np.random.default_rng(0)) != y).sum())
      20
    """
    require("share", share, "a number in [0, 1]", lambda x: 0 <= x <= 1)
    wrong = rng.permutation(len(y))[: round(share * len(y))]
    found = y.copy()
    found[wrong] = (y[wrong] + rng.integers(1, classes, size=len(wrong))) % classes
    return found


def label_noise(shares=SHARES, seeds=SEEDS):
    """Train the MLP of 100 units with shares of wrong labels, and return its accuracies along the way.

    Columns: ``share``, ``seed``, ``step``, ``train`` (the training labels, wrong ones too), ``validation`` (a
    thousand right labels), ``noisy`` (the same thousand examples, their labels as wrong as in training) and
    ``fresh`` (10,000 right labels).
    """
    jobs = [joblib.delayed(_with_noise)(share, seed) for share in shares for seed in seeds]
    return pd.concat(spread(jobs, "wrong labels"), ignore_index=True)


@one_thread()
@published  # directly on the function, whose file is its key
def _with_noise(share, seed):
    data, rng = mnist1d(), np.random.default_rng(100 + seed)
    noisy = {"train": with_wrong_labels(data.y_train, share, rng)}
    sets = {
        "train": (data.x_train, noisy["train"]),
        "validation": (data.x_test, data.y_test),
        "noisy": (data.x_test, with_wrong_labels(data.y_test, share, rng)),
        "fresh": fresh_test(),
    }
    sets = {name: (torch.from_numpy(x), torch.from_numpy(y)) for name, (x, y) in sets.items()}
    model, rows = mlp(seed=seed), []
    optimizer = torch.optim.Adam(model.parameters(), 0.003, fused=True)
    for step, chosen in enumerate(torch.from_numpy(batches(4_000, LABEL_BATCH, LABEL_STEPS, seed)), 1):
        _update(model, optimizer, *(part[chosen] for part in sets["train"]))
        if step % LABEL_EVERY == 0:
            right = {name: _accuracy(model, *examples) for name, examples in sets.items()}
            rows.append({"share": share, "seed": seed, "step": step, **right})
    return pd.DataFrame(rows)


def _update(model, optimizer, x, y):
    optimizer.zero_grad()
    cross_entropy(model(x), y).backward()
    optimizer.step()


@torch.no_grad()
def _accuracy(model, x, y):
    return (model(x).argmax(-1) == y).double().mean().item()


def stopped(runs, by):
    """Return the row of each run at the step that is best by a column; of equals, the first.

    Example:
      >>> runs = pd.DataFrame({"share": 0, "seed": 0, "step": [1, 2, 3], "noisy": [0.1, 0.3, 0.3]})
      >>> int(stopped(runs, "noisy").step.item())
      2
    """
    return runs.loc[runs.groupby(["share", "seed"])[by].idxmax()].set_index(["share", "seed"])


# --- Generalisation: flatness --------------------------------------------------------------------------

# name -> batch size, learning rate
TRAININGS = {
    "batch 32": (32, 0.01),
    "batch 1,000": (1_000, 0.1),
    "batch 1,000, three times the rate": (1_000, 0.3),
}
LOSS_WANTED = 0.1  # on all training examples: only networks that fit them equally well are compared
RHOS = (0.05, 0.1, 0.2)
DIRECTIONS = 10


def flatness(seeds=SEEDS):
    """Train networks to the same training loss in three ways, and perturb their weights.

    Columns: ``way``, ``seed``, ``steps`` until the mean loss is ``LOSS_WANTED``, ``loss`` then, ``train`` and
    ``fresh`` accuracy, ``gap``, ``norm`` of all weights, and for each rho ``rise``: the mean rise of the loss
    under relative perturbations.
    """
    jobs = [joblib.delayed(_flatness_of)(way, seed) for way in TRAININGS for seed in seeds]
    return pd.DataFrame(spread(jobs, "flatness"))


@one_thread()
@published  # directly on the function, whose file is its key
def _flatness_of(way, seed):
    model, steps = fitted(way, seed)
    data, (x, y) = mnist1d(), fresh_test()
    train = _accuracy(model, torch.from_numpy(data.x_train), torch.from_numpy(data.y_train))
    fresh = _accuracy(model, torch.from_numpy(x), torch.from_numpy(y))
    norm = math.sqrt(sum((w.detach() ** 2).sum().item() for w in model.parameters()))
    row = {"way": way, "seed": seed, "steps": steps, "loss": training_loss(model)}
    row |= {"train": train, "fresh": fresh, "gap": train - fresh, "norm": norm}
    return row | {f"rise {rho}": rise(model, rho) for rho in RHOS}


@torch.no_grad()
def training_loss(model):
    """Return the mean loss on all 4,000 training examples."""
    data = mnist1d()
    return cross_entropy(model(torch.from_numpy(data.x_train)), torch.from_numpy(data.y_train)).item()


def fitted(way, seed):
    """Return a network trained in one of the ``TRAININGS`` until its loss is low, and its number of steps."""
    batch, rate = TRAININGS[way]
    model, data = mlp(seed=seed), mnist1d()
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    for step, chosen in enumerate(torch.from_numpy(batches(len(x), batch, 6_000, seed)), 1):
        _update(model, optimizer, x[chosen], y[chosen])
        if step % 25 == 0 and training_loss(model) <= LOSS_WANTED:
            break
    return model, step


@torch.no_grad()
def rise(model, rho, relative=True):
    """Return by how much the training loss rises under random perturbations, the mean over ten.

    Each array of weights moves by :func:`perturbed`; all networks move in the same directions.
    """
    losses, generator = [], torch.Generator().manual_seed(0)
    for _ in range(DIRECTIONS):
        moved = copy.deepcopy(model)
        for w in moved.parameters():
            w.copy_(perturbed(w, rho, torch.randn(w.shape, generator=generator), relative))
        losses.append(training_loss(moved))
    return float(np.mean(losses)) - training_loss(model)


@torch.no_grad()
def rescaled(model, alpha):
    """Return the same function with other weights: the first layer times alpha, the second divided by it.

    It is the same because ReLU lets a positive factor through. The first bias is multiplied, too.
    """
    same = copy.deepcopy(model)
    first, second = same[0], same[2]
    first.weight.mul_(alpha), first.bias.mul_(alpha), second.weight.div_(alpha)
    return same


# --- Limited compute -----------------------------------------------------------------------------------

WIDTHS = (8, 16, 32, 64, 128, 256, 512)
MACS = (1e8, 3e8, 1e9, 3e9, 1e10)
COMPUTE_BATCH, COMPUTE_SEEDS, COMPUTE_RATES = 64, range(3), (0.003, 0.01)
FEWEST, MOST = 20, 10_000  # steps


def dense_macs(width):
    """Return the weights of an MLP with two hidden layers of a width, so its multiply-accumulates an example.

    Example:
      >>> dense_macs(100)
      15000
    """
    return 40 * width + width * width + width * 10


def steps_for(width, budget):
    """Return how many steps a budget of multiply-accumulates pays for."""
    return int(budget // training_macs(dense_macs(width), COMPUTE_BATCH, 1))


@one_thread()
def trained_within(width, budget, rate, seed):
    """Spend a budget of multiply-accumulates on a network of a width, and return the row.

    The 50,000 examples are none of MNIST-1D's own. Adam, with a cosine over just the steps that there
    are. ``seconds`` are those of the processor.
    """
    x, y = map(torch.from_numpy, fresh_test(50_000, seed=3))
    steps, model = steps_for(width, budget), mlp(hidden=width, seed=seed)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    begin = time.process_time()
    for step, chosen in enumerate(torch.from_numpy(batches(len(x), COMPUTE_BATCH, steps, seed))):
        optimizer.param_groups[0]["lr"] = rate * (1 + math.cos(math.pi * step / steps)) / 2
        _update(model, optimizer, x[chosen], y[chosen])
    seconds = time.process_time() - begin
    data = mnist1d()
    validation = _accuracy(model, torch.from_numpy(data.x_test), torch.from_numpy(data.y_test))
    fresh = _accuracy(model, *map(torch.from_numpy, fresh_test()))
    setting = {"width": width, "budget": budget, "rate": rate, "seed": seed, "steps": steps}
    return setting | {"validation": validation, "fresh": round(fresh, 4), "seconds": round(seconds, 3)}


def compute_runs(report=print):
    """Train all widths within all budgets; about two minutes."""
    rows = []
    for budget in MACS:
        for width in WIDTHS:
            if FEWEST <= steps_for(width, budget) <= MOST:
                rows += [trained_within(width, budget, r, s) for r in COMPUTE_RATES for s in COMPUTE_SEEDS]
        report(budget, len(rows))
    return pd.DataFrame(rows)


def stored_compute():
    """Return the runs that were made for the book.

    ``python benchmarks/trends_compute.py --store`` makes them anew.
    """
    return pd.read_csv(STORED)


# --- Explorers -----------------------------------------------------------------------------------------

MEASURES = {"train": "training examples", "noisy": "validation, labels as wrong", "fresh": "fresh examples"}


def noise_rows(runs):
    """Return the means over seeds of :func:`label_noise` by share and step, rounded for the page."""
    return runs.groupby(["share", "step"], as_index=False)[list(MEASURES)].mean().round(4)


def noise_explorer(runs):
    """Return the explorer of the share of wrong labels.

    Args:
      runs: of :func:`label_noise`.
    """

    def draw(runs, chosen):
        step = alt.X("step:Q", title="step", scale=alt.Scale(domain=[0, LABEL_STEPS], nice=False))
        scale = alt.Scale(domain=[0, 1], nice=False)
        color = alt.Color(
            "what:N",
            title=None,
            scale=alt.Scale(domain=list(MEASURES), range=[BLUE, GREEN, RED]),
            legend=alt.Legend(
                orient="bottom",
                symbolType="stroke",
                columns=1,
                labelExpr=" : ".join(f"datum.label == '{k}' ? '{v}'" for k, v in MEASURES.items()) + " : ''",
            ),
        )
        height = alt.Y("value:Q", title="accuracy", scale=scale, axis=PERCENT)
        faint = runs.mark_line(clip=True, color=MUTED, strokeWidth=1, opacity=0.5)
        faint = faint.encode(x=step, y=alt.Y("fresh:Q", scale=scale), detail="share:N")
        lines = chosen.transform_fold(list(MEASURES), as_=["what", "value"]).mark_line(clip=True)
        return faint + lines.encode(x=step, y=height, color=color)

    return Explorer(
        noise_rows(runs),
        draw,
        controls=[Slider("share", "Share of wrong labels")],
        initial={"share": 0.2},
        title="When to stop",
        caption=(
            "The MLP of 100 units, means of three seeds. The training curve counts its wrong labels as "
            "right; the fresh curve has right labels only. Faint: the fresh curves at the other shares. "
            "See where the fresh curve turns; the validation curve turns near there, only lower."
        ),
    )


def best_rates(runs):
    """Return the runs of each width and budget at the rate that is best on validation, means over seeds."""
    means = runs.groupby(["budget", "width", "rate"], as_index=False)[["validation"]].mean()
    best = means.loc[means.groupby(["budget", "width"]).validation.idxmax(), ["budget", "width", "rate"]]
    return runs.merge(best, on=["budget", "width", "rate"])


def frontier(runs):
    """Return one row per budget and width, at the best rate, with ``best``: the budget's best width or not.

    Width and rate are chosen on validation. Columns: mean ``fresh`` accuracy, ``low``, ``high``,
    ``validation``, ``steps`` and mean ``seconds``.

    Args:
      runs: of :func:`stored_compute`.
    """
    by = best_rates(runs).groupby(["budget", "width"], as_index=False)
    found = by.agg(
        fresh=("fresh", "mean"),
        low=("fresh", "min"),
        high=("fresh", "max"),
        validation=("validation", "mean"),
        steps=("steps", "first"),
        seconds=("seconds", "mean"),
    )
    top = found.groupby("budget").validation.transform("max")
    return found.assign(best=(found.validation == top)).round(4)


def compute_explorer(runs):
    """Return the explorer of a budget of compute.

    Args:
      runs: of :func:`stored_compute`.
    """
    rows = frontier(runs).drop(columns=["validation", "seconds"])
    rows["best"] = rows.best.astype(int)

    def draw(runs, chosen):
        axis = alt.Axis(values=list(WIDTHS), format=",d")
        width = alt.X(
            "width:Q", title="width", scale=alt.Scale(type="log", domain=[7, 600], nice=False), axis=axis
        )
        scale = alt.Scale(domain=[0.2, 0.9], nice=False)
        height = alt.Y("fresh:Q", title="fresh accuracy", scale=scale, axis=PERCENT)
        faint = runs.mark_line(clip=True, color=MUTED, strokeWidth=1.5, opacity=0.5)
        faint = faint.encode(x=width, y=height, detail="budget:N")
        line = chosen.mark_line(clip=True, color=BLUE).encode(x=width, y=height)
        spread = chosen.mark_rule(color=BLUE, clip=True).encode(
            x=width, y=alt.Y("low:Q", scale=scale), y2="high:Q"
        )
        top = chosen.transform_filter("datum.best == 1").mark_point(color=RED, size=160, clip=True)
        ticks = alt.Axis(values=[30, 100, 300, 1000, 3000, 10_000], format=",d")
        many = alt.Scale(type="log", domain=[15, 12_000], nice=False)
        steps = alt.Y("steps:Q", title="steps that the budget pays", scale=many, axis=ticks)
        paid = runs.mark_line(clip=True, color=MUTED, strokeWidth=1.5, opacity=0.5)
        paid = paid.encode(x=width, y=steps, detail="budget:N")
        mine = chosen.mark_line(clip=True, color=BLUE).encode(x=width, y=steps)
        dot = chosen.transform_filter("datum.best == 1").mark_point(color=RED, size=160, clip=True)
        return faint + line + spread + top.encode(x=width, y=height), paid + mine + dot.encode(
            x=width, y=steps
        )

    return Explorer(
        rows,
        draw,
        controls=[Slider("budget", "Multiply-accumulates", scale="log")],
        initial={"budget": 1e9},
        title="Wide and short, or narrow and long",
        caption=(
            "MLPs of two hidden layers; each point spends the whole budget. Blue: the chosen budget, mean "
            "and range of three seeds; red: the best width on validation examples; faint: the other budgets. "
            "See that the red point moves towards wider networks as the budget grows."
        ),
    )
