"""Costs equal what Keras and TensorFlow count; a factorised model computes the same at full rank."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dlopt_helpers.bridges import structure_torch
from dlopt_helpers.bridges.structure_keras import costs, factorise
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.twins import keras_twin


def all_kinds():
    """A model of every kind of layer that is counted; its first axis is 24 positions of 3 channels."""
    return keras.Sequential(
        [
            keras.Input([24, 3]),
            layers.Conv1D(8, 5, strides=2, padding="same", use_bias=False),
            layers.BatchNormalization(),
            layers.ReLU(),
            layers.DepthwiseConv1D(3, depth_multiplier=2, dilation_rate=2),
            layers.SeparableConv1D(6, 3, padding="same", depth_multiplier=2),
            layers.Dense(4),
            layers.Reshape([4, 4, 2]),
            layers.Conv2D(4, (3, 2), strides=(1, 2), padding="same"),
            layers.DepthwiseConv2D(2, padding="same"),
            layers.SeparableConv2D(3, 2, use_bias=False),
            layers.Flatten(),
            layers.Dense(5, use_bias=False),
        ]
    )


def by_tensorflow(model):
    """Return the multiply-accumulates that TensorFlow's profiler counts, without biases and batch norm."""
    from tensorflow.python.framework import ops
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    call = tf.function(model).get_concrete_function(tf.TensorSpec((1, *model.input_shape[1:])))
    frozen = convert_variables_to_constants_v2(call).graph
    macs = 0
    for node in frozen.get_operations():
        if node.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul"):
            macs += ops.get_stats_for_node_def(frozen, node.node_def, "flops").value // 2
    return macs


def test_costs_are_what_keras_and_tensorflow_count():
    model = all_kinds()
    table = costs(model)
    moving = sum(2 * layer.gamma.shape[0] for layer in model.layers if hasattr(layer, "moving_mean"))
    assert table.parameters.sum() == model.count_params() - moving
    assert table.macs.sum() == by_tensorflow(model)


@pytest.mark.parametrize("make", [mlp, cnn])
def test_costs_are_those_of_the_twin(make):
    import torch

    model = make()
    ours, theirs = costs(keras_twin(model)), structure_torch.costs(model, torch.zeros(1, 40))
    for column in ("parameters", "macs"):
        assert list(ours[column]) == list(theirs[column])


def test_groups():
    model = keras.Sequential([keras.Input([10, 8]), layers.Conv1D(12, 3, groups=4, name="g")])
    assert list(costs(model).loc["g"]) == ["Conv1D", 2 * 12 * 3 + 12, 8 * 2 * 12 * 3]


def test_costs_that_are_not_known():
    model = keras.Sequential([keras.Input([10, 8]), layers.LSTM(3, name="memory")])
    with pytest.raises(ValueError, match="layer 'memory' is LSTM: what it costs is not known"):
        costs(model)
    first = layers.Conv1D(3, 3, data_format="channels_first", name="first")
    with pytest.raises(ValueError, match="layer 'first' is for channels_first"):
        costs(keras.Sequential([keras.Input([8, 10]), first]))
    for model in (
        keras.Sequential([layers.Dense(3)]),
        keras.Model(x := keras.Input([3]), layers.Dense(2)(x)),
    ):
        with pytest.raises(ValueError, match=r"it must be a built keras\.Sequential"):
            costs(model)


# --- factorise -----------------------------------------------------------------------------------


def small_model():
    return keras.Sequential(
        [
            keras.Input([20, 3]),
            layers.Conv1D(8, 5, strides=2, padding="same", activation="relu", name="conv"),
            layers.BatchNormalization(name="norm"),
            layers.Conv1D(6, 3, padding="causal", dilation_rate=2, use_bias=False, name="causal"),
            layers.Flatten(name="flat"),
            layers.Dense(7, "tanh", name="hidden"),
            layers.Dense(4, name="logits"),
        ]
    )


X = np.random.default_rng(0).normal(size=(6, 20, 3)).astype("float32")
FULL = {"conv": 8, "causal": 6, "hidden": 7, "logits": 4}


def test_full_rank_is_the_same():
    model = small_model()
    before = model.get_weights()
    small = factorise(model, FULL)
    np.testing.assert_allclose(small.predict(X, verbose=0), model.predict(X, verbose=0), atol=1e-5)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert [layer.name for layer in small.layers] == [
        *("conv_rank", "conv", "norm", "causal_rank", "causal", "flat", "hidden_rank", "hidden"),
        *("logits_rank", "logits"),
    ]


def test_low_rank_is_the_best_of_its_rank():
    model = small_model()
    small = factorise(model, {"hidden": 2, "conv": 3})
    for name, rank in (("hidden", 2), ("conv", 3)):
        kernel = model.get_layer(name).kernel.numpy()
        kernel = kernel.reshape(-1, kernel.shape[-1])
        a, b = (
            layer.kernel.numpy().reshape(-1, n)
            for layer, n in (
                (small.get_layer(f"{name}_rank"), rank),
                (small.get_layer(name), kernel.shape[1]),
            )
        )
        s = np.linalg.svd(kernel, compute_uv=False)
        assert np.linalg.norm(kernel - a @ b) == pytest.approx(np.linalg.norm(s[rank:]), rel=1e-4)
        assert np.linalg.norm(a) == pytest.approx(np.linalg.norm(b), rel=1e-4)
        np.testing.assert_array_equal(small.get_layer(name).bias, model.get_layer(name).bias)


def test_it_trains_and_leaves_the_original_alone():
    model = small_model()
    before = model.get_weights()
    small = factorise(model, {"hidden": 2})
    small.compile(keras.optimizers.SGD(0.1), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    small.fit(X, np.arange(6) % 4, epochs=2, verbose=0)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_bad_ranks_name_the_layer():
    model = small_model()
    for ranks, words in [
        (
            {"norm": 3},
            "ranks names 'norm': it must be a Dense or Conv1D, one of conv, causal, hidden, logits",
        ),
        ({"hidden": 2, "logits": 5}, r"layer 'logits' cannot be factorised: rank=5 .* in \[1, 4\]"),
        ({"conv": 0}, "layer 'conv' cannot be factorised: rank=0"),
    ]:
        with pytest.raises(ValueError, match=words):
            factorise(model, ranks)
    kernel = model.get_layer("hidden").kernel
    kernel.assign(np.full(kernel.shape, np.inf))
    with pytest.raises(ValueError, match=r"layer 'hidden' cannot be factorised: .* not finite"):
        factorise(model, {"hidden": 2})


def test_layers_that_are_no_plain_matrix():
    grouped = layers.Conv1D(4, 3, groups=2, name="grouped")
    bounded = layers.Conv1D(4, 3, kernel_constraint="non_neg", name="bounded")
    model = keras.Sequential([keras.Input([10, 4]), grouped, bounded])
    with pytest.raises(ValueError, match="layer 'grouped' has groups=2"):
        factorise(model, {"grouped": 1})
    with pytest.raises(ValueError, match="layer 'bounded' has more than a plain kernel"):
        factorise(model, {"bounded": 1})
    model = keras.Sequential([keras.Input([10]), layers.Dense(4, name="lora")])
    model.layers[0].enable_lora(2)
    with pytest.raises(ValueError, match="layer 'lora' has more than a plain kernel"):
        factorise(model, {"lora": 1})
