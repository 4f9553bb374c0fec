"""ONNX files that store weights in few bits and compute with them in floats.

What stands for the weights is a constant, so ONNX Runtime turns it into floats once, when it loads the
file, and then runs as it runs the float file: as fast, and in no less memory. The operator made for this,
``DequantizeLinear``, would stay in the graph and be computed at each call, unless the session says
``session.disable_quant_qdq``.

Four-bit numbers need operator set 21 and ONNX Runtime 1.23.
"""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from dlopt_helpers.lab.onnxrt import _stripped, read

_INT4, _UINT4 = map(helper.tensor_dtype_to_np_dtype, (TensorProto.INT4, TensorProto.UINT4))


def int4_weights(onnx):
    r"""Return the ONNX file of a network with 4-bit weights: :math:`w_{ji} = \Delta_j\,q_{ji}`.

    Integers from -7 to 7, two in a byte, and a float :math:`\Delta_j` for each output. Biases stay floats.

    Args:
      onnx: bytes of a float file from :func:`~dlopt_helpers.lab.onnxrt.export`. The largest weight of each
        output is 7 :math:`\Delta_j`, and all are multiples of :math:`\Delta_j`, as
        :func:`~dlopt_helpers.quantization.symmetric` leaves them.

    Raises:
      ValueError: if ``onnx`` is no ONNX file's bytes; naming the layer, if there are other weights.

    Example:
      >>> import torch
      >>> from dlopt_helpers.lab.onnxrt import export
      >>> layer = torch.nn.Linear(40, 100)
      >>> weights = torch.nn.init.ones_(layer.weight)
      >>> len(export(layer)) / len(int4_weights(export(layer))) > 5
      True
    """
    return _with_stored_weights(onnx, _four_bits)


def shared_weights(onnx):
    r"""Return the ONNX file of a network whose weights are codes: :math:`w_{ji} = c_{k_{ji}}`.

    Each layer has its codebook :math:`c` of floats. Codes take 4 bits, or a byte where the codebook holds
    more than 16 numbers. Biases stay floats.

    Args:
      onnx: bytes of a float file from :func:`~dlopt_helpers.lab.onnxrt.export`, with at most 256 different
        weights in a layer, as :func:`~dlopt_helpers.quantization.share_weights` leaves them.

    Raises:
      ValueError: if ``onnx`` is no ONNX file's bytes; naming the layer, if there are more.

    Example:
      >>> import torch
      >>> from dlopt_helpers.lab.onnxrt import export
      >>> layer = torch.nn.Linear(40, 100)
      >>> weights = torch.nn.init.ones_(layer.weight)
      >>> len(export(layer)) / len(shared_weights(export(layer))) > 6
      True

    References:
      Han, Mao and Dally 2016, "Deep compression".
    """
    return _with_stored_weights(onnx, _codes)


def _with_stored_weights(onnx, store):
    """Return the file in which ``store`` decides how the weights of each layer are written."""
    model = read(onnx)
    constants = {constant.name: constant for constant in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Gemm", "Conv")]
    decoded = []
    for number, layer in enumerate(layers, start=1):
        name = layer.input[1]
        if name not in constants:
            continue  # two layers have the same weights: they are stored once
        w = numpy_helper.to_array(constants.pop(name))
        try:
            parts, decode = store(w)
        except ValueError as error:
            raise ValueError(f"layer {number} of {len(layers)}, {layer.op_type} {w.shape}, {error}") from None
        names = [f"{name}_{part}" for part in range(len(parts))]
        for part, array in zip(names, parts, strict=True):
            constants[part] = numpy_helper.from_array(array, part)
        decoded += decode(*names, name)
    nodes = [*decoded, *model.graph.node]
    for field, values in (("node", nodes), ("initializer", constants.values())):
        model.graph.ClearField(field)
        getattr(model.graph, field).extend(values)
    model.opset_import[0].version = max(21, model.opset_import[0].version)
    return _stripped(model)


def _four_bits(w):
    largest = abs(w).max(tuple(range(1, w.ndim)), keepdims=True)
    scale = np.where(largest > 0, largest / 7, 1).astype("float32")
    q = np.rint(w / scale)
    # What a runtime computes from them may differ from the weights by a rounding.
    if not np.allclose(w, scale * q, rtol=1e-5, atol=0):
        raise ValueError("has weights that are no 4-bit integers times one number for each output")

    def decode(q, scale, w):
        floats = f"{w}_floats"
        cast = helper.make_node("Cast", [q], [floats], to=TensorProto.FLOAT)
        return [cast, helper.make_node("Mul", [floats, scale], [w])]

    return (q.astype(_INT4), scale), decode


def _codes(w):
    codebook, codes = np.unique(w, return_inverse=True)
    if len(codebook) > 256:
        raise ValueError(f"has {len(codebook)} different weights: a codebook holds at most 256")
    small = _UINT4 if len(codebook) <= 16 else np.uint8

    def decode(codebook, codes, w):
        indices = f"{w}_indices"  # Gather takes none of fewer than 32 bits
        cast = helper.make_node("Cast", [codes], [indices], to=TensorProto.INT32)
        return [cast, helper.make_node("Gather", [codebook, indices], [w])]

    return (codebook, codes.reshape(w.shape).astype(small)), decode
