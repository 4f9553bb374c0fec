"""The bundle for a room without internet; ``make bundle`` itself installs what it packs."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

OFFLINE = Path(__file__).parents[1] / "workshop" / "offline"


@pytest.fixture
def pack(monkeypatch):
    monkeypatch.syspath_prepend(OFFLINE)
    import pack

    return pack


def test_lock_of_a_bundle_names_its_machine_and_hashes_its_wheels(pack, tmp_path):
    (tmp_path / "some_package-1.2+cpu-py3-none-any.whl").write_bytes(b"wheel")
    first, line = pack._lock(tmp_path).splitlines()
    assert first == f"# For {pack.kind()}"
    assert line == f"some_package==1.2+cpu --hash=sha256:{hashlib.sha256(b'wheel').hexdigest()}"


def test_other_machines_are_refused_before_anything_is_made(tmp_path):
    (tmp_path / "install.py").write_bytes((OFFLINE / "install.py").read_bytes())
    (tmp_path / "requirements.lock").write_text("# For Python 2.7 on Amiga m68k\n")
    done = subprocess.run([sys.executable, tmp_path / "install.py"], capture_output=True, text=True)
    assert done.returncode == 1 and "for Python 2.7 on Amiga m68k; this is Python" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_a_bundle_has_its_name_only_when_it_was_tried(pack, tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "BUILD", tmp_path)
    monkeypatch.setattr(pack, "pack", lambda folder: folder.mkdir())
    monkeypatch.setattr(pack, "attempt", lambda archive, folder: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack.main()
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr(pack, "attempt", lambda archive, folder: None)
    pack.main()
    assert [path.suffix for path in tmp_path.iterdir()] == [".zip"]


ASK = """import socket
try:
    socket.create_connection(("192.0.2.1", 80), 5)
except OSError as error:
    assert "no network here" in str(error)
else:
    raise SystemExit("somebody answers")
with socket.create_server(("127.0.0.1", 0)) as server:  # as the kernels of Jupyter need
    socket.create_connection(server.getsockname(), 5).close()
"""


def test_without_a_network_this_machine_alone_answers(pack, monkeypatch):
    monkeypatch.delenv("PYTHONPATH", raising=False)
    pack.alone(sys.executable, "-c", ASK)
