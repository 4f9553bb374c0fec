"""The formulas of chapter 2: against brute force over orders, hand-made games, and their usual bugs."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

from dlopt_helpers.levers import effect, interaction, shapley

SIZES = [1, 2, 3, 4, 5]


def game(k, seed=0):
    return np.random.default_rng(seed).uniform(0.1, 10, size=(2,) * k)


def by_orders(w):
    """Switch the levers on in every order, and take the mean of what each adds."""
    k = w.ndim
    added = np.zeros((math.factorial(k), k))
    for row, order in enumerate(itertools.permutations(range(k))):
        on = [0] * k
        for lever in order:
            before = w[tuple(on)]
            on[lever] = 1
            added[row, lever] = w[tuple(on)] - before
    return added.mean(axis=0)


# --- shapley ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("multiply", [True, False])
def test_sets_agree_with_all_orders(k, multiply):
    values = game(k)
    w = np.log(values) if multiply else values
    np.testing.assert_allclose(shapley(values, multiply), by_orders(w), atol=1e-12)


@pytest.mark.parametrize("k", SIZES)
def test_efficiency(k):
    values = game(k, seed=1)
    first, last = values.flat[0], values.flat[-1]
    assert np.exp(shapley(values)).prod() == pytest.approx(last / first)
    assert shapley(values, multiply=False).sum() == pytest.approx(last - first)


def test_symmetry():
    values = game(3)
    values = values + values.transpose(1, 0, 2)  # the first two are interchangeable
    first, second, third = shapley(values)
    assert first == pytest.approx(second) and first != pytest.approx(third)


def test_a_dummy_gets_nothing_and_takes_nothing():
    values = game(2)
    with_dummy = np.stack([values, values], axis=1)
    np.testing.assert_allclose(shapley(with_dummy), np.insert(shapley(values), 1, 0), atol=1e-12)


def test_additivity():
    a, b = game(3, 1), game(3, 2)
    np.testing.assert_allclose(shapley(a * b), shapley(a) + shapley(b))
    np.testing.assert_allclose(shapley(a + b, False), shapley(a, False) + shapley(b, False))


def test_the_glove_game():
    """One left glove, two right ones, and only a pair is worth 1: 2/3, 1/6, 1/6, as in every textbook."""
    w = np.zeros((2, 2, 2))
    w[1, 1, 0] = w[1, 0, 1] = w[1, 1, 1] = 1
    np.testing.assert_allclose(shapley(w, multiply=False), [2 / 3, 1 / 6, 1 / 6])


def test_the_mean_over_sets_is_another_number():
    """All sets alike is Banzhaf's index: its parts of the glove game do not add up to 1."""
    w = np.zeros((2, 2, 2))
    w[1, 1, 0] = w[1, 0, 1] = w[1, 1, 1] = 1
    banzhaf = [effect(w, lever, multiply=False).mean() for lever in range(3)]
    assert sum(banzhaf) == pytest.approx(1.25) and shapley(w, multiply=False).sum() == pytest.approx(1)


# --- effect and interaction -----------------------------------------------------------------------------


def test_effect_on_over_off_of_each_axis():
    values = np.array([[[1.0, 2.0], [3.0, 12.0]], [[5.0, 20.0], [30.0, 60.0]]])
    np.testing.assert_allclose(effect(values, 0), [[5, 10], [10, 5]])
    np.testing.assert_allclose(effect(values, 1), [[3, 6], [6, 3]])
    np.testing.assert_allclose(effect(values, 2, multiply=False), [[1, 9], [15, 30]])


def test_products_do_not_interact():
    values = np.einsum("i,j,k->ijk", [8.0, 2.0], [1.0, 0.3], [1.0, 7.0])
    for a, b in itertools.permutations(range(3), 2):
        np.testing.assert_allclose(interaction(values, a, b), 0, atol=1e-12)
        assert abs(interaction(values, a, b, multiply=False)).max() > 0.1  # the forgotten logarithm


def test_sums_do_not_interact_without_logarithms():
    values = np.add.outer(np.array([0.0, 3.0]), np.array([-1.0, 5.0]))
    assert interaction(values, 0, 1, multiply=False).item() == 0


def test_interaction_by_hand():
    cost = np.array([[8.0, 2.0], [4.0, 2.0]])  # both save half of what is saved: 8 / 2 / 4 would be 1
    assert np.exp(interaction(cost, 0, 1)).item() == pytest.approx(2)
    assert np.exp(interaction(1 / cost, 0, 1)).item() == pytest.approx(1 / 2)


@pytest.mark.parametrize(("a", "b"), list(itertools.combinations(range(4), 2)))
def test_interaction_is_an_effect_on_an_effect(a, b):
    values = game(4)
    np.testing.assert_allclose(interaction(values, a, b), np.log(effect(effect(values, b), a)))
    np.testing.assert_allclose(interaction(values, a, b), interaction(values, b, a))


@pytest.mark.parametrize("k", SIZES[1:])
def test_a_unit_changes_no_factor(k):
    values = game(k)
    np.testing.assert_allclose(shapley(1024 * values), shapley(values), atol=1e-12)
    np.testing.assert_allclose(interaction(1024 * values, 0, 1), interaction(values, 0, 1), atol=1e-12)


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [shapley, lambda v: effect(v, 0), lambda v: interaction(v, 0, 1)])
@pytest.mark.parametrize("values", [np.ones(3), np.float64(1), np.ones((2, 3)), np.ones((2, 0))])
def test_a_wrong_shape_is_refused(function, values):
    with pytest.raises(ValueError, match=r"values has the shape .* it must be \(2,\) \* k"):
        function(values)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_factor_needs_positive_numbers(bad):
    values = np.array([[1.0, bad], [1.0, 1.0]])
    for function in (shapley, lambda v: effect(v, 0), lambda v: interaction(v, 0, 1)):
        with pytest.raises(ValueError, match="finite numbers > 0"):
            function(values)


def test_differences_take_any_finite_number():
    values = np.array([[0.0, -1.0], [2.0, 0.0]])
    assert shapley(values, multiply=False).tolist() == [1.5, -1.5]
    with pytest.raises(ValueError, match="finite"):
        shapley(np.array([0.0, math.nan]), multiply=False)


@pytest.mark.parametrize("axis", [-1, 2, 0.5, None, "0", True, math.nan])
def test_a_wrong_axis_is_refused(axis):
    with pytest.raises(ValueError, match="lever="):
        effect(np.ones((2, 2)), axis)
    with pytest.raises(ValueError, match="a="):
        interaction(np.ones((2, 2)), axis, 0)


def test_a_lever_has_no_interaction_with_itself():
    with pytest.raises(ValueError, match="b=1 is not allowed: it must be another axis than a=1"):
        interaction(np.ones((2, 2)), 1, 1)


def test_lists_are_arrays():
    assert effect([2.0, 4.0], 0).item() == 2 and shapley([1, 3], multiply=False).tolist() == [2]


def test_it_loads_no_framework():
    code = "import sys, dlopt_helpers.levers; sys.exit(bool({'torch', 'keras'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
