"""Exercises as notebooks of their own: unanswered they run, solved they pass, and no solution leaks."""

import re
from pathlib import Path

import nbformat
import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from dlopt_helpers.page import handouts
from dlopt_helpers.page.exercises import NOT_ANSWERED

ROOT = Path(__file__).parents[2]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]
ADDRESS = "https://x.org/y/blob/main/chapters/09_9_kites.ipynb"
SETUP, IMPORTS = "import importlib.util", "import numpy as np"
STUB = "def double(x):\n    return ...\n\n\ncheck_double(double)"
SOLVED = f"{handouts.SOLUTION}\n{STUB.replace('...', '2 * np.abs(x)')}"
CHECK = "def check_double(answer):\n    print('✓' if np.abs(answer(1) or 0) == 2 else '○ Not answered yet')"


def chapter(*exercise, before=(CHECK,)):
    """Return a chapter; text that begins with a letter is code, other text Markdown."""
    texts = ["# 9.9 Kites\n\nA promise.", SETUP, IMPORTS, "## The idea\n\nSome.", *before, *exercise]
    texts.append("## Key points\n\n- Kites fly.")
    made = [
        new_markdown_cell(t) if t.startswith(("# 9", "##", "-", "*")) else new_code_cell(t) for t in texts
    ]
    return new_notebook(cells=made)


EXERCISES = (
    "## Exercises\n\n### Exercise 1: double\n\nSee [this](#the-idea) and [that](03_1_sgd.ipynb#proof).",
)


def texts(notebook, kind="code"):
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def run(notebook):
    """Run the code from top to bottom in a namespace of its own."""
    namespace = {"__name__": "__main__"}
    for source in texts(notebook):
        exec(TransformerManager().transform_cell(source), namespace)


# --- every chapter -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "exercises"
    handouts.main(CHAPTERS, REPOSITORY, folder)
    return {path.stem: nbformat.read(path, as_version=4) for path in folder.glob("*.ipynb")}


def test_each_chapter_has_both(made):
    assert set(made) == {f"{path.stem}_{kind}" for path in CHAPTERS for kind in ("student", "solution")}
    for notebook in made.values():
        nbformat.validate(notebook)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_student_s_notebook_runs_unanswered(made, path, capsys):
    notebook = made[f"{path.stem}_student"]
    run(notebook)
    asked = sum("..." in source for source in texts(notebook))
    assert capsys.readouterr().out.splitlines() == [NOT_ANSWERED] * asked and asked >= 3


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_the_solutions_pass_every_check(made, path, capsys):
    run(made[f"{path.stem}_solution"])
    lines = capsys.readouterr().out.splitlines()
    asked = sum("..." in source for source in texts(made[f"{path.stem}_student"]))
    assert len(lines) == asked and all(line.startswith("✓ Correct.") for line in lines)


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_no_line_of_a_solution_leaks(made, path):
    student, solution = (set(_lines(made[f"{path.stem}_{kind}"])) for kind in ("student", "solution"))
    chapter = nbformat.read(path, as_version=4)
    solved = set(_lines(cell for cell in chapter.cells if cell.source.startswith(handouts.SOLUTION)))
    stubs = set(
        _lines(cell for cell in chapter.cells if re.search(r"^\s+return .*\.\.\.", cell.source, re.M))
    )
    assert solved <= solution
    assert not (solved - stubs) & student


def _lines(cells):
    cells = getattr(cells, "cells", cells)
    return [line.strip() for cell in cells for line in cell.source.splitlines() if re.search(r"\w", line)]


# --- what is taken, and what is not -------------------------------------------------------------------


def pair(*exercise, **more):
    return handouts.handouts(chapter(*EXERCISES, *exercise, **more), ADDRESS)


def test_stub_here_and_solution_there():
    student, solution = pair(STUB, SOLVED)
    assert texts(student) == [SETUP, IMPORTS, CHECK, STUB]
    assert texts(solution) == [SETUP, IMPORTS, CHECK, SOLVED]
    assert all(not cell.metadata for cell in [*student.cells, *solution.cells])


def test_title_and_links_lead_to_the_chapter():
    student, _ = pair(STUB, SOLVED)
    prose = "\n".join(texts(student, "markdown"))
    assert prose.startswith(f"# 9.9 Kites: exercises\n\nFrom [the chapter]({ADDRESS}).")
    assert f"[this]({ADDRESS}#the-idea)" in prose
    assert f"[that]({ADDRESS.replace('09_9_kites', '03_1_sgd')}#proof)" in prose
    assert "Kites fly" not in prose and "Some." not in prose


def test_a_word_on_the_solution_is_for_those_who_have_read_it():
    student, solution = pair(STUB, SOLVED, "*Twice is a sum.*", "### Exercise 2", STUB, SOLVED)
    assert "*Twice is a sum.*" in texts(solution, "markdown")
    assert "### Exercise 2" in texts(student, "markdown")
    assert "*Twice is a sum.*" not in texts(student, "markdown")


SLICES = {  # cells before the exercise, and those of them that it needs
    "unused": (["unused = 1", CHECK], [1]),
    "through another cell": (
        ["net = 2", "def train():\n    return net", "train()", "check_double = train"],
        [0, 1, 3],
    ),
    "the nearest": (["check_double = 1", "check_double = 2"], [1]),
    "one that reads what it replaces": (["check_double = 1", "check_double = check_double + 1"], [0, 1]),
    "one that adds": (["check_double = 1", "check_double += 1"], [0, 1]),
    "local names": (["a = i = 1", "def check_double(a):\n    return [i for i in a]"], [1]),
    "names of a loop": (["i = 1", "for i in range(3):\n    check_double = i"], [1]),
    "an attribute": (["lab = 1", "x = 1", "check_double = lab.x"], [0, 2]),
    "a magic": (["%matplotlib inline", "check_double = 1"], [1]),
}


@pytest.mark.parametrize("before, needed", SLICES.values(), ids=SLICES)
def test_the_cells_that_an_exercise_needs(before, needed):
    notebook = handouts.handouts(
        new_notebook(
            cells=[
                new_markdown_cell("# 9.9 Kites"),
                *map(new_code_cell, [SETUP, IMPORTS, *before]),
                *chapter(*EXERCISES, STUB, SOLVED, before=()).cells[4:],
            ]
        ),
        ADDRESS,
    )[0]
    assert texts(notebook)[:-1] == [SETUP, IMPORTS, *(before[i] for i in needed)]


REFUSED = {
    "no part": (("## Proof", STUB, SOLVED), "has no exercise"),
    "no stub": ((*EXERCISES, SOLVED), "has no exercise"),
    "no solution": ((*EXERCISES, STUB), "no solution .* follows this stub:\ndef double"),
    "two stubs": ((*EXERCISES, STUB, STUB, SOLVED), "no solution .* follows this stub"),
    "two solutions": ((*EXERCISES, STUB, SOLVED, SOLVED), "no stub stands before this solution"),
    "unknown name": ((*EXERCISES, STUB, SOLVED.replace("np", "xp")), "use xp, which no cell"),
}


@pytest.mark.parametrize("exercise, message", REFUSED.values(), ids=REFUSED)
def test_refused(exercise, message):
    with pytest.raises(ValueError, match=rf"(?s)09_9_kites\.ipynb.*{message}"):
        handouts.handouts(chapter(*exercise), ADDRESS)


def test_written_all_or_not_at_all(tmp_path):
    good, bad = tmp_path / "a.ipynb", tmp_path / "b.ipynb"
    nbformat.write(chapter(*EXERCISES, STUB, SOLVED), good)
    nbformat.write(chapter(*EXERCISES, STUB), bad)
    folder = tmp_path / "build" / "exercises"
    folder.mkdir(parents=True)
    (folder / "old.ipynb").write_text("old")
    with pytest.raises(ValueError, match=r"b\.ipynb: no solution"):
        handouts.main([good, bad], REPOSITORY, folder)
    assert [path.name for path in folder.iterdir()] == ["old.ipynb"]
    handouts.main([good], REPOSITORY, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["a_solution.ipynb", "a_student.ipynb"]
    assert [path.name for path in folder.parent.iterdir()] == ["exercises"]
