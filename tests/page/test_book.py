"""The Sphinx extension: no stale page, nothing served without its licence."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from dlopt_helpers.page import book

SITE = Path(__file__).parents[2] / "_build" / "html"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setattr(book, "PACKAGE", tmp_path / "package")
    for name in ("package/page/explorer.js", "package/sgd.py", "requirements.lock"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("1")
    return tmp_path


CODE = [
    "package/page/explorer.js",
    "package/sgd.py",
    "package/new.py",
    "package/runs.jsonl",
    "requirements.lock",
]


@pytest.mark.parametrize("name", CODE)
def test_digest_follows_the_code(tree, name):
    before = book.code_digest(tree)
    (tree / name).write_text("2")
    assert book.code_digest(tree) != before


def test_digest_ignores_what_no_cell_runs(tree):
    before = book.code_digest(tree)
    (tree / "package" / "sgd.pyc").write_text("2")
    (tree / "package" / "slides.py").write_text("2")
    (tree / "intro.md").write_text("2")
    assert book.code_digest(tree) == before


def test_cache_of_other_code_is_dropped(tmp_path):
    caches = tmp_path / ".jupyter_cache"
    for digest in ("old", "now"):
        (caches / digest).mkdir(parents=True)
    config = SimpleNamespace(dlopt_code="now")
    book.choose_cache(SimpleNamespace(outdir=str(tmp_path / "html")), config)
    assert list(caches.iterdir()) == [caches / "now"]
    assert config.nb_execution_cache_path == str(caches / "now")


def test_site_serves_what_pages_share_with_its_licences():
    static = SITE / "_static"
    assert (static / "mathjax" / "tex-mml-chtml.js").stat().st_size > 1e6
    assert (static / "mathjax/output/chtml/fonts/woff-v2/MathJax_Main-Regular.woff").exists()
    licences = {"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "OFL-1.1"}
    assert {p.stem for p in (static / "licenses").glob("*.txt")} == licences
    assert sum(p.stat().st_size for p in (static / "scripts").iterdir()) < 2e5


@pytest.mark.parametrize("page", sorted(SITE.rglob("*.html")) or [SITE / "index.html"], ids=lambda p: p.stem)
def test_pages_load_charts_only_where_one_is(page):
    text = page.read_text()
    assert ('src="' in text and "dlopt/vega.js" in text) == ('class="dlopt-explorer"' in text)
