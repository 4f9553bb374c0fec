r"""The article's program, as in chapter 4.1: a small network, its loss, and two optimisers in turn.

Arrays may be of NumPy, PyTorch or TensorFlow.
"""

from dataclasses import dataclass
from typing import Any

from autoray import numpy as anp

from dlopt_helpers._require import require, require_array, require_one

EPS = 1e-7  # Keras keeps probabilities this far from 0 and 1


def forward(x, w1, b1, w2, b2):
    r"""Return the probabilities of a network with one hidden layer.

    .. math::

       h &= \max(0,\; x W_1 + b_1) \\
       p &= \sigma(h W_2 + b_2), \qquad \sigma(z) = \frac{1}{1 + e^{-z}}

    Args:
      x: the examples, of shape ``(n, inputs)``.
      w1, b1: of shapes ``(inputs, units)`` and ``(units,)``.
      w2, b2: of shapes ``(units, 1)`` and ``(1,)``.

    Returns:
      An array of shape ``(n, 1)``, a column and no list: see :func:`binary_cross_entropy`. Arrays with
      one more axis in front, and biases of shapes ``(k, 1, units)`` and ``(k, 1, 1)``, are ``k``
      networks at once.

    Raises:
      ValueError: if an argument is no array of numbers, or the shapes do not fit.

    Example:
      >>> import numpy as np
      >>> x, w1, w2 = np.array([[1.0], [-1.0]]), np.array([[1.0]]), np.array([[np.log(3.0)]])
      >>> forward(x, w1, np.zeros(1), w2, np.zeros(1)).round(6)
      array([[0.75],
             [0.5 ]])
    """
    for name, value in {"x": x, "w1": w1, "b1": b1, "w2": w2, "b2": b2}.items():
        require_array(name, value, "an array of numbers", finite=False)  # a run may diverge
    _require_fit("w1", w1, "x", x)
    _require_fit("w2", w2, "w1", w1)
    for name, bias, w in (("b1", b1, w1), ("b2", b2, w2)):
        if bias.shape[-1] != w.shape[-1]:
            raise ValueError(f"{name} has the shape {tuple(bias.shape)}: it must end in {w.shape[-1]}")
    h = x @ w1 + b1
    z = anp.where(h > 0, h, 0.0) @ w2 + b2
    return (1 + anp.tanh(z / 2)) / 2  # the same as 1 / (1 + exp(-z)), and nothing overflows


def _require_fit(name, w, other, x):
    if len(x.shape) < 2 or len(w.shape) < 2 or w.shape[-2] != x.shape[-1]:
        shapes = f"{name} has the shape {tuple(w.shape)} and {other} {tuple(x.shape)}"
        raise ValueError(
            f"{shapes}: they must be matrices, and {name} needs a row for each column of {other}"
        )


def binary_cross_entropy(p, y):
    r"""Return the mean cost of labels that are 0 or 1, in nats.

    .. math:: -\tfrac1n \textstyle\sum_i \bigl(y_i \log p_i + (1 - y_i) \log(1 - p_i)\bigr)

    Args:
      p: probabilities of the label 1. As in Keras, those within ``1e-7`` of 0 or 1 count as that far
        away, and get no gradient.
      y: the labels, **of the same shape**; in TensorFlow also of the same dtype.

    Raises:
      ValueError: if the shapes differ, or a number lies outside of [0, 1] (that of a tensor passes).
        Shapes ``(n, 1)`` and ``(n,)`` would broadcast to ``(n, n)``: each probability with each label.

    Example:
      >>> import numpy as np
      >>> print(binary_cross_entropy(np.array([0.5, 0.8]), np.array([0.0, 1.0])).round(3))
      0.458
      >>> binary_cross_entropy(np.full((3, 1), 0.5), np.zeros(3))
      Traceback (most recent call last):
      ValueError: p has the shape (3, 1) and y (3,): they must be equal

    Note:
      PyTorch does not clip ``p``: it keeps each logarithm at -100 or above.
    """
    for name, value in (("p", p), ("y", y)):
        require(name, value, "an array of numbers in [0, 1]", lambda x: hasattr(x, "shape") and _is_share(x))
    if tuple(p.shape) != tuple(y.shape):
        raise ValueError(f"p has the shape {tuple(p.shape)} and y {tuple(y.shape)}: they must be equal")
    p = anp.where(p < EPS, EPS, anp.where(p > 1 - EPS, 1 - EPS, p))
    return -anp.mean(y * anp.log(p) + (1 - y) * anp.log(1 - p))


def _is_share(x):
    return (x >= 0) & (x <= 1)


@dataclass(frozen=True)
class Alternating:
    r"""Two rules in turn, on the same weights: ``every`` steps the first, then as many the second.

    With :math:`k` = ``every``, step :math:`t = 0, 1, \dots` is made by

    .. math:: \text{the first rule where } \lfloor t / k \rfloor \text{ is even, else by the second.}

    Each rule keeps its own state and sees only the gradients of its own steps: Adam's :math:`t`,
    :math:`m` and :math:`v` know nothing of what the other rule did in between.

    Args:
      first: a rule, such as ``SGD(lr=0.01)``.
      second: a rule, such as ``Adam(lr=0.01)``.
      every: :math:`k`, how many steps a rule makes before the other one's turn.

    Raises:
      ValueError: if ``first`` or ``second`` is no rule, or ``every`` no whole number >= 1.

    Example:
      >>> from dlopt_helpers.adam import Adam
      >>> from dlopt_helpers.sgd import SGD
      >>> rule = Alternating(SGD(lr=0.1), Adam(lr=0.1))
      >>> w, state = 1.0, rule.init(1.0)
      >>> for _ in range(5):
      ...     w, state = rule.step(w, 2 * w, state)
      >>> state["t"], state["second"]["t"]
      (5, 2)
    """

    first: Any
    second: Any
    every: int = 1

    def __post_init__(self):
        for name in ("first", "second"):
            rule = getattr(self, name)
            if isinstance(rule, type) or not (hasattr(rule, "init") and hasattr(rule, "step")):
                raise ValueError(f"{name}={rule!r} is not allowed: it must be a rule, such as SGD(lr=0.01)")
        require_one("every", self.every, "a whole number >= 1", lambda k: (k >= 1) & (k % 1 == 0))

    def init(self, w):
        """Return the state before the first step: no steps, and what each rule begins with."""
        return {"t": 0, "first": self.first.init(w), "second": self.second.init(w)}

    def turn(self, t):
        """Return whose step number ``t`` is, ``"first"`` or ``"second"``; the first step has number 0."""
        return ("first", "second")[t // self.every % 2]

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        name = self.turn(state["t"])
        w, own = getattr(self, name).step(w, gradient, state[name])
        return w, {**state, "t": state["t"] + 1, name: own}
