"""A grid of settings, trained at once."""

import inspect
import itertools
import math
import numbers
from dataclasses import fields, is_dataclass, replace

import joblib
import numpy as np
import pandas as pd
import torch
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import cross_entropy

from dlopt_helpers._require import refuse, require_function, require_kind, require_option, require_whole
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.training import LOSS_ON, batches, one_thread, recorded, require_data, tensors
from dlopt_helpers.sgd import SGD

STACK = 16  # networks trained at once: fewer waste time on calls, more leave the processor's cache


def constant(step, steps):
    """Return 1, the factor of a learning rate that stays.

    Example:
      >>> constant(5, 10)
      1.0
    """
    return 1.0


def cosine(step, steps):
    """Return the factor that falls from 1 along half a cosine and would be 0 after the last step.

    Raises:
      ValueError: if ``step`` is no whole number in [0, steps], or ``steps`` none >= 1.

    Example:
      >>> round(cosine(0, 10), 3), round(cosine(5, 10), 3), round(cosine(9, 10), 3)
      (1.0, 0.5, 0.024)
    """
    steps = require_whole("steps", steps, 1)
    require_whole("step", step, 0, steps)
    return (1 + math.cos(math.pi * step / steps)) / 2


def sweep(
    grid,
    *,
    rule=SGD,
    model=mlp,
    data=None,
    steps=1_000,
    every=50,
    schedule=constant,
    seeds=range(5),
    dtype="float32",
):
    r"""Train one network for each setting of ``grid`` and each seed, many of them at once.

    The parameters of :math:`K` networks are stacked into arrays of shape :math:`(K, \dots)`, and the
    rule gets hyper-parameters of shape :math:`(K, 1, \dots)`: its formula is the same. A run
    equals the run that :func:`~dlopt_helpers.lab.training.train` makes with that seed, up to rounding
    (which a setting at the edge of divergence can amplify).

    Settings that differ in what cannot be stacked (batch size, size of the model, Nesterov or not) go
    into separate stacks. These can run on several cores (:mod:`dlopt_helpers.lab.spread`). Results are
    kept on disk (:mod:`dlopt_helpers.lab.memo`).

    Args:
      grid: maps names to values: fields of ``rule``, ``batch_size`` (64 unless given) and arguments of
        ``model``. A list makes one setting for each value, and all combinations are tried.
      rule: an update rule, the class.
      model: a function that takes ``seed`` and returns a classifier.
      data: a :class:`~dlopt_helpers.lab.data.Data`; MNIST-1D unless given.
      steps: number of updates.
      every: updates between two rows.
      schedule: ``schedule(step, steps)`` returns the factor on the learning rate at a step, such as
        :func:`cosine`.
      seeds: of the initial weights and of the order of the examples.
      dtype: ``"float32"`` or ``"float64"``.

    Returns:
      A data frame, one row per setting, seed and measured step: the names in ``grid``, ``seed``,
      and the columns of ``train``. A run that diverges ends early and leaves the others alone.

    Raises:
      ValueError: if an argument is not allowed; if the grid is empty, or holds an unknown name or a value
        that the rule refuses.

    Example:
      >>> from dlopt_helpers.lab.data import digits
      >>> runs = sweep({"lr": [0.01, 0.1], "inputs": 64}, data=digits(), steps=100, seeds=[0])
      >>> runs.groupby("lr").loss.last().round(1).to_dict()
      {0.01: 2.3, 0.1: 1.5}
    """
    require_option("dtype", dtype, ("float32", "float64"))
    require_function("schedule", schedule)
    steps, every = require_whole("steps", steps, 0), require_whole("every", every, 1)
    if data is not None:
        require_data(data)
    require_kind("seeds", seeds, list | tuple | range | np.ndarray, "a list of whole numbers")
    settings, seeds = _settings(grid, rule, model), [require_whole("one of seeds", s, 0) for s in seeds]
    if not seeds:
        raise ValueError("seeds is empty: give at least one")
    return _sweep(settings, rule, model, data, steps, every, seeds, dtype, schedule)


def _settings(grid, rule, model):
    """Return the combinations of ``grid``, each a dict, after checking every name and value."""
    require_kind("grid", grid, dict, "a dict from names to values")
    if not (isinstance(rule, type) and is_dataclass(rule) and hasattr(rule, "step")):
        refuse("rule", rule, "the class of a rule, such as SGD")
    if not (callable(model) and "seed" in inspect.signature(model).parameters):
        refuse("model", model, "a function that takes seed, such as mlp")
    known = [*(f.name for f in fields(rule)), "batch_size", *inspect.signature(model).parameters]
    known.remove("seed")
    if unknown := [name for name in grid if name not in known]:
        raise ValueError(f"grid holds {unknown[0]!r}, which is unknown: it must be one of {', '.join(known)}")
    values = [v.tolist() if isinstance(v, np.ndarray) else v for v in grid.values()]
    values = [list(v) if isinstance(v, list | range) else [v] for v in values]
    settings = [dict(zip(grid, v, strict=True)) for v in itertools.product(*values)]
    if not settings or not grid:
        raise ValueError(f"grid={grid!r} is empty: give at least one name, and a value for each")
    for setting in settings:
        try:
            rule(**_of_rule(setting, rule))
            require_whole("batch_size", setting.get("batch_size", 64), 1)
        except ValueError as error:
            raise ValueError(f"grid holds {setting!r}: {error}") from None
    return settings


def _of_rule(setting, rule):
    return {f.name: setting[f.name] for f in fields(rule) if f.name in setting}


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _stacks(settings, rule, seeds):
    """Group the runs, pairs of setting and seed, into stacks of at most ``STACK``."""
    groups = {}
    for setting, seed in itertools.product(settings, seeds):
        stackable = [k for k, v in _of_rule(setting, rule).items() if _is_number(v)]
        alike = tuple((k, v) for k, v in setting.items() if k not in stackable)
        groups.setdefault(alike, []).append((setting, seed))
    return [g[i : i + STACK] for g in groups.values() for i in range(0, len(g), STACK)]


@published
def _sweep(settings, rule, model, data, steps, every, seeds, dtype, schedule=constant):
    stacks = _stacks(settings, rule, seeds)
    data = data or mnist1d()
    jobs = [joblib.delayed(_train_stack)(s, rule, model, data, steps, every, dtype, schedule) for s in stacks]
    return pd.concat(spread(jobs, "sweep"), ignore_index=True)


@one_thread()
def _train_stack(runs, rule, model, data, steps, every, dtype, schedule):
    """Train the ``runs``, pairs of setting and seed, as one stack and return their rows."""
    stack = _Stack(runs, rule, model, data, steps, getattr(torch, dtype))
    due, rows = recorded(steps, every), []
    for step in range(steps + 1):
        if step in due:
            rows += [(run, step, *measured) for run, *measured in stack.measure()]
        if step < steps and len(stack.alive):
            stack.update(step, schedule(step, steps))
    rows = pd.DataFrame(rows, columns=["run", "step", "loss", "accuracy"])
    rows["diverged"] = ~rows.run.isin(stack.alive)
    settings = pd.DataFrame([{**setting, "seed": seed} for setting, seed in runs])
    return settings.join(rows.set_index("run"), how="inner").sort_index(kind="stable")


class _Stack:
    """Networks of one shape: their weights, states and hyper-parameters carry a leading axis."""

    def __init__(self, runs, rule, model, data, steps, dtype):
        setting = runs[0][0]
        shape = {name: setting[name] for name in inspect.signature(model).parameters if name in setting}
        nets = [model(**shape, seed=seed).to(dtype) for _, seed in runs]
        self.weights = {name: w.detach() for name, w in stack_module_state(nets)[0].items()}
        self.rules = {name: _stacked_rule(runs, rule, w) for name, w in self.weights.items()}
        self.states = {name: self.rules[name].init(w) for name, w in self.weights.items()}
        self.logits = vmap(lambda w, x: functional_call(nets[0], w, (x,)))
        self.logits_on_same = vmap(lambda w, x: functional_call(nets[0], w, (x,)), in_dims=(0, None))
        self.data, self.alive = tensors(data, dtype), np.arange(len(runs))
        seeds, self.seed_of = np.unique([seed for _, seed in runs], return_inverse=True)
        n, batch_size = len(data.x_train), setting.get("batch_size", 64)
        order = np.stack([batches(n, batch_size, steps, seed) for seed in seeds], axis=1)
        self.order = torch.from_numpy(order)

    def update(self, step, factor):
        """Make one step in every network, with ``factor`` on the learning rates."""
        batch = self.order[step][self.seed_of[self.alive]]
        x, y = self.data[0][batch], self.data[1][batch]
        weights = {name: w.requires_grad_() for name, w in self.weights.items()}
        loss = _losses(self.logits(weights, x), y).sum()  # no network meets another: the gradients stay apart
        gradients = torch.autograd.grad(loss, list(weights.values()))
        for (name, w), gradient in zip(weights.items(), gradients, strict=True):
            rule = self.rules[name]
            if factor != 1:
                rule = replace(rule, lr=factor * rule.lr)
            after = rule.step(w.detach(), gradient, self.states[name])
            self.weights[name], self.states[name] = after

    @torch.no_grad()
    def measure(self):
        """Drop the networks whose loss is not finite; return ``(run, loss, accuracy)`` of the others."""
        x_train, y_train, x_test, y_test = self.data
        labels = y_train[:LOSS_ON].expand(len(self.alive), -1)
        loss = _losses(self.logits_on_same(self.weights, x_train[:LOSS_ON]), labels).numpy()
        if not (finite := np.isfinite(loss)).all():
            self._keep(finite)
        right = self.logits_on_same(self.weights, x_test).argmax(-1) == y_test
        return list(zip(self.alive, loss[finite].tolist(), right.double().mean(1).tolist(), strict=True))

    def _keep(self, mask):
        kept = torch.from_numpy(mask)

        def cut(value):
            return value[kept] if isinstance(value, torch.Tensor) else value

        self.alive = self.alive[mask]
        self.weights = {name: cut(w) for name, w in self.weights.items()}
        self.states = {name: {k: cut(v) for k, v in state.items()} for name, state in self.states.items()}
        for name, rule in self.rules.items():
            self.rules[name] = replace(rule, **{f.name: cut(getattr(rule, f.name)) for f in fields(rule)})


def _losses(logits, y):
    """Return the mean cross-entropy of each network: logits (K, B, classes), labels (K, B)."""
    return cross_entropy(logits.flatten(0, 1), y.flatten(), reduction="none").view(y.shape).mean(1)


def _stacked_rule(runs, rule, w):
    """Return the rule whose hyper-parameters broadcast against ``w``, of shape (K, ...)."""
    hyper = [_of_rule(setting, rule) for setting, _ in runs]
    shape = (-1, *[1] * (w.ndim - 1))

    def stacked(name, value):
        if not _is_number(value):
            return value
        return torch.tensor([h[name] for h in hyper], dtype=w.dtype).view(shape)

    return rule(**{name: stacked(name, value) for name, value in hyper[0].items()})
