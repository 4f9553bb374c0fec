"""Quantized weights for Keras models, and training with them, with the TensorFlow backend.

A *rule* is a function from a kernel to what is left of it, such as
``lambda w: fake_quantize(w, symmetric(*min_max(w, axis=-1), bits=4))``, or a dict from names of layers to
such functions. A kernel's channels are on its last axis. Layers that a dict leaves out keep their kernels,
and biases are never quantized: they are few.
"""

import keras
import tensorflow as tf

from dlopt_helpers.bridges._rules import apply_rule, rules_of
from dlopt_helpers.bridges.pruning_keras import _inner_layers, prunable


class QuantizedCall:
    """Compute a layer's output with what a rule leaves of its kernel; put in the place of ``layer.call``."""

    def __init__(self, layer, rule):
        self.layer, self.rule = layer, rule
        # Keras computes ``kernel`` in a property of the class, which the one in a stand-in shall hide.
        self.kind = type(type(layer).__name__, (type(layer),), {"kernel": None})

    def __call__(self, *args, **kwargs):
        stand_in = object.__new__(self.kind)
        stand_in.__dict__.update(vars(self.layer), kernel=self.kernel())
        return type(self.layer).call(stand_in, *args, **kwargs)

    def kernel(self):
        w = tf.convert_to_tensor(self.layer.kernel)
        return tf.cast(apply_rule(self.layer.name, self.rule, w), w.dtype)


def quantize_weights(model, rule):
    """Return a copy whose kernels are what the rule leaves of them.

    Of a model in :func:`quantize_in_training` the kernels underneath are quantized. Masks of
    :func:`~dlopt_helpers.bridges.pruning_keras.prune` do not come along, the zeros under them do.

    Args:
      model: a built ``keras.Model``.
      rule: a function from a kernel (a NumPy array) to an array of its shape, or a dict of such functions.

    Raises:
      ValueError: if ``rule`` names an unknown layer, refuses a kernel or returns another shape, or as
        :func:`~dlopt_helpers.bridges.pruning_keras.prunable`.

    Example:
      >>> from dlopt_helpers.quantization import fake_quantize, min_max, symmetric
      >>> model = keras.Sequential([keras.Input([8]), keras.layers.Dense(10, name="hidden")])
      >>> def rule(w): return fake_quantize(w, symmetric(*min_max(w), bits=2))
      >>> len(set(prunable(quantize_weights(model, rule))["hidden"].ravel().tolist()))
      3
    """
    kernels = prunable(model)
    left = {name: apply_rule(name, one, kernels[name]) for name, one in rules_of(rule, kernels).items()}
    quantized = keras.models.clone_model(model)
    quantized.set_weights(model.get_weights())
    for layer in _inner_layers(quantized):
        if layer.name in left:
            layer.kernel.assign(left[layer.name])
    return quantized


def quantize_in_training(model, rule):
    r"""Compute with :math:`\hat w = rule(w)` from now on, while training updates the :math:`w` underneath.

    The rule becomes part of the graph that ``fit`` traces, so a range in it follows the weights. With
    :func:`~dlopt_helpers.quantization.fake_quantize` the gradient goes straight through to :math:`w`.
    A second call replaces the rule of the first. Masks of
    :func:`~dlopt_helpers.bridges.pruning_keras.prune` stay.

    Args:
      model: a built ``keras.Model``, changed in place. Give the one that you train, not one inside it.
      rule: as in :func:`quantize_weights`, but of a TensorFlow tensor, also one without a value yet: not
        with :func:`~dlopt_helpers.quantization.kullback_leibler` inside, which computes in NumPy.

    Returns:
      The model.

    Raises:
      ValueError: as :func:`quantize_weights`, before anything is changed.

    Example:
      >>> from dlopt_helpers.quantization import fake_quantize, min_max, symmetric
      >>> model = keras.Sequential([keras.Input([1]), keras.layers.Dense(80, use_bias=False)])
      >>> def rule(w): return fake_quantize(w, symmetric(*min_max(w), bits=2))
      >>> y = quantize_in_training(model, rule)(keras.ops.ones([1, 1]))
      >>> len(set(y.numpy().ravel().tolist()))
      3

    Note:
      The rule is no part of what ``save``, ``save_weights``, ``clone_model`` and ``deepcopy`` keep: they
      take the float kernels. To go on after loading, call this again; to save the quantized weights, call
      :func:`make_permanent` first. A ``tf.function`` of your own that ran before knows no rule: make it
      anew.
    """
    layers = _layers(model)
    calls = {name: QuantizedCall(layers[name], one) for name, one in rules_of(rule, layers).items()}
    for call in calls.values():
        call.kernel()
    _uncover(model, layers)
    for name, call in calls.items():
        layers[name].call = call
    return model


def make_permanent(model):
    """Let the quantized kernels be the kernels, and train them as any others from now on.

    The model is then one of Keras alone: saved, it loads where this package is not installed.

    Args:
      model: a built ``keras.Model``, changed in place.

    Returns:
      The model.

    Example:
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2, name="hidden")])
      >>> model = make_permanent(quantize_in_training(model, keras.ops.round))
      >>> set(prunable(model)["hidden"].ravel().tolist()) <= {-1.0, 0.0, 1.0}
      True
    """
    layers = _layers(model)
    left = {name: layer.call.kernel() for name, layer in layers.items() if _is_quantized(layer)}
    for name, kernel in left.items():
        layers[name].kernel.assign(kernel)
    _uncover(model, layers)
    return model


def _layers(model):
    kernels = prunable(model)
    return {layer.name: layer for layer in _inner_layers(model) if layer.name in kernels}


def _is_quantized(layer):
    return isinstance(layer.call, QuantizedCall)


def _uncover(model, layers):
    for layer in layers.values():
        if _is_quantized(layer):
            del layer.call
    # They were traced with other kernels: let Keras make them anew.
    model.train_function = model.test_function = model.predict_function = None
