r"""Where a framework computes something else than the subject, its formula under its name."""

from dataclasses import asdict, dataclass

from dlopt_helpers.sgd import SGD


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
        return w - self.lr * self.weight_decay * w + change, {"velocity": velocity}


# (framework, rule of the subject) -> the rule with the same fields and the framework's formula
_FORMULAS = {
    ("torch", SGD): SGD,
    ("keras", SGD): KerasSGD,
}
_SUBJECT = {formula: rule for (_, rule), formula in _FORMULAS.items()}


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
    formula = _FORMULAS.get((convention, _SUBJECT.get(type(rule))))
    if formula is None:
        known = ", ".join(f"{rule.__name__} in {name!r}" for name, rule in _FORMULAS)
        raise ValueError(f"there is no {type(rule).__name__} in convention={convention!r}: known are {known}")
    return formula(**asdict(rule))


def rule_named(name, fields):
    """Return the rule of class ``name`` with these ``fields``, a dict; the way back from a saved file.

    Raises:
      ValueError: if no rule has that name.

    Example:
      >>> rule_named("SGD", {"lr": 0.1}).lr
      0.1
    """
    known = {formula.__name__: formula for formula in _SUBJECT}
    if name not in known:
        raise ValueError(f"rule {name!r} is unknown: it must be one of {', '.join(known)}")
    return known[name](**fields)
