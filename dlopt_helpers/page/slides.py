"""Slides: the cells of a chapter that are tagged for it, as the book executed them.

A cell tagged ``slide`` begins a slide and a part of the talk, ``subslide`` a slide, and ``fragment`` adds to
the slide at the next key. Cells without such a tag are not shown. Building the book makes the slides as its
last step; ``python -m dlopt_helpers.page.slides`` makes them anew from the book in ``_build``.
"""

import copy
import importlib.util
import re
import shutil
from pathlib import Path

from dlopt_helpers.page.notebooks import CHECKED, linked

TAGS = ("slide", "subslide", "fragment")
HERE = Path(__file__).parent


def write_slides(build):
    """Write ``html/slides/<chapter>.html`` for each chapter that was executed, and what they share.

    Args:
      build: the folder with ``html`` and ``jupyter_execute``.

    Raises:
      FileNotFoundError: if no executed chapter is there.
      ValueError: if a chapter has no slides, or they do not begin with its first cell.
    """
    import nbformat

    site, executed = Path(build, "html"), Path(build, "jupyter_execute", "chapters")
    chapters = sorted(executed.glob("*.ipynb"))
    if not chapters:
        raise FileNotFoundError(f"{executed} holds no executed chapter: run `make book` first")
    decks = {path.stem: to_html(nbformat.read(path, as_version=4), path.stem) for path in chapters}
    reveal = Path(importlib.util.find_spec("sphinx_revealjs").origin).parent / "_static" / "revealjs" / "dist"
    static = site / "_static" / "reveal"
    static.mkdir(parents=True, exist_ok=True)
    for asset in (reveal / "reset.css", reveal / "reveal.css", reveal / "reveal.js", HERE / "slides.css"):
        shutil.copy(asset, static)
    folder = site / "slides"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for stem, deck in decks.items():
        (folder / f"{stem}.html").write_text(deck, encoding="utf-8")


def to_html(notebook, stem):
    """Return the page of slides of an executed chapter.

    Args:
      notebook: the executed notebook.
      stem: the name of its page in the book, such as ``"03_1_sgd"``.
    """
    from nbconvert import SlidesExporter
    from nbconvert.preprocessors import TagRemovePreprocessor

    exporter = SlidesExporter(
        raw_template=(HERE / "slides.html.j2").read_text(encoding="utf-8"),
        exclude_input_prompt=True,
        exclude_output_prompt=True,
        exclude_anchor_links=True,
    )
    # A claim is its sentence; the code behind it is in the book.
    without = TagRemovePreprocessor(remove_input_tags={"hide-input", CHECKED})
    exporter.register_preprocessor(without, enabled=True)
    shown = tagged(notebook, stem)
    title = shown.cells[0].source.partition("\n")[0].removeprefix("# ")
    page, _ = exporter.from_notebook_node(shown, {"chapter": stem, "title": title})
    return page


def tagged(notebook, stem):
    """Return a copy of the notebook with the cells for slides alone, marked as nbconvert wants them."""
    shown = copy.deepcopy(notebook)
    kinds = {c.id: tag for c in shown.cells for tag in c.metadata.get("tags", []) if tag in TAGS}
    if kinds.get(shown.cells[0].id) != "slide":
        raise ValueError(f"{stem}: slides begin with the title: tag the first cell 'slide'")
    shown.cells = [cell for cell in shown.cells if cell.id in kinds]
    for cell in shown.cells:
        cell.metadata.slideshow = {"slide_type": kinds[cell.id]}
        if cell.cell_type == "markdown":
            text = linked(cell.source, f"../chapters/{stem}.html")
            # Sphinx writes one hyphen in an anchor where GitHub and MyST write several.
            cell.source = re.sub(r"(?<=\]\()\.\./[^)]+", lambda link: re.sub("-+", "-", link[0]), text)
        else:
            cell.outputs = list(_merged(cell.outputs))
    return shown


def _merged(outputs):
    """Yield the outputs but for streams that MyST-NB has joined to the first of their name, and kept."""
    names = set()
    for output in outputs:
        if output.output_type != "stream" or output.name not in names:
            yield output
        names.add(output.get("name"))


if __name__ == "__main__":
    write_slides("_build")
