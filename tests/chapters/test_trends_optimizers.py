"""What chapter 5 measures of optimisers, and the callbacks of its explorers."""

import numpy as np
import pytest

from dlopt_helpers.chapters import trends_optimizers as chapter
from dlopt_helpers.chapters import trends_optimizers_runs as runs
from dlopt_helpers.lab.surfaces import descend
from dlopt_helpers.trends import Lion, ScheduleFreeSGD


@pytest.mark.parametrize("surface", chapter.SURFACES)
def test_racers_walk_as_their_rules_do(surface):
    race = chapter.race()(lr=0.02, noise=0.0, beta1=0.8, beta2=0.95, surface=surface)
    for name, rule in {"Lion": Lion(0.02, 0.8, 0.95), "schedule-free, y": ScheduleFreeSGD(0.02, 0.8)}.items():
        path = descend(rule, chapter.SURFACES[surface], chapter.RACE_STEPS)
        mine = race[race.rule == name]
        np.testing.assert_allclose(mine[["x", "y"]], path[["x", "y"]], rtol=1e-7, atol=1e-9)


def test_the_average_is_calmer_than_the_weights_in_training():
    race = chapter.race()(lr=0.03, noise=2.0, beta1=0.9, beta2=0.99, surface="ill-conditioned bowl")
    steps = {
        name: race[race.rule == name][["x", "y"]].diff().abs().tail(30).mean().sum() for name in chapter.FREE
    }
    assert steps["schedule-free, x"] < steps["schedule-free, y"]


def test_every_rule_has_the_same_tries():
    stored = runs.stored_trainings()
    assert set(zip(stored.rule, stored.schedule, strict=True)) == set(runs.RUNS)
    grouped = stored.groupby(["rule", "schedule"])
    assert (grouped.lr.nunique() == 8).all() and (grouped.size() == 8 * len(runs.SEEDS)).all()
    assert stored.drop(columns=["rule", "schedule", "date"]).notna().all(axis=None)


def test_one_stored_row_is_made_again():
    rule, options, middle = runs.RULES["schedule-free SGD"]
    made = runs._train_stack([({**options, "lr": middle}, 0)], rule, "constant", runs.STEPS).iloc[0]
    stored = runs.stored_trainings()
    kept = stored[(stored.rule == "schedule-free SGD") & (stored.lr == middle) & (stored.seed == 0)].iloc[0]
    assert made.test_100 == pytest.approx(kept.test_100, abs=0.02)
    assert made.fresh == pytest.approx(kept.fresh, abs=0.02)


def test_best_and_width():
    stored = runs.stored_trainings()
    best, wide = chapter.at_best(stored), chapter.width(stored)
    assert len(best) == len(runs.RUNS) * len(runs.SEEDS)
    for (rule, schedule), rows in best.groupby(["rule", "schedule"]):
        mine = chapter.finals(stored).query("rule == @rule and schedule == @schedule")
        assert mine.test.max() == pytest.approx(rows.test_600.mean())
        assert wide[rule, schedule] == (mine.test > mine.test.max() - 0.05).sum()


def test_curves_fill_the_grid_of_the_sliders():
    curves = chapter.curves(runs.stored_trainings())
    assert len(curves) == len(runs.RUNS) * 8 * 7 and len(curves) < 4_000
    assert sorted(curves.relative.unique()) == runs.FACTORS
    assert (curves.groupby(["run", "relative"]).size() == 7).all()


def test_a_diverged_network_counts_as_chance():
    rule, options, _ = runs.RULES["SGD with momentum"]
    made = runs._train_stack([({**options, "lr": lr}, 0) for lr in (1e6, 0.08)], rule, "constant", 100)
    assert made.test_100[0] == 0.1 and made.test_100[1] > 0.2


def test_explorers_draw():
    for explorer in (chapter.race_explorer(), chapter.spectrum_explorer()):
        assert "text/html" in explorer._repr_mimebundle_() or explorer._repr_mimebundle_()
    assert chapter.basin_explorer(runs.stored_trainings().drop(columns="date"))._repr_mimebundle_()
