"""The challenges of chapter 5: formulas by hand, networks that are perturbed, and one stored row again."""

import itertools

import numpy as np
import pandas as pd
import pytest
import torch

from dlopt_helpers.chapters import trends_challenges as chapter
from dlopt_helpers.lab.models import mlp

torch.set_num_threads(1)

# --- formulas ---------------------------------------------------------------------------------------


def test_pipelines_are_orders_times_strengths():
    strengths = itertools.product(range(3), repeat=4)
    assert chapter.pipelines(4, 3) == len(
        list(itertools.product(itertools.permutations(range(4)), strengths))
    )
    with pytest.raises(ValueError, match="kinds=0 is not allowed"):
        chapter.pipelines(0, 3)


@pytest.mark.parametrize("n", [1, 2, 4, 7])
def test_expected_best_is_the_mean_over_all_subsets(n):
    values = np.random.default_rng(0).normal(size=7)
    by_hand = np.mean([max(some) for some in itertools.combinations(values, n)])
    assert chapter.expected_best(values, n) == pytest.approx(by_hand, abs=1e-12)


def test_expected_best_refuses_more_than_there_are():
    with pytest.raises(ValueError, match=r"n=4 is not allowed: it must be a whole number in \[1, 3\]"):
        chapter.expected_best([1, 2, 3], 4)


def test_a_perturbation_has_the_length_it_should_have():
    w, d = np.random.default_rng(1).normal(size=(2, 5, 4))
    moved = chapter.perturbed(w, 0.2, d) - w
    assert np.linalg.norm(moved) == pytest.approx(0.2 * np.linalg.norm(w))
    assert np.allclose(moved / d, (moved / d).mean())  # along the direction
    assert np.linalg.norm(chapter.perturbed(w, 0.2, d, relative=False) - w) == pytest.approx(0.2)
    assert np.array_equal(chapter.perturbed(w, 0, d), w)
    with pytest.raises(ValueError, match=r"rho=-0\.1"):
        chapter.perturbed(w, -0.1, d)
    with pytest.raises(ValueError, match="direction has shape"):
        chapter.perturbed(w, 0.1, d[:1])


def test_macs_of_a_training_against_torch():
    """Forwards and backwards as PyTorch counts them, without the gradient of the input."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        x = torch.randn(8, 40, requires_grad=True)
        mlp(hidden=16)(x).sum().backward()
    assert 2 * chapter.training_macs(chapter.dense_macs(16), 8, 1) == counter.get_total_flops()
    with pytest.raises(ValueError, match="steps=0"):
        chapter.training_macs(1, 1, 0)


def test_steps_use_up_the_budget_and_no_more():
    for width, budget in itertools.product(chapter.WIDTHS, chapter.MACS):
        steps, one = chapter.steps_for(width, budget), chapter.training_macs(chapter.dense_macs(width), 64, 1)
        assert steps * one <= budget < (steps + 1) * one


# --- labels -----------------------------------------------------------------------------------------


def test_wrong_labels_are_wrong_and_as_many_as_asked_for():
    y = np.arange(1_000) % 10
    noisy = chapter.with_wrong_labels(y, 0.3, np.random.default_rng(0))
    assert (noisy != y).sum() == 300 and set(noisy) == set(range(10))
    assert np.array_equal(y, np.arange(1_000) % 10)  # the labels themselves stay
    assert np.array_equal(chapter.with_wrong_labels(y, 0.0, np.random.default_rng(0)), y)
    with pytest.raises(ValueError, match=r"share=1\.5"):
        chapter.with_wrong_labels(y, 1.5, np.random.default_rng(0))


def test_stopped_takes_the_best_step_of_each_run():
    runs = pd.DataFrame(
        {"share": [0, 0, 1, 1], "seed": 0, "step": [1, 2, 1, 2], "validation": [0.3, 0.4, 0.6, 0.5]}
    )
    assert chapter.stopped(runs, "validation").step.tolist() == [2, 1]


# --- flatness ---------------------------------------------------------------------------------------


def test_a_rescaled_network_computes_the_same():
    model, x = mlp(), torch.randn(50, 40)
    same = chapter.rescaled(model, 10.0)
    assert torch.allclose(model(x), same(x), atol=1e-5)
    assert torch.allclose(same[0].weight, 10 * model[0].weight)
    assert chapter.rise(same, 0.3) == pytest.approx(chapter.rise(model, 0.3), abs=1e-4)
    assert chapter.rise(same, 3.0, relative=False) != pytest.approx(
        chapter.rise(model, 3.0, relative=False), rel=0.2
    )


def test_a_rise_leaves_the_model_alone_and_is_zero_without_a_step():
    model = mlp(seed=3)
    before = [w.clone() for w in model.parameters()]
    assert chapter.rise(model, 0.0) == pytest.approx(0, abs=1e-6)
    chapter.rise(model, 0.5)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# --- compute ----------------------------------------------------------------------------------------


def test_rate_and_width_are_chosen_on_validation_and_not_on_fresh_examples():
    columns = ["budget", "width", "rate", "seed", "validation", "fresh", "steps", "seconds"]
    rows = [
        (1, 8, 0.1, 0, 0.5, 0.9, 5, 1.0),
        (1, 8, 0.2, 0, 0.6, 0.4, 5, 1.0),
        (1, 16, 0.1, 0, 0.7, 0.3, 2, 1.0),
    ]
    found = chapter.frontier(pd.DataFrame(rows, columns=columns))
    assert found.fresh.tolist() == [0.4, 0.3] and found.best.tolist() == [False, True]


def test_stored_runs_are_complete():
    stored = chapter.stored_compute()
    each = stored.groupby(["budget", "width"]).size()
    assert (each == len(chapter.COMPUTE_RATES) * len(chapter.COMPUTE_SEEDS)).all()
    wanted = [
        (b, w)
        for b in chapter.MACS
        for w in chapter.WIDTHS
        if chapter.FEWEST <= chapter.steps_for(w, b) <= chapter.MOST
    ]
    assert each.index.tolist() == wanted
    assert (stored.seconds > 0).all() and stored.date.notna().all() and stored.device.notna().all()


def test_a_stored_row_made_again():
    stored = chapter.stored_compute()
    row = stored[(stored.width == 128) & (stored.budget == 3e8) & (stored.rate == 0.01) & (stored.seed == 0)]
    made = chapter.trained_within(128, 3e8, 0.01, 0)
    assert made["steps"] == row.steps.item()
    assert abs(made["fresh"] - row.fresh.item()) < 0.02


def test_explorers():
    explorer = chapter.compute_explorer(chapter.stored_compute())
    for budget in explorer.stops["budget"]:
        assert (
            sum(row["best"] for row in pd.DataFrame(explorer.find({"budget": budget})).to_dict("records"))
            == 1
        )
    runs = pd.DataFrame(
        [
            {"share": s, "seed": 0, "step": t, "train": 0.5, "noisy": 0.4, "fresh": 0.3}
            for s in chapter.SHARES
            for t in (50, 100)
        ]
    )
    assert chapter.noise_explorer(runs).setting == {"share": 0.2}
