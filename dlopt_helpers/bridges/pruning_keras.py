"""Masks and removal for Keras models."""

from math import prod

import keras
import numpy as np
from keras import layers
from scipy.sparse import csr_array

from dlopt_helpers._require import require_array, require_function, require_kind

_UNITS = (layers.Dense, layers.Conv1D, layers.Conv2D)
_PRUNABLE = (*_UNITS, layers.Conv3D)
_ACTIVATIONS = (layers.ReLU, layers.LeakyReLU, layers.ELU, layers.Softmax)
_POOLING = (layers.MaxPooling1D, layers.MaxPooling2D, layers.AveragePooling1D, layers.AveragePooling2D)
_GLOBAL = (layers.GlobalAveragePooling1D, layers.GlobalAveragePooling2D)
_OTHER = (layers.Activation, layers.BatchNormalization, layers.Dropout, layers.Flatten, layers.Reshape)
_CHAIN = (*_UNITS, *_ACTIVATIONS, *_POOLING, *_GLOBAL, *_OTHER)
_ALL = slice(None)


class Mask(keras.constraints.Constraint):
    """Keep at zero what the mask leaves out; Keras calls it after every update of the variable.

    Args:
      keep: an array, true where the variable is free.
      before: a constraint to apply first, or ``None``.
    """

    def __init__(self, keep, before=None):
        require_array("keep", np.asarray(keep, int) if np.asarray(keep).dtype == bool else keep)
        if not np.isin(keep, (0, 1)).all():
            raise ValueError("keep holds other entries than 0 and 1: only these are allowed")
        if before is not None:
            require_function("before", before, "a constraint or None")
        # A variable, so that a training step that was traced before sees a mask that changes later.
        self.keep = keras.Variable(keep, dtype="bool", trainable=False)
        self.before = before

    def __call__(self, w):
        w = self.before(w) if self.before else w
        return keras.ops.where(self.keep, w, keras.ops.zeros_like(w))  # a product would keep nan


def prunable(model):
    """Return the weights that may be pruned: the kernel of each Dense, Conv1D, Conv2D and Conv3D layer.

    Layers of models inside the model are among them, those inside wrappers and layers of your own are
    not. Biases and normalisation are never pruned: they are few. A layer that a functional model calls
    in two places has one kernel, and so one mask.

    Args:
      model: a built ``keras.Model``.

    Returns:
      A dict from the layer's name to a NumPy copy of its kernel.

    Raises:
      ValueError: if there is no such layer, a layer has no weights yet, is quantized or has LoRA, a name
        occurs twice, or two layers share a kernel.

    Example:
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, name="hidden")])
      >>> prunable(model)["hidden"].shape
      (3, 2)
    """
    return {name: kernel.numpy() for name, kernel in _kernels(model).items()}


def prune(model, masks):
    """Set weights of a model to zero, and keep them there in any training.

    The masks are constraints of the kernels, which every Keras optimiser obeys in ``fit``,
    ``train_on_batch`` and loops of your own. What is pruned stays pruned: masks multiply.

    Args:
      model: a built ``keras.Model``, changed in place. Give the one that you train, not one inside it.
      masks: a dict from names of :func:`prunable` to arrays of ones and zeros of the kernel's shape.
        Layers left out stay as they are. All zeros are allowed: the layer then passes on its biases
        alone, and the network answers the same to every input.

    Returns:
      The model.

    Raises:
      ValueError: as :func:`prunable`, or if a name is unknown, a mask has another shape or other entries,
        or the kernel is not finite. The model is then as it was.

    Example:
      >>> from dlopt_helpers.pruning import magnitude_mask
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, name="hidden")])
      >>> masks = {name: magnitude_mask(w, threshold=0.5) for name, w in prunable(model).items()}
      >>> model = prune(model, masks)

    Note:
      A model that is saved and loaded keeps its zeros but not its constraints: prune it again with
      ``{name: w != 0 for name, w in prunable(model).items()}``. With ``use_ema=True``, ``fit`` ends by
      writing averages over the weights: prune again with the same masks. A ``tf.function`` of your own
      that ran before the first pruning knows no mask: make it anew.
    """
    kernels = _kernels(model)
    require_kind("masks", masks, dict, "a dict from names of layers to arrays")
    masks = {name: _checked_mask(name, mask, kernels) for name, mask in masks.items()}
    if any(not isinstance(kernels[name].constraint, Mask) for name in masks):
        model.train_function = None  # it was traced without these constraints: let Keras make it anew
    for name, mask in masks.items():
        _hold(kernels[name], mask)
    return model


def mask_units(model, keep):
    """Return a copy of a chain of layers in which only some units (neurons, filters) speak.

    Of the others the incoming weights, the bias, and gamma, beta and the moving mean of a
    BatchNormalization that follows are zero, and stay so in training. Masks of the model are kept.

    Args:
      model: a built ``keras.Sequential`` as :func:`remove_units` takes it.
      keep: a dict from the name of a layer to the indices of the units that stay, as
        :func:`~dlopt_helpers.pruning.best_units` gives them. Layers left out keep all.

    Returns:
      A new ``keras.Sequential``, not compiled.

    Raises:
      ValueError: as :func:`remove_units`.
    """
    flow = _flow(model, keep)
    copy = remove_units(model, {})
    for layer, (_, stay) in zip(copy.layers, flow, strict=True):
        # A batch norm without gamma answers a silent unit with its moving mean, which then stays zero.
        for name in ("kernel", "bias", "gamma", "beta", "moving_mean"):
            if (variable := getattr(layer, name, None)) is not None:
                mask = np.zeros(variable.shape, bool)
                mask[..., stay] = True
                _hold(variable, mask)
    return copy


def remove_units(model, keep):
    """Return a smaller model without some units, with the outputs of :func:`mask_units` in inference.

    Args:
      model: a built ``keras.Sequential`` of Dense, Conv1D, Conv2D, BatchNormalization, activations, Dropout,
        Flatten, max, average and global average pooling; before the first or after the last layer
        with units also of Reshape. Activations between these two must be zero at zero.
      keep: as in :func:`mask_units`.

    Returns:
      A new ``keras.Sequential``, not compiled, whose layers keep their names, settings and masks.

    Raises:
      ValueError: if the model or a layer is of another kind; if ``keep`` names anything but a layer with
        units before the last (whose units are the classes); if a list is empty, or holds an index twice
        or one that is not there.

    Example:
      >>> sizes = [keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(2)]
      >>> model = keras.Sequential([keras.Input([3]), *sizes])
      >>> remove_units(model, {"hidden": [0, 5]}).count_params()  # (3 + 1) * 2 + (2 + 1) * 2
      14
    """
    flow = _flow(model, keep)

    def smaller(layer):
        config = layer.get_config()
        if layer.name in keep:
            config["units" if "units" in config else "filters"] = len(keep[layer.name])
        return type(layer).from_config(config)

    # Not by clone_model: it would take over how the model is compiled, an optimizer of other sizes included.
    start = keras.Input(batch_shape=model.input_shape, dtype=model.inputs[0].dtype, name=model.inputs[0].name)
    small = keras.Sequential([start, *map(smaller, model.layers)], model.trainable, model.name)
    for layer, new, (came, stay) in zip(model.layers, small.layers, flow, strict=True):
        for old, variable in zip(layer.weights, new.weights, strict=True):
            variable.assign(_cut(old.numpy(), came, stay))
            if isinstance(old.constraint, Mask):
                _hold(variable, _cut(old.constraint.keep.numpy(), came, stay))
    return small


def to_csr(model):
    """Return the kernels of a model of Dense layers as sparse matrices.

    Keras has no layer that computes with them: ``matrix @ x + bias`` does, outside of the model.

    Args:
      model: a built ``keras.Model``.

    Returns:
      A dict from the layer's name to a ``scipy.sparse.csr_array`` of shape (outputs, inputs), which is
      the kernel transposed.

    Raises:
      ValueError: as :func:`prunable`, or if the model has a convolution, whose kernel is no matrix.

    Example:
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, name="hidden")])
      >>> to_csr(model)["hidden"].shape
      (2, 3)
    """
    kernels = prunable(model)
    for name, kernel in kernels.items():
        if kernel.ndim != 2:
            raise ValueError(f"layer {name!r} is a convolution: only kernels of Dense are matrices")
    return {name: csr_array(kernel.T) for name, kernel in kernels.items()}


def _inner_layers(model):
    for layer in model.layers:
        yield from _inner_layers(layer) if isinstance(layer, keras.Model) else [layer]


def _kernels(model):
    require_kind("model", model, keras.Model, "a keras.Model")
    kernels, owners = {}, {}
    for layer in _inner_layers(model):
        if not isinstance(layer, _PRUNABLE):
            continue
        name = layer.name
        if not layer.built:
            raise ValueError(f"layer {name!r} has no weights yet: give the model an Input or call it once")
        kernel = layer.kernel
        if not isinstance(kernel, keras.Variable) or not keras.backend.is_float_dtype(kernel.dtype):
            raise ValueError(f"layer {name!r} is quantized or has LoRA: only plain kernels can be pruned")
        if name in kernels:
            raise ValueError(f"layer {name!r} is used twice, or two layers have this name: prune one by one")
        if (owner := owners.setdefault(id(kernel), name)) != name:
            raise ValueError(f"layers {owner!r} and {name!r} share a kernel: each must have its own")
        kernels[name] = kernel
    if not kernels:
        raise ValueError(f"model {model.name!r} has no Dense, Conv1D, Conv2D or Conv3D layer to prune")
    return kernels


def _checked_mask(name, mask, kernels):
    if name not in kernels:
        raise ValueError(f"masks names {name!r}, which is unknown: it must be one of {', '.join(kernels)}")
    kernel = kernels[name]
    try:
        mask = np.asarray(mask)
    except ValueError:  # lists of several lengths
        mask = np.array(None)
    if mask.shape != tuple(kernel.shape):
        raise ValueError(f"masks[{name!r}] has shape {mask.shape}: it must be {tuple(kernel.shape)}")
    if not np.isin(mask, (0, 1)).all():
        raise ValueError(f"masks[{name!r}] has entries other than 0 and 1: only these are allowed")
    if not np.isfinite(kernel.numpy()).all():
        raise ValueError(
            f"the kernel of {name!r} holds a number that is not finite (nan or inf): all must be"
        )
    return mask.astype(bool)


def _hold(variable, mask):
    """Set to zero what the mask leaves out, now and after every update to come."""
    if isinstance(variable.constraint, Mask):
        variable.constraint.keep.assign(variable.constraint.keep.numpy() & mask)
    else:
        variable.constraint = Mask(mask, before=variable.constraint)
    variable.assign(keras.ops.where(mask, variable, keras.ops.zeros_like(variable)))


def _cut(x, came, stay):
    """Take what is left out of a kernel (inputs and outputs last) or of an array with an entry per unit."""
    return x[..., came, :][..., stay] if x.ndim > 1 else x[stay]


def _flow(model, keep):
    """Check the arguments; return for each layer the indices of the channels left that come in and go out."""
    if not isinstance(model, keras.Sequential):
        raise ValueError(f"model is a {type(model).__name__}: it must be a keras.Sequential")
    _kernels(model)
    require_kind("keep", keep, dict, "a dict from names of layers to indices")
    places = [i for i, layer in enumerate(model.layers) if type(layer) in _UNITS]
    first, last = min(places, default=0), max(places, default=0)
    known = [model.layers[i].name for i in places[:-1]]
    if unknown := [name for name in keep if name not in known]:
        allowed = f"{', '.join(known) or 'none'}, the layers with units before the last"
        raise ValueError(f"keep names {unknown[0]!r}: it must be of {allowed}")
    flow, came, shape = [], _ALL, model.input_shape
    for i, layer in enumerate(model.layers):
        _check_layer(layer, len(shape), between=first <= i < last)
        stay = came
        if type(layer) in _UNITS:
            stay = _indices(layer, keep[layer.name]) if layer.name in keep else _ALL
        elif type(layer) is layers.Flatten and came is not _ALL:
            # Channels are last, so each position of what is flattened holds all of them.
            stay = np.add.outer(np.arange(prod(shape[1:-1])) * shape[-1], came).ravel()
        flow.append((came, stay))
        came, shape = stay, layer.compute_output_shape(shape)
    return flow


def _check_layer(layer, axes, between):
    name, kind = layer.name, type(layer)
    if kind not in _CHAIN:
        allowed = ", ".join(allowed.__name__ for allowed in _CHAIN)
        raise ValueError(f"layer {name!r} is a {kind.__name__}: it must be one of {allowed}")
    if kind is layers.Reshape and between:
        raise ValueError(f"layer {name!r} is a Reshape: it must not stand between layers with units")
    turned = kind is layers.BatchNormalization and layer.axis % axes != axes - 1
    if turned or getattr(layer, "data_format", None) == "channels_first":
        raise ValueError(f"layer {name!r} is for channels_first: its channels must be last")
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"layer {name!r} has groups={layer.groups}: it must be 1")
    activation = layer if kind in _ACTIVATIONS else getattr(layer, "activation", None)
    if between and activation and np.any(activation(keras.ops.zeros((1, 2)))):
        raise ValueError(f"the activation of layer {name!r} is not zero at zero: silent units would speak")


def _indices(layer, keep):
    n = layer.kernel.shape[-1]
    try:
        indices = np.asarray(keep)
    except ValueError:  # lists of several lengths
        indices = np.array(None)
    good = indices.ndim == 1 and indices.size and indices.dtype.kind in "iu"
    if not good or not set(indices) <= set(range(n)) or len(set(indices)) < len(indices):
        raise ValueError(f"keep[{layer.name!r}]={keep!r} is not allowed: give different indices below {n}")
    return np.sort(indices)
