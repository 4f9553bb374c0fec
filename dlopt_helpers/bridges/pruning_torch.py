"""Masks and removal for PyTorch models."""

import copy
import warnings

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from dlopt_helpers._require import require_array, require_kind


class Mask(nn.Module):
    """Multiply a parameter by a mask of ones and zeros, which is saved with the model."""

    def __init__(self, mask):
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, w):
        return w * self.mask


def prunable(model):
    """Return a copy of each linear and convolution layer's weight, by its name in ``named_modules()``.

    Biases and normalisation are never pruned. Weights that a mask holds at zero come as zeros.

    Raises:
      ValueError: if ``model`` is no ``nn.Module`` or holds no such layer.

    Example:
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> {name: tuple(w.shape) for name, w in prunable(model).items()}
      {'0': (2, 3), '2': (1, 2)}
    """
    return {name: layer.weight.detach().clone() for name, layer in _prunable_layers(model).items()}


def prune(model, masks):
    r"""Put a mask on weights, to stay there: :math:`w \leftarrow m \odot w` now and after each step.

    The mask is a parametrization, so it holds whatever the optimiser does. The ``Parameter`` stays the
    same object: an optimiser made before goes on. Its pruned entries are set to zero, too, and their
    gradients are zero. Masks multiply: what is pruned stays pruned. A mask may prune a whole layer,
    which then passes on its biases alone: the model gives one answer to every input.

    A pruned model is saved by its ``state_dict()``, not whole; to load it, prune a new model with masks
    of ones first.

    Args:
      model: any module; changed in place.
      masks: dict from names of :func:`prunable` layers to arrays of ones and zeros (PyTorch or NumPy)
        of the shape of the weight. Other layers stay as they are.

    Returns:
      ``model``.

    Raises:
      ValueError: before anything is changed, if a name is unknown, a mask has another shape or another
        number than 0 and 1, a weight is not finite, is shared by two layers (or its layer appears
        twice), or is computed from other tensors, as weight norm does.

    Example:
      >>> from dlopt_helpers.pruning import magnitude_mask, sparsity
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> masks = {name: magnitude_mask(w, threshold=9.0) for name, w in prunable(model).items()}
      >>> sparsity(*prunable(prune(model, masks)).values())
      1.0
    """
    require_kind("masks", masks, dict, "a dict from names of layers to arrays")
    layers, owners, checked = _prunable_layers(model), _owners(model), {}
    for name, mask in masks.items():
        if name not in layers:
            raise ValueError(f"masks names {name!r}: it must be a prunable layer, one of {', '.join(layers)}")
        _require_own(name, layers[name], "weight", owners)
        checked[name] = _as_mask(name, mask, layers[name].weight)
    for name, mask in checked.items():
        _hold(layers[name], "weight", mask)
    return model


def make_permanent(model):
    """Take the masks off and leave plain parameters with zeros in them.

    Each ``Parameter`` stays the same object. From now on training moves the zeros, too.

    Args:
      model: any module; changed in place.

    Returns:
      ``model``.

    Raises:
      ValueError: before anything is changed, if a masked parameter has another parametrization, too.

    Example:
      >>> model = prune(nn.Sequential(nn.Linear(2, 1)), {"0": torch.tensor([[1, 0]])})
      >>> list(make_permanent(model).state_dict())
      ['0.weight', '0.bias']
    """
    _require_module(model)
    held = [(name, layer, key) for name, layer in model.named_modules() for key in _masked(layer)]
    for name, layer, key in held:
        _require_plain(name, layer, key)
    for _, layer, key in held:
        _zero_hidden(layer.parametrizations[key])
        _own_class(layer)
        parametrize.remove_parametrizations(layer, key, leave_parametrized=False)
        if "bias" in layer._parameters:  # last again: optimisers save their state in this order
            layer._parameters["bias"] = layer._parameters.pop("bias")
    return model


def mask_units(model, keep):
    """Return a copy in which all units (neurons or channels) but those in ``keep`` are silent.

    Weights into a silent unit, its bias and the scale and shift of a batch norm after it are held at
    zero by masks, in retraining, too. So is what it passes on: the layers in between map 0 to 0.

    Args:
      model: a flat ``nn.Sequential`` of ``Linear``, ``Conv1d``, ``Conv2d`` (``groups=1``), batch norm,
        pooling, ``Flatten``, ``Dropout`` and elementwise functions with ``f(0) = 0``, for inputs that
        come in batches. An ``Unflatten`` may stand before the first layer with units.
      keep: dict from layer names to the indices of the units that stay, as
        :func:`~dlopt_helpers.pruning.best_units` returns them. Layers left out keep all.

    Raises:
      ValueError: naming the layer, if ``model`` is another, ``keep`` names no layer with units or the
        last one (its units are the outputs), indices are missing, out of range or given twice, or
        a parameter is refused as by :func:`prune`.

    Example:
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> mask_units(model, {"0": [1]})[0].bias[0].item()
      0.0
    """
    plan, masked = _plan(model, keep), copy.deepcopy(model)
    for name, (alive, _) in plan.items():
        if not alive.all():
            _silence(masked.get_submodule(name), alive)
    return masked


def remove_units(model, keep):
    """Return a smaller model of the units in ``keep``, with the outputs of ``mask_units(model, keep)``.

    Outputs are equal in evaluation mode; dropout draws other numbers. Masks that ``model`` has go on to
    hold what is left of their zeros. Layers keep their names, dtype, device and mode; the optimiser
    must be made anew.

    Args:
      model: as for :func:`mask_units`; it stays as it is.
      keep: as for :func:`mask_units`.

    Raises:
      ValueError: as :func:`mask_units` does.

    Example:
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> remove_units(model, {"0": [1]})
      Sequential(
        (0): Linear(in_features=3, out_features=1, bias=True)
        (1): ReLU()
        (2): Linear(in_features=1, out_features=1, bias=True)
      )
    """
    plan, small = _plan(model, keep), copy.deepcopy(model)
    for name, stay in plan.items():
        _cut(small.get_submodule(name), *stay)
    return small


class CSRLinear(nn.Module):
    """A linear layer that stores only the weights that are not zero, by rows; for inference.

    ``F.linear`` with a CSR weight takes three to five times as long for a batch as the product here.
    """

    def __init__(self, linear):
        super().__init__()
        require_kind("linear", linear, nn.Linear, "an nn.Linear")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta", UserWarning)
            csr = linear.weight.detach().to_sparse_csr()
        # Plain buffers, as PyTorch cannot deep-copy a CSR tensor. MKL would convert 64-bit indices anew
        # in each call.
        self.register_buffer("rows", csr.crow_indices().int())
        self.register_buffer("columns", csr.col_indices().int())
        self.register_buffer("values", csr.values())
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().clone())
        self.shape = tuple(csr.shape)

    def forward(self, x):
        w = torch.sparse_csr_tensor(self.rows, self.columns, self.values, self.shape, check_invariants=False)
        y = (w @ x.reshape(-1, self.shape[1]).T).T
        y = y if self.bias is None else y + self.bias
        return y.reshape(*x.shape[:-1], self.shape[0])


def to_csr(model):
    """Return a copy that stores the weights of each ``nn.Linear`` in compressed sparse rows (CSR).

    Args:
      model: a flat ``nn.Sequential`` without convolutions, in float32 or float64.

    Raises:
      ValueError: naming the layer, if ``model`` is another or holds no ``nn.Linear``.

    Example:
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> to_csr(prune(model, {"0": torch.eye(2, 3)}))[0].values.numel()
      2
    """
    _require_sequential(model)
    layers = _prunable_layers(model)
    for name, layer in layers.items():
        kind = parametrize.type_before_parametrizations(layer)
        if kind is not nn.Linear or "." in name:
            raise ValueError(f"layer {name!r} is {kind.__name__}: only nn.Linear in a flat model becomes CSR")
    sparse = copy.deepcopy(model)
    for name, layer in layers.items():
        sparse.set_submodule(name, CSRLinear(layer))
    return sparse


def _require_module(model):
    require_kind("model", model, nn.Module, "an nn.Module")


def _as_batch(x, empty=False):
    """Return examples as a tensor of PyTorch.

    Raises:
      ValueError: if ``x`` is no tensor and no array of finite numbers, or holds none (if not ``empty``).
    """
    if not torch.is_tensor(x) and not (empty and isinstance(x, np.ndarray) and not x.size):
        require_array("x", x, "a tensor or an array of finite numbers")
    x = torch.as_tensor(x)
    if not (x.numel() or empty):
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must hold at least one example")
    return x


def _prunable_layers(model):
    _require_module(model)
    kinds = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d
    named = model.named_modules(remove_duplicate=False)
    layers = {name: layer for name, layer in named if isinstance(layer, kinds)}
    if not layers:
        raise ValueError(
            "model holds no nn.Linear, nn.Conv1d, nn.Conv2d or nn.Conv3d: it must, or nothing can be pruned"
        )
    return layers


def _owners(model):
    """Return all names of each tensor, by its id."""
    owners = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            owners.setdefault(id(tensor), []).append(name)
    return owners


def _require_plain(name, layer, key):
    if parametrize.is_parametrized(layer, key):
        plain = [type(p) for p in layer.parametrizations[key]] == [Mask]
    else:
        plain = key in layer._parameters or key in layer._buffers
    if not plain:
        why = "is computed from other tensors (as by weight norm or torch.nn.utils.prune)"
        raise ValueError(f"the {key} of layer {name!r} {why}: make it a plain parameter first")


def _require_own(name, layer, key, owners):
    """Raise unless a tensor is plain or masked, belongs to this layer alone and is finite."""
    _require_plain(name, layer, key)
    masked = parametrize.is_parametrized(layer, key)
    tensor = layer.parametrizations[key].original if masked else getattr(layer, key)
    if tensor is None:
        return
    if len(names := owners[id(tensor)]) > 1:
        raise ValueError(f"the {key} of layer {name!r} is shared by {', '.join(names)}: each needs its own")
    if not tensor.isfinite().all():
        raise ValueError(f"the {key} of layer {name!r} holds a number that is not finite (nan or inf)")


def _as_tensor(x):
    try:
        return torch.as_tensor(x).detach()
    except (TypeError, ValueError, RuntimeError):  # PyTorch raises each of them for what holds no numbers
        return torch.tensor(torch.nan)


def _as_mask(name, mask, w):
    mask = _as_tensor(mask)
    if mask.shape != w.shape:
        shapes = f"the shape {tuple(mask.shape)}: it must be that of the weight, {tuple(w.shape)}"
        raise ValueError(f"masks[{name!r}] has {shapes}")
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError(f"masks[{name!r}] holds other numbers than 0 and 1: only these are allowed")
    return mask.to(w)


def _masked(layer):
    """Return the names of the parameters that a mask is on."""
    held = getattr(layer, "parametrizations", {}).items()
    return [key for key, chain in held if any(isinstance(p, Mask) for p in chain)]


@torch.no_grad()
def _hold(layer, key, mask):
    if not parametrize.is_parametrized(layer, key):
        _own_class(layer)
        parametrize.register_parametrization(layer, key, Mask(torch.ones_like(mask)))
    layer.parametrizations[key][0].mask.mul_(mask)
    _zero_hidden(layer.parametrizations[key])


def _own_class(layer):
    """Part a layer from its deep copies: they share the class in which PyTorch notes parametrizations."""
    if parametrize.is_parametrized(layer):
        kind = type(layer)
        layer.__class__ = type(kind.__name__, kind.__bases__, dict(vars(kind)))


@torch.no_grad()
def _zero_hidden(held):
    held.original.masked_fill_(held[0].mask == 0, 0)


# Each layer that units can be followed through, with where it may stand: before the first layer with
# units (None), after a linear layer ("units"), after one or two-dimensional channels, or behind a
# Flatten of these ("flat"). Elsewhere it would mix units, even where the shapes happen to fit.
_ANYWHERE = {None, "units", "1d", "2d", "flat"}
_POINTWISE = [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Hardswish, nn.Identity, nn.Dropout]
_POOLS_1D = [nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d]
_POOLS_2D = [nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d]
_PLACES = {
    **dict.fromkeys([*_POINTWISE, nn.Flatten], _ANYWHERE),
    nn.Unflatten: {None},
    nn.Linear: {None, "units", "flat"},
    nn.BatchNorm1d: _ANYWHERE - {"2d"},
    nn.BatchNorm2d: {None, "2d"},
    **{kind: {None, "1d"} for kind in (nn.Conv1d, *_POOLS_1D)},
    **{kind: {None, "2d"} for kind in (nn.Conv2d, *_POOLS_2D)},
}
_AFTER = {nn.Linear: "units", nn.Conv1d: "1d", nn.Conv2d: "2d"}
_SIZES = {
    nn.Linear: ("out_features", "in_features"),
    **dict.fromkeys([nn.Conv1d, nn.Conv2d], ("out_channels", "in_channels")),
    **dict.fromkeys([nn.BatchNorm1d, nn.BatchNorm2d], ("num_features",)),
}
_TENSORS = ["weight", "bias"]
_STATISTICS = ["running_mean", "running_var"]


def _require_sequential(model):
    if type(model) is not nn.Sequential:
        raise ValueError(f"model is {type(model).__name__}: it must be a flat nn.Sequential")


def _plan(model, keep):
    """Return which units and which inputs of each layer with parameters stay, as boolean tensors."""
    _require_sequential(model)
    owners, plan, place, alive = _owners(model), {}, None, torch.ones(1, dtype=bool)
    chosen = _chosen(model, keep)
    for name, layer in model._modules.items():
        kind = _kind(name, layer, place)
        if kind in _SIZES:
            for key in _TENSORS if kind in _AFTER else _TENSORS + _STATISTICS:
                _require_own(name, layer, key, owners)
            inputs = _spread(name, getattr(layer, _SIZES[kind][-1]), alive, place)
            alive = chosen.get(name, alive)
            plan[name] = (alive, inputs) if kind in _AFTER else (inputs, None)
        elif kind is nn.Flatten and place in ("1d", "2d"):
            place = "flat"
        place = _AFTER.get(kind, place)
    return plan


def _kind(name, layer, place):
    """Return the type of a layer; raise if units cannot be followed through it."""
    kind = parametrize.type_before_parametrizations(layer)
    if kind not in _PLACES:
        raise ValueError(f"layer {name!r} is {kind.__name__}: units cannot be followed through it")
    if place not in _PLACES[kind]:
        after = {"units": "Linear", "1d": "Conv1d", "2d": "Conv2d", "flat": "Flatten"}[place]
        raise ValueError(f"layer {name!r} is {kind.__name__} after {after}: it would mix the units")
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"layer {name!r} has groups={layer.groups}: it must be 1")
    if kind is nn.Flatten and (layer.start_dim, layer.end_dim) != (1, -1):
        raise ValueError(f"layer {name!r} is {layer}: it must flatten all axes but the first")
    return kind


def _chosen(model, keep):
    """Return for each layer with units which of them stay, as a boolean tensor."""
    kinds = {name: parametrize.type_before_parametrizations(layer) for name, layer in model._modules.items()}
    units = {name: _SIZES[kind][0] for name, kind in kinds.items() if kind in _AFTER}
    sizes = {name: getattr(model._modules[name], size) for name, size in units.items()}
    *known, last = sizes or [None]
    require_kind("keep", keep, dict, "a dict from names of layers to indices")
    for name in keep:
        if name == last:
            raise ValueError(f"keep names layer {name!r}, whose units are the outputs of the model: keep all")
        if name not in known:
            raise ValueError(f"keep names {name!r}: it must be a layer with units, one of {', '.join(known)}")
    return {name: _alive(name, keep.get(name, range(n)), n) for name, n in sizes.items()}


def _alive(name, indices, n):
    allowed = f"one or more whole numbers in [0, {n}), none twice"
    i = _as_tensor(indices)
    whole = i.ndim == 1 and len(i) and not (i.is_floating_point() or i.dtype is torch.bool)
    if not whole or i.min() < 0 or i.max() >= n or len(i.unique()) < len(i):
        raise ValueError(f"keep[{name!r}]={indices!r} is not allowed: it must be {allowed}")
    return torch.zeros(n, dtype=bool).index_fill(0, i.long().cpu(), True)


def _spread(name, n, alive, place):
    """Return which of ``n`` inputs come from units that stay: each channel flattens to some in a row."""
    each, rest = divmod(n, len(alive))
    if rest or (each != 1 and place in ("units", "1d", "2d")):
        raise ValueError(f"layer {name!r} takes {n} inputs from {len(alive)} units: these must go together")
    return alive.repeat_interleave(each)


@torch.no_grad()
def _silence(layer, alive):
    for key in _TENSORS:
        if (w := getattr(layer, key)) is not None:
            _hold(layer, key, alive.to(w).view(-1, *[1] * (w.ndim - 1)).expand_as(w))
    if getattr(layer, "running_mean", None) is not None:
        layer.running_mean[~alive.to(layer.running_mean.device)] = 0  # for a batch norm without scale


def _cut(layer, alive, inputs):
    """Leave only the units ``alive`` and what comes from ``inputs``."""

    def part(x):
        return (x[alive] if x.ndim == 1 else x[alive][:, inputs]).detach().clone()

    masks = {key: part(layer.parametrizations[key][0].mask) for key in _masked(layer)}
    make_permanent(layer)
    for key, w in list(layer.named_parameters(recurse=False)):
        setattr(layer, key, nn.Parameter(part(w), w.requires_grad))
    for key in _STATISTICS:
        if getattr(layer, key, None) is not None:
            setattr(layer, key, part(getattr(layer, key)))
    for size, stay in zip(_SIZES[type(layer)], (alive, inputs), strict=False):
        setattr(layer, size, int(stay.sum()))
    for key, mask in masks.items():
        if not mask.all():
            _hold(layer, key, mask)
