"""The exercises' solutions are right: other ways to them pass, and each hint says what is measured."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch

from dlopt_helpers.chapters import pruning_exercises as exercises
from dlopt_helpers.chapters.pruning_runs import dense
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.pruning import threshold_for


def prune_by_argsort(w, sparsity):
    pruned = w.flatten()
    pruned[np.argsort(abs(pruned))[: round(sparsity * w.size)]] = 0
    return pruned.reshape(w.shape)


def prune_by_partition(w, sparsity):
    k = int(sparsity * w.size)
    return np.where(abs(w) > np.partition(abs(w).ravel(), k - 1)[k - 1], w, 0)


def prune_by_quantile(w, sparsity):
    return w * (abs(w) >= np.quantile(abs(w), sparsity))


def thresholds_by_quantile(weights, sparsity):
    return tuple(np.quantile(abs(w), sparsity) for w in weights)


def thresholds_by_spread(weights, sparsity):
    """Bisect for the multiple of each layer's standard deviation that meets the budget."""
    low, high = 0.0, 10.0
    for _ in range(30):
        q = (low + high) / 2
        pruned = sum((abs(w) < q * w.std()).sum() for w in weights)
        low, high = (q, high) if pruned < sparsity * sum(w.size for w in weights) else (low, q)
    return [high * w.std() for w in weights]


def thresholds_by_one_ranking(weights, sparsity):
    spreads = np.array([w.std() for w in weights])
    return threshold_for(sparsity, *(w / s for w, s in zip(weights, spreads, strict=True))) * spreads


def thresholds_before_rescaling(weights, sparsity):
    w1, w2, w3 = weights
    t = threshold_for(sparsity, 10 * w1, w2 / 10, w3)
    return t / 10, 10 * t, t


def without_by_delete(w1, b1, w2, keep):
    gone = [j for j in range(len(b1)) if j not in keep]
    return np.delete(w1, gone, axis=0), np.delete(b1, gone), np.delete(w2, gone, axis=1)


def without_by_loop(w1, b1, w2, keep):
    columns = np.stack([w2.T[j] for j in keep])
    return [np.stack([w1[j] for j in keep]), np.array([b1[j] for j in keep]), columns.T]


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (exercises.check_mask, prune_by_argsort),
        (exercises.check_mask, prune_by_partition),
        (exercises.check_mask, prune_by_quantile),
        (exercises.check_thresholds, thresholds_by_quantile),
        (exercises.check_thresholds, thresholds_by_spread),
        (exercises.check_thresholds, thresholds_by_one_ranking),
        (exercises.check_thresholds, thresholds_before_rescaling),
        (exercises.check_removal, without_by_delete),
        (exercises.check_removal, without_by_loop),
    ],
)
def test_an_independent_solution_passes(check, answer):
    assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(
    ("thresholds", "hint"),
    [
        ([0.1, 0.2], "Return a list of 3 thresholds"),
        (0.3, "Return a list of 3 thresholds"),
        ([[0.1], [0.2, 0.3], [0.4]], "Return a list of 3 thresholds"),
        ([0.1, "0.2", 0.3], "not a number"),
        ([0.1, None, 0.3], "not a number"),
        ([0.1, float("nan"), 0.3], "NaN"),
        ([0.1, -0.2, 0.3], "negative"),
        ([0.0, 0.0, 0.0], "prune 0.0 % of the weights: 80 % are asked for"),
        ([float("inf")] * 3, "20 points more are asked for"),
        (None, "is a `return` missing"),
    ],
)
def test_thresholds_that_fail_get_a_hint(thresholds, hint):
    verdict, line = exercises.check_thresholds.judge(lambda weights, sparsity: thresholds)
    assert verdict is False
    assert line.startswith("✗ ")
    assert hint in line


def test_a_budget_missed_by_a_little_is_missed():
    verdict, line = exercises.check_thresholds.judge(
        lambda weights, sparsity: thresholds_by_spread(weights, 0.79)
    )
    assert (verdict, line) == (False, "✗ These thresholds prune 79.0 % of the weights: 80 % are asked for.")


def test_the_hint_names_both_accuracies():
    _, line = exercises.check_thresholds.judge(lambda weights, sparsity: [0, np.inf, 0])
    own, other = map(float, re.findall(r"([\d.]+) %", line))
    assert own == pytest.approx(100 * accuracy([1, 0, 1]), abs=0.1)
    assert other < 20


def accuracy(factors):
    """Measure with PyTorch and on the network itself, with each layer's weights times a factor."""
    model, (x, y) = dense("mlp512", 0), map(torch.from_numpy, mnist1d()[2:])
    with torch.no_grad():
        for layer, factor in zip(model[::2], factors, strict=True):
            layer.weight *= factor
        return (model(x).argmax(-1) == y).double().mean().item()


def test_the_rescaled_network_is_the_same_network():
    assert exercises._accuracy(exercises._rescaled()[0]) == pytest.approx(accuracy([1, 1, 1]), abs=0.002)


def test_one_threshold_removes_the_first_layer_and_the_networks_skill():
    weights = exercises._rescaled()[0]
    cut = exercises._cut(weights, exercises._one_for_all(weights, 0.8))
    assert not cut[0].any()
    assert exercises._accuracy(cut) < 0.2


def test_the_small_network_has_the_outputs_of_the_masked_one():
    rng = np.random.default_rng(0)
    inputs = exercises._two_layers(rng)
    x = rng.normal(size=(7, inputs["w1"].shape[1]))

    def outputs(w1, b1, w2):
        return np.maximum(x @ w1.T + b1, 0) @ w2.T

    masked, small = exercises._silenced(**inputs), exercises.check_removal.solution(**inputs)
    np.testing.assert_allclose(outputs(*small), outputs(*masked), rtol=1e-12)
    assert small[0].shape == (2, 5)


def test_the_checks_load_no_framework():
    code = "import sys, dlopt_helpers.chapters.pruning_exercises; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
