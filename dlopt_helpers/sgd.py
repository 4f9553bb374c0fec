r"""Stochastic gradient descent, as in chapter 3.1."""

from dataclasses import dataclass

from dlopt_helpers._require import require, require_bool


@dataclass(frozen=True)
class SGD:
    r"""Stochastic gradient descent: plain, heavy-ball and Nesterov.

    With the mini-batch gradient :math:`g_t` at the weights :math:`w_t`,

    .. math::

       g_t &\leftarrow g_t + \lambda w_t \\
       v_{t+1} &= \mu v_t + g_t \\
       w_{t+1} &= w_t - \eta v_{t+1}
       \qquad\text{or, with Nesterov,}\qquad
       w_{t+1} = w_t - \eta\,(g_t + \mu v_{t+1})

    and :math:`v_0 = 0`. Without momentum all three are the plain rule
    :math:`w_{t+1} = w_t - \eta g_t`.

    Args:
      lr: learning rate :math:`\eta \ge 0`. An array that broadcasts against the
        weights gives each slice its own rate, and so trains stacked networks at once.
      momentum: :math:`\mu` in [0, 1), the share of the old velocity that is kept.
      nesterov: look ahead along the new velocity; needs ``momentum > 0``.
      weight_decay: :math:`\lambda \ge 0`, added to the gradient as :math:`\lambda w`.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = SGD(lr=0.1)
      >>> w = 1.0
      >>> state = rule.init(w)
      >>> w, state = rule.step(w, 2 * w, state)
      >>> w
      0.8

    References:
      Robbins and Monro 1951 (plain); Polyak 1964 (heavy ball); Nesterov 1983;
      Sutskever et al. 2013, "On the importance of initialization and momentum in
      deep learning" (the two as used in deep learning).

    Note:
      PyTorch computes exactly this. Keras multiplies the rate into the velocity and
      decouples the decay: see :mod:`dlopt_helpers.bridges.conventions`.
      Pass Python numbers: NumPy 2 turns float32 weights into float64 where ``lr`` is a ``np.float64``.
    """

    lr: float = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0

    def __post_init__(self):
        require("lr", self.lr, "a finite number >= 0", lambda x: x >= 0)
        require("momentum", self.momentum, "a number in [0, 1)", lambda x: (x >= 0) & (x < 1))
        require("weight_decay", self.weight_decay, "a finite number >= 0", lambda x: x >= 0)
        require_bool(nesterov=self.nesterov)
        if self.nesterov:
            require("momentum", self.momentum, "greater than 0 when nesterov=True", lambda x: x > 0)

    def init(self, w):
        """Return the state before the first step, a velocity of zeros shaped like ``w``."""
        return {"velocity": 0 * w}

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        gradient = gradient + self.weight_decay * w
        velocity = self.momentum * state["velocity"] + gradient
        direction = velocity
        if self.nesterov:
            direction = gradient + self.momentum * velocity
        return w - self.lr * direction, {"velocity": velocity}
