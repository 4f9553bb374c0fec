"""For every test: no network, one thread, the same draws, and a run without a passed test is a failure."""

import itertools
import os
import runpy
import zlib
from pathlib import Path

import hypothesis
import numpy as np
import pytest

NO_NETWORK = Path(__file__).parent / "no_network"

hypothesis.settings.register_profile("default", deadline=None)  # a busy machine is no fault
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
if str(NO_NETWORK) not in os.environ.get("PYTHONPATH", "").split(os.pathsep):
    # Run by hand and not by make: guard this process, and by the variable those that it starts.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(NO_NETWORK), os.environ.get("PYTHONPATH", "")])
    runpy.run_path(str(NO_NETWORK / "sitecustomize.py"))


@pytest.fixture(autouse=True)
def same_draws(request, monkeypatch):
    """Exercises draw fresh inputs at each call; a test gets the same ones each time, by its name."""
    seeds, seeded = itertools.count(zlib.crc32(request.node.nodeid.encode())), np.random.default_rng
    monkeypatch.setattr(
        np.random, "default_rng", lambda seed=None: seeded(next(seeds) if seed is None else seed)
    )


_passed = set()


def pytest_runtest_logreport(report):
    if report.when == "call" and report.passed:
        _passed.add(report.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session, exitstatus):
    if exitstatus == pytest.ExitCode.OK and not _passed and not session.config.option.collectonly:
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
