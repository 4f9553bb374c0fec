"""The set-up check says OK where all is well, and what to do where it is not."""

import subprocess
import sys

import pytest

from dlopt_helpers import doctor


def test_old_python():
    finding = doctor.python((3, 10, 4))
    assert not finding.well and "3.10.4" in finding.text and "3.11 or newer" in finding.text
    assert doctor.python((3, 11, 0)).well and doctor.python((4, 0, 0)).well


@pytest.mark.parametrize(
    "requirement, said",
    [
        ("no-such-package>=1", "no-such-package is missing: pip install 'no-such-package>=1'"),
        ("numpy>=99", "numpy is 2"),
        ("no-such-package>=1; extra == 'frameworks'", "is missing"),
    ],
)
def test_missing_and_old_packages(requirement, said):
    finding = doctor.packages(["pandas>=1", requirement])
    assert not finding.well and said in finding.text and "pandas" not in finding.text


@pytest.mark.parametrize(
    "requirement",
    ["no-such; extra == 'book'", "no-such; python_version < '3'", "no-such; sys_platform == 'x'"],
)
def test_what_is_not_needed_here(requirement):
    assert doctor.packages(["numpy>=1", requirement]) == ("packages", True, "all 1")


def test_tensorflow_by_its_other_name(monkeypatch):
    versions = {"tensorflow": "2.21.0"}

    def version(name):
        if name in versions:
            return versions[name]
        raise doctor.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(doctor.metadata, "version", version)
    assert doctor.packages(["tensorflow-cpu>=2.20"]).well
    assert "tensorflow is 2.21.0" in doctor.packages(["tensorflow-cpu>=3"]).text


@pytest.mark.parametrize(
    "code, patience, said",
    [
        ("raise ImportError('libx is missing')", 60, "ImportError: libx is missing"),
        ("import os; os._exit(3)", 60, "exit code 3"),
        ("import time; time.sleep(60)", 1, "within 1 seconds"),
    ],
)
def test_frameworks_that_do_not_start(code, patience, said):
    finding = doctor.framework("torch", doctor.start({"torch": code})["torch"], patience)
    assert not finding.well and said in finding.text


def test_little_memory():
    assert doctor.memory(2e9).well
    finding = doctor.memory(0.4e9)
    assert not finding.well and "0.4 GB free, 2 GB are needed" in finding.text


def test_memory_of_an_unknown_system(monkeypatch):
    monkeypatch.setattr(doctor, "_free_bytes", lambda: None)
    assert doctor.memory().well and "unknown" in doctor.memory().text


def test_data_that_are_not_generated(monkeypatch):
    monkeypatch.setitem(sys.modules, "mnist1d.data", None)
    finding = doctor.data()
    assert not finding.well and "pip install 'mnist1d" in finding.text


def test_no_widgets(monkeypatch):
    find = doctor.importlib.util.find_spec
    monkeypatch.setattr(
        doctor.importlib.util, "find_spec", lambda name: None if name == "ipywidgets" else find(name)
    )
    assert doctor.jupyter() == ("Jupyter", False, "ipywidgets missing: pip install ipywidgets")


def test_results_that_cannot_be_kept(tmp_path):
    (tmp_path / "file").write_text("")
    finding = doctor.disk(tmp_path / "file" / "cache")
    assert not finding.well and "DLOPT_CACHE" in finding.text
    assert doctor.disk(tmp_path / "new").well


@pytest.mark.parametrize("well", [True, False])
def test_exit_code(monkeypatch, capsys, well):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("Python", well, "3.11")])
    assert doctor.main() == int(not well)
    assert capsys.readouterr().out.startswith("OK" if well else "DO")


def test_this_machine_is_ready():
    done = subprocess.run([sys.executable, "-m", "dlopt_helpers.doctor"], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith("\n\nReady.\n"), done.stdout + done.stderr
    names = ["Python", "packages", "memory", "data", "Jupyter", "results", "torch", "tensorflow"]
    assert [line.split()[:2] for line in done.stdout.splitlines()[:-2]] == [["OK", name] for name in names]
