"""The exercises' solutions are right: other ways to them pass, and each flaw earns its hint."""

import functools
import itertools
import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from dlopt_helpers.chapters import quantization_exercises as exercises
from dlopt_helpers.chapters.pruning_runs import accuracy, dense
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.page.exercises import NOT_ANSWERED

pytestmark = pytest.mark.filterwarnings("error")  # what NumPy warns of would stand beside the hint

# --- Exercise 1 -----------------------------------------------------------------------------------


def quantized(
    steps=lambda bits: 2**bits - 1,
    ends=lambda x: (min(x.min(), 0), max(x.max(), 0)),
    zero=lambda low, q_min: q_min - np.round(low),
    integers=lambda x, low, z, q_min, q_max: np.clip(np.round(x) + z, q_min, q_max),
    returned=lambda q, scale, z: (q, scale, z),
):
    """Return a quantizer; ``low`` and ``x`` of its parts are in steps."""

    def quantize(x, bits):
        (low, high), q_min = ends(x), -(2 ** (bits - 1))
        scale = (high - low) / steps(bits)
        z = zero(low / scale, q_min)
        return returned(integers(x / scale, low / scale, z, q_min, -q_min - 1), scale, z)

    return quantize


def quantize_of_the_chapter(x, bits):
    low, high = min(x.min(), 0), max(x.max(), 0)
    q_min, q_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (q_max - q_min)
    zero_point = q_min - round(low / scale)
    q = np.clip(np.round(x / scale) + zero_point, q_min, q_max)
    return q.astype(int), scale, zero_point


def quantize_with_torch(x, bits):
    x = torch.from_numpy(x).float()
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    q_min, q_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (2**bits - 1)
    zero_point = torch.round(q_min - low / scale).int()
    q = torch.round(x / scale + zero_point).clamp(q_min, q_max)
    return q.to(torch.int8), scale, zero_point


def quantize_by_loop(x, bits):
    scale = (max(*x, 0) - min(*x, 0)) / (2**bits - 1)
    z = round(-(2 ** (bits - 1)) - min(*x, 0) / scale)
    q = [round(v / scale + z) for v in x]
    return [[min(max(k, -(2 ** (bits - 1))), 2 ** (bits - 1) - 1) for k in q], scale, np.array([z])]


def half_up(x):
    return np.floor(x + 0.5)


RIGHT_AFFINE = [
    quantize_of_the_chapter,
    quantize_with_torch,
    quantize_by_loop,
    quantized(),
    quantized(returned=lambda q, scale, z: (q.astype(np.int8), np.float32(scale), np.int8(z))),
    quantized(zero=lambda low, q_min: half_up(q_min - low)),
    quantized(
        zero=lambda low, q_min: q_min - half_up(low),
        integers=lambda x, low, z, q_min, q_max: half_up(x) + z,  # nothing is left to clip
    ),
    quantized(  # the one beside the ends goes round, but is clipped before
        integers=lambda x, low, z, q_min, q_max: np.rint(np.clip(x + z, q_min, q_max)).astype(np.int8)
    ),
]


def rounding(way):
    return lambda x, low, z, q_min, q_max: np.clip(way(x) + z, q_min, q_max)


def made_int8(integers):
    return np.int64(integers).astype(np.int8)


UNSIGNED = "The integers go from 0 to 2**bits - 1"
LEAVES_OUT = "The range leaves out 0"
RANGE_ONLY = {"ends": lambda x: (x.min(), x.max())}
FROM_ZERO = {"zero": lambda low, q_min: -np.round(low)}

AFFINE_FLAWS = [
    (quantized(integers=rounding(np.floor)), "x / scale is rounded down"),
    (quantized(integers=rounding(np.trunc)), "The fraction of x / scale is cut off"),
    (
        quantized(integers=lambda x, low, z, q_min, q_max: np.clip(np.trunc(x + z), q_min, q_max)),
        "steps away from x / scale + zero_point: round to the nearest",
    ),
    (quantized(integers=rounding(np.ceil)), "steps away from x / scale + zero_point: round to the nearest"),
    (quantized(integers=rounding(lambda x: x)), "Not every q is whole"),
    (
        quantized(zero=lambda low, q_min: q_min - low, integers=lambda x, low, z, a, b: half_up(x + z)),
        "The zero point is not whole",
    ),
    (quantized(zero=lambda low, q_min: q_min - low), "The zero point is not whole"),
    (quantized(zero=lambda low, q_min: q_min - np.floor(low)), "The zero point is cut off"),
    (quantized(zero=lambda low, q_min: q_min - np.trunc(low)), "The zero point is cut off"),
    (
        quantized(integers=lambda x, low, z, q_min, q_max: np.round(x - low) + q_min),
        "The integers are shifted by low / scale",
    ),
    (quantized(**RANGE_ONLY), LEAVES_OUT),
    (
        quantized(**RANGE_ONLY, integers=lambda x, low, z, q_min, q_max: np.round(x) + z),
        LEAVES_OUT,
    ),
    (quantized(**RANGE_ONLY, steps=lambda bits: 2**bits), "divide"),
    (quantized(integers=lambda x, low, z, q_min, q_max: np.round(x) + z), "clip"),
    (quantized(integers=lambda x, low, z, q_min, q_max: made_int8(np.round(x) + z)), "clip"),
    (
        quantized(integers=lambda x, low, z, q_min, q_max: np.clip(np.round(x) + z, -q_max, q_max)),
        "The smallest integer is missing",
    ),
    (quantized(steps=lambda bits: 2**bits), "2**bits integers have one step less between them"),
    (quantized(steps=lambda bits: 2 ** (bits - 1) - 1), "Not yet. For "),
    (quantized(steps=lambda bits: 1), "That is the range"),
    (quantized(**FROM_ZERO), UNSIGNED),
    (
        quantized(
            **FROM_ZERO,
            integers=lambda x, low, z, q_min, q_max: np.clip(np.round(x) + z, 0, q_max - q_min),
        ),
        UNSIGNED,
    ),
    (quantized(integers=lambda x, low, z, q_min, q_max: np.round(x) + z - q_min), UNSIGNED),
    (quantized(integers=lambda x, low, z, q_min, q_max: np.round(x - low)), UNSIGNED),
    (quantized(zero=lambda low, q_min: np.round(low) - q_min), "The zero point has the wrong sign"),
    (quantized(returned=lambda q, scale, z: (q, scale, -z)), "The zero point has the wrong sign"),
    (quantized(zero=lambda low, q_min: q_min + np.round(low)), "low / scale has the wrong sign"),
    (quantized(zero=lambda low, q_min: 0 * low), "Not yet. For "),
    (
        quantized(integers=lambda x, low, z, q_min, q_max: np.clip(np.round(x) - z, q_min, q_max)),
        "Not yet. For x = ",
    ),
    (quantized(integers=rounding(lambda x: np.round(2 * x))), "Not yet. For x = "),
    (quantized(returned=lambda q, scale, z: (q, 1 / scale, z)), "That is 1 / scale"),
    (quantized(returned=lambda q, scale, z: (scale * (q - z), scale, z)), "the numbers that the integers"),
    (quantized(returned=lambda q, scale, z: (q, z, scale)), "The scale comes second"),
    (quantized(returned=lambda q, scale, z: (scale, z, q)), "in this order"),
    (quantized(returned=lambda q, scale, z: (q[:-1], scale, z)), "in this order"),
    (quantized(returned=lambda q, scale, z: (q, q, z)), "in this order"),
    (quantized(returned=lambda q, scale, z: (q, scale, 0 * q + z)), "in this order"),
    (quantized(returned=lambda q, scale, z: (q, "scale", z)), "in this order"),
    (quantized(returned=lambda q, scale, z: (q, scale)), "Return three things"),
    (quantized(returned=lambda q, scale, z: (q, scale, z, 0)), "Return three things"),
    (quantized(returned=lambda q, scale, z: q), "Return three things"),
    (quantized(returned=lambda q, scale, z: (q, scale, None)), "NaN or infinite"),
    (quantized(returned=lambda q, scale, z: (q / 0, scale, z)), "NaN or infinite"),
    (lambda x, bits: (x, *quantize_of_the_chapter(x, bits)[1:]), "the numbers that the integers"),
    (
        quantized(
            steps=lambda bits: 2 ** (bits - 1) - 1,
            ends=lambda x: (0, abs(x).max()),
            zero=lambda low, q_min: 0.0,
        ),
        "That is the symmetric scale",
    ),
    (lambda x, bits: None, "is a `return` missing"),
    (lambda x, bits: x.sort(), "changes its arguments in place"),
    (lambda x, bits: x.undefined, "The function stopped with AttributeError"),
    (lambda x: x, "The function stopped with TypeError"),
    ((1, 2, 3), "The answer is a tuple; a function is asked for"),
]

# --- Exercise 2 -----------------------------------------------------------------------------------


def layer_of_the_chapter(q_x, q_w, z_x):
    return (q_x.astype(np.int32) - z_x) @ q_w.astype(np.int32).T


def layer_after_the_sums(q_x, q_w, z_x):
    sums = q_x.astype(np.int32) @ q_w.astype(np.int32).T
    return sums - z_x * q_w.sum(axis=1, dtype=np.int32)


def layer_by_loop(q_x, q_w, z_x):
    return [[sum((int(a) - z_x) * int(b) for a, b in zip(x, w, strict=True)) for w in q_w] for x in q_x]


def layer_with_torch(q_x, q_w, z_x):
    q_x, q_w = torch.from_numpy(q_x), torch.from_numpy(q_w)
    return (q_x.int() - z_x) @ q_w.int().T


RIGHT_LAYER = [
    layer_of_the_chapter,
    layer_after_the_sums,
    layer_by_loop,
    layer_with_torch,
    lambda q_x, q_w, z_x: (q_x.astype(int) - z_x) @ q_w.T,
    lambda q_x, q_w, z_x: np.einsum("ni,oi->no", q_x.astype("int32") - z_x, q_w),
    lambda q_x, q_w, z_x: layer_of_the_chapter(q_x.astype(float), q_w, z_x).astype(np.int32),
]


def wide(q):
    return q.astype(np.int32)


OVERFLOWED = "The sums overflowed: multiplied in int8"

LAYER_FLAWS = [
    (lambda q_x, q_w, z_x: (q_x - np.int8(z_x)) @ q_w.T, OVERFLOWED),
    (lambda q_x, q_w, z_x: wide((q_x - np.int8(z_x)) @ q_w.T), OVERFLOWED),
    (lambda q_x, q_w, z_x: layer_of_the_chapter(q_x, q_w, z_x).astype(np.int8), OVERFLOWED),
    (lambda q_x, q_w, z_x: q_x @ q_w.T, "overflowed, and the zero point is forgotten"),
    (lambda q_x, q_w, z_x: wide(q_x @ q_w.T), "overflowed, and the zero point is forgotten"),
    (
        lambda q_x, q_w, z_x: np.sum((q_x - np.int8(z_x))[:, None] * q_w, axis=2),
        "The products overflowed in int8: widen before multiplying",
    ),
    (lambda q_x, q_w, z_x: wide(q_x - np.int8(z_x)) @ wide(q_w).T, "q_x - z_x overflowed in int8"),
    (lambda q_x, q_w, z_x: wide(q_x) @ wide(q_w).T, "The zero point is forgotten: the integer z_x"),
    (lambda q_x, q_w, z_x: (wide(q_x) + z_x) @ wide(q_w).T, "The zero point is added"),
    (lambda q_x, q_w, z_x: wide(q_x) @ wide(q_w).T - z_x, "z_x comes off the sums"),
    (lambda q_x, q_w, z_x: wide(q_x) @ (wide(q_w) - z_x).T, "z_x comes off the weights: it belongs"),
    (lambda q_x, q_w, z_x: (wide(q_x) - z_x) @ (wide(q_w) - z_x).T, "z_x comes off the weights, too"),
    (lambda q_x, q_w, z_x: layer_of_the_chapter(q_x, q_w, z_x).T, "That is transposed"),
    (lambda q_x, q_w, z_x: (q_w.astype(int) - 0) @ (q_x.astype(int) - z_x).T, "That is transposed"),
    (
        lambda q_x, q_w, z_x: layer_of_the_chapter(q_x, q_w, z_x).astype("float32"),
        "The sums are right, but of type float32",
    ),
    (lambda q_x, q_w, z_x: (q_x.astype(float) - z_x) @ q_w.T, "The sums are right, but of type float64"),
    (lambda q_x, q_w, z_x: 0.5 * layer_of_the_chapter(q_x, q_w, z_x), "of type float64: int32 is asked"),
    (lambda q_x, q_w, z_x: np.ones((3, 5), "uint32"), "of type uint32: int32 is asked"),
    (
        lambda q_x, q_w, z_x: (q_x.astype("int16") - np.int16(z_x)) @ q_w.astype("int16").T,
        "Sums of type int16 overflow: widen to int32",
    ),
    (lambda q_x, q_w, z_x: layer_of_the_chapter(q_x, q_w, z_x) + 1, "Not yet. Output 0 of example 0 is "),
    (lambda q_x, q_w, z_x: (wide(q_x) - z_x)[:, None] * wide(q_w), "of shape (3, 5)"),
    (lambda q_x, q_w, z_x: layer_of_the_chapter(q_x, q_w, z_x).sum(), "of shape (3, 5)"),
    (lambda q_x, q_w, z_x: "sums", "of shape (3, 5)"),
    (lambda q_x, q_w, z_x: [[1], [2, 3]], "of shape (3, 5)"),
    (lambda q_x, q_w, z_x: wide(q_x) @ wide(q_w), "The function stopped with ValueError"),
    (lambda q_x, q_w, z_x: None, "is a `return` missing"),
    (lambda q_x, q_w, z_x: q_x.fill(0), "changes its arguments in place"),
]

# --- Exercise 3 -----------------------------------------------------------------------------------


def bits_of_the_chapter(weights, budget):
    sizes = [w.size for w in weights]
    choices = itertools.product(range(2, 9), repeat=3)
    fitting = [bits for bits in choices if np.dot(bits, sizes) / 8 <= budget]
    return max(fitting, key=exercises.accuracy_with)


def bits_upwards(weights, budget):
    """Start with three bits for the large layer and give one bit at a time to where it helps most."""
    bits, sizes = [2, 3, 2], [w.size for w in weights]
    while True:
        more = [[b + (i == j) for j, b in enumerate(bits)] for i in range(3)]
        more = [m for m in more if np.dot(m, sizes) / 8 <= budget and max(m) <= 8]
        if not more:
            return tuple(bits)
        bits = max(more, key=exercises.accuracy_with)


RIGHT_BITS = [
    bits_of_the_chapter,
    bits_upwards,
    lambda weights, budget: [2, 3, 3],
    lambda weights, budget: (2.0, 3.0, 4.0),
    lambda weights, budget: np.array([2, 3, 5]),
    lambda weights, budget: torch.tensor([2, 3, 4]),
]


def choosing(*bits):
    return lambda weights, budget: list(bits)


BITS_FLAWS = [
    (choosing(8, 8, 8), "take 287,744 bytes, 180,744 more than the budget. Equal bits that fit are too few"),
    (choosing(3, 3, 3), "take 107,904 bytes, 904 more than the budget. Equal bits that fit are too few"),
    (choosing(3, 3, 2), "take 107,264 bytes, 264 more than the budget."),
    (choosing(4, 3, 2), "more than the budget."),
    (choosing(2, 2, 2), "Equal bits leave 35,064 bytes unused"),
    (choosing(8, 2, 8), "The 2 bits of the second layer hurt most: one more there would make it"),
    (choosing(2, 2, 8), "The 2 bits of the second layer hurt most"),
    (choosing(2, 3, 2), "The 2 bits of the third layer hurt most"),
    (choosing(2, 3, 2), "2,296 bytes are left."),
    (choosing(1, 3, 4), "from 2 to 8"),
    (choosing(2, 3, 9), "from 2 to 8"),
    (choosing(2, 3.5, 2), "from 2 to 8"),
    (choosing(2, None, 2), "from 2 to 8"),
    (choosing(2, 3), "Return a list of 3 whole numbers"),
    (choosing([2], [3, 4], [3]), "Return a list of 3 whole numbers"),
    (lambda weights, budget: 3, "Return a list of 3 whole numbers"),
    (lambda weights, budget: "234", "Return a list of 3 whole numbers"),
    (lambda weights, budget: dict.fromkeys("abc", 3), "Return a list of 3 whole numbers"),
    (lambda weights, budget: weights, "Return a list of 3 whole numbers"),
    (lambda weights, budget: None, "is a `return` missing"),
    (lambda weights, budget: exercises.accuracy_with([1, 1, 1]), "stopped with ValueError: bits=[1, 1, 1]"),
    (lambda weights, budget: weights[0].fill(0), "changes its arguments in place"),
]

# --- All ------------------------------------------------------------------------------------------

CHECKS = [
    (exercises.check_affine, RIGHT_AFFINE, AFFINE_FLAWS),
    (exercises.check_integer_layer, RIGHT_LAYER, LAYER_FLAWS),
    (exercises.check_bits, RIGHT_BITS, BITS_FLAWS),
]


@pytest.mark.parametrize(("check", "answer"), [(check, f) for check, right, _ in CHECKS for f in right])
def test_an_independent_solution_passes(check, answer):
    assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(
    ("check", "answer", "hint"), [(check, *flaw) for check, _, flaws in CHECKS for flaw in flaws]
)
def test_an_answer_that_fails_gets_a_hint(check, answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False
    assert line.startswith("✗ ")
    assert hint in line
    assert "\n" not in line


@pytest.mark.parametrize("check", [check for check, *_ in CHECKS])
@pytest.mark.parametrize("answer", [..., lambda **inputs: ..., lambda **inputs: (..., ..., ...)])
def test_no_answer_is_no_mistake(check, answer):
    assert check.judge(answer) == (None, NOT_ANSWERED)


def test_five_arrays_in_a_row_need_all_of_the_quantizer():
    for seed in range(100):
        rng = np.random.default_rng(seed)
        draws = [exercises._an_array(rng) for _ in range(5)]
        lows, highs = np.array([(d["x"].min(), d["x"].max()) for d in draws]).T
        scales = (np.maximum(highs, 0) - np.minimum(lows, 0)) / [2 ** d["bits"] - 1 for d in draws]
        assert (lows > 0).tolist() == [False, False, True, False, False]
        assert (highs < 0).tolist() == [False, False, False, True, False]
        assert 0.6 < -lows[0] / scales[0] % 1 < 0.9
        assert 0.1 < -lows[1] / scales[1] % 1 < 0.4
        # Exactly half a step beyond the largest integer: it rounds to what has to be clipped.
        assert highs[4] / scales[4] == -lows[4] / scales[4] == 2 ** (draws[4]["bits"] - 1) - 0.5
        assert all(3 <= d["bits"] <= 8 for d in draws)
    assert len({exercises._an_array(np.random.default_rng())["x"][0] for _ in range(5)}) == 5


def test_the_smallest_error_in_the_integers_is_seen():
    rng = np.random.default_rng(0)
    for _ in range(100):
        draw = exercises._an_array(rng)
        q, scale, z = exercises._affine(**draw)
        off = q.copy()
        off[np.abs(q - z).argmin()] += 1
        assert exercises._is_affine((q, scale, z), **draw) == ""
        for wrong in ((off, scale, z), (q, 1.003 * scale, z), (q, scale, z + 1.01)):
            assert exercises._is_affine(wrong, **draw)


def test_the_integers_leave_int8_wherever_they_are_not_widened():
    rng = np.random.default_rng(0)
    for _ in range(100):
        draw = exercises._small_integers(rng)
        right = layer_of_the_chapter(**draw)
        assert draw["q_x"].dtype == draw["q_w"].dtype == np.int8
        assert (abs(right) > 127).any()
        assert abs(draw["q_x"].astype(int) - draw["z_x"]).max() > 127
        assert -128 <= draw["z_x"] <= 127


def quantized_twin(bits, seed=0):
    """Quantize PyTorch's network with its own rounding, one output channel after another."""
    model = dense("mlp512", seed)
    with torch.no_grad():
        for layer, b in zip(model[::2], bits, strict=True):
            q_max = 2 ** (b - 1) - 1
            scale = layer.weight.abs().amax(dim=1)
            zeros = torch.zeros(len(scale), dtype=torch.int32)
            layer.weight.copy_(
                torch.fake_quantize_per_channel_affine(layer.weight, scale / q_max, zeros, 0, -q_max, q_max)
            )
    return model


@pytest.mark.parametrize("bits", [(2, 2, 2), (2, 3, 4), (8, 2, 8), (8, 8, 8)])
def test_the_accuracies_are_those_of_the_quantized_network(bits):
    x_train, y_train, x_test, y_test = mnist1d()
    model = quantized_twin(bits)
    assert exercises.accuracy_with(list(bits)) == pytest.approx(
        accuracy(model, x_train[:1_000], y_train[:1_000]), abs=0.003
    )
    assert exercises._accuracy(bits, test=True) == pytest.approx(accuracy(model, x_test, y_test), abs=0.003)


@pytest.fixture(scope="module")
def reached():
    """Return the test accuracy that bits for the three layers reach, by the seed of the network."""
    x, y = mnist1d()[2:]
    return functools.cache(lambda seed, *bits: accuracy(quantized_twin(bits, seed), x, y))


def test_the_bar_lies_between_bits_that_were_looked_for_and_all_others(reached):
    assert min(reached(0, 2, 3, 4), reached(0, 2, 3, 5)) > exercises._BAR
    assert max(reached(0, 8, 2, 8), reached(0, 2, 3, 2)) < exercises._BAR - 0.01


@pytest.mark.parametrize("seed", range(5))
def test_bits_that_were_looked_for_are_better_in_other_networks_too(reached, seed):
    looked_for = min(reached(seed, 2, 3, 4), reached(seed, 2, 3, 5))
    assert looked_for > max(reached(seed, 8, 2, 8), reached(seed, 2, 3, 2))
    assert reached(seed, 2, 2, 2) < 0.5
    assert reached(seed, 8, 8, 8) > 0.7


def test_the_budget_is_just_too_small_for_three_bits_everywhere():
    weights = exercises._network()[0]
    assert [w.size for w in weights] == [20_480, 262_144, 5_120]
    assert exercises._size(weights, (3, 3, 3)) == 107_904 > exercises._BUDGET
    assert exercises._size(weights, (2, 3, 5)) == 106_624 < exercises._BUDGET


def test_the_hint_about_bits_says_what_is_measured():
    _, line = exercises.check_bits.judge(choosing(2, 3, 2))
    own, bar, more = map(float, re.findall(r"([\d.]+) %", line))
    assert own == pytest.approx(100 * exercises._accuracy((2, 3, 2), test=True), abs=0.05)
    assert bar == 62
    assert more == pytest.approx(100 * exercises._accuracy((2, 3, 3), test=True), abs=0.05)


def test_accuracy_with_names_bits_that_are_not_allowed():
    for bits in ([2, 3], [2, 3, 9], "234", None):
        with pytest.raises(ValueError, match=f"bits={re.escape(repr(bits))} is not allowed"):
            exercises.accuracy_with(bits)


def test_an_overflow_is_no_traceback_and_no_warning(capfd):
    exercises.check_integer_layer(lambda q_x, q_w, z_x: (q_x - np.int8(z_x)) @ q_w.T)
    shown, warned = capfd.readouterr()
    assert shown.startswith("✗ The sums overflowed")
    assert (shown.count("\n"), warned) == (1, "")


def test_the_checks_load_no_framework():
    code = "import sys, dlopt_helpers.chapters.quantization_exercises; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
