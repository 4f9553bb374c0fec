"""The trainings of chapter 3.3 do what they are called, tried on a few steps."""

import numpy as np
import pandas as pd
import pytest
import torch

from dlopt_helpers.bridges.pruning_torch import prunable
from dlopt_helpers.chapters import pruning_runs as module
from dlopt_helpers.pruning import cubic, iterative, sparsity


@pytest.fixture
def short(monkeypatch):
    """Few steps, small networks, nothing on disk, and each network that was trained."""
    monkeypatch.delenv("DLOPT_JOBS", raising=False)  # other processes would know nothing of all this
    monkeypatch.setattr(module, "WIDTHS", {"mlp512": 16, "cnn64": 8})
    monkeypatch.setattr(module, "STEPS", 12)
    monkeypatch.setattr(module, "CUTTING", 10)
    monkeypatch.setattr(module, "SCHEDULES", {"in rounds": (iterative, 5), "gradual": (cubic, 5)})
    monkeypatch.setattr(module, "_dense_weights", module._dense_weights.__wrapped__)
    trained, train = [], module.train

    def noted(model, *arguments, **more):
        trained.append(model)
        return train(model, *arguments, **more)

    monkeypatch.setattr(module, "train", noted)
    return trained


def kept(model):
    return {name: w != 0 for name, w in prunable(model).items()}


@pytest.mark.parametrize("network", module.WIDTHS)
@pytest.mark.parametrize("method", ["in rounds", "gradual", "one shot", "random", "ticket", "from scratch"])
def test_the_mask_holds_to_the_end(short, network, method):
    run = module.pruned(network, method, 0.8, seed=1)
    assert sparsity(*prunable(short[-1]).values()) == pytest.approx(0.8, abs=0.01)
    steps = 24 if method in ("ticket", "from scratch") else 12
    assert run.step.max() == steps and run.step.is_monotonic_increasing
    assert len(short) == 1 + (5 if method in ("in rounds", "gradual") else 1)
    assert run.final.nunique() == 1 and run.final.iloc[0] == module.fresh_accuracy(short[-1])


def test_random_keeps_as_many_in_each_layer_and_others():
    model = module.untrained("mlp512", 0, width=32)
    by_size, by_lot = module.magnitude_masks(model, 0.9), module.random_masks(model, 0.9, seed=0)
    for name, mask in by_size.items():
        assert mask.sum() == by_lot[name].sum()
        assert not torch.equal(mask, by_lot[name])
    assert torch.equal(by_lot["2"], module.random_masks(model, 0.9, seed=0)["2"])


def test_random_cuts_at_random(short):
    module.pruned("mlp512", "random", 0.8, seed=1)
    by_size = module.magnitude_masks(module.dense("mlp512", 1), 0.8)
    found = kept(short[-2])  # the last is that of the line above
    assert found["2"].sum() == by_size["2"].sum() and not torch.equal(found["2"], by_size["2"] == 1)


def test_a_row_at_a_cut_tells_what_is_left_after_it(short):
    def emptied(model):
        for p in model.parameters():
            p.data.zero_()

    run = module.trained_on(module.dense("mlp512", 0), "mlp512", 0, rounds=[lambda model: None, emptied])
    assert run.set_index("step").loss[5] == pytest.approx(np.log(10))  # all ten classes alike


def test_ticket_and_fresh_start_have_the_mask_of_one_shot(short):
    masks = module.magnitude_masks(module.dense("mlp512", 1), 0.8)
    first = {}
    for method in ("one shot", "ticket", "from scratch"):
        module.pruned("mlp512", method, 0.8, seed=1)
        first[method] = kept(short[-1])
    for method, found in first.items():
        for name, mask in masks.items():
            assert torch.equal(found[name], mask == 1), method


def test_ticket_starts_from_the_weights_that_the_network_started_from(short, monkeypatch):
    started = []
    monkeypatch.setattr(module, "trained_on", lambda model, *a, **k: started.append(model) or pd.DataFrame())
    for method in ("ticket", "from scratch"):
        module.pruned("mlp512", method, 0.5, seed=3)
    _, ticket, _, scratch = started  # each after the training that its mask is taken from
    initial = module.untrained("mlp512", 3)
    mask = kept(ticket)["2"]
    assert torch.equal(ticket[2].weight[mask], initial[2].weight[mask])
    assert not torch.equal(scratch[2].weight[mask], initial[2].weight[mask])


@pytest.mark.parametrize(
    "method, kept",
    [
        ("in rounds", 0.05 ** (np.arange(1, 6) / 5)),
        ("gradual", 1 - 0.95 * (1 - (1 - np.arange(1, 6) / 5) ** 3)),
    ],
)
def test_schedules_cut_more_each_time(short, method, kept):
    model, seen = module.dense("mlp512", 0), []

    def noted(cut):
        return lambda model: seen.append(sparsity(*prunable(cut(model)).values()))

    rounds = [noted(cut) for cut in module._rounds(method, 0.95, 0)]
    run = module.trained_on(model, "mlp512", 0, rounds=rounds)
    np.testing.assert_allclose(seen, 1 - kept, atol=0.01)
    assert set(run.step) == {0, 2, 4, 6, 8, 12}  # the last cut is made at step 8, and held to the end


def test_all_prunings(short, monkeypatch):
    monkeypatch.setattr(module, "_prunings", module._prunings.__wrapped__)
    monkeypatch.setattr(module, "SPARSITIES", [0.5])
    monkeypatch.setattr(module, "TICKETS", [0.5])
    runs = module.prunings(["cnn64"], [0, 1])
    assert len(runs.groupby(["network", "method", "sparsity", "seed"])) == 2 * (1 + 5 + 2)
    assert set(runs.query("method == 'cut'").step) == {0}


def test_removals_are_smaller_networks(short, monkeypatch):
    monkeypatch.setattr(module, "_removals", module._removals.__wrapped__)
    monkeypatch.setattr(module, "KEPT", [0.5])
    found = module.removals(["mlp512"], [0])
    assert found.parameters.iloc[0] == 40 * 8 + 8 + 8 * 8 + 8 + 8 * 10 + 10
    assert {"L1", "L2", "activation", "retrained", "from scratch"} <= set(found)
    pruned, scratch = short[-2:]
    assert [p.shape for p in pruned.parameters()] == [p.shape for p in scratch.parameters()]


def test_units_by_activity_are_those_that_are_active(short):
    model = module.untrained("mlp512", 0)
    with torch.no_grad():
        model[0].bias[3] = 100.0
        model[0].bias[5] = -100.0
    kept = module.units(model, 0.5, "activation")
    assert 3 in kept["0"] and 5 not in kept["0"] and set(kept) == {"0", "2"}


def test_two_of_four(short, monkeypatch):
    monkeypatch.setattr(module, "_two_of_four", module._two_of_four.__wrapped__)
    found = module.two_of_four(seeds=[0])
    assert {"dense", "cut", "retrained"} <= set(found)
    for w in prunable(short[-1]).values():
        assert ((w.view(-1, 4) != 0).sum(axis=1) == 2).all()
