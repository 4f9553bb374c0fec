"""A sweep at once equals the runs one by one."""

import itertools
from dataclasses import dataclass

import joblib
import numpy as np
import pytest
import torch

from dlopt_helpers.adam import Adam
from dlopt_helpers.bridges.conventions import KerasSGD
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.lab import sweep as module
from dlopt_helpers.lab.data import digits
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.sweep import cosine, sweep
from dlopt_helpers.lab.training import train
from dlopt_helpers.sgd import SGD

GRID = {
    "momentum": [0.0, 0.9],
    "weight_decay": [0.0, 0.01],
    "batch_size": [16, 50],
    "hidden": [8, (12, 6)],
    "inputs": 64,
    "lr": [0.001, 0.1, 1e300],  # the last one diverges, and leaves its stack anywhere in it
}


def one_by_one(optimizer_for, setting):
    shape = {"inputs": 64, "hidden": setting["hidden"], "seed": setting["seed"]}
    model = mlp(**shape).double()
    options = {k: v for k, v in setting.items() if k in ("lr", "momentum", "weight_decay", "nesterov")}
    return train(
        model,
        optimizer_for(model.parameters(), options),
        digits(),
        steps=40,
        every=15,
        batch_size=setting["batch_size"],
        seed=setting["seed"],
    )


def assert_same(runs, optimizer_for):
    columns = list(runs.columns[: list(runs.columns).index("step")])
    for names, rows in runs.groupby(columns, sort=False):
        setting = dict(zip(columns, names, strict=True))
        one = one_by_one(optimizer_for, setting)
        for column in ("step", "diverged"):
            assert list(rows[column]) == list(one[column]), setting
        np.testing.assert_allclose(rows[["loss", "accuracy"]], one[["loss", "accuracy"]], rtol=0, atol=1e-8)


def test_equals_torch_sgd_one_by_one(monkeypatch):
    monkeypatch.setattr(module, "STACK", 5)  # so that stacks are cut, with seeds of one setting on both sides
    runs = sweep(GRID, data=digits(), steps=40, every=15, seeds=[3, 5], dtype="float64")
    assert len(runs[[*GRID, "seed"]].drop_duplicates()) == 3 * 2 * 2 * 2 * 2 * 2
    assert set(runs[runs.lr < 1].step) == {0, 15, 30, 40}
    assert_same(runs, lambda params, options: torch.optim.SGD(params, **options))


def test_equals_the_bridge_for_another_rule():
    grid = GRID | {"lr": [0.01, 0.1], "momentum": 0.9, "nesterov": [False, True]}
    runs = sweep(grid, rule=KerasSGD, data=digits(), steps=40, every=15, seeds=[0], dtype="float64")
    assert_same(runs, lambda params, options: RuleOptimizer(params, KerasSGD(**options)))


@pytest.mark.parametrize("rule, theirs", [(SGD, torch.optim.SGD), (Adam, torch.optim.Adam)])
def test_a_schedule_is_that_of_the_frameworks(rule, theirs):
    setting = {"inputs": 64, "hidden": 8, "lr": 0.05}
    runs = sweep(setting, rule=rule, data=digits(), steps=30, schedule=cosine, seeds=[0], dtype="float64")
    model = mlp(inputs=64, hidden=8).double()
    optimizer = theirs(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
    one = train(model, optimizer, digits(), steps=30, schedule=schedule)
    np.testing.assert_allclose(runs.loss, one.loss, rtol=1e-10)
    constant = sweep(setting, rule=rule, data=digits(), steps=30, seeds=[0], dtype="float64")
    assert abs(constant.loss.iloc[-1] / one.loss.iloc[-1] - 1) > 1e-3


def test_a_diverging_run_leaves_the_others_alone():
    grid = {"lr": [0.1, 1e30, 0.01], "inputs": 64, "hidden": 8}
    together = sweep(grid, data=digits(), steps=40, every=10, seeds=[0, 1])
    alone = sweep(grid | {"lr": [0.1, 0.01]}, data=digits(), steps=40, every=10, seeds=[0, 1])
    np.testing.assert_allclose(together[~together.diverged].loss, alone.loss, rtol=1e-6)
    diverged = together[together.diverged]
    assert set(diverged.lr) == {1e30} and set(diverged.step) == {0}
    assert not together.isna().any().any() and np.isfinite(together.loss).all()


def test_all_may_diverge():
    runs = sweep({"lr": 1e30, "inputs": 64}, data=digits(), steps=40, every=10, seeds=[0])
    assert runs.diverged.all() and list(runs.step) == [0]


def test_rows_come_in_the_order_of_the_grid():
    grid = {"inputs": 64, "momentum": [0.9, 0.0], "lr": np.array([0.1, 0.2]), "hidden": 8}
    runs = sweep(grid, data=digits(), steps=2, every=1, seeds=range(2))
    expected = list(itertools.product([0.9, 0.0], [0.1, 0.2], [0, 1], [0, 1, 2]))
    names = ["momentum", "lr", "seed", "step"]
    assert list(runs[names].itertuples(index=False, name=None)) == expected
    assert list(runs.index) == list(range(len(runs)))
    assert list(runs.columns) == [*grid, "seed", "step", "loss", "accuracy", "diverged"]


def test_joblib_carries_it_to_workers():
    grid = {"lr": [0.1, 0.2], "batch_size": [16, 32], "inputs": 64, "hidden": 8}
    settings = module._settings(grid, SGD, mlp), SGD, mlp, digits(), 10, 5, [0], "float64"
    here = module._sweep.__wrapped__(*settings)
    with joblib.parallel_config(backend="loky", n_jobs=2):
        there = module._sweep.__wrapped__(*settings)
    assert here.equals(there)


def test_a_second_time_it_comes_from_the_disk(monkeypatch):
    grid = {"lr": [0.123], "inputs": 64, "hidden": 8}
    first = sweep(grid, data=digits(), steps=5, seeds=[0])
    monkeypatch.setattr(module, "_train_stack", None)
    assert first.equals(sweep(grid, data=digits(), steps=5, seeds=range(1)))
    with pytest.raises(TypeError):
        sweep(grid, data=digits(), steps=6, seeds=[0])


def test_a_rule_that_a_reader_edits_is_run_anew():
    def ends(factor):
        @dataclass(frozen=True)
        class Mine(SGD):
            def step(self, w, gradient, state):
                return super().step(w, factor * gradient, state)

        grid = {"lr": [0.1], "inputs": 64, "hidden": 8}
        return sweep(grid, rule=Mine, data=digits(), steps=5, seeds=[0]).loss.iloc[-1]

    assert ends(1.0) != ends(2.0)


@pytest.mark.parametrize(
    "grid, message",
    [
        ({}, "is empty"),
        ({"lr": []}, "is empty"),
        ({"learning_rate": [0.1]}, "'learning_rate', which is unknown: it must be one of lr, momentum"),
        ({"seed": [1]}, "'seed', which is unknown"),
        ({"lr": [0.1, -1.0]}, "lr=-1.0"),
        ({"lr": (0.1, 0.2)}, r"lr=\(0.1, 0.2\)"),
        ({"momentum": [None]}, "momentum=None"),
        ({"nesterov": [True, False]}, "momentum=0.0.*nesterov=True"),
        ({"batch_size": [10**6]}, "batch_size=1000000"),
    ],
)
def test_bad_grids(grid, message):
    with pytest.raises(ValueError, match=message):
        sweep(grid, data=digits(), seeds=[0])


@pytest.mark.parametrize(
    "bad, message",
    [
        ({"dtype": "float16"}, "dtype='float16'"),
        ({"seeds": []}, "seeds is empty"),
        ({"every": 0}, "every=0"),
        ({"steps": -1}, "steps=-1"),
    ],
)
def test_bad_arguments(bad, message):
    with pytest.raises(ValueError, match=message):
        sweep({"lr": [0.1], "inputs": 64}, data=digits(), **bad)
