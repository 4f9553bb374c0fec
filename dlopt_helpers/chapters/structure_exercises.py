"""The checks of chapter 3.6's exercises, and the mistakes they know."""

from pathlib import Path

import numpy as np
import pandas as pd

from dlopt_helpers.page.exercises import Check, Goal
from dlopt_helpers.structure import conv_cost, low_rank, low_rank_error, separable_cost, singular_values


def _numbers(result):
    """Return ``result`` as an array of numbers, which is empty where there are none."""
    try:
        return np.asarray(result, dtype=float)
    except (TypeError, ValueError):
        return np.empty(0)


# --- Exercise 1: what a block costs ---------------------------------------------------------------


def _a_block(rng):
    stride = int(rng.integers(3, 5))  # 2 would make "length before the stride" equal "operations"
    return {
        "inputs": int(rng.integers(8, 65)),
        "outputs": int(rng.integers(66, 129)),
        "kernel": int(rng.choice([3, 5, 7])),
        "length": stride * int(rng.integers(5, 21)),
        "stride": stride,
    }


def _separable(inputs, outputs, kernel, length, stride):
    return tuple(separable_cost(inputs, outputs, kernel, length // stride))


def _parts(inputs, outputs, kernel, length, stride):
    """Return the costs of the two convolutions."""
    out = length // stride
    return conv_cost(inputs, inputs, kernel, out, groups=inputs), conv_cost(inputs, outputs, 1, out)


def _mistaken(change):
    """Return a function that gets the two costs and the arguments and returns another cost."""
    return lambda **block: tuple(change(*_parts(**block), **block))


check_block_cost = Check(
    solution=_separable,
    inputs=_a_block,
    mistakes={
        "That is a plain convolution: here each channel has a kernel of its own, and 1 x 1 mixes them.": (
            lambda inputs, outputs, kernel, length, stride: tuple(
                conv_cost(inputs, outputs, kernel, length // stride)
            )
        ),
        "The biases are missing among the parameters: one for each output channel of both convolutions.": (
            lambda inputs, outputs, kernel, length, stride: tuple(
                separable_cost(inputs, outputs, kernel, length // stride, bias=False)
            )
        ),
        "The kernel enters squared: it is squared for images, and here are sequences.": (
            lambda inputs, outputs, kernel, length, stride: tuple(
                separable_cost(inputs, outputs, kernel**2, length // stride)
            )
        ),
        "That is the length before the stride: there are only length / stride positions to compute.": (
            lambda inputs, outputs, kernel, length, stride: tuple(
                separable_cost(inputs, outputs, kernel, length)
            )
        ),
        "The pointwise convolution comes after the stride: it, too, sees only length / stride positions.": (
            _mistaken(lambda a, b, stride, **_: (a.parameters + b.parameters, a.macs + b.macs * stride))
        ),
        "The first convolution is depthwise: each output channel sees one input channel, not all.": (
            lambda inputs, outputs, kernel, length, stride: tuple(
                conv_cost(inputs, inputs, kernel, length // stride)
                + conv_cost(inputs, outputs, 1, length // stride)
            )
        ),
        "That is the depthwise convolution alone: add the pointwise one.": _mistaken(lambda a, b, **_: a),
        "That is the pointwise convolution alone: add the depthwise one.": _mistaken(lambda a, b, **_: b),
        "Those are operations, two for each multiply-accumulate: halve the second number.": (
            _mistaken(lambda a, b, **_: (a.parameters + b.parameters, 2 * (a.macs + b.macs)))
        ),
        "A bias is added and not multiplied: it is no multiply-accumulate.": (
            _mistaken(
                lambda a, b, inputs, outputs, length, stride, **_: (
                    a.parameters + b.parameters,
                    a.macs + b.macs + (inputs + outputs) * (length // stride),
                )
            )
        ),
        "The two numbers are in the other order: parameters first, then multiply-accumulates.": (
            lambda **block: _separable(**block)[::-1]
        ),
    },
    praise="The depthwise part is cheap on paper: nearly all of it is the pointwise one.",
)

# --- Exercise 2: a layer within a budget ----------------------------------------------------------


def _a_layer(rng):
    """A matrix whose singular values fall, and a budget that is no multiple of a rank's numbers."""
    m, n = int(rng.integers(20, 30)), int(rng.integers(31, 40))
    u, v = (np.linalg.qr(rng.normal(size=(size, m)))[0] for size in (m, n))
    w = u * 10 * 0.85 ** np.arange(m) @ v.T
    return {"w": w, "budget": int(rng.integers(5, 12)) * (m + n) + int(rng.integers(1, m + n))}


def _within(w, budget):
    return low_rank(w, budget // sum(w.shape))


def _factors(result):
    """Return two matrices of numbers, or None."""
    if not isinstance(result, tuple | list) or len(result) != 2:
        return None
    a, b = map(_numbers, result)
    return (a, b) if a.ndim == b.ndim == 2 and a.size and b.size else None


def _fits_best(result, w, budget):
    factors, (m, n) = _factors(result), w.shape
    if factors is None:
        return "Return two matrices a and b."
    a, b = factors
    if a.shape[1] != b.shape[0] or (a.shape[0], b.shape[1]) != (m, n):
        return f"a of shape {a.shape} and b of shape {b.shape}: a @ b must have that of w, {(m, n)}."
    rank, room = a.shape[1], budget // (m + n)
    if a.size + b.size > budget:
        return f"{a.size + b.size} numbers, and the budget is {budget}: rank {rank} is too much."
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return "A number is NaN or infinite."
    if rank < room:
        return f"Rank {rank} leaves room: {m + n} numbers a rank, {budget} in all, that is rank {room}."
    error = np.linalg.norm(w - a @ b) / np.linalg.norm(w)
    best = low_rank_error(singular_values(w), rank)
    if error <= 1.0001 * best:
        return ""
    return f"The error is {error:.3f} of w; with rank {rank} it can be {best:.3f}."


def _from_svd(make):
    """Return a function that makes factors from the parts of the singular value decomposition."""

    def factors(w, budget):
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return make(u, s, vt, budget // sum(w.shape))

    return factors


check_budget = Goal(
    solution=_within,
    inputs=_a_layer,
    reached=_fits_best,
    mistakes={
        "The singular values are missing: multiply the columns of U by them, or the rows of V^T.": (
            _from_svd(lambda u, s, vt, r: (u[:, :r], vt[:r]))
        ),
        "The singular values enter twice: each factor gets their square root, or one of them gets all.": (
            _from_svd(lambda u, s, vt, r: (u[:, :r] * s[:r], s[:r, None] * vt[:r]))
        ),
        "Those are the smallest singular values: keep the first ones, they come in descending order.": (
            _from_svd(lambda u, s, vt, r: (u[:, -r:] * s[-r:], vt[-r:]))
        ),
        "numpy.linalg.svd returns V transposed already: take its first rows, not its columns.": (
            _from_svd(lambda u, s, vt, r: (u[:, :r] * s[:r], vt[:, :r].T))
        ),
        "That cuts rows and columns out of w: take the singular value decomposition.": (
            lambda w, budget: (w[:, : budget // sum(w.shape)], np.eye(budget // sum(w.shape), w.shape[1]))
        ),
        "That is w itself and a unit matrix, which saves nothing.": lambda w, budget: (w, np.eye(w.shape[1])),
    },
    praise="No other two matrices within the budget come closer: that is the theorem of Eckart and Young.",
)

# --- Exercise 3: a network within a budget --------------------------------------------------------

CALLS, SEEDS = 40, 5


def _misleading(rng):
    """Twelve measured networks by time, eight fast ones before four slow; one of these has few MACs."""
    rows = pd.read_csv(Path(__file__).with_name("structure_speed.csv"))
    rows = rows[(rows.family == "blocks") & (rows.batch == 64)]
    while True:
        few = rows.sample(12, random_state=rng).sort_values("time", ignore_index=True)
        cheap = few.macs.rank(method="first")[8:] <= 7
        if few.time[8] > 1.15 * few.time[7] and cheap.any() and not cheap.all():
            return few, cheap.idxmax(), cheap.idxmin()


def _measured(rng):
    """Networks as they were measured, with a trap for each wrong way to choose."""
    rows, few_macs, many_macs = _misleading(rng)
    times = 500 * rows.time.to_numpy()[:, None] * np.exp(rng.normal(scale=0.02, size=(12, CALLS)))
    budget = 500 * float(np.sqrt(rows.time[7] * rows.time[8]))
    accuracies = rng.uniform(0.7, 0.8, size=(12, 1)) + rng.normal(scale=0.005, size=(12, SEEDS))
    best, shaky, lucky = rng.choice(range(1, 6), size=3, replace=False)
    for network, level in ((best, 0.84), (shaky, 0.87), (few_macs, 0.9), (many_macs, 0.93), (lucky, 0.7)):
        accuracies[network] += level - accuracies[network].mean()
    accuracies[lucky, 0] = 0.99
    times[best, 0] = 3 * budget  # one call of forty
    times[shaky, :5] = 1.2 * budget
    order = rng.permutation(12)
    mixed = rng.permuted(times, axis=1)[order], rng.permuted(accuracies, axis=1)[order]
    return {"macs": rows.macs.to_numpy()[order], "times": mixed[0], "accuracies": mixed[1], "budget": budget}


def _best_where(allowed, score=lambda accuracies: accuracies.mean(axis=1)):
    def choose(macs, times, accuracies, budget):
        return int(np.where(allowed(macs, times, budget), score(accuracies), -1).argmax())

    return choose


def _slow(times):
    return np.quantile(times, 0.95, axis=1)


_chosen = _best_where(lambda macs, times, budget: _slow(times) <= budget)


def _is_the_best(result, macs, times, accuracies, budget):
    index = _numbers(result)
    if index.size != 1 or index.item() not in range(len(macs)):
        return f"Return the number of a network, a whole one from 0 to {len(macs) - 1}."
    index = int(index.item())
    slow, means = _slow(times), accuracies.mean(axis=1)
    if slow[index] > budget:
        return (
            f"Network {index} needs over {slow[index]:.0f} µs in one of 20 calls; {budget:.0f} are allowed."
        )
    best = _chosen(macs, times, accuracies, budget)
    if means[index] < means[best]:
        seen = (
            f"a mean accuracy of {means[index]:.3f}: network {best}, fast enough, too, has {means[best]:.3f}."
        )
        return f"Network {index} is fast enough, with {seen}"
    return ""


def _as_macs_say(macs, times, budget):
    """As many networks as are fast enough, those with the fewest multiply-accumulates."""
    return macs.argsort().argsort() < (_slow(times) <= budget).sum()


check_choice = Goal(
    solution=_chosen,
    inputs=_measured,
    reached=_is_the_best,
    mistakes={
        "That is the best of all: leave out those that are too slow first.": (
            _best_where(lambda macs, times, budget: macs > 0)
        ),
        "That is right for the mean or the median time: the budget is to hold in 19 of 20 calls.": (
            _best_where(lambda macs, times, budget: times.mean(axis=1) <= budget)
        ),
        "That asks every single call: the budget is to hold in 19 of 20.": (
            _best_where(lambda macs, times, budget: times.max(axis=1) <= budget)
        ),
        "That is the best single seed: one seed is luck, take the mean over all.": (
            _best_where(
                lambda macs, times, budget: _slow(times) <= budget, lambda accuracies: accuracies.max(axis=1)
            )
        ),
        "That goes by the multiply-accumulates: they are not the time.": _best_where(_as_macs_say),
        "That is the fastest: within the budget take the most accurate.": (
            lambda macs, times, accuracies, budget: int(_slow(times).argmin())
        ),
        "That is the slowest within the budget: take the most accurate.": (
            lambda macs, times, accuracies, budget: int(
                np.where(_slow(times) <= budget, _slow(times), 0).argmax()
            )
        ),
    },
    praise="The measured time says what may be chosen, the accuracy what is chosen, and MACs say neither.",
)
