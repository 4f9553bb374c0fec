"""What chapter 3.3 measures, and the callbacks of its explorers."""

import numpy as np
import pandas as pd
import pytest
import torch

from dlopt_helpers.bridges.pruning_torch import prunable
from dlopt_helpers.chapters import pruning as chapter
from dlopt_helpers.chapters import pruning_runs as trainings
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.pruning import sparsity


@pytest.fixture(scope="module")
def model():
    return trainings.untrained("mlp512", 0, width=24)


def test_cut_by_one_threshold_or_by_layer(model):
    before = {name: w.clone() for name, w in prunable(model).items()}
    for name, w in prunable(chapter.cut(model, 0.1)).items():
        assert torch.equal(w, before[name] * (abs(before[name]) >= 0.1))
    cut = prunable(chapter.cut(model, {"2": 0.1}))
    assert torch.equal(cut["0"], before["0"]) and sparsity(cut["2"]) > 0.1
    assert all(torch.equal(w, before[name]) for name, w in prunable(model).items())


def test_by_layer(model):
    shares = [0.25, 0.5, 0.75]
    found = [sparsity(w) for w in prunable(chapter.by_layer(model, shares)).values()]
    np.testing.assert_allclose(found, shares, atol=0.01)


def test_accuracy(model):
    data = mnist1d()
    with torch.no_grad():
        right = model(torch.from_numpy(data.x_test)).argmax(1).numpy() == data.y_test
    assert chapter.accuracy(model) == right.mean()


def test_a_rescaled_network_computes_the_same(model):
    x = torch.randn(20, 40)
    other = chapter.rescaled(model)
    with torch.no_grad():
        torch.testing.assert_close(other(x), model(x), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(other[0].weight, model[0].weight)


def test_balanced_shares_reach_the_target_and_lose_equally(model, monkeypatch):
    scan = pd.DataFrame(
        [(layer, s, 0.8 - cost * s) for layer, cost in (("a", 0.8), ("b", 0.1), ("c", 0.4))
         for s in chapter.SCANNED], columns=["layer", "share", "accuracy"])  # fmt: skip
    monkeypatch.setattr(chapter, "sensitivity", lambda model: scan)
    a, b, c = chapter.balanced_shares(model, 0.5)
    sizes = np.array([w.numel() for w in prunable(model).values()])
    assert np.array([a, b, c]) @ sizes / sizes.sum() >= 0.5
    assert b > c > a


def test_zeros_left_only_where_the_mask_is_held():
    left = {way: chapter.zeros_left(way, steps=5) for way in chapter.WAYS_TO_MASK}
    assert left["held"] == 1 and left["cut once"] < 1 and left["gradients masked too"] < 1


def test_removal_differences():
    found = chapter.removal_differences()
    assert list(found.framework) == ["PyTorch"] * 3 + ["Keras"]
    assert (found.difference < 3e-6 * found["largest output"]).all() and (found.difference > 0).any()


# --- explorers -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def runs():
    rows = []
    for network in trainings.WIDTHS:
        settings = [("dense", 0.0), *((m, s) for m in trainings.METHODS for s in (0.5, 0.95))]
        for method, share in settings:
            steps = [0] if method == "cut" else [0, 100]
            rows += [
                (network, method, share, seed, step, 1.0, 0.5 + seed / 100, False, 0.6 + seed / 100)
                for seed in (0, 1) for step in steps
            ]  # fmt: skip
    columns = ["network", "method", "sparsity", "seed", "step", "loss", "accuracy", "diverged", "final"]
    return pd.DataFrame(rows, columns=columns)


def test_methods_explorer_shows_the_means_over_seeds(runs):
    rows = chapter.methods_explorer(runs).find({"network": "cnn64", "method": "random", "sparsity": 0.95})
    assert [row["step"] for row in rows] == [0, 100]
    assert rows[0]["final"] == 0.605 and rows[0]["fewer"] == 20
    assert (rows[0]["low"], rows[0]["high"]) == (0.5, 0.51)


def test_methods_explorer_computes_what_no_run_holds(runs, monkeypatch):
    def pruned(network, method, sparsity, seed):
        like = runs.query("network == @network and method == @method and sparsity == 0.5 and seed == 0")
        return like.assign(sparsity=sparsity, seed=seed)

    monkeypatch.setattr(chapter, "pruned", pruned)
    setting = {"network": "mlp512", "method": "one shot", "sparsity": 0.75}
    rows = chapter.methods_explorer(runs).add(setting)
    assert rows[0]["fewer"] == 4 and rows[0]["final"] == 0.6


@pytest.fixture(scope="module")
def small(runs):
    """The threshold explorer of a small untrained network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "dense", lambda network, seed: trainings.untrained(network, seed, width=24))
        patch.setattr(chapter, "THRESHOLDS", np.array([0.0, 0.1, 0.2]))
        yield chapter.threshold_explorer(runs)


def test_threshold_explorer(small, model):
    rows = small.find({"threshold": 0.1, "layer": "second layer"})
    assert [row["part"] for row in rows] == ["all layers", *chapter.LAYERS.values()]
    cut = chapter.cut(model, 0.1)
    assert rows[0]["pruned"] == pytest.approx(sparsity(*prunable(cut).values()))
    assert rows[0]["accuracy"] == chapter.accuracy(cut)
    between = small.add({"threshold": 0.15, "layer": "first layer"})
    higher = small.find({"threshold": 0.2, "layer": "first layer"})
    assert rows[0]["pruned"] < between[0]["pruned"] < higher[0]["pruned"]


def test_dots_stand_at_the_threshold_of_their_sparsity(runs, model):
    weights = list(prunable(model).values())
    dots = chapter._retrained_dots(runs, weights)
    for threshold, share in zip(dots.threshold, (0.0, 0.5, 0.95), strict=True):
        pruned = sum((abs(w) < threshold).sum() for w in weights) / sum(w.numel() for w in weights)
        assert pruned == pytest.approx(share, abs=0.01)


def test_histograms_count_every_weight(model):
    weights = {LAYER: w for LAYER, w in zip(chapter.LAYERS.values(), prunable(model).values(), strict=True)}
    for (name, w), bins in zip(weights.items(), chapter._histograms(weights), strict=True):
        assert set(bins.layer) == {name} and len(bins) == 81 and bins.n.max() == 1
        assert bins.left.min() <= w.min() + 1e-4 and bins.right.max() >= w.max() - 1e-4
    corner = next(iter(chapter._cells(weights)))
    assert corner.query("unit == 3 and input == 7").w.iloc[0] == weights["first layer"][3, 7]


def test_units_rows():
    removals = pd.DataFrame(
        [("mlp512", kept, seed, 0.5 + seed / 10, 0.7, 0.6) for kept in (0.25, 0.5) for seed in (0, 1)],
        columns=["network", "kept", "seed", "L2", "retrained", "from scratch"],
    )
    columns = ["network", "variant", "batch", "faster", "bytes", "multiplications"]
    speeds = pd.DataFrame(
        [("mlp512", "dense", 1, 1.0, 1_000, 800), ("mlp512", "units 25 %", 1, 2.0, 100, 50),
         ("mlp512", "units 25 %", 64, 5.0, 100, 50)], columns=columns)  # fmt: skip
    rows = chapter.units_rows(removals, speeds).set_index(["kind", "kept", "what"]).value.sort_index()
    assert rows["accuracy", 0.25, "cut"] == 0.55 and rows["accuracy", 0.5, "retrained"] == 0.7
    assert dict(rows["cost", 0.25]) == {
        "multiplications": 16, "bytes of the file": 10, "time, batch 1": 2, "time, batch 64": 5
    }  # fmt: skip
