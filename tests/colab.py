"""Run the chapters as on Colab: its packages, an empty folder with the notebook alone, its set-up cell first.

``make colab`` makes the environment of ``tests/colab.txt`` and calls this with names of chapters, in which
``*`` stands for any letters. Of the set-up cell one thing is changed: the address of the repository, which
becomes that of a copy of this working tree. Each chapter starts from the environment as it was made.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import yaml
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from nbformat.v4 import new_code_cell
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import dlopt_helpers
from dlopt_helpers.page.notebooks import CHECKED

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "_build" / "colab"
REPOSITORY = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
# Of the variables set here, a kernel sees these and no other.
INHERITED = "(?i)PATH$|LANG$|DLOPT_CACHE$|DLOPT_JOBS$|PIP_|PYDEVD_|SSL_|.*_PROXY$"
STATES = "application/vnd.jupyter.widget-state+json"
WIDGET = "application/vnd.jupyter.widget-view+json"
SHOWN = {"@jupyter-widgets/base", "@jupyter-widgets/controls", "anywidget"}  # modules of widgets, on Colab

# Every kernel starts with it: explorers ask whether this module is there.
STARTUP = "import sys, types\nsys.modules['google.colab'] = types.ModuleType('google.colab')\n"
MOVE = """import gc
from dlopt_helpers.page.live import Live
for live in [o for o in gc.get_objects() if type(o) is Live]:
    for name, control in live.controls.items():
        stops = live.explorer.stops[name]
        control.value = next(stop for stop in (stops[0], stops[-1]) if stop != control.value)
        assert "failed" not in live.status.value, f"{live.explorer.title}: {live.status.value}"
"""
STATE = """import importlib.metadata, json, os
from dlopt_helpers.lab.measure import peak_memory
print(json.dumps({
    "versions": {d.name: d.version for d in importlib.metadata.distributions()},
    "pip": os.path.getsize(os.environ["PIP_LOG"]),
    "memory": peak_memory(),
}))
"""


def main(patterns):
    """Run each chapter, print a row for it, and return what went wrong in words."""
    publish(BUILD / "repository")
    print(f"{'chapter':24} {'cells':>5} {'widgets':>7} {'seconds':>7} {'peak memory':>12}  verdict")
    wrong = []
    for path in named(patterns):
        stored, start = nbformat.read(path, as_version=4), time.perf_counter()
        notebook, found = run(path)
        seconds = time.perf_counter() - start
        found += faults(notebook, stored, pins())
        cells = sum(bool(cell.get("execution_count")) for cell in notebook.cells)
        memory = (_state(notebook.cells[-1]) or {"memory": float("nan")})["memory"]
        counts = f"{cells:5} {len(explorers(notebook)):7} {seconds:7.0f} {memory:9.0f} MB"
        print(f"{path.stem:24} {counts}  {'fails' if found else 'passes'}", flush=True)
        wrong += [f"{path.stem}: {text}" for text in found]
    return wrong


def named(patterns):
    """Return the chapters of these names; a name without a chapter ends the program."""
    chapters = ROOT / "chapters"
    for pattern in patterns:
        if not any(chapters.glob(f"{pattern}.ipynb")):
            sys.exit(f"CHAPTERS={pattern!r} is not allowed: there is no chapters/{pattern}.ipynb")
    return sorted({path for pattern in patterns or ["*"] for path in chapters.glob(f"{pattern}.ipynb")})


def pins():
    """Return the version of each package of Colab, by its plain name."""
    lines = (ROOT / "tests" / "colab.txt").read_text().splitlines()
    required = [Requirement(line) for line in lines if not line.startswith("#")]
    return {canonicalize_name(r.name): next(iter(r.specifier)).version for r in required}


def publish(folder):
    """Make a repository of the working tree in ``folder``, with the tag of this version."""
    shutil.rmtree(folder, ignore_errors=True)
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    for path in (Path(name) for name in files if name and (ROOT / name).is_file()):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, folder / path)
    commit = "-c user.name=colab -c user.email=colab@localhost commit --quiet --message copy"
    for command in ("init --quiet", "add --all", commit, f"tag v{dlopt_helpers.__version__}"):
        subprocess.run(["git", *command.split()], cwd=folder, check=True)


def prepare(notebook, address):
    """Let the chapter install from ``address``; append cells that try its widgets and run set-up again."""
    setup = next(cell for cell in notebook.cells if cell.cell_type == "code")
    if setup.source.count(f"git+{REPOSITORY}@v") != 1:
        raise ValueError(f"the first code cell does not install git+{REPOSITORY}@v...:\n{setup.source}")
    setup.source = setup.source.replace(REPOSITORY, address)
    notebook.cells += map(new_code_cell, (MOVE, STATE, setup.source, STATE))


def run(path):
    """Run a chapter on a fresh machine; return it as it was run, and what stopped it, in a list."""
    room, machine, executed = BUILD / "content", BUILD / "machine", BUILD / "executed" / path.name
    environment = fresh(room, machine)
    notebook = nbformat.read(path, as_version=4)
    prepare(notebook, (BUILD / "repository").as_uri())
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, room / path.name)
    place = {"metadata": {"path": str(room)}}
    client = NotebookClient(notebook, timeout=3_600, kernel_name="colab", resources=place)
    try:
        client.execute(env=environment)
        return notebook, []
    except CellExecutionError as error:
        return notebook, [f"{error.ename}: {error.evalue} (see {executed})"]
    except (CellTimeoutError, DeadKernelError) as error:
        return notebook, [str(error)]
    finally:
        executed.parent.mkdir(exist_ok=True)
        nbformat.write(notebook, executed)


def fresh(room, machine):
    """Empty ``room``, put Colab's packages in ``machine``, and return the variables of its kernel."""
    for folder in (room, machine):
        shutil.rmtree(folder, ignore_errors=True)
    room.mkdir()
    shutil.copytree(BUILD / "base", machine / "env", symlinks=True, copy_function=os.link)
    argv = [str(machine / "env/bin/python"), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    files = {
        "ipython/profile_default/startup/colab.py": STARTUP,
        "jupyter/kernels/colab/kernel.json": json.dumps({"argv": argv, "display_name": "", "language": ""}),
    }
    for name, text in files.items():
        (machine / name).parent.mkdir(parents=True)
        (machine / name).write_text(text)
    os.environ["JUPYTER_PATH"] = str(machine / "jupyter")
    kept = {"DLOPT_CACHE": str(BUILD / "cache"), "PIP_CACHE_DIR": str(BUILD / "pip")}
    kept |= {name: value for name, value in os.environ.items() if re.match(INHERITED, name)}
    own = {"HOME": "home", "IPYTHONDIR": "ipython", "PIP_LOG": "pip.log"}
    return kept | {name: str(machine / place) for name, place in own.items()}


def _state(cell):
    """Return what a ``STATE`` cell printed, or None where the chapter stopped before it."""
    return json.loads(_printed(cell) or "null")


def explorers(notebook):
    """Return the MIME bundles of the explorers that the chapter showed."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output.data for output in outputs if "data" in output]
    return [data for data in shown if data.get("text/plain", "").startswith("Explorer(")]


def faults(notebook, stored, pins):
    """Say what a chapter that ran did wrong.

    Args:
      notebook: the chapter as it was run, with the cells of :func:`prepare`.
      stored: the chapter in the book.
      pins: the version that each package of Colab must keep.
    """
    first, again = _state(notebook.cells[-3]), _state(notebook.cells[-1])
    if not again:
        return  # what stopped the chapter is fault enough
    versions = {canonicalize_name(name): v.split("+")[0] for name, v in first["versions"].items()}
    for name, version in pins.items():
        if versions.get(name) != version:
            yield f"{name} is {versions.get(name)} after the set-up cell, and was {version}"
    if first["versions"] != again["versions"] or first["pip"] != again["pip"]:
        yield "the set-up cell called pip when it was run again"
    for number, (ran, cell) in enumerate(zip(notebook.cells, stored.cells, strict=False)):
        if CHECKED in cell.metadata.get("tags", []) and _printed(ran) != _printed(cell):
            yield f"cell {number} prints {_printed(ran)!r}, and stores {_printed(cell)!r}"
    if not explorers(notebook):
        yield "no explorer was shown"
    widgets = notebook.metadata.get("widgets", {}).get(STATES, {}).get("state", {})
    for data in explorers(notebook):
        modules = _modules(data.get(WIDGET, {}).get("model_id"), widgets)
        if "anywidget" not in modules or not modules <= SHOWN:
            yield f"{data['text/plain']} shows no live chart: its widgets are of {sorted(modules)}"


def _printed(cell):
    return "".join(output.text for output in cell.get("outputs", []) if output.get("name") == "stdout")


def _modules(model, widgets):
    """Return the modules of a widget and all that it holds; a missing one counts as ``missing``."""
    if model not in widgets:
        return {"missing"}
    entry = widgets[model]
    held = json.dumps(entry["state"]).split('"IPY_MODEL_')[1:]
    return {entry["model_module"]}.union(*(_modules(text.split('"')[0], widgets) for text in held))


if __name__ == "__main__":
    wrong = main(sys.argv[1:])
    sys.exit("\n" + "\n".join(wrong) if wrong else 0)
