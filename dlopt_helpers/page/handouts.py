"""Handouts: the exercises of a chapter as two notebooks, one to answer and one with the solutions.

``python -m dlopt_helpers.page.handouts chapters/*.ipynb`` writes them to ``_build/exercises``. The chapter
stays the only source. Which of its cells an exercise needs is read off the code.
"""

import ast
import builtins
import re
import shutil
import symtable
import sys
import tempfile
from pathlib import Path

import nbformat
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dlopt_helpers.page.notebooks import linked

SOLUTION = "# @title Solution"
FOLDER = Path("_build", "exercises")


def handouts(chapter, address):
    """Return the student's notebook of a chapter, and the one where solutions stand in place of stubs.

    Both hold the title, the set-up cell, the cells whose names the exercises use, and the exercises. Prose
    between a solution and the next heading is for those who have read the solution.

    Args:
      chapter: the notebook.
      address: where it is published; its links lead there.

    Raises:
      ValueError: if there is no exercise, a stub has no solution or a solution no stub, or an exercise uses
        a name that no cell before it gives.
    """
    name = address.rsplit("/", 1)[-1]
    start, cells = _exercises(chapter.cells)
    if not any(_is_stub(cell) for _, cell in cells):
        raise ValueError(f"{name} has no exercise: no stub with `...` stands under '## Exercises'")
    _check_pairs(name, [cell for _, cell in cells if cell.cell_type == "code"])
    code = [cell for cell in chapter.cells[:start] if cell.cell_type == "code"]
    needed = _needed(name, code, [cell for _, cell in cells])
    student = [cell for answered, cell in cells if not answered and not _is_solution(cell)]
    solved = [cell for _, cell in cells if not _is_stub(cell)]
    title = chapter.cells[0].source.partition("\n")[0]
    head = new_markdown_cell(f"{title}: exercises\n\nFrom [the chapter]({address}).")
    return tuple(_notebook([head, *needed, *kept], address) for kept in (student, solved))


def _exercises(cells):
    """Return the index of the first cell under "## Exercises", and the pieces there as (answered, cell)."""
    found, inside, answered, start = [], False, False, len(cells)
    for index, cell in enumerate(cells):
        if cell.cell_type == "code":
            found += [(answered, cell)] * inside
            answered = answered or _is_solution(cell)
            continue
        for piece in re.split(r"^(?=##+ )", cell.source, flags=re.MULTILINE):
            if piece.startswith("## "):
                inside = piece.startswith("## Exercises\n")
                start = index if inside else start
            answered = answered and not piece.startswith("#")
            found += [(answered, new_markdown_cell(piece.strip()))] * (inside and bool(piece.strip()))
    return start, found


def _is_solution(cell):
    return cell.cell_type == "code" and cell.source.startswith(SOLUTION)


def _is_stub(cell):
    """Return whether a cell asks: it has a ``...`` of its own, and calls a check."""
    if cell.cell_type != "code" or _is_solution(cell):
        return False
    nodes = list(ast.walk(_parsed(cell.source)))
    asks = any(isinstance(node, ast.Constant) and node.value is ... for node in nodes)
    return asks and any(isinstance(node, ast.Call) and "check_" in ast.unparse(node.func) for node in nodes)


def _check_pairs(name, cells):
    waiting = None
    for cell in cells:
        if _is_solution(cell):
            if waiting is None:
                raise ValueError(f"{name}: no stub stands before this solution:\n{cell.source}")
            waiting = None
        elif _is_stub(cell):
            if waiting is not None:
                break
            waiting = cell
    if waiting is not None:
        raise ValueError(f"{name}: no solution ({SOLUTION!r}) follows this stub:\n{waiting.source}")


def _needed(name, before, exercises):
    """Return the cells of ``before`` that ``exercises`` use: a slice of the chapter, taken backwards.

    The first, which sets up, always belongs to it. A cell that only changes an object is not seen.
    """
    wanted = set()
    for cell in reversed([cell for cell in exercises if cell.cell_type == "code"]):
        uses, gives = _names(cell.source)
        wanted = uses | wanted - gives
    kept = []
    for cell in reversed(before[1:]):
        uses, gives = _names(cell.source)
        if wanted & gives:
            kept.insert(0, cell)
            wanted = uses | wanted - gives
    if unknown := sorted(wanted - set(dir(builtins))):
        raise ValueError(f"{name}: the exercises use {', '.join(unknown)}, which no cell before them gives")
    return [*before[:1], *kept]


def _names(source):
    """Return the names that a cell takes from cells before it, and those that it gives to cells after it."""
    uses, gives = set(), set()
    for statement in _parsed(source).body:
        table = symtable.symtable(ast.unparse(statement), "cell", "exec")
        bound = {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}
        read = _read(table)
        if isinstance(statement, ast.AugAssign):
            read |= bound
        if hasattr(statement, "body"):  # what it reads of its own, it has bound before
            read -= bound
        uses |= read - gives
        gives |= bound
    return uses, gives


def _read(table):
    """Return the global names that a scope and those inside it read."""
    top = table.get_type() == "module"
    own = {s.get_name() for s in table.get_symbols() if s.is_referenced() and (top or s.is_global())}
    return own.union(*(_read(child) for child in table.get_children()))


def _parsed(source):
    """Return the tree of a cell, its magics turned into calls as IPython does it."""
    return ast.parse(TransformerManager().transform_cell(source))


def _notebook(cells, address):
    notebook = new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for cell in cells:
        if cell.cell_type == "code":
            folded = "hide-input" in cell.metadata.get("tags", [])
            metadata = {"jupyter": {"source_hidden": True}} if folded else {}
            notebook.cells.append(new_code_cell(cell.source, metadata=metadata))
        else:
            notebook.cells.append(new_markdown_cell(linked(cell.source, address)))
    for number, cell in enumerate(notebook.cells):  # nothing in the file is chance
        cell.id = f"cell-{number}"
    return notebook


def main(paths, repository, folder=FOLDER):
    """Write two notebooks for each chapter into a folder, all or none, in place of those there."""
    made = {}
    for path in map(Path, paths):
        address = f"{repository['url']}/blob/{repository['branch']}/chapters/{path.name}"
        pair = handouts(nbformat.read(path, as_version=4), address)
        made |= {
            f"{path.stem}_{kind}.ipynb": notebook
            for kind, notebook in zip(("student", "solution"), pair, strict=True)
        }
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as new:
        for name, notebook in made.items():
            nbformat.write(notebook, Path(new, name))
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(new, folder)
    print(f"{len(made)} notebooks in {folder}")


if __name__ == "__main__":
    import yaml

    main(sys.argv[1:], yaml.safe_load(Path("_config.yml").read_text())["repository"])
