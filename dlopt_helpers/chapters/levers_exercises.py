"""The checks of chapter 2's exercises, and the mistakes they know."""

import numpy as np

from dlopt_helpers.page.exercises import Check

# --- Exercise 1: the product of gains -----------------------------------------------------------------


def _gains(rng):
    """Factors on the part of a file that two levers shrink, both well above 1, and what stays as it is."""
    return {
        "smaller": float(rng.integers(3, 12)),
        "fewer_bits": float(rng.choice([2.0, 4.0, 8.0])),
        "share": float(rng.uniform(0.7, 0.97)),
    }


check_joint_gain = Check(
    solution=lambda smaller, fewer_bits, share: 1 / (1 - share + share / (smaller * fewer_bits)),
    inputs=_gains,
    mistakes={
        "That is the product, as if the whole file shrank: only its share of weights does.": (
            lambda smaller, fewer_bits, share: smaller * fewer_bits
        ),
        "Gains multiply, they do not add up: what the one leaves, the other divides again.": (
            lambda smaller, fewer_bits, share: 1 / (1 - share + share / (smaller + fewer_bits))
        ),
        "That is what is left of the file: how many times smaller it gets is one over it.": (
            lambda smaller, fewer_bits, share: 1 - share + share / (smaller * fewer_bits)
        ),
        "The product of the two gains on the whole file counts what stays twice.": (
            lambda smaller, fewer_bits, share: (
                1 / ((1 - share + share / smaller) * (1 - share + share / fewer_bits))
            )
        ),
        "What is no weight stays, and is part of the file: add 1 - share.": (
            lambda smaller, fewer_bits, share: smaller * fewer_bits / share
        ),
        "The shares are exchanged: `share` shrinks, and 1 - share stays.": (
            lambda smaller, fewer_bits, share: 1 / (share + (1 - share) / (smaller * fewer_bits))
        ),
    },
    praise="On what both can shrink they multiply; the rest of the file sets the limit.",
)

# --- Exercise 2: do they stand in each other's way? -----------------------------------------------------


def _costs(rng):
    none = float(rng.uniform(500, 5_000))
    a, b = rng.uniform(0.1, 0.6, size=2)
    return {"none": none, "a": none * a, "b": none * b, "both": none * a * b * float(rng.uniform(1.3, 3))}


def _log_miss(none, a, b, both):
    return np.log(both) - np.log(a) - np.log(b) + np.log(none)


check_missed = Check(
    solution=lambda none, a, b, both: np.exp(_log_miss(none, a, b, both)),
    inputs=_costs,
    mistakes={
        "That is the logarithm: the factor is its exponential.": _log_miss,
        "Upside down: a cost above what the product promises is a factor above 1.": (
            lambda none, a, b, both: np.exp(-_log_miss(none, a, b, both))
        ),
        "`none` is missing: the joint factor is both / none, and a and b are costs, not factors.": (
            lambda none, a, b, both: both / (a * b)
        ),
        "That is what both save together: divide it by the product of what each saves alone.": (
            lambda none, a, b, both: none / both
        ),
        "That compares with the sum of what each saves. Factors multiply.": (
            lambda none, a, b, both: both / (a + b - none)
        ),
        "That compares with the better of the two alone: compare with their product.": (
            lambda none, a, b, both: both / min(a, b)
        ),
        "The logarithms are missing: differences of costs say nothing about factors.": (
            lambda none, a, b, both: both - a - b + none
        ),
    },
    praise="1 would mean that the factors multiply; its logarithm is the interaction.",
)

# --- Exercise 3: who did how much ---------------------------------------------------------------------


def _accuracies(rng):
    none, a, b = rng.uniform(40, 70, size=3)
    return {"none": float(none), "a": float(a), "b": float(b), "both": float(rng.uniform(72, 95))}


def _part(none, a, b, both):
    return (a - none + both - b) / 2


check_parts = Check(
    solution=lambda none, a, b, both: (_part(none, a, b, both), _part(none, b, a, both)),
    inputs=_accuracies,
    mistakes={
        "That is each lever alone: the parts do not make up the whole. Let each come second, too.": (
            lambda none, a, b, both: (a - none, b - none)
        ),
        "That is each lever as the last one: let each come first, too, and take the mean.": (
            lambda none, a, b, both: (both - b, both - a)
        ),
        "That is one order alone, a first: the other order counts as much.": (
            lambda none, a, b, both: (a - none, both - a)
        ),
        "That is one order alone, b first: the other order counts as much.": (
            lambda none, a, b, both: (both - b, b - none)
        ),
        "That halves the whole, whoever did it: only equal levers get equal parts.": (
            lambda none, a, b, both: ((both - none) / 2, (both - none) / 2)
        ),
        "The two parts are exchanged.": (
            lambda none, a, b, both: (_part(none, b, a, both), _part(none, a, b, both))
        ),
        "That is the sum over both orders: take the mean.": (
            lambda none, a, b, both: (2 * _part(none, a, b, both), 2 * _part(none, b, a, both))
        ),
        "The sign: what a lever adds is positive.": (
            lambda none, a, b, both: (-_part(none, a, b, both), -_part(none, b, a, both))
        ),
        "That splits the whole in proportion to each alone: Shapley takes the mean over orders.": (
            lambda none, a, b, both: (
                (both - none) * (a - none) / (a + b - 2 * none),
                (both - none) * (b - none) / (a + b - 2 * none),
            )
        ),
    },
    praise="Together they are both - none, whatever the two have in common.",
)
