"""A wrong rule is far from the frameworks, a right one near."""

import functools

import keras
import numpy as np
import torch

from dlopt_helpers.chapters.proof import Walk, differences, same_network_twice
from dlopt_helpers.sgd import SGD

WALK = Walk(rates=0.1 * 0.9 ** np.arange(20))


def found(momentum, theirs):
    options = {"momentum": theirs}
    torch_sgd, keras_sgd = (
        functools.partial(kind, **options) for kind in (torch.optim.SGD, keras.optimizers.SGD)
    )
    return differences(WALK, SGD(momentum=momentum), torch_sgd, keras_sgd)


def test_equal_rules_are_near():
    right = found(0.5, 0.5)
    assert right["torch, float64"] < 1e-14 and right["torch, float32"] < 1e-5
    assert right["keras, float64"] < 1e-6 and right["keras, float32"] < 1e-5
    assert right["conventions"] > 1e-3  # the rate changes


def test_another_rule_is_far():
    assert min(found(0.5, 0.6).values()) > 1e-3


def test_a_scale_of_zero_leaves_no_gradient():
    assert (Walk(WALK.rates, scale=0.0).ours(SGD(), "float32") == 1).all()


def test_same_network_twice():
    losses = same_network_twice(SGD(lr=0.1), steps=3)
    assert abs(losses.torch - losses.keras).max() < 1e-4 and losses.torch.nunique() == 3
