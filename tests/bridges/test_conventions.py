from dataclasses import asdict

import pytest

from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.bridges.conventions import (
    KerasAdagrad,
    KerasAdam,
    KerasAdamW,
    KerasNAdam,
    KerasRMSprop,
    KerasSGD,
    as_convention,
    rule_named,
)
from dlopt_helpers.sgd import SGD

OPTIONS = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
PAIRS = {
    SGD: KerasSGD,
    Adagrad: KerasAdagrad,
    RMSprop: KerasRMSprop,
    Adam: KerasAdam,
    AdamW: KerasAdamW,
    NAdam: KerasNAdam,
}


@pytest.mark.parametrize("subject, keras", PAIRS.items())
def test_same_fields_other_formula(subject, keras):
    options = asdict(subject(lr=0.3, weight_decay=0.2))
    for given in (subject, keras):
        for convention, expected in (("torch", subject), ("keras", keras)):
            rule = as_convention(given(**options), convention)
            assert type(rule) is expected and asdict(rule) == options


@pytest.mark.parametrize("subject, keras", PAIRS.items())
def test_same_defaults(subject, keras):
    assert asdict(subject()) == asdict(keras())


@pytest.mark.parametrize("convention", ["jax", "Keras", "", None])
def test_unknown_convention(convention):
    with pytest.raises(ValueError, match=r"one of SGD, Adagrad, .*, NAdam in 'torch' or 'keras'"):
        as_convention(SGD(), convention)


def test_a_rule_of_somebody_else_is_not_replaced():
    class Mine(SGD):
        pass

    with pytest.raises(ValueError, match="no Mine in"):
        as_convention(Mine(), "keras")


def test_rule_by_name():
    assert rule_named("KerasSGD", OPTIONS) == KerasSGD(**OPTIONS)
    for rule in [*PAIRS.keys(), *PAIRS.values()]:
        assert type(rule_named(rule.__name__, asdict(rule()))) is rule
    with pytest.raises(ValueError, match=r"'eval' is unknown: it must be one of SGD, .*KerasNAdam"):
        rule_named("eval", {})
