"""The built book as a reader meets it, and proof that these checks can fail."""

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import DESK, MARKS, PHONE, SETTLED, check_explorers, chromium, guarded, served

from dlopt_helpers.page.explorer import BLUE, Choice, Explorer, Slider, write_assets
from dlopt_helpers.page.recurrence import Recurrence

BOOK = Path(__file__).parents[1] / "_build" / "html"
# The theme's own files lie under _static; a page that only sends its reader on has nothing to check.
FOUND = sorted(
    path.relative_to(BOOK).as_posix()
    for path in BOOK.rglob("*.html")
    if path.relative_to(BOOK).parts[0] != "_static" and 'http-equiv="Refresh"' not in path.read_text("utf-8")
)
DECKS = [path for path in FOUND if path.startswith("slides/")]
PAGES = [path for path in FOUND if path not in DECKS]
each_page = pytest.mark.parametrize("path", PAGES or ["index.html"])
each_file = pytest.mark.parametrize("path", FOUND or ["index.html"])
each_look = pytest.mark.parametrize("look", ["light", "dark"])


@pytest.fixture(scope="module")
def browser():
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def book():
    if not PAGES:
        pytest.fail(f"{BOOK} holds no page: run `make book` first")
    with served(BOOK) as origin:
        yield origin


# --- the built book ----------------------------------------------------------------------------------


@each_page
def test_explorers_of_the_book(book, browser, path):
    with guarded(browser, book, **DESK) as page:
        page.goto(f"{book}/{path}")
        assert check_explorers(page) == _read(path).figures.count("dlopt-explorer")


def test_book_has_explorers(book):
    assert sum(_read(path).figures.count("dlopt-explorer") for path in PAGES) >= 2


@each_look
@each_page
def test_no_serious_barrier(book, browser, path, look):
    with guarded(browser, book, color_scheme=look, **DESK) as page:
        page.goto(f"{book}/{path}")
        assert page.locator("html").get_attribute("data-theme") == look
        _wait_for_explorers(page)
        assert _barriers(page) == []


@each_page
def test_fits_a_phone(book, browser, path):
    with guarded(browser, book, **PHONE) as page:
        page.goto(f"{book}/{path}")
        _wait_for_explorers(page)
        _check_width(page)


@each_file
def test_links_resolve(book, path):
    broken = []
    for link in _read(path).links:
        target, fragment = urldefrag(urljoin(f"/{path}", link))
        if re.match(r"[a-z]+:|//", link) or link == "#":
            continue
        file = BOOK / unquote(target.partition("?")[0]).lstrip("/")
        plain = not fragment or file.suffix != ".html"
        if not file.exists() or not (plain or unquote(fragment) in _read(file.relative_to(BOOK)).ids):
            broken.append(link)
    assert broken == []


@each_file
def test_pictures_speak(book, path):
    assert _read(path).silent == []


# --- slides ------------------------------------------------------------------------------------------


@pytest.fixture
def deck(book, browser):
    """Show the slides of chapter 3.1, under the policy and on a screen as projectors have it."""
    with guarded(browser, book, viewport={"width": 1280, "height": 720}) as page:
        page.goto(f"{book}/slides/03_1_sgd.html")
        page.wait_for_function("() => window.Reveal && Reveal.isReady()")
        _wait_for_explorers(page)
        yield page


NOW = "[Reveal.getIndices().h, Reveal.getIndices().v].join()"


def test_slides_advance_and_fit(deck):
    seen = [deck.evaluate(NOW)]
    for _ in range(99):
        now = "() => { const at = Reveal.getCurrentSlide(); return at.scrollHeight - at.clientHeight }"
        assert deck.evaluate(now) <= 2, f"slide {seen[-1]} is higher than the screen"
        if deck.evaluate("Reveal.isLastSlide()"):
            break
        deck.keyboard.press("ArrowRight")
        seen += [deck.evaluate(NOW)]
    assert len(set(seen)) == deck.evaluate("Reveal.getTotalSlides()") >= 8
    assert deck.locator("mjx-container").count() > 10
    assert "$" not in deck.locator(".slides").inner_text()


def test_an_explorer_moves_on_its_slide(deck):
    figure = deck.locator("section.present section.present figure.dlopt-explorer")
    while not figure.count():
        deck.keyboard.press("ArrowRight")
    slide, slider = deck.evaluate(NOW), figure.locator("input").first
    drawn = []
    for key in ("Home", "End"):
        slider.press(key)
        deck.wait_for_function(SETTLED, arg=figure.element_handle())
        drawn.append(figure.evaluate(MARKS))
    assert drawn[0] and drawn[0] != drawn[1]
    before = slider.input_value()
    slider.press("ArrowLeft")
    assert int(slider.input_value()) == int(before) - 1, "the arrow did not move the slider"
    figure.locator("select").first.press("ArrowDown")
    assert deck.evaluate(NOW) == slide, "an arrow in a control turned the page"


@each_look
def test_slides_have_no_serious_barrier(book, browser, look):
    with guarded(browser, book, color_scheme=look, **DESK) as page:
        page.goto(f"{book}/slides/03_1_sgd.html")
        page.wait_for_function("() => window.Reveal && Reveal.isReady()")
        assert page.locator("html").get_attribute("data-theme") == look
        page.keyboard.press("ArrowRight")
        _wait_for_explorers(page)
        assert _barriers(page) == []


# --- explorers of our own ----------------------------------------------------------------------------


def line(runs, chosen):
    return chosen.mark_line(color=BLUE).encode(x="step:Q", y="w:Q")


def explorer(draw=line, drop=(), caption="Larger is faster.", more=()):
    rows = [
        {"lr": lr, "start": start, "step": step, "w": sign * (1 - lr) ** step}
        for lr in (0.001, 0.0316, 0.5)
        for start, sign in (("left", -1), ("right", 1))
        for step in range(5)
        if (lr, start) not in drop
    ]
    controls = [Slider("lr", "Learning rate η", scale="log"), Choice("start", "Start"), *more]
    return Explorer(pd.DataFrame(rows), draw, controls, caption=caption, title="Decay")


@pytest.fixture
def show(tmp_path, browser):
    """Serve a page of explorers, with or without the script, and give the browser's page."""
    opened = []

    def _show(*explorers, script=True, look="light", **options):
        write_assets(tmp_path)
        scripts = (
            '<script defer src="vega.js"></script><script defer src="explorer.js"></script>' if script else ""
        )
        body = "".join(explorer.to_html() for explorer in explorers)
        (tmp_path / "page.html").write_text(
            f'<!doctype html><html lang="en" data-theme="{look}"><meta charset="utf-8">'
            "<title>Explorers</title>"
            '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
            "<style>[data-theme=dark] { background: #121212; color: #ced6dd }</style>"
            f'<link rel="stylesheet" href="explorer.css">{scripts}<body><main><h1>Explorers</h1>{body}</main>'
        )
        site = served(tmp_path)
        origin = site.__enter__()
        guard = guarded(browser, origin, **options)
        opened.extend([site, guard])
        page = guard.__enter__()
        page.goto(f"{origin}/page.html")
        return page

    yield _show
    for manager in reversed(opened):
        manager.__exit__(None, None, None)


def test_sound_explorers_pass(show):
    assert check_explorers(show(explorer(), explorer())) == 2


def test_page_without_the_script_fails_the_check(show):
    with pytest.raises(Exception, match="Timeout"):
        check_explorers(show(explorer(), script=False), patience=1_000)


def test_control_wired_to_nothing_fails_the_check(show):
    def deaf(runs, chosen):
        return runs.mark_line().encode(x="step:Q", y="w:Q", detail=["lr:N", "start:N"])

    with pytest.raises(AssertionError, match="draws the same at both ends"):
        check_explorers(show(explorer(deaf)))


def test_other_origin_fails_the_guard(browser, tmp_path):
    (tmp_path / "page.html").write_text('<img src="http://other.invalid/a.png">')
    failure = pytest.raises(AssertionError, match=r"other\.invalid")
    with served(tmp_path) as origin, failure, guarded(browser, origin) as page:
        page.goto(f"{origin}/page.html")


def test_setting_without_a_run_says_so_and_shows_no_stale_marks(show):
    page = show(explorer(drop={(0.5, "left")}))
    _wait_for_explorers(page)
    page.get_by_label("Start").press("Home")
    slider = page.get_by_label("Learning rate η")
    slider.press("End")
    page.wait_for_selector("[role=status]:has-text('not among the stored runs')")
    assert page.locator(".mark-line path").count() == 0
    slider.press("Home")
    page.wait_for_selector(".mark-line path")
    assert page.locator("[role=status]").inner_text() == ""


def test_continuous_slider_moves_the_chart_s_own_formula(show):
    def scaled(runs, chosen):
        moved = chosen.transform_calculate(u="datum.w * T")
        return moved.mark_line().encode(x="step:Q", y="u:Q"), moved.mark_point().encode(x="step:Q", y="u:Q")

    page = show(explorer(scaled, more=[Slider("T", "Temperature T", minimum=0.01, maximum=100, scale="log")]))
    assert check_explorers(page) == 1
    slider = page.get_by_label("Temperature T")
    slider.press("Home")
    assert slider.get_attribute("aria-valuetext") == "0.01"


def spiral(**changes):
    """Return a contractive recurrence that has every operation, with two choices, two series and a table."""

    def start(side, spin):
        return {"w": np.array([side * 4.0, 1.0]), "mean": {"t": 0, "v": 0.0 * spin}}

    def step(w, mean, rule, spin, lr, beta, across, push, drift):
        t = mean["t"] + 1
        v = beta * mean["v"] + (1 - beta) * (w**2).sum()
        length = (v / (1 - beta**t)) ** 0.5 if rule == "scaled" else 1 / across
        turned = np.stack([-w[1], w[0]]) * abs(across - spin) / 9
        return {"w": w - lr * (w + across * turned) / (length + 1) + push - drift, "mean": {"v": v, "t": t}}

    runs = Recurrence(
        start,
        step,
        lambda w, mean: {"y": w[1], "x": w[0], "v": mean["v"]},
        steps=20,
        series={"rule": ["scaled", "plain"]},
        inputs=lambda side: {
            "push": side / np.geomspace(10, 1000, 60).reshape(30, 2),
            "drift": np.linspace(0.1, 0, 20),
        },
        while_positive=lambda w: 25 - (w**2).sum(),
    )
    # Not in the order of the alphabet, in which the numbers go to the page.
    controls = [
        Slider("lr", "Rate", "log", 0.01, 0.5),
        Slider("across", "Across", minimum=0.1, maximum=9),
        Choice("spin", "Spin", [0.5, 2.0, 3.0]),
        Slider("beta", "Memory", minimum=0, maximum=0.99),
        Choice("side", "Side", [-1, 1]),
    ]

    def draw(_, chosen):
        number = " + ' ' + ".join(f"format(datum.{column}, '.16e')" for column in ("step", "x", "y", "v"))
        text = chosen.transform_calculate(text=f"datum.rule + ' ' + {number}")
        return text.mark_text().encode(text="text:N", y="step:Q")

    return Explorer(runs, draw, controls, caption="Inwards.", title="Spiral", **changes)


def test_browser_computes_the_rows_that_python_computes(show):
    made = spiral()
    page = show(made)
    assert check_explorers(page) == 1
    lengths = set()
    for moves in ([], [(0, 0), (3, 40)], [(1, 200), (2, 1)], [(0, 200), (2, 2), (4, 1)], [(1, 0), (2, 0)]):
        for control, position in moves:
            set_to(page, control, position)
        places = page.locator("input, select").evaluate_all("all => all.map(one => Number(one.value))")
        names = [control["name"] for control in made._data()["controls"]]
        setting = {name: made.stops[name][place] for name, place in zip(names, places, strict=True)}
        texts = page.locator(".mark-text.role-mark text").all_text_contents()
        found = [text.replace("−", "-").split() for text in texts]
        rows = made.find(setting)
        assert [row[0] for row in found] == [row["rule"] for row in rows]
        numbers = np.array([row[1:] for row in found], dtype=float)
        expected = [[row[column] for column in ("step", "x", "y", "v")] for row in rows]
        np.testing.assert_allclose(numbers, expected, rtol=1e-9)
        lengths.add(len(rows))
    assert 42 in lengths and min(lengths) < 42, "no run stayed, or none left"


def set_to(page, control, position):
    box = page.locator("input, select").nth(control)
    box.evaluate(
        "(box, value) => { box.value = value; box.dispatchEvent(new Event('input')); }", str(position)
    )
    page.wait_for_function(SETTLED, arg=page.locator("figure").element_handle())


def test_without_script_a_picture_and_no_dead_control(show):
    page = show(explorer(), java_script_enabled=False)
    assert page.get_by_role("img", name="Larger is faster.").count() == 1
    assert page.get_by_text("Learning rate η = 0.0316, Start = left").is_visible()
    assert page.locator("input, select").count() == 0


def test_markup_in_words_stays_words(show):
    page = show(explorer(caption='</script><b>"&'))
    _wait_for_explorers(page)
    assert page.locator("figcaption").inner_text() == '</script><b>"&'


@each_look
def test_explorer_alone_has_no_barrier_and_fits_a_phone(show, look):
    page = show(explorer(), look=look, **PHONE)
    _wait_for_explorers(page)
    assert _barriers(page) == []
    _check_width(page)
    for control in page.locator("input, select").all():
        assert control.bounding_box()["height"] >= 24


# --- helpers -----------------------------------------------------------------------------------------


def _wait_for_explorers(page):
    page.wait_for_function(
        "() => document.querySelectorAll('figure.dlopt-explorer:not([data-ready=true])').length === 0",
        timeout=10_000,
    )


def _barriers(page):
    # Without preload axe reads no style sheet a second time, which it would look for at wrong addresses.
    rules = Axe().run(page, options={"preload": False}).response["violations"]
    serious = [rule for rule in rules if rule["impact"] in ("serious", "critical")]
    return [(rule["id"], node["html"][:200]) for rule in serious for node in rule["nodes"]]


def _check_width(page):
    wide = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide[0] <= wide[1], f"the page is {wide[0]} px wide in a window of {wide[1]} px"


class _Page(HTMLParser):
    """The links, ids and figures of a page, and the pictures that say nothing."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.figures, self.silent = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        self.links += [
            values[key]
            for key in ("href", "src")
            if values.get(key) and tag in ("a", "img", "link", "script")
        ]
        if tag == "figure":
            self.figures += (values.get("class") or "").split()
        if tag == "img" and not (values.get("alt") or "").strip():
            self.silent.append(values.get("src", "")[:80])


def _read(path, known={}):  # noqa: B006 - pages are read once
    path = str(path)
    if path not in known:
        known[path] = _Page((BOOK / path).read_text(encoding="utf-8"))
    return known[path]
