r"""Pruning, as in chapter 3.3: which weights and units go, and when.

Arrays may be of NumPy, PyTorch or TensorFlow. The modules ``pruning_torch`` and ``pruning_keras`` of
:mod:`dlopt_helpers.bridges` apply the masks to models and take units out of them.
"""

import math

import autoray
import numpy as np
from autoray import numpy as anp

from dlopt_helpers._require import is_tensor, refuse, require, require_one, require_whole


def magnitude_mask(w, threshold):
    r"""Return the mask that keeps the large weights.

    .. math:: m_i = \begin{cases} 1 & |w_i| \ge \tau \\ 0 & |w_i| < \tau \end{cases}

    The pruned weights are :math:`m \odot w`.

    Args:
      w: the weights, an array of any shape.
      threshold: :math:`\tau \ge 0`. Above the largest magnitude nothing is kept, and the layer passes
        on its biases alone.

    Returns:
      An array of ones and zeros of the shape and dtype of ``w``.

    Raises:
      ValueError: if a weight is not finite or ``threshold`` is negative or not a number.

    Example:
      >>> import numpy as np
      >>> magnitude_mask(np.array([0.3, -0.5, 0.1]), threshold=0.3)
      array([1., 1., 0.])

    References:
      Han et al. 2015, "Learning both weights and connections for efficient neural networks".
    """
    _require_numbers("w", w)
    _require_threshold(threshold)
    return anp.astype(abs(w) >= threshold, autoray.get_dtype_name(w))


def threshold_for(sparsity, *weights):
    r"""Return the threshold that prunes a wanted share of the weights.

    With all magnitudes in ascending order, :math:`|w|_{(0)} \le |w|_{(1)} \le \dots`, it is
    :math:`\tau = |w|_{(k)}` for :math:`k = \mathrm{round}(s\,n)`: the :math:`k` smallest lie below it.
    One array gives the threshold of a layer, several give one threshold for all of them.

    Args:
      sparsity: :math:`s` in [0, 1], the share to prune.
      *weights: one or more arrays of one framework.

    Returns:
      A number; ``inf`` where nothing is to be kept. Equal magnitudes go or stay together, so with ties
      less than :math:`k` may be pruned.

    Raises:
      ValueError: if ``sparsity`` lies outside [0, 1], a weight is not finite, or there is no weight.

    Example:
      >>> import numpy as np
      >>> threshold_for(0.5, np.array([0.3, -0.5]), np.array([0.1, 0.2]))
      0.3
    """
    require_one("sparsity", sparsity, "a number in [0, 1]", lambda s: (s >= 0) & (s <= 1))
    _require_numbers("weights", *weights)
    magnitudes = [abs(anp.ravel(w)) for w in weights]
    magnitudes = anp.sort(anp.concatenate(magnitudes))
    n = anp.size(magnitudes)
    k = round(sparsity * n)
    return float(magnitudes[k]) if k < n else math.inf


def n_of_m_mask(w, n=2, m=4):
    """Return the mask that keeps the ``n`` largest of each ``m`` neighbours along the last axis.

    With 2 of 4 and PyTorch's layout this is the pattern that the sparse units of GPUs can skip.

    Args:
      w: the weights; the length of the last axis is a multiple of ``m``.
      n: how many stay, in [1, m].
      m: the size of a group.

    Returns:
      An array of ones and zeros of the shape and dtype of ``w``.

    Raises:
      ValueError: if a weight is not finite, or ``n`` or ``m`` is not allowed.

    Example:
      >>> import numpy as np
      >>> n_of_m_mask(np.array([[4.0, -3.0, 2.0, 1.0, 0.0, -1.0, 5.0, 9.0]]))
      array([[1., 1., 0., 0., 0., 0., 1., 1.]])

    References:
      Mishra et al. 2021, "Accelerating sparse deep neural networks".
    """
    _require_numbers("w", w)
    if not len(w.shape):
        raise ValueError("w has no axis: it must have one or more")
    length = w.shape[-1]
    m = require_whole("m", m, 1)
    if length % m:
        refuse("m", m, f"a divisor of {length}, the last axis of w")
    n = require_whole("n", n, 1, m)
    groups = anp.reshape(abs(w), (-1, m))
    rank = anp.argsort(anp.argsort(groups, axis=-1), axis=-1)  # 0 for the smallest of a group
    return anp.astype(anp.reshape(rank >= m - n, w.shape), autoray.get_dtype_name(w))


def sparsity(*weights):
    """Return the share of zeros in one or more arrays.

    Raises:
      ValueError: if there is no array of numbers, or no number in them.

    Example:
      >>> import numpy as np
      >>> sparsity(np.array([0.0, 2.0]), np.array([0.0, 0.0]))
      0.75
    """
    _require_arrays("weights", weights, "iufb")
    return 1 - sum(int(anp.count_nonzero(w)) for w in weights) / sum(map(anp.size, weights))


def unit_scores(x, axis, p=1):
    r"""Return a score for each unit (neuron or channel): the mean of :math:`|x|^p` over all else.

    .. math:: s_j = \Bigl( \tfrac1n \sum_i |x_{ij}|^p \Bigr)^{1/p}

    Of a layer's weights this is the L1 norm (``p=1``) or L2 norm (``p=2``) of what comes into the unit,
    but for a factor that all units share; of its outputs for a batch, how active it is.

    Args:
      x: weights, or outputs for a batch, of two or more axes.
      axis: that of the units: 0 for PyTorch's weights, -1 for Keras's, and for outputs 1 in PyTorch,
        -1 in Keras.
      p: 1 or 2.

    Returns:
      An array of one axis.

    Raises:
      ValueError: if a number is not finite, or ``axis`` or ``p`` is not allowed.

    Example:
      >>> import numpy as np
      >>> unit_scores(np.array([[3.0, -4.0], [1.0, 0.0]]), axis=0)
      array([3.5, 0.5])

    References:
      Li et al. 2017, "Pruning filters for efficient ConvNets" (L1); Hu et al. 2016, "Network trimming"
      (activations).
    """
    _require_numbers("x", x)
    axes = anp.ndim(x)
    if axes < 2:
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must have two or more axes")
    axis, p = require_whole("axis", axis, -axes, axes - 1), require_whole("p", p, 1, 2)
    others = tuple(i for i in range(axes) if i != axis % axes)
    return anp.mean(abs(x) ** p, axis=others) ** (1 / p)


def best_units(scores, keep):
    """Return the indices of the ``keep`` units with the highest scores, in ascending order.

    Args:
      scores: an array of one axis.
      keep: how many, at least 1: a layer without units would cut the network in two.

    Raises:
      ValueError: if a score is not finite or ``keep`` is no whole number in [1, number of units].

    Example:
      >>> import numpy as np
      >>> best_units(np.array([0.2, 0.9, 0.1, 0.5]), keep=2)
      [1, 3]
    """
    _require_numbers("scores", scores)
    n = anp.size(scores)
    if anp.ndim(scores) != 1:
        raise ValueError(f"scores has the shape {tuple(scores.shape)}: it must have one axis")
    keep = require_whole("keep", keep, 1, n)
    return sorted(int(i) for i in anp.argsort(-scores)[:keep])


def one_shot(progress, final):
    """Return the sparsity of a single cut: ``final`` from the first moment on.

    Example:
      >>> one_shot(0.0, final=0.9)
      0.9
    """
    _require_schedule(progress, final)
    return final + 0 * progress


def iterative(progress, final):
    r"""Return the sparsity after a share of the rounds, each of which prunes the same share of what is left.

    .. math:: s(t) = 1 - (1 - s_\text{final})^{t}

    Args:
      progress: :math:`t` in [0, 1], rounds done over all rounds.
      final: :math:`s_\text{final}` in [0, 1].

    Raises:
      ValueError: if an argument lies outside [0, 1].

    Example:
      >>> [round(iterative(t, final=0.75), 3) for t in (0.0, 0.5, 1.0)]
      [0.0, 0.5, 0.75]

    References:
      Frankle and Carbin 2019, "The lottery ticket hypothesis".
    """
    _require_schedule(progress, final)
    return 1 - (1 - final) ** progress


def cubic(progress, final):
    r"""Return the sparsity that rises fast while much is left to choose from, and slowly at the end.

    .. math:: s(t) = s_\text{final}\,\bigl(1 - (1 - t)^3\bigr)

    Args:
      progress: :math:`t` in [0, 1], steps done over all steps of the schedule.
      final: :math:`s_\text{final}` in [0, 1].

    Raises:
      ValueError: if an argument lies outside [0, 1].

    Example:
      >>> [round(cubic(t, final=0.8), 3) for t in (0.0, 0.5, 1.0)]
      [0.0, 0.7, 0.8]

    References:
      Zhu and Gupta 2017, "To prune, or not to prune".
    """
    _require_schedule(progress, final)
    return final * (1 - (1 - progress) ** 3)


def _require_schedule(progress, final):
    _require_share("progress", progress)
    _require_share("final", final)


def _require_share(name, value):
    require(name, value, "a number in [0, 1]", lambda x: (x >= 0) & (x <= 1))


def _require_threshold(threshold):
    if not (isinstance(threshold, float) and threshold == math.inf):
        require_one("threshold", threshold, "a number >= 0", lambda x: x >= 0)


def _require_numbers(name, *arrays):
    _require_arrays(name, arrays, "iuf")
    if not all(anp.all(anp.isfinite(x)) for x in arrays):
        raise ValueError(f"{name} holds a number that is not finite: nan and inf must not be in a ranking")


def _require_arrays(name, arrays, kinds):
    for x in arrays:
        if not (x.dtype.kind in kinds if isinstance(x, np.ndarray) else is_tensor(x)):
            refuse(name, x, "an array of finite numbers")
    if not arrays or not all(map(anp.size, arrays)):
        raise ValueError(f"{name} is empty: give at least one number")
