"""A formula that is written down must give the numbers that it gives when it runs."""

import math
import operator
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt_helpers._trace import Symbol, Trace
from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.bridges.conventions import as_convention
from dlopt_helpers.sgd import SGD

BINARY = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
UNARY = [operator.neg, operator.abs]
OPERATIONS = {f.__name__: f for f in BINARY + UNARY}


def replay(trace, inputs):
    """Return the value of each entry, run on floats."""
    values = []
    for name, *operands in trace.entries:
        if name == "input":
            values.append(inputs[operands[0]])
        elif name == "constant":
            values.append(operands[0])
        else:
            values.append(OPERATIONS[name](*[values[place] for place in operands]))
    return values


numbers = st.floats(-4, 4) | st.integers(-4, 4)
leaves = st.sampled_from("xyz") | numbers
expressions = st.recursive(
    leaves,
    lambda inner: st.tuples(st.sampled_from(BINARY), inner, inner) | st.tuples(st.sampled_from(UNARY), inner),
    max_leaves=12,
)


def run(expression, inputs):
    """Return the value of a nested tuple of operators, names and numbers."""
    if isinstance(expression, tuple):
        function, *operands = expression
        return function(*[run(operand, inputs) for operand in operands])
    return inputs.get(expression, expression)


@settings(deadline=None, derandomize=True, database=None, max_examples=300)
@given(expression=expressions, values=st.tuples(*[st.floats(0.25, 4)] * 3))
def test_replay_equals_the_run(expression, values):
    inputs = dict(zip("xyz", values, strict=True))
    try:
        expected = run(expression, inputs)
    except (ArithmeticError, TypeError):  # division by zero, overflow, or the abs of a complex power
        return
    if isinstance(expected, complex):
        return
    trace = Trace()
    end = run(expression, {name: trace.input(name) for name in inputs})
    place = trace.place(end)
    assert replay(trace, inputs)[place] == pytest.approx(expected, rel=1e-12, abs=1e-300)


def test_entries_of_each_operator():
    for function in BINARY:
        trace = Trace()
        x = trace.input("x")
        assert [function(x, 2).place, function(2, x).place] == [2, 4]
        name = function.__name__
        assert trace.entries[1:] == [("constant", 2.0), (name, 0, 1), ("constant", 2.0), (name, 3, 0)]
    for function in UNARY:
        trace = Trace()
        assert function(trace.input("x")).place == 1 and trace.entries[1] == (function.__name__, 0)


@pytest.mark.parametrize("number", [3, np.float64(3), np.float32(3), np.int64(3), np.bool_(True), True])
@pytest.mark.parametrize("function", BINARY)
def test_scalars_of_numpy_are_numbers(function, number):
    trace = Trace()
    x = trace.input("x")
    for end in (function(number, x), function(x, number)):
        assert isinstance(end, Symbol)
    values = replay(trace, {"x": 2.0})
    assert values[2] == function(float(number), 2.0) and values[4] == function(2.0, float(number))


@pytest.mark.parametrize("function", BINARY)
def test_arrays_of_symbols_go_element_by_element(function):
    trace = Trace()
    x = np.array([trace.input("x"), trace.input("y")], dtype=object)
    inputs = {"x": 2.0, "y": 3.0}
    floats = np.array([2.0, 3.0])
    z = x[0]
    pairs = [
        (function(x, x), function(floats, floats)),
        (function(x, 1.5), function(floats, 1.5)),
        (function(1.5, x), function(1.5, floats)),
        (function(z, floats), function(2.0, floats)),
        (function(floats, z), function(floats, 2.0)),
        (function(z, x), function(2.0, floats)),
    ]
    values = replay(trace, inputs)
    for symbols, expected in pairs:
        assert symbols.dtype == object and symbols.shape == (2,)
        assert [values[symbol.place] for symbol in symbols] == expected.tolist()


@pytest.mark.parametrize("other", ["2", None, [2.0], 2j, {}, (1,)], ids=repr)
@pytest.mark.parametrize("function", BINARY)
def test_what_is_no_number_is_refused(function, other):
    x = Trace().input("x")
    for pair in [(x, other), (other, x)]:
        with pytest.raises(TypeError):
            function(*pair)


@pytest.mark.parametrize("function", [math.sqrt, math.exp, float, int, np.sqrt, np.exp, range], ids=repr)
def test_what_is_no_operator_is_refused(function):
    with pytest.raises(TypeError):
        function(Trace().input("x"))


@pytest.mark.parametrize("compare", ["lt", "gt", "le", "ge", "eq", "ne"])
def test_branches_on_values_are_refused(compare):
    x = Trace().input("x")
    with pytest.raises(TypeError):
        getattr(operator, compare)(x, 0)
    with pytest.raises(TypeError):
        bool(x)


RULES = [
    SGD(momentum=0.9),
    SGD(momentum=0.9, nesterov=True),
    Adagrad(),
    RMSprop(),
    Adam(),
    Adam(amsgrad=True),
    AdamW(),
    NAdam(),
]


@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_written_step_equals_the_step(rule, convention):
    """With symbols for all: weights, gradient, state and hyper-parameters."""
    rule = as_convention(rule, convention)
    options = {f.name: getattr(rule, f.name) for f in fields(rule)}
    flags = {name: value for name, value in options.items() if isinstance(value, bool)}
    inputs = {name: value for name, value in options.items() if name not in flags} | {"weight_decay": 0.1}
    w, state = rule.step(1.0, 0.5, rule.init(1.0))
    trace = Trace()
    symbols = {name: trace.input(name) for name in [*inputs, "w", "gradient", *state]}
    traced = type(rule)(**flags, **{name: symbols[name] for name in inputs})
    after, after_state = traced.step(
        symbols["w"], symbols["gradient"], {name: symbols[name] for name in state}
    )
    values = replay(trace, {**inputs, "w": w, "gradient": -0.25, **state})
    expected, expected_state = type(rule)(**flags, **inputs).step(w, -0.25, state)
    assert values[after.place] == expected
    assert {name: values[trace.place(value)] for name, value in after_state.items()} == expected_state
