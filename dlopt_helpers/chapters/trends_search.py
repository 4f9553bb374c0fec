"""The search of chapter 5: a strategy chosen by trials under a limit on the bytes.

A trial is a pipeline of chapter 4.2 that has been trained. Its bytes are known before, so what does not fit
the budget is never trained and counts as no trial.
"""

import functools
from pathlib import Path

import altair as alt
import numpy as np
import optuna
import pandas as pd
import torch
from torch import nn

from dlopt_helpers._require import require
from dlopt_helpers.chapters.pipeline_tasks import start, task
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.published import published
from dlopt_helpers.page.explorer import BLUE, GOLD, GREEN, MUTED, RED, Choice, Explorer, Slider
from dlopt_helpers.pipeline import distil, factorise, prune_neurons, quantize

STORED = Path(__file__).with_suffix(".csv")
BUDGETS = (2_000, 4_000, 8_000)  # bytes
SEEDS = range(4)
TRIALS = 20
STEPS = 400  # of training in a trial, shared out evenly among its stages
RATE = 0.005
LONGEST = 3  # stages
FEW = 100  # validation examples, to see what too few of them do
BITS = {"float": 32, "int8": 8, "int4 weights": 4}
SAMPLERS = {
    "TPE": lambda seed: optuna.samplers.TPESampler(seed=seed),
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
}
RECIPES = ["distil, prune, quantize", "prune, quantize"]

# --- Formulas --------------------------------------------------------------------------------------


def stored_bytes(made):
    r"""Return the bytes that the numbers of a network take in the form in which it is stored.

    .. math:: \sum_{\text{layers}} \tfrac{b}{8}\, n_{\text{weights}} + 4\, n_{\text{biases}}
        + 4\, n_{\text{outputs}} [b < 32]

    Weights take :math:`b` bits; with fewer than 32 each output has a scale. Biases and scales are floats.

    Args:
      made: a :class:`~dlopt_helpers.pipeline.Made` of one of the forms ``BITS``.

    Raises:
      ValueError: if its form is another.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.pipeline import Made
      >>> stored_bytes(Made(mlp())), stored_bytes(Made(mlp(), form="int4 weights"))
      (60840, 9180)
    """
    if made.form not in BITS:
        raise ValueError(f"made.form={made.form!r} is not allowed: it must be one of {list(BITS)}")
    bits, total = BITS[made.form], 0
    for layer in made.model:
        if isinstance(layer, nn.Linear | nn.Conv1d):
            total += layer.weight.numel() * bits / 8
            total += 4 * (0 if layer.bias is None else len(layer.bias))
            total += 4 * len(layer.weight) if bits < 32 else 0
    return int(np.ceil(total))


def best_so_far(chosen_on, reported=None):
    r"""Return what the best trial up to each one has: the one that is best on what it is chosen on.

    .. math:: r_{i^*(n)}, \qquad i^*(n) = \arg\max_{i \le n} v_i

    Args:
      chosen_on: :math:`v`, a number for each trial, in their order, of shape (n,).
      reported: :math:`r`, of shape (n,); ``chosen_on`` unless given. Of equals the first is taken.

    Raises:
      ValueError: if a value is not finite, or the shapes differ.

    Example:
      >>> best_so_far([0.5, 0.8, 0.7], reported=[0.4, 0.6, 0.9]).tolist()
      [0.4, 0.6, 0.6]
    """
    v = np.asarray(chosen_on, dtype=float)
    require("chosen_on", v, "finite numbers", lambda x: np.ones(x.shape, bool))
    r = v if reported is None else np.asarray(reported, dtype=float)
    if v.shape != r.shape:
        raise ValueError(f"reported has shape {r.shape}: it must have that of chosen_on, {v.shape}")
    best = np.maximum.accumulate(v)
    first = np.r_[True, best[1:] > best[:-1]]  # a trial that is better than all before
    return r[np.maximum.accumulate(np.where(first, np.arange(len(v)), 0))]


# --- Pipelines -------------------------------------------------------------------------------------

KINDS = {
    "distil mlp": (distil, "mlp", 6, 128),
    "distil cnn": (distil, "cnn", 6, 32),
    "prune": (prune_neurons, None, 0.1, 0.8),
    "factorise": (factorise, None, 0.05, 0.5),
    "quantize": (quantize, None, 4, 8),
}


def suggest(trial):
    """Return the plan that an Optuna trial suggests: one to three pairs of kind and strength.

    Example:
      >>> suggest(optuna.trial.FixedTrial({"stages": 1, "1": "quantize", "1 quantize": 4}))
      (('quantize', 4),)
    """
    return tuple(_stage_of(trial, str(n + 1)) for n in range(trial.suggest_int("stages", 1, LONGEST)))


def _stage_of(trial, place):
    kind = trial.suggest_categorical(place, list(KINDS))
    _, network, low, high = KINDS[kind]
    name = f"{place} {kind}"
    if kind == "quantize":
        return kind, trial.suggest_categorical(name, [low, high])
    if network:
        return kind, trial.suggest_int(name, low, high, log=True)
    return kind, round(trial.suggest_float(name, low, high, log=True), 2)


def stages(plan, steps):
    """Return the stages of a plan, with ``steps`` of training shared out among them.

    Example:
      >>> print(*stages((("prune", 0.3), ("quantize", 4)), 100), sep="; ")
      prune_neurons(keep=0.3, steps=50, rate=0.005); quantize(bits=4, steps=50, rate=0.005)
    """
    made = []
    for kind, strength in plan:
        make, network, *_ = KINDS[kind]
        made.append(make(*([network] if network else []), strength, steps=steps // len(plan), rate=RATE))
    return made


def _through(plan, seed, steps):
    made = start("cnn64", seed)
    for stage in stages(plan, steps):
        made = stage.apply(made, task("strict", seed) if steps else _NO_TRAINING)
    return made


class _NoTraining:
    """What a stage without steps looks at: the shapes."""

    x, targets, seed = np.empty((0, 40)), np.empty((0, 10)), 0


_NO_TRAINING = _NoTraining()


@functools.cache
def plan_bytes(plan):
    """Return the bytes of what a plan makes, by running its stages without any training.

    Example:
      >>> plan_bytes((("distil cnn", 16), ("quantize", 4)))
      1672
    """
    return stored_bytes(_through(plan, 0, steps=0))


@functools.cache
def tried(plan, seed, steps=STEPS):
    """Train a plan and return its row: ``bytes``, and the accuracies ``few``, ``validation`` and ``fresh``.

    The first two are shares of the first ``FEW`` and of all thousand validation examples, the last is that of
    10,000 others, with which nothing is chosen.
    """
    made, (x, y) = _through(plan, seed, steps), fresh_test()
    right = _right(made.model, mnist1d().x_test, mnist1d().y_test)
    return {
        "plan": ", ".join(f"{kind} {strength}" for kind, strength in plan),
        "bytes": stored_bytes(made),
        "few": round(float(right[:FEW].mean()), 4),
        "validation": round(float(right.mean()), 4),
        "fresh": round(float(_right(made.model, x, y).mean()), 4),
    }


@torch.no_grad()
def _right(model, x, y):
    return model(torch.from_numpy(x)).argmax(-1).numpy() == y


# --- Searches --------------------------------------------------------------------------------------


@published
def search(sampler, budget, seed, trials=TRIALS, steps=STEPS):
    """Search for the plan with the best validation accuracy whose bytes fit the budget.

    Each trial that is trained tells the sampler its accuracy. What does not fit is not trained: the sampler
    is told how far off it is, as a negative number, and suggests another.

    Args:
      sampler: one of the ``SAMPLERS``.
      budget: bytes.
      seed: of the sampler, of the start, and of the students.
      trials: to train.
      steps: of training in each.

    Returns:
      A data frame, one row per trial: as :func:`tried`, with ``drawn``, how many had been suggested.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study, rows = optuna.create_study(direction="maximize", sampler=SAMPLERS[sampler](seed)), []
    while len(rows) < trials:
        trial = study.ask()
        plan = suggest(trial)
        if (size := plan_bytes(plan)) > budget:
            study.tell(trial, -size / budget)
            continue
        row = tried(plan, seed, steps)
        study.tell(trial, row["validation"])
        rows.append({**row, "drawn": trial.number + 1})
    setting = {"searcher": sampler, "budget": budget, "seed": seed}
    return pd.DataFrame([{**setting, "trial": n + 1, **row} for n, row in enumerate(rows)])


def recipe(name, budget):
    """Return a plan as a person would write it: its stages are fixed, and its width is the widest that fits.

    Example:
      >>> recipe("prune, quantize", 4_000)
      (('prune', 0.44), ('quantize', 4))
    """
    if name not in RECIPES:
        raise ValueError(f"name={name!r} is not allowed: it must be one of {RECIPES}")
    if name == "prune, quantize":
        plans = [(("prune", keep / 100), ("quantize", 4)) for keep in range(5, 100)]
    else:
        plans = [(("distil cnn", width), ("prune", 0.7), ("quantize", 4)) for width in range(4, 65)]
    return [plan for plan in plans if plan_bytes(plan) <= budget][-1]


def searches(report=print):
    """Run all that the chapter stores: both samplers and both recipes, for each budget and seed."""
    found = []
    for seed in SEEDS:
        for budget in BUDGETS:
            for sampler in SAMPLERS:
                found.append(search(sampler, budget, seed))
            for name in RECIPES:
                row = {"searcher": name, "budget": budget, "seed": seed, "trial": 1}
                found.append(pd.DataFrame([{**row, **tried(recipe(name, budget), seed), "drawn": 1}]))
            report(seed, budget, *(round(rows.validation.max(), 3) for rows in found[-4:]))
    return pd.concat(found, ignore_index=True)


def stored_searches():
    """Return the trials that were run for the book.

    ``python benchmarks/trends_search.py --store`` runs them anew.
    """
    return pd.read_csv(STORED)


def best_rows(trials):
    """Return, for each searcher, budget, seed and number of trials, what the best trial so far has.

    ``validation`` is what it was chosen by, ``fresh`` what it is worth. A recipe has one trial, which
    stands for all numbers of trials.
    """
    found = []
    for (searcher, budget, seed), rows in trials.groupby(["searcher", "budget", "seed"], sort=False):
        best = {name: best_so_far(rows.validation, rows[name]) for name in ("validation", "fresh")}
        best = pd.DataFrame({"trial": rows.trial.to_numpy(), **best})
        if searcher in RECIPES:
            best = best.drop(columns="trial").merge(
                pd.DataFrame({"trial": range(1, TRIALS + 1)}), how="cross"
            )
        found.append(best.assign(searcher=searcher, budget=budget, seed=seed))
    return pd.concat(found, ignore_index=True)


def search_explorer(trials):
    """Return the explorer of the number of trials and the budget.

    Args:
      trials: of :func:`stored_searches`.
    """
    grouped = best_rows(trials).groupby(["searcher", "budget", "trial"], as_index=False, sort=False)
    rows = grouped.agg(
        fresh=("fresh", "mean"),
        low=("fresh", "min"),
        high=("fresh", "max"),
        validation=("validation", "mean"),
    ).round(4)
    rows["budget"] = rows.budget.map("{:,} bytes".format)

    def draw(runs, chosen):
        number = alt.X("trial:Q", title="trials", scale=alt.Scale(domain=[0, TRIALS + 0.5], nice=False))
        scale = alt.Scale(domain=[0.2, 1], nice=False)
        percent = alt.Axis(format="%")
        height = alt.Y("fresh:Q", title="fresh accuracy of the best so far", scale=scale, axis=percent)
        color = alt.Color(
            "searcher:N",
            title=None,
            scale=alt.Scale(domain=[*SAMPLERS, *RECIPES], range=[BLUE, RED, GOLD, GREEN]),
            legend=alt.Legend(orient="bottom", columns=2, symbolOpacity=1),
        )
        budgeted = runs.transform_filter("datum.budget == budget")
        band = budgeted.mark_area(opacity=0.15, clip=True)
        band = band.encode(x=number, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color)
        lines = budgeted.mark_line(clip=True).encode(x=number, y=height, color=color)
        at = chosen.mark_point(size=140, clip=True).encode(x=number, y=height, color=color)
        name = alt.X("searcher:N", title=None, sort=[*SAMPLERS, *RECIPES], axis=alt.Axis(labelAngle=-25))
        seen = chosen.mark_tick(color=MUTED, thickness=3, size=28)
        seen = seen.encode(
            x=name, y=alt.Y("validation:Q", scale=scale, axis=percent, title="of its best trial")
        )
        worth = chosen.mark_point(size=140).encode(x=name, y=alt.Y("fresh:Q", scale=scale), color=color)
        return band + lines + at, seen + worth

    return Explorer(
        rows,
        draw,
        controls=[
            Slider("trial", "Trials"),
            Choice("budget", "Budget", options=[f"{b:,} bytes" for b in BUDGETS]),
        ],
        initial={"trial": 10, "budget": f"{BUDGETS[1]:,} bytes"},
        title="Search, or a recipe",
        caption=(
            "Lines and bands: mean and range over four seeds of the fresh accuracy of the trial that is best "
            "on validation examples. The recipes need one trial. In the panel by searcher: grey ticks, what "
            "the best trial has on the examples it was chosen by; points, what it has on fresh ones."
        ),
    )
