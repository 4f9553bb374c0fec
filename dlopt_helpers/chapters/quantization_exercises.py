"""The checks of chapter 3.5's exercises, and the mistakes they know."""

import functools
import itertools

import numpy as np

from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.page.exercises import Goal
from dlopt_helpers.quantization import affine, min_max, symmetric


def _numbers(result):
    """Return ``result`` as an array of numbers, which is empty where there are none."""
    try:
        return np.asarray(result, dtype=float)
    except (TypeError, ValueError):  # also of lists of unequal lengths
        return np.empty(0)


# --- Exercise 1: the affine quantizer -------------------------------------------------------------

_NEAR = 1e-3  # of a step: float32 does


def _an_array(rng):
    """Five in a row, each with other ends, of which every wrong quantizer fails one."""
    bits, part = int(rng.integers(3, 9)), rng.uniform(0.1, 0.4)
    steps = 2**bits - 1
    ends = [  # in steps
        (-(steps // 8 + 1 - part), steps - steps // 8 - 1 + part),  # rounds to further from 0
        (-(steps - steps // 8 - 1 + part), steps // 8 + 1 - part),  # rounds to nearer to 0
        (part * steps, steps),
        (-steps, -part * steps),
        (-steps / 2, steps / 2),  # both ends round outwards, to one integer too many
    ]
    low, high = ends[rng.bit_generator.seed_seq.n_children_spawned % len(ends)]
    rng.spawn(1)  # so that the generator itself counts the draws
    x = np.concatenate([[low, high], rng.uniform(low, high, size=22)])
    return {"x": rng.permutation(x) / 2 ** int(rng.integers(1, bits)), "bits": bits}


def _affine(x, bits):
    quantizer = affine(*min_max(x), bits)
    return quantizer.quantize(x), quantizer.scale, quantizer.zero_point


def _with(integers):
    """Return the quantizer with other integers, computed from ``x`` and its low end in steps."""

    def wrong(x, bits):
        (_, scale, zero_point), q_min = _affine(x, bits), -(2 ** (bits - 1))
        q = integers(x / scale, min(x.min(), 0) / scale, zero_point, q_min)
        return np.clip(q, q_min, -q_min - 1), scale, zero_point

    return wrong


def _is_affine(result, x, bits):
    if not isinstance(result, tuple | list) or len(result) != 3:
        return "Return three things: the integers q, the scale and the zero point."
    q, scale, zero_point = map(_numbers, result)
    if q.shape != x.shape or scale.size != 1 or zero_point.size != 1:
        return "Return, in this order: an integer for each number in x, one scale, one zero point."
    if not all(np.isfinite(part).all() for part in (q, scale, zero_point)):
        return "Something in the result is NaN or infinite."
    scale, zero_point = scale.item(), zero_point.item()
    if np.isclose(zero_point, _affine(x, bits)[1], rtol=1e-4):
        return "The scale comes second, the zero point third."
    return (
        _scale_differs(scale, x, bits)
        or _zero_point_differs(zero_point, x, bits)
        or _integers_differ(q, zero_point, x, bits)
    )


def _scale_differs(given, x, bits):
    low, high, steps = min(x.min(), 0), max(x.max(), 0), 2**bits - 1
    known = [  # the right one first: where 0 is in the range, two are one
        ((high - low) / steps, ""),
        (np.ptp(x) / steps, "The range leaves out 0, which needs its own integer: widen it until it has it."),
        ((high - low) / 2**bits, "2**bits integers have one step less between them: divide by 2**bits - 1."),
        (np.ptp(x) / 2**bits, "The range leaves out 0: widen it, and divide it by 2**bits - 1."),
        (steps / (high - low), "That is 1 / scale: the scale is the distance of two neighbours."),
        (high - low, "That is the range: the scale is one of its 2**bits - 1 steps."),
        (abs(x).max() / (2 ** (bits - 1) - 1), "That is the symmetric scale: divide high - low into steps."),
    ]
    for scale, hint in known:
        if np.isclose(given, scale, rtol=1e-4, atol=0):
            return hint
    of = f"{bits} bits and numbers from {x.min():.4g} to {x.max():.4g}"
    return f"Not yet. For {of} the scale is {(high - low) / steps:.4g}, not {given:.4g}."


def _zero_point_differs(given, x, bits):
    q_min, low_in_steps = -(2 ** (bits - 1)), min(x.min(), 0) / _affine(x, bits)[1]
    exact = q_min - low_in_steps
    if abs(given - exact) <= 0.5 + _NEAR:
        whole = abs(given - round(given)) <= _NEAR
        return "" if whole else "The zero point is not whole: round it, so that 0 is an integer exactly."
    if abs(given - exact) < 1:
        return "The zero point is cut off: round it to the nearest integer."
    known = [
        (-exact, "The zero point has the wrong sign: it is the integer that stands for 0."),
        (q_min + low_in_steps, "low / scale has the wrong sign in the zero point: subtract it from q_min."),
        (-low_in_steps, "The integers go from 0 to 2**bits - 1: they should begin at -2**(bits - 1)."),
    ]
    for zero_point, hint in known:
        if abs(given - zero_point) <= 0.5 + _NEAR:
            return hint
    of = f"{bits} bits and numbers from {x.min():.4g} to {x.max():.4g}"
    return f"Not yet. For {of} the zero point is {round(exact)}, not {given:.4g}."


def _integers_differ(q, zero_point, x, bits):
    scale, q_max = _affine(x, bits)[1], 2 ** (bits - 1) - 1
    off = q - np.clip(x / scale + zero_point, -q_max - 1, q_max)
    if np.abs(q - q.round()).max() > _NEAR:
        if np.abs(q - x).max() <= scale:
            return "Those are the numbers that the integers stand for: return the integers."
        return "Not every q is whole: round x / scale."
    if np.abs(off).max() <= 0.5 + _NEAR:
        return ""
    if np.abs(off - q_max - 1).max() <= 1:
        return "The integers go from 0 to 2**bits - 1: they should begin at -2**(bits - 1)."
    if np.abs(np.delete(off, x.argmax())).max() <= 0.5 + _NEAR:
        became = f"The largest number became {q[x.argmax()]:.0f}, and {bits} bits end at {q_max}"
        return f"{became}: clip, before any conversion to int8."
    if np.abs(off).max() < 1:
        return (
            f"An integer is {np.abs(off).max():.2f} steps away from x / scale + zero_point: "
            "round to the nearest, and add the zero point that you return."
        )
    return _an_integer_differs(q, zero_point, x, bits)


def _an_integer_differs(q, zero_point, x, bits):
    right, scale, _ = _affine(x, bits)
    worst = np.abs(q - right).argmax()
    of = f"x = {x[worst]:.4g}, scale {scale:.4g} and zero point {zero_point:.0f}"
    return f"Not yet. For {of} the integer is {right[worst]:.0f}, not {q[worst]:.0f}."


check_affine = Goal(
    solution=_affine,
    inputs=_an_array,
    reached=_is_affine,
    mistakes={
        "The integers are shifted by low / scale, which is not whole: add the rounded zero point.": (
            _with(lambda x, low, zero_point, q_min: np.round(x - low) + q_min)
        ),
        "x / scale is rounded down: round it to the nearest integer.": (
            _with(lambda x, low, zero_point, q_min: np.floor(x) + zero_point)
        ),
        "The fraction of x / scale is cut off: round it to the nearest integer.": (
            _with(lambda x, low, zero_point, q_min: np.trunc(x) + zero_point)
        ),
        "The smallest integer is missing: the affine quantizer has -2**(bits - 1), too.": (
            _with(lambda x, low, zero_point, q_min: np.maximum(np.round(x) + zero_point, q_min + 1))
        ),
    },
    praise="No number is off by more than half a step, and 0 stays exactly 0.",
)

# --- Exercise 2: a layer of integers --------------------------------------------------------------


def _small_integers(rng):
    """Sizes that differ, and a zero point so far off that differences leave int8."""
    q_x, q_w = (rng.integers(-128, 128, size=(n, 40), dtype=np.int8) for n in (3, 5))
    return {"q_x": q_x, "q_w": np.maximum(q_w, -127), "z_x": int(rng.choice([-1, 1]) * rng.integers(40, 128))}


def _wide(q):
    return q.astype(np.int32)


def _sums(q_x, q_w, z_x):
    return (_wide(q_x) - z_x) @ _wide(q_w).T


def _are_the_sums(result, q_x, q_w, z_x):
    sums, right = _numbers(result), _sums(q_x, q_w, z_x)
    if sums.shape == right.T.shape:
        return "That is transposed: a row is an example, a column an output."
    if sums.shape != right.shape:
        return f"Return a sum for each example and output, of shape {right.shape}."
    kind = np.asarray(result).dtype
    if kind.kind != "i" or kind.itemsize < 4:
        return _not_wide(kind, np.array_equal(sums, right))
    if np.array_equal(sums, right):
        return ""
    row, column = np.argwhere(sums != right)[0]
    return (
        f"Not yet. Output {column} of example {row} is {right[row, column]}, not {sums[row, column]:.0f}: "
        "the sum over i of (q_x[i] - z_x) * q_w[i]."
    )


def _not_wide(kind, equal):
    if kind.kind == "i":
        return f"Sums of type {kind} overflow: widen to int32 before multiplying."
    if equal:
        return f"The sums are right, but of type {kind}: an integer unit has none. Stay in int32."
    return f"The sums are of type {kind}: int32 is asked for."


def _wrapped(difference, q_w):
    """Return the sums as int8 leaves them: what does not fit goes round."""
    return _wide((_wide(difference) @ _wide(q_w).T).astype(np.int8))


def _wrapped_difference(q_x, z_x):
    return (_wide(q_x) - z_x).astype(np.int8)


check_integer_layer = Goal(
    solution=_sums,
    inputs=_small_integers,
    reached=_are_the_sums,
    mistakes={
        "The sums overflowed: multiplied in int8, they fit into 8 bits no more. Widen to int32 before.": (
            lambda q_x, q_w, z_x: _wrapped(_wide(q_x) - z_x, q_w)
        ),
        "The products overflowed, and the zero point is forgotten: widen to int32, subtract z_x, multiply.": (
            lambda q_x, q_w, z_x: _wrapped(q_x, q_w)
        ),
        "The products overflowed in int8: widen before multiplying, not only for the sum.": (
            lambda q_x, q_w, z_x: np.sum(_wrapped_difference(q_x, z_x)[:, None] * q_w, axis=2, dtype=np.int32)
        ),
        "q_x - z_x overflowed in int8, where 100 - (-100) is -56: widen before subtracting.": (
            lambda q_x, q_w, z_x: _wide(_wrapped_difference(q_x, z_x)) @ _wide(q_w).T
        ),
        "The zero point is forgotten: the integer z_x stands for an input of 0.": (
            lambda q_x, q_w, z_x: _sums(q_x, q_w, 0)
        ),
        "The zero point is added: subtract it.": lambda q_x, q_w, z_x: _sums(q_x, q_w, -z_x),
        "z_x comes off the sums: it comes off each input, before the multiplication.": (
            lambda q_x, q_w, z_x: _sums(q_x, q_w, 0) - z_x
        ),
        "z_x comes off the weights: it belongs to the inputs.": (
            lambda q_x, q_w, z_x: _wide(q_x) @ (_wide(q_w) - z_x).T
        ),
        "z_x comes off the weights, too: theirs is 0, for they are symmetric.": (
            lambda q_x, q_w, z_x: (_wide(q_x) - z_x) @ (_wide(q_w) - z_x).T
        ),
    },
    praise="Whole numbers in, whole numbers out: nothing is rounded until the sum is complete.",
)

# --- Exercise 3: bits for each layer --------------------------------------------------------------

_BUDGET = 107_000  # three bits everywhere need 107,904 bytes
_BAR = 0.62
_NAMES = ["first", "second", "third"]


@functools.cache
def _network():
    """Return weights and biases of the network ``mlp512``, trained."""
    from dlopt_helpers.chapters.pruning_runs import dense  # imports torch

    arrays = [p.numpy() for p in dense("mlp512", seed=0).state_dict().values()]
    return arrays[::2], arrays[1::2]


@functools.cache
def _quantized(layer, bits):
    w = _network()[0][layer]
    quantizer = symmetric(*min_max(w, axis=0), bits)
    return quantizer.dequantize(quantizer.quantize(w))


@functools.cache
def _accuracy(bits, test):
    x, y = mnist1d()[2:] if test else (part[:1_000] for part in mnist1d()[:2])
    for layer, (b, bias) in enumerate(zip(bits, _network()[1], strict=True)):
        x = (np.maximum(x, 0) if layer else x) @ _quantized(layer, b).T + bias
    return np.mean(x.argmax(axis=1) == y).item()


def accuracy_with(bits):
    """Return the share of 1,000 training examples that the network of exercise 3 gets right.

    Args:
      bits: of the weights of its three layers, whole numbers in [2, 8]. They are rounded
        symmetrically, with one scale for each output, and nothing is clipped.

    Raises:
      ValueError: if ``bits`` is anything else.

    Example:
      >>> accuracy_with([8, 8, 8]) > accuracy_with([2, 2, 2])
      True
    """
    if flaw := _unusable(bits):
        raise ValueError(f"bits={bits!r} is not allowed. {flaw}")
    return _accuracy(_whole(bits), test=False)


def _whole(bits):
    return tuple(int(b) for b in _numbers(bits))


def _unusable(bits):
    """Return why ``bits`` cannot be used, or ""."""
    bits = _numbers(bits)
    if bits.shape != (len(_NAMES),):
        return f"Return a list of {len(_NAMES)} whole numbers, the bits of each layer."
    if not np.isin(bits, range(2, 9)).all():
        return "The bits of a layer are a whole number from 2 to 8."
    return ""


def _size(weights, bits):
    return sum(w.size * b for w, b in zip(weights, bits, strict=True)) / 8


def _fits_and_works(bits, weights, budget):
    if flaw := _unusable(bits):
        return flaw
    bits = _whole(bits)
    size = _size(weights, bits)
    equal = len(set(bits)) == 1
    if size > budget:
        advice = " Equal bits that fit are too few: let them differ." if equal else ""
        return f"These weights take {size:,.0f} bytes, {size - budget:,.0f} more than the budget.{advice}"
    reached = _accuracy(bits, test=True)
    if reached >= _BAR:
        return ""
    short = f"The network gets {100 * reached:.1f} % of the test set right: {100 * _BAR:.0f} % are asked for."
    if equal:
        return f"{short} Equal bits leave {budget - size:,.0f} bytes unused: let them differ."
    return f"{short} {_hurts_most(bits)} {budget - size:,.0f} bytes are left."


def _hurts_most(bits):
    """Name the layer to which one more bit would bring most."""
    more = [_accuracy((*bits[:i], min(b + 1, 8), *bits[i + 1 :]), test=True) for i, b in enumerate(bits)]
    worst = int(np.argmax(more))
    then = f"one more there would make it {100 * more[worst]:.1f} %."
    return f"The {bits[worst]} bits of the {_NAMES[worst]} layer hurt most: {then}"


def _best_that_fit(weights, budget):
    fitting = [b for b in itertools.product(range(2, 9), repeat=3) if _size(weights, b) <= budget]
    return max(fitting, key=accuracy_with)


check_bits = Goal(
    solution=_best_that_fit,
    inputs=lambda rng: {"weights": _network()[0], "budget": _BUDGET},
    reached=_fits_and_works,
    praise="Equal bits within the budget get less than half of the test set right.",
)
