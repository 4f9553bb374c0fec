"""The trainings of chapter 3.6 do what they are called, tried on a few steps."""

import pytest
import torch

from dlopt_helpers.bridges.structure_torch import factorise
from dlopt_helpers.chapters import pruning_runs
from dlopt_helpers.chapters import structure_runs as module
from dlopt_helpers.structure import low_rank_error, singular_values


@pytest.fixture
def short(monkeypatch):
    """Few steps, few settings, nothing on disk, an untrained network for the dense one, and each training."""
    monkeypatch.delenv("DLOPT_JOBS", raising=False)  # other processes would know nothing of all this
    monkeypatch.setattr(module, "dense", lambda network, seed: pruning_runs.untrained(network, seed))
    for name in ("_ranked", "_of_kind"):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    for name, value in {"SEEDS": [0, 1], "BLOCK_SEEDS": [0], "WIDTHS": [8], "STEPS": 2}.items():
        monkeypatch.setattr(module, name, value)
    for name in ("accuracy", "fresh_accuracy"):
        monkeypatch.setattr(module, name, lambda model, *examples: model[-1].weight.norm().item())
    ways = {way: (start, steps // 500, rates) for way, (start, steps, rates) in module.WAYS.items()}
    monkeypatch.setattr(module, "WAYS", ways)
    runs, train = [], module.train

    def noted(model, optimizer, data, steps, seed, **more):
        runs.append((optimizer.param_groups[0]["lr"], steps, seed))
        return train(model, optimizer, data, steps, seed=seed, **more)

    monkeypatch.setattr(module, "train", noted)
    return runs


def test_ranked(short, monkeypatch):
    monkeypatch.setattr(module, "SETTINGS", [("dense", 512), ("SVD", 3), ("random", 3), ("narrow", 3)])
    runs = module.ranked()
    assert len(runs) == 4 * 2 and runs.groupby(["way", "rank"]).rate.nunique().max() == 1
    assert [steps for _, steps, _ in short] == [1] * (3 * 2 * 2) + [3] * (3 * 2)
    assert {seed for *_, seed in short} == {1, 2}  # another order than that of the dense network
    assert {rate for rate, *_ in short[-6:]} == {0.1, 0.2, 0.4}
    size = runs.set_index("way").parameters
    assert size["dense"].max() == 288_778
    assert size["SVD"].max() == size["random"].max() == 288_778 - 512 * 512 + 2 * 3 * 512
    assert (runs.before != runs.accuracy).all()


def test_blocks(short):
    runs = module.blocks()
    assert len(runs) == 4 * 2 and set(runs.kind) == set(module.KINDS) and set(runs.depth) == {2, 4}
    assert len(short) == 4 * 2 * 2 and {rate for rate, *_ in short} == set(module.BLOCK_RATES)


def matrix(model):
    first, second = model.get_submodule(module.LAYER)
    return (second.weight @ first.weight).detach()


def test_the_random_subspace_is_none_of_the_singular_vectors_and_loses_more():
    model = pruning_runs.untrained("mlp512", 0)
    w = model.get_submodule(module.LAYER).weight.detach()
    lot = module.in_random_subspace(model, 16, seed=0)
    projected = matrix(lot)
    assert torch.linalg.matrix_rank(projected) == 16
    first, second = lot.get_submodule(module.LAYER)
    assert first.weight.norm().item() == pytest.approx(second.weight.norm().item(), rel=1e-5)
    basis = torch.linalg.qr(first.weight.T.detach())[0]
    torch.testing.assert_close(projected, w @ basis @ basis.T, atol=1e-5, rtol=1e-3)
    best = low_rank_error(singular_values(w), 16)
    svd = matrix(factorise(model, {module.LAYER: 16}))
    assert ((w - svd).norm() / w.norm()).item() == pytest.approx(best, rel=1e-4)
    assert (w - projected).norm() / w.norm() > best + 0.005
    assert not torch.equal(projected, matrix(module.in_random_subspace(model, 16, seed=1)))


@pytest.mark.parametrize("rank", [1, 16, 64])
def test_controls_are_as_large(rank):
    pair, small = module.untrained_pair(rank, 0), module.narrow(rank, 0)
    sizes = [sum(p.numel() for p in m.parameters()) for m in (pair, small)]
    assert sizes[0] == 288_778 - 512 * 512 + 2 * rank * 512
    assert 0.98 * sizes[0] < sizes[1] <= sizes[0]
    assert small[0].out_features == small[2].out_features


def test_an_untrained_pair_is_drawn_anew_and_leaves_the_random_state():
    state = torch.get_rng_state()
    one, other = module.untrained_pair(4, 0), module.untrained_pair(4, 1)
    assert torch.equal(state, torch.get_rng_state())
    assert not torch.equal(matrix(one), matrix(other))
