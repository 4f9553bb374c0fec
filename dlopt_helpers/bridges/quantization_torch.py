"""Quantized weights and inputs for PyTorch models.

A *rule* is a function from a weight to what is left of it, such as
``lambda w: fake_quantize(w, symmetric(*min_max(w, axis=0), bits=4))``, or a dict from names of layers to
such functions (mixed precision). Layers that a dict leaves out keep their weights, and biases are never
quantized: they are few.
"""

import copy
from dataclasses import replace

import torch
from torch import nn
from torch.nn.utils import parametrize

from dlopt_helpers._require import require_kind
from dlopt_helpers.bridges._rules import apply_rule, naming, rules_of
from dlopt_helpers.bridges.pruning_torch import (
    Mask,
    _as_batch,
    _own_class,
    _owners,
    _prunable_layers,
    _require_sequential,
)
from dlopt_helpers.quantization import Quantizer, bias_correction, equalising_factors, fake_quantize


class Quantized(nn.Module):
    """Show what a rule leaves of a weight; training moves the weight underneath."""

    def __init__(self, name, rule):
        super().__init__()
        self.name, self.rule = name, rule

    def forward(self, w):
        # A run that has diverged shall end as others do, by its loss, and not by an error of a range.
        return _left(self.name, self.rule, w) if w.isfinite().all() else w


class QuantizedInput:
    """A forward pre-hook that rounds what comes into a layer."""

    def __init__(self, quantizer):
        self.quantizer = quantizer

    def __call__(self, layer, inputs):
        x, *rest = inputs
        scale, zero_point = (
            torch.as_tensor(number, dtype=x.dtype, device=x.device)
            for number in (self.quantizer.scale, self.quantizer.zero_point)
        )
        return fake_quantize(x, replace(self.quantizer, scale=scale, zero_point=zero_point)), *rest


def quantize_weights(model, rule):
    """Return a copy whose weights are what the rule leaves of them.

    Of a model in :func:`quantize_in_training` the weights underneath are quantized.

    Args:
      model: any module with linear or convolution layers.
      rule: a function from a weight (a tensor without gradient) to a tensor or NumPy array of its shape,
        or a dict of such functions.

    Raises:
      ValueError: if ``rule`` names an unknown layer, refuses a weight or returns another shape, or if a
        weight is shared, not finite or computed from other tensors.

    Example:
      >>> from dlopt_helpers.quantization import min_max, symmetric
      >>> model = nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 1))
      >>> def rule(w): return fake_quantize(w, symmetric(*min_max(w), bits=2))
      >>> len(quantize_weights(model, {"0": rule})[0].weight.unique())
      3
    """
    quantized = _checked_copy(model)
    layers = _layers(quantized)
    rules = rules_of(rule, layers)
    _settle(layers, {name: _left(name, one, _underneath(layers[name])) for name, one in rules.items()})
    return quantized


def quantize_in_training(model, rule):
    r"""Compute with :math:`\hat w = rule(w)` from now on, while training updates the :math:`w` underneath.

    The rule is applied in each forward pass, so a range in it follows the weights. With
    :func:`~dlopt_helpers.quantization.fake_quantize` the gradient goes straight through to :math:`w`.
    A second call replaces the rule of the first. Masks of
    :func:`~dlopt_helpers.bridges.pruning_torch.prune` stay.

    Such a model is saved by its ``state_dict()``, not whole; to load it, apply the rule to a new model
    first. Weights that are no longer finite pass unchanged, so that a run that diverges ends as one.

    Args:
      model: any module with linear or convolution layers; changed in place. Each ``Parameter`` stays the
        same object: an optimiser made before goes on.
      rule: as in :func:`quantize_weights`, but of a tensor with gradient.

    Returns:
      ``model``.

    Raises:
      ValueError: as :func:`quantize_weights`, before anything is changed.

    Example:
      >>> from dlopt_helpers.quantization import min_max, symmetric
      >>> model = nn.Sequential(nn.Linear(8, 10))
      >>> def rule(w): return fake_quantize(w, symmetric(*min_max(w), bits=2))
      >>> len(quantize_in_training(model, rule)[0].weight.unique())
      3
    """
    layers = _layers(model)
    rules = rules_of(rule, layers)
    for name, one in rules.items():
        _left(name, one, _underneath(layers[name]))
    for name, layer in layers.items():
        _uncover(layer)
        if name in rules:
            _own_class(layer)
            quantized = Quantized(name, rules[name])
            parametrize.register_parametrization(layer, "weight", quantized, unsafe=True)
    return model


def make_permanent(model):
    """Let the quantized weights be the weights, and train them as any others from now on.

    Args:
      model: any module; changed in place. Each ``Parameter`` stays the same object.

    Returns:
      ``model``.

    Example:
      >>> model = nn.Sequential(nn.Linear(2, 1))
      >>> list(make_permanent(quantize_in_training(model, torch.round)).state_dict())
      ['0.weight', '0.bias']
    """
    layers = _layers(model)
    held = {name: _chain(layer)[-1] for name, layer in layers.items() if _is_quantized(layer)}
    _settle(layers, {name: _left(name, last.rule, _underneath(layers[name])) for name, last in held.items()})
    return model


def layer_inputs(model, x):
    """Return what comes into each linear and convolution layer for a batch, in evaluation mode.

    Args:
      model: any module; it stays as it is.
      x: a batch of inputs, a tensor or NumPy array.

    Returns:
      A dict from names of layers, in the order of their calls, to tensors without gradient.

    Raises:
      ValueError: if ``x`` is empty, or as :func:`quantize_weights` about the weights.

    Example:
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> {name: tuple(a.shape) for name, a in layer_inputs(model, torch.ones(5, 3)).items()}
      {'0': (5, 3), '2': (5, 2)}
    """
    return {name: came for name, (came, _) in _watched(model, x).items()}


def quantize_inputs(model, quantizers):
    """Return a copy in which what comes into layers is fake-quantized.

    Args:
      model: any module with linear or convolution layers.
      quantizers: dict from names of layers to a :class:`~dlopt_helpers.quantization.Quantizer`, with one
        scale or some that broadcast against the inputs. Layers that had one lose it to the new one.

    Raises:
      ValueError: if a name is unknown, a value is no quantizer, or as :func:`quantize_weights` about the
        weights.

    Example:
      >>> from dlopt_helpers.quantization import affine, min_max
      >>> model, x = nn.Sequential(nn.Linear(3, 2)), torch.rand(64, 3)
      >>> came = layer_inputs(model, x)
      >>> small = quantize_inputs(model, {name: affine(*min_max(a), bits=8) for name, a in came.items()})
      >>> bool((small(x) - model(x)).abs().max() < 0.02)
      True
    """
    quantized = _checked_copy(model)
    layers = _layers(quantized)
    require_kind("quantizers", quantizers, dict, "a dict from names of layers to a Quantizer")
    for name, quantizer in quantizers.items():
        if name not in layers:
            raise ValueError(f"quantizers names {name!r}: it must be one of {', '.join(layers)}")
        if not isinstance(quantizer, Quantizer):
            raise ValueError(f"quantizers[{name!r}]={quantizer!r} is not allowed: it must be a Quantizer")
        hooks = layers[name]._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, QuantizedInput)]:
            del hooks[key]
        layers[name].register_forward_pre_hook(QuantizedInput(quantizer))
    return quantized


@torch.no_grad()
def correct_biases(model, quantized, x):
    """Return a copy of ``quantized`` whose layers give on average what those of ``model`` give.

    Layer after layer, by :func:`~dlopt_helpers.quantization.bias_correction`: each is corrected for what
    comes out of the layers before it, which are already corrected.

    Args:
      model: any module with linear or convolution layers.
      quantized: the same with other weights, as :func:`quantize_weights` or :func:`quantize_inputs`
        return it.
      x: a batch of inputs, a tensor or NumPy array.

    Raises:
      ValueError: if the two models have other layers, a layer has no bias, or as :func:`layer_inputs`.

    Example:
      >>> model, x = nn.Sequential(nn.Linear(3, 2)), torch.rand(64, 3)
      >>> corrected = correct_biases(model, quantize_weights(model, torch.round), x)
      >>> bool(torch.allclose(corrected(x).mean(0), model(x).mean(0), atol=1e-6))
      True
    """
    require_kind("quantized", quantized, nn.Module, "an nn.Module")
    corrected = _checked_copy(quantized)
    layers, wanted = _layers(corrected), _watched(model, x)
    if list(_layers(model)) != list(layers):
        raise ValueError(f"quantized has the layers {', '.join(layers)}: it must have {', '.join(wanted)}")
    for name in wanted:
        if layers[name].bias is None:
            raise ValueError(f"layer {name!r} has no bias to correct: give it one of zeros")
    for name, (_, y) in wanted.items():
        y_hat = _watched(corrected, x)[name][1]
        # The units are on axis 1 of (n, units, length), and last of (n, units).
        with naming(f"layer {name!r}"):
            layers[name].bias += bias_correction(y, y_hat, axis=1 - layers[name].weight.ndim)
    return corrected


@torch.no_grad()
def equalise(model):
    """Return a copy that computes the same, in which neighbouring layers have equal ranges per channel.

    The :func:`~dlopt_helpers.quantization.equalising_factors` of each two neighbours are applied in turn,
    until all are 1 within 0.001 or after 20 rounds.

    Args:
      model: an ``nn.Sequential`` of linear and convolution layers (``groups=1``) with nothing but ReLU
        between two of them, and ``Flatten`` from convolution to linear. Before the first and after the
        last of them any layer may stand.

    Raises:
      ValueError: naming the layers, if there is anything else between them, if a channel is all zeros, or
        as :func:`quantize_weights` about the weights.

    Example:
      >>> model = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 1))
      >>> even = equalise(model)
      >>> bool(torch.allclose(even[0].weight.abs().amax(1), even[2].weight.abs().amax(0), rtol=1e-3))
      True
    """
    even = _checked_copy(model)
    pairs = _neighbours(even)
    for _ in range(20):
        if max((_equalise_pair(*pair) for pair in pairs), default=0) <= 1e-3:
            break
    return even


# --- helpers -------------------------------------------------------------------------------------


def _layers(model):
    """Return the layers with weights by their names; raise unless each weight is its layer's own."""
    layers, owners = _prunable_layers(model), _owners(model)
    for name, layer in layers.items():
        known = all(isinstance(p, Mask | Quantized) for p in _chain(layer))
        if not known or not isinstance(w := _stored(layer), nn.Parameter):
            why = "is computed from other tensors (as by weight norm or torch.nn.utils.prune)"
            raise ValueError(f"the weight of layer {name!r} {why}: make it a plain parameter first")
        if len(names := owners[id(w)]) > 1:
            raise ValueError(
                f"the weight of layer {name!r} is shared by {', '.join(names)}: each needs its own"
            )
    return layers


def _checked_copy(model):
    _layers(model)
    return copy.deepcopy(model)


def _chain(layer):
    """Return what is between the stored weight and the one that the layer computes with."""
    return layer.parametrizations.weight if parametrize.is_parametrized(layer, "weight") else ()


def _stored(layer):
    return _chain(layer).original if _chain(layer) else layer.weight


def _is_quantized(layer):
    return any(isinstance(p, Quantized) for p in _chain(layer))


def _underneath(layer):
    """Return the weight without its quantization, but with its mask."""
    w = _stored(layer).detach()
    for one in _chain(layer):
        w = one(w) if isinstance(one, Mask) else w
    return w


def _left(name, rule, w):
    return torch.as_tensor(apply_rule(name, rule, w)).to(w)


@torch.no_grad()
def _settle(layers, left):
    """Make ``left`` the weights of its layers, and take every quantization off."""
    for name, layer in layers.items():
        if name in left:
            _stored(layer).copy_(left[name])
        _uncover(layer)


def _uncover(layer):
    """Take a quantization off; a mask stays."""
    if not _is_quantized(layer):
        return
    if len(_chain(layer)) > 1:
        del _chain(layer)[-1]
        return
    _own_class(layer)
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
    if "bias" in layer._parameters:  # last again: optimisers save their state in this order
        layer._parameters["bias"] = layer._parameters.pop("bias")


@torch.no_grad()
def _watched(model, x):
    """Return what comes into each layer and what goes out, by its name, in the order of the calls."""
    probe, seen = _checked_copy(model).eval(), {}
    for name, layer in _layers(probe).items():
        # Copies, as a ReLU may work in place.
        hook = lambda _, came, went, name=name: seen.update({name: (came[0].clone(), went.clone())})  # noqa: E731
        layer.register_forward_hook(hook)
    x = _as_batch(x)
    try:
        probe(x.to(next(probe.parameters())) if x.is_floating_point() else x)
    except RuntimeError as error:
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must be what model takes: {error}") from error
    return seen


def _neighbours(model):
    """Return the pairs of layers with weights that follow each other, each with its names."""
    _require_sequential(model)
    layers, pairs, first, between = _layers(model), [], None, []
    for name in model._modules:
        if name not in layers:
            between.append(name)
            continue
        if first is not None:
            _require_passes(model, first, name, between)
            pairs.append((layers[first], layers[name], f"layers {first!r} and {name!r}"))
        first, between = name, []
    return pairs


def _require_passes(model, first, second, between):
    """Raise unless what one layer is divided by can be given back to the next one."""
    a, b = (parametrize.type_before_parametrizations(model._modules[name]) for name in (first, second))
    kinds = [type(model._modules[name]) for name in between]
    flat = a is not nn.Linear and b is nn.Linear
    for name, kind in zip(between, kinds, strict=True):
        if kind is not nn.ReLU and not (flat and kind is nn.Flatten):
            raise ValueError(f"layer {name!r} is {kind.__name__} after {a.__name__}: no factor passes it")
    if (flat and nn.Flatten not in kinds) or not (flat or a is b):
        raise ValueError(f"layer {second!r} is {b.__name__} after {a.__name__}: no factor passes it")
    for name in (first, second):
        if getattr(model._modules[name], "groups", 1) != 1:
            raise ValueError(f"layer {name!r} has groups={model._modules[name].groups}: it must be 1")
        if _is_quantized(model._modules[name]):
            raise ValueError(f"layer {name!r} is quantized: equalise first")


def _equalise_pair(first, second, names):
    """Move the factors from one layer to the next; return how far the largest was from 1."""
    w1, w2 = _stored(first), _stored(second)
    each = w2.shape[1] // len(w1)
    # A channel that was flattened is a row of columns.
    of_channels = w2.reshape(len(w2), len(w1), each) if w2.shape[1:] == (len(w1) * each,) else w2
    with naming(names):
        s = equalising_factors(w1, of_channels)
    w1 /= s.view(-1, *[1] * (w1.ndim - 1))
    if first.bias is not None:
        first.bias /= s
    w2 *= s.repeat_interleave(each).view(1, -1, *[1] * (w2.ndim - 2))
    return (s - 1).abs().max().item()
