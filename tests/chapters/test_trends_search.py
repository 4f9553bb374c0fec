"""The search of chapter 5: its formulas, its rules, and one stored row made again."""

import numpy as np
import optuna
import pandas as pd
import pytest
import torch

from dlopt_helpers.chapters import trends_search as chapter
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.pipeline import Made

torch.set_num_threads(1)

# --- formulas ---------------------------------------------------------------------------------------


def test_bytes_of_a_network_by_hand():
    """Weights of 4 bits share bytes; biases and scales are floats, and floats have no scales."""
    weights, outputs = 40 * 6 + 6 * 6 + 6 * 10, 6 + 6 + 10
    model = mlp(hidden=6)
    assert chapter.stored_bytes(Made(model)) == 4 * weights + 4 * outputs
    assert chapter.stored_bytes(Made(model, form="int8")) == weights + 8 * outputs
    assert chapter.stored_bytes(Made(model, form="int4 weights")) == weights / 2 + 8 * outputs
    kernels, outputs = 5 * 4 + 2 * 3 * 16 + 200, 3 * 4 + 10
    assert chapter.stored_bytes(Made(cnn(4), form="int8")) == kernels + 8 * outputs


def test_a_layer_without_biases_counts_none():
    model = torch.nn.Sequential(torch.nn.Linear(3, 2, bias=False))
    assert chapter.stored_bytes(Made(model)) == 24


def test_bytes_of_an_unknown_form():
    with pytest.raises(ValueError, match=r"made\.form='shared weights' is not allowed"):
        chapter.stored_bytes(Made(mlp(), form="shared weights"))


def test_best_so_far_reports_the_trial_that_was_chosen_and_not_the_best_reported():
    v, r = [0.2, 0.5, 0.5, 0.4, 0.9], [0.3, 0.1, 0.8, 0.99, 0.2]
    assert chapter.best_so_far(v).tolist() == [0.2, 0.5, 0.5, 0.5, 0.9]
    assert chapter.best_so_far(v, r).tolist() == [0.3, 0.1, 0.1, 0.1, 0.2]
    with pytest.raises(ValueError, match="reported has shape"):
        chapter.best_so_far(v, r[:2])
    with pytest.raises(ValueError, match="chosen_on"):
        chapter.best_so_far([np.nan])


# --- plans ------------------------------------------------------------------------------------------


def test_steps_are_shared_out_and_every_kind_makes_a_stage():
    plan = (("distil mlp", 8), ("distil cnn", 6), ("prune", 0.5), ("factorise", 0.2), ("quantize", 8))
    made = chapter.stages(plan, 100)
    assert [one.settings["steps"] for one in made] == [20] * 5
    assert [one.name for one in made] == ["distil", "distil", "prune_neurons", "factorise", "quantize"]
    assert [one.settings.get("network") for one in made][:2] == ["mlp", "cnn"]


def test_every_suggestion_can_be_measured():
    sampler = optuna.samplers.RandomSampler(seed=0)
    study = optuna.create_study(sampler=sampler)
    plans = [chapter.suggest(study.ask()) for _ in range(60)]
    assert {kind for plan in plans for kind, _ in plan} == set(chapter.KINDS)
    assert {len(plan) for plan in plans} == {1, 2, 3}


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    """A start without its training, and a fresh memory of sizes."""
    monkeypatch.setattr(chapter, "start", lambda network, seed: Made(cnn(64, seed)))
    chapter.plan_bytes.cache_clear()


def test_training_after_rounding_makes_floats_again():
    last = chapter.plan_bytes((("prune", 0.3), ("quantize", 4)))
    first = chapter.plan_bytes((("quantize", 4), ("prune", 0.3)))
    assert first > 4 * last


@pytest.mark.parametrize("name", chapter.RECIPES)
def test_a_recipe_fits_and_the_next_wider_one_does_not(name):
    for budget in chapter.BUDGETS:
        plan = chapter.recipe(name, budget)
        size = chapter.plan_bytes(plan)
        wider = {"prune": 0.01, "distil cnn": 1}[plan[0][0]]
        grown = ((plan[0][0], round(plan[0][1] + wider, 2)), *plan[1:])
        assert 0.9 * budget < size <= budget < chapter.plan_bytes(grown)


def test_an_unknown_recipe():
    with pytest.raises(ValueError, match="name='cut' is not allowed"):
        chapter.recipe("cut", 4_000)


# --- searches ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", chapter.SAMPLERS)
def test_only_what_fits_is_trained_and_counted(sampler, monkeypatch):
    trained = []

    def tried(plan, seed, steps):
        trained.append(plan)
        accuracy = 0.9 if plan[-1] == ("quantize", 4) else 0.4
        return {"plan": str(plan), "bytes": chapter.plan_bytes(plan), "validation": accuracy, "fresh": 0}

    monkeypatch.setattr(chapter, "tried", tried)
    monkeypatch.setattr(chapter, "plan_bytes", lambda plan: 1_000 * len(plan))
    rows = chapter.search.__wrapped__(sampler, 2_000, 0, trials=8, steps=0)
    assert len(rows) == len(trained) == 8 and (rows.bytes <= 2_000).all()
    assert rows.trial.tolist() == list(range(1, 9))
    assert rows.drawn.is_monotonic_increasing and rows.drawn.iloc[-1] > 8


# --- what is stored ---------------------------------------------------------------------------------


def test_stored_searches_are_complete():
    stored = chapter.stored_searches()
    counts = stored.groupby(["searcher", "budget", "seed"]).size().unstack("searcher")
    assert (counts[list(chapter.SAMPLERS)] == chapter.TRIALS).all(axis=None)
    assert (counts[chapter.RECIPES] == 1).all(axis=None)
    assert len(counts) == len(chapter.BUDGETS) * len(chapter.SEEDS)
    assert (stored.bytes <= stored.budget).all()
    assert stored[["few", "validation", "fresh"]].stack().between(0, 1).all()
    assert stored.date.notna().all()


def test_a_stored_row_made_again(monkeypatch):
    from dlopt_helpers.chapters.pipeline_tasks import start

    monkeypatch.setattr(chapter, "start", start)
    stored = chapter.stored_searches()
    row = stored[(stored.searcher == "prune, quantize") & (stored.budget == 2_000) & (stored.seed == 0)].iloc[
        0
    ]
    plan = chapter.recipe("prune, quantize", 2_000)
    made = chapter.tried.__wrapped__(plan, 0)
    assert (made["plan"], made["bytes"]) == (row.plan, row.bytes)
    assert abs(made["fresh"] - row.fresh) < 0.02


def test_explorer_has_a_point_for_each_way_at_each_setting():
    explorer = chapter.search_explorer(chapter.stored_searches())
    for budget in explorer.stops["budget"]:
        for trial in (1, 20):
            rows = pd.DataFrame(explorer.find({"trial": trial, "budget": budget}))
            assert sorted(rows.searcher) == sorted([*chapter.SAMPLERS, *chapter.RECIPES])
    assert len(explorer.to_html()) < 400_000
