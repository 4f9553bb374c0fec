"""Adam and its family against the frameworks' own, and the mistakes that this comparison must catch."""

import copy
import functools
import inspect
import itertools
import math
import sys
from dataclasses import FrozenInstanceError, asdict, fields, replace

import numpy as np
import pytest
import tensorflow as tf
import torch
from bad_numbers import negative, not_a_number, one_or_more
from frameworks import keras_optimizer, torch_optimizer
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.bridges.conventions import (
    KerasAdagrad,
    KerasAdam,
    KerasNAdam,
    KerasRMSprop,
    as_convention,
)

STEPS = 200
# Keras rounds the rate and the decay to float32, and the betas in part: these numbers are the same in
# both precisions.
BETAS = {"beta1": 0.875, "beta2": 1 - 2.0**-10}
SHORT_MEMORY = {"beta1": 0.875, "beta2": 0.9375}  # amsgrad shows where the mean of squares falls again
FAMILY = [
    Adagrad(),
    RMSprop(beta2=BETAS["beta2"]),
    Adam(**BETAS),
    Adam(**SHORT_MEMORY, amsgrad=True),
    AdamW(**BETAS),
    AdamW(**SHORT_MEMORY, amsgrad=True),
    NAdam(**BETAS, momentum_decay=2.0**-7),
]
EPSILONS = [2.0**-33, 2.0**-12, 2.0**-4]  # 1e-10 to 6e-2
RULES = [
    replace(rule, eps=eps, weight_decay=decay)
    for rule, eps, decay in itertools.product(FAMILY, EPSILONS, [0.0, 0.125])
]
RATES = {
    "constant": [2.0**-8] * STEPS,
    "changing": [2.0 ** -(7 + step % 5) for step in range(STEPS)],
}
# Largest difference allowed after 200 steps, as a share of the largest weight of a row. Seen are 1.7e-6 and
# 3e-15 against PyTorch (NAdam and RMSprop; the others 5e-16), and 4e-7 and 1e-15 against Keras. Of the
# mistakes below the smallest make 3e-4 and 4e-5.
CLOSE = {"float32": 5e-6, "float64": 1e-14}
# Two numbers inside Keras are of float32 even for float64 weights: the 0.1 from which Adagrad starts and the
# 0.96 of NAdam. Seen are 7e-9 and 3e-8.
ROUNDED = {"KerasAdagrad": 1e-7, "KerasNAdam": 1e-7}
BACKENDS = {
    "numpy": (np.asarray, np.asarray),
    "torch": (torch.tensor, torch.Tensor.numpy),
    "tensorflow": (tf.convert_to_tensor, lambda t: t.numpy()),
}

every_member = pytest.mark.parametrize("rule", FAMILY, ids=str)
every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", CLOSE)
every_rate = pytest.mark.parametrize("rates", RATES)


@functools.cache
def problem(dtype, decays):
    """Return start weights, a scale of the gradients, and their random parts of all steps."""
    rng = np.random.default_rng(7)
    start, noises = rng.normal(size=(5, 8)), rng.normal(size=(STEPS, 5, 8))
    huge = {"float32": 2.0**50, "float64": 2.0**100}[dtype]  # 1e15 and 1e30
    scale = np.array([[1.0], [1.0], [0.0], [huge], [2.0**-66]]) * np.ones(8)
    scale[1, ::2] = 0  # some gradients are always 0, and the whole next row
    if not decays:
        start[4] = 0  # where steps by tiny gradients can be seen
    return start.astype(dtype), scale.astype(dtype), noises.astype(dtype)


def descend(rule, dtype, rates, backend="numpy"):
    """Return the weights that the rule reaches; the gradient at ``w`` is ``w`` plus noise, scaled."""
    make, as_numpy = BACKENDS[backend]
    w, scale, noises = map(make, problem(dtype, rule.weight_decay > 0))
    state = rule.init(w)
    for lr, noise in zip(RATES[rates], noises, strict=True):
        w, state = replace(rule, lr=lr).step(w, scale * (w + noise), state)
    return as_numpy(w)


@functools.cache
def descend_torch(rule, dtype, rates):
    start, scale, noises = map(torch.tensor, problem(dtype, rule.weight_decay > 0))
    w = torch.nn.Parameter(start)
    optimizer = torch_optimizer(rule, [w])
    torch.set_default_dtype(start.dtype)  # else NAdam's product of momenta is of float32, and 9e-10 off
    try:
        for lr, noise in zip(RATES[rates], noises, strict=True):
            optimizer.param_groups[0]["lr"] = lr
            w.grad = scale * (w.detach() + noise)
            optimizer.step()
    finally:
        torch.set_default_dtype(torch.float32)
    return w.detach().numpy()


@functools.cache
def descend_keras(rule, dtype, rates):
    start, scale, noises = problem(dtype, rule.weight_decay > 0)
    w, optimizer = tf.Variable(start), keras_optimizer(rule)
    optimizer.build([w])
    rate, noises = tf.constant(RATES[rates], "float32"), tf.constant(noises)

    @tf.function  # fifty times faster than one call a step
    def run():
        for step in tf.range(STEPS):
            optimizer._learning_rate.assign(rate[step])
            optimizer.apply([scale * (w + noises[step])])

    run()
    return w.numpy()


def difference(end, expected):
    """Return how far apart two ends are, as a share of the largest weight of a row; the worst row counts."""
    assert end.dtype == expected.dtype and end.shape == expected.shape
    return (abs(end - expected).max(1) / abs(expected).max(1)).max()


@every_rate
@every_dtype
@every_rule
def test_equals_torch(rule, dtype, rates):
    assert difference(descend(rule, dtype, rates), descend_torch(rule, dtype, rates)) < CLOSE[dtype]


@every_dtype
@pytest.mark.parametrize("rule", [r for r in RULES if r.weight_decay and r.eps != 2.0**-12], ids=str)
@pytest.mark.parametrize("backend", ["torch", "tensorflow"])
def test_equals_torch_on_tensors(rule, dtype, backend):
    end = descend(rule, dtype, "changing", backend)
    assert difference(end, descend_torch(rule, dtype, "changing")) < CLOSE[dtype]


@every_dtype
@pytest.mark.parametrize(
    "rule, rates",
    [(rule, "changing") for rule in RULES if rule.weight_decay or rule.eps == 2.0**-33]
    + [(rule, "constant") for rule in RULES if rule.weight_decay and rule.eps == 2.0**-33],
    ids=str,
)
def test_keras_convention_equals_keras(rule, dtype, rates):
    rule = as_convention(rule, "keras")
    close = max(CLOSE[dtype], ROUNDED.get(type(rule).__name__, 0))
    assert difference(descend(rule, dtype, rates), descend_keras(rule, dtype, rates)) < close


@pytest.mark.parametrize("rule", [r for r in RULES if r.eps == 2.0**-33 and r.weight_decay], ids=str)
def test_the_conventions_differ_in_decay_but_for_adamw(rule):
    ends = [descend(as_convention(rule, name), "float64", "constant")[:4] for name in ("torch", "keras")]
    assert (difference(*ends) > 1e-2) == (type(rule) is not AdamW)


@pytest.mark.parametrize("eps, differs", [(2.0**-7, True), (2.0**-33, False)])
@pytest.mark.parametrize("rule", [RMSprop(), Adam(), Adam(amsgrad=True), AdamW()], ids=str)
def test_the_conventions_differ_by_a_large_epsilon(rule, eps, differs):
    rule = replace(rule, eps=eps, weight_decay=0.0)
    ends = [descend(as_convention(rule, name), "float64", "constant")[:4] for name in ("torch", "keras")]
    assert (difference(*ends) > 1e-3) if differs else (difference(*ends) < 1e-5)


@pytest.mark.parametrize("rule", [Adagrad(), NAdam()])
def test_the_conventions_differ_by_a_constant(rule):
    ends = [descend(as_convention(rule, name), "float64", "constant")[:4] for name in ("torch", "keras")]
    assert difference(*ends) > 1e-3


def test_keras_nadam_ignores_momentum_decay():
    a, b = (KerasNAdam(momentum_decay=decay) for decay in (0.0, 1.0))
    np.testing.assert_array_equal(descend(a, "float64", "constant"), descend(b, "float64", "constant"))


@every_member
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (7,), (4, 3)], ids=str)
@pytest.mark.parametrize("backend", BACKENDS)
def test_any_shape(rule, shape, backend):
    make, as_numpy = BACKENDS[backend]
    start, *gradients = np.random.default_rng(1).normal(size=(4, *shape)).astype("float32")
    w, theirs = make(start), torch.nn.Parameter(torch.tensor(start))
    state, optimizer = rule.init(w), torch_optimizer(rule, [theirs])
    for gradient in gradients:
        w, state = rule.step(w, make(gradient), state)
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    end = as_numpy(w)
    assert end.shape == shape and end.dtype == "float32"
    np.testing.assert_allclose(end, theirs.detach().numpy(), rtol=0, atol=1e-6)


def mutated(rule, *edits):
    """Return ``rule`` as an instance of its class with ``edits``, each ``(old, new)``, made in the source."""
    name, module = type(rule).__name__, sys.modules[type(rule).__module__]
    source = inspect.getsource(type(rule))
    for old, new in edits:
        assert old in source, f"{name} has no {old!r} any more: write this mistake anew"
        source = source.replace(old, new)
    namespace = dict(vars(module))
    exec(source, namespace)
    return namespace[name](**asdict(rule))


COUPLED = "gradient = gradient + self.weight_decay * w"
DECOUPLED = "w = w - self.lr * self.weight_decay * w"
M = "(1 - self.beta1) * gradient"
V = "(1 - self.beta2) * gradient**2"
STEP = "self.lr * m_hat / (v_hat**0.5 + self.eps)"
M_HAT, V_HAT = "m_hat = m / (1 - self.beta1**t)", "v_hat = v / (1 - self.beta2**t)"

ASCENDS = ("return w - ", "return w + ")
IS_DECOUPLED = (COUPLED, DECOUPLED)
HAS_NO_DECAY = (COUPLED, "")
NOT_SQUARED = ("gradient**2", "abs(gradient)")
V_WITHOUT_DECAY = ("gradient**2", "(gradient - self.weight_decay * w) ** 2")
M_WITHOUT_DECAY = (M, "(1 - self.beta1) * (gradient - self.weight_decay * w)")
M_NOT_SHARED, V_NOT_SHARED = (M, "gradient"), (V, "gradient**2")
M_FORGOTTEN, V_FORGOTTEN = ('"m": m', '"m": state["m"]'), ('"v": v}', '"v": state["v"]}')
NOT_COUNTED = ('"t": t', '"t": state["t"]')
BETAS_SWAPPED = [("beta1", "beta_"), ("beta2", "beta1"), ("beta_", "beta2")]
M_NOT_CORRECTED, V_NOT_CORRECTED = (M_HAT, "m_hat = m"), (V_HAT, "v_hat = v")
CORRECTED_LATE = [(f"self.beta{i}**t)", f"self.beta{i}**(t - 1 or 1))") for i in (1, 2)]
EPS_INSIDE = (STEP, "self.lr * m_hat / (v_hat + self.eps)**0.5")
EPS_BESIDE = (STEP, "self.lr * (m_hat / v_hat**0.5 + self.eps)")
EPS_EARLY = (STEP, "self.lr * m_hat / ((v**0.5 + self.eps) / (1 - self.beta2**t)**0.5)")

DECAYS_LATE = [
    (DECOUPLED, ""),
    ("return adam.step(", "w, state = adam.step("),
    ("(w, gradient, state)\n", f"(w, gradient, state)\n        {DECOUPLED}\n        return w, state\n"),
]

OF_ALL = [[ASCENDS], [IS_DECOUPLED], [HAS_NO_DECAY], [NOT_SQUARED], [V_WITHOUT_DECAY]]
OF_MOMENTS = [
    *OF_ALL,
    [M_WITHOUT_DECAY],
    [M_NOT_SHARED],
    [V_NOT_SHARED],
    [M_FORGOTTEN],
    [V_FORGOTTEN],
    [NOT_COUNTED],
    BETAS_SWAPPED,
]

# For each class the mistakes, each a list of edits.
MISTAKES = {
    Adagrad: [
        *OF_ALL,
        [('state["a"] +', '0.999 * state["a"] +')],
        [('"a": a', '"a": state["a"]')],
        [("(a**0.5 + self.eps)", "(a + self.eps)**0.5")],
        [("(a**0.5 + self.eps)", "a**0.5 + self.eps")],
    ],
    RMSprop: [
        *OF_ALL,
        [V_NOT_SHARED],
        [V_NOT_SHARED, ("self.beta2 * state", "state")],
        [V_FORGOTTEN],
        [("(v**0.5 + self.eps)", "(v + self.eps)**0.5")],
        [("(v**0.5 + self.eps)", "v**0.5 + self.eps")],
    ],
    Adam: [
        *OF_MOMENTS,
        [M_NOT_CORRECTED, V_NOT_CORRECTED],
        [M_NOT_CORRECTED],
        [V_NOT_CORRECTED],
        CORRECTED_LATE,
        [EPS_INSIDE],
        [EPS_BESIDE],
        [EPS_EARLY],
        [("if self.amsgrad", "if False")],
        [('after["v_max"] = v =', 'after["v_max"], v = state["v_max"],')],
        [("excess = v", "excess = v / (1 - self.beta2**t)"), (V_HAT, f"{V_HAT} if not self.amsgrad else v")],
    ],
    AdamW: [
        [(DECOUPLED, COUPLED)],
        [(DECOUPLED, "")],
        [(DECOUPLED, "w = w - self.weight_decay * w")],
        DECAYS_LATE,
        [(", self.amsgrad", "")],
    ],
    NAdam: [
        *OF_MOMENTS,
        [V_NOT_CORRECTED],
        [EPS_INSIDE],
        [EPS_BESIDE],
        [EPS_EARLY],
        [("mu, mu_next =", "mu_next, mu =")],
        [('"mu_product": mu_product', '"mu_product": 1.0')],
        [("(1 - mu_product * mu_next)", "(1 - mu_product)")],
        [(" + now / (1 - mu_product)", "")],
        [("t * self.momentum_decay", "t")],
    ],
}
KERAS_DECAYS_LATE = [
    ("return _decayed(self, w) - ", "w = w - "),
    (", {", "\n        return _decayed(self, w), {"),
]
KERAS_MISTAKES = {
    KerasAdagrad: [
        [("0 * w + 0.1", "0 * w")],
        [("(a + self.eps) ** 0.5", "(a**0.5 + self.eps)")],
        [("_decayed(self, w)", "w")],
        [(" = state", " = 0.999 * state")],
        KERAS_DECAYS_LATE,
    ],
    KerasRMSprop: [
        [("(v + self.eps) ** 0.5", "(v**0.5 + self.eps)")],
        [("_decayed(self, w)", "w")],
        [V_NOT_SHARED],
        [V_FORGOTTEN],
        KERAS_DECAYS_LATE,
    ],
    KerasAdam: [
        [("(v**0.5 + self.eps)", "(v**0.5 + self.eps * (1 - self.beta2**t) ** 0.5)")],
        [("(v**0.5 + self.eps)", "(v + self.eps) ** 0.5")],
        [("_decayed(self, w)", "w")],
        [(" * (1 - self.beta2**t) ** 0.5", "")],
        [(" / (1 - self.beta1**t)", "")],
        [("(1 - self.beta2**t) ** 0.5", "(1 - self.beta2**t)")],
        [NOT_COUNTED],
        [M_FORGOTTEN],
        [V_FORGOTTEN],
        BETAS_SWAPPED,
        [("if self.amsgrad", "if False")],
    ],
    KerasNAdam: [
        [("momentum_decay=1.0", "momentum_decay=self.momentum_decay")],
        [("_decayed(self, w)", "w")],
        [("self.eps, ", "")],
    ],
}


def listed(mistakes):
    """Return a parameter for each mistake, named by its class and its first edit."""
    return [
        pytest.param(rule, edits, id=f"{rule.__name__}-{edits[0][0]} -> {edits[0][1]}")
        for rule, lists in mistakes.items()
        for edits in lists
    ]


@np.errstate(all="ignore")
def catches(rule_class, edits, framework, dtype):
    """Return whether a comparison tells the mistake from the rule; numbers that overflow tell nothing."""
    convention = "keras" if framework is descend_keras else "torch"
    close = max(CLOSE[dtype], ROUNDED.get(rule_class.__name__, 0))
    for rule in (as_convention(rule, convention) for rule in RULES):
        if type(rule) is rule_class:
            end = descend(mutated(rule, *edits), dtype, "changing")
            if difference(end, framework(rule, dtype, "changing")) >= close:
                return True
    return False


@every_dtype
@pytest.mark.parametrize("rule_class, edits", listed(MISTAKES))
def test_the_comparison_catches(rule_class, edits, dtype):
    assert catches(rule_class, edits, descend_torch, dtype)


@pytest.mark.parametrize("rule_class, edits", listed(KERAS_MISTAKES))
def test_the_comparison_with_keras_catches(rule_class, edits):
    assert catches(rule_class, edits, descend_keras, "float64")


@pytest.mark.parametrize("rule_class", [*MISTAKES, *KERAS_MISTAKES])
def test_the_comparison_accepts_the_source_as_it_is(rule_class):
    framework = descend_torch if rule_class in MISTAKES else descend_keras
    assert not catches(rule_class, [("lr", "lr")], framework, "float64")


@every_member
def test_arguments_stay_as_they_are(rule):
    rule = replace(rule, weight_decay=0.1)
    w, gradient = np.ones(3), np.ones(3)
    state = rule.init(w)
    before = copy.deepcopy(state)
    rule.step(w, gradient, state)
    assert (w == 1).all() and (gradient == 1).all()
    assert all(np.array_equal(state[name], before[name]) for name in before) and state.keys() == before.keys()
    with pytest.raises(FrozenInstanceError):
        rule.lr = 1.0


def numeric(rule):
    return [f.name for f in fields(rule) if f.name != "amsgrad"]


@every_member
@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_arrays_as_hyper_parameters_train_stacked_networks(rule, convention):
    rule = as_convention(rule, convention)
    rng = np.random.default_rng(0)
    options = {name: rng.uniform(0.1, 0.9, size=3) for name in numeric(rule)}
    w, *gradients = rng.normal(size=(4, 3, 5))

    def run(rule, w, gradients):
        state = rule.init(w)
        for gradient in gradients:
            w, state = rule.step(w, gradient, state)
        return w

    stacked = run(replace(rule, **{name: values[:, None] for name, values in options.items()}), w, gradients)
    for i in range(3):
        alone = replace(rule, **{name: values[i].item() for name, values in options.items()})
        expected = run(alone, w[i], [gradient[i] for gradient in gradients])
        np.testing.assert_allclose(stacked[i], expected, rtol=1e-14, atol=0)


@every_member
@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_runs_compiled_with_hyper_parameters_that_have_no_value_yet(rule, convention):
    rule = as_convention(replace(rule, weight_decay=0.125), convention)
    names = numeric(rule)

    @tf.function
    def compiled(values, w):
        traced = replace(rule, **dict(zip(names, values, strict=True)))
        return traced.step(w, 2 * w, traced.init(w))[0]

    w = np.float64(3.0)
    values = [tf.constant(getattr(rule, name), "float64") for name in names]
    expected = rule.step(w, 2 * w, rule.init(w))[0]
    assert compiled(values, tf.constant(w)).numpy() == pytest.approx(expected, rel=1e-14)


@every_member
def test_half_precision_stays(rule):
    for dtype in (torch.bfloat16, torch.float16):
        w = torch.ones(3, dtype=dtype)
        w, _ = rule.step(w, w, rule.init(w))
        assert w.dtype == dtype and torch.isfinite(w).all()


repeatable = settings(deadline=None, derandomize=True, database=None, max_examples=50)
ALLOWED = {"beta1": "must be a number in [0, 1)", "beta2": "must be a number in [0, 1)"}


@pytest.mark.parametrize("rule_class, name", [(r, name) for r in MISTAKES for name in numeric(r)])
@repeatable
@given(data=st.data())
def test_refuses(rule_class, name, data):
    bad = negative | one_or_more if name in ALLOWED else negative
    value = data.draw(not_a_number | bad)
    with pytest.raises(ValueError) as error:
        rule_class(**{name: value})
    allowed = ALLOWED.get(name, "must be a finite number >= 0")
    assert f"{name}={value!r}" in str(error.value) and allowed in str(error.value)


@pytest.mark.parametrize("rule_class, name", [(r, name) for r in MISTAKES for name in numeric(r)])
def test_refuses_an_array_with_one_bad_entry(rule_class, name):
    for bad in (-0.1, math.nan, *([1.0] if name in ALLOWED else [])):
        with pytest.raises(ValueError, match=f"{name}="):
            rule_class(**{name: np.array([0.5, bad])})


@pytest.mark.parametrize("rule_class", MISTAKES)
@repeatable
@given(data=st.data())
def test_accepts_what_is_in_range(rule_class, data):
    share, size = st.floats(0, 1, exclude_max=True), st.floats(0, 1e300)
    rule_class(**{name: data.draw(share if name in ALLOWED else size) for name in numeric(rule_class)})
