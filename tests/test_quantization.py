"""Quantization against the frameworks, slow reimplementations and exact arithmetic."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy as scipy_entropy
from sklearn.cluster import KMeans

from dlopt_helpers import quantization as Q
from dlopt_helpers.quantization import affine, fake_quantize, least_squares, min_max, symmetric


def tensor(x):
    import tensorflow as tf

    return tf.constant(x)


def compiled(call):
    """Return ``call`` of arrays as TensorFlow's graph computes it."""
    import tensorflow as tf

    return lambda *arrays: tf.function(call, autograph=False)(*map(tf.constant, arrays))


KINDS = {"numpy": np.asarray, "torch": torch.as_tensor, "tensorflow": tensor}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
every_scheme = pytest.mark.parametrize("scheme", [symmetric, affine])
W = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")
W[0] *= 10
sane = st.floats(-1e6, 1e6).map(lambda x: x if abs(x) > 1e-6 else 0.0)
some_numbers = arrays("float64", st.integers(1, 30), elements=sane).filter(np.any)


# --- quantizers ----------------------------------------------------------------------------------


@every_kind
def test_symmetric_by_hand(kind):
    x = kind(np.array([-9.0, -3.0, -0.6, -0.5, 0.0, 0.5, 1.5, 2.4, 3.4, 9.0], "float32"))
    quantizer = symmetric(kind(np.float32(-3.0)), kind(np.float32(2.0)), bits=3)
    assert (float(quantizer.scale), quantizer.zero_point, quantizer.q_min, quantizer.q_max) == (1, 0, -3, 3)
    expected = [-3, -3, -1, 0, 0, 0, 2, 2, 3, 3]  # ties go to the even number
    np.testing.assert_array_equal(quantizer.quantize(x), expected)
    np.testing.assert_array_equal(fake_quantize(x, quantizer), expected)


@every_kind
def test_affine_by_hand(kind):
    x = kind(np.array([-9.0, -1.1, -0.6, 0.0, 0.5, 1.5, 5.9, 9.0], "float32"))
    quantizer = affine(kind(np.float32(-1.2)), kind(np.float32(5.8)), bits=3)
    assert float(quantizer.scale) == 1 and int(quantizer.zero_point) == -4 + 1
    assert (quantizer.q_min, quantizer.q_max) == (-4, 3)
    np.testing.assert_array_equal(quantizer.quantize(x), [-4, -4, -4, -3, -3, -1, 3, 3])
    np.testing.assert_array_equal(fake_quantize(x, quantizer), [-1, -1, -1, 0, 0, 2, 6, 6])


@pytest.mark.parametrize(
    "low, high, widened", [(2.0, 6.0, (0, 6)), (-5.0, -1.0, (-5, 0)), (3.0, 3.0, (0, 3))]
)
def test_an_affine_range_without_zero_is_widened(low, high, widened):
    quantizer = affine(low, high, bits=8)
    ends = [float(quantizer.dequantize(q)) for q in (-128, 127)]
    np.testing.assert_allclose(ends, widened, rtol=1e-12)


def both(call, x):
    """Return the result of ``call`` and its gradient for the weights 1, 2, 3, ..."""
    x = torch.tensor(x, requires_grad=True)
    y = call(x)
    (y * torch.arange(1, y.numel() + 1).view(y.shape)).sum().backward()
    return y.detach(), x.grad


TIES = np.concatenate([np.arange(-40, 41) / 4, np.nextafter(np.arange(-40, 41) / 4, 99)]).astype("float32")
CASES = {"ties": (TIES, 0.5), "random": (3 * W.ravel(), 0.123), "fine": (W.ravel(), 1 / 1024)}


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zero_point", [None, 0, 1, -2])
@pytest.mark.parametrize("case", CASES)
def test_fake_quantize_equals_pytorch(case, zero_point, bits):
    x, scale = CASES[case]
    q_max = 2 ** (bits - 1) - 1
    q_min, z = (-q_max, 0) if zero_point is None else (-q_max - 1, zero_point)
    ours = both(lambda x: fake_quantize(x, Q.Quantizer(scale, z, q_min, q_max)), x)
    torchs = both(lambda x: torch.fake_quantize_per_tensor_affine(x, scale, z, q_min, q_max), x)
    for a, b in zip(ours, torchs, strict=True):
        assert a.dtype == torch.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("axis", [0, 1, 2])
@every_scheme
def test_channels_equal_pytorch(scheme, axis):
    quantizer = scheme(
        *(b / 2 for b in min_max(torch.tensor(W), axis)), bits=4
    )  # half of it: some are clipped
    zero = torch.as_tensor(quantizer.zero_point).expand_as(quantizer.scale).ravel().int()
    args = (quantizer.scale.ravel(), zero, axis, quantizer.q_min, quantizer.q_max)
    ours = both(lambda x: fake_quantize(x, quantizer), W)
    torchs = both(lambda x: torch.fake_quantize_per_channel_affine(x, *args), W)
    for a, b in zip(ours, torchs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-7)
    assert (ours[1] == 0).any()


def test_gradients_by_hand():
    """The top bin reaches half a step beyond the range; what is clipped gets exactly nothing."""
    x = np.array([-1.6, -1.4, -1.0, 0.0, 0.2, 1.0, 1.49, 1.51, 9.0])
    _, gradient = both(lambda x: fake_quantize(x, symmetric(-1.0, 1.0, bits=2)), x)
    np.testing.assert_array_equal(gradient / torch.arange(1, 10), [0, 1, 1, 1, 1, 1, 1, 0, 0])


@every_scheme
def test_no_gradient_comes_through_a_range(scheme):
    _, gradient = both(lambda x: fake_quantize(x, scheme(*min_max(x), bits=4)), W.ravel())
    np.testing.assert_array_equal(gradient, np.arange(1, W.size + 1))


@pytest.mark.parametrize("narrow", [False, True])
@pytest.mark.parametrize("bits", [3, 8])
def test_fake_quantize_equals_tensorflow(narrow, bits):
    """Theirs rounds ties up, and gives no gradient in the half step that our last bins reach further."""
    import tensorflow as tf

    low, high = (-2.0, 2.0) if narrow else (-1.0, 2.3)
    quantizer = (symmetric if narrow else affine)(np.float32(low), np.float32(high), bits)
    ends = sorted(float(quantizer.dequantize(q)) for q in (quantizer.q_min, quantizer.q_max))
    x = W.ravel()
    step = float(quantizer.scale)
    x = x[((x >= ends[0]) & (x <= ends[1])) | (x < ends[0] - step) | (x > ends[1] + step)]
    results = []
    for call in (
        lambda x: fake_quantize(x, quantizer),
        lambda x: tf.quantization.fake_quant_with_min_max_vars(x, low, high, bits, narrow),
    ):
        with tf.GradientTape() as tape:
            tape.watch(v := tf.constant(x))
            y = call(v)
        results.append((y, tape.gradient(y, v)))
    (ours, gradient), (theirs, their_gradient) = results
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_array_equal(gradient, their_gradient)
    assert len(x) > 50 and 0 < np.mean(gradient) < 1


FORMULAS = {
    "symmetric": lambda w: fake_quantize(w, symmetric(*min_max(w, axis=0), bits=4)),
    "affine": lambda w: fake_quantize(w, affine(*min_max(w, axis=(0, -1)), bits=3)),
    "percentile": lambda w: fake_quantize(w, affine(*Q.percentile(w, 0.9), bits=4)),
    "least squares": lambda w: fake_quantize(w, symmetric(*least_squares(w, 3, axis=0), bits=3)),
    "groups": lambda w: fake_quantize(
        Q.in_groups(w, 6), affine(*min_max(Q.in_groups(w, 6), axis=(0, 1)), bits=3)
    ),
    "bias": lambda w: Q.bias_correction(w, fake_quantize(w, affine(*min_max(w), bits=3)), axis=1),
    "equal": lambda w: Q.equalising_factors(w, w[:, :4]),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_every_kind_of_array_computes_the_same(name):
    formula = FORMULAS[name]
    expected = formula(W)
    assert expected.dtype == np.float32
    for kind in KINDS.values():
        result = formula(kind(W))
        assert type(result) is type(kind(W)) and result.dtype == kind(W).dtype
        np.testing.assert_allclose(result, expected, atol=1e-6)
    if name == "equal":  # asks for values
        return
    graph = compiled(formula)(W)
    assert graph.dtype == "float32"
    np.testing.assert_allclose(graph, expected, atol=1e-5)


@every_scheme
def test_gradients_are_the_same_in_tensorflow(scheme):
    import tensorflow as tf

    def call(w):
        return fake_quantize(w, scheme(*(b / 2 for b in min_max(w, axis=0)), bits=3))

    v, (_, expected) = tf.constant(W), both(call, W)

    @tf.function
    def graph(v):
        with tf.GradientTape() as tape:
            tape.watch(v)
            y = call(v) * tf.reshape(tf.range(1.0, v.shape.num_elements() + 1), v.shape)
        return tape.gradient(y, v)

    np.testing.assert_array_equal(graph(v), expected)


@every_scheme
@given(x=some_numbers, bits=st.integers(2, 16))
def test_an_error_is_at_most_half_a_step(scheme, x, bits):
    quantizer = scheme(*min_max(x), bits)
    assert np.abs(fake_quantize(x, quantizer) - x).max() <= quantizer.scale / 2 * (1 + 1e-9)


@every_scheme
@given(x=some_numbers, bits=st.integers(2, 16), shrink=st.floats(0.1, 1))
def test_zero_is_exact_and_integers_fit(scheme, x, bits, shrink):
    low, high = min_max(x)
    quantizer = scheme(shrink * low, shrink * high, bits)
    assert fake_quantize(0.0 * x, quantizer).tolist() == [0] * len(x)
    q = quantizer.quantize(x)
    assert (q == np.round(q)).all() and -(2 ** (bits - 1)) <= q.min() and q.max() < 2 ** (bits - 1)
    assert quantizer.zero_point == np.round(quantizer.zero_point)
    if scheme is symmetric:
        np.testing.assert_array_equal(-fake_quantize(x, quantizer), fake_quantize(-x, quantizer))


@every_scheme
@given(x=some_numbers, bits=st.integers(2, 16), shrink=st.floats(0.1, 1))
def test_what_is_quantized_stays(scheme, x, bits, shrink):
    low, high = min_max(x)
    quantizer = scheme(shrink * low, shrink * high, bits)
    once = fake_quantize(x, quantizer)
    np.testing.assert_array_equal(quantizer.quantize(once), quantizer.quantize(x))
    np.testing.assert_array_equal(fake_quantize(once, quantizer), once)


def test_groups_are_neighbours_in_a_row():
    w = np.arange(2 * 4 * 3.0).reshape(2, 4, 3)
    groups = Q.in_groups(w, 6)
    np.testing.assert_array_equal(groups[:, 1], [[6, 7, 8, 9, 10, 11], [18, 19, 20, 21, 22, 23]])
    low, high = min_max(groups, axis=(0, 1))
    assert low.shape == (2, 2, 1) and high[0, 0] == 5


# --- ranges --------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("axis", [None, 0, 1, -1, (0, 1), (0, -1)])
def test_min_max_of_channels(kind, axis):
    low, high = min_max(kind(W), axis)
    kept = [] if axis is None else [one % 3 for one in np.atleast_1d(axis)]
    slices = itertools.product(*(range(W.shape[one]) for one in kept))
    for place in slices:
        index = [slice(None)] * 3
        for one, i in zip(kept, place, strict=True):
            index[one] = slice(i, i + 1)
        bounds = [np.broadcast_to(np.asarray(b), W.shape)[tuple(index)] for b in (low, high)]
        assert (bounds[0] == W[tuple(index)].min()).all() and (bounds[1] == W[tuple(index)].max()).all()


def slow_percentile(x, share):
    """Drop the outermost numbers, from both sides or, where none is negative, from the top."""
    x = sorted(x)
    drop = round((1 - share) * (len(x) - 1) / (1 if x[0] >= 0 else 2))
    return x[0 if x[0] >= 0 else drop], x[len(x) - 1 - drop]


@every_kind
@pytest.mark.parametrize("share", [0.5, 0.9, 0.99, 0.999, 1.0])
@pytest.mark.parametrize("x", [W, abs(W), np.maximum(W, 0), np.float32([[5.0, 3.0]])], ids=range(4))
def test_percentiles(kind, x, share):
    result = [float(bound) for bound in Q.percentile(kind(x), share)]
    assert result == list(slow_percentile(x.ravel().tolist(), share))


def test_percentiles_of_numpy():
    x = np.random.default_rng(0).normal(size=10_001)
    np.testing.assert_array_equal(Q.percentile(x, 0.99), np.quantile(x, [0.005, 0.995], method="nearest"))
    np.testing.assert_array_equal(Q.percentile(x**2, 0.99)[1], np.quantile(x**2, 0.99, method="nearest"))


def error(x, quantizer):
    return np.mean((fake_quantize(x, quantizer) - x) ** 2)


@every_scheme
@pytest.mark.parametrize("bits", [2, 4])
def test_least_squares_is_the_best_share_of_each_channel(scheme, bits):
    low, high = least_squares(W, bits, scheme, axis=0)
    shares = np.linspace(1, 1 / 80, 80)
    for channel, bounds in zip(W, zip(low, high, strict=True), strict=True):
        errors = [error(channel, scheme(s * channel.min(), s * channel.max(), bits)) for s in shares]
        assert error(channel, scheme(*bounds, bits)) == pytest.approx(min(errors), rel=1e-4)
        assert bounds[1].item() == pytest.approx(shares[np.argmin(errors)] * channel.max(), rel=1e-5)


@every_scheme
@given(x=some_numbers, bits=st.integers(2, 6))
def test_least_squares_is_no_worse_than_min_max(scheme, x, bits):
    best = error(x, scheme(*least_squares(x, bits, scheme), bits))
    assert best <= error(x, scheme(*min_max(x), bits)) * (1 + 1e-9)


@given(x=some_numbers, bits=st.sampled_from([(2, 3), (2, 4), (2, 7), (3, 5), (3, 7), (4, 7)]))
def test_levels_that_hold_the_others_are_no_worse(x, bits):
    """Not for any two numbers of bits: of 3 levels 2 lie between those of 4 bits."""
    few, many = (error(x, symmetric(*least_squares(x, b), b)) for b in bits)
    assert many <= few * (1 + 1e-9) + 1e-18


def test_more_bits_can_be_worse():
    x = np.array([-1.0, -1 / 3, 1 / 3, 1.0])
    assert error(x, symmetric(*least_squares(x, 3), 3)) < 1e-30 < error(x, symmetric(*least_squares(x, 4), 4))


@given(w=arrays("float64", (3, 5), elements=st.floats(0.1, 100)))
def test_a_step_of_a_channel_is_no_wider_than_that_of_all(w):
    whole, each = symmetric(*min_max(w), bits=4), symmetric(*min_max(w, axis=0), bits=4)
    assert (each.scale <= whole.scale).all()
    assert (abs(fake_quantize(w, each) - w) <= whole.scale / 2 * (1 + 1e-9)).all()


def slow_divergence(counts, kept, levels):
    inside, p, q = counts[:kept], [0.0] * kept, [0.0] * kept
    for i in range(kept):
        p[i] = float(inside[i])
    p[-1] += sum(counts[kept:])
    for level in range(levels):
        bins = range(level * kept // levels, (level + 1) * kept // levels)
        filled = [i for i in bins if inside[i] > 0]
        for i in filled:
            q[i] = sum(inside[j] for j in bins) / len(filled)
    if not sum(q):
        return math.inf
    p, q = ([a / sum(v) for a in v] for v in (p, q))
    if any(a and not b for a, b in zip(p, q, strict=True)):
        return math.inf
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


NORMAL = np.random.default_rng(0).normal(size=5_000)
TAILS = {"normal": NORMAL, "cubed": NORMAL**3, "relu": np.maximum(NORMAL, 0), "one": np.append(NORMAL, 40.0)}


@pytest.mark.parametrize("name", TAILS)
@pytest.mark.parametrize("bits", [2, 4])
def test_kullback_leibler_against_plain_loops(name, bits):
    x, bins = TAILS[name], 96
    levels = 2**bits if x.min() >= 0 else 2 ** (bits - 1)
    counts = np.zeros(bins)
    for value in abs(x):
        counts[min(int(value / abs(x).max() * bins), bins - 1)] += 1
    counts[0] = counts[1]
    divergences = [slow_divergence(counts, kept, levels) for kept in range(levels, bins + 1)]
    low, high = Q.kullback_leibler(x, bits, bins)
    best = (levels + np.argmin(divergences)) / bins * abs(x).max()
    assert high == pytest.approx(best, rel=1e-9) and low == (0 if x.min() >= 0 else -high)
    assert high < abs(x).max()


def test_kullback_leibler_takes_tensors():
    expected = Q.kullback_leibler(NORMAL, 4, bins=64)
    for kind in KINDS.values():
        np.testing.assert_allclose(Q.kullback_leibler(kind(NORMAL), 4, bins=64), expected)


@pytest.mark.parametrize("name", ["normal", "laplace"])
def test_kullback_leibler_is_near_that_of_onnxruntime(name):
    """Theirs keeps the bin at zero, adds what does not divide to the last level and smooths empty bins.

    Where the tails are dense the two agree; with a few numbers far out they may differ by half.
    """
    calibrate = pytest.importorskip("onnxruntime.quantization.calibrate")
    draw, bins = np.random.default_rng(0), 1025
    x = getattr(draw, name)(size=20_000)
    top = abs(x).max()
    histogram = np.histogram(x, bins, range=(-top, top))
    collector = calibrate.HistogramCollector("entropy", True, bins, 255, None, None)
    theirs = collector.get_entropy_threshold((*histogram, x.min(), x.max()), 255)
    assert Q.kullback_leibler(x, 8, bins // 2)[1] == pytest.approx(theirs[1], rel=0.2)


# --- repairs -------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("axis", [1, -1])
def test_corrected_biases_shift_nothing(kind, axis):
    y = np.random.default_rng(1).normal(size=(50, 4, 3))
    y_hat = y + np.arange(12).reshape(4, 3) + 0.1 * y**2
    shift = Q.bias_correction(kind(y), kind(y_hat), axis)
    others = (0, 2) if axis == 1 else (0, 1)
    corrected = y_hat + np.reshape(np.asarray(shift), (4, 1) if axis == 1 else (1, 3))
    np.testing.assert_allclose(corrected.mean(others), y.mean(others), atol=1e-12)


@every_kind
@pytest.mark.parametrize("rest", [(), (3,), (3, 2)])
def test_equalised_ranges(kind, rest):
    draw = np.random.default_rng(0)
    w1 = draw.normal(size=(5, 7, *rest)) * np.reshape(10.0 ** np.arange(5), (5, 1, *[1] * len(rest)))
    w2 = draw.normal(size=(4, 5, *rest))
    s = np.asarray(Q.equalising_factors(kind(w1), kind(w2)))
    range1 = np.abs(w1).reshape(5, -1).max(1) / s
    range2 = np.abs(w2).swapaxes(0, 1).reshape(5, -1).max(1) * s
    np.testing.assert_allclose(range1, range2)
    if not rest:
        b, x = draw.normal(size=5), draw.normal(size=(20, 7))
        y = np.maximum(x @ w1.T + b, 0) @ w2.T
        even = np.maximum(x @ (w1 / s[:, None]).T + b / s, 0) @ (w2 * s).T
        np.testing.assert_allclose(even, y)


# --- weight sharing ------------------------------------------------------------------------------


@pytest.mark.parametrize("name, bits", [("normal", 2), ("normal", 3), ("uniform", 3), ("uniform", 5)])
def test_a_codebook_is_that_of_scikit_learn(name, bits):
    w = NORMAL[:2_000] if name == "normal" else np.random.default_rng(0).uniform(-1, 2, 2_000)
    codebook, codes = Q.share_weights(w.reshape(50, 40), bits)
    start, step = np.linspace(w.min(), w.max(), 2**bits)[:, None], (w.max() - w.min()) / 2**bits
    theirs = KMeans(2**bits, init=start, n_init=1, tol=0, max_iter=10_000).fit(w[:, None])
    np.testing.assert_allclose(codebook, np.sort(theirs.cluster_centers_.ravel()), atol=0.05 * step)
    assert np.mean((codebook[codes].ravel() - w) ** 2) == pytest.approx(theirs.inertia_ / len(w), rel=1e-3)
    assert np.mean((start.ravel()[codes.ravel()] - w) ** 2) > np.mean((codebook[codes].ravel() - w) ** 2)


@given(w=some_numbers.filter(lambda w: w.min() < w.max()), bits=st.integers(2, 5))
def test_each_weight_takes_the_nearest_number(w, bits):
    codebook, codes = Q.share_weights(w, bits)
    assert codebook.shape == (2**bits,) and (np.diff(codebook) >= 0).all() and codes.shape == w.shape
    distance = abs(codebook[:, None] - w)
    tolerance = 1e-9 * (w.max() - w.min())
    assert (abs(codebook[codes] - w) <= distance.min(0) + tolerance).all()
    for k in np.unique(codes):
        assert codebook[k] == pytest.approx(w[codes == k].mean(), abs=2e-3 * (w.max() - w.min()) / 2**bits)


def test_codebooks_keep_the_dtype_and_fit_few_numbers_exactly():
    codebook, codes = Q.share_weights(np.float32([[0, 1, 2], [3, 3, 0]]), bits=2)
    assert codebook.dtype == np.float32 and codebook[codes].tolist() == [[0, 1, 2], [3, 3, 0]]


counted = st.lists(st.integers(0, 1_000), min_size=1, max_size=40).filter(any)


@given(counts=counted)
def test_huffman_is_within_a_bit_of_the_entropy(counts):
    lengths, p = Q.huffman_lengths(counts), np.array(counts) / sum(counts)
    assert ((lengths > 0) == (np.array(counts) > 0)).all()
    used = lengths[lengths > 0]
    mean, least = (p * lengths).sum(), Q.entropy(counts)
    if len(used) == 1:
        assert used.tolist() == [1] and least == 0
        return
    assert least - 1e-9 <= mean < least + 1
    assert sum(Fraction(1, 2 ** int(n)) for n in used) == 1  # Kraft: a code without gaps
    for (a, n), (b, m) in itertools.permutations(zip(counts, lengths.tolist(), strict=True), 2):
        assert not (a > b > 0) or n <= m


@given(counts=st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_no_code_is_shorter_than_huffmans(counts):
    mean = (np.array(counts) * Q.huffman_lengths(counts)).sum()
    for lengths in itertools.product(range(1, 5), repeat=len(counts)):
        if sum(2.0**-n for n in lengths) <= 1:
            assert mean <= np.dot(counts, lengths)


def test_huffman_by_hand():
    assert Q.huffman_lengths([45, 13, 12, 16, 9, 5]).tolist() == [1, 3, 3, 3, 4, 4]  # Cormen et al.
    assert Q.huffman_lengths(np.array([0, 7])).tolist() == [0, 1]
    assert Q.huffman_lengths([1, 1, 1, 1]).tolist() == [2, 2, 2, 2]


@given(counts=counted)
def test_entropy(counts):
    assert Q.entropy(counts) == pytest.approx(scipy_entropy(counts, base=2), abs=1e-12)
    p = [c / sum(counts) for c in counts if c]
    assert Q.entropy(np.array(counts)) == pytest.approx(-sum(a * math.log2(a) for a in p), abs=1e-9)


# --- integers only -------------------------------------------------------------------------------


def layer(per_channel, seed=0):
    """Return the arrays of a layer with a range for everything, and ReLU-like, uneven inputs."""
    draw = np.random.default_rng(seed)
    inputs, w, b = draw.gamma(1, 1, size=(40, 30)) - 0.5, draw.normal(size=(7, 30)), draw.normal(size=7)
    w *= np.geomspace(1, 50, 7)[:, None]
    y = inputs @ w.T + b
    x_q, y_q = affine(*min_max(inputs), bits=8), affine(*min_max(0.9 * y), bits=8)
    w_q = symmetric(*min_max(w, axis=0 if per_channel else None), bits=8)
    return inputs, w, b, x_q, w_q, y_q


@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_give_what_floats_give(per_channel):
    inputs, w, b, x_q, w_q, y_q = layer(per_channel)
    q_x, q_w = x_q.quantize(inputs).astype("int8"), w_q.quantize(w).astype("int8")
    q_y = Q.integer_linear(q_x, q_w, b, x_q, w_q, y_q)
    assert q_y.dtype == np.int8 and q_y.shape == (40, 7) and int(x_q.zero_point) != 0
    y = x_q.dequantize(q_x.astype(float)) @ w_q.dequantize(q_w.astype(float)).T + b
    expected = y_q.quantize(y)
    assert abs(q_y - expected).max() <= 1 and (q_y == expected).mean() > 0.99
    assert (q_y == 127).any() and (q_y == -128).any()


@pytest.mark.parametrize("per_channel", [False, True])
def test_integers_are_those_of_exact_arithmetic(per_channel):
    inputs, w, b, x_q, w_q, y_q = layer(per_channel, seed=1)
    q_x, q_w = x_q.quantize(inputs).astype("int8"), w_q.quantize(w).astype("int8")
    q_y = Q.integer_linear(q_x, q_w, b, x_q, w_q, y_q)
    scales = np.broadcast_to(np.ravel(w_q.scale), 7).tolist()
    for n, j in itertools.product(range(40), range(7)):
        step = float(x_q.scale) * scales[j]
        products = zip(q_x[n].tolist(), q_w[j].tolist(), strict=True)
        a = sum((int(q) - int(x_q.zero_point)) * int(v) for q, v in products) + round(b[j] / step)
        m, places = Q.fixed_point(step / float(y_q.scale))
        exact = math.floor(Fraction(a * m, 2**places) + Fraction(1, 2)) + int(y_q.zero_point)
        assert q_y[n, j] == min(max(exact, -128), 127)


@given(factor=st.floats(2**-32, 2**30, exclude_max=True))
def test_a_factor_as_an_integer(factor):
    m, n = Q.fixed_point(factor)
    assert isinstance(m, int) and 2**30 <= m < 2**31 and 1 <= n <= 62
    assert abs(Fraction(m, 2**n) / Fraction(factor) - 1) <= Fraction(1, 2**30)
    assert [v.tolist() for v in Q.fixed_point(np.array([factor, 0.75]))] == [[m, 1610612736], [n, 31]]


accumulators = st.integers(-(2**31), 2**31 - 1)


@given(a=st.lists(accumulators, min_size=1), factor=st.floats(2**-32, 1))
def test_rescaling_is_exact(a, factor):
    m, n = Q.fixed_point(factor)
    exact = [math.floor(Fraction(one * m, 2**n) + Fraction(1, 2)) for one in a]
    assert Q.rescale(np.array(a, np.int32 if max(map(abs, a)) < 2**31 else np.int64), m, n).tolist() == exact


def test_ties_go_up():
    assert Q.rescale(np.array([-3, -2, -1, 0, 1, 2, 3]), *Q.fixed_point(0.5)).tolist() == [
        -1,
        -1,
        0,
        0,
        1,
        1,
        2,
    ]
    assert Q.fixed_point(1 - 2**-40) == (2**31 - 1, 31)


# --- bad input -----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite(kind, bad):
    x = kind(np.array([[1.0, bad]]))
    good = kind(np.array([[1.0, 1.0]]))
    for call in (
        lambda: min_max(x),
        lambda: min_max(x, axis=0),
        lambda: Q.percentile(x),
        lambda: least_squares(x, 4),
        lambda: Q.kullback_leibler(x, 4),
        lambda: Q.bias_correction(x, good, 1),
        lambda: Q.bias_correction(good, x, 1),
        lambda: Q.equalising_factors(x, kind(np.ones((2, 1)))),
        lambda: Q.equalising_factors(good, kind(np.array([[bad]]))),
    ):
        with pytest.raises(ValueError, match="not finite"):
            call()
    with pytest.raises(ValueError, match="is no range"):
        symmetric(kind(np.float64(-1)), kind(np.float64(bad)), 4)


@every_kind
@pytest.mark.parametrize(
    "call", [min_max, Q.percentile, lambda x: least_squares(x, 4), lambda x: Q.kullback_leibler(x, 4)]
)
def test_nothing_at_all(kind, call):
    with pytest.raises(ValueError, match="not a single number"):
        call(kind(np.zeros((0, 3))))


@every_kind
@every_scheme
def test_zeros_have_no_range(kind, scheme):
    w = kind(np.array([[0.0, 0.0], [1.0, 2.0]], "float32"))
    for call in (
        lambda: scheme(*min_max(w, axis=0), bits=4),
        lambda: scheme(*min_max(0 * w), bits=4),
        lambda: least_squares(w, 4, scheme, axis=0),
        lambda: Q.kullback_leibler(0 * w, 4),
    ):
        with pytest.raises(ValueError, match="a range is the single number 0"):
            call()


BAD_BITS = [1, 0, -8, 17, 3.5, True, "8", None, math.nan, math.inf]
X, W8, Y = affine(0.0, 1.0, 8), symmetric(-1.0, 1.0, 8), affine(-1.0, 1.0, 8)
INTS = np.ones((1, 2), "int8"), np.ones((1, 2), "int8"), np.zeros(1)


@pytest.mark.parametrize(
    "call, named",
    [
        *((lambda b=b: symmetric(-1.0, 1.0, b), r"bits=.* a whole number in \[2, 16\]") for b in BAD_BITS),
        *((lambda b=b: affine(-1.0, 1.0, b), r"bits=.* \[2, 16\]") for b in BAD_BITS),
        *((lambda b=b: least_squares(W, b), r"bits=") for b in BAD_BITS),
        *((lambda b=b: Q.kullback_leibler(W, b), r"bits=.* \[2, 8\]") for b in [*BAD_BITS, 9]),
        *((lambda b=b: Q.share_weights(W, b), r"bits=.* \[2, 8\]") for b in [*BAD_BITS, 9]),
        (lambda: symmetric(1.0, -1.0, 8), r"low=1\.0, high=-1\.0 is no range"),
        (lambda: affine(np.array([0.0, 2.0]), np.array([1.0, 1.0]), 8), "is no range"),
        (lambda: symmetric(0.0, 0.0, 8), "single number 0"),
        (lambda: min_max(W, axis=3), r"axis=3 .* in \[-3, 2\]"),
        (lambda: min_max(W, axis=(0, -4)), "axis=-4"),
        (lambda: min_max(W, axis=True), "axis=True"),
        (lambda: min_max(W, axis="0"), "axis='0'"),
        (lambda: least_squares(W, 4, axis=1.5), "axis=1.5"),
        *(
            (lambda s=s: Q.percentile(W, s), r"share=.* in \(0, 1\]")
            for s in (0, 1.1, -1, math.nan, "1", True)
        ),
        *((lambda s=s: Q.in_groups(W, s), r"size=.* a divisor of 18") for s in (0, 4, 36, 1.5, -6, True)),
        (lambda: Q.bias_correction(W, W[:1], 1), r"y_hat has the shape \(1, 6, 3\): y has \(4, 6, 3\)"),
        (lambda: Q.bias_correction(W, W, 3), "axis=3"),
        (lambda: Q.bias_correction(W[:0], W[:0], 1), "not a single number"),
        (lambda: Q.equalising_factors(W, W), "w2 takes 6 channels: w1 gives 4"),
        (lambda: Q.equalising_factors(W, np.ones(4)), "w2 has the shape"),
        (lambda: Q.equalising_factors(np.eye(3)[:2], np.eye(2) * [0, 1]), "a channel of zeros"),
        (lambda: Q.equalising_factors(np.eye(2) * [0, 1], np.eye(2)), "a channel of zeros"),
        (lambda: Q.share_weights(np.ones(3), 4), "nothing but 1"),
        (lambda: Q.share_weights(np.array([1.0, np.nan]), 4), "not finite"),
        (lambda: Q.share_weights(np.array([]), 4), "not a single number"),
        *(
            (lambda c=c: Q.entropy(c), "counts=.* not all 0")
            for c in ([], [0, 0], [1, -1, 2], [[1]], [math.nan])
        ),
        *((lambda c=c: Q.huffman_lengths(c), "counts=") for c in ([], [0], [2, -1], [[1, 2]], [math.nan])),
        *(
            (lambda f=f: Q.fixed_point(f), r"factor=.* \[2\*\*-32")
            for f in (0.0, -1.0, 2.0**30, 1e-12, math.nan)
        ),
        (lambda: Q.fixed_point(np.array([0.5, 0.0])), "factor="),
        (lambda: Q.integer_linear(*INTS, X, affine(-1.0, 0.5, 8), Y), r"w has the zero point .*symmetric"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
