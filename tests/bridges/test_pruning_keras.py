"""Pruning in Keras: masks that training obeys, and smaller models with the outputs of the masked ones."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dlopt_helpers.adam import Adam
from dlopt_helpers.bridges.keras import RuleOptimizer
from dlopt_helpers.bridges.pruning_keras import mask_units, prunable, prune, remove_units, to_csr

CLOSE = 1e-5  # seen: 1.2e-7
X, Y = np.random.default_rng(0).normal(size=(2, 24, 4)).astype("float32")
MASK = (np.arange(20).reshape(4, 5) % 3 == 0).astype("float32")
OPTIMIZERS = {
    "SGD": lambda: keras.optimizers.SGD(0.1, momentum=0.9, weight_decay=0.1),
    "Adam": lambda: keras.optimizers.Adam(0.01),
    "AdamW": lambda: keras.optimizers.AdamW(0.01, weight_decay=0.1),
    "rule": lambda: RuleOptimizer(Adam(0.01)),
}


def small(optimizer="SGD", **options):
    net = keras.Sequential(
        [keras.Input([4]), layers.Dense(5, name="a", **options), layers.Dense(4, name="b")]
    )
    net.set_weights([w + 0.1 for w in net.get_weights()])
    net.compile(OPTIMIZERS.get(optimizer, lambda: optimizer)(), loss="mse")
    return net


def fit(net):
    net.fit(X, Y, batch_size=8, epochs=2, verbose=0)


def train_on_batch(net):
    for _ in range(4):
        net.train_on_batch(X, Y)


def by_hand(net):
    for _ in range(4):
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((net(X, training=True) - Y) ** 2)
        net.optimizer.apply(tape.gradient(loss, net.trainable_variables), net.trainable_variables)


def assert_only(mask, kernel):
    assert np.array_equal(kernel != 0, mask == 1)


@pytest.mark.parametrize("train", [fit, train_on_batch, by_hand])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_mask_holds_in_training(optimizer, train):
    net = small(optimizer)
    assert prune(net, {"a": MASK}) is net
    before = net.get_weights()
    assert_only(MASK, before[0])
    train(net)
    assert_only(MASK, net.get_weights()[0])
    assert all((a != b).any() for a, b in zip(before, net.get_weights(), strict=True))


@pytest.mark.parametrize("train", [fit, train_on_batch, by_hand])
def test_weights_cut_by_hand_come_back(train):
    """The bug that masks are for; it shows that the test above can fail."""
    net = small()
    net.layers[0].kernel.assign(net.layers[0].kernel * MASK)
    train(net)
    assert np.count_nonzero(net.get_weights()[0]) == MASK.size


def test_training_steps_that_were_traced_before_obey():
    """``fit`` keeps its graph between calls: the first mask needs another one, the second does not."""
    net, half = small(), np.repeat([[1, 0, 1, 1, 0]], 4, axis=0)
    fit(net)
    fit(prune(net, {"a": MASK}))
    assert_only(MASK, net.get_weights()[0])
    traced = net.train_function
    fit(prune(net, {"a": half}))
    assert_only(MASK * half, net.get_weights()[0])
    assert net.train_function is traced


def test_a_function_of_ones_own_sees_the_second_mask():
    net, step = prune(small(), {"a": np.ones((4, 5))}), tf.function(by_hand)
    step(net)
    step(prune(net, {"a": MASK}))
    assert_only(MASK, net.get_weights()[0])


def test_a_layer_called_twice_has_one_mask():
    x, layer = keras.Input([4]), layers.Dense(4, name="a")
    net, mask = keras.Model(x, layer(layer(x))), MASK[:, :4]
    net.compile("adam")
    by_hand(prune(net, {"a": mask}))
    assert_only(mask, net.get_weights()[0])


class Halves(keras.constraints.Constraint):
    def __call__(self, w):
        return keras.ops.ones_like(w) / 2


def test_an_earlier_constraint_is_applied_before_the_mask():
    net = prune(prune(small(kernel_constraint=Halves()), {"a": MASK}), {"a": MASK})
    by_hand(net)
    assert np.array_equal(net.get_weights()[0], MASK / 2)


def test_zeros_stay_where_training_ends_in_nan():
    net = prune(small(keras.optimizers.SGD(1e30)), {"a": MASK})
    by_hand(net)
    kernel = net.get_weights()[0]
    assert np.isnan(kernel[MASK == 1]).any() and not kernel[MASK == 0].any()


def test_a_layer_without_weights_passes_on_its_biases():
    out = prune(small(), {"a": np.zeros((4, 5))})(X).numpy()
    assert (out == out[0]).all() and out.any()


def test_averages_over_the_weights_end_a_mask():
    net = prune(small(keras.optimizers.SGD(0.1, use_ema=True)), {"a": MASK})
    fit(net)
    assert np.count_nonzero(net.get_weights()[0]) == MASK.size
    assert_only(MASK, prune(net, {"a": MASK}).get_weights()[0])


@pytest.mark.filterwarnings("ignore:__array__", "ignore:Skipping variable loading")
def test_a_saved_model_keeps_zeros_and_loses_the_mask(tmp_path):
    prune(small(), {"a": MASK}).save(tmp_path / "net.keras")
    net = keras.models.load_model(tmp_path / "net.keras")
    assert_only(MASK, net.get_weights()[0])
    assert net.layers[0].kernel.constraint is None
    fit(prune(net, {name: w != 0 for name, w in prunable(net).items()}))
    assert_only(MASK, net.get_weights()[0])


def test_prunable_are_copies_of_the_kernels_of_inner_models_too():
    inner = keras.Sequential([keras.Input([8, 8, 8, 1]), layers.Conv3D(2, 3, name="c"), layers.Flatten()])
    net = keras.Sequential([inner, layers.BatchNormalization(), layers.Dense(2, name="d")])
    weights = prunable(net)
    assert {name: w.shape for name, w in weights.items()} == {"c": (3, 3, 3, 1, 2), "d": (432, 2)}
    weights["d"][:] = 0
    assert net.layers[-1].kernel.numpy().all()


def refusal(net, call):
    """Return what ``call`` is refused with; the model stays as it is."""
    before = [(w.numpy(), w.constraint) for w in net.weights]
    with pytest.raises(ValueError) as refused:
        call(net)
    for (value, constraint), w in zip(before, net.weights, strict=True):
        assert np.array_equal(value, w.numpy()) and constraint is w.constraint
    return str(refused.value)


@pytest.mark.parametrize(
    ("name", "mask", "message"),
    [
        ("x", MASK, "'x', which is unknown: it must be one of a, b"),
        ("b", MASK, r"masks['b'] has shape (4, 5): it must be (5, 4)"),
        ("b", np.full((5, 4), 0.5), "masks['b'] has entries other than 0 and 1"),
        ("b", np.full((5, 4), np.nan), "masks['b'] has entries other than 0 and 1"),
        ("b", np.ones((5, 4)), "kernel of 'b' holds a number that is not finite"),
    ],
)
def test_refused_masks(name, mask, message):
    net = small()
    if "finite" in message:
        net.layers[1].kernel.assign(np.full((5, 4), np.inf))
    assert message in refusal(net, lambda net: prune(net, {"a": MASK, name: mask}))


def shared():
    net = keras.Sequential([keras.Input([4]), layers.Dense(4, name="a"), layers.Dense(4, name="b")])
    net.layers[1]._tracker.unlock()
    net.layers[1]._kernel = net.layers[0]._kernel
    return net


def with_lora():
    net = small()
    net.layers[0].enable_lora(2)
    return net


MODELS = {
    "'a' has no weights yet": lambda: keras.Sequential([layers.Dense(4, name="a")]),
    "'a' is used twice": lambda: keras.Sequential([keras.Input([4]), *[layers.Dense(4, name="a")] * 2]),
    "'a' and 'b' share a kernel": shared,
    "'a' is quantized or has LoRA": with_lora,
    "no Dense, Conv1D, Conv2D or Conv3D": lambda: keras.Sequential([keras.Input([4]), layers.ReLU()]),
}


@pytest.mark.parametrize(
    "call", [prunable, to_csr, lambda net: prune(net, {}), lambda net: remove_units(net, {})]
)
@pytest.mark.parametrize("message", MODELS)
def test_refused_models(message, call):
    assert message in refusal(MODELS[message](), call)


def dense_chain():
    yield keras.Input([6])
    yield layers.Dense(8, "relu", name="a")
    yield from (layers.BatchNormalization(), layers.Dropout(0.2))
    yield from (layers.Dense(7, use_bias=False, name="b"), layers.LeakyReLU())
    yield layers.Dense(3, "softmax", name="last")


def conv1d_chain():
    yield from (keras.Input([24]), layers.BatchNormalization(), layers.Reshape([12, 2]))
    yield layers.Conv1D(6, 3, padding="same", activation="relu", name="a")
    yield from (layers.BatchNormalization(center=False), layers.MaxPooling1D(2))
    yield layers.Conv1D(5, 3, dilation_rate=2, use_bias=False, name="b")
    yield from (layers.BatchNormalization(), layers.Activation("tanh"))
    yield from (layers.Flatten(), layers.BatchNormalization(scale=False))
    yield from (layers.Dense(4, "elu", name="c"), layers.Dense(3, name="last"))


def conv2d_chain():
    yield from (keras.Input([9, 9, 2]), layers.Conv2D(6, 3, strides=2, name="a"))
    yield from (layers.ReLU(negative_slope=0.1), layers.MaxPooling2D(2, strides=1))
    yield layers.Conv2D(5, (1, 3), padding="same", activation="gelu", name="b")
    yield from (layers.BatchNormalization(), layers.ELU(), layers.AveragePooling2D(2, 1, padding="same"))
    yield from (layers.Conv2D(4, 2, name="c"), layers.GlobalAveragePooling2D())
    yield from (layers.Dense(3, name="last"), layers.BatchNormalization(), layers.Softmax())


def examples(net):
    return np.random.default_rng(1).normal(1, 2, size=(16, *net.input_shape[1:])).astype("float32")


def output(net):
    return net(examples(net)).numpy()


def train(net):
    net.compile(keras.optimizers.SGD(0.01, momentum=0.9, weight_decay=0.1), loss="mse", run_eagerly=True)
    for _ in range(3):
        net.train_on_batch(examples(net), np.eye(3)[np.arange(16) % 3])


@functools.cache
def trained(chain):
    """Return a model none of whose weights and moving statistics is trivial; nobody may change it."""
    keras.utils.set_random_seed(0)
    net = keras.Sequential(list(chain()))
    net.set_weights([w + np.random.uniform(-0.3, 0.4, w.shape) for w in net.get_weights()])
    train(net)
    return net


def choice(net, seed):
    rng, hidden = np.random.default_rng(seed), list(prunable(net).items())[:-1]
    return {name: rng.permutation(w.shape[-1])[: rng.integers(1, w.shape[-1])].tolist() for name, w in hidden}


every_chain = pytest.mark.parametrize("chain", [dense_chain, conv1d_chain, conv2d_chain])


@every_chain
@pytest.mark.parametrize("seed", range(3))
def test_removed_units_equal_masked_ones(chain, seed):
    net = trained(chain)
    keep, before = choice(net, seed), net.get_weights()
    masked, removed = mask_units(net, keep), remove_units(net, keep)
    assert np.abs(output(masked) - output(removed)).max() <= CLOSE
    assert np.abs(output(masked) - output(net)).max() > 100 * CLOSE
    assert np.abs(output(mask_units(net, {})) - output(net)).max() <= CLOSE
    assert all((a == b).all() for a, b in zip(before, net.get_weights(), strict=True))
    assert not any(w.constraint for w in net.weights)
    assert not masked.compiled and not removed.compiled


@every_chain
def test_silent_units_stay_silent_in_training(chain):
    """Retrained, the masked model still equals the smaller one that is made of it."""
    net = trained(chain)
    keep = choice(net, 0)
    masked = mask_units(net, keep)
    start = output(masked)
    train(masked)
    assert np.abs(output(masked) - start).max() > 100 * CLOSE
    assert np.abs(output(masked) - output(remove_units(masked, keep))).max() <= CLOSE
    for name, stay in keep.items():
        old, new = net.get_layer(name), masked.get_layer(name)
        gone = np.setdiff1d(range(old.kernel.shape[-1]), stay)
        assert old.kernel.numpy()[..., gone].all() and new.kernel.numpy()[..., stay].all()
        assert not any(w[..., gone].any() for w in new.get_weights())


@pytest.mark.parametrize(
    ("chain", "keep", "count"),
    [
        (dense_chain, {"a": [5, 1, 6]}, 7 * 3 + 4 * 3 + 3 * 7 + 8 * 3),
        (dense_chain, {"a": np.array([2]), "b": (3, 2)}, 7 + 4 + 2 + 3 * 3),
        (conv1d_chain, {"a": [0, 5], "b": [4]}, 4 * 24 + 7 * 2 + 3 * 2 + 7 - 1 + 4 + 2 * 3 + 3 * 4 + 5 * 3),
        (conv2d_chain, {"a": [1], "b": [2], "c": [3, 0]}, 19 + 4 + 4 + 5 * 2 + 3 * 3 + 4 * 3),
    ],
)
def test_the_smaller_model_has_exactly_what_is_left(chain, keep, count):
    net = remove_units(trained(chain), keep)
    assert net.count_params() == count
    old, new = (model.get_layer("a").bias.numpy() for model in (trained(chain), net))
    assert np.array_equal(new, old[np.sort(keep["a"])])  # in the order they had


@pytest.mark.parametrize(("call", "left"), [(remove_units, np.s_[:, 1:3]), (mask_units, np.s_[:, :])])
def test_masks_stay_in_the_new_model(call, left):
    mask = np.arange(48).reshape(6, 8) % 3 > 0
    net = call(prune(remove_units(trained(dense_chain), {}), {"a": mask}), {"a": [1, 2]})
    train(net)
    assert_only((mask * np.isin(range(8), (1, 2)))[left], prunable(net)["a"])


def test_settings_and_types_stay():
    a = layers.Dense(4, "relu", name="a", kernel_regularizer="l2", dtype="float64", trainable=False)
    net = keras.Sequential([keras.Input([3], dtype="float64"), a, layers.Dense(2, name="b")], name="net")
    net = remove_units(net, {"a": [0]})
    a, b = net.layers
    assert (a.units, a.kernel.dtype, a.trainable, b.kernel.dtype) == (1, "float64", False, "float32")
    assert a.kernel_regularizer and net.input_dtype == "float64" and net.name == "net"


IMAGE, LINE, FIRST = [8, 8, 2], [4], {"data_format": "channels_first", "name": "x"}
MODEL = functools.partial(keras.Sequential, name="x")
ZERO, ORDER = "activation of layer 'x' is not zero at zero", "layer 'x' is for channels_first"


@pytest.mark.parametrize(
    ("shape", "layer", "message"),
    [
        (LINE, lambda: layers.Dense(4, "sigmoid", name="x"), ZERO),
        (LINE, lambda: layers.Activation("softplus", name="x"), ZERO),
        (LINE, lambda: layers.Softmax(name="x"), ZERO),
        (LINE, lambda: layers.PReLU(name="x"), "layer 'x' is a PReLU: it must be one of Dense, "),
        (LINE, lambda: layers.Reshape([2, 2], name="x"), "layer 'x' is a Reshape: it must not stand between"),
        (LINE, lambda: MODEL([layers.ReLU()]), "layer 'x' is a Sequential: it must be one of Dense, "),
        (IMAGE, lambda: layers.Conv2D(4, 3, groups=2, name="x"), "layer 'x' has groups=2: it must be 1"),
        (IMAGE, lambda: layers.Flatten(**FIRST), ORDER),
        (IMAGE, lambda: layers.MaxPooling2D(2, **FIRST), ORDER),
        (IMAGE, lambda: layers.BatchNormalization(axis=1, name="x"), ORDER),
    ],
)
@pytest.mark.parametrize("call", [mask_units, remove_units])
def test_refused_layers(shape, layer, message, call):
    parts = [layers.Dense(4, name="a"), layer(), layers.Flatten(), layers.Dense(2)]
    assert message in refusal(
        keras.Sequential([keras.Input(shape), *parts]), lambda net: call(net, {"a": [0]})
    )


BAD = [[], [5], [-1], [1, 1], [0.5], [True, False, True, True, False], [[0]], 2]


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"b": [0]}, "keep names 'b': it must be of a, the layers with units before the last"),
        ({"x": [0]}, "keep names 'x'"),
        *(({"a": bad}, f"keep['a']={bad!r} is not allowed: give different indices below 5") for bad in BAD),
    ],
)
@pytest.mark.parametrize("call", [mask_units, remove_units])
def test_refused_units(keep, message, call):
    assert message in refusal(small(), lambda net: call(net, keep))


def test_only_a_sequence_loses_units():
    x = keras.Input([4])
    net = keras.Model(x, small()(x))
    for call in (mask_units, remove_units):
        message = refusal(net, lambda net, call=call: call(net, {"a": [0]}))
        assert "model is a Functional: it must be a keras.Sequential" in message


def test_csr_equals_the_kernels():
    net = prune(small(), {"a": MASK})
    matrices = to_csr(net)
    assert [(name, m.shape, m.nnz) for name, m in matrices.items()] == [("a", (5, 4), 7), ("b", (4, 5), 20)]
    for layer in net.layers:
        assert np.array_equal(matrices[layer.name].toarray().T, layer.kernel.numpy())
    hidden = (matrices["a"] @ X.T).T + net.layers[0].bias.numpy()
    np.testing.assert_allclose(hidden, net.layers[0](X), rtol=0, atol=CLOSE)


def test_convolutions_have_no_csr():
    assert "layer 'a' is a convolution" in refusal(trained(conv2d_chain), to_csr)
