"""The checks of chapter 6's exercises, and the mistakes they know."""

import math

import numpy as np

from dlopt_helpers.page.exercises import Check
from dlopt_helpers.recipes import UNDOES

# --- Exercise 1: what is left of a pipeline -----------------------------------------------------------------

_BITS = ("quantize", "share_weights")


def _pipeline(rng):
    """A pipeline in which each rule has something to say, before and after the last new student."""
    one, two, three = (str(name) for name in rng.choice(_BITS, 3))
    before = ["distil", "prune_neurons", one] if rng.random() < 0.5 else ["prune_neurons", one]
    between = ["prune_neurons"] * int(rng.integers(1, 3))
    return {"stages": [*before, "distil", two, *between, three]}


def _lasts(stage, later):
    return not any(stage in UNDOES[other] for other in later)


def _by(rule):
    """Return an answer from ``rule(stage, later stages)``, true where the stage lasts."""
    return lambda stages: np.array([rule(stage, stages[i + 1 :]) for i, stage in enumerate(stages)], int)


check_lasting = Check(
    solution=_by(_lasts),
    inputs=_pipeline,
    mistakes={
        "A new student owes nothing to what stands before it: of that, nothing lasts.": _by(
            lambda stage, later: not (stage in _BITS and later)
        ),
        "Few bits do not survive a later training: cutting neurons trains on, with floats.": _by(
            lambda stage, later: "distil" not in later
        ),
        "Neurons that were removed stay removed, whatever is trained later, unless a new student comes.": _by(
            lambda stage, later: (
                "distil" not in later
                and not (stage in _BITS and later)
                and (stage != "prune_neurons" or not later)
            )
        ),
        "Only the last stage? Shapes last, too: what is trained later keeps them.": _by(
            lambda stage, later: not later
        ),
        "That marks what is lost: 1 is for a stage that lasts.": _by(
            lambda stage, later: not _lasts(stage, later)
        ),
    },
    praise="What is left is what a stage has to be judged by. The rest of the training was for nothing.",
)

# --- Exercise 2: whose merit is it? ---------------------------------------------------------------------


def _accuracies(rng):
    """Four accuracies, as of chapter 4.2: the data lifts both networks, the small one is behind."""
    dense_old = rng.uniform(0.65, 0.8)
    dense_new = dense_old + rng.uniform(0.06, 0.15)
    small_new = dense_new - rng.uniform(0.02, 0.05)
    small_old = small_new - rng.uniform(0.16, 0.2)
    names = ("dense_old", "dense_new", "small_old", "small_new")
    return dict(zip(names, map(float, (dense_old, dense_new, small_old, small_new)), strict=True))


check_merit = Check(
    solution=lambda dense_old, dense_new, small_old, small_new: (
        100 * (dense_new - dense_old),
        100 * (small_new - dense_new),
    ),
    inputs=_accuracies,
    mistakes={
        "The second is the gain that is reported: it compares networks that have seen different data.": (
            lambda dense_old, dense_new, small_old, small_new: (
                100 * (dense_new - dense_old),
                100 * (small_new - dense_old),
            )
        ),
        "The first is what the data is worth to the small network: take the dense one, and both add up.": (
            lambda dense_old, dense_new, small_old, small_new: (
                100 * (small_new - small_old),
                100 * (small_new - dense_new),
            )
        ),
        "The second compares them on the old data: judge the small network on what it has learned from.": (
            lambda dense_old, dense_new, small_old, small_new: (
                100 * (dense_new - dense_old),
                100 * (small_old - dense_old),
            )
        ),
        "Right, but in shares: a point is a hundredth.": lambda dense_old, dense_new, small_old, small_new: (
            dense_new - dense_old,
            small_new - dense_new,
        ),
        "The sign of the second: the small network is behind, so making it small has cost something.": (
            lambda dense_old, dense_new, small_old, small_new: (
                100 * (dense_new - dense_old),
                100 * (dense_new - small_new),
            )
        ),
        "The two are exchanged.": lambda dense_old, dense_new, small_old, small_new: (
            100 * (small_new - dense_new),
            100 * (dense_new - dense_old),
        ),
    },
    praise="Together they are the gain that would have been reported. It was the data.",
)

# --- Exercise 3: luck of a search -----------------------------------------------------------------------


def _urn(rng):
    """Few enough pipelines that it matters whether one may be drawn twice."""
    n = int(rng.integers(20, 60))
    return {"n": n, "good": int(rng.integers(3, n // 3)), "tries": int(rng.integers(3, 7))}


def _none(n, good, tries):
    return math.comb(n - good, tries) / math.comb(n, tries)


check_luck = Check(
    solution=lambda n, good, tries: 1 - _none(n, good, tries),
    inputs=_urn,
    mistakes={
        "That lets the same pipeline be drawn twice: each one that was tried is out.": (
            lambda n, good, tries: 1 - (1 - good / n) ** tries
        ),
        "That is the number of good ones to expect. It may be above 1, a chance may not.": (
            lambda n, good, tries: tries * good / n
        ),
        "That is the chance that none is good.": _none,
        "That is the chance of exactly one good one: more than one is as welcome.": (
            lambda n, good, tries: good * math.comb(n - good, tries - 1) / math.comb(n, tries)
        ),
        "That is the chance that all are good.": lambda n, good, tries: (
            math.comb(good, tries) / math.comb(n, tries)
        ),
        "That is the chance of one try alone.": lambda n, good, tries: good / n,
    },
    praise="A rule that raises the share of good ones saves most of the tries.",
)
