"""Rules of the subject, and the frameworks' own optimiser for each."""

import itertools
from dataclasses import asdict

import keras
import torch

from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.sgd import SGD

RULES = [
    *[
        SGD(0.05, momentum, nesterov, decay)
        for momentum, nesterov, decay in itertools.product([0.0, 0.9], [False, True], [0.0, 0.1])
        if momentum or not nesterov
    ],
    Adagrad(0.05, weight_decay=0.1),
    RMSprop(0.005, weight_decay=0.1),
    Adam(0.01, weight_decay=0.1),
    Adam(0.01, amsgrad=True),
    AdamW(0.01, weight_decay=0.1),
    NAdam(0.01, weight_decay=0.1),
]

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
