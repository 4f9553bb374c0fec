r"""Lion, Muon and schedule-free: rules that came after Adam, as in chapter 5."""

from dataclasses import dataclass

from autoray import numpy as ar

from dlopt_helpers._require import (
    refuse,
    require,
    require_array,
    require_bool,
    require_one,
    require_option,
    require_whole,
)

QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan's coefficients: steep at 0, and only roughly 1 beyond
TINY = 1e-30  # keeps 0/0 out of a sign; what is larger than 1e-22 in size does not notice it
SCALES = {
    "original": lambda rows, columns: max(1, rows / columns) ** 0.5,
    "moonshot": lambda rows, columns: 0.2 * max(rows, columns) ** 0.5,
}


def _require_all(rule):
    """Check the hyper-parameters of any rule of this module."""
    for name in ("lr", "eps", "weight_decay"):
        if hasattr(rule, name):
            require(name, getattr(rule, name), "a finite number >= 0", lambda x: x >= 0)
    for name in ("beta1", "beta2", "momentum"):
        if hasattr(rule, name):
            require(name, getattr(rule, name), "a number in [0, 1)", lambda x: (x >= 0) & (x < 1))


@dataclass(frozen=True)
class Lion:
    r"""Lion: the sign of a mean gradient, so that every weight moves by the learning rate.

    .. math::

       u_t &= \beta_1 m_t + (1 - \beta_1)\, g_t \\
       w_{t+1} &= w_t - \eta\,(\operatorname{sign} u_t + \lambda w_t) \\
       m_{t+1} &= \beta_2 m_t + (1 - \beta_2)\, g_t

    and :math:`m_0 = 0`. All operations are element by element.

    Args:
      lr: learning rate :math:`\eta \ge 0`, the distance that each weight moves in a step.
      beta1: :math:`\beta_1` in [0, 1), the share of the old mean in the direction of this step.
      beta2: :math:`\beta_2` in [0, 1), the share of the old mean that is kept.
      weight_decay: :math:`\lambda \ge 0`, decoupled: a step shrinks the weights by the share
        :math:`\eta\lambda`.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = Lion(lr=0.1)
      >>> w, state = rule.step(1.0, 200.0, rule.init(1.0))
      >>> round(w, 6), round(state["m"], 6)
      (0.9, 2.0)

    References:
      Chen et al. 2023, "Symbolic discovery of optimization algorithms" (arXiv:2302.06675).

    Note:
      Keras computes exactly this; PyTorch has no Lion.
    """

    lr: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.99
    weight_decay: float = 0.0

    __post_init__ = _require_all

    def init(self, w):
        """Return the state before the first step: a mean that is 0."""
        return {"m": 0 * w}

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        u = self.beta1 * state["m"] + (1 - self.beta1) * gradient
        m = self.beta2 * state["m"] + (1 - self.beta2) * gradient
        sign = u / (abs(u) + TINY)
        return w - self.lr * (sign + self.weight_decay * w), {"m": m}


def _turned(x):
    """Return a matrix, or each of a stack, with rows and columns exchanged."""
    *stack, rows, columns = range(len(x.shape))
    return ar.transpose(x, (*stack, columns, rows))


def newton_schulz(x, steps=5, coefficients=QUINTIC, eps=1e-7):
    r"""Return a matrix with the directions of ``x`` and singular values near 1.

    .. math::

       X \leftarrow \frac{X}{\lVert X\rVert_F + \epsilon}, \qquad
       \text{then } X \leftarrow aX + (bA + cA^2)\,X \text{ with } A = XX^\top

    Each step sends every singular value :math:`s` to :math:`as + bs^3 + cs^5` and turns nothing. A tall
    matrix is worked on lying down: the result is the same and :math:`A` as small as it can be.

    Args:
      x: a matrix, or a stack of them along leading axes.
      steps: number of steps, a whole number >= 0.
      coefficients: :math:`(a, b, c)`.
      eps: :math:`\epsilon \ge 0`, keeps the division defined where the matrix is 0.

    Raises:
      ValueError: if ``x`` is no matrix, or ``steps`` or ``eps`` lies outside its range.

    Example:
      >>> import numpy as np
      >>> np.linalg.svd(newton_schulz(np.diag([3.0, 0.3])))[1].round(2).tolist()
      [0.71, 0.7]

    References:
      Jordan 2024, "Muon: an optimizer for hidden layers in neural networks".
    """
    # Numbers that are not finite pass: a run that diverges shall end as others do, by its loss.
    require_array("x", x, "a matrix of numbers or a stack of them", finite=False)
    if len(x.shape) < 2:
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must be a matrix or a stack of them")
    steps = require_whole("steps", steps, 0)
    require_one("eps", eps, "a finite number >= 0", lambda e: e >= 0)
    if not (isinstance(coefficients, tuple | list) and len(coefficients) == 3):
        refuse("coefficients", coefficients, "three numbers")
    for one in coefficients:
        require_one("coefficients", one, "three finite numbers", lambda _: True)
    a, b, c = coefficients
    tall = x.shape[-2] > x.shape[-1]
    x = _turned(x) if tall else x
    x = x / (ar.sum(x**2, axis=(-2, -1), keepdims=True) ** 0.5 + eps)
    for _ in range(steps):
        gram = x @ _turned(x)
        x = a * x + (b * gram + c * gram @ gram) @ x
    return _turned(x) if tall else x


def newton_schulz_macs(rows, columns, steps=5):
    r"""Return the multiply-accumulates of the matrix products in :func:`newton_schulz`.

    .. math:: k\,(2 m^2 n + m^3), \qquad m = \min, \quad n = \max \text{ of rows and columns}

    Args:
      rows, columns: of the matrix, whole numbers >= 1.
      steps: :math:`k`, a whole number >= 0.

    Raises:
      ValueError: if an argument lies outside its range.

    Example:
      >>> newton_schulz_macs(100, 40)
      1920000
    """
    for name, value in {"rows": rows, "columns": columns}.items():
        require_whole(name, value, 1)
    require_whole("steps", steps, 0)
    short, long = min(rows, columns), max(rows, columns)
    return steps * (2 * short**2 * long + short**3)


@dataclass(frozen=True)
class Muon:
    r"""Muon: momentum whose matrix is made orthogonal, so that every direction moves alike.

    .. math::

       v_{t+1} &= \mu v_t + g_t \\
       w_{t+1} &= (1 - \eta\lambda)\, w_t - \eta\, s\, \operatorname{NS}(g_t + \mu v_{t+1})

    with :math:`v_0 = 0` and NS that of :func:`newton_schulz`. The scale :math:`s` depends on the shape:
    :math:`\sqrt{\max(1, \text{rows}/\text{columns})}` as first published, or Moonshot's
    :math:`0.2\sqrt{\max(\text{rows}, \text{columns})}`, which makes a step as long as Adam's usually are.

    Args:
      lr: learning rate :math:`\eta \ge 0`.
      momentum: :math:`\mu` in [0, 1).
      nesterov: look ahead, as in the formula; without it NS gets :math:`v_{t+1}`.
      weight_decay: :math:`\lambda \ge 0`, decoupled.
      scale: ``"original"`` or ``"moonshot"``. Rows are outputs, as PyTorch stores a layer.
      steps: of Newton-Schulz.
      eps: :math:`\epsilon \ge 0` of Newton-Schulz.

    Raises:
      ValueError: if a hyper-parameter lies outside its range, or the weights are no matrix.

    Example:
      >>> import numpy as np
      >>> rule = Muon(lr=0.1)
      >>> w, state = rule.step(np.eye(2), np.diag([3.0, 0.3]), rule.init(np.eye(2)))
      >>> w.round(2).tolist()
      [[0.93, 0.0], [0.0, 0.93]]

    References:
      Jordan 2024, "Muon: an optimizer for hidden layers in neural networks"; Liu et al. 2025, "Muon is
      scalable for LLM training" (arXiv:2502.16982; the second scale).

    Note:
      PyTorch computes NS in bfloat16. Its momentum is a mean, :math:`1 - \mu` times ours, which NS
      divides out again. Keras has the second scale alone, or none.
    """

    lr: float = 0.02
    momentum: float = 0.95
    nesterov: bool = True
    weight_decay: float = 0.0
    scale: str = "original"
    steps: int = 5
    eps: float = 1e-7

    def __post_init__(self):
        _require_all(self)
        require_bool(nesterov=self.nesterov)
        require_option("scale", self.scale, SCALES)
        require_whole("steps", self.steps, 0)

    def init(self, w):
        """Return the state before the first step: a velocity of zeros."""
        return {"velocity": 0 * w}

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        velocity = self.momentum * state["velocity"] + gradient
        ahead = gradient + self.momentum * velocity if self.nesterov else velocity
        direction = newton_schulz(ahead, self.steps, eps=self.eps) * SCALES[self.scale](*w.shape[-2:])
        return w - self.lr * (direction + self.weight_decay * w), {"velocity": velocity}


def _require_beta(name, value):
    require(name, value, "a number in (0, 1)", lambda x: (x > 0) & (x < 1))


@dataclass(frozen=True)
class ScheduleFreeSGD:
    r"""Schedule-free SGD: steps from one point, gradients at another, and their average to use.

    .. math::

       z_{t+1} &= z_t - \eta\, g(y_t) \\
       x_{t+1} &= (1 - c)\, x_t + c\, z_{t+1}, \qquad c = \frac{1}{t + 1} \\
       y_{t+1} &= (1 - \beta)\, z_{t+1} + \beta x_{t+1}

    with :math:`x_0 = y_0 = z_0` and :math:`t = 0` at the first step. The weights in training are
    :math:`y`; those to evaluate and to keep are :math:`x`, which :meth:`average` returns.

    Args:
      lr: learning rate :math:`\eta \ge 0`, constant.
      beta: :math:`\beta` in (0, 1), how near to the average gradients are taken.
      weight_decay: :math:`\lambda \ge 0`, adds :math:`\lambda y` to the gradient.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = ScheduleFreeSGD(lr=0.1)
      >>> y, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> y, state = rule.step(y, 2.0, state)
      >>> round(state["z"], 6), round(rule.average(y, state), 6), round(y, 6)
      (0.6, 0.7, 0.69)

    References:
      Defazio et al. 2024, "The road less scheduled" (arXiv:2405.15682).

    Note:
      The authors' package ``schedulefree`` computes exactly this, and has a warm-up as well. Like it, the
      state keeps :math:`z` alone: :math:`x` follows from :math:`y` and :math:`z`.
    """

    lr: float = 1.0
    beta: float = 0.9
    weight_decay: float = 0.0

    def __post_init__(self):
        _require_all(self)
        _require_beta("beta", self.beta)

    def init(self, w):
        """Return the state before the first step: z starts where the weights are."""
        return {"t": 0, "z": 1 * w}

    def average(self, w, state):
        """Return x, the weights to evaluate, from the weights in training."""
        return (w - (1 - self.beta) * state["z"]) / self.beta

    def step(self, w, gradient, state):
        """Return the weights y and the state after one step; the arguments stay as they are."""
        t = state["t"] + 1
        z = state["z"] - self.lr * (gradient + self.weight_decay * w)
        x = (1 - 1 / t) * self.average(w, state) + z / t
        return (1 - self.beta) * z + self.beta * x, {"t": t, "z": z}


@dataclass(frozen=True)
class ScheduleFreeAdamW:
    r"""Schedule-free AdamW: the average takes the place of Adam's first mean.

    .. math::

       v_{t+1} &= \beta_2 v_t + (1 - \beta_2)\, g(y_t)^2, \qquad \hat v = \frac{v_{t+1}}{1 - \beta_2^{t+1}} \\
       z_{t+1} &= z_t - \eta\left(\frac{g(y_t)}{\sqrt{\hat v} + \epsilon} + \lambda y_t\right)

    then :math:`x` and :math:`y` as in :class:`ScheduleFreeSGD`, with :math:`\beta_1` for :math:`\beta`.

    Args:
      lr: learning rate :math:`\eta \ge 0`, constant.
      beta1: :math:`\beta_1` in (0, 1), how near to the average gradients are taken.
      beta2: :math:`\beta_2` in [0, 1), the memory of the mean square.
      eps: :math:`\epsilon \ge 0`, keeps the division defined.
      weight_decay: :math:`\lambda \ge 0`, decoupled.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = ScheduleFreeAdamW(lr=0.1)
      >>> y, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(y, 6), round(rule.average(y, state), 6)
      (0.9, 0.9)

    References:
      Defazio et al. 2024, "The road less scheduled" (arXiv:2405.15682).
    """

    lr: float = 0.0025
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self):
        _require_all(self)
        _require_beta("beta1", self.beta1)

    def init(self, w):
        """Return the state before the first step: z starts where the weights are, v at 0."""
        return {"t": 0, "z": 1 * w, "v": 0 * w}

    def average(self, w, state):
        """Return x, the weights to evaluate, from the weights in training."""
        return (w - (1 - self.beta1) * state["z"]) / self.beta1

    def step(self, w, gradient, state):
        """Return the weights y and the state after one step; the arguments stay as they are."""
        t = state["t"] + 1
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        scaled = gradient / ((v / (1 - self.beta2**t)) ** 0.5 + self.eps)
        z = state["z"] - self.lr * (scaled + self.weight_decay * w)
        x = (1 - 1 / t) * self.average(w, state) + z / t
        return (1 - self.beta1) * z + self.beta1 * x, {"t": t, "z": z, "v": v}
