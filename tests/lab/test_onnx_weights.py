"""Files that store weights in few bits and answer as the float file does."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dlopt_helpers.bridges.quantization_torch import quantize_weights
from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.onnx_weights import int4_weights, shared_weights
from dlopt_helpers.quantization import fake_quantize, min_max, share_weights, symmetric

X = np.random.default_rng(0).normal(size=(70, 40)).astype("float32")
NETWORKS = {"mlp": lambda: mlp(hidden=16), "cnn": lambda: cnn(6)}
each_network = pytest.mark.parametrize("name", NETWORKS)


def four_bits(w):
    return fake_quantize(w, symmetric(*min_max(w, axis=0), bits=4))


def coded(bits):
    def rule(w):
        codebook, codes = share_weights(w.numpy(), bits)
        return codebook[codes]

    return rule


def initializers(file):
    return onnx.load_from_string(file).graph.initializer


def assert_same_answers(file, model):
    for rows in (70, 1, 0):
        expected = model(torch.from_numpy(X[:rows])).detach()
        np.testing.assert_allclose(onnxrt.load(file)(X[:rows]), expected, atol=1e-5)


CASES = {"4 bits": (four_bits, int4_weights), "16 numbers": (coded(4), shared_weights)}
CASES["256 numbers"] = coded(8), shared_weights


@each_network
@pytest.mark.parametrize("case", CASES)
def test_small_file_answers_and_runs_as_the_float_file(name, case):
    rule, store = CASES[case]
    model = quantize_weights(NETWORKS[name](), rule)
    before = onnxrt.export(model)
    file = store(before)
    assert_same_answers(file, model)
    # Nothing is left to be decoded at each call.
    assert onnxrt.optimised_ops(file) == onnxrt.optimised_ops(before)
    onnx.checker.check_model(onnx.load_from_string(file), full_check=True)


@each_network
@pytest.mark.parametrize("case", ["4 bits", "16 numbers"])
def test_weights_take_half_a_byte(name, case):
    rule, store = CASES[case]
    model = quantize_weights(NETWORKS[name](), rule)
    layers = [layer for layer in model if hasattr(layer, "weight")]
    weights = [layer.weight.numel() for layer in layers]
    before = onnxrt.export(model)
    file = store(before)
    found = [len(i.raw_data) for i in initializers(file) if i.data_type in (21, 22)]  # (unsigned) 4 bits
    assert found == [-(-n // 2) for n in weights]
    decoding = 4 * (16 * len(layers) if case == "16 numbers" else sum(len(w.bias) for w in layers))
    assert 0 < len(file) - (len(before) - 4 * sum(weights)) - sum(found) - decoding < 70 * len(layers)


def test_a_file_has_its_integers_and_one_scale_for_each_output():
    model = quantize_weights(nn.Sequential(nn.Linear(40, 3)), four_bits)
    with torch.no_grad():
        model[0].weight[1] *= 100
    found = [onnx.numpy_helper.to_array(i) for i in initializers(int4_weights(onnxrt.export(model)))]
    (q,), (scale,) = ([a for a in found if a.shape == shape] for shape in ((3, 40), (3, 1)))
    w = model[0].weight.detach().numpy()
    np.testing.assert_allclose(scale[:, 0], abs(w).max(1) / 7, rtol=1e-6)
    np.testing.assert_allclose(q.astype("float32") * scale, w, rtol=1e-6)
    assert abs(q.astype(int)).max(1).tolist() == [7, 7, 7]


@pytest.mark.parametrize("store", [int4_weights, shared_weights])
def test_outputs_and_layers_of_zeros(store):
    model = quantize_weights(mlp(hidden=16), four_bits)
    with torch.no_grad():
        model[0].weight[3] = 0
        model[4].weight[:] = 0
    assert_same_answers(store(onnxrt.export(model)), model)


def test_a_layer_that_is_used_twice_and_has_no_bias():
    layer = quantize_weights(nn.Sequential(nn.Linear(40, 40, bias=False)), four_bits)[0]
    model = nn.Sequential(layer, nn.ReLU(), layer)
    assert_same_answers(int4_weights(onnxrt.export(model)), model)


def test_codes_take_a_byte_from_the_seventeenth_number_on():
    for numbers, kind in ((16, onnx.TensorProto.UINT4), (17, onnx.TensorProto.UINT8)):
        model = nn.Sequential(nn.Linear(40, 10))
        with torch.no_grad():
            model[0].weight.copy_(torch.arange(400).view(10, 40) % numbers / 100)
        file = shared_weights(onnxrt.export(model))
        assert kind in {i.data_type for i in initializers(file)}
        assert_same_answers(file, model)


def test_other_weights_are_refused_and_their_layer_named():
    model = quantize_weights(mlp(hidden=20), four_bits)
    with torch.no_grad():
        model[2].weight[0, 0] += 0.01
    with pytest.raises(ValueError, match=r"layer 2 of 3, Gemm \(20, 20\), has weights that are no 4-bit"):
        int4_weights(onnxrt.export(model))
    with pytest.raises(ValueError, match=r"layer 1 of 4, Conv \(60, 1, 5\), has 300 different weights"):
        shared_weights(onnxrt.export(cnn(60)))


def test_three_bits_are_no_grid_of_four():
    model = quantize_weights(mlp(hidden=16), lambda w: fake_quantize(w, symmetric(*min_max(w, axis=0), 3)))
    with pytest.raises(ValueError, match="no 4-bit integers"):
        int4_weights(onnxrt.export(model))
