r"""Network structure, as in chapter 3.6: what layers and blocks cost, and how a trained layer becomes two.

Costs are counted for one example. Arrays may be of NumPy, PyTorch or TensorFlow. The modules
``structure_torch`` and ``structure_keras`` of :mod:`dlopt_helpers.bridges` count and factorise models.
"""

import math
from typing import NamedTuple

import autoray
from autoray import numpy as anp

from dlopt_helpers._require import refuse, require_array, require_bool, require_one, require_whole


class Cost(NamedTuple):
    """What a layer costs: numbers to store, and multiply-accumulates (MACs) for one example.

    Costs add up, by ``+`` or ``sum(costs, Cost())``.

    Example:
      >>> Cost(parameters=3, macs=2) + Cost(parameters=1, macs=1)
      Cost(parameters=4, macs=3)
    """

    parameters: int = 0
    macs: int = 0

    def __add__(self, other):
        return Cost(self.parameters + other.parameters, self.macs + other.macs)


def linear_cost(inputs, outputs, bias=True):
    r"""Return the cost of a linear layer.

    .. math:: \text{parameters} = n\,m + m, \qquad \text{MACs} = n\,m

    Args:
      inputs: :math:`n`, numbers that come in.
      outputs: :math:`m`, numbers that go out.
      bias: whether each output has one. Its addition is no multiply-accumulate.

    Raises:
      ValueError: if a number is no whole number >= 1.

    Example:
      >>> linear_cost(512, 512)
      Cost(parameters=262656, macs=262144)
    """
    _require_counts(inputs=inputs, outputs=outputs)
    require_bool(bias=bias)
    return Cost(inputs * outputs + outputs * bias, inputs * outputs)


def conv_cost(inputs, outputs, kernel, length, groups=1, bias=True):
    r"""Return the cost of a convolution.

    .. math:: \text{parameters} = \frac{c\,d\,k}{g} + d, \qquad \text{MACs} = \frac{c\,d\,k}{g}\,l

    Each output channel sees the :math:`c / g` input channels of its group; ``groups=inputs`` is a
    depthwise convolution.

    Args:
      inputs: :math:`c`, channels that come in.
      outputs: :math:`d`, channels that go out.
      kernel: :math:`k`, numbers in a kernel: 3 in one dimension, 3 * 3 in two.
      length: :math:`l`, positions of the **output**: a stride of 2 halves it.
      groups: :math:`g`, a divisor of both.
      bias: whether each output channel has one.

    Raises:
      ValueError: if a number is no whole number >= 1, or ``groups`` does not divide the channels.

    Example:
      >>> conv_cost(64, 64, kernel=3, length=20)
      Cost(parameters=12352, macs=245760)
      >>> conv_cost(64, 64, kernel=3, length=20, groups=64)
      Cost(parameters=256, macs=3840)
    """
    _require_counts(inputs=inputs, outputs=outputs, kernel=kernel, length=length, groups=groups)
    require_bool(bias=bias)
    if inputs % groups or outputs % groups:
        refuse("groups", groups, f"a divisor of both inputs={inputs} and outputs={outputs}")
    weights = inputs // groups * outputs * kernel
    return Cost(weights + outputs * bias, weights * length)


def separable_cost(inputs, outputs, kernel, length, bias=True):
    r"""Return the cost of a depthwise convolution and a pointwise one (kernel 1) after it.

    Without biases it is :math:`\frac1d + \frac1k` of that of a plain convolution with :math:`d` outputs
    and :math:`k` numbers in a kernel.

    Args:
      inputs, outputs, kernel, length, bias: as for :func:`conv_cost`. A stride is the depthwise part's.

    Raises:
      ValueError: as :func:`conv_cost` does.

    Example:
      >>> separable_cost(64, 64, kernel=3, length=20).macs / conv_cost(64, 64, kernel=3, length=20).macs
      0.3489583333333333
      >>> 1 / 64 + 1 / 3
      0.3489583333333333

    References:
      Howard et al. 2017, "MobileNets".
    """
    depthwise = conv_cost(inputs, inputs, kernel, length, groups=inputs, bias=bias)
    return depthwise + conv_cost(inputs, outputs, 1, length, bias=bias)


def bottleneck_cost(channels, inner, kernel, length, bias=True):
    r"""Return the cost of a convolution between two pointwise ones that narrow and widen the channels.

    .. math:: \text{MACs} = (2\,c\,m + m^2 k)\,l

    Args:
      channels: :math:`c`, those that come in and go out.
      inner: :math:`m`, those in between.
      kernel, length, bias: as for :func:`conv_cost`; the length stays.

    Raises:
      ValueError: as :func:`conv_cost` does.

    Example:
      >>> bottleneck_cost(64, 16, kernel=3, length=20)
      Cost(parameters=2912, macs=56320)

    References:
      He et al. 2016, "Deep residual learning for image recognition".
    """
    _require_counts(channels=channels, inner=inner)
    narrow, widen = (conv_cost(m, n, 1, length, bias=bias) for m, n in ((channels, inner), (inner, channels)))
    return narrow + conv_cost(inner, inner, kernel, length, bias=bias) + widen


def singular_values(w):
    r"""Return the singular values of a matrix, the largest first.

    Args:
      w: an array of two axes.

    Raises:
      ValueError: if ``w`` is no matrix, empty, or holds a number that is not finite.

    Example:
      >>> import numpy as np
      >>> singular_values(np.array([[0.0, 3.0], [2.0, 0.0]]))
      array([3., 2.])
    """
    _require_matrix(w)
    return _svd(w)[1]


def low_rank(w, rank):
    r"""Return the two factors of the best approximation of ``w`` of a given rank.

    With the singular value decomposition :math:`W = U \,\mathrm{diag}(\sigma)\, V^\top`, largest first,

    .. math:: A = U_{:r}\,\mathrm{diag}(\sqrt{\sigma_{:r}}), \qquad
              B = \mathrm{diag}(\sqrt{\sigma_{:r}})\,V_{:r}^\top .

    No other matrix of rank :math:`r` comes closer to :math:`W` than :math:`AB`. Each factor gets the root
    of the singular values: of equal size, they train at one learning rate.

    Args:
      w: :math:`W`, an array of shape ``(m, n)``.
      rank: :math:`r`, a whole number in [1, min(m, n)].

    Returns:
      ``(a, b)`` of shapes ``(m, r)`` and ``(r, n)``.

    Raises:
      ValueError: if ``w`` is no matrix, empty or not finite, or ``rank`` is out of range.

    Example:
      >>> import numpy as np
      >>> a, b = low_rank(np.array([[0.0, 3.0], [2.0, 0.0]]), rank=1)
      >>> (a @ b).round(12) + 0.0
      array([[0., 3.],
             [0., 0.]])

    References:
      Eckart and Young 1936, "The approximation of one matrix by another of lower rank".
    """
    _require_matrix(w)
    r = require_whole("rank", rank, 1, min(w.shape))
    u, s, vt = _svd(w)
    root = s[:r] ** 0.5
    return u[:, :r] * root, root[:, None] * vt[:r]


def low_rank_error(singular_values, rank):
    r"""Return the relative error of the best approximation of a given rank.

    .. math:: \frac{\lVert W - AB \rVert}{\lVert W \rVert}
              = \sqrt{\frac{\sum_{i > r} \sigma_i^2}{\sum_i \sigma_i^2}}

    in the Frobenius norm, the root of the sum of squares.

    Args:
      singular_values: :math:`\sigma`, the largest first.
      rank: :math:`r`, a whole number in [1, number of singular values].

    Raises:
      ValueError: if a singular value is not finite, all are zero, or ``rank`` is out of range.

    Example:
      >>> import numpy as np
      >>> low_rank_error(np.array([4.0, 3.0]), rank=1)
      0.6
    """
    require_array("singular_values", singular_values, axes=1, finite=False)
    _require_finite("singular_values", singular_values)
    rank = require_whole("rank", rank, 1, len(singular_values))
    squares = singular_values**2
    if not (whole := float(anp.sum(squares))):
        raise ValueError(
            "singular_values are all zero: one must be larger, as no error is relative to nothing"
        )
    return math.sqrt(float(anp.sum(squares[rank:])) / whole)


def rank_for(outputs, inputs, share=1.0):
    r"""Return the largest rank at which two factors have fewer weights than a share of the matrix.

    .. math:: r\,(m + n) < s\,m\,n

    Args:
      outputs: :math:`m`.
      inputs: :math:`n`.
      share: :math:`s` in (0, 1]; 1 gives the rank below which factorising saves anything.

    Returns:
      A whole number, 0 where not even rank 1 saves enough.

    Raises:
      ValueError: if ``outputs`` or ``inputs`` is no whole number >= 1 or ``share`` is out of range.

    Example:
      >>> rank_for(512, 512), rank_for(512, 512, share=0.25), rank_for(512, 40)
      (255, 63, 37)
    """
    _require_counts(outputs=outputs, inputs=inputs)
    require_one("share", share, "a number in (0, 1]", lambda s: 0 < s <= 1)
    return max(0, math.ceil(share * outputs * inputs / (outputs + inputs)) - 1)


def front(costs, scores):
    r"""Return which of several networks are worth choosing: the front.

    A network is left out if another costs no more and scores no less, and is better in one of both:

    .. math:: i \text{ stays} \iff \nexists\, j:\; c_j \le c_i,\; s_j \ge s_i,\; (c_j, s_j) \ne (c_i, s_i)

    Args:
      costs: :math:`c`, an array of one axis: parameters, MACs or times.
      scores: :math:`s`, an array of the same length, such as accuracies.

    Returns:
      An array of bools, true for the front. Equal networks stay or go together.

    Raises:
      ValueError: if the arrays are empty or differ in shape, or a number is not finite.

    Example:
      >>> import numpy as np
      >>> front(np.array([1.0, 2.0, 3.0]), np.array([0.5, 0.4, 0.9]))
      array([ True, False,  True])
    """
    require_array("costs", costs, finite=False)
    require_array("scores", scores, finite=False)
    if costs.shape != scores.shape or anp.ndim(costs) != 1 or not anp.size(costs):
        shapes = f"{tuple(costs.shape)} and {tuple(scores.shape)}"
        raise ValueError(f"costs and scores have the shapes {shapes}: they must be equal, (n,) with n >= 1")
    _require_finite("costs", costs)
    _require_finite("scores", scores)
    c, s = costs[:, None], scores[:, None]  # row i against column j
    beaten = (costs <= c) & (scores >= s) & ((costs < c) | (scores > s))
    return anp.logical_not(anp.any(beaten, axis=1))


def _svd(w):
    return autoray.do("linalg.svd", w)


def _require_counts(**numbers):
    for name, value in numbers.items():
        require_whole(name, value, 1)


def _require_finite(name, x):
    if not anp.all(anp.isfinite(x)):
        raise ValueError(f"{name} holds a number that is not finite (nan or inf): all must be")


def _require_matrix(w):
    require_array("w", w, "a matrix of finite numbers", finite=False)
    if anp.ndim(w) != 2 or not anp.size(w):
        raise ValueError(f"w has the shape {tuple(w.shape)}: it must be a matrix with at least one number")
    _require_finite("w", w)
