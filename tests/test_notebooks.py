"""Every chapter keeps the shape of a chapter; each check is shown to fail on a chapter that does not."""

import ast
import copy
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

import dlopt_helpers
from dlopt_helpers.page.notebooks import CHECKED, keep_claims, setup_cell
from dlopt_helpers.page.slides import TAGS

ROOT = Path(__file__).parents[1]
CHAPTERS = sorted((ROOT / "chapters").glob("*.ipynb"))
PARTS = [
    "Predict", "The idea", "The code", "Proof", "Explore", "Experiment", "In your project",
    "The source article says", "Exercises", "Key points", "References",
]  # fmt: skip
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
SETUP = setup_cell(REPOSITORY, dlopt_helpers.__version__)


# --- the checks: each returns what is wrong with a notebook, in words ---------------------------------


def wrong_outputs(notebook):
    """A stored output is a verified claim: checked cells store one, all others none."""
    for index, cell in _code(notebook):
        checked = CHECKED in _tags(cell)
        if checked and not cell.outputs:
            yield f"cell {index} is checked, but stores no output to compare with"
        if cell.outputs and not checked:
            yield f"cell {index} stores an output that nothing checks"
        if any(o.output_type in ("execute_result", "display_data") for o in cell.outputs):
            yield f"cell {index} stores a value, which other processors round otherwise: show it apart"
        if "widget-view" in str(cell.outputs):
            yield f"cell {index} stores a widget, which is nothing without its kernel: run `make claims`"
        if cell.execution_count != (1 if cell.outputs else None):
            yield f"cell {index} stores an execution count: run `make claims`"
        if any(o.get("name") == "stderr" for o in cell.outputs):
            yield f"cell {index} stores a warning"
        if any(o.output_type == "error" for o in cell.outputs):
            yield f"cell {index} stores an error"


def wrong_start(notebook):
    """A chapter opens with its title, and its first code is the set-up cell."""
    if not re.match(r"# \d+(\.\d+)? \S", _text(notebook.cells[0])):
        yield "the first cell is no title such as '# 3.1 Stochastic gradient descent'"
    code = _code(notebook)
    if not code or code[0][1].source != SETUP:
        yield f"the first code cell is not the set-up cell:\n{SETUP}"
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        yield "the kernel is not python3"


def wrong_parts(notebook):
    """The parts of a chapter stand there, in order."""
    found = [h for h in re.findall(r"^## (.+)$", _prose(notebook), re.MULTILINE) if h in PARTS]
    if found != PARTS:
        yield f"the parts are {found}, not {PARTS}"


def wrong_exercises(notebook):
    """Each exercise has a stub that runs its check, and a folded solution whose check has passed."""
    exercises = _exercises(notebook)
    if not exercises:
        yield "no exercise: none has a heading of level 3 under '## Exercises'"
    for title, cells in exercises.items():
        stubs = [c for c in cells if "hide-cell" not in _tags(c)]
        solutions = [c for c in cells if "hide-cell" in _tags(c)]
        asked = _checks(stubs)
        if not asked or not any("..." in c.source for c in stubs):
            yield f"{title}: no stub with `...` and a call of check_...()"
        if not solutions:
            yield f"{title}: no solution folded by the tag hide-cell"
        elif _checks(solutions) != asked or any("..." in c.source for c in solutions):
            yield f"{title}: the solution does not run the check of its stub"
        elif not any("✓" in o.get("text", "") for c in solutions for o in c.outputs):
            yield f"{title}: the solution stores no passed check"


def wrong_claims(notebook):
    """No list stands between `and`s: it is true because it is not empty, whatever it holds."""
    lists = (ast.List, ast.ListComp, ast.Tuple, ast.GeneratorExp)
    for index, cell in _code(notebook):
        if "claim(" in cell.source:
            for node in ast.walk(ast.parse(cell.source)):
                if isinstance(node, ast.BoolOp) and any(isinstance(value, lists) for value in node.values):
                    yield f"cell {index}: wrap the list in all(...): {ast.unparse(node)}"


def wrong_slides(notebook):
    """A chapter has 8 to 16 slides: its title first, an explorer where it has one, its key points last."""
    tagged = [(kinds[0], cell) for cell in notebook.cells if (kinds := [t for t in _tags(cell) if t in TAGS])]
    count = sum(kind != "fragment" for kind, _ in tagged)
    if not 8 <= count <= 16:
        yield f"there are {count} slides, not 8 to 16: tag cells {TAGS}"
    shown = [cell for _, cell in tagged]
    if not tagged or shown[0] is not notebook.cells[0] or tagged[0][0] != "slide":
        yield "the title is not the first slide"
    if not shown or not shown[-1].source.startswith("## Key points"):
        yield "the key points are not the last slide"
    if any("explorer(" in c.source for c in notebook.cells) and not any(
        "explorer(" in c.source for c in shown
    ):
        yield "no explorer is on a slide"


RULES = [wrong_outputs, wrong_start, wrong_parts, wrong_exercises, wrong_claims, wrong_slides]


# --- every chapter -----------------------------------------------------------------------------------


def test_there_are_chapters():
    assert CHAPTERS


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapter(path, rule):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert list(rule(notebook)) == []


# --- the checks can fail -----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rules_accept_a_good_chapter(rule):
    assert list(rule(_good())) == []


def _cell(notebook, part):
    return next(cell for cell in notebook.cells if part in cell.source)


def _source(part, new):
    return lambda notebook: _cell(notebook, part).update(source=new)


def _tagged(part, *tags):
    return lambda notebook: _cell(notebook, part).metadata.update(tags=list(tags))


def _outputs(part, *outputs):
    return lambda notebook: _cell(notebook, part).update(outputs=list(outputs))


def _without(part):
    return lambda notebook: notebook.cells.remove(_cell(notebook, part))


SPOILT = {  # which rule must object, and how a good chapter is spoilt
    "checked cell without output": (wrong_outputs, _outputs("claim(")),
    "output that nothing checks": (wrong_outputs, _tagged("claim(")),
    "execution count": (wrong_outputs, lambda n: _cell(n, "...").update(execution_count=3)),
    "stored widget": (
        wrong_outputs,
        _outputs("claim(", new_output("display_data", {"application/vnd.jupyter.widget-view+json": {}})),
    ),
    "stored value": (
        wrong_outputs,
        _outputs("claim(", new_output("execute_result", {"text/plain": "0.617"}, execution_count=1)),
    ),
    "stored warning": (wrong_outputs, _outputs("claim(", new_output("stream", name="stderr", text="!"))),
    "stored error": (wrong_outputs, _outputs("claim(", new_output("error"))),
    "no title": (wrong_start, _without("# 3.1")),
    "no set-up": (wrong_start, _without("find_spec")),
    "set-up of a fork": (wrong_start, _source("find_spec", setup_cell("https://x.org/y", "0.1.0"))),
    "set-up of another version": (wrong_start, _source("find_spec", setup_cell(REPOSITORY, "9"))),
    "kernel": (wrong_start, lambda n: n.metadata.kernelspec.update(name="venv")),
    "part missing": (wrong_parts, _without("## Proof")),
    "parts swapped": (wrong_parts, lambda n: n.cells.append(n.cells.pop(2))),
    "no exercise": (wrong_exercises, _source("### ", "text")),
    "no stub": (wrong_exercises, _without("...")),
    "no check": (wrong_exercises, _source("...", "answer = ...")),
    "no solution": (wrong_exercises, _without("answer = 2")),
    "solution not folded": (wrong_exercises, _tagged("answer = 2", CHECKED)),
    "solution of another check": (wrong_exercises, _source("answer = 2", "answer = 2\ncheck_x(answer)")),
    "list that is not looked at": (
        wrong_claims,
        _source("claim(", "claim('One.', [one > 2 for one in [1]] and True)"),
    ),
    "no slides": (wrong_slides, lambda n: [c.metadata.pop("tags", 0) for c in n.cells]),
    "title on no slide": (wrong_slides, _tagged("# 3.1")),
    "title that begins no slide": (wrong_slides, _tagged("# 3.1", "fragment")),
    "no key points on a slide": (wrong_slides, _tagged("## Key points")),
    "other end": (wrong_slides, _tagged("## References", "slide")),
    "explorer on no slide": (wrong_slides, _tagged("explorer(")),
    "too many slides": (wrong_slides, lambda n: n.cells.__setitem__(slice(1, 1), n.cells[:1] * 9)),
    "solution that fails": (wrong_exercises, _outputs("answer = 2", new_output("stream", text="✗ No."))),
}


@pytest.mark.parametrize("rule, spoil", SPOILT.values(), ids=SPOILT)
def test_rules_refuse_a_bad_chapter(rule, spoil):
    notebook = _good()
    spoil(notebook)
    assert list(rule(notebook))


def _good():
    shown = {"metadata": {"tags": ["slide"]}}
    text = {
        part: new_markdown_cell(f"## {part}", **copy.deepcopy(shown))
        for part in PARTS
        if part != "References"
    }
    text["References"] = new_markdown_cell("## References")
    done = {"execution_count": 1, "outputs": [new_output("stream", text="✓ Correct.\n")]}
    first, last = [text[part] for part in PARTS[:6]], [text[part] for part in PARTS[9:]]
    cells = [
        *(new_markdown_cell("# 3.1 A chapter", **shown), new_code_cell(SETUP), *first),
        new_code_cell("chapter.explorer()", metadata={"tags": ["fragment"]}),
        new_code_cell("claim('One.', True)", metadata={"tags": [CHECKED]}, **copy.deepcopy(done)),
        *(*(text[part] for part in PARTS[6:9]), new_markdown_cell("### Exercise 1")),
        new_code_cell("answer = ...\ncheck_two(answer)"),
        new_code_cell("answer = 2\ncheck_two(answer)", metadata={"tags": ["hide-cell", CHECKED]}, **done),
        *last,
    ]
    return new_notebook(cells=cells, metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})


# --- what executes them ------------------------------------------------------------------------------


def test_keep_claims_stores_claims_alone():
    notebook = _good()
    notebook.metadata.language_info = {"name": "python", "version": "3.11.7"}
    for _, cell in _code(notebook):
        cell.execution_count = 7
        cell.metadata["execution"] = {"iopub.status.idle": "now"}
        cell.outputs = [new_output("stream", text="✓ Yes.")]
    keep_claims(notebook)
    assert list(wrong_outputs(notebook)) == []
    assert sum(len(cell.outputs) for _, cell in _code(notebook)) == 2
    assert "now" not in str(notebook) and "3.11" not in str(notebook.metadata)


def test_keep_claims_joins_what_was_printed_in_pieces():
    notebook = _good()
    cell = _cell(notebook, "claim(")
    cell.outputs = [new_output("stream", text=text) for text in ("✓ One.\n", "✓ Two.\n")]
    keep_claims(notebook)
    assert [output.text for output in cell.outputs] == ["✓ One.\n✓ Two.\n"]


def test_kernels_have_no_network():
    code = "import socket\nsocket.create_connection(('192.0.2.1', 80), timeout=5)"  # nobody's address
    notebook = new_notebook(cells=[new_code_cell(code)])
    NotebookClient(notebook, kernel_name="python3", allow_errors=True).execute()
    error = notebook.cells[0].outputs[-1]
    assert error.ename == "ConnectionRefusedError" and "no network here" in error.evalue


# --- reading a notebook ------------------------------------------------------------------------------


def _tags(cell):
    return cell.metadata.get("tags", [])


def _code(notebook):
    return [(i, cell) for i, cell in enumerate(notebook.cells) if cell.cell_type == "code"]


def _text(cell):
    return cell.source if cell.cell_type == "markdown" else ""


def _prose(notebook):
    return "\n".join(_text(cell) for cell in notebook.cells)


def _checks(cells):
    return {name for cell in cells for name in re.findall(r"\b(check_\w+)\(", cell.source)}


def _exercises(notebook):
    """Return the code cells of each exercise by its heading."""
    part, title, found = None, None, {}
    for cell in notebook.cells:
        for level, heading in re.findall(r"^(##|###) (.+)$", _text(cell), re.MULTILINE):
            part, title = (heading, None) if level == "##" else (part, heading)
            if part == "Exercises" and title:
                found[title] = []
        if cell.cell_type == "code" and part == "Exercises" and title:
            found[title].append(cell)
    return found
