"""The explorer without a browser: what it refuses, what it puts on the page, how it computes."""

import json
import re

import altair as alt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlopt_helpers.page import explorer as page
from dlopt_helpers.page.explorer import BLUE, INK, PALETTE, Choice, Explorer, Slider, shown

LR = Slider("lr", "Learning rate η", scale="log")
RULE = Choice("rule", "Rule")
WORDS = {"caption": "Faster is lower.", "title": "Decay"}


def decay(lr, rule="plain"):
    step = np.arange(4)
    return pd.DataFrame({"step": step, "loss": (1 - lr) ** step})


def grid(rates=(0.01, 0.1, 0.5), rules=("plain", "heavy")):
    return pd.concat([decay(lr).assign(lr=lr, rule=rule) for lr in rates for rule in rules])


def bright(runs, chosen):
    return chosen.mark_line(color=BLUE).encode(x="step:Q", y="loss:Q")


def both(runs, chosen):
    faint = runs.mark_line(color=INK, opacity=0.2).encode(x="step:Q", y="loss:Q", detail=["lr:N", "rule:N"])
    return faint + bright(runs, chosen)


def make(runs=None, draw=bright, controls=(LR, RULE), **more):
    return Explorer(grid() if runs is None else runs, draw, controls, **{**WORDS, **more})


def payload(explorer):
    return json.loads(
        re.search(r'<script type="application/json">(.*?)</script>', explorer.to_html(), re.S)[1]
    )


# --- what is refused ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: make(controls=[LR, Choice("colour", "Colour")]), "control 'colour'.*column of runs"),
        (lambda: make(controls=[Slider("eta", "Rate")]), "control 'eta'.*column of runs.*minimum"),
        (lambda: make(controls=[LR, LR]), "controls=.*each name once"),
        (lambda: make(controls=[]), "controls=.*one or more"),
        (lambda: make(grid().iloc[:0]), "runs=.*at least one row"),
        (lambda: make({"lr": [1]}), "runs=.*DataFrame"),
        (lambda: make(grid().assign(loss=np.nan)), "runs holds nan in column 'loss', row 0"),
        (lambda: make(grid().assign(loss=np.inf)), "runs holds .*inf.* in column 'loss'"),
        (lambda: make(grid().assign(rule=None)), "runs holds None in column 'rule'"),
        (lambda: make(grid().drop(columns="loss")), r"draw uses the column 'loss': runs has"),
        (
            lambda: make(draw=lambda r, c: bright(r, c.transform_calculate(loss="100 * datum.loss"))),
            "computes 'loss' from itself",
        ),
        (
            lambda: make(draw=lambda r, c: both(r.transform_calculate(loss="datum.step + datum.loss"), c)),
            "computes 'loss' from itself",
        ),
        (lambda: make(grid((0.0, 0.1))), "minimum=0.0: a log scale needs values > 0"),
        (lambda: make(controls=[Slider("rule", "Rule")]), "slider 'rule' needs a column of numbers"),
        (lambda: make(controls=[LR, Choice("rule", "Rule", ["plain", "adam"])]), "option 'adam'.*runs holds"),
        (lambda: make(initial={"lr": 0.2}), r"initial lr=0.2 .*one of \[0.01, 0.1, 0.5\]"),
        (lambda: make(initial={"eta": 0.1}), "initial=.*names 'eta'"),
        (
            lambda: make(grid().query("lr < .5 or rule == 'plain'"), initial={"lr": 0.5, "rule": "heavy"}),
            "no run holds",
        ),
        (lambda: make(draw=lambda r, c: bright(r, c) | bright(r, c)), "'hconcat': return a tuple of charts"),
        (lambda: Slider("x", "X", minimum=1, maximum=1), "minimum must be less than maximum"),
        (lambda: Slider("x", "X", minimum=2, maximum=1), "minimum must be less than maximum"),
        (lambda: Slider("x", "X", minimum=0, maximum=np.inf), "maximum=inf.*a finite number"),
        (lambda: Slider("x", "X", minimum=0, maximum=1, scale="log"), "log scale needs values > 0"),
        (lambda: Slider("x", "X", minimum=0), "give both or neither"),
        (lambda: Slider("x", "X", minimum=0, maximum=1, step=0), "step=0 .*> 0"),
        (
            lambda: make(controls=[LR, Slider("x", "X", minimum=0, maximum=1, step=1e-9)]),
            "at most 10,000 stops",
        ),
        (lambda: Slider("x", "X", scale="cubic"), r"scale='cubic'.*\['linear', 'log'\]"),
        (lambda: Slider("width", "Width"), "name='width'"),
        (lambda: Slider("learning rate", "Rate"), "name='learning rate'"),
        (lambda: Choice("x", "X", []), r"options=\[\].*at least one value"),
    ],
)
def test_refused_with_a_reason(build, words):
    with pytest.raises(ValueError, match=words):
        build()


@given(low=st.floats(), high=st.floats(), scale=st.sampled_from(["linear", "log"]))
def test_a_slider_has_finite_rising_stops_or_is_refused(low, high, scale):
    try:
        stops = Slider("x", "X", scale, low, high).stops({})
    except ValueError:
        assert not (-1e100 <= low < high <= 1e100 and (scale == "linear" or low > 0))
    else:
        assert np.isfinite(stops).all() and stops == sorted(stops)


# --- values and settings -----------------------------------------------------------------------------


@given(st.floats(1e-12, 1e12))
def test_a_value_is_shown_to_three_digits_without_exponent(value):
    assert "e" not in shown(value).lower()
    assert float(shown(value)) == pytest.approx(value, rel=5e-3)


def test_starts_in_the_middle_or_where_told():
    assert make().setting == {"lr": 0.1, "rule": "plain"}
    assert make(initial={"lr": 0.5 + 1e-9}).setting == {"lr": 0.5, "rule": "plain"}
    ragged = grid().query("lr != .1 or rule != 'plain'")
    assert make(ragged).find(make(ragged).setting) is not None


def test_a_float_finds_its_run_by_closeness():
    explorer = make(grid((0.1, 0.3)))
    assert explorer.find({"lr": 0.1 + 0.2, "rule": "plain"})[1]["loss"] == pytest.approx(0.7)
    assert explorer.find({"lr": 0.31, "rule": "plain"}) is None


def test_continuous_slider_spans_its_range():
    stops = make(controls=[LR, Slider("T", "Temperature", "log", 0.1, 10)]).stops["T"]
    assert (stops[0], stops[100], stops[-1]) == (0.1, 1.0, 10.0)
    assert Slider("b", "Bits", minimum=1, maximum=8, step=1).stops({}) == list(range(1, 9))


# --- the page ----------------------------------------------------------------------------------------


def test_page_holds_each_run_once_and_every_control_is_a_parameter():
    data = payload(make(draw=lambda r, c: (bright(r, c), both(r, c))))
    assert data["settings"] == [[0, 0], [0, 1], [1, 0], [1, 1], [2, 0], [2, 1]]
    assert data["counts"] == [4] * 6
    assert set(data["columns"]) == {"step", "loss"}
    np.testing.assert_allclose(data["columns"]["loss"], grid().loss, rtol=1e-5)
    names = [[parameter["name"] for parameter in panel["params"]] for panel in data["panels"]]
    assert names == [["lr", "rule", "_rows"], ["lr", "rule", "_rows", "_more"]]
    assert "0.729" not in json.dumps(data["panels"])


def test_words_in_a_data_column_are_kept_once():
    runs = grid().assign(mood=lambda frame: np.where(frame.loss > 0.5, "high", "low"))
    column = payload(make(runs))["columns"]["mood"]
    assert [column["words"][code] for code in column["codes"]] == list(runs.mood)


def test_specs_are_valid_and_work_with_every_kind_of_column():
    runs = grid().assign(
        nesterov=lambda frame: frame.rule == "heavy",
        batch=np.int64(8),
        rule=lambda f: f.rule.astype("category"),
    )
    explorer = make(
        runs, both, [LR, Choice("rule", "Rule"), Choice("nesterov", "N"), Slider("batch", "Batch")]
    )
    for spec in explorer.filled():
        alt.Chart.from_dict(spec)
    assert payload(explorer)["controls"][2]["values"] == [False, True]


def test_pictures_ask_for_no_variable_and_differ_with_the_setting(monkeypatch):
    import vl_convert

    seen, real = [], vl_convert.vegalite_to_png
    monkeypatch.setattr(vl_convert, "vegalite_to_png", lambda text, **k: seen.append(text) or real(text, **k))
    slow, fast = (
        make(draw=both, initial={"lr": 0.01}).to_html(),
        make(draw=both, initial={"lr": 0.5}).to_html(),
    )
    assert re.search('base64,[^"]+', slow)[0] != re.search('base64,[^"]+', fast)[0]
    assert seen and not re.search("var\\(|currentColor", "".join(seen))


def test_static_build_makes_no_widget(monkeypatch):
    monkeypatch.setenv("DLOPT_STATIC", "1")
    explorer = make()
    assert set(explorer._repr_mimebundle_()) == {"text/html", "text/plain"}
    assert explorer._live is None


def test_assets_need_no_eval_of_ours(tmp_path):
    page.write_assets(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"vega.js", "explorer.js", "explorer.css"}
    assert "ast: true" in (tmp_path / "explorer.js").read_text()


def test_colours_stand_out_in_light_and_in_dark():
    css = (page._HERE / "explorer.css").read_text()
    dark = dict(re.findall(r"(--dlopt-\w+): (#\w{6});", css))
    for colour in [*PALETTE, page.MUTED]:
        name, light = re.fullmatch(r"var\((--[\w-]+), (#\w{6})\)", colour).groups()
        assert contrast(light, "#ffffff") >= 3, name
        assert contrast(dark[name], "#121212") >= 3, name


def contrast(one, other):
    def luminance(colour):
        return float(np.dot([0.2126, 0.7152, 0.0722], linear(colour))) + 0.05

    return max(luminance(one), luminance(other)) / min(luminance(one), luminance(other))


# Machado, Oliveira and Fernandes 2009: how linear RGB looks to eyes without red or without green cones.
SEEN = {
    "all cones": np.eye(3),
    "no red": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


@pytest.mark.parametrize("eyes", SEEN)
@pytest.mark.parametrize("look", ["light", "dark"])
def test_colours_are_told_apart_where_red_and_green_look_alike(look, eyes):
    dark = dict(re.findall(r"(--dlopt-\w+): (#\w{6});", (page._HERE / "explorer.css").read_text()))
    named = [re.fullmatch(r"var\((--[\w-]+), (#\w{6})\)", colour).groups() for colour in PALETTE]
    seen = [oklab(SEEN[eyes] @ linear(dark[name] if look == "dark" else light)) for name, light in named]
    apart = {(i, j): np.linalg.norm(seen[i] - seen[j]) for i in range(len(seen)) for j in range(i)}
    assert min(apart.values()) > 0.08, min(apart, key=apart.get)


def linear(colour):
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Return Björn Ottosson's Oklab, in which equal distances look about equal."""
    cones = [[0.41222, 0.53633, 0.05145], [0.21190, 0.68070, 0.10740], [0.08830, 0.28172, 0.62998]]
    axes = [[0.21045, 0.79362, -0.00407], [1.97800, -2.42859, 0.45059], [0.02590, 0.78277, -0.80868]]
    return axes @ np.cbrt(cones @ np.clip(rgb, 0, 1))


# --- with a kernel -----------------------------------------------------------------------------------


def test_live_bundle_offers_the_widget_and_the_page():
    explorer = make()
    bundle = explorer._repr_mimebundle_()
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.live.box.model_id
    assert "dlopt-explorer" in bundle["text/html"]


def test_live_slider_shows_the_stored_run():
    explorer = make(draw=both)
    explorer.controls["lr"].value = 0.5
    assert explorer.setting == {"lr": 0.5, "rule": "plain"}
    params = explorer.live.charts[0].params
    assert params.lr == 0.5
    assert [row["loss"] for row in params._rows] == [1, 0.5, 0.25, 0.125]


def test_new_setting_is_computed_once_and_joins_the_runs():
    calls = []

    def compute(lr, rule):
        calls.append((lr, rule))
        return decay(lr)

    explorer = make(draw=both, compute=compute)
    explorer.controls["lr"].value = 0.25
    assert "computed in" in explorer.live.status.value
    assert [row["loss"] for row in explorer.live.charts[0].params._more] == [1, 0.75, 0.5625, 0.421875]
    assert len(explorer.runs.query("lr == 0.25 and rule == 'plain'")) == 4
    explorer.controls["lr"].value = 0.1
    explorer.controls["lr"].value = 0.25
    assert calls == [(0.25, "plain")]
    payload(explorer)


@pytest.mark.parametrize(
    ("compute", "words"),
    [
        (lambda lr, rule: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda lr, rule: decay(lr)[["step"]], "must return a DataFrame with the columns"),
        (lambda lr, rule: None, "must return a DataFrame with the columns"),
        (lambda lr, rule: decay(lr) * np.nan, "holds nan in column"),
    ],
)
def test_a_mistake_in_compute_is_told_and_breaks_nothing(compute, words):
    explorer = make(compute=compute)
    explorer.controls["lr"].value = 0.25
    assert words in explorer.live.status.value
    assert explorer.live.charts[0].params._rows == []
    explorer.controls["lr"].value = 0.5
    assert words not in explorer.live.status.value
    assert explorer.live.charts[0].params._rows[1]["loss"] == 0.5


def test_setting_without_run_or_compute_says_so():
    explorer = make(grid().query("lr < .5 or rule == 'plain'"))
    explorer.controls["rule"].value = "heavy"
    explorer.controls["lr"].value = 0.5
    assert "not among the stored runs" in explorer.live.status.value
    assert explorer.live.charts[0].params._rows == []


def test_a_grid_of_whole_numbers_stays_whole_when_computed():
    runs = pd.concat([decay(0.1).assign(batch=batch) for batch in (1, 8, 64)])
    explorer = make(runs, controls=[Slider("batch", "Batch size", "log")], compute=lambda batch: decay(0.1))
    assert [value for _, value in explorer.controls["batch"].options] == [1, 8, 64]
