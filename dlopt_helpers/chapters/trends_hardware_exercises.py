"""The checks of the exercises of chapter 5's trend 4, and the mistakes they know."""

import math

import numpy as np

from dlopt_helpers.page.exercises import Check

# --- The smallest update that survives ------------------------------------------------------------


def _half_a_spacing(w, fraction):
    return 2.0 ** (math.floor(math.log2(w)) - fraction) / 2


def _a_weight(rng):
    # From 1/2 on, a spacing at 1 would be two of w's, and two mistakes would agree.
    return {"w": float(rng.uniform(0.01, 0.45)), "fraction": int(rng.choice([3, 7, 10]))}


check_smallest_update = Check(
    solution=_half_a_spacing,
    inputs=_a_weight,
    mistakes={
        "That is a whole spacing: rounding goes to the nearest number, so half of one decides.": (
            lambda w, fraction: 2 * _half_a_spacing(w, fraction)
        ),
        "That is half a spacing at 1: the spacing halves with each power of two below.": (
            lambda w, fraction: 2.0**-fraction / 2
        ),
        "Nearly: between two powers of two the spacing is the same. Round the exponent down.": (
            lambda w, fraction: w * 2.0**-fraction / 2
        ),
    },
    praise="Between w and 2 w the limit doubles once, whatever w is.",
)


# --- Gradients of unequal shares ------------------------------------------------------------------


def _weighted(gradients, sizes):
    return (gradients * sizes[:, None]).sum(axis=0) / sizes.sum()


def _shares(rng):
    processes = int(rng.integers(2, 5))
    return {
        "gradients": rng.normal(size=(processes, 3)),
        "sizes": rng.permutation(np.arange(8, 40))[:processes],
    }


check_unequal_shares = Check(
    solution=_weighted,
    inputs=_shares,
    mistakes={
        "That is the mean of the means: it gives an example of a small share more weight.": (
            lambda gradients, sizes: gradients.mean(axis=0)
        ),
        "Summed and not averaged: the step grows with the number of processes.": (
            lambda gradients, sizes: gradients.sum(axis=0)
        ),
        "That is the gradient of the sum over all examples: divide by their number.": (
            lambda gradients, sizes: (gradients * sizes[:, None]).sum(axis=0)
        ),
        "Each row is already a mean over its share: weigh it by the size before you divide by all.": (
            lambda gradients, sizes: gradients.sum(axis=0) / sizes.sum()
        ),
    },
    praise="With it the processes do what one process with the whole batch does.",
)


# --- Pack a row -----------------------------------------------------------------------------------


def _packed(row):
    groups = row.reshape(-1, 4)
    places = np.sort(np.argsort(abs(groups), axis=1)[:, 2:], axis=1)
    return np.take_along_axis(groups, places, axis=1), places


def _by_size(row):
    groups = row.reshape(-1, 4)
    places = np.argsort(-abs(groups), axis=1)[:, :2]
    return np.take_along_axis(groups, places, axis=1), places


def _by(key):
    """Return a function that keeps the two of each four where ``key`` is largest."""

    def pack(row):
        groups = row.reshape(-1, 4)
        places = np.sort(np.argsort(key(groups), axis=1)[:, 2:], axis=1)
        return np.take_along_axis(groups, places, axis=1), places

    return pack


def _in_the_row(row):
    values, places = _packed(row)
    return values, places + 4 * np.arange(len(places))[:, None]


def _of_all(row):
    places = np.sort(np.argsort(abs(row))[len(row) // 2 :])
    return row[places].reshape(-1, 2), places.reshape(-1, 2) % 4


check_pack = Check(
    solution=_packed,
    inputs=lambda rng: {"row": rng.normal(size=4 * int(rng.integers(4, 7)))},
    mistakes={
        "The order within a four is lost: give the places in ascending order.": _by_size,
        "These are the largest numbers, and not the largest magnitudes.": _by(lambda groups: groups),
        "These are the smallest magnitudes: they are what goes.": _by(lambda groups: -abs(groups)),
        "The places are counted in the whole row: within a four they need only two bits.": _in_the_row,
        "That is the larger half of the row: a four may then hold more than two.": _of_all,
    },
    praise="Half of the values and two bits for each: 0.5625 of the bytes at 16 bits.",
)
