"""Lion, Muon and schedule-free against their libraries, and the mistakes that the comparison must catch."""

import functools
import inspect

import numpy as np
import pytest
import tensorflow as tf
import torch
from bad_numbers import not_a_number
from hypothesis import given

from dlopt_helpers import trends
from dlopt_helpers.chapters import trends_optimizers as chapter
from dlopt_helpers.chapters.trends_optimizers import counted_macs, in_keras, in_torch, ours, unrounded
from dlopt_helpers.trends import (
    Lion,
    Muon,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    newton_schulz,
    newton_schulz_macs,
)

LR, DECAY = 2.0**-6, 0.125
# Largest difference after 100 steps; the smallest mistake below makes 1e-3.
CLOSE = 1e-9


def library(rule):
    """Return what the library of a rule makes of the walk in each shape, in float64."""
    import keras
    import schedulefree

    if isinstance(rule, Lion):
        return lambda shape: in_keras(
            lambda: keras.optimizers.Lion(LR, 0.875, 0.96875, weight_decay=DECAY), shape
        )
    options = {"lr": LR, "weight_decay": DECAY}
    if isinstance(rule, Muon):
        named = {"original": "original", "moonshot": "match_rms_adamw"}[rule.scale]

        def muon(shape):
            with unrounded():
                return in_torch(lambda p: torch.optim.Muon(p, **options, eps=0, adjust_lr_fn=named), shape)

        return muon
    theirs = {
        ScheduleFreeSGD: schedulefree.SGDScheduleFree,
        ScheduleFreeAdamW: schedulefree.AdamWScheduleFree,
    }[type(rule)]
    return lambda shape: in_torch(lambda p: theirs(p, **options), shape)


RULES = [
    Lion(LR, 0.875, 0.96875, DECAY),
    Muon(LR, weight_decay=DECAY, eps=0.0),
    Muon(LR, weight_decay=DECAY, eps=0.0, scale="moonshot"),
    ScheduleFreeSGD(LR, weight_decay=DECAY),
    ScheduleFreeAdamW(LR, weight_decay=DECAY),
]


def apart(rule, theirs=None):
    theirs = theirs or library(rule)
    pairs = [(ours(rule, shape), theirs(shape)) for shape in chapter.SHAPES]
    return max(np.abs(a - b).max() for mine, yours in pairs for a, b in zip(mine, yours, strict=True))


@pytest.mark.parametrize(
    "rule", RULES, ids=lambda rule: f"{type(rule).__name__} {getattr(rule, 'scale', '')}"
)
def test_rule_is_its_library(rule):
    assert apart(rule) < CLOSE


L2 = "gradient = gradient + self.weight_decay * w; "
MISTAKES = {  # the rule, a part of its step, and what a famous bug puts there
    "betas swapped, direction": (0, "u = self.beta1 * state", "u = self.beta2 * state"),
    "betas swapped, mean": (0, "m = self.beta2 * state", "m = self.beta1 * state"),
    "sign of the old mean": (0, "sign = u / (abs(u)", 'sign = state["m"] / (abs(state["m"])'),
    "sign of the new mean": (0, "sign = u / (abs(u)", "sign = m / (abs(m)"),
    "no sign": (0, "sign = u / (abs(u) + TINY)", "sign = u"),
    "Lion's decay coupled": (0, "u = self.beta1", L2 + "u = self.beta1"),
    "Lion's decay without the rate": (0, "self.weight_decay * w)", "self.weight_decay * w / self.lr)"),
    "no Nesterov": (1, "gradient + self.momentum * velocity if self.nesterov else velocity", "velocity"),
    "Nesterov along the old velocity": (1, "momentum * velocity if", 'momentum * state["velocity"] if'),
    "the scale of the other side": (1, "w.shape[-2:]", "w.shape[:-3:-1]"),
    "no scale": (1, " * SCALES[self.scale](*w.shape[-2:])", ""),
    "Moonshot's scale missing": (2, "SCALES[self.scale]", 'SCALES["original"]'),
    "Muon's decay coupled": (1, "velocity = self", L2 + "velocity = self"),
    "four steps": (1, "ahead, self.steps", "ahead, self.steps - 1"),
    "not orthogonal at all": (1, "newton_schulz(ahead, self.steps, eps=self.eps)", "ahead"),
    "c off by one": (3, " / t", " / (t + 1)"),
    "y and z exchanged": (3, "(1 - self.beta) * z + self.beta * x", "self.beta * z + (1 - self.beta) * x"),
    "trained at x": (3, "return (1 - self.beta) * z + self.beta * x,", "return x,"),
    "trained at z": (3, "return (1 - self.beta) * z + self.beta * x,", "return z,"),
    "decay at z": (3, "self.weight_decay * w", 'self.weight_decay * state["z"]'),
    "v is not corrected": (4, "(v / (1 - self.beta2**t))", "v"),
    "AdamW's decay coupled": (4, "t = state", L2 + "t = state"),
    "v is no mean of squares": (4, "(1 - self.beta2) * gradient**2", "(1 - self.beta2) * abs(gradient)"),
}


def planted(rule, part, wrong):
    """Return the rule with a part of its step replaced."""
    head, step = inspect.getsource(type(rule)).split("    def step(")
    assert part in step
    code = f"from dataclasses import dataclass\n{head}    def step({step.replace(part, wrong)}"
    names = dict(vars(trends))
    exec(code, names)
    return names[type(rule).__name__](**vars(rule))


@pytest.mark.parametrize(("index", "part", "wrong"), MISTAKES.values(), ids=MISTAKES)
def test_comparison_catches(index, part, wrong):
    assert apart(planted(RULES[index], part, wrong), library_of(index)) > 1e-4


@functools.cache
def library_of(index):
    walk = functools.cache(library(RULES[index]))
    return lambda shape: walk(shape)


@pytest.mark.parametrize("rule", RULES[3:], ids=lambda rule: type(rule).__name__)
def test_comparison_catches_evaluation_at_y(rule):
    theirs = library(rule)(chapter.SHAPES[0])
    y, x = ours(rule, chapter.SHAPES[0])
    assert np.abs(x - theirs[1]).max() < CLOSE < 1e-3 < np.abs(y - theirs[1]).max()


@pytest.mark.parametrize("shape", [(3, 3), (4, 7), (7, 4)])
def test_newton_schulz_keeps_directions(shape):
    x = np.random.default_rng(0).normal(size=shape)
    u, s, v = np.linalg.svd(x, full_matrices=False)
    expected = u @ np.diag(chapter.singular_values(s / np.sqrt((s**2).sum()), 5)) @ v
    np.testing.assert_allclose(newton_schulz(x, eps=0.0), expected, atol=1e-12)
    np.testing.assert_allclose(newton_schulz(1e6 * x, eps=0.0), expected, atol=1e-12)  # normalised


@pytest.mark.parametrize("make", [torch.tensor, tf.constant], ids=["torch", "tensorflow"])
def test_rules_run_on_tensors_and_stacks(make):
    w, g = np.random.default_rng(1).normal(size=(2, 3, 5, 4))
    for rule in RULES:
        state, stacked = rule.init(make(w)), rule.init(make(w))
        after, _ = rule.step(make(w), make(g), stacked)
        for one in range(3):
            alone, _ = rule.step(w[one], g[one], rule.init(w[one]))
            np.testing.assert_allclose(np.asarray(after)[one], alone, atol=1e-12)
        assert state.keys() == stacked.keys()


def test_macs_are_what_torch_counts_and_a_tall_matrix_lies_down():
    for shape in [(8, 8), (5, 9), (40, 4)]:
        assert counted_macs(lambda shape=shape: newton_schulz(torch.ones(shape))) == newton_schulz_macs(
            *shape
        )
    assert newton_schulz_macs(40, 4) == newton_schulz_macs(4, 40)


def test_a_sign_of_zero_moves_nothing():
    w, _ = Lion(0.1).step(np.ones(2), np.array([0.0, 1e-12]), Lion().init(np.ones(2)))
    np.testing.assert_allclose(w, [1, 0.9])


def test_without_a_gradient_muon_moves_nothing():
    w, _ = Muon(0.1).step(np.eye(2), np.zeros((2, 2)), Muon().init(np.eye(2)))
    np.testing.assert_array_equal(w, np.eye(2))


@given(not_a_number)
def test_bad_hyper_parameters_are_refused(value):
    for rule, names in {
        Lion: ("lr", "beta1", "beta2", "weight_decay"),
        Muon: ("lr", "momentum", "weight_decay", "eps"),
        ScheduleFreeSGD: ("lr", "beta", "weight_decay"),
        ScheduleFreeAdamW: ("lr", "beta1", "beta2", "eps", "weight_decay"),
    }.items():
        for name in names:
            with pytest.raises(ValueError, match=f"{name}="):
                rule(**{name: value})


@pytest.mark.parametrize(
    ("rule", "name", "value"),
    [
        (Lion, "lr", -1.0),
        (Lion, "beta1", 1.0),
        (Muon, "momentum", 1.0),
        (Muon, "scale", "keras"),
        (ScheduleFreeSGD, "beta", 0.0),
        (ScheduleFreeSGD, "beta", 1.0),
        (ScheduleFreeAdamW, "beta1", 0.0),
        (ScheduleFreeAdamW, "beta2", 1.0),
    ],
)
def test_values_outside_the_range_are_refused(rule, name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        rule(**{name: value})


def test_muon_refuses_what_is_no_matrix():
    with pytest.raises(ValueError, match="matrix"):
        Muon().step(np.ones(3), np.ones(3), Muon().init(np.ones(3)))
    for bad in (-1, 1.5):
        with pytest.raises(ValueError, match="steps="):
            newton_schulz(np.eye(2), steps=bad)
    with pytest.raises(ValueError, match="rows="):
        newton_schulz_macs(0, 3)
