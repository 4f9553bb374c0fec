import ast
import subprocess
import sys
from pathlib import Path

import pytest

from dlopt_helpers.lab import memo
from dlopt_helpers.lab.data import digits

MODULE = """
from dlopt_helpers.lab.memo import memoise

@memoise
def f(n, g=None):
    print("computed")
    return n + OFFSET

OFFSET = {offset}
print(f(1))
"""


def run(path, offset, cache):
    """Run a module in a process of its own, as a second build of the book would."""
    path.write_text(MODULE.replace("{offset}", str(offset)))
    root = Path(memo.__file__).parents[2]
    code = f"import sys; sys.path[:0] = [{str(path.parent)!r}, {str(root)!r}]; import {path.stem}"
    done = subprocess.run(
        [sys.executable, "-B", "-c", code],
        env={"DLOPT_CACHE": str(cache)},
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_results_live_until_the_file_changes(tmp_path):
    module = tmp_path / "some_chapter.py"
    assert run(module, 1, tmp_path) == ["computed", "2"]
    assert run(module, 1, tmp_path) == ["2"]
    assert run(module, 5, tmp_path) == ["computed", "6"]  # f itself did not change, its module did


def test_digest_covers_what_is_imported_and_nothing_else(tmp_path, monkeypatch):
    package = tmp_path / "dlopt_helpers"
    monkeypatch.setattr(memo, "_PACKAGE", package)
    files = {
        "lab/sweep.py": "import dlopt_helpers.page.explorer\ndef f(): from dlopt_helpers.lab import models",
        "lab/models.py": "from dlopt_helpers import _require\nfrom dlopt_helpers.sgd import SGD\nimport ast",
        "sgd.py": "import dlopt_helpers.lab.sweep",  # a circle ends
        "adam.py": "",
        "page/explorer.py": "",
        "_require.py": "",
        "__init__.py": "",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)

    def digest():
        memo.code_digest.cache_clear()
        return memo.source_digest(package / "lab/sweep.py")

    for name, text in files.items():
        before = digest()
        (package / name).write_text(text + "\nx = 1")
        assert (digest() != before) == (name in ("lab/sweep.py", "lab/models.py", "sgd.py")), name
    memo.code_digest.cache_clear()


@pytest.mark.parametrize(
    "text",
    [
        'def f(a=1):\n    """Return another."""\n    return a  # why',
        "def f(\n    a=1,\n):\n\n    return a",
        '"""A module."""\n\ndef f(a=1):\n    return (a)',
    ],
)
def test_words_and_layout_do_not_count(text):
    assert said("def f(a=1):\n    return a") == said(text)


@pytest.mark.parametrize(
    "text",
    [
        "def f(a=2):\n    return a",
        "def f(a=1.0):\n    return a",
        "def f(a=1):\n    'x'\n    return -a",
        "f = 1",
    ],
)
def test_whatever_python_reads_counts(text):
    assert said("def f(a=1):\n    return a") != said(text)


def said(text):
    return repr(memo._said(ast.parse(text)))


def test_another_version_of_a_library_means_a_new_key(monkeypatch):
    before, version = memo.source_digest(memo.__file__), memo.metadata.version
    for new in memo._LIBRARIES:
        monkeypatch.setattr(
            memo.metadata, "version", lambda name, new=new: "0" if name == new else version(name)
        )
        assert memo.source_digest(memo.__file__) != before, new


def test_the_rule_of_a_sweep_is_part_of_its_key():
    sweep, adam = (memo._PACKAGE / name for name in ("lab/sweep.py", "adam.py"))
    names = {str(file.relative_to(memo._PACKAGE)) for file in memo._with_imports([sweep])}
    assert {"lab/sweep.py", "lab/training.py", "lab/models.py", "sgd.py"} <= names
    assert "adam.py" not in names and adam in memo._with_imports([sweep, adam])
    assert not names & {"lab/memo.py", "lab/published.py", "lab/spread.py", "_require.py"}


def test_a_changed_argument_means_a_new_key(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path))
    monkeypatch.setattr(memo, "source_digest", lambda *files: seen.append(files) or "0" * 16)

    @memo.memoise
    def name(thing, other=None):
        return thing.__name__

    name(digits)
    name(digits, other=memo.memoise)
    assert [Path(f).name for f in seen[0]] == ["test_memo.py", "data.py"]
    assert [Path(f).name for f in seen[1]] == ["test_memo.py", "data.py", "memo.py"]


def test_what_a_reader_defines_is_never_kept():
    calls = []

    def count(f):
        calls.append(f)

    cached = memo.memoise(count)
    for _ in range(2):
        cached(lambda: None)
    assert len(calls) == 2
    assert memo._of_package(digits) and not memo._of_package(count)


def test_nothing_stands_between_a_function_and_what_keeps_its_results():
    """Another decorator would hide the file, and with it every change, from the key."""
    found = 0
    for path in memo._PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [ast.unparse(decorator) for decorator in getattr(node, "decorator_list", [])]
            for ours in {"memoise", "published"} & set(names):
                found += 1
                assert names[-1] == ours, f"{path.name}: {node.name} has @{names[-1]} below @{ours}"
    assert found > 30
