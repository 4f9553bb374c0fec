import numpy as np
import pytest
import torch
from torch import nn

from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.twins import keras_twin

MODELS = {
    "mlp": mlp(),
    "uneven mlp": mlp(hidden=(9, 5)),
    "nothing to flatten": nn.Sequential(nn.Linear(40, 5), nn.Flatten(), nn.Linear(5, 10)),
    "cnn25": cnn(25),
    "cnn64": cnn(64),
    "two dense layers after the flattening": nn.Sequential(
        *cnn(5)[:-1], nn.Linear(25, 25, bias=False), nn.ReLU(), nn.Linear(25, 10)
    ),
    "depthwise, dilated": nn.Sequential(
        nn.Unflatten(1, (1, 40)),
        nn.Conv1d(1, 6, 3, padding=2, bias=False),
        nn.Conv1d(6, 6, 3, groups=6, dilation=2),
        nn.Flatten(),
        nn.Linear(6 * 38, 10),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_twin_computes_the_same(name):
    x = np.random.default_rng(0).normal(size=(8, 40)).astype("float32")
    with torch.no_grad():
        expected = MODELS[name](torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(keras_twin(MODELS[name])(x), expected, atol=1e-6)


def test_twin_of_an_mlp_has_its_layers_and_no_others():
    kinds = [type(layer).__name__ for layer in keras_twin(mlp()).layers]
    assert kinds == ["Dense", "ReLU", "Dense", "ReLU", "Dense"]


@pytest.mark.parametrize(
    "layer",
    [
        nn.Tanh(),
        nn.Unflatten(1, (4, 10)),
        nn.Flatten(0),
        nn.Conv1d(1, 1, 3, padding="same"),
        nn.Conv1d(1, 1, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(1, 1, 3),
    ],
    ids=str,
)
def test_layers_without_a_twin_are_named(layer):
    with pytest.raises(ValueError, match=f"layer '1' is {type(layer).__name__}"):
        keras_twin(nn.Sequential(nn.Unflatten(1, (1, 40)), layer))


def test_a_model_that_starts_with_another_layer_has_no_twin():
    with pytest.raises(ValueError, match="layer '0' is Tanh"):
        keras_twin(nn.Sequential(nn.Tanh(), nn.Linear(40, 10)))


def test_other_layers_of_an_mlp_are_named():
    with pytest.raises(ValueError, match="layer '1' is Tanh"):
        keras_twin(nn.Sequential(nn.Linear(2, 2), nn.Tanh()))
