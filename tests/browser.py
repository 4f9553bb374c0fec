"""A browser that refuses every other origin, and what an explorer must do in it."""

import functools
import http.server
import os
import shutil
import threading
from contextlib import contextmanager

from playwright.sync_api import sync_playwright

# The theme needs inline scripts and styles; nothing may evaluate text as code or ask another origin.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; font-src 'self' data:"
)
PHONE = {"viewport": {"width": 390, "height": 844}}
DESK = {"viewport": {"width": 1280, "height": 900}}

MARKS = """figure => [...figure.querySelectorAll('.dlopt-panel .role-mark')].map(group =>
    [...group.querySelectorAll('path, text, image')].map(mark => mark.outerHTML).join()).join()"""
SETTLED = """figure => {
    const inputs = [...figure.querySelectorAll('.dlopt-control input, .dlopt-control select')];
    return figure.dataset.shown === inputs.map(input => input.value).join();
}"""


@contextmanager
def served(folder):
    """Serve a folder on loopback under POLICY and give its address."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def end_headers(self):
            self.send_header("Content-Security-Policy", POLICY)
            super().end_headers()

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextmanager
def chromium():
    """Start the installed Chromium, named by CHROMIUM, on the path, or Playwright's own."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM") or shutil.which("chromium"),
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def guarded(browser, origin, allowed=(), **options):
    """Give a page that reaches ``origin`` alone; fail at the end if it wanted more or reported an error.

    Args:
      allowed: beginnings of error messages that are not the page's fault.
    """
    context = browser.new_context(**options)
    context.set_default_timeout(15_000)
    troubles = []

    def answer(route):
        if route.request.url.startswith((origin + "/", "data:", "blob:")):
            return route.continue_()
        troubles.append(f"asked another origin: {route.request.url}")
        return route.abort()

    def note(text):
        if not text.startswith(tuple(allowed)):
            troubles.append(text)

    context.route("**/*", answer)
    page = context.new_page()
    page.on("pageerror", lambda error: note(str(error)))
    page.on("console", lambda message: note(message.text) if message.type == "error" else None)
    page.on(
        "response", lambda answer: note(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    try:
        yield page
        assert not troubles, troubles
    finally:
        context.close()


def check_explorers(page, patience=10_000):
    """Assert that each explorer of the page is ready, named, driven by the keyboard, drawn; count them."""
    figures = page.locator("figure.dlopt-explorer").all()
    for figure in figures:
        figure.scroll_into_view_if_needed()
        page.wait_for_function(
            "figure => figure.dataset.ready === 'true'", arg=figure.element_handle(), timeout=patience
        )
        assert figure.locator("svg").count() > 0, "no chart stands"
        assert figure.locator(".dlopt-picture").count() == 0, "the picture stays beside the chart"
        controls = figure.locator(".dlopt-control input, .dlopt-control select").all()
        assert controls, "an explorer without controls"
        for control in controls:
            _check_name(page, figure, control)
            _check_moves(page, figure, control)
    return len(figures)


def _check_name(page, figure, control):
    labels = control.evaluate("input => [...input.labels].map(label => label.textContent.trim())")
    assert len(labels) == 1 and labels[0], f"a control has the labels {labels}"
    others = control.evaluate(
        "input => ['aria-label', 'aria-labelledby', 'title'].filter(a => input.hasAttribute(a))"
    )
    assert not others, f"{labels[0]} is named again by {others}"
    identity = control.get_attribute("id")
    assert page.locator(f"[id='{identity}']").count() == 1, f"the id {identity} is not unique"
    assert figure.get_by_label(labels[0], exact=True).count() == 1, f"{labels[0]} names more than one control"


def _check_moves(page, figure, control):
    name = control.get_attribute("id")
    start = control.input_value()

    def at(key):
        control.press(key)
        return _drawn(page, figure, name)

    first, last, again = at("Home"), at("End"), at("Home")
    assert first != last, f"{name} draws the same at both ends"
    assert first == again, f"{name} does not return to what it drew"
    at("ArrowDown" if control.evaluate("input => input.tagName") == "SELECT" else "ArrowRight")
    assert control.input_value() == "1", f"{name} does not follow the arrow keys"
    control.evaluate(
        "(input, value) => { input.value = value; input.dispatchEvent(new Event('input')); }",
        start,
    )
    _drawn(page, figure, name)


def _drawn(page, figure, name):
    page.wait_for_function(SETTLED, arg=figure.element_handle())
    marks = figure.evaluate(MARKS)
    assert marks, f"{name}: nothing is drawn"
    for word in ("NaN", "undefined", "Infinity"):
        assert word not in figure.locator(".dlopt-panels").inner_html(), f"{name}: {word} in the chart"
    spoken = figure.evaluate(
        "f => [...f.querySelectorAll('[aria-valuetext]')].map(i => i.getAttribute('aria-valuetext'))"
    )
    shown = figure.locator("input + output, output").all_inner_texts()
    assert not [text for text in spoken if "e" in text.lower()], f"an exponent is read out: {spoken}"
    assert set(spoken) <= set(shown), f"{spoken} is read out, {shown} is shown"
    return marks
