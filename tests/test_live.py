"""The explorer in JupyterLab: a setting that no run holds is computed and its curve arrives."""

import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from browser import chromium, guarded

ROOT = Path(__file__).parents[1]
CELL = """
import numpy as np, pandas as pd
from dlopt_helpers.page.explorer import BLUE, Choice, Explorer, Slider

def compute(lr, rule):
    step = np.arange(10)
    return pd.DataFrame({"step": step, "loss": (1 - lr) ** step})

grid = [(lr, rule) for lr in (0.01, 0.1, 1.0) for rule in ("a", "b")]
runs = pd.concat([compute(lr, rule).assign(lr=lr, rule=rule) for lr, rule in grid])

def draw(runs, chosen):
    faint = runs.mark_line(color="gray").encode(x="step:Q", y="loss:Q", detail=["lr:N", "rule:N"])
    return faint + chosen.mark_line(color=BLUE).encode(x="step:Q", y="loss:Q")

Explorer(runs, draw, [Slider("lr", "Learning rate", scale="log"), Choice("rule", "Rule")],
         caption="Faster is lower.", title="Decay", compute=compute)
"""
CURVE = "document.querySelectorAll('.jp-OutputArea-output .vega-embed .mark-line path[stroke*=\"blue\"]')"


@contextmanager
def lab(folder):
    """Run JupyterLab on loopback without a token, all its files in ``folder``, and give its address."""
    homes = {
        name: str(folder / name)
        for name in ("HOME", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    }
    settings = folder / "settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(
        json.dumps({"fetchNews": "false", "checkForUpdates": False})
    )
    environment = {
        **os.environ,
        **homes,
        "PYTHONPATH": str(ROOT),
        "JUPYTERLAB_SETTINGS_DIR": str(folder / "settings"),
    }
    environment.pop("DLOPT_STATIC", None)
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        "--port=0",
        "--IdentityProvider.token=",
        "--LabApp.news_url=",
        f"--ServerApp.root_dir={folder / 'work'}",
    ]
    server = subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    try:
        for line in server.stderr:
            if found := re.search(r"(http://127\.0\.0\.1:\d+)/lab", line):
                break
        else:
            pytest.fail("JupyterLab did not start")
        threading.Thread(target=server.stderr.read, daemon=True).start()  # a full pipe would stop the server
        yield found[1]
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def notebook(tmp_path):
    (tmp_path / "work").mkdir()
    cells = [nbformat.v4.new_code_cell(CELL)]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), tmp_path / "work" / "live.ipynb")
    return tmp_path


@pytest.mark.timeout(180)
def test_new_setting_is_computed_and_drawn(notebook):
    with (
        lab(notebook) as origin,
        chromium() as browser,
        guarded(browser, origin, ("Failed to load resource",)) as page,
    ):
        page.set_default_timeout(60_000)
        page.goto(f"{origin}/lab/tree/live.ipynb?reset")
        page.locator(".jp-Notebook .jp-CodeCell .cm-content").first.click()
        page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']")
        page.keyboard.press("Shift+Enter")
        page.wait_for_function(f"() => {CURVE}.length === 1")
        before = page.evaluate(f"{CURVE}[0].getAttribute('d')")
        lines = page.locator(".mark-line path").count()

        slider = page.locator(".widget-slider .noUi-handle, .widget-slider .ui-slider-handle").first
        slider.focus()
        page.keyboard.press("ArrowRight")

        page.wait_for_selector("[role=status]:has-text('computed in')")
        page.wait_for_function(f"before => {CURVE}[0].getAttribute('d') !== before", arg=before)
        page.wait_for_function(
            "lines => document.querySelectorAll('.mark-line path').length === lines + 1", arg=lines
        )
        assert "NaN" not in page.locator(".vega-embed").first.inner_html()
