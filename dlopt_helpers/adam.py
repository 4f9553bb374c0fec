r"""Adam and its family, as in chapter 3.2."""

from dataclasses import dataclass

from dlopt_helpers._require import require, require_bool


def _require_all(rule):
    """Check the hyper-parameters of any rule of the family."""
    for name in ("lr", "eps", "weight_decay", "momentum_decay"):
        if hasattr(rule, name):
            require(name, getattr(rule, name), "a finite number >= 0", lambda x: x >= 0)
    for name in ("beta1", "beta2"):
        if hasattr(rule, name):
            require(name, getattr(rule, name), "a number in [0, 1)", lambda x: (x >= 0) & (x < 1))
    if hasattr(rule, "amsgrad"):
        require_bool(amsgrad=rule.amsgrad)


@dataclass(frozen=True)
class Adagrad:
    r"""Adagrad: each weight divides its rate by the root of all its squared gradients.

    .. math::

       g_t &\leftarrow g_t + \lambda w_t \\
       a_{t+1} &= a_t + g_t^2 \\
       w_{t+1} &= w_t - \eta\,\frac{g_t}{\sqrt{a_{t+1}} + \epsilon}

    and :math:`a_0 = 0`. All operations are element by element.

    Args:
      lr: learning rate :math:`\eta \ge 0`.
      eps: :math:`\epsilon \ge 0`, keeps the division defined where every gradient was 0.
      weight_decay: :math:`\lambda \ge 0`, added to the gradient as :math:`\lambda w`.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = Adagrad(lr=0.1)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(w, 6), state
      (0.9, {'a': 4.0})

    References:
      Duchi, Hazan and Singer 2011, "Adaptive subgradient methods for online learning and
      stochastic optimization".

    Note:
      PyTorch computes exactly this. Keras starts from :math:`a_0 = 0.1` and has :math:`\epsilon`
      under the root: see :mod:`dlopt_helpers.bridges.conventions`.
    """

    lr: float = 0.01
    eps: float = 1e-10
    weight_decay: float = 0.0

    __post_init__ = _require_all

    def init(self, w):
        """Return the state before the first step: no squares yet."""
        return {"a": 0 * w}

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        gradient = gradient + self.weight_decay * w
        a = state["a"] + gradient**2
        return w - self.lr * gradient / (a**0.5 + self.eps), {"a": a}


@dataclass(frozen=True)
class RMSprop:
    r"""RMSprop: Adagrad that forgets, with a fading mean of the squares in place of their sum.

    .. math::

       g_t &\leftarrow g_t + \lambda w_t \\
       v_{t+1} &= \beta_2 v_t + (1 - \beta_2)\, g_t^2 \\
       w_{t+1} &= w_t - \eta\,\frac{g_t}{\sqrt{v_{t+1}} + \epsilon}

    and :math:`v_0 = 0`.

    Args:
      lr: learning rate :math:`\eta \ge 0`.
      beta2: :math:`\beta_2` in [0, 1), the share of the old mean that is kept (PyTorch's
        ``alpha``, Keras's ``rho``).
      eps: :math:`\epsilon \ge 0`, keeps the division defined where every gradient was 0.
      weight_decay: :math:`\lambda \ge 0`, added to the gradient as :math:`\lambda w`.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = RMSprop(lr=0.1, beta2=0.75)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(w, 6), state
      (0.8, {'v': 1.0})

    References:
      Tieleman and Hinton 2012, "Lecture 6.5 - rmsprop: Divide the gradient by a running average
      of its recent magnitude", Neural Networks for Machine Learning (lecture slides).

    Note:
      PyTorch computes exactly this (there with ``momentum=0`` and ``centered=False``). Keras has
      :math:`\epsilon` under the root.
    """

    lr: float = 0.01
    beta2: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0

    __post_init__ = _require_all

    def init(self, w):
        """Return the state before the first step: a mean of squares that is 0."""
        return {"v": 0 * w}

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        gradient = gradient + self.weight_decay * w
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        return w - self.lr * gradient / (v**0.5 + self.eps), {"v": v}


@dataclass(frozen=True)
class Adam:
    r"""Adam: momentum over RMSprop, both corrected for their start at 0.

    .. math::

       g_t &\leftarrow g_t + \lambda w_t \\
       m_{t+1} &= \beta_1 m_t + (1 - \beta_1)\, g_t
       & \hat m &= \frac{m_{t+1}}{1 - \beta_1^{t+1}} \\
       v_{t+1} &= \beta_2 v_t + (1 - \beta_2)\, g_t^2
       & \hat v &= \frac{v_{t+1}}{1 - \beta_2^{t+1}} \\
       w_{t+1} &= w_t - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}

    with :math:`m_0 = v_0 = 0` and :math:`t = 0` at the first step.

    Args:
      lr: learning rate :math:`\eta \ge 0`; no weight moves much further than this in a step.
      beta1: :math:`\beta_1` in [0, 1), the memory of the mean gradient.
      beta2: :math:`\beta_2` in [0, 1), the memory of the mean square.
      eps: :math:`\epsilon \ge 0`, keeps the division defined; large, it turns the rule into SGD
        with momentum and rate :math:`\eta/\epsilon`.
      amsgrad: divide by the largest :math:`v` so far.
      weight_decay: :math:`\lambda \ge 0`, added to the gradient as :math:`\lambda w`, and so
        divided by :math:`\sqrt{\hat v}` as well; :class:`AdamW` keeps it out.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = Adam(lr=0.1)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(w, 6), state["t"]
      (0.9, 1)

    References:
      Kingma and Ba 2015, "Adam: a method for stochastic optimization" (arXiv:1412.6980);
      Reddi, Kale and Kumar 2018, "On the convergence of Adam and beyond" (AMSGrad).

    Note:
      PyTorch computes exactly this. Keras adds :math:`\epsilon` before the correction (the paper's
      :math:`\hat\epsilon`) and decouples the decay.
    """

    lr: float = 1e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    amsgrad: bool = False
    weight_decay: float = 0.0

    __post_init__ = _require_all

    def init(self, w):
        """Return the state before the first step: no steps, and both means 0."""
        state = {"t": 0, "m": 0 * w, "v": 0 * w}
        return state | {"v_max": 0 * w} if self.amsgrad else state

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        gradient = gradient + self.weight_decay * w
        t = state["t"] + 1
        m = self.beta1 * state["m"] + (1 - self.beta1) * gradient
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        after = {"t": t, "m": m, "v": v}
        if self.amsgrad:
            excess = v - state["v_max"]
            # What is positive of it, added, makes the larger of the two.
            after["v_max"] = v = state["v_max"] + (excess + abs(excess)) / 2
        m_hat = m / (1 - self.beta1**t)
        v_hat = v / (1 - self.beta2**t)
        return w - self.lr * m_hat / (v_hat**0.5 + self.eps), after


@dataclass(frozen=True)
class AdamW(Adam):
    r"""Adam with decoupled weight decay: the weights shrink, the gradient does not know.

    .. math::

       w_t &\leftarrow w_t - \eta\lambda w_t \\
       w_{t+1} &= \text{the step of Adam from there, with the gradient alone}

    Args:
      lr, beta1, beta2, eps, amsgrad: those of :class:`Adam`.
      weight_decay: :math:`\lambda \ge 0`; each step shrinks the weights by the share
        :math:`\eta\lambda`.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = AdamW(lr=0.1, weight_decay=0.5)
      >>> w, state = rule.step(1.0, 0.0, rule.init(1.0))
      >>> round(w, 9)
      0.95

    References:
      Loshchilov and Hutter 2019, "Decoupled weight decay regularization" (arXiv:1711.05101).

    Note:
      PyTorch computes exactly this.
    """

    weight_decay: float = 0.01

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        w = w - self.lr * self.weight_decay * w
        adam = Adam(self.lr, self.beta1, self.beta2, self.eps, self.amsgrad)
        return adam.step(w, gradient, state)


@dataclass(frozen=True)
class NAdam:
    r"""NAdam: Adam with Nesterov's look-ahead, and a momentum that grows towards beta1.

    .. math::

       g_t &\leftarrow g_t + \lambda w_t \\
       \mu_t &= \beta_1 \left(1 - \tfrac12\, 0.96^{(t+1)\psi}\right) \\
       m_{t+1} &= \beta_1 m_t + (1 - \beta_1)\, g_t
       & \hat m &= \frac{\mu_{t+1}\, m_{t+1}}{1 - \prod_{i \le t+1} \mu_i}
                   + \frac{(1 - \mu_t)\, g_t}{1 - \prod_{i \le t} \mu_i} \\
       v_{t+1} &= \beta_2 v_t + (1 - \beta_2)\, g_t^2
       & \hat v &= \frac{v_{t+1}}{1 - \beta_2^{t+1}} \\
       w_{t+1} &= w_t - \eta\,\frac{\hat m}{\sqrt{\hat v} + \epsilon}

    with :math:`m_0 = v_0 = 0` and :math:`t = 0` at the first step.

    Args:
      lr, beta1, beta2, eps, weight_decay: those of :class:`Adam`.
      momentum_decay: :math:`\psi \ge 0`, how fast :math:`\mu_t` grows from about half of
        :math:`\beta_1` to all of it.

    Raises:
      ValueError: if a hyper-parameter lies outside its range.

    Example:
      >>> rule = NAdam(lr=0.1)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(state["mu_product"], 4)
      0.4501

    References:
      Dozat 2016, "Incorporating Nesterov momentum into Adam" (ICLR workshop).

    Note:
      PyTorch computes exactly this. Keras has :math:`\psi = 1` and decouples the decay.
    """

    lr: float = 2e-3
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum_decay: float = 4e-3

    __post_init__ = _require_all

    def init(self, w):
        """Return the state before the first step."""
        return {"t": 0, "mu_product": 1.0, "m": 0 * w, "v": 0 * w}

    def _mu(self, t):
        return self.beta1 * (1 - 0.5 * 0.96 ** (t * self.momentum_decay))

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        gradient = gradient + self.weight_decay * w
        t = state["t"] + 1
        mu, mu_next = self._mu(t), self._mu(t + 1)
        mu_product = state["mu_product"] * mu
        m = self.beta1 * state["m"] + (1 - self.beta1) * gradient
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        ahead, now = mu_next * m, (1 - mu) * gradient
        m_hat = ahead / (1 - mu_product * mu_next) + now / (1 - mu_product)
        v_hat = v / (1 - self.beta2**t)
        state = {"t": t, "mu_product": mu_product, "m": m, "v": v}
        return w - self.lr * m_hat / (v_hat**0.5 + self.eps), state
