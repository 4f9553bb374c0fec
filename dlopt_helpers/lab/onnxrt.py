"""PyTorch models in ONNX Runtime, in floats and in 8-bit integers."""

import collections
import contextlib
import copy
import functools
import itertools
import string
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from google.protobuf.message import DecodeError
from onnx import ModelProto, defs, load_from_string
from onnxruntime import quantization

from dlopt_helpers._require import require_bool, require_kind, require_whole
from dlopt_helpers.lab.runtimes import checked_calibration, quiet


def export(model, inputs=40):
    """Return the bytes of an ONNX file that computes what ``model`` does in evaluation mode.

    Its input ``x`` has any number of rows, its output is ``logits``. What plays no part in the
    computation is left out: long names, notes, options that are at their default.

    Args:
      model: a PyTorch model; it stays as it is.
      inputs: numbers in an example.

    Raises:
      ValueError: if ``model`` does not take float32 examples of ``inputs`` numbers, has weights that
        are not finite, fixes the number of rows, or has a layer that ONNX cannot express.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> 4 * 15_210 < len(export(mlp())) < 4 * 15_210 + 400
      True
    """
    require_kind("model", model, torch.nn.Module, "an nn.Module")
    inputs = require_whole("inputs", inputs, 1)
    model, x = copy.deepcopy(model).eval(), torch.zeros(2, inputs)
    try:
        model(x)
    except RuntimeError as error:
        raise ValueError(f"inputs={inputs} is not allowed: it must be what model takes: {error}") from None
    for name, values in model.state_dict().items():
        if not values.isfinite().all():
            raise ValueError(f"model cannot be exported: {name} has values that are not finite")
    try:
        translated = _translated(model, x, dynamic_shapes=[{0: torch.export.Dim("n")}])
    except torch.onnx.OnnxExporterError:
        raise ValueError(f"model cannot be exported: ONNX cannot express {_culprit(model, x)}") from None
    if not translated.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        raise ValueError(f"model cannot be exported: it fixes the number of rows: {model}")
    return _stripped(translated)


def _translated(model, *x, **options):
    with quiet():
        names = {"input_names": ["x"], "output_names": ["logits"]}
        return torch.onnx.export(model, x, dynamo=True, verbose=False, **names, **options).model_proto


def _culprit(model, x):
    """Return in words the innermost layer that cannot be exported even by itself."""
    calls = []  # a layer ends before the one that it is a part of
    for name, layer in model.named_modules():
        hook = functools.partial(lambda name, layer, x, _: calls.append((name, layer, x)), name)
        layer.register_forward_hook(hook)
    model(x)
    for name, layer, inputs in tuple(calls):  # the exporter calls the layers too
        try:
            _translated(layer, *inputs)
        except torch.onnx.OnnxExporterError:
            return f"layer {name!r}, {layer}"
    return model


def quantize_static(onnx, calibration, per_channel=True):
    """Return the ONNX file of a network that computes in 8-bit integers.

    Weights: symmetric, one scale for each output channel. Activations: affine, over the smallest and
    largest value that each takes on ``calibration``. Biases stay floats in the file; the runtime rounds
    them to 32-bit integers when it loads them.

    Args:
      onnx: bytes of a float model from :func:`export`.
      calibration: float32 array (n, inputs), examples such as the network will meet.
      per_channel: whether each output channel has its own scale, or one serves the whole tensor.

    Raises:
      ValueError: if ``onnx`` is no such file, or ``calibration`` has no rows, another width, a number that
        is not finite, or nothing but one value.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> float_bytes = export(mlp(hidden=512))
      >>> len(float_bytes) / len(quantize_static(float_bytes, torch.randn(100, 40).numpy())) > 3.8
      True
    """
    require_bool(per_channel=per_channel)
    model = read(onnx)
    inputs = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    examples = [{"x": checked_calibration(calibration, inputs)}]

    class Reader(quantization.CalibrationDataReader):
        def get_next(self):
            return examples.pop() if examples else None

    # Integers for the biases and their scales would add bytes and change nothing.
    options = {"per_channel": per_channel, "extra_options": {"QuantizeBias": False}}
    return _quantized(quantization.quantize_static, model, calibration_data_reader=Reader(), **options)


def quantize_dynamic(onnx):
    """Return the ONNX file of a network with 8-bit weights that finds its activations' ranges as it runs.

    Raises:
      ValueError: if ``onnx`` is no ONNX file's bytes.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> len(quantize_dynamic(export(mlp(hidden=512)))) < 310_000
      True
    """
    return _quantized(quantization.quantize_dynamic, read(onnx), per_channel=True)


def _quantized(quantize, model, **options):
    with tempfile.TemporaryDirectory() as folder, quiet():
        file = Path(folder) / "quantized.onnx"
        quantize(model, file, weight_type=quantization.QuantType.QInt8, **options)
        return _stripped(load_from_string(file.read_bytes()))


def read(onnx, name="onnx"):
    """Return the model of an ONNX file.

    Args:
      onnx: bytes of the file.
      name: what its caller calls them.

    Raises:
      ValueError: if they are none of a file with an input and an operator.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> len(read(export(mlp())).graph.node)
      5
    """
    model = ModelProto()
    if isinstance(onnx, bytes):
        with contextlib.suppress(DecodeError):
            model = load_from_string(onnx)
    if not (model.graph.input and model.graph.node):
        raise ValueError(f"{name} is no ONNX file: it must be the bytes that export returns")
    return model


def load(onnx):
    """Return a function that maps a float32 array (n, inputs) to the logits, on one thread.

    Raises:
      ValueError: if ``onnx`` is no ONNX file's bytes.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> load(export(mlp()))(np.zeros((3, 40), "float32")).shape
      (3, 10)
    """
    session = _session(onnx)
    return lambda x: session.run(None, {"x": np.asarray(x, "float32")})[0]


def optimised_ops(onnx):
    """Return the operators that ONNX Runtime really runs, in order, after its own optimisation.

    Raises:
      ValueError: if ``onnx`` is no ONNX file's bytes.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> optimised_ops(export(mlp()))
      ['FusedGemm', 'FusedGemm', 'Gemm']
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "optimised.onnx"
        _session(onnx, optimized_model_filepath=str(file))
        return [node.op_type for node in load_from_string(file.read_bytes()).graph.node]


def _session(onnx, **more):
    read(onnx)
    options = onnxruntime.SessionOptions()
    wanted = {"intra_op_num_threads": 1, "inter_op_num_threads": 1, "log_severity_level": 3, **more}
    for name, value in wanted.items():
        setattr(options, name, value)
    # x86 processors without VNNI would else add products of 8-bit integers in 16 bits, and overflow.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return onnxruntime.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])


def _stripped(model):
    """Return the bytes of ``model`` without what plays no part in the computation."""
    used = {node.domain for node in model.graph.node}
    versions = {opset.domain: opset for opset in model.opset_import if opset.domain in used}
    graph = ModelProto(graph=model.graph).graph
    graph.name = "g"  # a graph must have one
    del graph.value_info[:]
    for node in graph.node:
        node.ClearField("name")
        _drop_defaults(node, versions[node.domain].version)
    _shorten_names(graph)
    _drop_notes(graph)
    made = ModelProto(ir_version=model.ir_version, opset_import=versions.values(), graph=graph)
    return made.SerializeToString()


def _drop_defaults(node, version):
    if defs.has(node.op_type, node.domain):
        known = defs.get_schema(node.op_type, version, node.domain).attributes
        kept = [a for a in node.attribute if a != known[a.name].default_value]
        del node.attribute[:]
        node.attribute.extend(kept)


def _shorten_names(graph):
    """Call the tensors between ``x`` and ``logits`` a, b, c and so on, in order of appearance."""
    letters = string.ascii_lowercase.replace("x", "")
    words = ("".join(word) for n in (1, 2, 3) for word in itertools.product(letters, repeat=n))
    short = collections.defaultdict(lambda: next(words), {name: name for name in ("", "x", "logits")})
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [short[name] for name in names]
    for value in graph.initializer:
        value.name = short[value.name]


def _drop_notes(message):
    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type:
            for part in [value] if hasattr(value, "ListFields") else value:  # one message or several
                _drop_notes(part)
