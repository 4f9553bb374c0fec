"""The frameworks' own optimiser for a rule of the subject."""

from dataclasses import asdict

import keras
import torch

KERAS_NAMES = {"lr": "learning_rate", "eps": "epsilon", "beta1": "beta_1", "beta2": "beta_2"}


def torch_optimizer(rule, parameters):
    """Return the optimiser of ``torch.optim`` with the options of ``rule``."""
    options = asdict(rule)
    if "beta1" in options:
        options["betas"] = options.pop("beta1"), options.pop("beta2")
    elif "beta2" in options:
        options["alpha"] = options.pop("beta2")
    return getattr(torch.optim, type(rule).__name__)(parameters, **options)


def keras_optimizer(rule, **more):
    """Return the optimiser of ``keras.optimizers`` with the options of ``rule`` and ``more``."""
    options = {KERAS_NAMES.get(name, name): value for name, value in asdict(rule).items()}
    options.pop("momentum_decay", None)
    if "beta_1" not in options and "beta_2" in options:
        options["rho"] = options.pop("beta_2")
    name = type(rule).__name__.removeprefix("Keras")
    if name != "AdamW":
        options["weight_decay"] = options["weight_decay"] or None
    return getattr(keras.optimizers, {"NAdam": "Nadam"}.get(name, name))(**options | more)
