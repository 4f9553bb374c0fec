"""Costs and low-rank factors of PyTorch models."""

import copy
import math

import pandas as pd
import torch
from torch import nn
from torch.nn.utils import parametrize, skip_init

from dlopt_helpers._require import require_kind
from dlopt_helpers.bridges.pruning_torch import _as_batch
from dlopt_helpers.structure import Cost, conv_cost, linear_cost, low_rank

_CONVS = nn.Conv1d | nn.Conv2d | nn.Conv3d
_NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def costs(model, x):
    """Return what each layer with parameters costs for one example, in the order of the model.

    Counted are linear layers, convolutions and batch norms, whose multiplications a runtime merges into
    the convolution before it: they have parameters, and no multiply-accumulates.

    Args:
      model: any module of such layers and of others without parameters. It is run once, in evaluation
        mode, and stays as it is.
      x: examples, a tensor or NumPy array whose first axis counts them; one is enough.

    Returns:
      A data frame indexed by the layer's name: ``kind``, ``parameters`` and ``macs``. A layer that is called
      twice computes twice, and has its parameters once.

    Raises:
      ValueError: if ``model`` or ``x`` is none; naming the layer, if its parameters are of another kind or
        are shared between layers.

    Example:
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> costs(model, torch.zeros(1, 3))
           kind  parameters  macs
      0  Linear           8     6
      2  Linear           3     2
    """
    require_kind("model", model, nn.Module, "an nn.Module")
    x = _as_batch(x)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | _CONVS | _NORMS)}
    _require_counted(model, layers)
    rows = {name: [_kind(layer), _parameters(layer), 0] for name, layer in layers.items()}

    def count(name):
        def hook(layer, inputs, output):
            rows[name][2] += _cost(layer, output.shape[1:]).macs

        return hook

    hooks = [layer.register_forward_hook(count(name)) for name, layer in layers.items()]
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            model.eval()(x[:1])
    except RuntimeError as error:
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must be what model takes: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode
        for hook in hooks:
            hook.remove()
    return pd.DataFrame.from_dict(rows, orient="index", columns=["kind", "parameters", "macs"])


def _cost(layer, shape):
    """Return the cost of a layer whose output has ``shape`` for one example."""
    bias = getattr(layer, "bias", None) is not None
    if isinstance(layer, nn.Linear):
        cost = linear_cost(layer.in_features, layer.out_features, bias)
        return cost._replace(macs=cost.macs * math.prod(shape[:-1]))  # at each position of a sequence
    if isinstance(layer, _CONVS):
        channels, kernel = (layer.in_channels, layer.out_channels), math.prod(layer.kernel_size)
        return conv_cost(*channels, kernel, math.prod(shape[1:]), layer.groups, bias)
    return Cost(2 * layer.num_features * layer.affine, 0)


def _parameters(layer):
    return _cost(layer, (1, 1)).parameters


def _kind(layer):
    return parametrize.type_before_parametrizations(layer).__name__


def _require_counted(model, layers):
    """Raise unless every parameter belongs to exactly one of ``layers``."""
    seen = {}
    for name, module in model.named_modules():
        owner = f".{name}".split(".parametrizations.")[0][1:]  # of a masked weight: the layer that it is of
        for parameter in module.parameters(recurse=False):
            if owner not in layers:
                raise ValueError(f"layer {name!r} is {type(module).__name__}: what it costs is not known")
            if seen.setdefault(id(parameter), owner) != owner:
                raise ValueError(f"layer {owner!r} shares a parameter with {seen[id(parameter)]!r}")


# --- low rank ------------------------------------------------------------------------------------


def factorise(model, ranks):
    r"""Return a copy of ``model`` in which some layers are two, of lower rank.

    .. math:: y = W x + b \quad\longrightarrow\quad y = A\,(B x) + b

    A convolution becomes one with :math:`r` output channels and a pointwise one behind it; its weight
    counts as a matrix of a row for each output channel.

    Args:
      model: any module; it stays as it is.
      ranks: dict from names of ``nn.Linear`` and ``nn.Conv1d`` layers (``groups=1``) to their rank, a whole
        number from 1 to that of the full matrix. Layers left out stay.

    Returns:
      A model with new parameters: the optimiser must be made anew. Each factorised layer is an
      ``nn.Sequential`` of its name.

    Raises:
      ValueError: naming the layer, if there is none of that name and kind, its weight is shared, not
        finite or computed from other tensors, or its rank is out of range.

    Example:
      >>> model = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 1))
      >>> factorise(model, {"0": 2})[0]
      Sequential(
        (0): Linear(in_features=6, out_features=2, bias=False)
        (1): Linear(in_features=2, out_features=4, bias=True)
      )

    References:
      Denton et al. 2014, "Exploiting linear structure within convolutional networks"; Zhang et al. 2016,
      "Accelerating very deep convolutional networks".
    """
    require_kind("model", model, nn.Module, "an nn.Module")
    require_kind("ranks", ranks, dict, "a dict from names of layers to ranks")
    layers = {n: m for n, m in model.named_modules() if n and isinstance(m, nn.Linear | nn.Conv1d)}
    pairs = {}
    for name, rank in ranks.items():
        if name not in layers:
            allowed = f"it must be an nn.Linear or nn.Conv1d, one of {', '.join(layers) or 'none'}"
            raise ValueError(f"ranks names {name!r}: {allowed}")
        _require_own(model, name, layers[name])
        try:
            pairs[name] = _pair(layers[name], rank)
        except ValueError as error:
            raise ValueError(f"ranks: layer {name!r} cannot be factorised: {error}") from None
    small = copy.deepcopy(model)
    for name, pair in pairs.items():
        small.set_submodule(name, pair)
    return small


@torch.no_grad()
def _pair(layer, rank):
    """Return the two layers that stand for one."""
    a, b = low_rank(layer.weight.flatten(1), rank)
    rank = a.shape[1]
    place = {"dtype": a.dtype, "device": a.device}
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first = skip_init(nn.Linear, layer.in_features, rank, bias=False, **place)
        second = skip_init(nn.Linear, rank, layer.out_features, bias=bias, **place)
    else:
        same = {key: getattr(layer, key) for key in ("stride", "padding", "dilation", "padding_mode")}
        first = skip_init(nn.Conv1d, layer.in_channels, rank, layer.kernel_size, bias=False, **same, **place)
        second = skip_init(nn.Conv1d, rank, layer.out_channels, 1, bias=bias, **place)
    first.weight.copy_(b.view_as(first.weight))
    second.weight.copy_(a.view_as(second.weight))
    if bias:
        second.bias.copy_(layer.bias)
    return nn.Sequential(first, second).train(layer.training).requires_grad_(layer.weight.requires_grad)


def _require_own(model, name, layer):
    if parametrize.is_parametrized(layer) or not isinstance(layer.weight, nn.Parameter):
        raise ValueError(f"the weight of layer {name!r} is computed from other tensors: make it plain first")
    if getattr(layer, "groups", 1) != 1:
        raise ValueError(f"layer {name!r} has groups={layer.groups}: only groups=1 makes one matrix")
    names = [n for n, p in model.named_parameters(remove_duplicate=False) if p is layer.weight]
    if len(names) > 1:
        raise ValueError(f"the weight of layer {name!r} is shared by {', '.join(names)}: each needs its own")
