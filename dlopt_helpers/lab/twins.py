"""Keras models that compute what PyTorch models do."""

import math

from torch import nn

from dlopt_helpers._require import refuse


def keras_twin(model):
    """Return the Keras model that computes what ``model`` does, from the same weights.

    Keras has the channels last, so the kernels are transposed, and so are the rows of the first dense
    kernel after ``Flatten``. Its ``padding="same"`` may pad more on the right than on the left; zeros
    of their own layer stand where PyTorch has them.

    Args:
      model: an ``nn.Sequential`` such as :func:`dlopt_helpers.lab.models.mlp` and ``cnn`` make.

    Raises:
      ValueError: if ``model`` is no ``nn.Sequential`` of at least one layer, or holds any other layer.

    Example:
      >>> from dlopt_helpers.lab.models import cnn
      >>> keras_twin(cnn()).count_params()
      5210
    """
    import keras

    if not isinstance(model, nn.Sequential) or not len(model):
        refuse("model", model, "an nn.Sequential of at least one layer")
    twin, weights, flattened = keras.Sequential([keras.Input([_inputs(model[0])])]), [], None
    for name, layer in model.named_children():
        if isinstance(layer, nn.Flatten) and len(twin.output_shape) > 2:
            flattened = twin.output_shape[1:]
        for new in _keras_layers(name, layer):
            twin.add(new)
        if isinstance(layer, nn.Conv1d | nn.Linear):
            kernel, *bias = (p.detach().numpy() for p in layer.parameters())
            if isinstance(layer, nn.Linear) and flattened:
                kernel, flattened = _channels_last(kernel, *flattened), None
            weights += [kernel.T, *bias]
    twin.set_weights(weights)
    return twin


def _inputs(first):
    match first:
        case nn.Linear():
            return first.in_features
        case nn.Unflatten():
            return math.prod(first.unflattened_size)
    raise ValueError(f"model has no twin: layer '0' is {first}, not nn.Linear or nn.Unflatten")


def _channels_last(kernel, length, channels):
    return kernel.reshape(-1, channels, length).swapaxes(1, 2).reshape(kernel.shape)


def _keras_layers(name, layer):
    from keras import layers

    match layer:
        case nn.ReLU():
            return [layers.ReLU()]
        case nn.Unflatten(dim=1, unflattened_size=(1, length)):
            return [layers.Reshape([length, 1])]
        case nn.Conv1d(padding=(padding,), padding_mode="zeros"):
            same = {"strides": layer.stride, "dilation_rate": layer.dilation, "groups": layer.groups}
            conv = layers.Conv1D(
                layer.out_channels, layer.kernel_size, use_bias=layer.bias is not None, **same
            )
            return [layers.ZeroPadding1D(padding), conv]
        case nn.Flatten(start_dim=1, end_dim=-1):
            return [layers.Flatten()]
        case nn.Linear():
            return [layers.Dense(layer.out_features, use_bias=layer.bias is not None)]
    raise ValueError(f"model has no twin: layer {name!r} is {layer}")
