"""The article's network, its loss and its turns, against PyTorch and by hand, and their famous bugs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt_helpers.adam import Adam
from dlopt_helpers.code_example import Alternating, binary_cross_entropy, forward
from dlopt_helpers.sgd import SGD


def tensor(x):
    import tensorflow as tf

    return tf.constant(x)


KINDS = {"numpy": np.asarray, "torch": torch.as_tensor, "tensorflow": tensor}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
repeatable = settings(deadline=None, derandomize=True, database=None)
RNG = np.random.default_rng(0)
X = RNG.normal(size=(7, 3))
WEIGHTS = [RNG.normal(size=shape) for shape in ((3, 5), (5,), (5, 1), (1,))]
P, Y = RNG.uniform(0.01, 0.99, size=(7, 1)), RNG.integers(0, 2, size=(7, 1)).astype(float)


# --- forward -------------------------------------------------------------------------------------


@every_kind
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_forward_is_pytorchs(kind, dtype):
    x, *weights = (kind(a.astype(dtype)) for a in (X, *WEIGHTS))
    w1, b1, w2, b2 = map(torch.from_numpy, WEIGHTS)
    expected = torch.sigmoid(torch.relu(torch.from_numpy(X) @ w1 + b1) @ w2 + b2)
    p = forward(x, *weights)
    assert type(p) is type(x) and p.dtype == x.dtype and tuple(p.shape) == (7, 1)
    np.testing.assert_allclose(np.asarray(p), expected, atol=1e-6 if dtype == "float32" else 1e-15)


def test_several_networks_at_once():
    weights = [np.stack([w, 2 * w]).reshape(2, -1, w.shape[-1]) for w in WEIGHTS]
    both = forward(X, *weights)
    assert both.shape == (2, 7, 1)
    np.testing.assert_allclose(both[1], forward(X, *(2 * w for w in WEIGHTS)))


@every_kind
@pytest.mark.filterwarnings("error")
def test_a_large_sum_does_not_overflow(kind):
    x, w1 = np.array([[1.0], [-1.0]], "float32"), np.array([[1e4, -1e4]], "float32")
    zeros, w2 = np.zeros(2, "float32"), np.array([[1.0], [-1.0]], "float32")
    p = forward(*map(kind, (x, w1, zeros, w2, zeros[:1])))
    np.testing.assert_array_equal(np.asarray(p), [[1], [0]])


def test_gradients_of_a_sure_answer_are_numbers():
    w = torch.tensor([[1e4]], requires_grad=True)
    forward(torch.tensor([[-1.0], [1.0]]), w, torch.zeros(1), -w, torch.zeros(1)).sum().backward()
    assert torch.isfinite(w.grad).all()


# --- loss ----------------------------------------------------------------------------------------


@every_kind
def test_loss_is_pytorchs(kind):
    expected = torch.nn.BCELoss()(torch.from_numpy(P), torch.from_numpy(Y)).item()
    assert float(binary_cross_entropy(kind(P), kind(Y))) == pytest.approx(expected, rel=1e-12)
    assert float(binary_cross_entropy(kind(P[:, 0]), kind(Y[:, 0]))) == pytest.approx(expected, rel=1e-12)


def test_loss_and_gradient_where_keras_clips():
    import keras
    import tensorflow as tf

    p, y = np.array([0.0, 1.0, 1e-9, 0.3], "float32"), np.array([1.0, 0.0, 0.0, 1.0], "float32")
    theirs = float(keras.losses.BinaryCrossentropy()(y, p))
    assert float(binary_cross_entropy(p, y)) == pytest.approx(theirs, rel=1e-6)
    ours = torch.from_numpy(p).requires_grad_()
    binary_cross_entropy(ours, torch.from_numpy(y)).backward()
    with tf.GradientTape() as tape:
        tape.watch(variable := tf.constant(p))
        loss = keras.losses.BinaryCrossentropy()(y, variable)
    np.testing.assert_allclose(ours.grad, tape.gradient(loss, variable), rtol=1e-5)
    assert ours.grad.tolist()[:3] == [0, 0, 0]


@repeatable
@given(share=st.floats(0, 1), answer=st.floats(0.01, 0.99))
def test_no_constant_answer_is_better_than_the_share(share, answer):
    y = np.full(3, share)
    assert binary_cross_entropy(np.full(3, answer), y) >= binary_cross_entropy(y, y) - 1e-6


def test_a_coin_costs_ln_2():
    assert binary_cross_entropy(np.full((4, 1), 0.5), np.array([[0], [1], [1], [1]])) == pytest.approx(
        np.log(2)
    )


@every_kind
@pytest.mark.parametrize("shapes", [((7, 1), (7,)), ((7,), (7, 1)), ((1, 7), (7, 1)), ((7, 1), (1, 1))])
def test_shapes_that_would_broadcast_are_refused(kind, shapes):
    p, y = (kind(np.full(shape, 0.5)) for shape in shapes)
    with pytest.raises(ValueError, match=r"p has the shape \(.*\) and y \(.*\): they must be equal"):
        binary_cross_entropy(p, y)


@pytest.mark.parametrize("bad", [0.5, None, "a", np.array([1.01]), np.array([-0.1]), np.array([np.nan])])
def test_what_is_no_probability_or_label(bad):
    good = np.array([0.5])
    for name, arguments in (("p", (bad, good)), ("y", (good, bad))):
        with pytest.raises(ValueError, match=f"{name}=.* is not allowed"):
            binary_cross_entropy(*arguments)


# --- two rules in turn ----------------------------------------------------------------------------


def in_torch(every, steps):
    """Return the weights after each step of two optimisers of PyTorch, changed by hand."""
    w, walk = torch.nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64)), []
    optimizers = [torch.optim.SGD([w], lr=0.1, momentum=0.9), torch.optim.Adam([w], lr=0.05)]
    for step in range(steps):
        w.grad = 2 * w.detach() + torch.sin(torch.tensor(float(step)))
        optimizers[step // every % 2].step()
        walk.append(w.detach().numpy().copy())
    return walk


@every_kind
@pytest.mark.parametrize("every", [1, 3])
def test_each_keeps_its_own_memory_as_two_optimisers_of_pytorch_do(kind, every):
    rule, w, walk = Alternating(SGD(0.1, momentum=0.9), Adam(0.05), every), kind(np.array([1.0, -2.0])), []
    state = rule.init(w)
    for step in range(20):
        w, state = rule.step(w, 2 * w + np.sin(float(step)), state)
        walk.append(np.asarray(w))
    np.testing.assert_allclose(walk, in_torch(every, 20), rtol=1e-6)


def test_who_steps_and_what_the_other_knows():
    rule = Alternating(SGD(0.1, momentum=0.5), Adam(0.1), every=2)
    assert [rule.turn(t) for t in range(7)] == ["first"] * 2 + ["second"] * 2 + ["first"] * 2 + ["second"]
    w, state = 1.0, rule.init(1.0)
    for _ in range(3):
        before = state
        w, state = rule.step(w, 1.0, state)
    assert state["t"] == 3 and state["second"]["t"] == 1 and state["second"]["m"] == pytest.approx(0.1)
    assert state["first"] is before["first"] and state["first"]["velocity"] == 1.5
    assert before["t"] == 2 and before["second"]["t"] == 0  # what was given stays as it was


def test_a_rule_in_turn_with_itself_is_not_itself_when_it_remembers():
    walks = []
    for rule in (Alternating(SGD(0.1), SGD(0.1)), SGD(0.1), Alternating(Adam(0.1), Adam(0.1)), Adam(0.1)):
        w, state = 1.0, rule.init(1.0)
        for _ in range(6):
            w, state = rule.step(w, 2 * w, state)
        walks.append(w)
    assert walks[0] == walks[1] and walks[2] != walks[3]


def test_rates_may_be_arrays():
    rates = np.array([[0.1], [0.2]])
    rule, w = Alternating(SGD(rates), Adam(rates)), np.ones((2, 3))
    state = rule.init(w)
    for _ in range(4):
        w, state = rule.step(w, 2 * w, state)
    one, alone = Alternating(SGD(0.2), Adam(0.2)), np.ones(3)
    state = one.init(alone)
    for _ in range(4):
        alone, state = one.step(alone, 2 * alone, state)
    np.testing.assert_allclose(w[1], alone)


@pytest.mark.parametrize("bad", [0, -1, 1.5, np.nan, np.inf, "2", None, True])
def test_turns_are_whole(bad):
    with pytest.raises(ValueError, match=f"every={bad!r} is not allowed: it must be a whole number >= 1"):
        Alternating(SGD(), Adam(), every=bad)


@pytest.mark.parametrize("bad", [None, "adam", SGD, 0.1])
def test_what_is_no_rule(bad):
    with pytest.raises(ValueError, match=r"first=.* is not allowed: it must be a rule"):
        Alternating(bad, SGD())
    with pytest.raises(ValueError, match=r"second=.* is not allowed: it must be a rule"):
        Alternating(SGD(), bad)
