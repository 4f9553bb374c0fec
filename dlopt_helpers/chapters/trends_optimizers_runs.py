"""The trainings of chapter 5's first trend: old and new rules, each at eight learning rates."""

from dataclasses import dataclass
from pathlib import Path

import joblib
import pandas as pd
import torch

from dlopt_helpers.adam import Adam
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.memo import memoise
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.sweep import STACK, _Stack, constant, cosine
from dlopt_helpers.lab.training import one_thread, recorded
from dlopt_helpers.sgd import SGD
from dlopt_helpers.trends import Lion, Muon, ScheduleFreeAdamW, ScheduleFreeSGD

STEPS, EVERY, SEEDS = 600, 100, range(5)
FACTORS = [2.0**k for k in range(-4, 4)]  # the same eight for each rule, times its middle
CLASSES = 10
STORED = Path(__file__).with_name("trends_optimizers.csv")


@dataclass(frozen=True)
class MuonAndAdam:
    """Muon for the hidden matrices of stacked networks, Adam for the last matrix and the biases.

    Moonshot's scale lets both have the same learning rate.
    """

    lr: float = 1e-3

    def _rule(self, w):
        hidden = w.ndim == 3 and w.shape[-2] != CLASSES
        return Muon(self.lr, scale="moonshot") if hidden else Adam(self.lr)

    def init(self, w):
        return self._rule(w).init(w)

    def step(self, w, gradient, state):
        return self._rule(w).step(w, gradient, state)


# What each rule is given, and the middle of its rates.
RULES = {
    "SGD with momentum": (SGD, {"momentum": 0.9}, 0.08),
    "Adam": (Adam, {}, 0.008),
    "Lion": (Lion, {}, 0.0008),
    "Muon": (MuonAndAdam, {}, 0.008),
    "schedule-free SGD": (ScheduleFreeSGD, {}, 1.6),
    "schedule-free AdamW": (ScheduleFreeAdamW, {}, 0.016),
}
RUNS = [(name, "constant") for name in RULES] + [(name, "cosine") for name in list(RULES)[:4]]
SCHEDULES = {"constant": constant, "cosine": cosine}


class _Networks(_Stack):
    """Stacked networks that are measured at the weights to use: the average, where the rule has one."""

    @torch.no_grad()
    def share_right(self, x, y):
        """Return the share of the examples that each network gets right; 0.1, chance, if it has diverged."""
        weights = {
            name: rule.average(self.weights[name], self.states[name])
            if hasattr(rule, "average")
            else self.weights[name]
            for name, rule in self.rules.items()
        }
        logits = self.logits_on_same(weights, x)
        right = (logits.argmax(-1) == y).double().mean(1)
        return torch.where(logits.isfinite().all((1, 2)), right, 1 / CLASSES).tolist()


@one_thread()
def _train_stack(runs, rule, schedule, steps):
    """Train a stack of networks and return a row for each of them and each measured step."""
    data, fresh = mnist1d(), [torch.from_numpy(a) for a in fresh_test()]
    stack, due = _Networks(runs, rule, mlp, data, steps, torch.float32), recorded(steps, EVERY)
    table = pd.DataFrame([{"lr": setting["lr"], "seed": seed} for setting, seed in runs])
    for step in range(steps + 1):
        if step in due:
            table[f"test_{step}"] = stack.share_right(*stack.data[2:])
        if step < steps:
            stack.update(step, SCHEDULES[schedule](step, steps))
    return table.assign(fresh=stack.share_right(*fresh))


@memoise
def _trainings(name, schedule, steps):
    rule, options, middle = RULES[name]
    grid = [({**options, "lr": float(f"{middle * f:.3g}")}, seed) for f in FACTORS for seed in SEEDS]
    stacks = [grid[i : i + STACK] for i in range(0, len(grid), STACK)]
    jobs = [joblib.delayed(_train_stack)(stack, rule, schedule, steps) for stack in stacks]
    table = pd.concat(spread(jobs, name), ignore_index=True)
    table = table.round(dict.fromkeys(table.columns.drop(["lr", "seed"]), 4))
    table.insert(0, "schedule", schedule)
    table.insert(0, "rule", name)
    return table


def trainings(runs=RUNS, steps=STEPS):
    """Train the MLP of MNIST-1D with each rule and schedule, at eight rates from five seeds.

    Returns:
      One row per ``rule``, ``schedule``, ``lr`` and ``seed``: ``test_0``, ``test_100`` and so on, the share
      of the test examples that are right after so many steps, and ``fresh``, that of 10,000 fresh examples
      at the end. A network that diverged has 0.1.
    """
    return pd.concat([_trainings(*run, steps) for run in runs], ignore_index=True)


def stored_trainings():
    """Return what ``trainings()`` returned where it was run, with the ``date``.

    ``python benchmarks/trends_optimizers.py --store`` makes the file anew, in some minutes.
    """
    return pd.read_csv(STORED)
