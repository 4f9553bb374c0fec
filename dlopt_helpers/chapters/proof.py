"""Our rules beside the frameworks' own, step by step: the tables of the chapters' proofs."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from dlopt_helpers.bridges.conventions import as_convention
from dlopt_helpers.bridges.torch import RuleOptimizer as TorchRule
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import batches
from dlopt_helpers.lab.twins import keras_twin

WEIGHTS = 5  # that walk; all start at 1


@dataclass(frozen=True)
class Walk:
    """A walk down a noisy bowl: the gradient at ``w`` is ``scale * (w + noise)``.

    Args:
      rates: the learning rate of each step.
      scale: of the gradient; 0 for a gradient that stays 0.
    """

    rates: np.ndarray
    scale: float = 1.0

    def noise(self, precision):
        return np.random.default_rng(0).normal(size=(len(self.rates), WEIGHTS)).astype(precision)

    def ours(self, rule, precision):
        """Return the weights after each step of ``rule``."""
        w, walk = np.ones(WEIGHTS, precision), []
        state = rule.init(w)
        for lr, noise in zip(self.rates, self.noise(precision), strict=True):
            w, state = replace(rule, lr=float(lr)).step(w, self.scale * (w + noise), state)
            walk.append(w)
        return np.array(walk)

    def in_torch(self, optimizer, precision):
        """Return the weights after each step of PyTorch's optimiser, made by ``optimizer(params)``."""
        w, walk = torch.nn.Parameter(torch.ones(WEIGHTS, dtype=getattr(torch, precision))), []
        optimizer = optimizer([w])
        for lr, noise in zip(self.rates, self.noise(precision), strict=True):
            optimizer.param_groups[0]["lr"] = float(lr)
            w.grad = self.scale * (w.detach() + torch.from_numpy(noise))
            optimizer.step()
            walk.append(w.detach().numpy().copy())
        return np.array(walk)

    def in_keras(self, optimizer, precision):
        """Return the weights after each step of Keras's optimiser, made by ``optimizer()``."""
        import keras
        import tensorflow as tf

        w, walk = keras.Variable(np.ones(WEIGHTS, precision), dtype=precision), []
        optimizer = optimizer()
        optimizer.build([w])

        @tf.function  # several times faster than one call after another
        def step(noise):
            optimizer.apply([self.scale * (keras.ops.convert_to_tensor(w) + noise)])

        for lr, noise in zip(self.rates, self.noise(precision), strict=True):
            optimizer.learning_rate = float(lr)
            step(tf.constant(noise))
            walk.append(keras.ops.convert_to_numpy(w))
        return np.array(walk)


def differences(walk, rule, torch_optimizer, keras_optimizer):
    """Return the largest difference of any weight at any step, by framework and precision.

    The Keras columns compare in Keras's convention; ``conventions`` says how far Keras is from our own
    formula.
    """
    found, as_keras = {}, as_convention(rule, "keras")
    for precision in ("float64", "float32"):
        theirs = walk.in_keras(keras_optimizer, precision)
        ours = walk.ours(rule, precision)
        found[f"torch, {precision}"] = np.abs(ours - walk.in_torch(torch_optimizer, precision)).max()
        found[f"keras, {precision}"] = np.abs(walk.ours(as_keras, precision) - theirs).max()
    return found | {"conventions": np.abs(ours - theirs).max()}


def same_network_twice(rule, steps):
    """Train one MLP through the PyTorch bridge and its Keras twin through the Keras bridge.

    Both see the same initial weights and the same batches. Returns one row per step, with the
    loss on its batch in the columns ``torch`` and ``keras``.
    """
    import keras

    from dlopt_helpers.bridges.keras import RuleOptimizer as KerasRule

    data, model = mnist1d(), mlp()
    twin = keras_twin(model)
    twin.compile(KerasRule(rule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    optimizer = TorchRule(model.parameters(), rule)
    rows = []
    for batch in batches(len(data.x_train), 64, steps, seed=0):
        x, y = data.x_train[batch], data.y_train[batch]
        optimizer.zero_grad()
        loss = cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        optimizer.step()
        twin.reset_metrics()  # some versions of Keras report the mean over all batches so far
        rows.append({"torch": loss.item(), "keras": float(twin.train_on_batch(x, y))})
    return pd.DataFrame(rows)
