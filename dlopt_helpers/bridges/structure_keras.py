"""Costs and low-rank factors of Keras models."""

from math import prod

import keras
import pandas as pd
from keras import layers

from dlopt_helpers._require import require_kind
from dlopt_helpers.structure import Cost, conv_cost, linear_cost, low_rank

_CONVS = (layers.Conv1D, layers.Conv2D)
_DEPTHWISE = (layers.DepthwiseConv1D, layers.DepthwiseConv2D)
_SEPARABLE = (layers.SeparableConv1D, layers.SeparableConv2D)
_COUNTED = (layers.Dense, *_CONVS, *_DEPTHWISE, *_SEPARABLE, layers.BatchNormalization)
_MATRICES = (layers.Dense, layers.Conv1D)


def costs(model):
    """Return what each layer with parameters costs for one example, in the order of the model.

    Counted are Dense, Conv, DepthwiseConv and SeparableConv layers in one and two dimensions, and
    BatchNormalization, which has no multiply-accumulates of its own: a runtime merges it into the
    convolution before it. Its moving mean and variance, which ``count_params`` counts too, are no parameters.

    Args:
      model: a built ``keras.Sequential`` of such layers and of others without parameters, for inputs of
        fixed length, channels last.

    Returns:
      A data frame indexed by the layer's name: ``kind``, ``parameters`` and ``macs``.

    Raises:
      ValueError: if ``model`` is another; naming the layer, if its parameters are of another kind.

    Example:
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, name="hidden")])
      >>> costs(model)
               kind  parameters  macs
      hidden  Dense           8     6
    """
    _require_sequential(model)
    rows, shape = {}, model.input_shape
    for layer in model.layers:
        before, shape = shape, layer.compute_output_shape(shape)
        if type(layer) in _COUNTED:
            rows[layer.name] = [type(layer).__name__, *_cost(layer, before[-1], shape)]
        elif layer.weights:
            raise ValueError(f"layer {layer.name!r} is {type(layer).__name__}: what it costs is not known")
    return pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "parameters", "macs"])


def _cost(layer, inputs, shape):
    """Return the cost of a layer with so many input channels, whose output has ``shape``."""
    if isinstance(layer, layers.BatchNormalization):
        return Cost(inputs * (layer.scale + layer.center), 0)
    if isinstance(layer, layers.Dense):
        cost = linear_cost(inputs, layer.units, layer.use_bias)
        return cost._replace(macs=cost.macs * prod(shape[1:-1]))  # at each position of a sequence
    if layer.data_format == "channels_first":
        raise ValueError(f"layer {layer.name!r} is for channels_first: its channels must be last")
    kernel, length = prod(layer.kernel_size), prod(shape[1:-1])
    if type(layer) in _CONVS:
        return conv_cost(inputs, layer.filters, kernel, length, layer.groups, layer.use_bias)
    separable, inner = type(layer) in _SEPARABLE, inputs * layer.depth_multiplier
    bias = layer.use_bias and not separable  # a separable layer has its bias behind the pointwise part
    cost = conv_cost(inputs, inner, kernel, length, groups=inputs, bias=bias)
    return cost + conv_cost(inner, layer.filters, 1, length, bias=layer.use_bias) if separable else cost


def factorise(model, ranks):
    r"""Return a copy of ``model`` in which some layers are two, of lower rank.

    .. math:: y = x K + b \quad\longrightarrow\quad y = (x A)\,B + b

    A convolution becomes one with :math:`r` filters and a pointwise one behind it; its kernel counts as a
    matrix of a column for each filter.

    Args:
      model: a built ``keras.Sequential``; it stays as it is.
      ranks: dict from names of Dense and Conv1D layers (``groups=1``) to their rank, a whole number from 1
        to that of the full matrix. Layers left out stay.

    Returns:
      A new ``keras.Sequential``, not compiled. The second of two layers has the name and the activation
      of the old one, the first its name and ``_rank``.

    Raises:
      ValueError: if ``model`` is another; naming the layer, if there is none of that name and kind, its
        kernel is not finite, is quantized, has LoRA or a constraint, or its rank is out of range.

    Example:
      >>> sizes = [keras.layers.Dense(4, "relu", name="hidden"), keras.layers.Dense(1, name="logits")]
      >>> model = keras.Sequential([keras.Input([6]), *sizes])
      >>> [(layer.name, layer.units) for layer in factorise(model, {"hidden": 2}).layers]
      [('hidden_rank', 2), ('hidden', 4), ('logits', 1)]
    """
    _require_sequential(model)
    require_kind("ranks", ranks, dict, "a dict from names of layers to ranks")
    factors = {name: _factors(model, name, rank) for name, rank in ranks.items()}
    start = keras.Input(batch_shape=model.input_shape, dtype=model.inputs[0].dtype, name=model.inputs[0].name)
    made = [
        new
        for layer in model.layers
        for new in (_pair(layer, ranks[layer.name]) if layer.name in ranks else [_copy(layer)])
    ]
    small = keras.Sequential([start, *made], trainable=model.trainable, name=model.name)
    weights = [w for layer in model.layers for w in _weights(layer, factors.get(layer.name))]
    small.set_weights(weights)
    return small


def _copy(layer):
    return type(layer).from_config(layer.get_config())


def _pair(layer, rank):
    """Return the two layers that stand for one, still without their weights."""
    config, name = layer.get_config(), f"{layer.name}_rank"
    same = {"use_bias": False, "dtype": layer.dtype_policy, "trainable": layer.trainable, "name": name}
    if isinstance(layer, layers.Dense):
        return [layers.Dense(int(rank), **same), _copy(layer)]
    moved = {key: config.pop(key) for key in ("kernel_size", "strides", "padding", "dilation_rate")}
    first = layers.Conv1D(int(rank), **moved, **same)
    return [first, layers.Conv1D.from_config(config | {"kernel_size": 1})]


def _factors(model, name, rank):
    """Return the two factors of a layer's kernel in the shape of kernels."""
    found = {layer.name: layer for layer in model.layers if type(layer) in _MATRICES}
    if name not in found:
        raise ValueError(
            f"ranks names {name!r}: it must be a Dense or Conv1D, one of {', '.join(found) or 'none'}"
        )
    layer = found[name]
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"layer {name!r} has groups={layer.groups}: only groups=1 makes one matrix")
    if len(layer.weights) != 1 + layer.use_bias or layer.kernel.constraint is not None:
        raise ValueError(f"layer {name!r} has more than a plain kernel (LoRA, integers or a constraint)")
    kernel = layer.kernel.numpy()
    try:
        a, b = low_rank(kernel.reshape(-1, kernel.shape[-1]), rank)
    except ValueError as error:
        raise ValueError(f"ranks: layer {name!r} cannot be factorised: {error}") from None
    return a.reshape(*kernel.shape[:-1], -1), b.reshape(*[1] * (kernel.ndim - 2), *b.shape)


def _weights(layer, factors):
    return layer.get_weights() if factors is None else [*factors, *layer.get_weights()[1:]]


def _require_sequential(model):
    if not isinstance(model, keras.Sequential) or not model.built:
        raise ValueError(f"model is {type(model).__name__}: it must be a built keras.Sequential")
