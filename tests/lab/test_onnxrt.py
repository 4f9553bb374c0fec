import collections
import copy
import functools

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.models import cnn, mlp

NETWORKS = {
    "mlp100": mlp(),
    "mlp512": mlp(hidden=512),
    "mlp1024": mlp(hidden=1_024),
    "cnn25": cnn(25),
    "cnn64": cnn(64),
}
X = np.random.default_rng(0).normal(size=(500, 40)).astype("float32")
each_network = pytest.mark.parametrize("name", NETWORKS)


@functools.cache
def exported(name):
    return onnxrt.export(NETWORKS[name])


def logits(model, x=X):
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


def error(onnx, expected, x=X):
    """Return the root mean square error, relative to the logits' spread."""
    return np.sqrt(np.mean((onnxrt.load(onnx)(x) - expected) ** 2)) / expected.std()


def initializers(file):
    return {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load_from_string(file).graph.initializer}


@each_network
def test_float_file_computes_what_the_model_does_for_any_number_of_rows(name):
    run = onnxrt.load(exported(name))
    for rows in (500, 1, 3, 64, 0):
        np.testing.assert_allclose(run(X[:rows]), logits(NETWORKS[name], X[:rows]), atol=1e-5)


@each_network
@pytest.mark.parametrize("per_channel", [True, False])
def test_static_file_runs_in_integers_and_is_near_the_model(name, per_channel):
    file = onnxrt.quantize_static(exported(name), X, per_channel=per_channel)
    found = collections.Counter(onnxrt.optimised_ops(file))
    integers = {"QGemm": 3} if "mlp" in name else {"QLinearConv": 3, "QGemm": 1}
    moves = {} if "mlp" in name else {"Reshape": 2, "Transpose": 2}
    assert found == integers | moves | {"QuantizeLinear": 1, "DequantizeLinear": 1}
    assert 1e-4 < error(file, logits(NETWORKS[name])) < 0.03


@each_network
def test_dynamic_file_runs_in_integers_and_is_near_the_model(name):
    file = onnxrt.quantize_dynamic(exported(name))
    found = collections.Counter(onnxrt.optimised_ops(file))
    convolutions, products = (0, 3) if "mlp" in name else (3, 1)
    assert found["ConvInteger"] == convolutions and found["DynamicQuantizeMatMul"] == products
    assert not {"Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul"} & set(found)
    assert 1e-4 < error(file, logits(NETWORKS[name])) < 0.03


def test_weights_are_symmetric_with_one_scale_for_each_channel():
    file = onnxrt.quantize_static(exported("mlp100"), X)
    found, graph = initializers(file), onnx.load_from_string(file).graph
    weights = [node for node in graph.node if node.input[0] in found and node.op_type == "DequantizeLinear"]
    layers = [layer for layer in NETWORKS["mlp100"] if isinstance(layer, nn.Linear)]
    for node, layer in zip(weights, layers, strict=True):
        q, scale, zero = (found[name] for name in node.input)
        w = layer.weight.detach().numpy()
        assert q.dtype == np.int8 and scale.shape == zero.shape == (len(w),) and not zero.any()
        np.testing.assert_allclose(scale, abs(w).max(1) / 127, rtol=1e-5)
        np.testing.assert_allclose(q * scale[:, None], w, atol=0.501 * scale.max())
    assert sum(v.size for v in found.values() if v.dtype == np.int32) == 0  # biases are rounded later


def test_a_channel_of_large_weights_costs_the_others_their_bits_if_they_share_a_scale():
    model = mlp()
    with torch.no_grad():
        model[0].weight[3] *= 100
        model[0].bias[3] = -1_000  # it never fires: its outputs would stretch the range of the others'
    file, expected = onnxrt.export(model), logits(model)
    shared, own = (error(onnxrt.quantize_static(file, X, per_channel=p), expected) for p in (False, True))
    assert own < 0.03 and shared > 10 * own


@each_network
def test_calibration_decides_the_ranges(name):
    file, expected = exported(name), logits(NETWORKS[name])
    good, narrow = (onnxrt.quantize_static(file, x) for x in (X, X / 10))
    small = logits(NETWORKS[name], X / 10)
    assert (
        np.ptp(onnxrt.load(narrow)(X)) < 1.05 * max(np.ptp(small), abs(small).max()) < 0.9 * np.ptp(expected)
    )
    assert error(narrow, expected) > 5 * error(good, expected)


def test_all_rows_count_for_the_calibration():
    file, expected = exported("mlp100"), logits(NETWORKS["mlp100"])
    stretched = np.vstack([X, 50 * X[:1]])
    usual, coarse = (error(onnxrt.quantize_static(file, x), expected) for x in (X, stretched))
    assert coarse > 5 * usual


@pytest.mark.parametrize(
    ("name", "overhead", "least"), [("mlp512", 320, 3.85), ("mlp1024", 320, 3.9), ("cnn64", 700, 3.5)]
)
def test_integers_take_a_quarter_of_the_bytes(name, overhead, least):
    weights = 4 * sum(p.numel() for p in NETWORKS[name].parameters())
    assert weights < len(exported(name)) < weights + overhead
    for file in (onnxrt.quantize_static(exported(name), X), onnxrt.quantize_dynamic(exported(name))):
        assert least < len(exported(name)) / len(file) < 4


def test_files_hold_only_what_computes():
    for file in (exported("cnn25"), onnxrt.quantize_static(exported("cnn25"), X)):
        model = onnx.load_from_string(file)
        assert b"torch" not in file and b"weight" not in file and b"onnx" not in file
        onnx.checker.check_model(model, full_check=True)
        assert model.producer_name == model.graph.doc_string == "" and len(model.opset_import) == 1
        assert {v.name for v in (*model.graph.input, *model.graph.output)} == {"x", "logits"}
        assert all(len(name) <= 2 for name in initializers(file))


def test_model_stays_as_it_is_and_is_exported_for_evaluation():
    model = nn.Sequential(
        nn.Linear(40, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.ReLU(), nn.Linear(20, 10)
    )
    model(torch.from_numpy(X))  # some running statistics
    model[2].eval()
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    file = onnxrt.export(model)
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    np.testing.assert_allclose(onnxrt.load(file)(X), logits(model.eval()), atol=1e-5)
    assert error(onnxrt.quantize_static(file, X), logits(model)) < 0.03


def test_models_of_other_numbers_of_inputs():
    model = nn.Sequential(nn.Linear(7, 3))
    file = onnxrt.export(model, inputs=7)
    np.testing.assert_allclose(onnxrt.load(file)(X[:, :7]), logits(model, X[:, :7].copy()), atol=1e-6)
    with pytest.raises(ValueError, match="inputs=40"):
        onnxrt.export(model)
    with pytest.raises(ValueError, match=r"calibration.*\(n, 7\)"):
        onnxrt.quantize_static(file, X)


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class TwoRows(nn.Module):
    def forward(self, x):
        return x.reshape(2, 40)


@pytest.mark.parametrize("layer", [Bessel(), Branch()], ids=["no operator", "depends on values"])
def test_a_layer_that_onnx_cannot_express_is_named(layer):
    model = nn.Sequential(nn.Linear(40, 10), nn.Sequential(nn.ReLU(), layer), nn.ReLU())
    with pytest.raises(ValueError, match=rf"layer '1\.1', {type(layer).__name__}"):
        onnxrt.export(model)


def test_a_model_that_fixes_the_number_of_rows_is_refused():
    with pytest.raises(ValueError, match="fixes the number of rows"):
        onnxrt.export(nn.Sequential(nn.ReLU(), TwoRows()))


def test_weights_that_are_not_finite_are_named():
    model = mlp()
    with torch.no_grad():
        model[2].bias[4] = np.inf
    with pytest.raises(ValueError, match=r"2\.bias"):
        onnxrt.export(model)


def test_calibration_is_checked():
    for bad in (X[:0], X[:, :39], np.full_like(X, np.inf)):
        with pytest.raises(ValueError, match="calibration"):
            onnxrt.quantize_static(exported("mlp100"), bad)


def test_nothing_is_said(capfd):
    file = onnxrt.export(mlp().train())
    for each in (onnxrt.quantize_static(file, X), onnxrt.quantize_dynamic(file)):
        onnxrt.optimised_ops(each)
    with pytest.raises(ValueError):
        onnxrt.export(nn.Sequential(Bessel()))
    assert capfd.readouterr() == ("", "")


def test_sums_do_not_overflow_where_a_processor_has_no_instruction_for_them():
    session = onnxrt._session(onnxrt.export(mlp()))
    assert session.get_session_options().get_session_config_entry("session.x64quantprecision") == "1"
