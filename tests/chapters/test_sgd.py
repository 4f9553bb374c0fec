"""What chapter 3.1 measures, and the callbacks of its explorers."""

import numpy as np
import pandas as pd
import pytest

from dlopt_helpers.chapters import sgd as chapter
from dlopt_helpers.lab.surfaces import descend
from dlopt_helpers.sgd import SGD

GRID = list(chapter.TRAINING_GRID)


@pytest.fixture
def gradients():
    return np.random.default_rng(1).normal(1.0, 3.0, size=(40, 6))


@pytest.mark.parametrize("batch_size", [1, 8, 40])
def test_batch_gradients_are_means_of_different_examples(gradients, batch_size):
    # With one column per example, a gradient tells which examples it was made from.
    used = chapter.batch_gradients(np.eye(40), batch_size, draws=5) * batch_size
    assert ((used == 0) | np.isclose(used, 1)).all()
    np.testing.assert_allclose(used.sum(axis=1), batch_size)
    assert len(np.unique(used, axis=0)) == (5 if batch_size < 40 else 1)


def test_batch_gradients_are_unbiased(gradients):
    mean = chapter.batch_gradients(gradients, 4, draws=4_000).mean(axis=0)
    np.testing.assert_allclose(mean, gradients.mean(axis=0), atol=5 * 1.5 / np.sqrt(4_000))


def test_cloud_lies_around_the_full_gradient(monkeypatch):
    rng = np.random.default_rng(0)
    full = np.array([3.0, 0.0, 4.0])  # of length 5
    noise = rng.normal(size=(chapter.BATCH_SIZES[-1], 3))
    monkeypatch.setattr(chapter, "example_gradients", lambda stage: full + noise - noise.mean(axis=0))
    cloud = chapter.gradient_clouds.__wrapped__(draws=200)
    by_size = cloud[cloud.stage == "untrained"].groupby("batch_size")
    np.testing.assert_allclose(by_size.along.mean(), 1, atol=0.05)
    np.testing.assert_allclose(by_size.across.mean(), 0, atol=0.05)
    assert by_size.spread.first()[1] == pytest.approx(np.sqrt(3) / 5, rel=0.1)
    assert by_size.spread.first()[4] == pytest.approx(np.sqrt(3) / 5 / 2, rel=0.1)
    assert by_size.spread.first()[4000] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("surface", list(chapter.SURFACES))
@pytest.mark.parametrize(
    ("lr", "momentum", "noise"), [(0.07, 0.0, 0.0), (0.02, 0.9, 0.5), (0.3, 0.95, 2.0), (0.001, 0.5, 2.0)]
)
def test_paths_are_those_of_descend(surface, lr, momentum, noise):
    path = chapter.paths()(surface=surface, lr=lr, momentum=momentum, noise=noise)
    surface = chapter.SURFACES[surface]
    run = descend(SGD(lr, momentum), surface, chapter.PATH_STEPS, noise)
    assert len(path) == len(run)
    np.testing.assert_allclose(path[["step", "x", "y"]], run[["step", "x", "y"]], rtol=1e-12)
    lowest = surface.value(np.array(surface.minima[0]))
    np.testing.assert_allclose(path.gap, run.value - lowest, rtol=1e-9, atol=1e-12)


def test_a_path_that_leaves_ends():
    lost = chapter.paths()(surface="ill-conditioned bowl", lr=0.3, momentum=0.9, noise=0.0)
    assert len(lost) < chapter.PATH_STEPS


def test_path_explorer_starts_at_the_rate_of_the_first_question():
    assert chapter.path_explorer().setting == {
        "surface": "ill-conditioned bowl",
        "lr": 0.07,
        "momentum": 0.0,
        "noise": 0.0,
    }


def test_paths_show_what_the_chapter_predicts():
    for lr, momentum, falls in [(0.07, 0.0, True), (0.09, 0.0, False), (0.12, 0.8, True), (0.17, 0.9, False)]:
        gap = chapter.paths()(surface="ill-conditioned bowl", lr=lr, momentum=momentum, noise=0.0).gap
        assert (gap.iloc[-1] < gap.iloc[0]) == falls


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(chapter, "EPOCHS", 2)
    monkeypatch.setattr(chapter, "SEEDS", 2)
    monkeypatch.setattr(
        chapter, "TRAINING_GRID", {"lr": [0.1, 0.3], "momentum": [0.9], "batch_size": [16, 64]}
    )
    return chapter.trainings()


def test_trainings_count_epochs(short):
    assert short.groupby(GRID).epoch.agg(["min", "max"]).drop_duplicates().to_numpy().tolist() == [[0, 2]]
    assert len(short.groupby([*GRID, "seed"])) == 8


def test_training_explorer_computes_what_no_run_holds(short):
    explorer = chapter.training_explorer(short)
    rows = explorer.add({"lr": 0.02, "momentum": 0.5, "batch_size": 64})
    assert rows[-1]["low"] <= rows[-1]["accuracy"] <= rows[-1]["high"]
    assert rows[-1]["loss"] < rows[0]["loss"]


def runs(*rows):
    columns = [*GRID, "seed", "epoch", "loss", "accuracy", "diverged"]
    return pd.DataFrame([(0.1, 0.9, 64, *row) for row in rows], columns=columns)


def test_over_seeds():
    table = chapter.over_seeds(runs((0, 1.0, 2.0, 0.3, False), (1, 1.0, 1.0, 0.5, False)))
    assert table[["loss", "accuracy", "low", "high"]].to_numpy().tolist() == [[1.5, 0.4, 0.3, 0.5]]


def test_final_accuracy_of_a_diverged_run_is_chance():
    last = chapter.final_accuracy(
        runs((0, 1.0, 2.0, 0.3, False), (0, 2.0, 1.0, 0.6, False), (1, 0.0, 2.3, 0.4, True))
    )
    assert dict(zip(last.seed, last.accuracy, strict=True)) == {0: 0.6, 1: 0.1}


def test_basin_explorer_holds_one_point_per_rate_and_momentum(short):
    explorer = chapter.basin_explorer(short)
    assert len(explorer.find(explorer.setting)) == 2
    assert explorer.stops["axis"] == ["learning rate η", "effective rate η/(1 − μ)"]
