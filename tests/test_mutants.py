"""The planted faults fit the sources as they are, and what becomes of a fault is told rightly."""

import importlib.util
import inspect
import linecache
import multiprocessing

import mutants
import pytest
from mutants import ROOT, Fault, Planted, faults, main, tried, verdict

LOOK_AHEAD = Fault("sgd", "look-ahead missing", "gradient + self.momentum * velocity", "velocity", [])
TESTS = {
    "caught": """
import inspect
from dlopt_helpers.sgd import SGD
def test_true(): assert "direction = velocity\\n" in inspect.getsource(SGD)
def test_right(): assert SGD(1, 0.5, True).step(0.0, 1.0, {"velocity": 0.0})[0] == -1.5
""",
    "survived": "from dlopt_helpers.sgd import SGD\ndef test_lenient(): assert SGD(1)",
    "invalid": "def test_another_module(): assert True",
}


def test_every_fault_fits_and_is_tried_on_tests_that_are_there():
    planted = faults()
    for fault in planted:
        fault.source()
        assert fault.tests
        for test in fault.tests:
            file, _, name = test.partition("::")
            assert f"def {name or 'test_'}" in (ROOT / file).read_text(), test
    assert len(planted) == len({(fault.module, fault.name) for fault in planted}) >= 40


def test_every_formula_and_every_bridge_has_a_fault():
    files = [*(ROOT / "dlopt_helpers").glob("[!_]*.py"), *(ROOT / "dlopt_helpers/bridges").glob("[!_]*.py")]
    assert {file for file in files if file.stem != "doctor"} <= {fault.file for fault in faults()}


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("no such text", "", "sgd: a name: its text occurs 0 times"),
        ("velocity", "v", r"sgd: a name: its text occurs \d+ times"),
        ("def step(", "def step((", "sgd: a name: it is no Python"),
        ("import dataclass\n", "import dataclass  # frozen\n", "sgd: a name: it changes no code"),
    ],
)
def test_a_fault_that_does_not_fit_is_named_and_nothing_is_tried(monkeypatch, capsys, old, new, message):
    fault = Fault("sgd", "a name", old, new, ["tests/test_sgd.py"])
    with pytest.raises(ValueError, match=message):
        fault.source()
    monkeypatch.setattr(mutants, "faults", lambda: [LOOK_AHEAD, fault])
    monkeypatch.setattr(mutants, "tried", None)
    assert main(["sgd"]) and "sgd: a name:" in capsys.readouterr().out


def test_the_hook_changes_the_module_it_names_and_no_file(monkeypatch):
    monkeypatch.setattr(linecache, "cache", {})
    before = LOOK_AHEAD.file.read_bytes()
    planted = Planted(LOOK_AHEAD)
    assert planted.find_spec("dlopt_helpers.adam") is None
    module = importlib.util.module_from_spec(planted.find_spec("dlopt_helpers.sgd"))
    planted.exec_module(module)
    assert module.SGD(1, 0.5, True).step(0.0, 1.0, {"velocity": 0.0})[0] == -1.0  # -1.5 with the look-ahead
    assert "direction = velocity\n    " in inspect.getsource(module)
    assert planted.loaded and LOOK_AHEAD.file.read_bytes() == before


@pytest.mark.parametrize("word", TESTS)
def test_what_becomes_of_a_fault(tmp_path, monkeypatch, word):
    monkeypatch.setattr(mutants, "PROCESSES", multiprocessing.get_context("spawn"))  # loads no framework
    file = tmp_path / "test_it.py"
    file.write_text(TESTS[word])
    found, what = verdict(tried([str(file)], LOOK_AHEAD))
    assert found == word, what
    assert ("test_right" in what) == (word == "caught")


@pytest.mark.parametrize(
    "seen, message",
    [
        ({"end": "Segmentation fault"}, "Segmentation fault"),
        ({"broken": ["tests/test_sgd.py"]}, "could not collect tests/test_sgd.py"),
        ({"failed": {"a_test": "NameError: name 'v'"}}, "the patch itself is wrong: NameError"),
        ({"passed": 0, "end": "no tests ran"}, "no tests ran"),
    ],
)
def test_a_fault_that_no_test_could_judge_is_not_caught(seen, message):
    whole = {"loaded": True, "broken": [], "failed": {}, "passed": 1, "end": ""} | seen
    word, why = verdict(seen if "Segm" in message else whole)
    assert word == "invalid" and message in why


@pytest.mark.parametrize(
    "failed, without, left",
    [
        (["a_test"], {"passed": 1}, "nothing"),
        ([], {}, "survived: sgd: look-ahead missing"),
        (["a_test"], {"passed": 0, "failed": {"a_test": ""}}, "fails without a fault, too: a_test"),
        (["a_test"], {"end": "Killed"}, "of 1 tests that caught something 0 pass without a fault: Killed"),
    ],
)
def test_the_table_ends_with_what_is_amiss(monkeypatch, capsys, failed, without, left):
    faulty = {"loaded": True, "broken": [], "failed": dict.fromkeys(failed, ""), "passed": 3, "seconds": 1.0}
    monkeypatch.setattr(mutants, "faults", lambda: [LOOK_AHEAD])
    monkeypatch.setattr(mutants, "tried", lambda tests, fault=None: faulty if fault else without)
    assert main([]) == (left != "nothing")
    assert capsys.readouterr().out.split("Amiss:\n")[1] == f"{left}\n"


def test_where_there_are_no_faults_nothing_is_right(monkeypatch, capsys):
    monkeypatch.setattr(mutants, "faults", lambda: [LOOK_AHEAD])
    assert main(["no_module"]) and "no fault is planted in 'no_module'" in capsys.readouterr().out
    monkeypatch.setattr(mutants, "faults", list)
    assert main([]) and "there are no faults" in capsys.readouterr().out
