"""Packs what a room without internet needs, and tries it without a network: ``make bundle``."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from browser import chromium
from install import kind

import dlopt_helpers

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
BUILD = ROOT / "_build"
FOLDERS = {"_build/html": "book", "_build/exercises": "exercises"} | {f: f for f in ("chapters", "LICENSES")}
# Brings loopback up, for Jupyter's kernels, in a network of which nothing else is there.
LOOPBACK = (
    "import fcntl, os, socket, struct, sys;"
    "fcntl.ioctl(socket.socket(), 0x8914, struct.pack('16sh', b'lo', 1));"
    "os.execv(sys.argv[1], sys.argv[1:])"
)


def pack(folder):
    """Fill a folder with the book, the notebooks and the packages."""
    for source, target in FOLDERS.items():
        shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns(".*", "*.pickle"))
    for path in (HERE / "README.txt", HERE / "install.py", ROOT / "LICENSE"):
        shutil.copy(path, folder)
    _wheels(folder / "wheels")
    (folder / "requirements.lock").write_text(_lock(folder / "wheels"), encoding="utf-8")


def _wheels(folder):
    """Collect the pinned packages, this one, and what this machine's build of torch wants besides."""
    pip = [sys.executable, "-m", "pip", "wheel", "-qq", "--wheel-dir", folder]
    # As in postBuild, a build of torch that pip is told to find comes before those of the index.
    lock = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    torch = re.search(r"^torch==(.*\\\n)*.*\n", lock, re.MULTILINE)[0]
    pip_pinned = [*pip, "--require-hashes", "--no-deps", "-r", "/dev/stdin"]
    here = subprocess.run([*pip_pinned, "--no-index"], input=torch, text=True, stderr=subprocess.DEVNULL)
    rest = lock if here.returncode else lock.replace(torch, "")
    subprocess.run(pip_pinned, input=rest, text=True, check=True)
    pins = ["==".join(wheel.name.split("-")[:2]) + "\n" for wheel in folder.iterdir()]
    with tempfile.TemporaryDirectory() as copy:  # for pip builds where the source is
        shutil.copytree(ROOT / "dlopt_helpers", Path(copy, "dlopt_helpers"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        constraints = Path(copy, "pins.txt")
        constraints.write_text("".join(pins), encoding="utf-8")
        also = ["--no-build-isolation", "--find-links", folder, "--constraint", constraints]
        subprocess.run([*pip, *also, f"{copy}[frameworks,book,test]"], check=True)


def _lock(wheels):
    """Return a lock file of the wheels in a folder."""
    lines = [f"# For {kind()}"]
    for wheel in sorted(wheels.iterdir()):
        name, version = wheel.name.split("-")[:2]
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines.append(f"{name}=={version} --hash=sha256:{digest}")
    return "\n".join(lines) + "\n"


def alone(*command, **more):
    """Run a command without a network: in one of its own or, where that is not allowed, refused by Python."""
    cut = ["unshare", "--map-root-user", "--net", sys.executable, "-c", LOOPBACK]
    if not shutil.which("unshare") or subprocess.run([*cut, shutil.which("true")]).returncode:
        cut = []
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "no_network"), **more}
    subprocess.run([*cut, *command], check=True, env=environment)


def attempt(archive, folder):
    """Install what was packed in a folder, run a chapter there and open its page."""
    shutil.unpack_archive(archive, folder)
    (room,) = Path(folder).iterdir()
    cache = {"DLOPT_CACHE": str(room / "cache")}
    alone(sys.executable, str(room / "install.py"), **cache)
    alone(str(room / ".venv/bin/jupyter"), "execute", str(room / "chapters/03_1_sgd.ipynb"), **cache)
    with chromium() as browser:
        page = browser.new_page()
        page.goto((room / "book/chapters/03_1_sgd.html").as_uri())
        page.wait_for_selector(".dlopt-panel svg, .dlopt-panel canvas")


def main():
    """Pack, try, and only then give the archive its name."""
    name = "-".join(["dlopt", dlopt_helpers.__version__, *kind().lower().replace(" on ", " ").split()])
    with tempfile.TemporaryDirectory(dir=BUILD, prefix="unfinished-") as temporary:
        pack(Path(temporary, name))
        archive = shutil.make_archive(str(Path(temporary, name)), "zip", temporary, name)
        shutil.rmtree(Path(temporary, name))
        attempt(archive, Path(temporary, "room"))
        os.replace(archive, BUILD / f"{name}.zip")
    print(f"{BUILD / name}.zip, {os.path.getsize(BUILD / f'{name}.zip') / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
