"""The bridge to Keras: same paths as keras.optimizers.SGD, and models that train, save and load."""

import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch

from dlopt_helpers.bridges.conventions import KerasSGD
from dlopt_helpers.bridges.keras import RuleOptimizer
from dlopt_helpers.sgd import SGD

COMBINATIONS = [
    {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    for momentum, nesterov, decay in itertools.product([0.0, 0.9], [False, True], [0.0, 0.1])
    if momentum or not nesterov
]
every_combination = pytest.mark.parametrize("options", COMBINATIONS, ids=str)
SHAPES = [(), (0,), (0, 3), (4, 3)]
START = [np.random.default_rng(0).normal(size=shape) for shape in SHAPES]
FLOAT32 = 1e-6  # seen: 0 in most cases, 1.2e-7 at most


def exponential():
    return keras.optimizers.schedules.ExponentialDecay(0.1, decay_steps=5, decay_rate=0.8)


def theirs(learning_rate, options, **more):
    decay = options["weight_decay"] or None
    return keras.optimizers.SGD(learning_rate, **options | {"weight_decay": decay}, **more)


def descend(optimizer, dtype="float32", steps=50):
    """Return the weights after steps whose gradient at ``w`` is ``w``."""
    weights = [tf.Variable(w, dtype=dtype) for w in START]
    optimizer.build(weights)

    @tf.function
    def step():
        optimizer.apply([w + 0.0 for w in weights])

    for _ in range(steps):
        step()
    return [w.numpy() for w in weights]


def assert_equal(ours, expected, atol=FLOAT32):
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("rate", ["constant", "schedule"])
@every_combination
def test_keras_convention_equals_keras_sgd(options, rate):
    ours, lr = {}, 0.1
    if rate == "schedule":
        ours, lr = {"learning_rate": exponential()}, exponential()
    a = RuleOptimizer(SGD(lr=0.1, **options), convention="keras", **ours)
    assert_equal(descend(a), descend(theirs(lr, options)))


@every_combination
def test_torch_convention_equals_torch_inside_keras(options):
    weights = [torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in START]
    optimizer = torch.optim.SGD(weights, lr=0.1, **options)
    for step in range(50):
        optimizer.param_groups[0]["lr"] = float(exponential()(step))
        for w in weights:
            w.grad = w.detach().clone()
        optimizer.step()
    ours = RuleOptimizer(SGD(**options), convention="torch", learning_rate=exponential())
    assert_equal(descend(ours), [w.detach().numpy() for w in weights])


def test_float64_weights_stay_float64():
    ours = RuleOptimizer(KerasSGD(lr=0.125, momentum=0.875))  # numbers that float32 holds exactly
    expected = keras.optimizers.SGD(0.125, momentum=0.875)
    ends = descend(ours, "float64")
    assert ends[-1].dtype == "float64"
    assert_equal(ends, descend(expected, "float64"), atol=1e-14)


def model(optimizer):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)]
    net = keras.Sequential([keras.Input([5]), *layers])
    net.compile(optimizer, loss="mse")
    return net


def fit(net, epochs=2):
    x = np.random.default_rng(0).normal(size=(64, 5)).astype("float32")
    net.fit(x, x.sum(1, keepdims=True), epochs=epochs, batch_size=8, shuffle=False, verbose=0)
    return net.get_weights()


@pytest.mark.parametrize(
    "more",
    [
        {"clipnorm": 0.1},
        {"global_clipnorm": 0.1},
        {"clipvalue": 0.01},
        {"use_ema": True, "ema_momentum": 0.5},
        {"gradient_accumulation_steps": 2},
    ],
    ids=lambda more: next(iter(more)),
)
def test_options_of_every_keras_optimiser(more):
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}
    ours = fit(model(RuleOptimizer(SGD(lr=0.1, **options), "keras", **more)))
    assert_equal(ours, fit(model(theirs(0.1, options, **more))))
    assert np.abs(ours[0] - fit(model(theirs(0.1, options)))[0]).max() > 1e-3


@pytest.mark.parametrize("rate", ["constant", "schedule"])
@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_saved_training_continues_bit_by_bit(tmp_path, convention, rate):
    schedule = {"learning_rate": exponential()} if rate == "schedule" else {}
    rule = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    first = model(RuleOptimizer(rule, convention, **schedule))
    fit(first)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    assert second.optimizer.rule == first.optimizer.rule
    assert second.optimizer.iterations == 16
    assert_equal(fit(second), fit(first), atol=0)


def test_a_learning_rate_set_by_hand_is_used():
    a, b = RuleOptimizer(SGD(lr=0.1)), RuleOptimizer(SGD(lr=0.3))
    a.learning_rate = 0.3
    assert_equal(descend(a), descend(b), atol=0)


def test_a_model_with_an_embedding_trains():
    net = keras.Sequential([keras.Input([3]), keras.layers.Embedding(5, 2), keras.layers.Flatten()])
    net.compile(RuleOptimizer(SGD(lr=0.1, momentum=0.9)), loss="mse")
    before = net.get_weights()[0]
    net.fit(np.ones((4, 3)), np.ones((4, 6)), verbose=0)
    changed = (net.get_weights()[0] != before).any(axis=1)
    assert changed.tolist() == [False, True, False, False, False]


def test_excluded_variables_do_not_decay():
    options = {"momentum": 0.9, "nesterov": False, "weight_decay": 0.1}
    ours, expected = RuleOptimizer(SGD(lr=0.1, **options), "keras"), theirs(0.1, options)
    for optimizer in (ours, expected):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert_equal(fit(model(ours)), fit(model(expected)))


def test_first_step_inside_a_graph():
    w, optimizer = keras.Variable(np.ones(3, "float32")), RuleOptimizer(SGD(lr=0.5, momentum=0.5))

    @tf.function
    def step():
        optimizer.apply([tf.ones(3)], [w])

    step()
    step()
    assert w.numpy().tolist() == [-0.25] * 3


def test_decay_belongs_to_the_rule():
    with pytest.raises(ValueError, match=r"weight_decay is a field of the rule: SGD\("):
        RuleOptimizer(SGD(), weight_decay=0.1)


def test_only_known_rules_are_built_from_a_config():
    config = RuleOptimizer(SGD(lr=0.5)).get_config()
    assert RuleOptimizer.from_config(config).rule == SGD(lr=0.5)
    with pytest.raises(ValueError, match=r"'os.system' is unknown"):
        RuleOptimizer.from_config(config | {"rule": "os.system"})
