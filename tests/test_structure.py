"""Costs by hand and against PyTorch, low rank against NumPy, and the bugs they are famous for."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dlopt_helpers import structure
from dlopt_helpers.structure import Cost


def tensor(x):
    import tensorflow as tf

    return tf.constant(x)


KINDS = {"numpy": np.asarray, "torch": torch.as_tensor, "tensorflow": tensor}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
repeatable = settings(deadline=None, derandomize=True, database=None)
W = np.random.default_rng(0).normal(size=(7, 5))


# --- costs ---------------------------------------------------------------------------------------


def counted(model, *shape):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *shape))
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def test_costs_by_hand():
    assert structure.linear_cost(3, 2) == (3 * 2 + 2, 6)
    assert structure.linear_cost(3, 2, bias=False) == (6, 6)
    assert structure.conv_cost(4, 6, kernel=3, length=10) == (4 * 6 * 3 + 6, 4 * 6 * 3 * 10)
    assert structure.conv_cost(4, 6, 3, 10, groups=2) == (2 * 6 * 3 + 6, 2 * 6 * 3 * 10)
    assert structure.separable_cost(4, 6, 3, 10) == (4 * 3 + 4 + 4 * 6 + 6, (4 * 3 + 4 * 6) * 10)
    narrow, inner, widen = 8 * 2 + 2, 2 * 2 * 3 + 2, 2 * 8 + 8
    assert structure.bottleneck_cost(8, 2, 3, 10) == (narrow + inner + widen, (16 + 12 + 16) * 10)


def test_costs_add_up():
    assert sum([Cost(1, 2), Cost(3, 4)], Cost()) == Cost(4, 6)


@repeatable
@given(
    groups=st.integers(1, 4),
    per=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.integers(1, 5),
    stride=st.integers(1, 3),
    bias=st.booleans(),
)
def test_convolutions_cost_what_pytorch_counts(groups, per, kernel, stride, bias):
    inputs, outputs = (groups * n for n in per)
    conv = nn.Conv1d(inputs, outputs, kernel, stride, groups=groups, bias=bias)
    length = (20 - kernel) // stride + 1
    ours = structure.conv_cost(inputs, outputs, kernel, length, groups, bias)
    assert ours == counted(conv, inputs, 20)


def test_two_dimensions_have_the_product_of_both():
    ours = structure.conv_cost(3, 8, kernel=3 * 3, length=10 * 12)
    assert ours == counted(nn.Conv2d(3, 8, 3, padding=1), 3, 10, 12)


@repeatable
@given(inputs=st.integers(1, 40), outputs=st.integers(1, 40), kernel=st.integers(1, 9))
def test_the_ratio_of_the_separable_convolution(inputs, outputs, kernel):
    ours, plain = (f(inputs, outputs, kernel, 7) for f in (structure.separable_cost, structure.conv_cost))
    assert ours.macs / plain.macs == pytest.approx(1 / outputs + 1 / kernel)


@pytest.mark.parametrize("bad", [0, -1, 1.5, np.nan, np.inf, "3", None, True])
def test_costs_refuse_what_is_no_size(bad):
    for name in ("inputs", "outputs", "kernel", "length", "groups"):
        good = {"inputs": 4, "outputs": 4, "kernel": 3, "length": 10, "groups": 1}
        with pytest.raises(ValueError, match=f"{name}={bad!r} is not allowed"):
            structure.conv_cost(**good | {name: bad})
    with pytest.raises(ValueError, match="outputs="):
        structure.linear_cost(3, bad)
    with pytest.raises(ValueError, match=r"(inner|outputs|inputs)="):
        structure.bottleneck_cost(8, bad, 3, 10)


@pytest.mark.parametrize("inputs, outputs", [(4, 6), (6, 4)])
def test_groups_divide_both(inputs, outputs):
    with pytest.raises(ValueError, match="groups=4 is not allowed: it must be a divisor of both"):
        structure.conv_cost(inputs, outputs, 3, 10, groups=4)


# --- low rank ------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("w", [W, W.T], ids=["tall", "wide"])
def test_low_rank_is_numpys(kind, w):
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    for rank in range(1, 6):
        a, b = structure.low_rank(kind(w), rank)
        assert type(a) is type(b) is type(kind(w))
        assert tuple(a.shape) == (len(w), rank) and tuple(b.shape) == (rank, w.shape[1])
        np.testing.assert_allclose(a @ b, u[:, :rank] * s[:rank] @ vt[:rank], atol=1e-12)
        error = np.linalg.norm(w - np.asarray(a @ b)) / np.linalg.norm(w)
        assert structure.low_rank_error(structure.singular_values(kind(w)), rank) == pytest.approx(
            error, abs=1e-12
        )
    np.testing.assert_allclose(structure.singular_values(kind(w)), s)


def test_full_rank_is_the_matrix_and_float32_stays():
    a, b = structure.low_rank(W.astype("float32"), 5)
    assert a.dtype == b.dtype == np.float32
    np.testing.assert_allclose(a @ b, W, atol=1e-5)
    assert structure.low_rank_error(structure.singular_values(W), 5) == 0


def test_both_factors_are_equally_large():
    a, b = structure.low_rank(W, 3)
    s = structure.singular_values(W)[:3]
    np.testing.assert_allclose((a**2).sum(axis=0), s)
    np.testing.assert_allclose((b**2).sum(axis=1), s)


@repeatable
@given(seed=st.integers(0, 1000), rank=st.integers(1, 4))
def test_no_other_factors_come_closer(seed, rank):
    rng = np.random.default_rng(seed)
    best = structure.low_rank_error(structure.singular_values(W), rank)
    others, near = rng.normal(size=(7, rank)), structure.low_rank(W, rank)[0]
    for a in (others, near + 1e-3 * others):  # the best b for any a is by least squares
        b = np.linalg.lstsq(a, W, rcond=None)[0]
        assert np.linalg.norm(W - a @ b) / np.linalg.norm(W) >= best - 1e-12


@pytest.mark.parametrize("bad", [0, -1, 6, 1.5, np.nan, "2", None, True])
def test_ranks_out_of_range(bad):
    for call in (lambda r: structure.low_rank(W, r), lambda r: structure.low_rank_error(W[0], r)):
        with pytest.raises(
            ValueError, match=r"rank=.* is not allowed: it must be a whole number in \[1, 5\]"
        ):
            call(bad)


@every_kind
def test_what_is_no_matrix(kind):
    for w in (np.ones(3), np.ones((2, 2, 2)), np.ones((0, 3))):
        with pytest.raises(ValueError, match=r"w has the shape .*: it must be a matrix"):
            structure.low_rank(kind(w), 1)
    for bad in (np.nan, np.inf):
        for call in (structure.singular_values, lambda w: structure.low_rank(w, 1)):
            with pytest.raises(ValueError, match="w holds a number that is not finite"):
                call(kind(np.array([[1.0, bad]])))


def test_error_of_nothing():
    with pytest.raises(ValueError, match="all zero"):
        structure.low_rank_error(np.zeros(3), 1)
    with pytest.raises(ValueError, match="not finite"):
        structure.low_rank_error(np.array([np.nan, 1.0]), 1)


@repeatable
@given(m=st.integers(1, 600), n=st.integers(1, 600), share=st.floats(0.01, 1))
def test_rank_for_is_the_last_that_saves(m, n, share):
    r = structure.rank_for(m, n, share)
    assert r * (m + n) < share * m * n <= (r + 1) * (m + n)


def test_rank_for_by_hand():
    assert structure.rank_for(512, 512) == 255  # 256 * 1024 numbers are as many as 512 * 512
    assert structure.rank_for(1, 5) == 0
    for bad in (0, -0.5, 1.01, np.nan):
        with pytest.raises(ValueError, match="share="):
            structure.rank_for(3, 3, bad)
    with pytest.raises(ValueError, match="inputs="):
        structure.rank_for(3, 0)


# --- front ---------------------------------------------------------------------------------------


@every_kind
def test_front_by_hand(kind):
    costs, scores = [1.0, 2.0, 2.0, 3.0, 4.0, 4.0], [0.5, 0.4, 0.6, 0.6, 0.9, 0.9]
    found = structure.front(kind(np.array(costs)), kind(np.array(scores)))
    np.testing.assert_array_equal(found, [True, False, True, False, True, True])


@repeatable
@given(points=st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30))
def test_front_by_its_definition(points):
    costs, scores = np.array(points, float).T
    found = structure.front(costs, scores)
    for i, (c, s) in enumerate(points):
        beaten = any(d <= c and t >= s and (d, t) != (c, s) for d, t in points)
        assert found[i] == (not beaten)


def test_front_refuses():
    with pytest.raises(ValueError, match=r"shapes \(2,\) and \(3,\)"):
        structure.front(np.ones(2), np.ones(3))
    with pytest.raises(ValueError, match="shape"):
        structure.front(np.ones(0), np.ones(0))
    with pytest.raises(ValueError, match="scores holds a number that is not finite"):
        structure.front(np.ones(2), np.array([1.0, np.nan]))
