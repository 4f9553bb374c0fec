"""The subject's SGD against the frameworks' own, and the mistakes that this comparison must catch."""

import itertools
import math
from dataclasses import FrozenInstanceError

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from bad_numbers import negative, not_a_number, one_or_more
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt_helpers.bridges.conventions import KerasSGD
from dlopt_helpers.sgd import SGD

STEPS = 100
SHAPES = [(), (0,), (0, 3), (1,), (7,), (4, 3), (2, 3, 4)]
# Keras rounds its rate, momentum and decay to float32: these numbers are the same in both precisions.
COMBINATIONS = [
    {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    for momentum, nesterov, decay in itertools.product([0.0, 0.875], [False, True], [0.0, 0.125])
    if momentum or not nesterov
]
RATES = {
    "constant": [2.0**-4] * STEPS,
    "changing": [2.0 ** -(4 + step % 5) for step in range(STEPS)],
}
# Largest difference allowed after 100 steps, at weights of size 1: a few units of the last place. Seen are
# 1.2e-7 and 2.2e-16 against PyTorch and 0 against Keras; the smallest of the mistakes below makes 0.14.
CLOSE = {"float32": 1e-6, "float64": 2e-15}
BACKENDS = {
    "numpy": (np.asarray, np.asarray),
    "torch": (torch.tensor, torch.Tensor.numpy),
    "tensorflow": (tf.convert_to_tensor, lambda t: t.numpy()),
}

every_combination = pytest.mark.parametrize("options", COMBINATIONS, ids=str)
every_dtype = pytest.mark.parametrize("dtype", CLOSE)
every_rate = pytest.mark.parametrize("rates", RATES)


def problem(dtype):
    """Return start weights, one per shape, and for each the gradients' random parts of all steps."""
    rng = np.random.default_rng(7)
    starts = [rng.normal(size=shape).astype(dtype) for shape in SHAPES]
    return starts, [rng.normal(size=(STEPS, *shape)).astype(dtype) for shape in SHAPES]


def descend(rule_class, options, dtype, rates, backend="numpy"):
    """Return the weights that the rule reaches; the gradient at ``w`` is ``w`` plus its random part."""
    make, as_numpy = BACKENDS[backend]
    ends = []
    for start, noises in zip(*problem(dtype), strict=True):
        w = make(start)
        state = rule_class(**options).init(w)
        for lr, noise in zip(RATES[rates], noises, strict=True):
            w, state = rule_class(lr=lr, **options).step(w, w + make(noise), state)
        ends.append(as_numpy(w))
    return ends


def descend_torch(options, dtype, rates):
    starts, noises = problem(dtype)
    weights = [torch.nn.Parameter(torch.tensor(w)) for w in starts]
    optimizer = torch.optim.SGD(weights, lr=1.0, **options)
    for step, lr in enumerate(RATES[rates]):
        optimizer.param_groups[0]["lr"] = lr
        for w, noise in zip(weights, noises, strict=True):
            w.grad = w.detach() + torch.tensor(noise[step])
        optimizer.step()
    return [w.detach().numpy() for w in weights]


def descend_keras(options, dtype, rates):
    starts, noises = problem(dtype)
    weights = [tf.Variable(w) for w in starts]
    optimizer = keras.optimizers.SGD(**options | {"weight_decay": options["weight_decay"] or None})
    optimizer.build(weights)
    rate = tf.constant(RATES[rates], "float32")

    @tf.function  # fifty times faster than one call a step
    def run():
        for step in tf.range(STEPS):
            optimizer._learning_rate.assign(rate[step])
            optimizer.apply([w + tf.constant(noise)[step] for w, noise in zip(weights, noises, strict=True)])

    run()
    return [w.numpy() for w in weights]


def assert_equal(ends, expected, dtype):
    for end, right, shape in zip(ends, expected, SHAPES, strict=True):
        assert end.shape == shape and end.dtype == dtype
        np.testing.assert_allclose(end, right, rtol=0, atol=CLOSE[dtype])


@every_rate
@every_dtype
@every_combination
@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_torch(options, dtype, rates, backend):
    ends = descend(SGD, options, dtype, rates, backend)
    assert_equal(ends, descend_torch(options, dtype, rates), dtype)


@every_rate
@every_dtype
@every_combination
def test_keras_convention_equals_keras(options, dtype, rates):
    assert_equal(descend(KerasSGD, options, dtype, rates), descend_keras(options, dtype, rates), dtype)


@every_dtype
@pytest.mark.parametrize("options", [o for o in COMBINATIONS if not o["weight_decay"]])
def test_equals_keras_at_a_constant_rate_without_decay(options, dtype):
    assert_equal(descend(SGD, options, dtype, "constant"), descend_keras(options, dtype, "constant"), dtype)


@pytest.mark.parametrize(
    "options, rates",
    [
        ({"momentum": 0.875, "nesterov": False, "weight_decay": 0.0}, "changing"),
        ({"momentum": 0.875, "nesterov": False, "weight_decay": 0.125}, "constant"),
    ],
)
def test_the_conventions_differ_elsewhere(options, rates):
    torch_way, keras_way = (descend(rule, options, "float64", rates) for rule in (SGD, KerasSGD))
    assert np.abs(torch_way[-1] - keras_way[-1]).max() > 1e-3


class RateInsideVelocity(SGD):
    def step(self, w, gradient, state):
        velocity = self.momentum * state["velocity"] + self.lr * (gradient + self.weight_decay * w)
        change = self.lr * gradient + self.momentum * velocity if self.nesterov else velocity
        return w - change, {"velocity": velocity}


class NesterovAlongOldVelocity(SGD):
    def step(self, w, gradient, state):
        gradient = gradient + self.weight_decay * w
        velocity = self.momentum * state["velocity"] + gradient
        direction = gradient + self.momentum * state["velocity"] if self.nesterov else velocity
        return w - self.lr * direction, {"velocity": velocity}


class DecayGrows(SGD):
    def step(self, w, gradient, state):
        return super().step(w, gradient - 2 * self.weight_decay * w, state)


class DecayBesideVelocity(SGD):
    def step(self, w, gradient, state):
        after, state = super().step(w, gradient - self.weight_decay * w, state)
        return after - self.lr * self.weight_decay * w, state


class VelocityForgotten(SGD):
    def step(self, w, gradient, state):
        return super().step(w, gradient, state)[0], state


class Dampened(SGD):
    def step(self, w, gradient, state):
        gradient = gradient + self.weight_decay * w
        velocity = self.momentum * state["velocity"] + (1 - self.momentum) * gradient
        direction = gradient + self.momentum * velocity if self.nesterov else velocity
        return w - self.lr * direction, {"velocity": velocity}


class NesterovIgnored(SGD):
    def step(self, w, gradient, state):
        return SGD(self.lr, self.momentum, False, self.weight_decay).step(w, gradient, state)


class Ascends(SGD):
    def step(self, w, gradient, state):
        after, state = super().step(w, gradient, state)
        return 2 * w - after, state


MISTAKES = [
    RateInsideVelocity,
    NesterovAlongOldVelocity,
    DecayGrows,
    DecayBesideVelocity,
    VelocityForgotten,
    Dampened,
    NesterovIgnored,
    Ascends,
]


def compare_everywhere(rule_class, framework, dtype):
    for options, rates in itertools.product(COMBINATIONS, RATES):
        assert_equal(descend(rule_class, options, dtype, rates), framework(options, dtype, rates), dtype)


@every_dtype
@pytest.mark.parametrize("mistake", MISTAKES)
def test_the_comparison_catches(mistake, dtype):
    compare_everywhere(SGD, descend_torch, dtype)
    with pytest.raises(AssertionError):
        compare_everywhere(mistake, descend_torch, dtype)


@pytest.mark.parametrize("mistake", [SGD, RateInsideVelocity, *MISTAKES[2:]])
def test_the_comparison_with_keras_catches(mistake):
    with pytest.raises(AssertionError):
        compare_everywhere(mistake, descend_keras, "float64")


def test_arguments_stay_as_they_are():
    w, gradient = np.ones(3), np.ones(3)
    rule = SGD(lr=0.1, momentum=0.9, weight_decay=0.1)
    state = rule.init(w)
    rule.step(w, gradient, state)
    assert (w == 1).all() and (gradient == 1).all() and (state["velocity"] == 0).all()
    with pytest.raises(FrozenInstanceError):
        rule.lr = 1.0


def test_arrays_as_rates_train_stacked_networks():
    rates = np.array([0.1, 0.2, 0.4])
    w, gradient = np.random.default_rng(0).normal(size=(2, 3, 5))
    stacked, _ = SGD(lr=rates[:, None]).step(w, gradient, SGD().init(w))
    for i, lr in enumerate(rates):
        np.testing.assert_array_equal(stacked[i], SGD(lr=lr).step(w[i], gradient[i], SGD().init(w[i]))[0])


def test_runs_compiled_with_a_rate_that_has_no_value_yet():
    @tf.function
    def compiled(lr, w):
        rule = SGD(lr=lr)
        return rule.step(w, 2 * w, rule.init(w))[0]

    assert compiled(tf.constant(0.25), tf.constant(1.0)).numpy() == 0.5


repeatable = settings(deadline=None, derandomize=True, database=None)


@repeatable
@given(value=not_a_number | negative, name=st.sampled_from(["lr", "weight_decay"]))
def test_refuses_rate_and_decay(name, value):
    with pytest.raises(ValueError) as error:
        SGD(**{name: value})
    assert name in str(error.value) and repr(value) in str(error.value)


@repeatable
@given(value=not_a_number | negative | one_or_more)
def test_refuses_momentum(value):
    with pytest.raises(ValueError, match=r"momentum=.*must be a number in"):
        SGD(momentum=value)


@repeatable
@given(good=st.floats(0, 1), bad=negative | st.just(math.nan))
def test_refuses_an_array_with_one_bad_entry(good, bad):
    with pytest.raises(ValueError, match="lr="):
        SGD(lr=np.array([good, bad]))


def test_nesterov_needs_momentum():
    with pytest.raises(ValueError, match=r"momentum=0.0.*nesterov=True"):
        SGD(nesterov=True)


@repeatable
@given(lr=st.floats(0, 1e300), momentum=st.floats(0, 1, exclude_max=True), decay=st.floats(0, 1e300))
def test_accepts_what_is_in_range(lr, momentum, decay):
    SGD(lr=lr, momentum=momentum, nesterov=momentum > 0, weight_decay=decay)
