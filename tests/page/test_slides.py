"""Slides show the cells that are tagged, as the book shows them, and ask nothing of other origins."""

import re
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from dlopt_helpers.page.notebooks import CHECKED
from dlopt_helpers.page.slides import tagged, to_html, write_slides

SITE = Path(__file__).parents[2] / "_build" / "html"
DECKS = sorted((SITE / "slides").glob("*.html"))


def printed(*texts):
    return [new_output("stream", text=text) for text in texts]


def chapter(first="slide"):
    """Return an executed chapter of three slides."""
    cells = [
        (new_markdown_cell("# 9.9 Kites & wind\n\nSee [there](03_2_adam.ipynb#90--same) -- or not."), first),
        (new_markdown_cell("Nobody sees this."), None),
        (new_code_cell("lift = 2", outputs=printed("printed")), "slide"),
        (new_code_cell("secret = 3", outputs=printed("shown")), "hide-input fragment"),
        (
            new_code_cell("claim('Up.', up)", outputs=printed("✓ Up.\n✓ Far.\n", "✓ Far.\n")),
            f"{CHECKED} subslide",
        ),
        (
            new_code_cell("explorer", outputs=[new_output("display_data", {"text/html": "<figure>"})]),
            "fragment",
        ),
    ]
    for cell, tags in cells:
        cell.metadata["tags"] = tags.split() if tags else []
    return new_notebook(cells=[cell for cell, _ in cells])


def test_tagged_cells_make_slides_and_others_none():
    deck = to_html(chapter(), "09_9_kites")
    assert len(re.findall("<section", deck)) == 2 + 3  # nbconvert puts each part into a section of its own
    assert deck.count('class="fragment"') == 2 and "Nobody" not in deck
    assert "<title>9.9 Kites &amp; wind</title>" in deck and "<figure>" in deck


def test_code_is_hidden_where_the_book_hides_it_and_behind_claims():
    deck = to_html(chapter(), "09_9_kites")
    assert "lift" in deck and "printed" in deck and "shown" in deck and "✓ Up." in deck
    assert "secret" not in deck and "claim" not in deck


def test_a_claim_comes_once():
    assert to_html(chapter(), "09_9_kites").count("✓ Far.") == 1


def test_links_lead_to_the_pages_of_the_book():
    deck = to_html(chapter(), "09_9_kites")
    assert 'href="../chapters/03_2_adam.html#90-same"' in deck and "-- or not" in deck
    assert 'href="../chapters/09_9_kites.html"' in deck


def test_the_chapter_stays_as_it_is():
    notebook = chapter()
    before = nbformat.writes(notebook)
    tagged(notebook, "09_9_kites")
    assert nbformat.writes(notebook) == before


@pytest.fixture
def build(tmp_path):
    folder = tmp_path / "jupyter_execute" / "chapters"
    folder.mkdir(parents=True)
    (tmp_path / "html" / "slides").mkdir(parents=True)
    (tmp_path / "html" / "slides" / "old.html").write_text("old")
    return tmp_path, folder


def test_written_all_with_what_they_share(build):
    path, folder = build
    nbformat.write(chapter(), folder / "09_9_kites.ipynb")
    write_slides(path)
    assert [deck.name for deck in (path / "html" / "slides").iterdir()] == ["09_9_kites.html"]
    shared = {file.name for file in (path / "html" / "_static" / "reveal").iterdir()}
    assert shared == {"reset.css", "reveal.css", "reveal.js", "slides.css"}


@pytest.mark.parametrize("first", ["", "subslide", "hide-input"])
def test_a_chapter_without_slides_stops_all(build, first):
    path, folder = build
    nbformat.write(chapter(), folder / "09_8_strings.ipynb")
    nbformat.write(chapter(first), folder / "09_9_kites.ipynb")
    with pytest.raises(
        ValueError, match="09_9_kites: slides begin with the title: tag the first cell 'slide'"
    ):
        write_slides(path)
    assert [deck.name for deck in (path / "html" / "slides").iterdir()] == ["old.html"]


def test_no_executed_chapter_says_what_to_run(build):
    with pytest.raises(FileNotFoundError, match="holds no executed chapter: run `make book` first"):
        write_slides(build[0])


# --- the built book ----------------------------------------------------------------------------------


def test_each_chapter_of_the_site_has_slides():
    assert DECKS and [d.name for d in DECKS] == sorted(p.name for p in (SITE / "chapters").glob("*.html"))


@pytest.mark.parametrize("deck", DECKS or [SITE / "slides.html"], ids=lambda deck: deck.stem)
def test_a_deck_loads_files_of_the_site_alone(deck):
    text = deck.read_text()
    loaded = re.findall(r"<(?:script|link|img|iframe)\b[^>]*?\b(?:src|href)=[\"']([^\"']+)", text)
    assert len(loaded) >= 10
    for address in loaded:
        assert address.startswith("data:") or (deck.parent / address).resolve().is_file(), address
    assert "import(" not in text and "@import" not in text and "require" not in loaded
