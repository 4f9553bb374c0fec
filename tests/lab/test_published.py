import importlib
import json
import sys

import numpy as np
import pandas as pd
import pytest

from dlopt_helpers.lab import memo, published

LINES = [
    (path, json.loads(line))
    for path in sorted(published._PACKAGE.rglob("*.jsonl"))
    for line in path.read_text(encoding="utf-8").splitlines()
]
MODULE = '''
from dlopt_helpers.lab.published import published

CALLS = []

@published
def trained(seed, rule=None):
    """Return a table."""
    CALLS.append(seed)
    return {"seed": seed, "accuracy": 0.5}  # not measured
'''


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that writes the only module of a package, and imports it."""
    room = tmp_path / "package"
    room.mkdir()
    monkeypatch.setattr(published, "_PACKAGE", room)
    monkeypatch.setenv("DLOPT_NOTED", str(tmp_path / "noted"))
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DLOPT_TRAIN", raising=False)
    monkeypatch.syspath_prepend(room)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write(text):
        (room / "some_runs.py").write_text(text)
        sys.modules.pop("some_runs", None)
        importlib.invalidate_caches()
        memo.code_digest.cache_clear()
        published._lines.cache_clear()
        return importlib.import_module("some_runs")

    yield write
    sys.modules.pop("some_runs", None)


def test_what_was_published_is_not_trained_again(package, tmp_path, monkeypatch):
    module = package(MODULE)
    result = module.trained(seed=3)
    assert module.CALLS == [3]
    (path,) = published.publish(tmp_path / "noted")
    assert path.name == "some_runs.jsonl"
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line["function"] == "trained" and line["arguments"] == {"seed": 3, "rule": None}
    assert line["result"] == result and line["libraries"] == memo.libraries()

    module = package(MODULE)
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path / "another machine"))
    monkeypatch.setattr(published, "libraries", lambda: {"numpy": "another version"})
    monkeypatch.setenv("DLOPT_TRAIN", "never")
    assert module.trained(3) == module.trained(np.int64(3), rule=None) == result and module.CALLS == []
    with pytest.raises(LookupError, match=r"trained.*\"seed\": 4.* has no published result"):
        module.trained(4)
    monkeypatch.setenv("DLOPT_TRAIN", "always")
    assert module.trained(3) == result and module.CALLS == [3]
    monkeypatch.setenv("DLOPT_TRAIN", "")
    module.trained(4)
    assert module.CALLS == [3, 4]
    monkeypatch.setenv("DLOPT_TRAIN", "now")
    with pytest.raises(ValueError, match="DLOPT_TRAIN='now' is not allowed: it must be one of"):
        module.trained(3)


def test_a_line_holds_while_the_code_says_the_same(package, tmp_path):
    package(MODULE).trained(3)
    published.publish(tmp_path / "noted")
    alike = [MODULE.replace("# not measured", "# invented"), MODULE.replace("Return a table.", "Train.")]
    for text in (*alike, MODULE.replace('"accuracy": 0.5', '"accuracy":\n0.5')):
        module = package(text)
        module.trained(3)
        assert module.CALLS == [], text
    for text in (MODULE.replace("0.5", "0.6"), MODULE + "\nRATE = 0.1\n"):
        module = package(text)
        module.trained(3)
        assert module.CALLS == [3], text


def test_publishing_keeps_what_was_called_and_no_more(package, tmp_path):
    module = package(MODULE)
    with pytest.raises(ValueError, match=r"folder='.*noted' is not allowed"):
        published.publish(tmp_path / "noted")
    old = tmp_path / "package" / "old_runs.jsonl"
    old.write_text("{}\n")
    for seed in (2, 1, 2):
        module.trained(seed)
    ((path, n),) = published.publish(tmp_path / "noted").items()
    assert n == 2 and not old.exists()
    assert [json.loads(line)["arguments"]["seed"] for line in path.read_text().splitlines()] == [1, 2]


def test_what_has_no_name_is_never_published(package, tmp_path):
    module = package(MODULE)
    module.trained(np.arange(3))
    module.trained(1, rule=lambda: None)  # a reader's own
    assert len(module.CALLS) == 2 and not (tmp_path / "noted").exists()


def test_within_a_memoised_function_nothing_is_noted(package, tmp_path):
    module = package(MODULE)
    outer = MODULE.replace("trained", "outer").replace("CALLS.append(seed)", "INNER(seed)")
    (tmp_path / "package" / "outer_runs.py").write_text(outer)
    outer = importlib.import_module("outer_runs")
    outer.INNER = module.trained
    outer.outer(5)
    assert module.CALLS == [5] and len(list((tmp_path / "noted").iterdir())) == 1


@pytest.mark.parametrize(
    "result",
    [
        pd.DataFrame(
            {"a": [0.1, np.nan, np.inf], "b": [1, 2, 3], "c": ["x", "é", "z"], "d": [True, False, True]}
        ),
        pd.DataFrame({"left": np.array([0.1, 1 / 3], "float32"), "right": [1.0, 2.0]}),
        ({"a": 1.0}, [1, None, "x", (2.5, True)], pd.DataFrame({"n": [1]})),
        {"a": np.float64(1 / 3), "b": np.int64(3)},
    ],
)
def test_results_survive_as_text(result):
    def same(a, b):
        if isinstance(a, pd.DataFrame):
            pd.testing.assert_frame_equal(a, b, check_exact=True)
        elif isinstance(a, dict):
            assert a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
        elif isinstance(a, list | tuple):
            assert type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
        else:
            assert a == b
        return True

    assert same(result, published._decoded(json.loads(json.dumps(published._encoded(result)))))


def test_a_table_that_text_would_change_is_refused():
    with pytest.raises(AssertionError, match="dtype"):
        published._encoded(pd.DataFrame({"n": np.array([1], "int8")}))


# --- what the package publishes -----------------------------------------------------------------------


def function_of(path, line):
    module = ".".join(path.relative_to(published._PACKAGE.parent).with_suffix("").parts)
    return getattr(importlib.import_module(module), line["function"])


def named(value):
    """Return arguments as they were, with functions and classes in place of their names."""
    if isinstance(value, dict):
        return {name: named(v) for name, v in value.items()}
    if isinstance(value, list):
        return list(map(named, value))
    if isinstance(value, str) and value.startswith("dlopt_helpers."):
        module, _, name = value.rpartition(".")
        return getattr(importlib.import_module(module), name)
    return value


def modules(value):
    """Yield the files of the functions and classes that are named among arguments."""
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from modules(part)
    if isinstance(value, str) and value.startswith("dlopt_helpers."):
        yield published._PACKAGE.parent.joinpath(*value.split(".")[:-1]).with_suffix(".py")


def test_each_line_is_of_this_code():  # nothing is imported: each Python must find the same
    assert len(LINES) > 300
    for path, line in LINES:
        files = path.with_suffix(".py"), *sorted(set(modules(line["arguments"])))
        assert memo.code_digest(*files).startswith(line["code"]), f"{path.name} is old: run `make claims`"


def test_each_line_is_of_a_call_that_can_be_made():
    for path, line in LINES:
        _, call = published._call(function_of(path, line).__wrapped__, (), named(line["arguments"]))
        assert call == {name: line[name] for name in call}, f"{path.name} is old: run `make claims`"


def test_all_lines_are_of_one_set_of_libraries():
    made = {json.dumps(line["libraries"], sort_keys=True) for _, line in LINES}
    assert len(made) == 1, "train all of it anew: DLOPT_TRAIN=always make claims"
