"""What chapter 3.2 measures, and the callbacks of its explorers."""

import numpy as np
import pandas as pd
import pytest

from dlopt_helpers.adam import Adam, NAdam, RMSprop
from dlopt_helpers.chapters import adam as chapter
from dlopt_helpers.lab.surfaces import descend
from dlopt_helpers.sgd import SGD

RACE = {"lr": 0.05, "beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
RULES = {
    "SGD": SGD(0.05),
    "momentum": SGD(0.05, 0.8),
    "RMSprop": RMSprop(0.05, 0.95, 1e-3),
    "Adam": Adam(0.05, 0.8, 0.95, 1e-3),
    "NAdam": NAdam(0.05, 0.8, 0.95, 1e-3),
}


@pytest.mark.parametrize("surface", chapter.SURFACES)
def test_each_racer_walks_as_its_rule_does(surface):
    race = chapter.race()(**RACE, correction="on", surface=surface)
    for name, rule in RULES.items():
        path = descend(rule, chapter.SURFACES[surface], chapter.RACE_STEPS)
        mine = race[race.rule == name]
        np.testing.assert_allclose(mine[["x", "y"]], path[["x", "y"]], rtol=1e-9, atol=1e-12)
    assert set(race.rule) == set(chapter.RACERS)


def test_without_correction_adam_starts_too_far():
    rows = {}
    for correction in ("on", "off"):
        race = chapter.race()(**RACE, correction=correction, surface="ill-conditioned bowl")
        rows[correction] = race.set_index(["rule", "step"])[["x", "y"]]
    first = {c: abs(rows[c].loc["Adam", 1] - rows[c].loc["Adam", 0]) for c in rows}
    np.testing.assert_allclose(first["on"], 0.05, rtol=0.01)
    np.testing.assert_allclose(first["off"], 0.05 * 0.2 / np.sqrt(0.05), rtol=0.01)
    for name in ("SGD", "momentum", "Adagrad", "RMSprop"):
        assert rows["on"].loc[name].equals(rows["off"].loc[name])
    assert not np.allclose(rows["on"].loc["NAdam", 1], rows["off"].loc["NAdam", 1])


def uncorrected(gradients, beta1, beta2):
    m = v = 0.0
    for g in gradients:
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        yield -m / (v**0.5 + 1e-6)


def test_inside_a_step():
    gradients = chapter.recorded_gradients()
    recurrence = chapter.inside_a_step(gradients)
    for weight, g in gradients.items():
        seen = recurrence(weight=weight, beta1=0.9, beta2=0.99, eps=1e-6).iloc[1:]
        np.testing.assert_array_equal(seen.gradient, g)
        rule, w = Adam(1.0, 0.9, 0.99, 1e-6), 0.0
        state = rule.init(w)
        for row, gradient in zip(seen.itertuples(), g, strict=True):
            after, state = rule.step(w, gradient, state)
            assert row.move == pytest.approx(after - w, rel=1e-9)
            assert row.move == pytest.approx(-row.m_hat / (row.root_v_hat + 1e-6), rel=1e-9)
        np.testing.assert_allclose(seen.raw, list(uncorrected(g, 0.9, 0.99)), rtol=1e-6)
    asleep = gradients["second layer, mostly asleep"]
    assert 0.85 < np.mean(asleep == 0) < 0.95
    loud, quiet = (abs(gradients[f"first layer, {name}"]).mean() for name in ("loud", "quiet"))
    assert loud > 5 * quiet


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(chapter, "STEPS", 200)
    monkeypatch.setattr(chapter, "SCHEDULES", {"constant": chapter.SCHEDULES["constant"]})
    monkeypatch.setattr(chapter, "FAMILY", {name: chapter.FAMILY[name] for name in ("SGD", "Adam")})
    return chapter.trainings(rates=[0.001, 0.01, 10], rules=["SGD", "Adam"], schedules=["constant"])


def test_trainings(short):
    assert len(short.groupby(["schedule", "rule", "lr", "seed"])) == 2 * 3 * 5
    assert list(short.columns) == [
        "lr", "seed", "step", "loss", "accuracy", "diverged", "schedule", "rule"
    ]  # fmt: skip
    loss = chapter.final_accuracy(short).groupby(["rule", "lr"]).loss.mean()
    assert loss["Adam", 0.01] < loss["Adam", 0.001] < loss["SGD", 0.001]


def test_basin_explorer_shows_the_run_behind_each_point(short):
    explorer = chapter.basin_explorer(short)
    rows = explorer.find({"rule": "Adam", "lr": 0.01, "schedule": "constant"})
    assert [row["step"] for row in rows] == [0, 100, 200]
    assert rows[0]["final"] == rows[-1]["accuracy"] and rows[-1]["low"] <= rows[-1]["high"]


def test_basin_explorer_computes_what_no_run_holds(short):
    rows = chapter.basin_explorer(short).add({"rule": "Adam", "lr": 0.005, "schedule": "constant"})
    assert rows[0]["final"] == rows[-1]["accuracy"] > rows[0]["accuracy"]


def test_final_accuracy_of_a_diverged_run_is_chance():
    columns = ["schedule", "rule", "lr", "seed", "step", "loss", "accuracy", "diverged"]
    rows = [
        ("cosine", "SGD", 1.0, 0, 0, 2.3, 0.3, False),
        ("cosine", "SGD", 1.0, 0, 100, 1.0, 0.6, False),
        ("cosine", "SGD", 1.0, 1, 0, 2.3, 0.4, True),
    ]
    last = chapter.final_accuracy(pd.DataFrame(rows, columns=columns))
    assert dict(zip(last.seed, last.accuracy, strict=True)) == {0: 0.6, 1: 0.1}


def test_long_and_epsilon_trainings(monkeypatch):
    monkeypatch.setattr(chapter, "STEPS", 3)
    monkeypatch.setattr(chapter, "LONG_STEPS", 2)
    long, by_eps = chapter.long_trainings(), chapter.epsilon_trainings()
    assert set(long.rule) == {"SGD", "momentum", "Adam"} and len(long) == 15 and set(long.step) == {2}
    assert len(by_eps) == 12 and by_eps.groupby("eps").lr.nunique().eq(3).all()
