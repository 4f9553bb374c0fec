"""What chapter 4.1 shows: the program in three versions, and the rows behind its explorers."""

import itertools

import numpy as np
import pandas as pd
import pytest

from dlopt_helpers.adam import Adam
from dlopt_helpers.bridges.conventions import KerasAdam, KerasSGD
from dlopt_helpers.chapters import code_example as chapter
from dlopt_helpers.chapters import code_example_runs as trainings
from dlopt_helpers.code_example import Alternating
from dlopt_helpers.sgd import SGD


def test_the_articles_data():
    np.random.seed(0)
    X, y = np.random.randn(1000, 10), np.random.randint(0, 2, 1000)
    ours = chapter.article_data()
    np.testing.assert_array_equal(ours[0], X)
    np.testing.assert_array_equal(ours[1], y)


def test_program_differences():
    found = chapter.program_differences().set_index(["framework", "precision", "formula"])
    assert len(found) == 4
    assert (found.loc[("torch", "float64", "torch")] < 1e-14).all()
    assert (found.loc[("torch", "float32", "torch")] < 1e-5).all()
    assert found.loss["keras", "float32", "keras"] < 1e-5
    assert found.weights["keras", "float32", "keras"] < 1e-4
    other = found.loc[("keras", "float32", "torch")]
    assert 1e-5 < other.loss < 1e-3 and other.weights > 0.05


def test_the_rules_compared():
    assert chapter.rule_of("torch") == Alternating(SGD(0.01), Adam(0.01, eps=1e-8))
    assert chapter.rule_of("keras") == Alternating(KerasSGD(0.01), KerasAdam(0.01, eps=1e-7))


def test_ours_makes_100_steps_that_lower_the_loss():
    losses, weights = chapter.ours(*chapter.article_data(), trainings.network(0), chapter.rule_of("torch"))
    assert len(losses) == 100 and losses[0] - losses[-1] > 0.05
    assert [w.shape for w in weights] == [(10, 16), (16,), (16, 1), (1,)] and weights[0].dtype == "float64"


# --- explorers ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid():
    settings = itertools.product(trainings.IN_TURN, trainings.LR_SGD, trainings.LR_ADAM, trainings.SHARES)
    rows = pd.DataFrame(settings, columns=chapter.SETTING).merge(
        pd.DataFrame({"step": range(0, 101, 5)}), "cross"
    )
    return rows.assign(
        loss=rows.lr_adam + rows.step / 1e3, accuracy=0.51239, fresh_accuracy=1 - rows.share / 2
    )


@pytest.fixture(scope="module")
def long():
    settings = itertools.product([16, 64], trainings.SHARES, [0, 50, 100, 3_000], [0, 1])
    rows = pd.DataFrame(settings, columns=["units", "share", "step", "seed"])
    values = {
        "loss": rows.seed + rows.units,
        "fresh_loss": 0.7,
        "accuracy": 0.6,
        "fresh_accuracy": rows.share / 2,
    }
    return rows.assign(**values)


def test_turns_explorer(grid):
    explorer = chapter.turns_explorer(grid)
    assert explorer.setting == {"turns": "every step", "lr_sgd": 0.01, "lr_adam": 0.01, "share": 1.0}
    assert [len(stops) for stops in explorer.stops.values()] == [5, 4, 5, 5]
    for values in itertools.product(*explorer.stops.values()):
        assert len(explorer.find(dict(zip(explorer.stops, values, strict=True)))) == 21
    rows = explorer.find({"turns": "every 5", "lr_sgd": 0.1, "lr_adam": 0.03, "share": 0.25})
    assert rows[-1] == {
        "turns": "every 5", "lr_sgd": 0.1, "lr_adam": 0.03, "share": 0.25,
        "step": 100, "loss": 0.13, "accuracy": 0.512, "fresh_accuracy": 0.875,
    }  # fmt: skip
    assert len(explorer.to_html()) < 400_000


def test_the_other_turns_are_shown_at_the_same_rates_and_labels(grid):
    text = str(chapter.turns_explorer(grid).panels[0])
    for name in ("share", "lr_sgd", "lr_adam"):
        assert f"datum.{name} == {name}" in text
    assert "datum.turns == turns" not in text


def test_the_best_possible_accuracy_follows_the_share(grid, long):
    for explorer in (chapter.turns_explorer(grid), chapter.memory_explorer(long)):
        assert "'calculate': '1 - share / 2'" in str(explorer.panels[1])
        assert "0.6931" in str(explorer.panels[0])


def test_memory_explorer(long):
    rows = chapter.memory_rows(long)
    assert len(rows) == 5 * 3 and (rows.loss == 16.5).all()  # 16 units, the mean of two seeds, no step 0
    explorer = chapter.memory_explorer(long)
    assert [row["step"] for row in explorer.find({"share": 0.5})] == [50, 100, 3_000]
    assert {row["fresh_accuracy"] for row in explorer.find({"share": 0.5})} == {0.25}
