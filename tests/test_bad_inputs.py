"""Every public function takes what is allowed, and refuses the rest in words that name the argument."""

import importlib
import inspect
import pkgutil
import re
import types

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kinds import Lazy
from torch import nn
from valid_calls import A_TORCH, CALLS, WITHOUT

import dlopt_helpers

ROOMS = ("chapters", "doctor")  # not looked at: charts over the book's own rows, and the set-up check
ALLOWED = re.compile(r"\b(must|give|needs?|only|should|use|remove)\b")
SLOW = (
    "bridges",
    "lab.deployed",
    "lab.litert",
    "lab.onnx",
    "lab.data",
    "lab.sweep",
    "pipeline.run",
    "page.explorer",
    "page.live",
)
# Their own tests call them, and they take seconds.
ELSEWHERE = ("lab.deployed.measured", "lab.deployed.memory", "page.explorer.write_assets", "pipeline.run")
# They change what they are given, where it is allowed.
IN_PLACE = ("prune", "make_permanent", "quantize_in_training", "distillation_step", "train", "add")
IN_PLACE += ("add_param_group", "load_state_dict")


def public():
    """Yield each public function, constructor and method of the package with its name."""
    for module in pkgutil.walk_packages(dlopt_helpers.__path__, "dlopt_helpers."):
        room, *_ = path = module.name.split(".")[1:]
        if module.ispkg or room in ROOMS or any(name.startswith("_") for name in path):
            continue
        loaded = importlib.import_module(module.name)
        for name, thing in vars(loaded).items():
            if (
                name.startswith("_")
                or getattr(thing, "__module__", None) != module.name
                or not callable(thing)
            ):
                continue
            name = ".".join([*path, name])
            yield name, thing
            for method, function in vars(thing).items() if inspect.isclass(thing) else ():
                function = getattr(function, "__func__", function)
                if isinstance(function, types.FunctionType) and (method[0] != "_" or method == "__call__"):
                    yield f"{name}.{method}", function


def parameters(function):
    given = dict(inspect.signature(function).parameters)
    given.pop("cls", None)
    return given


PUBLIC = dict(public())
WITH_ARGUMENTS = {name for name, function in PUBLIC.items() if set(parameters(function)) - {"self"}}
UNCHECKED = {name for names in WITHOUT.values() for name in names.split()}
ARGUMENTS = [
    (name, argument)
    for name, kinds in CALLS.items()
    for argument in kinds
    if argument != "self" and not kinds[argument].bad.is_empty
]


def test_every_function_has_a_valid_call_or_a_reason():
    assert sorted(WITH_ARGUMENTS - set(CALLS) - UNCHECKED) == []


def test_the_table_names_nothing_else():
    assert sorted((set(CALLS) | UNCHECKED) - WITH_ARGUMENTS) == [] and not set(CALLS) & UNCHECKED


@pytest.mark.parametrize("name", CALLS)
def test_every_argument_has_a_kind(name):
    inherited = {"page.exercises.Goal": {"mistakes", "praise", "tolerance"}}.get(name, set())
    assert set(CALLS[name]) | inherited == set(parameters(PUBLIC[name]))


def bound(name, arguments):
    """Return the positional and the named arguments of a call; ``...`` is an optimiser of the model."""
    model = arguments.get("student", arguments.get("model"))
    model = model if isinstance(model, nn.Module) else A_TORCH()
    arguments = {
        key: torch.optim.SGD(model.parameters(), 0.1) if value is ... else value
        for key, value in arguments.items()
    }
    args, kwargs = [], {}
    for parameter in parameters(PUBLIC[name]).values():
        if parameter.name not in arguments:
            continue
        value = arguments[parameter.name]
        if parameter.kind is parameter.VAR_POSITIONAL:
            args += value
        elif parameter.kind is parameter.VAR_KEYWORD or (parameter.name, name[-8:]) == (
            "setting",
            "__call__",
        ):
            kwargs |= value
        elif parameter.kind is parameter.KEYWORD_ONLY:
            kwargs[parameter.name] = value
        else:
            args.append(value)
    return args, kwargs


def inside(value):
    """Return what a value holds, to see whether it changes."""
    if isinstance(value, np.ndarray):
        return value.shape, str(value.dtype), value.tobytes() if value.dtype != object else repr(value)
    if isinstance(value, nn.Module):
        return repr(value), [(k, w.numpy(force=True).tobytes()) for k, w in value.state_dict().items()]
    if hasattr(value, "get_weights") and not inspect.isclass(value):
        return [w.tobytes() for w in value.get_weights()]
    if isinstance(value, dict):
        return {repr(k): inside(v) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return type(value), [inside(v) for v in value]
    return value.to_csv() if isinstance(value, pd.DataFrame) else repr(value)


def numbers(result):
    """Yield the numbers of a result."""
    if isinstance(result, dict):
        result = list(result.values())
    if isinstance(result, tuple | list):
        for part in result:
            yield from numbers(part)
    elif isinstance(result, torch.Tensor | np.ndarray | float):
        yield np.asarray(result)


def example(name, data):
    """Return a valid value of each argument."""
    return {argument: drawn(data, kind.good, argument) for argument, kind in CALLS[name].items()}


def drawn(data, strategy, label):
    value = data.draw(strategy, label)
    return value.make() if isinstance(value, Lazy) else value


fixed = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module", autouse=True)
def apart(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLOPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(torch.nn.Module, "__hash__", object.__hash__)
        yield


@pytest.mark.parametrize("name", sorted(set(CALLS) - set(ELSEWHERE)))
def test_what_is_allowed_works(name):
    @settings(fixed, max_examples=1 if name.startswith(SLOW) else 5)
    @given(st.data())
    def check(data):
        arguments = example(name, data)
        before = inside(arguments)
        args, kwargs = bound(name, arguments)
        result = PUBLIC[name](*args, **kwargs)
        assert all(x.dtype.kind in "iufb" and not np.isnan(x).any() for x in numbers(result)), result
        if name.rsplit(".")[-1] not in IN_PLACE:
            assert inside(arguments) == before, "an argument has changed"

    check()


@pytest.mark.parametrize(("name", "argument"), ARGUMENTS)
def test_what_is_not_allowed_is_refused(name, argument):
    @settings(fixed, max_examples=5 if name.startswith(SLOW) else 8)
    @given(st.data())
    def check(data):
        arguments = example(name, data) | {argument: drawn(data, CALLS[name][argument].bad, "bad")}
        before = inside(arguments)
        args, kwargs = bound(name, arguments)
        with pytest.raises((ValueError, TypeError)) as caught:
            PUBLIC[name](*args, **kwargs)
        message = str(caught.value)
        assert re.search(rf"(?<!\w){argument}(?!\w)", message), f"{argument} is not named: {message}"
        assert ALLOWED.search(message), f"what is allowed is not said: {message}"
        assert inside(arguments) == before, "an argument has changed"

    check()
