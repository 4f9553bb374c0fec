"""Pruning's formulas by hand, on three kinds of arrays, and the bugs that they are famous for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from dlopt_helpers import pruning


def tensor(x):
    import tensorflow as tf

    return tf.constant(x)


KINDS = {"numpy": np.asarray, "torch": torch.as_tensor, "tensorflow": tensor}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
W = np.array([[0.3, -0.5, 0.0], [-0.1, 0.2, 0.4]], "float32")
some_weights = arrays("float64", st.integers(1, 40), elements=st.floats(-1e6, 1e6))


# --- masks ---------------------------------------------------------------------------------------


@every_kind
def test_mask_by_hand(kind):
    w = kind(W)
    mask = pruning.magnitude_mask(w, threshold=0.25)
    assert type(mask) is type(w) and mask.dtype == w.dtype
    np.testing.assert_array_equal(mask, [[1, 1, 0], [0, 0, 1]])
    np.testing.assert_array_equal(mask * w, np.where(abs(W) >= 0.25, W, 0))


def test_a_weight_at_the_threshold_stays():
    np.testing.assert_array_equal(pruning.magnitude_mask(W, 0.4), abs(W) >= 0.4)
    assert pruning.magnitude_mask(W, float(W[1, 2]))[1, 2] == 1


def test_threshold_zero_keeps_all_and_infinity_nothing():
    assert pruning.magnitude_mask(W, 0.0).all()
    assert not pruning.magnitude_mask(W, math.inf).any()


@every_kind
def test_threshold_by_hand(kind):
    a, b = kind(W), kind(np.array([10.0, -20.0], "float32"))
    assert pruning.threshold_for(0.5, a) == pytest.approx(0.3)
    assert pruning.threshold_for(0.5, a, b) == pytest.approx(0.4)  # one ranking of all eight
    assert pruning.threshold_for(0.0, a) == 0
    assert pruning.threshold_for(1.0, a, b) == math.inf


@given(w=some_weights, share=st.floats(0, 1))
def test_threshold_prunes_what_was_asked(w, share):
    pruned = (pruning.magnitude_mask(w, pruning.threshold_for(share, w)) == 0).sum()
    ties = len(w) - len(np.unique(abs(w)))
    assert round(share * len(w)) - ties <= pruned <= round(share * len(w))


@given(w=some_weights, share=st.floats(0, 1))
def test_no_pruned_weight_is_larger_than_a_kept_one(w, share):
    mask = pruning.magnitude_mask(w, pruning.threshold_for(share, w)) == 1
    assert mask.all() or not mask.any() or abs(w[~mask]).max() < abs(w[mask]).min()


@every_kind
def test_two_of_four(kind):
    w = np.random.default_rng(0).normal(size=(6, 5, 8))
    mask = np.asarray(pruning.n_of_m_mask(kind(w)))
    groups, kept = abs(w).reshape(-1, 4), mask.reshape(-1, 4) == 1
    assert mask.shape == w.shape and (kept.sum(axis=1) == 2).all()
    for group, stay in zip(groups, kept, strict=True):
        assert group[stay].min() > group[~stay].max()
    one_of_two = np.asarray(pruning.n_of_m_mask(kind(w), n=1, m=2))
    assert (one_of_two.reshape(-1, 2).sum(axis=1) == 1).all()


@every_kind
def test_sparsity(kind):
    assert pruning.sparsity(kind(W)) == pytest.approx(1 / 6)
    # of all weights together: the mean of the layers' shares would be 7/12
    assert pruning.sparsity(kind(W), kind(np.zeros(3, "float32"))) == pytest.approx(4 / 9)


# --- units ---------------------------------------------------------------------------------------


@every_kind
def test_unit_scores_by_hand(kind):
    w = kind(W)
    np.testing.assert_allclose(pruning.unit_scores(w, axis=0), [0.8 / 3, 0.7 / 3], rtol=1e-6)
    np.testing.assert_allclose(pruning.unit_scores(w, axis=-1), [0.2, 0.35, 0.2], rtol=1e-6)
    l2 = np.sqrt((W**2).mean(axis=1))
    np.testing.assert_allclose(pruning.unit_scores(w, axis=0, p=2), l2, rtol=1e-6)


@every_kind
def test_scores_of_channels(kind):
    w = np.random.default_rng(0).normal(size=(4, 3, 5))
    expected = [abs(channel).mean() for channel in w]
    np.testing.assert_allclose(pruning.unit_scores(kind(w), axis=0), expected)


@every_kind
def test_best_units(kind):
    scores = kind(np.array([0.2, 0.9, 0.1, 0.5]))
    assert pruning.best_units(scores, keep=2) == [1, 3]
    assert pruning.best_units(scores, keep=4) == [0, 1, 2, 3]


# --- schedules -----------------------------------------------------------------------------------

SCHEDULES = [pruning.one_shot, pruning.iterative, pruning.cubic]


@pytest.mark.parametrize("schedule", SCHEDULES)
@given(final=st.floats(0, 1))
def test_schedules_rise_to_the_end(schedule, final):
    s = schedule(np.linspace(0, 1, 11), final)
    assert (np.diff(s) >= -1e-12).all() and abs(s[-1] - final) < 1e-12


def test_rounds_prune_equal_shares_of_what_is_left():
    kept = 1 - pruning.iterative(np.arange(6) / 5, final=0.95)
    np.testing.assert_allclose(kept[1:] / kept[:-1], 0.05 ** (1 / 5))
    assert kept[0] == 1


def test_cubic_slows_down():
    steps = np.diff(pruning.cubic(np.linspace(0, 1, 11), final=0.9))
    assert (np.diff(steps) < 0).all()
    assert pruning.cubic(0.5, final=0.8) == pytest.approx(0.7)


def test_one_shot_cuts_at_once():
    assert pruning.one_shot(0.0, final=0.9) == pruning.one_shot(1.0, final=0.9) == 0.9


# --- bad input -----------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite(kind, bad):
    w = kind(np.array([[1.0, bad]]))
    for call in (
        lambda: pruning.magnitude_mask(w, 0.1),
        lambda: pruning.threshold_for(0.5, w),
        lambda: pruning.n_of_m_mask(w, n=1, m=2),
        lambda: pruning.unit_scores(w, axis=0),
        lambda: pruning.best_units(w[0], keep=1),
    ):
        with pytest.raises(ValueError, match="not finite"):
            call()


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda: pruning.magnitude_mask(W, -0.1), r"threshold=-0\.1 .* a number >= 0"),
        (lambda: pruning.magnitude_mask(W, math.nan), "threshold=nan"),
        (lambda: pruning.magnitude_mask(W, "0.1"), "threshold='0.1'"),
        (lambda: pruning.threshold_for(1.1, W), r"sparsity=1\.1 .* in \[0, 1\]"),
        (lambda: pruning.threshold_for(-0.1, W), r"sparsity=-0\.1"),
        (lambda: pruning.threshold_for(90, W), "sparsity=90"),
        (lambda: pruning.threshold_for(0.5), "weights is empty"),
        (lambda: pruning.threshold_for(0.5, np.zeros((0, 3))), "weights is empty"),
        (lambda: pruning.n_of_m_mask(W), r"m=4 .* a divisor of 3"),
        (lambda: pruning.n_of_m_mask(W, n=4, m=3), r"n=4 .* in \[1, 3\]"),
        (lambda: pruning.unit_scores(W, axis=2), r"axis=2 .* in \[-2, 1\]"),
        (lambda: pruning.unit_scores(W, axis=0, p=3), r"p=3 .* in \[1, 2\]"),
        (lambda: pruning.best_units(W[0], keep=0), r"keep=0 .* in \[1, 3\]"),
        (lambda: pruning.best_units(W[0], keep=4), "keep=4"),
        (lambda: pruning.best_units(W[0], keep=1.5), "keep=1.5"),
        *((lambda s=s: s(1.1, 0.5), r"progress=1\.1 .* in \[0, 1\]") for s in SCHEDULES),
        *((lambda s=s: s(0.5, -1), "final=-1") for s in SCHEDULES),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()
