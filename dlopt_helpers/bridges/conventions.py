r"""Where a framework computes something else than the subject, its formula under its name."""

from dataclasses import asdict, dataclass, is_dataclass

from dlopt_helpers._require import refuse, require_kind
from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.sgd import SGD


def _decayed(rule, w):
    """Return the weights after Keras's decay, which is decoupled and comes first for every rule."""
    return w - rule.lr * rule.weight_decay * w


@dataclass(frozen=True)
class KerasSGD(SGD):
    r"""Stochastic gradient descent as Keras 3 computes it.

    .. math::

       v_{t+1} &= \mu v_t - \eta g_t \\
       w_{t+1} &= (1 - \eta\lambda)\, w_t + v_{t+1}
       \qquad\text{or, with Nesterov,}\qquad
       w_{t+1} = (1 - \eta\lambda)\, w_t + \mu v_{t+1} - \eta g_t

    The rate is inside the velocity, so a velocity remembers the rates of earlier steps: with a
    constant rate and no decay the path is that of :class:`~dlopt_helpers.sgd.SGD`, with a changing
    rate it is not. The decay is decoupled: it shrinks the weights and never enters the velocity.

    Args, errors and state are those of :class:`~dlopt_helpers.sgd.SGD`.

    Example:
      >>> rule = KerasSGD(lr=0.1, momentum=0.9)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> w, state["velocity"]
      (0.8, -0.2)

    References:
      ``keras/src/optimizers/sgd.py`` and ``base_optimizer.py`` (``_apply_weight_decay``), Keras 3.15.
    """

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        velocity = self.momentum * state["velocity"] - self.lr * gradient
        change = self.momentum * velocity - self.lr * gradient if self.nesterov else velocity
        return _decayed(self, w) + change, {"velocity": velocity}


@dataclass(frozen=True)
class KerasAdagrad(Adagrad):
    r"""Adagrad as Keras 3 computes it.

    .. math::

       a_{t+1} &= a_t + g_t^2 \\
       w_{t+1} &= (1 - \eta\lambda)\, w_t - \eta\,\frac{g_t}{\sqrt{a_{t+1} + \epsilon}}

    and :math:`a_0 = 0.1` (Keras's default ``initial_accumulator_value``), so the first steps are
    shorter than :math:`\eta`, and tiny gradients make tiny steps. :math:`\epsilon` stands under the
    root.

    Args and errors are those of :class:`~dlopt_helpers.adam.Adagrad`.

    Example:
      >>> rule = KerasAdagrad(lr=0.1)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(w, 6), state
      (0.901227, {'a': 4.1})

    References:
      ``keras/src/optimizers/adagrad.py``, Keras 3.15.
    """

    def init(self, w):
        """Return the state before the first step: a sum that is 0.1 already."""
        return {"a": 0 * w + 0.1}

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        a = state["a"] + gradient**2
        return _decayed(self, w) - self.lr * gradient / (a + self.eps) ** 0.5, {"a": a}


@dataclass(frozen=True)
class KerasRMSprop(RMSprop):
    r"""RMSprop as Keras 3 computes it.

    .. math::

       v_{t+1} &= \beta_2 v_t + (1 - \beta_2)\, g_t^2 \\
       w_{t+1} &= (1 - \eta\lambda)\, w_t - \eta\,\frac{g_t}{\sqrt{v_{t+1} + \epsilon}}

    With :math:`\epsilon` under the root its weight is that of :math:`\sqrt\epsilon` outside: Keras's
    default :math:`10^{-7}` acts on gradients below :math:`3 \cdot 10^{-4}`.

    Args, errors and state are those of :class:`~dlopt_helpers.adam.RMSprop`.

    Example:
      >>> rule = KerasRMSprop(lr=0.1, beta2=0.75, eps=3.0)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(w, 6), state
      (0.9, {'v': 1.0})

    References:
      ``keras/src/optimizers/rmsprop.py``, Keras 3.15.
    """

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        return _decayed(self, w) - self.lr * gradient / (v + self.eps) ** 0.5, {"v": v}


@dataclass(frozen=True)
class KerasAdam(Adam):
    r"""Adam as Keras 3 computes it: the epsilon is the paper's :math:`\hat\epsilon`.

    .. math::

       m_{t+1} &= \beta_1 m_t + (1 - \beta_1)\, g_t \\
       v_{t+1} &= \beta_2 v_t + (1 - \beta_2)\, g_t^2 \\
       w_{t+1} &= (1 - \eta\lambda)\, w_t
                 - \eta\,\frac{\sqrt{1 - \beta_2^{t+1}}}{1 - \beta_1^{t+1}}\,
                   \frac{m_{t+1}}{\sqrt{v_{t+1}} + \epsilon}

    It is :class:`~dlopt_helpers.adam.AdamW` with :math:`\epsilon / \sqrt{1 - \beta_2^{t+1}}` in place
    of :math:`\epsilon`: about 30 times as large in the first step at :math:`\beta_2 = 0.999`.

    Args, errors and state are those of :class:`~dlopt_helpers.adam.Adam`.

    Example:
      >>> rule = KerasAdam(lr=0.1, beta2=0.75, eps=1.0)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(w, 6), state["t"]
      (0.95, 1)

    References:
      ``keras/src/optimizers/adam.py`` and ``base_optimizer.py`` (``_apply_weight_decay``), Keras 3.15.
    """

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        t = state["t"] + 1
        m = self.beta1 * state["m"] + (1 - self.beta1) * gradient
        v = self.beta2 * state["v"] + (1 - self.beta2) * gradient**2
        after = {"t": t, "m": m, "v": v}
        if self.amsgrad:
            excess = v - state["v_max"]
            after["v_max"] = v = state["v_max"] + (excess + abs(excess)) / 2  # the larger of the two
        rate = self.lr * (1 - self.beta2**t) ** 0.5 / (1 - self.beta1**t)
        return _decayed(self, w) - rate * m / (v**0.5 + self.eps), after


@dataclass(frozen=True)
class KerasAdamW(AdamW):
    """AdamW as Keras 3 computes it: :class:`KerasAdam`, which decouples the decay already.

    Args, errors and state are those of :class:`~dlopt_helpers.adam.AdamW`.

    Example:
      >>> rule = KerasAdamW(lr=0.1, weight_decay=0.5)
      >>> w, state = rule.step(1.0, 0.0, rule.init(1.0))
      >>> round(w, 9)
      0.95

    References:
      ``keras/src/optimizers/adamw.py``, Keras 3.15.
    """

    step = KerasAdam.step


@dataclass(frozen=True)
class KerasNAdam(NAdam):
    r"""NAdam as Keras 3 computes it.

    .. math::

       w_t &\leftarrow (1 - \eta\lambda)\, w_t \\
       w_{t+1} &= \text{the step of NAdam with } \psi = 1 \text{ from there, with the gradient alone}

    so :math:`\mu_t` comes within one per cent of :math:`\beta_1` in 96 steps, where PyTorch's default
    :math:`\psi = 0.004` needs 24,000.

    Args, errors and state are those of :class:`~dlopt_helpers.adam.NAdam`, but ``momentum_decay`` has
    no effect: Keras has no such option.

    Example:
      >>> rule = KerasNAdam(lr=0.1)
      >>> w, state = rule.step(1.0, 2.0, rule.init(1.0))
      >>> round(state["mu_product"], 4)
      0.468

    References:
      ``keras/src/optimizers/nadam.py``, Keras 3.15.
    """

    def step(self, w, gradient, state):
        """Return the weights and the state after one step; the arguments stay as they are."""
        rule = NAdam(self.lr, self.beta1, self.beta2, self.eps, momentum_decay=1.0)
        return rule.step(_decayed(self, w), gradient, state)


# framework -> rule of the subject -> the rule with the same fields and the framework's formula
_FORMULAS = {
    "torch": {rule: rule for rule in (SGD, Adagrad, RMSprop, Adam, AdamW, NAdam)},
    "keras": {
        SGD: KerasSGD,
        Adagrad: KerasAdagrad,
        RMSprop: KerasRMSprop,
        Adam: KerasAdam,
        AdamW: KerasAdamW,
        NAdam: KerasNAdam,
    },
}
_SUBJECT = {formula: rule for formulas in _FORMULAS.values() for rule, formula in formulas.items()}


def require_rule(rule):
    """Raise ``ValueError`` unless ``rule`` is a rule: an instance of a data class that has a ``step``.

    Example:
      >>> require_rule(SGD(lr=0.1))
    """
    if isinstance(rule, type) or not is_dataclass(rule) or not hasattr(rule, "step"):
        refuse("rule", rule, "a rule, such as SGD(lr=0.1)")


def as_convention(rule, convention):
    """Return the rule with the fields of ``rule`` whose step is exactly the formula of a framework.

    Args:
      rule: a rule of the subject, or one that this function returned.
      convention: ``"torch"`` or ``"keras"``.

    Raises:
      ValueError: if the convention or the class of the rule is unknown.

    Example:
      >>> as_convention(SGD(lr=0.1, momentum=0.9), "keras")
      KerasSGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)
    """
    known = _FORMULAS.get(convention, {}) if isinstance(convention, str) else {}
    formula = known.get(_SUBJECT.get(type(rule)))
    if formula is None:
        rules = ", ".join(known.__name__ for known in _FORMULAS["torch"])
        conventions = " or ".join(map(repr, _FORMULAS))
        raise ValueError(
            f"there is no {type(rule).__name__} in convention={convention!r}: "
            f"rule must be one of {rules} in {conventions}"
        )
    return formula(**asdict(rule))


def rule_named(name, fields):
    """Return the rule of class ``name`` with these ``fields``, a dict; the way back from a saved file.

    Raises:
      ValueError: if no rule has that name, or such fields.

    Example:
      >>> rule_named("SGD", {"lr": 0.1}).lr
      0.1
    """
    known = {formula.__name__: formula for formula in _SUBJECT}
    if not (isinstance(name, str) and name in known):
        raise ValueError(f"name {name!r} is unknown: it must be one of {', '.join(known)}")
    require_kind("fields", fields, dict, f"a dict of the fields of {name}")
    try:
        return known[name](**fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"fields={fields!r} is not allowed: it must be those of {name}: {error}") from None
