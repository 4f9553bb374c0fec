"""The bridge to Keras: same paths as those of keras.optimizers, and models that train, save and load."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from frameworks import RULES, keras_optimizer, torch_optimizer

from dlopt_helpers.adam import Adam, AdamW, NAdam
from dlopt_helpers.bridges.conventions import KerasAdam, KerasSGD
from dlopt_helpers.bridges.keras import RuleOptimizer
from dlopt_helpers.sgd import SGD

every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
SHAPES = [(), (0,), (1,), (4, 3)]
START = [np.random.default_rng(0).normal(size=shape) for shape in SHAPES]
FLOAT32 = 1e-6  # seen: 0 in most cases, 1.2e-7 at most
# seen: 3e-6. In float32 the difference 1 - 0.999 is off by 1e-5 of itself. A rule has it in two places: torch
# computes both in float64, Keras's Adam and the bridge the one in the correction, Keras's NAdam neither.
CORRECTED_IN_FLOAT32 = 1e-5


def exponential(lr=0.1):
    return keras.optimizers.schedules.ExponentialDecay(lr, decay_steps=5, decay_rate=0.8)


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
@every_rule
def test_keras_convention_equals_keras(rule, rate):
    more = {"learning_rate": exponential(rule.lr)} if rate == "schedule" else {}
    close = CORRECTED_IN_FLOAT32 if type(rule) is NAdam else FLOAT32
    ours, expected = RuleOptimizer(rule, "keras", **more), keras_optimizer(rule, **more)
    assert_equal(descend(ours), descend(expected), atol=close)


@every_rule
def test_torch_convention_equals_torch_inside_keras(rule):
    weights = [torch.nn.Parameter(torch.tensor(w, dtype=torch.float32)) for w in START]
    optimizer = torch_optimizer(rule, weights)
    for step in range(50):
        optimizer.param_groups[0]["lr"] = float(exponential(rule.lr)(step))
        for w in weights:
            w.grad = w.detach().clone()
        optimizer.step()
    ours = RuleOptimizer(rule, convention="torch", learning_rate=exponential(rule.lr))
    close = CORRECTED_IN_FLOAT32 if hasattr(rule, "beta1") else FLOAT32
    assert_equal(descend(ours), [w.detach().numpy() for w in weights], atol=close)


@pytest.mark.parametrize(  # numbers that float32 holds exactly
    "rule", [KerasSGD(2.0**-3, momentum=0.875), KerasAdam(2.0**-6, 0.875, 1 - 2.0**-10, 2.0**-20)], ids=str
)
def test_float64_weights_stay_float64(rule):
    ends = descend(RuleOptimizer(rule), "float64")
    assert ends[-1].dtype == "float64"
    assert_equal(ends, descend(keras_optimizer(rule), "float64"), atol=1e-14)


@pytest.mark.parametrize("rule", [Adam(0.01), NAdam(0.01)], ids=str)
def test_bfloat16_weights_count_every_step(rule):
    """In bfloat16 the counter would stay at 256, and the correction divide by ``1 - 0.999 == 0``."""
    optimizer = RuleOptimizer(rule)
    ends = descend(optimizer, "bfloat16", steps=300)
    counters = [v for v in optimizer.variables if v.path.endswith("_t")]
    assert [v.numpy() for v in counters] == [300.0] * len(START)
    assert_equal([w.astype("float32") for w in ends], descend(RuleOptimizer(rule), steps=300), atol=0.05)


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


@functools.cache
def plain(rule):
    return fit(model(keras_optimizer(rule)))


NESTEROV, DECOUPLED = SGD(0.1, 0.9, True, 0.1), AdamW(0.01, eps=0.01, weight_decay=0.1)


@pytest.mark.parametrize(
    "rule, more",
    [
        (NESTEROV, {"clipnorm": 0.1}),
        (NESTEROV, {"global_clipnorm": 0.1}),
        (NESTEROV, {"clipvalue": 0.01}),
        (NESTEROV, {"use_ema": True, "ema_momentum": 0.5}),
        (NESTEROV, {"gradient_accumulation_steps": 2}),
        (DECOUPLED, {"clipvalue": 0.01}),
        (DECOUPLED, {"gradient_accumulation_steps": 2}),  # the rule's steps are not Keras's iterations
    ],
    ids=str,
)
def test_options_of_every_keras_optimiser(rule, more):
    ours = fit(model(RuleOptimizer(rule, "keras", **more)))
    assert_equal(ours, fit(model(keras_optimizer(rule, **more))))
    assert np.abs(ours[0] - plain(rule)[0]).max() > 1e-3


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize(
    "rule, rate",
    [
        (NESTEROV, "schedule"),
        (Adam(0.01, amsgrad=True, weight_decay=0.01), "constant"),
        (NAdam(0.01), "schedule"),
    ],
    ids=str,
)
def test_saved_training_continues_bit_by_bit(tmp_path, rule, convention, rate):
    schedule = {"learning_rate": exponential(rule.lr)} if rate == "schedule" else {}
    first = model(RuleOptimizer(rule, convention, **schedule))
    fit(first)
    first.save(tmp_path / "model.keras")
    second = keras.models.load_model(tmp_path / "model.keras")
    assert second.optimizer.rule == first.optimizer.rule
    assert second.optimizer.iterations == 16
    assert_equal(fit(second), fit(first), atol=0)


def test_a_checkpoint_of_tensorflow_holds_the_whole_state(tmp_path):
    def checkpoint(optimizer, dtype="float32"):
        weights = [tf.Variable(w, dtype=dtype) for w in START]
        optimizer.build(weights)
        return weights, tf.train.Checkpoint(weights=weights, optimizer=optimizer)

    a, b = RuleOptimizer(NAdam(0.01)), RuleOptimizer(NAdam(0.01))
    weights, first = checkpoint(a)
    for _ in range(3):
        a.apply([w + 0.0 for w in weights])
    path = first.save(tmp_path / "checkpoint")
    others, second = checkpoint(b)
    second.restore(path).assert_consumed()
    for optimizer, variables in ((a, weights), (b, others)):
        for _ in range(3):
            optimizer.apply([w + 0.0 for w in variables])
    assert_equal([w.numpy() for w in others], [w.numpy() for w in weights], atol=0)


def test_a_learning_rate_set_by_hand_is_used():
    a, b = RuleOptimizer(SGD(lr=0.1)), RuleOptimizer(SGD(lr=0.3))
    a.learning_rate = 0.3
    assert_equal(descend(a), descend(b), atol=0)


@pytest.mark.parametrize("rule", [SGD(0.1, 0.9), Adam(0.1), NAdam(0.1)], ids=str)
def test_a_model_with_an_embedding_trains(rule):
    net = keras.Sequential([keras.Input([3]), keras.layers.Embedding(5, 2), keras.layers.Flatten()])
    net.compile(RuleOptimizer(rule), loss="mse")
    before = net.get_weights()[0]
    net.fit(np.ones((4, 3)), np.ones((4, 6)), verbose=0)
    changed = (net.get_weights()[0] != before).any(axis=1)
    assert changed.tolist() == [False, True, False, False, False]


@pytest.mark.parametrize("rule", [NESTEROV, DECOUPLED], ids=str)
def test_excluded_variables_do_not_decay(rule):
    ours, expected = RuleOptimizer(rule, "keras"), keras_optimizer(rule)
    for optimizer in (ours, expected):
        optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert_equal(fit(model(ours)), fit(model(expected)))


@every_rule
def test_weights_without_entries(rule):
    """Keras's own optimisers raise for this shape: it takes some of their sums for a bias's."""
    w, optimizer = keras.Variable(np.ones((0, 3), "float32")), RuleOptimizer(rule)
    optimizer.apply([tf.ones((0, 3))], [w])
    assert w.shape == (0, 3)


@pytest.mark.parametrize("rule", [SGD(0.5, momentum=0.5), Adam(0.625, 0.5, 0.75, eps=0.0)], ids=str)
def test_first_step_inside_a_graph(rule):
    w, optimizer = keras.Variable(np.ones(3, "float32")), RuleOptimizer(rule)

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
