"""A set-up check: ``python -m dlopt_helpers.doctor`` prints a line for each thing that the book needs.

The line says OK, or what to do. The exit code is 0 where all is well and 1 where something is missing.
"""

import importlib.util
import os
import platform
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

PACKAGE = "dlopt-helpers"
PYTHON = (3, 11)
MEMORY = 2.0  # 10^9 bytes: a chapter's kernel, the one that needs most, and room beside it
PATIENCE = 60  # seconds until a framework that does not answer counts as broken
# Each runs in a process of its own: a framework that crashes must not take the check with it.
FRAMEWORKS = {
    "torch": "import torch; cuda = torch.cuda.is_available(); mps = torch.backends.mps.is_available(); "
    "print('on', torch.cuda.get_device_name() if cuda else 'Apple GPU' if mps else 'CPU')",
    "tensorflow": "import keras, tensorflow as tf; tf.ones(2) + 1; print('with Keras', keras.__version__)",
}


class Finding(NamedTuple):
    """One line of the check: what was looked at, whether it is well, and what was found or is to do."""

    name: str
    well: bool
    text: str

    def __str__(self):
        return f"{'OK  ' if self.well else 'DO  '}{self.name:<11} {self.text}"


def python(version=sys.version_info):
    """Is Python new enough?"""
    found, wanted = ".".join(map(str, version[:3])), ".".join(map(str, PYTHON))
    if version[:2] >= PYTHON:
        return Finding("Python", True, found)
    return Finding("Python", False, f"{found} is too old: install Python {wanted} or newer")


def packages(requirements=None):
    """Is each package that the chapters import there, and new enough?

    Args:
      requirements: as in ``pyproject.toml``; by default those of this package and its frameworks.
    """
    from packaging.requirements import Requirement

    texts = metadata.requires(PACKAGE) if requirements is None else requirements
    wanted = [r for r in map(Requirement, texts) if _needed(r)]
    wrong = [line for line in map(_wrong, wanted) if line]
    if not wrong:
        return Finding("packages", True, f"all {len(wanted)}")
    names = " ".join(f"'{r.name}{r.specifier}'" for r in wanted if _wrong(r))
    return Finding("packages", False, f"{', '.join(wrong)}: pip install {names}")


def _needed(requirement):
    return requirement.marker is None or any(
        requirement.marker.evaluate({"extra": extra}) for extra in ("", "frameworks")
    )


def _wrong(requirement):
    """Return what is wrong with a package, or ""."""
    try:
        found = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        # Colab and others bring TensorFlow under another of its names.
        base = requirement.name.removesuffix("-cpu")
        if base == requirement.name:
            return f"{requirement.name} is missing"
        return _wrong(type(requirement)(f"{base}{requirement.specifier}"))
    allowed = requirement.specifier.contains(found, prereleases=True)
    return "" if allowed else f"{requirement.name} is {found}"


def start(programs=None):
    """Start the frameworks, all at the same time, and return their processes by name.

    Args:
      programs: what each of them is to run.
    """
    quiet = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "TF_ENABLE_ONEDNN_OPTS": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": quiet}
    return {
        name: subprocess.Popen([sys.executable, "-c", code], **pipes)
        for name, code in (programs or FRAMEWORKS).items()
    }


def framework(name, process, patience=PATIENCE):
    """Does a framework start, and where does it compute?

    Args:
      name: of the framework.
      process: of :func:`start`.
      patience: seconds until it counts as broken.
    """
    try:
        said, error = process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return Finding(name, False, f"does not start within {patience} seconds: restart, or install it anew")
    if process.returncode:
        last = (error.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        return Finding(name, False, f"does not start: {last}")
    return Finding(name, True, f"starts, {said.strip()}")


def memory(free=None):
    """Is there memory for a chapter?

    Args:
      free: bytes that are free; by default what the system says, where it says so.
    """
    free = _free_bytes() if free is None else free
    if free is None:
        return Finding("memory", True, f"unknown on {platform.system()}: a chapter needs {MEMORY:.0f} GB")
    text = f"{free / 1e9:.1f} GB free"
    if free >= MEMORY * 1e9:
        return Finding("memory", True, text)
    return Finding("memory", False, f"{text}, {MEMORY:.0f} GB are needed: close other kernels and programs")


def _free_bytes():
    """Return what may still be used, by the system and by the limit of this container, or None."""
    known = []
    info = Path("/proc/meminfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines())
        known.append(int(lines["MemAvailable"].split()[0]) * 1024)
    limit, used = (Path("/sys/fs/cgroup", name) for name in ("memory.max", "memory.current"))
    if limit.exists() and limit.read_text().strip() != "max":
        known.append(int(limit.read_text()) - int(used.read_text()))
    return min(known, default=None)


def data():
    """Is the data set generated, without a network?"""
    try:
        generator = importlib.import_module("mnist1d.data")
        arguments = generator.get_dataset_args()
        arguments.num_samples = 20
        shape = generator.make_dataset(arguments)["x"].shape
    except Exception as error:
        return Finding("data", False, f"MNIST-1D is not generated ({error}): pip install 'mnist1d>=0.0.2'")
    return Finding("data", shape[1] == 40, f"MNIST-1D is generated, {shape[1]} numbers an example")


def jupyter():
    """Is there a kernel for the chapters, and can a chapter show its widgets?"""
    missing = [name for name in ("ipykernel", "ipywidgets") if importlib.util.find_spec(name) is None]
    if missing:
        return Finding("Jupyter", False, f"{', '.join(missing)} missing: pip install {' '.join(missing)}")
    where = "on Colab" if "COLAB_RELEASE_TAG" in os.environ else ""
    found = ", ".join(f"{name} {metadata.version(name)}" for name in ("ipykernel", "ipywidgets"))
    return Finding("Jupyter", True, f"{found} {where}".rstrip())


def disk(folder=None):
    """Can results be kept, so that a second run need not train again?"""
    if folder is None:
        from dlopt_helpers.lab.memo import cache_dir

        folder = cache_dir()
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        what = "set DLOPT_CACHE to a folder that can be written"
        return Finding("results", False, f"{folder} cannot be written ({error.strerror}): {what}")
    return Finding("results", True, f"kept in {folder}")


def examine():
    """Return all findings."""
    started = start()  # the slowest: the others are looked at meanwhile
    quick = [python(), packages(), memory(), data(), jupyter(), disk()]
    return [*quick, *(framework(name, process) for name, process in started.items())]


def main():
    """Print the findings and return the exit code."""
    found = examine()
    print(*found, sep="\n")
    well = all(finding.well for finding in found)
    print("\nReady." if well else "\nDo what the lines with DO say, and ask again.")
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())
