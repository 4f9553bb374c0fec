r"""Quantization, as in chapter 3.5: which few numbers stand for the weights, and what that costs.

Arrays may be of NumPy, PyTorch or TensorFlow, but for histograms, codebooks and integers, which are NumPy's.
The modules ``quantization_torch`` and ``quantization_keras`` of :mod:`dlopt_helpers.bridges` put the
quantizers into models.
"""

import heapq
import numbers
from dataclasses import dataclass

import autoray
import numpy as np
from autoray import numpy as anp
from scipy.stats import entropy as relative_entropy

from dlopt_helpers._require import (
    is_tensor,
    refuse,
    require,
    require_array,
    require_kind,
    require_one,
    require_whole,
)

# --- quantizers ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantizer:
    r"""Evenly spaced numbers, each named by an integer.

    .. math::

       q = \mathrm{clip}\bigl(\mathrm{round}(x / \Delta) + z,\ q_\min,\ q_\max\bigr), \qquad
       \hat x = \Delta\,(q - z)

    :func:`symmetric` and :func:`affine` make one for a range. ``scale`` and ``zero_point`` are numbers, or
    arrays that broadcast against what is quantized: one for each channel or group.

    Args:
      scale: :math:`\Delta > 0`, the distance of two neighbours, in units of ``x``.
      zero_point: :math:`z`, the integer that stands for 0.
      q_min: the smallest integer.
      q_max: the largest integer.

    Raises:
      ValueError: if ``scale`` is not above 0, another field is no whole number, or ``q_min`` above ``q_max``.

    References:
      Jacob et al. 2018, "Quantization and training of neural networks for efficient
      integer-arithmetic-only inference".
    """

    scale: object
    zero_point: object
    q_min: int
    q_max: int

    def __post_init__(self):
        require("scale", self.scale, "a finite number > 0", lambda s: s > 0)
        require("zero_point", self.zero_point, "a whole number", lambda z: z % 1 == 0)
        for name in ("q_min", "q_max"):
            require_one(name, getattr(self, name), "a whole number", lambda q: q % 1 == 0)
        if self.q_min > self.q_max:
            raise ValueError(f"q_min={self.q_min} is not allowed: it must be at most q_max={self.q_max}")

    def quantize(self, x):
        """Return the integers, as numbers of the dtype of ``x``."""
        _require_numbers("x", x)
        return anp.clip(_round(x / self.scale) + self.zero_point, self.q_min, self.q_max)

    def dequantize(self, q):
        """Return the numbers that the integers ``q`` stand for."""
        _require_numbers("q", q)
        return self.scale * (q - self.zero_point)


def symmetric(low, high, bits):
    r"""Return the quantizer whose zero is the integer 0, as is usual for weights.

    .. math:: \Delta = \frac{\max(|low|, |high|)}{2^{b-1} - 1}, \qquad z = 0, \qquad
       q_\max = -q_\min = 2^{b-1} - 1

    One of the :math:`2^b` integers stays unused, so that each number has its opposite; two bits mean
    -1, 0 and 1.

    Args:
      low: the lowest number to be represented, or an array of them.
      high: the highest.
      bits: :math:`b`, a whole number in [2, 16].

    Raises:
      ValueError: if a range is not finite, empty or the single number 0, or ``bits`` is not allowed.

    Example:
      >>> quantizer = symmetric(-1.0, 0.5, bits=3)
      >>> float(quantizer.dequantize(quantizer.quantize(np.array(0.4))).round(3))
      0.333
    """
    bits = require_whole("bits", bits, 2, 16)
    _require_range(low, high)
    q_max = 2 ** (bits - 1) - 1
    return Quantizer(_larger(-low, high) / q_max, 0, -q_max, q_max)


def affine(low, high, bits):
    r"""Return the quantizer that spends all its integers between ``low`` and ``high``, zero among them.

    .. math:: \Delta = \frac{high - low}{2^b - 1}, \qquad z = q_\min - \mathrm{round}(low / \Delta), \qquad
       q_\min = -2^{b-1}, \qquad q_\max = 2^{b-1} - 1

    A range without 0 is widened until it has it: padding, ReLU and pruned weights need an exact zero.

    Args, and what is raised: those of :func:`symmetric`.

    Example:
      >>> quantizer = affine(0.0, 6.0, bits=8)
      >>> int(quantizer.zero_point), float(quantizer.dequantize(127.0))
      (-128, 6.0)
    """
    bits = require_whole("bits", bits, 2, 16)
    _require_range(low, high)
    low, high = -_larger(-low, 0 * low), _larger(high, 0 * high)
    q_min, q_max = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    scale = (high - low) / (q_max - q_min)
    return Quantizer(scale, q_min - _round(low / scale), q_min, q_max)


def fake_quantize(x, quantizer):
    r"""Return what is left of ``x`` after quantization, with a gradient that training can use.

    .. math:: \hat x = \Delta\,(q(x) - z), \qquad
       \frac{\partial \hat x}{\partial x} := \begin{cases} 1 & q_\min \le \mathrm{round}(x/\Delta) + z \le
       q_\max \\ 0 & \text{else} \end{cases}

    The true derivative of a staircase is 0 almost everywhere and would stop all learning. The
    straight-through estimator passes the gradient on as if there were no stairs; where ``x`` is clipped it
    passes nothing.

    Args:
      x: an array.
      quantizer: a :class:`Quantizer`.

    Raises:
      ValueError: if ``x`` is no array of finite numbers (those of a tensor pass), or ``quantizer`` none.

    Example:
      >>> fake_quantize(np.array([0.2, 0.4, 7.0]), symmetric(-1.0, 1.0, bits=2))
      array([0., 0., 1.])

    References:
      Bengio, Léonard and Courville 2013, "Estimating or propagating gradients through stochastic neurons".
    """
    require_kind("quantizer", quantizer, Quantizer, "a Quantizer")
    _require_numbers("x", x)
    q = _round(x / quantizer.scale) + quantizer.zero_point
    clipped = anp.clip(q, quantizer.q_min, quantizer.q_max)
    passed = anp.where(q == clipped, x, anp.stop_gradient(x))
    # The difference is exactly 0, so that what comes out is exactly a level.
    return anp.stop_gradient(quantizer.dequantize(clipped)) + (passed - anp.stop_gradient(passed))


def in_groups(w, size):
    """Return the weights as ``(outputs, groups, size)``: neighbours in a row that share a scale.

    A range over ``axis=(0, 1)`` of the result is then one for each group.

    Args:
      w: weights whose first axis is that of the outputs (PyTorch's layout).
      size: a divisor of the number of weights of an output.

    Raises:
      ValueError: if ``size`` is no such divisor.

    Example:
      >>> in_groups(np.zeros((10, 25, 3)), size=15).shape
      (10, 5, 15)
    """
    require_array("w", w, "an array of numbers", finite=False)
    if not len(w.shape):
        raise ValueError("w has no axis: the first must be that of the outputs")
    row = int(np.prod(w.shape[1:]))
    allowed = f"a divisor of {row}, the weights of an output"
    require_one("size", size, allowed, lambda s: s >= 1 and s % 1 == 0 and row and row % s == 0)
    size = int(size)
    return anp.reshape(w, (w.shape[0], row // size, size))


# --- the range -----------------------------------------------------------------------------------


def min_max(x, axis=None):
    """Return the lowest and the highest number: nothing is clipped.

    Args:
      x: an array of finite numbers.
      axis: the axis of the channels, or a tuple of axes, each index of which has its own range; None for
        one range over all.

    Returns:
      ``(low, high)``, arrays that broadcast against ``x``.

    Raises:
      ValueError: if ``x`` is empty or not finite, or has no such axis.

    Example:
      >>> low, high = min_max(np.array([[1.0, 2.0], [-3.0, 5.0]]), axis=0)
      >>> low.ravel(), high.ravel()
      (array([ 1., -3.]), array([2., 5.]))
    """
    over = {"axis": _others("x", x, axis), "keepdims": axis is not None}
    return anp.min(x, **over), anp.max(x, **over)


def percentile(x, share=0.999):
    """Return the range that holds the middle ``share`` of the numbers, and clips the rest.

    Where no number is negative, as after a ReLU, only the highest are clipped.

    Args:
      x: an array of finite numbers.
      share: in (0, 1].

    Raises:
      ValueError: if ``x`` is empty or not finite, or ``share`` is not allowed.

    Example:
      >>> [float(bound) for bound in percentile(np.arange(-100, 101), share=0.98)]
      [-98.0, 98.0]
    """
    require_one("share", share, "a number in (0, 1]", lambda s: (s > 0) & (s <= 1))
    _others("x", x, None)
    ordered = anp.sort(anp.ravel(x))
    last = anp.size(x) - 1
    all_cut = round((1 - share) * last)
    half = round((1 - share) * last / 2)
    one_sided = ordered[0] >= 0
    low = anp.where(one_sided, ordered[0], ordered[half])
    return low, anp.where(one_sided, ordered[last - all_cut], ordered[last - half])


def least_squares(x, bits, scheme=symmetric, axis=None):
    r"""Return the range with the smallest mean squared error, of 80 shares of the full one.

    .. math:: \min_{0 < c \le 1} \sum_i \bigl(x_i - \hat x_i(c \cdot low,\, c \cdot high)\bigr)^2

    A narrow range rounds finely and clips much, a wide one clips nothing and rounds coarsely.

    Args:
      x: an array of finite numbers.
      bits: as for ``scheme``.
      scheme: :func:`symmetric` or :func:`affine`.
      axis: as in :func:`min_max`.

    Raises:
      ValueError: as :func:`min_max` and ``scheme``.

    Example:
      >>> x = np.concatenate([np.linspace(-1, 1, 1001), [10.0]])
      >>> low, high = least_squares(x, bits=3)
      >>> float(min_max(x)[1]), round(float(high), 3)
      (10.0, 0.875)
    """
    if scheme is not symmetric and scheme is not affine:
        refuse("scheme", scheme, "symmetric or affine")
    low, high = min_max(x, axis)
    over = {"axis": _others("x", x, axis), "keepdims": axis is not None}
    best, least = 0 * high + 1, None
    for share in np.linspace(1, 1 / 80, 80).tolist():
        quantizer = scheme(share * low, share * high, bits)
        error = anp.mean((x - quantizer.dequantize(quantizer.quantize(x))) ** 2, **over)
        least = error if least is None else least
        best = anp.where(error < least, 0 * best + share, best)
        least = anp.where(error < least, error, least)
    return best * low, best * high


def kullback_leibler(x, bits, bins=2048):
    r"""Return the range after which the histogram looks most like the one before.

    .. math:: \min_t\ \mathrm{KL}\bigl(p_t\,\|\,q_t\bigr)

    :math:`p_t` is the histogram of :math:`|x|` with all beyond :math:`t` counted in its last bin,
    :math:`q_t` the one within :math:`t` with its bins joined into the :math:`2^{b-1}` levels (:math:`2^b`
    where no number is negative), each spread over those of its bins that hold anything.

    Zeros are exact within any range, and half of what a ReLU passes on are zeros: so many would outvote all
    else. The first bin therefore counts as much as the second one.

    Args:
      x: an array of finite numbers.
      bits: a whole number in [2, 8].
      bins: of the histogram.

    Raises:
      ValueError: if ``x`` is empty, not finite or all zeros, or ``bits`` or ``bins`` is not allowed.

    Example:
      >>> x = np.random.default_rng(0).normal(size=10_000)
      >>> low, high = kullback_leibler(x, bits=4)
      >>> bool(-low == high < abs(x).max())
      True

    References:
      Migacz 2017, "8-bit inference with TensorRT".
    """
    bits = require_whole("bits", bits, 2, 8)
    low, high = min_max(x)
    if low == high == 0:
        raise ValueError("a range is the single number 0: x must hold another")
    x = np.ravel(autoray.to_numpy(x))
    one_sided = x.min() >= 0
    levels = 2**bits if one_sided else 2 ** (bits - 1)
    bins = require_whole("bins", bins, levels)
    counts, edges = np.histogram(abs(x), bins, range=(0, abs(x).max()))
    counts[0] = counts[1]
    kept = min(range(levels, bins + 1), key=lambda kept: _divergence(counts, kept, levels))
    return (0.0 if one_sided else -edges[kept]), edges[kept]


def _divergence(counts, kept, levels):
    """Return how far a histogram is from itself with ``kept`` bins joined into ``levels``."""
    p = counts[:kept].astype(float)
    starts = np.arange(levels) * kept // levels
    widths = np.diff(np.append(starts, kept))
    filled = np.add.reduceat(p > 0, starts, dtype=float)
    q = np.repeat(np.add.reduceat(p, starts) / np.maximum(filled, 1), widths) * (p > 0)
    p[-1] += counts[kept:].sum()
    return relative_entropy(p, q) if q.any() else np.inf


# --- repairs -------------------------------------------------------------------------------------


def bias_correction(y, y_hat, axis):
    r"""Return what to add to the biases so that quantized weights shift no output on average.

    .. math:: b_j \leftarrow b_j + \mathbb{E}[y_j] - \mathbb{E}[\hat y_j]

    Args:
      y: outputs of the layer for a batch, with its own weights.
      y_hat: with the quantized ones.
      axis: that of the units: 1 in PyTorch, -1 in Keras.

    Returns:
      An array of one axis.

    Raises:
      ValueError: if an array is empty or not finite, has no such axis, or the shapes differ.

    Example:
      >>> bias_correction(np.array([[1.0, 2.0], [3.0, 4.0]]), np.array([[1.0, 3.0], [2.0, 4.0]]), axis=1)
      array([ 0.5, -0.5])

    References:
      Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction".
    """
    _others("y", y, None)
    _others("y_hat", y_hat, None)
    if y.shape != y_hat.shape:
        shapes = f"y_hat has the shape {tuple(y_hat.shape)}: y has {tuple(y.shape)}"
        raise ValueError(f"{shapes}, and they must be equal")
    over = _others("y", y, require_whole("axis", axis, -len(y.shape), len(y.shape) - 1))
    return anp.mean(y - y_hat, axis=over)


def equalising_factors(w1, w2):
    r"""Return what to divide each output of one layer by, and to multiply the next layer's input with.

    .. math:: s_i = \sqrt{\frac{\max |W^{(1)}_{i\cdot}|}{\max |W^{(2)}_{\cdot i}|}}, \qquad
       W^{(1)}_{i\cdot} \leftarrow W^{(1)}_{i\cdot} / s_i, \quad b_i \leftarrow b_i / s_i, \quad
       W^{(2)}_{\cdot i} \leftarrow s_i\, W^{(2)}_{\cdot i}

    With a ReLU between them the network computes what it did before, and both layers have the same range in
    each channel.

    Args:
      w1: weights of the first layer, ``(n, ...)`` (PyTorch's layout).
      w2: weights of the next one, ``(outputs, n, ...)``.

    Returns:
      An array of ``n`` numbers.

    Raises:
      ValueError: if an array is empty or not finite, the sizes do not fit, or a channel is all zeros.

    Example:
      >>> equalising_factors(np.array([[8.0], [1.0]]), np.array([[2.0, -1.0]]))
      array([2., 1.])

    References:
      Nagel et al. 2019, "Data-free quantization through weight equalization and bias correction".
    """
    for name, w, least in (("w1", w1, 1), ("w2", w2, 2)):
        require_array(name, w, finite=False)
        if len(w.shape) < least:
            raise ValueError(f"{name} has the shape {tuple(w.shape)}: it must have {least} axes or more")
    out, into = _others("w1", w1, 0), _others("w2", w2, 1)
    if w1.shape[0] != w2.shape[1]:
        raise ValueError(f"w2 takes {w2.shape[1]} channels: w1 gives {w1.shape[0]}, and they must be equal")
    range1, range2 = anp.max(abs(w1), axis=out), anp.max(abs(w2), axis=into)
    if not (anp.all(range1 > 0) and anp.all(range2 > 0)):
        raise ValueError("w1 or w2 has a channel of zeros: remove the unit, it has nothing to pass on")
    return (range1 / range2) ** 0.5


# --- weight sharing ------------------------------------------------------------------------------


def share_weights(w, bits):
    r"""Return a codebook of :math:`2^b` numbers that fits the weights, and which of them each weight gets.

    .. math:: \min_{c,\,k}\ \sum_i \bigl(w_i - c_{k_i}\bigr)^2

    by k-means: each weight takes the nearest number, each number moves to the mean of its weights, until
    none moves by a thousandth of their first distance. It starts from evenly spaced numbers, so that the
    rare large weights get their own.

    Args:
      w: weights, a NumPy array of finite numbers.
      bits: :math:`b`, a whole number in [2, 8].

    Returns:
      ``(codebook, codes)``: the numbers in ascending order, and integers of the shape of ``w``. The
      quantized weights are ``codebook[codes]``.

    Raises:
      ValueError: if ``w`` is empty, not finite or a single number over and over, or ``bits`` is not allowed.

    Example:
      >>> codebook, codes = share_weights(np.array([0.0, 0.1, 5.0, 5.2, 9.0, 9.0]), bits=2)
      >>> codebook[codes].round(2)
      array([0.05, 0.05, 5.1 , 5.1 , 9.  , 9.  ])

    References:
      Han, Mao and Dally 2016, "Deep compression".
    """
    bits = require_whole("bits", bits, 2, 8)
    require_kind("w", w, np.ndarray, "a NumPy array of finite numbers")
    _others("w", w, None)
    low, high = (float(bound.item()) for bound in min_max(w))
    if low == high:
        raise ValueError(f"w holds nothing but {low:g}: one number needs no codebook")
    codebook = np.linspace(low, high, 2**bits)
    while True:
        codes = np.searchsorted((codebook[1:] + codebook[:-1]) / 2, w)
        counts = np.bincount(codes.ravel(), minlength=2**bits)
        sums = np.bincount(codes.ravel(), w.ravel(), minlength=2**bits)
        moved = np.where(counts, sums / np.maximum(counts, 1), codebook)
        if np.allclose(moved, codebook, rtol=0, atol=1e-3 * (high - low) / 2**bits):
            return codebook.astype(w.dtype), codes
        codebook = moved


def entropy(counts):
    r"""Return how many bits a symbol needs on average, whatever the code.

    .. math:: H = -\sum_i p_i \log_2 p_i

    Args:
      counts: how often each symbol occurs, an array of numbers >= 0, not all 0.

    Raises:
      ValueError: if ``counts`` is none of these.

    Example:
      >>> float(entropy([4, 2, 1, 1]))
      1.75
    """
    _require_counts(counts)
    return relative_entropy(counts, base=2)


def huffman_lengths(counts):
    """Return the bits of each symbol's code word in the best code with whole bits.

    The two rarest symbols are joined to one, again and again; each joint makes their words a bit longer.

    Args:
      counts: how often each symbol occurs, an array of numbers >= 0, not all 0.

    Returns:
      An array of integers: 0 for symbols that do not occur, and 1 for the only one.

    Raises:
      ValueError: if ``counts`` is none of these.

    Example:
      >>> huffman_lengths([5, 1, 0, 2])
      array([1, 2, 0, 2])

    References:
      Huffman 1952, "A method for the construction of minimum-redundancy codes".
    """
    _require_counts(counts)
    heap = [(count, symbol, [symbol]) for symbol, count in enumerate(np.asarray(counts).tolist()) if count]
    lengths = np.zeros(len(counts), int)
    lengths[heap[0][2]] = len(heap) == 1
    heapq.heapify(heap)
    while len(heap) > 1:
        (n, tie, rarest), (m, _, second) = heapq.heappop(heap), heapq.heappop(heap)
        lengths[rarest + second] += 1
        heapq.heappush(heap, (n + m, tie, rarest + second))
    return lengths


# --- integers only -------------------------------------------------------------------------------


def integer_linear(q_x, q_w, bias, x, w, y):
    r"""Return the integers of a linear layer's outputs, computed from integers.

    .. math::

       a_j &= \sum_i (q^x_i - z_x)\,q^w_{ji} + \mathrm{round}\Bigl(\frac{b_j}{\Delta_x \Delta_{w,j}}\Bigr) \\
       q^y_j &= \mathrm{clip}\Bigl(\mathrm{round}\Bigl(\frac{\Delta_x \Delta_{w,j}}{\Delta_y}\,a_j\Bigr) +
       z_y,\ q_\min,\ q_\max\Bigr)

    The sum is exact in 32 bits. The one factor that is no integer is itself written as one by
    :func:`fixed_point`.

    Args:
      q_x: the inputs' integers, ``(n, inputs)``, int8.
      q_w: the weights' integers, ``(outputs, inputs)``, int8.
      bias: the biases :math:`b`, ``(outputs,)``, floats.
      x: the :class:`Quantizer` of the inputs, per tensor.
      w: that of the weights, :func:`symmetric`, per tensor or with one scale for each output.
      y: that of the outputs, per tensor.

    Returns:
      int8, ``(n, outputs)``.

    Raises:
      ValueError: if arrays or quantizers are none or do not fit together, the weights' quantizer has a
        zero point, or as :func:`fixed_point`.

    Example:
      >>> x, w, y = affine(0.0, 1.0, 8), symmetric(-1.0, 1.0, 8), affine(-1.0, 1.0, 8)
      >>> q_x, q_w = x.quantize(np.array([[0.5, 1.0]])), w.quantize(np.array([[1.0, -0.25]]))
      >>> q_y = integer_linear(q_x.astype("int8"), q_w.astype("int8"), np.array([0.1]), x, w, y)
      >>> y.dequantize(q_y.astype(float)).round(2)
      array([[0.35]])

    References:
      Jacob et al. 2018, "Quantization and training of neural networks for efficient
      integer-arithmetic-only inference".
    """
    for name, quantizer in (("x", x), ("w", w), ("y", y)):
        require_kind(name, quantizer, Quantizer, "a Quantizer")
    if np.any(w.zero_point):
        raise ValueError(f"w has the zero point {w.zero_point}: it must be symmetric, with 0")
    _require_integers(q_x=q_x, q_w=q_w)
    require_array("bias", bias, axes=1)
    if q_w.shape != (len(bias), q_x.shape[1]):
        shapes = f"q_x has the shape {q_x.shape}, q_w {q_w.shape} and bias {bias.shape}"
        raise ValueError(f"{shapes}: they must be (n, inputs), (outputs, inputs) and (outputs,)")
    step = np.ravel(x.scale * w.scale)
    a = (q_x.astype(np.int32) - np.int32(np.ravel(x.zero_point)[0])) @ q_w.T.astype(np.int32)
    a = a + np.rint(bias / step).astype(np.int32)
    q_y = rescale(a, *fixed_point(step / np.ravel(y.scale))) + np.int32(np.ravel(y.zero_point)[0])
    return np.clip(q_y, y.q_min, y.q_max).astype(np.int8)


def fixed_point(factor):
    r"""Return ``factor`` as an integer and a number of binary places.

    .. math:: M \approx m \cdot 2^{-n}, \qquad 2^{30} \le m < 2^{31}

    Args:
      factor: :math:`M`, a number in :math:`[2^{-32}, 2^{30})` or an array of such, for which
        :func:`rescale` fits into 64 bits.

    Returns:
      ``(m, n)``, integers.

    Raises:
      ValueError: if ``factor`` is not allowed.

    Example:
      >>> fixed_point(0.75)
      (1610612736, 31)
    """
    require("factor", factor, "a number in [2**-32, 2**30)", lambda f: (f >= 2**-32) & (f < 2**30))
    mantissa, exponent = np.frexp(factor)
    # Where it rounds up to 2**31, one less fits.
    m, n = np.minimum(np.rint(mantissa * 2**31), 2**31 - 1).astype(np.int64), 31 - exponent
    return (m, n) if np.ndim(factor) else (int(m), int(n))


def rescale(a, m, n):
    r"""Return :math:`\mathrm{round}(a \cdot m \cdot 2^{-n})` with integers alone: a product and a shift.

    Ties go to the higher number.

    Args:
      a: a whole number, or an array of them.
      m: a whole number in [0, 2**31), or an array of them.
      n: a whole number in [1, 62], or an array of them.

    Raises:
      ValueError: if an argument is not allowed.

    Example:
      >>> rescale(np.array([100, -100]), *fixed_point(0.75))
      array([ 75, -75])
    """
    require("a", a, "a whole number", lambda a: a % 1 == 0)
    require("m", m, "a whole number in [0, 2**31)", lambda m: (m >= 0) & (m < 2**31) & (m % 1 == 0))
    require("n", n, "a whole number in [1, 62]", lambda n: (n >= 1) & (n <= 62) & (n % 1 == 0))
    m, n = np.asarray(m, np.int64), np.asarray(n, np.int64)
    half = np.int64(1) << (n - 1)
    return (np.asarray(a, np.int64) * m + half) >> n


# --- helpers -------------------------------------------------------------------------------------


def _round(x):
    """Round to the nearest whole number, and ties to the even one, as the runtimes do."""
    if autoray.infer_backend(x) != "tensorflow":
        return anp.round(x)
    # autoray finds no rounding of TensorFlow's.
    down = anp.floor(x)
    up = (x - down > 0.5) | ((x - down == 0.5) & (down % 2 == 1))
    return down + anp.astype(up, autoray.get_dtype_name(down))


def _larger(a, b):
    return anp.where(a > b, a, b)


def _require_numbers(name, x):
    require(name, x, "a number or an array of finite numbers", lambda _: True)


def _require_integers(**arrays):
    for name, x in arrays.items():
        require_array(name, x, "an array of integers", axes=2)
        if np.asarray(x).dtype.kind not in "iu":
            refuse(name, x, "an array of integers")


def _others(name, x, axis):
    """Return all axes but the named ones, having checked the numbers and the axes."""
    if hasattr(x, "shape") and not anp.size(x):
        raise ValueError(f"there is not a single number in {name}: a range needs at least one")
    seen = x.dtype.kind == "f" if isinstance(x, np.ndarray) else is_tensor(x) and _has_values(x)
    if seen and not anp.all(anp.isfinite(x)):
        raise ValueError(f"a number is not finite in {name}: a range must have no nan and no inf")
    require_array(name, x)
    axes, kept = anp.ndim(x), () if axis is None else axis if isinstance(axis, tuple) else (axis,)
    kept = [require_whole("axis", one, -axes, axes - 1) for one in kept]
    return tuple(i for i in range(axes) if i not in {one % axes for one in kept})


def _has_values(x):
    """Say whether ``x`` is more than a name in a graph of TensorFlow that will run later."""
    return autoray.infer_backend(x) != "tensorflow" or hasattr(x, "numpy")


def _require_range(low, high):
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, np.ndarray):
            good = bound.dtype.kind in "iuf" and bound.size
        else:
            good = is_tensor(bound) or (isinstance(bound, numbers.Real) and not isinstance(bound, bool))
        if not good:
            refuse(name, bound, "a finite number, or an array of them")
    if not (_has_values(low) and _has_values(high)):
        return
    lows, highs = (np.asarray(autoray.to_numpy(bound), float) for bound in (low, high))
    if not (np.isfinite(lows).all() and np.isfinite(highs).all() and (lows <= highs).all()):
        raise ValueError(f"low={low!r}, high={high!r} is no range: both must be finite, and low <= high")
    if ((lows == 0) & (highs == 0)).any():
        raise ValueError("a range is the single number 0: low or high must be another")


def _require_counts(counts):
    allowed = "numbers >= 0 along one axis, not all 0"
    try:
        array = np.asarray(counts)
    except ValueError:  # lists of several lengths
        refuse("counts", counts, allowed)
    good = array.dtype.kind in "iuf" and array.ndim == 1 and np.isfinite(array).all()
    if not (good and (array >= 0).all() and array.sum() > 0):
        refuse("counts", counts, allowed)
