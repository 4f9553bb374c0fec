"""The files around the book agree with one another, and the rooms of the package keep their walls."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions, version
from pathlib import Path

import licences
import pytest
import yaml
from packaging.licenses import canonicalize_license_expression
from packaging.markers import default_environment
from packaging.requirements import Requirement

import dlopt_helpers
from dlopt_helpers.page.notebooks import ON_COLAB_MISSING

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
PUBLISHED = [Requirement(r) for r in PROJECT["project"]["dependencies"] + EXTRAS["frameworks"]]
ALL = PUBLISHED + [Requirement(r) for extra in ("book", "test") for r in EXTRAS[extra]]
LOCK = licences.pins()
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
# The subject: every module of the package that stands beside the rooms, but the one that composes them and
# the one that checks a set-up.
SUBJECT = sorted({p.stem for p in (ROOT / "dlopt_helpers").glob("[!_]*.py")} - {"doctor", "pipeline"})


# --- what gets installed -----------------------------------------------------------------------------


def test_published_dependencies_have_lower_bounds_only():
    for requirement in PUBLISHED:
        assert [s.operator for s in requirement.specifier] == [">="], requirement


def test_lock_is_exact_and_hashed_and_names_no_place():
    entries = re.sub(r"^#.*\n", "", (ROOT / "requirements.lock").read_text()).replace("\\\n", "").splitlines()
    assert len(entries) == len(LOCK) > 100
    for entry in entries:
        pin, *hashes = re.split(r" +--hash=", entry)
        assert re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+( ; [^/]+)?", pin), pin
        assert hashes and all(re.fullmatch(r"sha256:[0-9a-f]{64}", one) for one in hashes), pin


@pytest.mark.parametrize("requirement", ALL, ids=str)
def test_lock_holds_each_dependency(requirement):
    pins = [pin for pin in LOCK if _plain(pin.name) == _plain(requirement.name)]
    assert pins
    for pin in pins:  # several where a Python, or a system, needs another version
        version = next(iter(pin.specifier)).version
        assert requirement.specifier.contains(version), f"{requirement} against {pin}"
    assert len(pins) > 1 or str(pins[0].marker) == str(requirement.marker)


def test_licences_are_those_of_the_lock():
    listed = (ROOT / "LICENSES" / "dependencies.md").read_text()
    rows = re.findall(r"^\| (\S+) \| (\d\S*) \| (.+) \|$", listed, re.MULTILINE)
    assert [row[:2] for row in rows] == [(pin.name, next(iter(pin.specifier)).version) for pin in LOCK]
    for name, _, licence in rows:
        assert canonicalize_license_expression(licence) == licence, f"{name} is under {licence}"


def test_a_licence_that_nobody_states_is_asked_for(monkeypatch):
    monkeypatch.delitem(licences.BY_HAND, "sphinxcontrib-qthelp")
    with pytest.raises(SystemExit, match="sphinxcontrib-qthelp does not say its licence"):
        licences.licence("sphinxcontrib-qthelp")
    with pytest.raises(SystemExit, match="nothing-such is not installed"):
        licences.licence("nothing-such")


def test_imports_are_declared():
    declared = {_plain(r.name) for r in PUBLISHED} | {_plain(Requirement(r).name) for r in EXTRAS["book"]}
    owners = packages_distributions()
    for path in (ROOT / "dlopt_helpers").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            imports = node.names if isinstance(node, ast.Import) else []
            names = [a.name for a in imports] or [getattr(node, "module", None)]
            for top in {name.split(".")[0] for name in names if name}:
                known = top in sys.stdlib_module_names or top == "dlopt_helpers"
                assert known or {_plain(o) for o in owners[top]} & declared, f"{path.name} imports {top}"


def test_data_files_are_installed():
    globs, found = PROJECT["tool"]["setuptools"]["package-data"], set()
    for path in (ROOT / "dlopt_helpers").rglob("*.*"):
        if path.suffix not in (".py", ".pyc"):
            package = ".".join(path.relative_to(ROOT).parent.parts)
            assert any(path.match(glob) for glob in globs.get(package, [])), path
            found.add(path.suffix)
    assert {".csv", ".jsonl", ".js"} <= found


def test_environment_installs_the_lock():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    script = (ROOT / "postBuild").read_text()
    assert "--require-hashes --no-deps -r requirements.lock" in script and " -e " in script
    python = next(d for d in environment["dependencies"] if d.startswith("python="))
    assert python.removeprefix("python=") == PROJECT["project"]["requires-python"].removeprefix(">=")


def test_what_is_installed_is_what_is_locked():
    here = default_environment()
    for pin in LOCK:
        if pin.marker is None or pin.marker.evaluate(here):
            assert version(pin.name).split("+")[0] == next(iter(pin.specifier)).version, pin


def _plain(name):
    return re.sub(r"[-_.]+", "-", name).lower()


# --- the rooms ---------------------------------------------------------------------------------------


def _lint_imports(folder):
    """Run import-linter on the package in a folder, with this project's contracts."""
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    command += ["--config", ROOT / "pyproject.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_rooms():
    done = _lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "module, line",
    [
        ("sgd.py", "import torch"),
        ("sgd.py", "from dlopt_helpers.page import claims"),
        ("sgd.py", "from dlopt_helpers import lab"),
        ("page/claims.py", "from dlopt_helpers.sgd import SGD"),
        ("lab/__init__.py", "import dlopt_helpers.page.claims"),
        ("bridges/__init__.py", "import dlopt_helpers.chapters"),
        ("unlisted.py", ""),
    ],
)
def test_rooms_refuse(tmp_path, module, line):
    copy = tmp_path / "dlopt_helpers"
    for source in (ROOT / "dlopt_helpers").rglob("*.py"):
        target = copy / source.relative_to(ROOT / "dlopt_helpers")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text())
    with (copy / module).open("a") as file:
        file.write(f"\n{line}\n")
    done = _lint_imports(tmp_path)
    assert done.returncode == 1 and "BROKEN" in done.stdout, done.stdout + done.stderr


def test_subject_is_under_contract():
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    assert SUBJECT
    for module in SUBJECT:
        name = f"dlopt_helpers.{module}"
        assert any(name in c.get("source_modules", []) for c in contracts), f"{name} may import frameworks"
        assert any(name in c.get("forbidden_modules", []) for c in contracts), f"the page may import {name}"


@pytest.mark.parametrize("module", ["dlopt_helpers", *(f"dlopt_helpers.{m}" for m in SUBJECT)])
def test_import_loads_no_framework(module):
    assert _loaded_by(module) == []


def test_import_check_can_fail():
    assert "torch" in _loaded_by("dlopt_helpers.bridges.torch")


def _loaded_by(module):
    code = f"import sys, {module}; print(*{{'torch', 'tensorflow', 'keras'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


# --- the book ----------------------------------------------------------------------------------------


def test_contents_are_the_chapters():
    contents = yaml.safe_load((ROOT / "_toc.yml").read_text())
    listed = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    there = [*(ROOT / "chapters").glob("*.ipynb"), *(ROOT / "workshop").glob("*.md")]
    assert sorted(listed) == sorted(f"{path.parent.name}/{path.stem}" for path in there)
    assert (ROOT / f"{contents['root']}.md").exists()


def test_repository_is_one():
    url = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    assert PROJECT["project"]["urls"]["Repository"] == url
    named = re.findall(r"https://github\.com/[\w-]*dlopt[\w-]*/[\w-]+", (ROOT / "README.md").read_text())
    assert set(named) <= {url}


def test_every_chapter_is_named_where_readers_look():
    front = {name: (ROOT / name).read_text() for name in ("intro.md", "README.md")}
    for path in (ROOT / "chapters").glob("*.ipynb"):
        start = "".join(json.loads(path.read_text())["cells"][0]["source"])
        title, minutes = re.search(r"# ([\d.]+ .+)\n(?s:.*?)\*(\d+) minutes", start).groups()
        row = re.search(rf"\(chapters/{path.name}\).*\| (\d+) \|", front["intro.md"])
        assert row and row[1] == minutes, f"{title} takes {minutes} minutes"
        assert f"[{title}](chapters/{path.name})" in front["README.md"], title


def test_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    bibtex = (ROOT / "intro.md").read_text()
    url = PROJECT["project"]["urls"]["Repository"]
    assert (citation["version"], citation["repository-code"]) == (dlopt_helpers.__version__, url)
    assert f"version = {{{dlopt_helpers.__version__}}}" in bibtex and f"url     = {{{url}}}" in bibtex
    assert citation["title"] in bibtex and citation["authors"] == [{"name": "The dlopt authors"}]


def test_no_file_names_a_place_of_one_machine():
    # The hubs of workshop/hub/ have theirs, on every machine: /opt/tljh and /home/jovyan.
    own = re.compile(r"(?<![\w.])/(?:work|root|home(?!/jovyan\b)|opt(?!/tljh\b)|Users)/\w")
    folders = ["benchmarks", "chapters", "dlopt_helpers", "tests", "workshop"]
    paths = [p for folder in folders for p in (ROOT / folder).rglob("*") if "__pycache__" not in p.parts]
    paths += [p for p in ROOT.iterdir() if p.suffix in (".cff", ".lock", ".md", ".toml", ".yml")]
    named = {p.name: own.findall(p.read_text()) for p in paths if p.is_file() and own.search(p.read_text())}
    assert not named


def test_version_is_a_release():
    assert re.fullmatch(r"\d+\.\d+\.\d+", dlopt_helpers.__version__)


# --- workflows ---------------------------------------------------------------------------------------


def test_there_are_workflows():
    assert {path.stem for path in WORKFLOWS} == {"publish", "test", "weekly"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflow(path):
    workflow = yaml.safe_load(path.read_text())
    assert workflow["permissions"] == {"contents": "read"}, "a job that needs more asks for it itself"
    for name, job in workflow["jobs"].items():
        assert job["timeout-minutes"] <= 120, name
        for step in job["steps"]:
            assert "uses" in step or "run" in step, step
            assert "@" in step.get("uses", "@"), f"{step['uses']} is not pinned"
            targets = re.findall(r"\bmake ([a-z]+)", step.get("run", ""))
            assert set(targets) <= _targets(), targets


def test_colab_is_tried_with_what_a_reader_installs_there():
    script = " ".join((ROOT / ".github/workflows/weekly.yml").read_text().replace("\\\n", " ").split())
    wanted = " ".join(ON_COLAB_MISSING.replace("'", '"').split())
    assert f"pip install -q --no-deps {wanted} ." in script


def _targets():
    return set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
