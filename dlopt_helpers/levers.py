r"""Levers, as in chapter 2: what each does alone, what two do together, and who did how much of the whole.

A lever is a technique that is off or on. For :math:`k` levers, an array of :math:`k` axes of length 2 holds
what each of the :math:`2^k` combinations is worth: ``values[0, 1, 0]`` is the second of three levers alone.
"""

import math

import numpy as np

from dlopt_helpers._require import refuse, require, require_bool, require_whole


def effect(values, lever, multiply=True):
    r"""Return what switching one lever on does, for each setting of the others.

    With :math:`v(S)` the value where the levers of a set :math:`S` are on and the others off,

    .. math:: \frac{v(S \cup i)}{v(S)} \quad\text{or, in points,}\quad v(S \cup i) - v(S).

    Args:
      values: :math:`v`, of shape ``(2,) * k``; numbers > 0 where effects multiply.
      lever: :math:`i`, the axis.
      multiply: whether the effect is a factor, as for bytes and times, or a difference, as for accuracies.

    Returns:
      An array of shape ``(2,) * (k - 1)``; its first number is the effect of the lever alone.

    Raises:
      ValueError: if ``values`` has other shapes or numbers, or ``lever`` is no axis.

    Example:
      >>> megabytes = np.array([[8.0, 2.0], [4.0, 1.0]])  # pruned or not, 32 or 8 bits
      >>> effect(megabytes, lever=1)
      array([0.25, 0.25])
    """
    _require_game(values, multiply)
    lever = _axis("lever", lever, np.ndim(values))
    off, on = np.take(values, 0, axis=lever), np.take(values, 1, axis=lever)
    return on / off if multiply else on - off


def interaction(values, a, b, multiply=True):
    r"""Return how far two levers together miss what they do alone, for each setting of the others.

    .. math:: \log \frac{v(S \cup ab)}{v(S)} - \log \frac{v(S \cup a)}{v(S)} - \log \frac{v(S \cup b)}{v(S)}

    It is 0 where the factors multiply. For a cost it is positive where they save the same thing twice, and
    :math:`\exp` of it is the factor by which the joint cost misses the product. Where effects add, there
    are no logarithms: the differences stand in their place.

    Args:
      values: :math:`v`, of shape ``(2,) * k`` with k >= 2; numbers > 0 where effects multiply.
      a, b: the axes, which differ. Their order does not matter.
      multiply: as for :func:`effect`.

    Returns:
      An array of shape ``(2,) * (k - 2)``; its first number is that with all other levers off.

    Raises:
      ValueError: if ``values`` has other shapes or numbers, or ``a`` and ``b`` are not two of its axes.

    Example:
      >>> interaction(np.array([[8.0, 2.0], [4.0, 1.0]]), 0, 1).item()
      0.0
      >>> interaction(np.array([[8.0, 2.0], [4.0, 2.0]]), 0, 1).round(3).item()  # misses by a factor of 2
      0.693

    References:
      Grabisch and Roubens 1999, "An axiomatic approach to the concept of interaction among players".
    """
    _require_game(values, multiply)
    a, b = (_axis(name, axis, np.ndim(values)) for name, axis in (("a", a), ("b", b)))
    if a == b:
        refuse("b", b, f"another axis than a={a}")
    v = np.moveaxis(np.log(values) if multiply else values, (a, b), (0, 1))
    return v[1, 1] - v[1, 0] - v[0, 1] + v[0, 0]


def shapley(values, multiply=True):
    r"""Return the part of each lever in the whole: its Shapley value.

    It is the mean of what the lever adds when the levers are switched on one after the other, over all
    :math:`k!` orders. Where the same set stands before the lever orders agree, so sets are enough:

    .. math:: \varphi_i = \sum_{S \not\ni i} \frac{|S|!\,(k - |S| - 1)!}{k!}\,\bigl(w(S \cup i) - w(S)\bigr),
              \qquad \sum_i \varphi_i = w(\text{all}) - w(\emptyset).

    Args:
      values: of shape ``(2,) * k``; numbers > 0 where effects multiply.
      multiply: whether :math:`w` is the logarithm of the values, or the values themselves.

    Returns:
      :math:`\varphi`, an array of ``k`` numbers. Where effects multiply they are logarithms of factors:
      the product of ``np.exp(shapley(values))`` is the factor of all levers together.

    Raises:
      ValueError: if ``values`` has other shapes or numbers.

    Example:
      >>> np.exp(shapley(np.array([[8.0, 2.0], [4.0, 1.0]]))).round(6)
      array([0.5 , 0.25])
      >>> np.exp(shapley(np.array([[8.0, 2.0], [4.0, 2.0]]))).round(3)  # the second takes the first's part
      array([0.707, 0.354])

    References:
      Shapley 1953, "A value for n-person games", Contributions to the Theory of Games II.
    """
    _require_game(values, multiply)
    w, k = np.log(values) if multiply else values, np.ndim(values)
    before = np.indices((2,) * (k - 1)).sum(axis=0).astype(int)  # how many others are on, |S|
    weights = np.vectorize(lambda s: 1 / (k * math.comb(k - 1, s)), otypes=[float])(before)
    return np.array([np.sum(weights * effect(w, lever, multiply=False)) for lever in range(k)])


def _require_game(values, multiply):
    require_bool(multiply=multiply)
    try:
        shape = np.shape(values)
    except ValueError:  # lists of other lengths
        shape = ()
    if not shape or set(shape) != {2}:
        raise ValueError(
            f"values has the shape {shape}: it must be (2,) * k, an axis for each of k >= 1 levers"
        )
    allowed = "an array of finite numbers" + (" > 0, as their logarithms are taken" if multiply else "")
    require("values", np.asarray(values), allowed, lambda v: v > 0 if multiply else True)


def _axis(name, axis, k):
    return require_whole(name, axis, 0, k - 1)
