"""Any rule of the subject as an optimiser of PyTorch."""

from collections.abc import Iterable
from dataclasses import fields

import torch

from dlopt_helpers._require import refuse, require_bool, require_kind
from dlopt_helpers.bridges.compiled import step as compiled_step
from dlopt_helpers.bridges.conventions import as_convention, require_rule


def _require_params(params):
    """Return parameters as a list, unless they are names and parameters in pairs or dicts."""
    if isinstance(params, torch.Tensor | dict | str) or not isinstance(params, Iterable):
        refuse("params", params, "parameters or dicts of them, as model.parameters()")
    params = list(params)
    if not params or not all(isinstance(p, torch.Tensor | dict | tuple) for p in params):
        refuse("params", params, "one or more parameters or dicts of them, as model.parameters()")
    return params


class RuleOptimizer(torch.optim.Optimizer):
    """Run an update rule as a ``torch.optim.Optimizer``.

    The fields of the rule are the options of a parameter group: groups may differ in them, and
    the schedulers of ``torch.optim.lr_scheduler`` change them (those that cycle the momentum need
    ``cycle_momentum=False`` for a rule without a field ``momentum``). A step computes all new weights
    before it writes the first, so a step that raises leaves model and state as they were.

    Args:
      params: parameters, or dicts with ``params`` and options of their own.
      rule: an update rule, such as ``SGD(lr=0.1)``.
      convention: ``"torch"`` or ``"keras"`` for the formula of that framework
        (:func:`~dlopt_helpers.bridges.conventions.as_convention`); by default the rule's own.
      compiled: build fast loops from the formula with ``torch.compile``. The first step waits some
        seconds for them (:mod:`dlopt_helpers.bridges.compiled`); the numbers are the same to rounding.

    Raises:
      ValueError: if a group holds an unknown option or a value that the rule refuses, and in
        ``step`` if a gradient is sparse or ``compiled`` cannot follow the formula.
      RuntimeError: in ``step``, if ``compiled`` finds no compiler.

    Example:
      >>> from dlopt_helpers.sgd import SGD
      >>> model = torch.nn.Linear(3, 1)
      >>> optimizer = RuleOptimizer(model.parameters(), SGD(lr=0.1, momentum=0.9))
      >>> model(torch.ones(2, 3)).sum().backward()
      >>> optimizer.step()
    """

    def __init__(self, params, rule, convention=None, compiled=False):
        require_bool(compiled=compiled)
        require_rule(rule)
        rule = rule if convention is None else as_convention(rule, convention)
        params = _require_params(params)
        self.rule_class, self.compiled, self._layouts = type(rule), compiled, {}
        super().__init__(params, {f.name: getattr(rule, f.name) for f in fields(rule)})

    def __getstate__(self):
        own = {"rule_class": self.rule_class, "compiled": self.compiled, "_layouts": {}}
        return {**super().__getstate__(), **own}

    def _rule(self, group):
        return self.rule_class(**{f.name: group[f.name] for f in fields(self.rule_class)})

    def add_param_group(self, param_group):
        """Add a group, as for any optimiser; unknown options and bad values are refused."""
        if isinstance(param_group, dict):
            if not (isinstance(params := param_group.get("params"), torch.Tensor) or params):
                refuse("param_group", param_group, "a dict whose params are one or more parameters")
            allowed = [*self.defaults, "params", "param_names", "initial_lr"]
            if unknown := [key for key in param_group if key not in allowed]:
                known = ", ".join(allowed)
                raise ValueError(f"param_group option {unknown[0]!r} is unknown: it must be one of {known}")
            try:
                self._rule({**self.defaults, **param_group})
            except ValueError as error:
                raise ValueError(f"param_group holds what the rule refuses: {error}") from None
        super().add_param_group(param_group)

    def state_dict(self):
        """Return what ``load_state_dict`` restores, with the name of the rule."""
        return {**super().state_dict(), "rule": self.rule_class.__name__}

    def load_state_dict(self, state_dict):
        """Restore what ``state_dict()`` gave; a dict that another rule made is refused."""
        require_kind("state_dict", state_dict, dict, "what state_dict() returned")
        saved, own = state_dict.get("rule"), self.rule_class.__name__
        if saved != own:
            raise ValueError(f"state_dict was saved by {saved or 'another optimiser'}: it must be {own}'s")
        super().load_state_dict(state_dict)

    @torch.no_grad()
    def step(self, closure=None):
        """Make one step and return what ``closure``, which computes the gradients anew, returns."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        due = [list(self._due(group)) for group in self.param_groups]
        if self.compiled:
            self.state.update(compiled_step(due, self._layouts))
            return loss
        for p, w, state in [(p, *rule.step(p, p.grad, state)) for group in due for rule, p, state in group]:
            p.copy_(w)
            self.state[p] = state
        return loss

    def _due(self, group):
        """Yield the rule, the parameter and its state before the step for each that has a gradient."""
        rule = self._rule(group)
        for p in group["params"]:
            if (gradient := p.grad) is None:
                continue
            if gradient.layout != torch.strided:
                raise ValueError("a gradient is sparse: build the layer with sparse=False")
            yield rule, p, self.state.get(p) or rule.init(p)
