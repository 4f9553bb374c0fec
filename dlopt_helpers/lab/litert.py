"""Keras models in LiteRT, in floats and in 8-bit integers."""

import numpy as np

from dlopt_helpers._require import require_kind
from dlopt_helpers.lab.runtimes import checked_calibration, quiet


def convert(model):
    """Return the bytes of a LiteRT file that computes what ``model`` does.

    It takes any number of rows. Names, which play no part in the computation, are left out.

    Args:
      model: a Keras model of one input and one output; it stays as it is.

    Raises:
      ValueError: if ``model`` is no Keras model, has weights that are not finite, or a layer that LiteRT
        cannot express.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.lab.twins import keras_twin
      >>> 4 * 15_210 < len(convert(keras_twin(mlp()))) < 4 * 15_210 + 1_500
      True
    """
    return _converted(model)


def quantize_static(model, calibration):
    """Return the LiteRT file of a network that computes in 8-bit integers, from floats to floats.

    Weights: symmetric, one scale for each output channel. Activations: affine, over the smallest and
    largest value that each takes on ``calibration``. Biases: 32-bit integers.

    Args:
      model: a Keras model of one input and one output; it stays as it is.
      calibration: float32 array (n, inputs), examples such as the network will meet.

    Raises:
      ValueError: as :func:`convert`; and if ``calibration`` has no rows, another width, a number that
        is not finite, or nothing but one value.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.lab.twins import keras_twin
      >>> model = keras_twin(mlp(hidden=512))
      >>> len(quantize_static(model, np.random.normal(size=(100, 40)))) < 320_000
      True
    """
    _require_model(model)
    return _converted(model, True, checked_calibration(calibration, model.input_shape[-1]))


def quantize_dynamic(model):
    """Return the LiteRT file of a network with 8-bit weights that finds its activations' ranges as it runs.

    Weights of fewer than 1,024 numbers stay floats.

    Raises:
      ValueError: as :func:`convert`.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.lab.twins import keras_twin
      >>> len(quantize_dynamic(keras_twin(mlp(hidden=512)))) < 320_000
      True
    """
    return _converted(model, True)


def _require_model(model):
    import keras

    require_kind("model", model, keras.Model, "a Keras model")


def _converted(model, integers=False, calibration=None):
    _require_model(model)
    for weight in model.weights:
        if not np.isfinite(weight.numpy()).all():
            raise ValueError(f"model cannot be converted: {weight.path} has values that are not finite")
    with quiet():
        from tensorflow.lite.python.convert_phase import ConverterError

        try:
            return _stripped(_tflite(model, integers, calibration))
        except (ConverterError, RuntimeError):
            culprit = _culprit(model, integers)
    raise ValueError(f"model cannot be converted: LiteRT cannot express {culprit}")


def _tflite(model, integers, calibration):
    from tensorflow import lite

    converter = lite.TFLiteConverter.from_keras_model(model)
    if integers:
        converter.optimizations = [lite.Optimize.DEFAULT]
    if calibration is not None:
        converter.representative_dataset = lambda: iter([[calibration]])
        converter.target_spec.supported_ops = [lite.OpsSet.TFLITE_BUILTINS_INT8]
    return converter.convert()


def _culprit(model, integers):
    """Return in words the first layer that cannot be converted even by itself."""
    import keras
    from tensorflow.lite.python.convert_phase import ConverterError

    for layer in model.layers:
        try:
            _tflite(keras.Model(layer.input, layer.output), integers, None)
        except (ConverterError, RuntimeError):
            return f"layer {layer.name!r}, {type(layer).__name__}"
    return f"{model.name!r}"


def _stripped(litert):
    from ai_edge_litert.tools import flatbuffer_utils

    model = flatbuffer_utils.read_model_from_bytearray(bytearray(litert))
    flatbuffer_utils.strip_strings(model)
    return bytes(flatbuffer_utils.convert_object_to_bytearray(model))


def load(litert):
    """Return a function that maps a float32 array (n, inputs) to the logits, on one thread.

    The first call with another n takes longer: the runtime lays out its memory anew.

    Raises:
      ValueError: if ``litert`` is no LiteRT file's bytes; by the function, if its array has another shape.

    Example:
      >>> from dlopt_helpers.lab.models import mlp
      >>> from dlopt_helpers.lab.twins import keras_twin
      >>> load(convert(keras_twin(mlp())))(np.zeros((3, 40), "float32")).shape
      (3, 10)
    """
    if not isinstance(litert, bytes) or litert[4:8] != b"TFL3":
        raise ValueError("litert is no LiteRT file: it must be the bytes that convert returns")
    with quiet():
        from ai_edge_litert.interpreter import Interpreter

        interpreter = Interpreter(model_content=litert, num_threads=1)
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    width, shape = source["shape"][1], None

    def run(x):
        nonlocal shape
        x = np.asarray(x, "float32")
        if x.shape != shape:
            if x.ndim != 2 or x.shape[1] != width:
                raise ValueError(f"x has shape {x.shape}: it must be (n, {width})")
            with quiet():
                interpreter.resize_tensor_input(source["index"], x.shape)
                interpreter.allocate_tensors()
            shape = x.shape
        interpreter.set_tensor(source["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(target["index"])

    return run
