"""Kinds of argument: what each may be, and what no argument of the kind may be."""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
from hypothesis import strategies as st

ODD = [
    None,
    "a",
    b"1",
    ["a"],
    {"a": 1},
    {},
    (),
    1j,
    object(),
    float,
    math.nan,
    np.array([]),
    np.array([None]),
    np.array([1j]),
    np.array(["a"]),
    pd.Series([1.0]),
]
FLAGS = [True, False, np.bool_(True), np.array([True])]
NUMBERS = [3, 0.5, -1, 0, math.inf, -math.inf]


class Kind(NamedTuple):
    """What an argument may be, and what it must not be."""

    good: st.SearchStrategy
    bad: st.SearchStrategy


def values(*good, bad=()):
    """One of a few values: beside other words, everything odd is wrong, and what is named."""
    wrong = [*ODD, *FLAGS, *NUMBERS, *bad]
    right = [x for x in good if isinstance(x, int | float | str)]
    wrong = [
        x for x in wrong if not isinstance(x, int | float | str) or isinstance(x, bool) or x not in right
    ]
    return Kind(st.sampled_from(good), st.sampled_from(wrong))


class Lazy(NamedTuple):
    """What a test makes itself: models draw random numbers, which a strategy must not."""

    make: Callable


def made(*makers, bad=(), odd=(*ODD, *FLAGS, *NUMBERS)):
    """Something that one of the functions makes, anew for each call. ``bad`` are functions, too."""
    return Kind(st.sampled_from(makers).map(Lazy), st.sampled_from([*odd, *map(Lazy, bad)]))


def optional(kind):
    return Kind(st.none() | kind.good, kind.bad.filter(lambda x: x is not None))


def number(low=-math.inf, high=math.inf, without=(), arrays=False):
    """A number in [low, high]; ends that are ``without`` are out."""
    first, last = max(low, -100.0), min(high, 100.0)
    inside = st.floats(first, last).filter(lambda x: x not in without)
    good = [inside, inside.map(np.float64)]
    if math.ceil(first) <= math.floor(last):
        good.append(st.integers(math.ceil(first), math.floor(last)))
    if arrays:
        good.append(inside.map(lambda x: np.array([x, x])))
    good = st.one_of(*(one.filter(lambda x: np.all(np.isin(x, without, invert=True))) for one in good))
    bad = [st.sampled_from([*ODD, *FLAGS, math.inf, -math.inf, [0.5], *without])]
    if low > -math.inf:
        bad.append(st.floats(max_value=low, exclude_max=True))
    if high < math.inf:
        bad.append(st.floats(min_value=high, exclude_min=True))
    if not arrays:
        bad.append(st.just(np.array([last / 2 + first / 2] * 2)))
    return Kind(good, st.one_of(*bad))


def whole(low, high=None):
    """A whole number in [low, high], also one of NumPy's or a float."""
    top = low + 3 if high is None else high
    inside = st.integers(low, top)
    bad = [st.sampled_from([*ODD, *FLAGS, math.inf, [low], np.array([low] * 2), low + 0.5])]
    bad += [st.integers(max_value=low - 1), st.floats(low, top).filter(lambda x: x % 1)]
    if high is not None:
        bad.append(st.integers(min_value=high + 1))
    return Kind(inside | inside.map(np.int64) | inside.map(float), st.one_of(*bad))


def choice(*words):
    """One of some words."""
    other = st.text(max_size=8).filter(lambda word: word not in words)
    return Kind(st.sampled_from(words), other | st.sampled_from([*ODD, *FLAGS, *NUMBERS, list(words)]))


def array(*shape, low=-1.0, high=1.0, dtype=float, shapes=(), bad=(), beyond=(), **also):
    """An array of numbers; ``shapes`` do not fit, ``bad`` are other wrong arrays, ``beyond`` wrong numbers.

    ``also`` says what else is right: ``lists``, ``numbers``, ``bools``, and with ``finite=False`` any number.
    """
    lists, finite = also.get("lists"), also.get("finite", True)

    def draw(seed):
        x = np.random.RandomState(seed).uniform(low, high, shape)
        return (np.rint(x) if np.dtype(dtype).kind in "iu" else x).astype(dtype)

    def spoilt(number, place):
        x = draw(0).astype(float)
        x.flat[place % max(1, x.size)] = number
        return x

    some = draw(0)
    wrong = [*ODD, some.astype(object), some.astype(str), some + 1j, *bad]
    wrong += [] if also.get("numbers") else NUMBERS
    wrong += [] if also.get("bools") else [*FLAGS, some.astype(bool)]
    wrong += [np.full(other, (low + high) / 2).astype(dtype) for other in shapes]
    wrong += [[], [["a"]], [[1.0], [1.0, 2.0]]] if lists else [some.tolist()]
    good, bad = st.integers(0, 99).map(draw), st.sampled_from(wrong)
    if numbers := [*beyond, *([math.nan, math.inf, -math.inf] if finite else [])]:
        bad |= st.builds(spoilt, st.sampled_from(numbers), st.integers(0, 50))
    return Kind(good | good.map(np.ndarray.tolist) if lists else good, bad)


def several(kind, bad=((),)):
    """Two values of a kind in a tuple, as for ``*args``."""
    good = st.tuples(kind.good, kind.good)
    return Kind(good, st.tuples(kind.good, kind.bad) | st.sampled_from(bad))


flag = Kind(st.booleans(), st.sampled_from([*ODD, *NUMBERS, 1, "yes", "False", [True], np.array([True])]))
seed = whole(0, 2**32 - 1)
rate = number(0)
NO_FUNCTIONS = [x for x in [*ODD, *FLAGS, *NUMBERS, "print"] if not callable(x)]
function = Kind(st.just(abs), st.sampled_from(NO_FUNCTIONS))


def function_of(maker):
    """A function that another makes."""
    return Kind(st.just(Lazy(maker)), function.bad)


def other(*wrong, right=()):
    """What an argument must not be where some of the odd values are ``right``."""
    return st.sampled_from([x for x in [*ODD, True, *wrong] if not any(x is one for one in right)])
