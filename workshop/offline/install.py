"""Sets up the book in the folder of this file, without a network: python3 install.py"""

import platform
import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"


def kind():
    """Return for which machines packages are that were collected on this one."""
    return f"Python {sys.version_info[0]}.{sys.version_info[1]} on {platform.system()} {platform.machine()}"


def main():
    """Install the packages and return the exit code of the set-up check."""
    with LOCK.open(encoding="utf-8") as lock:
        wanted = lock.readline().removeprefix("# For ").strip()
    if kind() != wanted:
        return f"These packages are for {wanted}; this is {kind()}. Run this file with that Python."
    print("Installing: some minutes", flush=True)
    try:
        venv.create(HERE / ".venv", with_pip=True)
    except subprocess.CalledProcessError:
        return "Python's venv is missing. On Debian and Ubuntu: apt install python3-venv"
    python = HERE / ".venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    pip += [
        "--no-index",
        "--find-links",
        HERE / "wheels",
        "--no-deps",
        "--require-hashes",
        "--requirement",
        LOCK,
    ]
    if subprocess.run(pip).returncode:
        return "Not installed: pip says above what is wrong."
    return subprocess.run([python, "-m", "dlopt_helpers.doctor"]).returncode


if __name__ == "__main__":
    sys.exit(main())
