from dataclasses import asdict

import pytest

from dlopt_helpers.bridges.conventions import KerasSGD, as_convention, rule_named
from dlopt_helpers.sgd import SGD

OPTIONS = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}


@pytest.mark.parametrize("given", [SGD, KerasSGD])
@pytest.mark.parametrize("convention, expected", [("torch", SGD), ("keras", KerasSGD)])
def test_same_fields_other_formula(given, convention, expected):
    rule = as_convention(given(**OPTIONS), convention)
    assert type(rule) is expected and asdict(rule) == OPTIONS


@pytest.mark.parametrize("convention", ["jax", "Keras", "", None])
def test_unknown_convention(convention):
    with pytest.raises(ValueError, match=r"SGD in 'torch', SGD in 'keras'"):
        as_convention(SGD(), convention)


def test_a_rule_of_somebody_else_is_not_replaced():
    class Mine(SGD):
        pass

    with pytest.raises(ValueError, match="no Mine in"):
        as_convention(Mine(), "keras")


def test_rule_by_name():
    assert rule_named("KerasSGD", OPTIONS) == KerasSGD(**OPTIONS)
    with pytest.raises(ValueError, match="'eval' is unknown: it must be one of SGD, KerasSGD"):
        rule_named("eval", {})
