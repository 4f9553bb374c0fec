import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from ai_edge_litert.interpreter import Interpreter

from dlopt_helpers.lab import litert
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.twins import keras_twin

NETWORKS = {"mlp100": mlp, "mlp512": functools.partial(mlp, hidden=512), "cnn25": cnn}
X = np.random.default_rng(0).normal(size=(500, 40)).astype("float32")
each_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def twin(name):
    return keras_twin(NETWORKS[name]())


def logits(name, x=X):
    with torch.no_grad():
        return NETWORKS[name]()(torch.from_numpy(x)).numpy()


def error(file, expected, x=X):
    """Return the root mean square error, relative to the logits' spread."""
    return np.sqrt(np.mean((litert.load(file)(x) - expected) ** 2)) / expected.std()


def tensors(file):
    interpreter = Interpreter(model_content=file, num_threads=1)
    interpreter.allocate_tensors()
    return interpreter.get_tensor_details()


@each_network
def test_float_file_computes_what_the_model_does_for_any_number_of_rows(name):
    run = litert.load(litert.convert(twin(name)))
    for rows in (500, 1, 3, 64, 64, 500):
        np.testing.assert_allclose(run(X[:rows]), logits(name, X[:rows]), atol=1e-5)


@each_network
def test_static_file_computes_in_integers_and_is_near_the_model(name):
    file = litert.quantize_static(twin(name), X)
    assert 1e-4 < error(file, logits(name)) < 0.03
    floats = [t for t in tensors(file) if t["dtype"] == np.float32]
    assert [t["shape"][-1] for t in floats] == [40, 10]  # what goes in and what comes out
    weights = [
        t for t in tensors(file) if t["dtype"] == np.int8 and len(t["quantization_parameters"]["scales"]) > 1
    ]
    assert len(weights) == (4 if "cnn" in name else 3)
    for t in weights:
        parameters = t["quantization_parameters"]
        assert len(parameters["scales"]) == t["shape"][0] and not parameters["zero_points"].any()


@each_network
def test_dynamic_file_is_near_the_model(name):
    file = litert.quantize_dynamic(twin(name))
    assert 1e-4 < error(file, logits(name)) < 0.03
    large = [t for t in tensors(file) if t["dtype"] == np.int8]
    assert len(large) == {"mlp100": 2, "mlp512": 3, "cnn25": 3}[name]  # not those of < 1,024 numbers


def test_calibration_decides_the_ranges():
    expected, small = logits("mlp100"), logits("mlp100", X / 10)
    good, narrow = (litert.quantize_static(twin("mlp100"), x) for x in (X, X / 10))
    assert (
        np.ptp(litert.load(narrow)(X)) < 1.05 * max(np.ptp(small), abs(small).max()) < 0.9 * np.ptp(expected)
    )
    assert error(narrow, expected) > 5 * error(good, expected)


def test_integers_take_a_quarter_of_the_bytes():
    whole = len(litert.convert(twin("mlp512")))
    assert 4 * twin("mlp512").count_params() < whole < 4 * twin("mlp512").count_params() + 1_500
    for file in (litert.quantize_static(twin("mlp512"), X), litert.quantize_dynamic(twin("mlp512"))):
        assert 3.6 < whole / len(file) < 4


def test_files_hold_no_names_and_do_not_depend_on_what_was_made_before():
    file = litert.convert(twin("cnn25"))
    assert b"conv1d" not in file and b"keras" not in file
    assert file == litert.convert(keras_twin(cnn()))


def test_model_stays_as_it_is():
    model = twin("mlp100")
    before = [w.copy() for w in model.get_weights()]
    litert.quantize_static(model, X)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    np.testing.assert_allclose(model(X), logits("mlp100"), atol=1e-5)


def test_other_shapes_are_refused_and_the_next_call_works():
    run = litert.load(litert.convert(twin("mlp100")))
    for bad in (X[0], X[:, :39], X[None]):
        with pytest.raises(ValueError, match=r"x has shape.*\(n, 40\)"):
            run(bad)
    assert run(X).shape == (500, 10)


class Bessel(keras.layers.Layer):
    def call(self, x):
        return tf.math.special.bessel_j0(x)


@pytest.mark.parametrize(
    "make", [litert.convert, litert.quantize_dynamic, lambda m: litert.quantize_static(m, X)]
)
def test_a_layer_that_litert_cannot_express_is_named(make):
    dense = [keras.layers.Dense(10), keras.layers.Dense(10)]
    model = keras.Sequential([keras.Input([40]), dense[0], Bessel(name="odd"), dense[1]])
    with pytest.raises(ValueError, match="layer 'odd', Bessel"):
        make(model)


def test_weights_that_are_not_finite_are_named():
    model = keras_twin(mlp())
    model.layers[2].bias.assign(np.full(100, np.nan))
    with pytest.raises(ValueError, match=f"{model.layers[2].name}/bias"):
        litert.convert(model)


def test_calibration_is_checked():
    for bad in (X[:0], X[:, :39], np.full_like(X, np.inf)):
        with pytest.raises(ValueError, match="calibration"):
            litert.quantize_static(twin("mlp100"), bad)


def test_nothing_is_said(capfd):
    model = twin("cnn25")
    for file in (litert.convert(model), litert.quantize_static(model, X), litert.quantize_dynamic(model)):
        run = litert.load(file)
        run(X[:1])
        run(X)
    assert capfd.readouterr() == ("", "")
