"""What `make colab` judges by: a chapter that does well there passes, and each way to do badly is told."""

import copy
import json
import re
from pathlib import Path

import colab
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_project import PROJECT

import dlopt_helpers
from dlopt_helpers.page.notebooks import CHECKED, ON_COLAB_MISSING

CHAPTERS = sorted((Path(__file__).parents[1] / "chapters").glob("*.ipynb"))
MISSING = {canonicalize_name(Requirement(name.strip("'")).name) for name in ON_COLAB_MISSING.split()}
PINS = {"numpy": "2.1.3", "torch": "2.13.0"}


# --- Colab's packages --------------------------------------------------------------------------------


def test_what_colab_has_and_what_it_lacks_are_two_lists():
    assert not MISSING & set(colab.pins())


@pytest.mark.parametrize("requirement", PROJECT["project"]["dependencies"])
def test_colab_has_what_the_package_needs_or_set_up_installs_it(requirement):
    wanted = Requirement(requirement)
    has = colab.pins().get(canonicalize_name(wanted.name))
    assert canonicalize_name(wanted.name) in MISSING if has is None else wanted.specifier.contains(has)


def test_no_query_takes_a_slice():
    # pandas 2.2, which Colab has, evaluates `@names[0]` within a query, and refuses `@names[1:]`.
    sources = [*Path(dlopt_helpers.__file__).parent.rglob("*.py"), *CHAPTERS]
    found = [p.name for p in sources if re.search(r"\.(query|eval)\(.*@\w+\[[^]]*:", p.read_text())]
    assert not found


# --- the set-up cell ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_every_chapter_is_installed_from_the_copy(path):
    notebook = nbformat.read(path, as_version=4)
    before = copy.deepcopy(notebook)
    colab.prepare(notebook, "file:///copy")
    was, setup = next(p for p in zip(before.cells, notebook.cells, strict=False) if p[0].cell_type == "code")
    assert setup.source == re.sub(r"git\+[^@]+@", "git+file:///copy@", was.source) != was.source
    assert [c.source for c in notebook.cells].count(setup.source) == 2
    assert colab.REPOSITORY not in setup.source


def test_a_set_up_cell_of_another_address_is_refused():
    with pytest.raises(ValueError, match="does not install git"):
        colab.prepare(new_notebook(cells=[new_code_cell("%pip install dlopt")]), "file:///copy")


def test_a_name_without_a_chapter_is_refused():
    assert [path.stem for path in colab.named(["06*", "06_faq"])] == ["06_faq"]
    assert colab.named([]) == CHAPTERS
    with pytest.raises(SystemExit, match="CHAPTERS='07' is not allowed"):
        colab.named(["06*", "07"])


# --- the verdict -------------------------------------------------------------------------------------


def _state(**changed):
    state = {"versions": {"numpy": "2.1.3", "torch": "2.13.0+cpu"}, "pip": 10, "memory": 1.0} | changed
    return new_code_cell(outputs=[new_output("stream", name="stdout", text=json.dumps(state))])


def _model(module, *held):
    return {"model_module": module, "state": {"children": [f"IPY_MODEL_{name}" for name in held]}}


@pytest.fixture
def stored():
    claim = new_code_cell("claim(...)", metadata={"tags": [CHECKED]})
    claim.outputs = [new_output("stream", name="stdout", text="✓ So.\n")]
    return new_notebook(cells=[claim, new_code_cell("Explorer(...)")])


@pytest.fixture
def ran(stored):
    notebook = copy.deepcopy(stored)
    data = {"text/plain": "Explorer('Decay')", colab.WIDGET: {"model_id": "box"}}
    notebook.cells[1].outputs = [new_output("display_data", data)]
    notebook.cells += [new_code_cell("moves"), _state(), new_code_cell("set-up"), _state()]
    models = {"box": _model("@jupyter-widgets/controls", "chart"), "chart": _model("anywidget")}
    notebook.metadata.widgets = {colab.STATES: {"state": models}}
    return notebook


def _cell(number, cell):
    return lambda notebook: notebook.cells.__setitem__(number, cell)


def _both(**state):
    return lambda notebook: notebook.cells.__setitem__(slice(3, None, 2), [_state(**state), _state(**state)])


def _models(**models):
    return lambda notebook: notebook.metadata.widgets[colab.STATES]["state"].update(models)


def _printed(text):
    return lambda notebook: notebook.cells[0].outputs[0].update(text=text)


CHANGED = {"numpy": "2.4.0", "torch": "2.13.0"}
SPOILT = {
    "another numpy": ("numpy is 2.4.0 after", _both(versions=CHANGED)),
    "no torch": ("torch is None", _both(versions={"numpy": "2.1.3"})),
    "pip ran again": ("called pip", _cell(5, _state(pip=11))),
    "set-up changed a version": ("called pip", _cell(5, _state(versions=CHANGED))),
    "another claim": ("cell 0 prints '✓ Not so.", _printed("✓ Not so.\n")),
    "no explorer": ("no explorer", lambda n: n.cells[1].update(outputs=[])),
    "picture alone": ("no live chart", lambda n: n.cells[1].outputs[0].data.pop(colab.WIDGET)),
    "model that was never made": ("no live chart", _models(box=_model("@jupyter-widgets/controls", "gone"))),
    "controls without a chart": ("no live chart", _models(box=_model("@jupyter-widgets/controls"))),
    "unknown widget": ("no live", _models(chart=_model("anywidget", "more"), more=_model("bqplot"))),
}  # fmt: skip


def test_a_good_run_passes(ran, stored):
    assert list(colab.faults(ran, stored, PINS)) == []


@pytest.mark.parametrize("said, spoil", SPOILT.values(), ids=SPOILT)
def test_a_bad_run_fails(ran, stored, said, spoil):
    spoil(ran)
    (fault,) = colab.faults(ran, stored, PINS)
    assert said in fault


def test_a_chapter_that_stopped_is_judged_by_what_stopped_it(ran, stored):
    ran.cells[2:] = [new_code_cell() for _ in range(4)]
    del ran.metadata["widgets"]
    assert list(colab.faults(ran, stored, PINS)) == []


def test_a_failure_ends_the_run_in_words(monkeypatch, capsys):
    monkeypatch.setattr(colab, "publish", lambda folder: None)
    monkeypatch.setattr(colab, "run", lambda path: (nbformat.read(path, as_version=4), ["cell 3: NameError"]))
    monkeypatch.setattr(colab, "faults", lambda *_: iter(()))
    assert colab.main(["06_faq"]) == ["06_faq: cell 3: NameError"]
    assert "fails" in capsys.readouterr().out
