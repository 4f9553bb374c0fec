"""The checks of chapter 5's exercises on search and compute, and the mistakes they know."""

import itertools
import math

import numpy as np

from dlopt_helpers.chapters.trends_challenges import expected_best
from dlopt_helpers.page.exercises import Check

# --- The expected best of n trials ---------------------------------------------------------------------


def _some_trials(rng):
    values = rng.uniform(0.3, 0.9, size=int(rng.integers(8, 13)))
    values[-1] = rng.uniform(0.92, 0.97)  # the best is not among the first
    return {"values": values, "n": int(rng.integers(3, 6))}


def _with_replacement(values, n):
    v = np.sort(values)
    return float(np.diff((np.arange(len(v) + 1) / len(v)) ** n) @ v)


def _from_below(values, n):
    """The expected worst."""
    return -expected_best(-np.asarray(values), n)


check_expected_best = Check(
    solution=expected_best,
    inputs=_some_trials,
    mistakes={
        "That is the best of all the values: only `n` of them are drawn.": lambda values, n: values.max(),
        "That is the mean of one draw: the best of several is higher.": lambda values, n: values.mean(),
        "That is the best of the first `n`: take the mean over all ways to draw `n`.": (
            lambda values, n: values[:n].max()
        ),
        "That draws with replacement: a trial may then count twice, so the result is too low.": (
            _with_replacement
        ),
        "That is the expected worst: sort from small to large.": _from_below,
        "That is the mean of the `n` best: draw `n` at random, and take the best of those.": (
            lambda values, n: np.sort(values)[-n:].mean()
        ),
        "That is for one trial more than `n`.": lambda values, n: expected_best(values, n + 1),
        "That is for one trial fewer than `n`.": lambda values, n: expected_best(values, n - 1),
    },
    praise="One set of trials tells what any smaller number of them would have found.",
)

# --- What a search may report ---------------------------------------------------------------------------


def _a_search(rng):
    """Validation and fresh accuracies whose best are different trials, the last one being neither."""
    n = int(rng.integers(6, 11))
    worth = rng.uniform(0.4, 0.9, size=n)
    validation, fresh = worth + rng.normal(0, 0.05, size=n), worth + rng.normal(0, 0.01, size=n)
    best, other, last = *rng.permutation(n - 1)[:2], n - 1
    validation[best], fresh[best] = 0.97, rng.uniform(0.85, 0.9)
    validation[other], fresh[other] = 0.92, rng.uniform(0.93, 0.96)
    validation[last], fresh[last] = 0.35, rng.uniform(0.3, 0.4)
    return {"validation": validation, "fresh": fresh}


def _chosen(validation, fresh):
    i = int(np.argmax(validation))
    return float(fresh[i]), float(validation[i] - fresh[i])


check_report = Check(
    solution=_chosen,
    inputs=_a_search,
    mistakes={
        "That chooses by the fresh examples: then they are no longer fresh.": (
            lambda validation, fresh: (fresh.max(), validation[fresh.argmax()] - fresh.max())
        ),
        "Best minus best: the two maxima belong to different trials.": (
            lambda validation, fresh: (fresh.max(), validation.max() - fresh.max())
        ),
        "Report the fresh accuracy of the chosen trial: the validation accuracy chose it.": (
            lambda validation, fresh: (validation.max(), _chosen(validation, fresh)[1])
        ),
        "The sign: the validation accuracy looks better, so the difference is validation minus fresh.": (
            lambda validation, fresh: (_chosen(validation, fresh)[0], -_chosen(validation, fresh)[1])
        ),
        "That is the last trial: take the best one on validation.": (
            lambda validation, fresh: (fresh[-1], validation[-1] - fresh[-1])
        ),
        "That is the mean over all trials: the bias belongs to the chosen one.": (
            lambda validation, fresh: (_chosen(validation, fresh)[0], float((validation - fresh).mean()))
        ),
        "The two numbers are in the other order: the accuracy first.": (
            lambda validation, fresh: _chosen(validation, fresh)[::-1]
        ),
    },
    praise="Choosing and reporting need different examples.",
)

# --- How many steps a budget pays for --------------------------------------------------------------------


def _a_budget(rng):
    return {
        "sizes": [int(s) for s in rng.integers(20, 200, size=4)],
        "batch": int(rng.integers(16, 129)),
        "budget": float(rng.integers(10**9, 10**10)),
    }


def _weights(sizes):
    return sum(a * b for a, b in itertools.pairwise(sizes))


def _steps(times=3, macs=_weights, batched=True, more=0):
    """Return a function for the steps, any part of which may be counted wrongly."""

    def steps(sizes, batch, budget):
        return math.floor(budget / (times * macs(sizes) * (batch if batched else 1))) + more

    return steps


check_steps = Check(
    solution=_steps(),
    inputs=_a_budget,
    mistakes={
        "That counts the way forwards only: the way back costs twice as much again.": _steps(times=1),
        "That counts forwards and backwards as equal: backwards there are two products for each layer.": (
            _steps(times=2)
        ),
        "That is 6 per weight, which counts additions and multiplications apart.": _steps(times=6),
        "The batch is missing: each step computes all its examples.": _steps(batched=False),
        "That adds the sizes: a layer costs inputs times outputs.": _steps(macs=sum),
        "The last layer is missing.": _steps(macs=lambda sizes: _weights(sizes[:-1])),
        "The first layer is missing.": _steps(macs=lambda sizes: _weights(sizes[1:])),
        "Whole steps only: the last one must be paid for, so round down.": _steps(more=1),
    },
    praise="Twice the width of every hidden layer, about a quarter of the steps.",
)
