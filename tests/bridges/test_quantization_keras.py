"""Quantization in Keras: the graph computes with the rounded kernels, and training moves the float ones."""

import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dlopt_helpers.bridges.pruning_keras import prunable, prune
from dlopt_helpers.bridges.quantization_keras import make_permanent, quantize_in_training, quantize_weights
from dlopt_helpers.quantization import (
    affine,
    fake_quantize,
    kullback_leibler,
    least_squares,
    min_max,
    percentile,
    share_weights,
    symmetric,
)

X = np.random.default_rng(0).normal(size=(64, 12)).astype("float32")
Y = X[:, :3].argmax(1)


def rule(w, bits=3):
    return fake_quantize(w, symmetric(*min_max(w, axis=-1), bits=bits))


def coarse(w):
    return rule(w, bits=2)


def codebook(w):
    numbers, codes = share_weights(w, bits=2)
    return numbers[codes]


RULES = {
    "symmetric": rule,
    "affine": lambda w: fake_quantize(w, affine(*min_max(w), bits=3)),
    "percentile": lambda w: fake_quantize(w, symmetric(*percentile(w, 0.9), bits=3)),
    "least squares": lambda w: fake_quantize(w, symmetric(*least_squares(w, 3), bits=3)),
}
NUMPY_RULES = {
    "kl": lambda w: fake_quantize(w, symmetric(*kullback_leibler(w, 3, bins=32), bits=3)),
    "codebook": codebook,
}


def net(jit=False):
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input([12]),
            layers.Reshape([12, 1]),
            layers.Conv1D(4, 3, activation="relu", name="c"),
            layers.Flatten(),
            keras.Sequential([keras.Input([40]), layers.Dense(5, "relu", name="a")]),
            layers.Dense(3, name="b"),
        ]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, jit_compile=jit)  # compiling takes most of the time
    return model


def fit(model):
    return model.fit(X, Y, epochs=4, batch_size=16, verbose=0).history["loss"]


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("name", RULES | NUMPY_RULES)
def test_kernels_are_what_the_rule_leaves_and_biases_stay(name):
    model, one = net(), (RULES | NUMPY_RULES)[name]
    before = model.get_weights()
    quantized = quantize_weights(model, one)
    for old, new in zip(before, quantized.get_weights(), strict=True):
        assert np.array_equal(new, one(old) if old.ndim > 1 else old) and new.dtype == np.float32
        assert old.ndim == 1 or not np.array_equal(new, old)
    assert same(model.get_weights(), before) and type(quantized) is keras.Sequential


def test_mixed_precision_and_channels_on_the_last_axis():
    model = net()
    quantized = prunable(quantize_weights(model, {"c": coarse, "b": rule}))
    kernels = prunable(model)
    assert np.array_equal(quantized["a"], kernels["a"]) and np.array_equal(quantized["b"], rule(kernels["b"]))
    for channel in range(4):
        levels = np.unique(quantized["c"][..., channel])
        assert len(levels) <= 3 and abs(levels).max() == abs(kernels["c"][..., channel]).max()


@pytest.mark.parametrize("name", RULES)
def test_the_graph_computes_with_the_rounded_kernels(name):
    model, one = net(), RULES[name]
    rounded = quantize_weights(model, one)
    assert quantize_in_training(model, one) is model
    np.testing.assert_allclose(model(X), rounded(X), atol=1e-5)
    if name != "least squares":  # 80 candidates make a large graph
        np.testing.assert_allclose(model.predict(X, verbose=0), rounded(X), atol=1e-5)
    with tf.GradientTape(persistent=True) as tape:
        ours, theirs = (tf.reduce_sum(network(X) ** 2) for network in (model, rounded))
    gradients = tape.gradient(ours, model.trainable_variables)
    expected = tape.gradient(theirs, rounded.trainable_variables)
    for w, g, e in zip(model.trainable_variables, gradients, expected, strict=True):
        inside = np.ones(w.shape, bool)
        if name in ("percentile", "least squares") and w.shape.rank > 1:  # what is clipped learns nothing
            low, high = percentile(w.numpy(), 0.9) if name == "percentile" else least_squares(w.numpy(), 3)
            inside = abs(w.numpy()) * 3 / max(-low, high) < 3.5
        np.testing.assert_allclose(g, e * inside, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("before, jit", [(False, "auto"), (True, False)])
def test_training_moves_floats_and_computes_with_levels(before, jit):
    """``fit`` keeps its graph between calls of one shape: a rule that comes later needs another one."""
    model = net(jit)
    if before:
        (
            model.fit(X, Y, batch_size=len(X), verbose=0),
            model.predict(X, verbose=0),
            model.evaluate(X, Y, verbose=0),
        )
    start = model.get_weights()
    expected = quantize_weights(model, coarse).evaluate(X, Y, verbose=0)
    quantize_in_training(model, coarse)
    first = model.fit(X, Y, batch_size=len(X), verbose=0).history["loss"][0]  # measured before the step
    assert first == pytest.approx(expected, abs=1e-5)
    losses = fit(model)
    assert losses[-1] < losses[0]
    kernels = prunable(model)
    for old, new in zip(start, model.get_weights(), strict=True):
        assert (new != old).mean() > 0.5
    assert all(len(np.unique(w)) > 7 for w in kernels.values())
    rounded = quantize_weights(model, coarse)
    np.testing.assert_allclose(model.predict(X, verbose=0), rounded(X), atol=1e-5)
    assert model.evaluate(X, Y, verbose=0) == pytest.approx(rounded.evaluate(X, Y, verbose=0), abs=1e-5)


def test_small_steps_add_up_underneath():
    """What trains the rounded kernel forgets each step that is too small to reach the next level."""
    model = keras.Sequential([keras.Input([2]), layers.Dense(1, use_bias=False)])
    model.set_weights([np.float32([[0.0], [1.0]])])
    model.compile(keras.optimizers.SGD(0.1), lambda y, y_hat: -y_hat)
    quantize_in_training(model, lambda w: fake_quantize(w, symmetric(-7.0, 7.0, bits=4)))
    x = np.float32([[1, 0]])
    for step in range(6):
        assert model.predict_on_batch(np.eye(2)).ravel().tolist() == [0, 1], step
        model.train_on_batch(x, np.zeros((1, 1)))
    assert model.predict_on_batch(np.eye(2)).ravel().tolist() == [1, 1]


def test_a_second_rule_replaces_the_first():
    model = quantize_in_training(net(), coarse)
    model.predict(X, verbose=0)
    assert same(quantize_weights(model, rule).get_weights(), quantize_weights(net(), rule).get_weights())
    quantize_in_training(model, {"b": rule})
    assert same(model.get_weights(), net().get_weights())
    rounded = quantize_weights(net(), {"b": rule})
    np.testing.assert_allclose(model.predict(X, verbose=0), rounded(X), atol=1e-5)


def test_permanent_is_what_was_computed_with():
    model = quantize_in_training(net(), coarse)
    fit(model)
    y = model.predict(X, verbose=0)
    assert make_permanent(model) is model
    np.testing.assert_allclose(model.predict(X, verbose=0), y, atol=1e-5)
    assert all(np.array_equal(w, coarse(w)) for w in prunable(model).values())
    fit(model)
    plain = keras.models.clone_model(model)
    plain.set_weights(model.get_weights())
    assert all(len(np.unique(w)) > 7 for w in prunable(model).values())
    np.testing.assert_allclose(model.predict(X, verbose=0), plain(X), atol=1e-5)


def test_a_functional_model_and_a_loop_of_ones_own():
    x, shared = keras.Input([12]), layers.Dense(12, "relu", name="s")
    model = keras.Model(x, layers.Dense(3, name="b")(shared(shared(x))))
    start, calls = model.get_weights(), []
    quantize_in_training(model, lambda w: calls.append(1) or rule(w))
    calls.clear()
    model(X)
    assert len(calls) == 3  # once for each time that a layer is called
    optimizer = keras.optimizers.SGD(0.1)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(model(X) ** 2)
    optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
    assert not any(np.array_equal(a, b) for a, b in zip(start, model.get_weights(), strict=True))


def test_masks_stay_in_training():
    model = net()
    masks = {name: w > 0 for name, w in prunable(model).items()}
    quantize_in_training(prune(model, masks), RULES["affine"])
    fit(model)
    for name, w in prunable(make_permanent(model)).items():
        assert not w[~masks[name]].any() and w[masks[name]].any()


@pytest.mark.filterwarnings("ignore:__array__", "ignore:Skipping variable loading")
def test_files(tmp_path):
    model = quantize_in_training(net(), rule)
    fit(model)
    y, weights = model.predict(X, verbose=0), model.get_weights()
    model.save(tmp_path / "floats.keras")
    floats = keras.models.load_model(tmp_path / "floats.keras")
    assert same(floats.get_weights(), weights)
    assert np.abs(floats.predict(X, verbose=0) - y).max() > 1e-3
    np.testing.assert_allclose(quantize_in_training(floats, rule).predict(X, verbose=0), y, atol=1e-5)
    make_permanent(model).save(tmp_path / "model.keras")
    np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(X), y, atol=1e-5)
    for file in ("floats.keras", "model.keras"):  # nothing in them needs this package
        config = zipfile.ZipFile(tmp_path / file).read("config.json").decode()
        assert "Conv1D" in config and "dlopt" not in config and "QuantizedCall" not in config


def with_kernel(value):
    model = net()
    model.layers[-1].kernel.assign(np.full((5, 3), value, "float32"))
    return model


def two(name="b"):
    return keras.Sequential([keras.Input([4]), *[layers.Dense(4, name=name)] * 2])


@pytest.mark.parametrize(
    ("model", "refused", "message"),
    [
        (net, {"c": rule, "x": rule}, "rule names 'x': it must be one of c, a, b"),
        (net, {"c": rule, "b": 8}, r"rule\['b'\]=8 is not allowed: it must be a function"),
        (net, 8, "rule=8 is not allowed"),
        (lambda: with_kernel(0), rule, "layer 'b': a range is the single number 0"),
        (lambda: with_kernel(np.nan), rule, "layer 'b': a number is not finite"),
        (net, lambda w: rule(w, bits=17), r"layer 'c': bits=17 is not allowed: .* \[2, 16\]"),
        (
            net,
            {"c": rule, "b": lambda w: w[0]},
            r"layer 'b': the rule returns the shape \(3,\), not \(5, 3\)",
        ),
        (net, {"b": lambda w: None}, r"layer 'b': the rule returns the shape \(\)"),
        (two, rule, "'b' is used twice"),
        (lambda: keras.Sequential([keras.Input([4]), layers.ReLU()]), rule, "no Dense, Conv1D"),
        (lambda: keras.Sequential([layers.Dense(4, name="a")]), rule, "'a' has no weights yet"),
    ],
)
@pytest.mark.parametrize("call", [quantize_weights, quantize_in_training])
def test_refused_and_nothing_changed(call, model, refused, message):
    model = model()
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        call(model, refused)
    assert all(np.array_equal(a, b, equal_nan=True) for a, b in zip(before, model.get_weights(), strict=True))
    assert not any("call" in vars(layer) for layer in model.layers)
