import subprocess
import sys
from pathlib import Path

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


def test_digest_covers_the_algorithms_and_not_the_pages(tmp_path, monkeypatch):
    for room in ("lab", "page", "chapters"):
        (tmp_path / room).mkdir()
    monkeypatch.setattr(memo, "_PACKAGE", tmp_path)

    def digest():
        memo.source_digest.cache_clear()
        return memo.source_digest()

    files = {"sgd.py": True, "lab/sweep.py": True, "page/a.py": False, "chapters/a.py": False}
    for name, matters in files.items():
        before = digest()
        (tmp_path / name).write_text("x = 1")
        assert (digest() != before) == matters, name
    memo.source_digest.cache_clear()


def test_what_a_reader_defines_is_never_kept():
    calls = []

    def count(f):
        calls.append(f)

    cached = memo.memoise(count)
    for _ in range(2):
        cached(lambda: None)
    assert len(calls) == 2
    assert memo._of_package(digits) and not memo._of_package(count)
