"""Slider to paint, and page weight, of explorers on static pages.

    python benchmarks/explorer.py [SITE]

Measures three made pages (3,000 rows drawn faint; 24,000 rows stored; six runs of 100 steps that the page
computes, NAdam on Beale's function, 114 operations a step) and then each page of SITE (default
``_build/html``) that holds an explorer. A move is timed inside an animation frame, as a browser delivers
input, from the control's event to the end of that frame's style, layout and paint on the main
thread; one frame is 16.7 ms. Weight is the page's own HTML, gzipped, without the scripts that all share.
"""

import argparse
import gzip
import sys
import tempfile
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser import DESK, chromium, served  # noqa: E402

from dlopt_helpers.adam import NAdam  # noqa: E402
from dlopt_helpers.lab.surfaces import beale  # noqa: E402
from dlopt_helpers.page.explorer import BLUE, INK, Explorer, Slider, write_assets  # noqa: E402
from dlopt_helpers.page.recurrence import Recurrence  # noqa: E402

MOVES = 200
TIME = """(figure, moves) => new Promise(resolve => {
    const input = figure.querySelector('.dlopt-control input');
    const inputs = [...figure.querySelectorAll('.dlopt-control input, .dlopt-control select')];
    const drawn = () => figure.dataset.shown === inputs.map(i => i.value).join();
    const afterPaint = new MessageChannel();
    const times = [];
    let start, move = 0;
    afterPaint.port1.onmessage = () => {
        if (!drawn()) return afterPaint.port2.postMessage(0);
        times.push(performance.now() - start);
        times.length < moves ? requestAnimationFrame(next) : resolve(times);
    };
    function next() {
        start = performance.now();
        input.value = move++ % (Number(input.max) + 1);
        input.dispatchEvent(new Event('input', {bubbles: true}));
        afterPaint.port2.postMessage(0);
    }
    requestAnimationFrame(next);
})"""


def made(settings, points, faint):
    """Return an explorer with two sliders over ``settings`` runs of ``points`` rows."""
    random = np.random.default_rng(0)
    rates, momenta = np.geomspace(1e-3, 1, settings // 5), np.linspace(0, 0.9, 5)
    step = np.arange(points)
    runs = pd.concat(
        pd.DataFrame({"lr": lr, "mu": mu, "step": step, "loss": random.normal(lr, 0.1, points).cumsum()})
        for lr in rates
        for mu in momenta
    )

    def draw(runs, chosen):
        bright = chosen.mark_line(color=BLUE).encode(x="step:Q", y="loss:Q")
        pale = runs.mark_line(color=INK, opacity=0.1).encode(x="step:Q", y="loss:Q", detail=["lr:N", "mu:N"])
        return pale + bright if faint else bright

    controls = [Slider("lr", "Learning rate η", scale="log"), Slider("mu", "Momentum μ")]
    return Explorer(runs, draw, controls, caption="A walk.", title="Benchmark")


def computed():
    """Return an explorer of six runs that the page computes anew at each move."""
    surface = beale()

    def start(rule):
        w = np.array(surface.start)
        return {"w": w, "state": NAdam().init(w)}

    def step(w, state, rule, lr, beta1, beta2):
        w, state = NAdam(lr * rule, beta1, beta2).step(w, surface.gradient(w), state)
        return {"w": w, "state": state}

    def row(w):
        return {"x": w[0], "y": w[1], "gap": surface.value(w)}

    def draw(_, chosen):
        def axis(channel, column, low, high):
            return channel(f"{column}:Q", scale=alt.Scale(domain=[low, high], clamp=True))

        x, y = axis(alt.X, "x", 0, 4), axis(alt.Y, "y", -1, 2)
        steps, gap = axis(alt.X, "step", 0, 100), axis(alt.Y, "gap", 0, 10)
        path = chosen.mark_line().encode(x=x, y=y, color="rule:N", order="step:Q")
        return path, chosen.mark_line().encode(x=steps, y=gap, color="rule:N")

    runs = Recurrence(start, step, row, steps=100, series={"rule": [1, 2, 3, 4, 5, 6]})
    controls = [
        Slider("lr", "Learning rate η", "log", 0.001, 0.01),
        Slider("beta1", "Momentum", minimum=0.5, maximum=0.9),
        Slider("beta2", "Memory", minimum=0.5, maximum=0.999),
    ]
    return Explorer(runs, draw, controls, caption="Six paths.", title="Benchmark")


def measure(browser, origin, path):
    """Return a line for each explorer of a page that has a slider."""
    page = browser.new_context(**DESK).new_page()
    page.goto(f"{origin}/{path}")
    page.wait_for_function(
        "() => document.querySelectorAll('figure.dlopt-explorer:not([data-ready=true])').length === 0"
    )
    lines = []
    for figure in page.locator("figure.dlopt-explorer:has(input)").all():
        figure.scroll_into_view_if_needed()
        times = figure.evaluate(TIME, MOVES)
        lines.append((figure.get_attribute("aria-label"), np.median(times), np.percentile(times, 95)))
    page.context.close()
    return lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", nargs="?", type=Path, default=ROOT / "_build" / "html")
    book = parser.parse_args().site
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        write_assets(folder)
        scripts = '<script defer src="vega.js"></script><script defer src="explorer.js"></script>'
        made_pages = {
            "3,000 rows faint": made(75, 40, True),
            "24,000 rows stored": made(600, 40, False),
            "6 runs computed": computed(),
        }
        for name, explorer in made_pages.items():
            Path(folder, f"{name}.html").write_text(f"<!doctype html>{scripts}{explorer.to_html()}")
        pages = [(Path(folder), f"{name}.html") for name in made_pages]
        pages += [
            (book, file.relative_to(book).as_posix())
            for file in sorted(book.rglob("*.html"))
            if "dlopt-explorer" in file.read_text(encoding="utf-8")
        ]
        print(f"{'page':32} {'gzip':>8}  {'explorer':32} {'median':>8} {'p95':>8}")
        for root, path in pages:
            weight = len(gzip.compress((root / path).read_bytes())) / 1000
            with served(root) as origin:
                for title, median, p95 in measure(browser, origin, path):
                    print(f"{path:32} {weight:5.0f} kB  {title:32} {median:5.1f} ms {p95:5.1f} ms")


if __name__ == "__main__":
    main()
