"""A fork names its own repository everywhere, the old one nowhere, and loses nothing."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from dlopt_helpers import __version__
from dlopt_helpers.page.fork import fork, forked
from dlopt_helpers.page.notebooks import setup_cell

ROOT = Path(__file__).parents[2]
# In two pieces: a book that is forked holds this file, too.
NEW = "/".join(("a-school-with-a-long-name", "making-models-cheaper_2027"))


def tracked(root):
    names = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True)
    return {name: (root / name).read_bytes() for name in names.stdout.split("\0") if (root / name).is_file()}


@pytest.fixture
def book(tmp_path):
    """A checkout of its own, with all files of this one."""
    for name, content in tracked(ROOT).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    for command in (["init", "-q"], ["add", "."]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    return tmp_path


def test_set_up_cells_and_badges_lead_to_the_new_repository_and_nothing_mentions_the_old_one(book):
    old, changed = fork(book, NEW)
    owner = old.split("/")[0].encode()
    assert not [name for name, content in tracked(book).items() if owner in content]
    names = {str(path.relative_to(book)) for path in changed}
    assert {"_config.yml", "CITATION.cff", "README.md", "intro.md", "pyproject.toml"} < names
    wanted = setup_cell(f"https://github.com/{NEW}", __version__)
    chapters = sorted((book / "chapters").glob("*.ipynb"))
    assert chapters
    for path in chapters:
        cells = json.loads(path.read_text())["cells"]
        assert "".join(next(c for c in cells if c["cell_type"] == "code")["source"]) == wanted, path.name
    badge = re.compile(r"github/([^/]+/[^/]+)/blob")
    before, after = (badge.findall((root / "README.md").read_text()) for root in (ROOT, book))
    assert set(before) == {old} and after == [NEW] * len(before)


def test_there_and_back_changes_no_byte(book):
    before = tracked(book)
    old, _ = fork(book, NEW)
    assert fork(book, old)[0] == NEW
    assert tracked(book) == before


@pytest.mark.parametrize("name", ["", "dlopt", "a/b/c", "a b/c", "-a/b", "https://github.com/a/b", "a/b.git"])
def test_a_bad_name_is_refused_before_anything_is_read(tmp_path, name):
    with pytest.raises(ValueError, match=r"REPO=.*is not allowed: it must be owner/name"):
        fork(tmp_path, name)


def test_a_book_without_a_repository_says_so(tmp_path):
    (tmp_path / "_config.yml").write_text("title: a book\n")
    with pytest.raises(ValueError, match=r"_config\.yml names no repository"):
        fork(tmp_path, NEW)


def test_a_longer_name_is_another_repository():
    text = "a/book a/book-two a/books xa/book a/book.git a/book@v1"
    assert forked(text, "a/book", "b/c") == "b/c a/book-two a/books xa/book b/c.git b/c@v1"


def test_the_command_says_what_is_left_to_do(book):
    said = subprocess.run(["make", "-s", "fork", f"REPO={NEW}"], cwd=book, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    assert f"v{__version__}" in said.stdout and "intro.md" in said.stdout
    bad = subprocess.run(["make", "-s", "fork"], cwd=book, capture_output=True, text=True)
    assert bad.returncode and "REPO='' is not allowed" in bad.stderr
