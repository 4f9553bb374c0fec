"""Recurrences without a browser: the rows they make, what they write down, what they refuse."""

import itertools
import json
import operator

import numpy as np
import pandas as pd
import pytest

from dlopt_helpers.page.explorer import Choice, Explorer, Slider
from dlopt_helpers.page.recurrence import Recurrence

SIDES = {"left": -4.0, "right": 4.0}


def start(side):
    return {"w": np.array([SIDES[side], 1.0]), "memory": {"t": 0, "mean": np.zeros(2)}}


def step(w, memory, rule, lr, beta, push):
    t = memory["t"] + 1
    mean = beta * memory["mean"] + (1 - beta) * w if rule == "mean" else w
    return {"w": w - lr * mean / (1 - beta**t) + push, "memory": {"mean": mean, "t": t}}


def row(w, memory):
    return {"y": w[1], "x": w[0], "t": memory["t"]}


def walk(**changes):
    parts = {"start": start, "step": step, "row": row, "steps": 3, "series": {"rule": ["plain", "mean"]}}
    return Recurrence(
        **{**parts, "inputs": lambda: {"push": [[0.0, 0.5], [1.0, 0.0], [0.0, 0.0]]}, **changes}
    )


CONTROLS = [
    Slider("lr", "Rate", "log", 0.01, 1.0),
    Slider("beta", "Memory", minimum=0.0, maximum=0.9, step=0.1),
    Choice("side", "Side", list(SIDES)),
]


def line(runs, chosen):
    return chosen.mark_line().encode(x="step:Q", y="x:Q", color="rule:N")


def explorer(recurrence=None, draw=line, controls=CONTROLS, **more):
    return Explorer(recurrence or walk(), draw, controls, caption="Two runs.", title="Walk", **more)


# --- rows --------------------------------------------------------------------------------------------


def test_rows_are_those_of_a_loop_written_out():
    rows = walk()(side="right", lr=0.1, beta=0.5)
    assert list(rows.columns) == ["rule", "step", "y", "x", "t"]
    assert rows.step.tolist() == rows.t.tolist() == [0, 1, 2, 3] * 2
    x, mean = [4.0], 0.0
    for t, push in enumerate([0.0, 1.0, 0.0], start=1):
        mean = 0.5 * mean + 0.5 * x[-1]
        x.append(x[-1] - 0.1 * mean / (1 - 0.5**t) + push)
    np.testing.assert_allclose(rows.query("rule == 'mean'").x, x, rtol=1e-14)
    np.testing.assert_allclose(rows.query("rule == 'plain'").x.iloc[:2], [4.0, 4.0 - 0.1 * 4.0 / 0.5])


def test_one_run_needs_no_series_and_inputs_may_be_a_data_frame():
    fall = Recurrence(
        start=lambda: {"w": 1.0},
        step=lambda w, lr, g: {"w": w - lr * g},
        row=lambda w: {"x": w},
        steps=2,
        inputs=lambda weight: pd.DataFrame({"g": [weight, weight, 9.0]}),
    )
    assert fall(lr=0.25, weight=2).to_dict("list") == {"step": [0, 1, 2], "x": [1.0, 0.5, 0.0]}


@pytest.mark.parametrize(
    ("while_positive", "counts"),
    [(None, [4, 4, 1]), (lambda w: 16 - w, [4, 2, 1]), (lambda factor: 3 - factor, [4, 4])],
)
def test_a_run_ends_before_it_leaves_and_before_a_number_is_not_finite(while_positive, counts):
    grows = Recurrence(
        start=lambda: {"w": 1.0},
        step=lambda w, factor: {"w": w * factor**2},
        row=lambda w: {"x": w},
        steps=3,
        series={"factor": [1.0, 2.0, 1e200]},
        while_positive=while_positive,
    )
    assert grows().groupby("factor").size().tolist() == counts


def test_division_by_zero_ends_a_run_as_in_the_browser():
    fall = Recurrence(lambda: {"w": 2}, lambda w: {"w": (w - 1) / (w - 1)}, lambda w: {"x": w}, 3)
    assert fall().x.tolist() == [2.0, 1.0]


# --- what is written down ----------------------------------------------------------------------------


def program(recurrence=None):
    return json.loads(json.dumps((recurrence or walk()).program(["lr", "beta"], {"side": list(SIDES)})))


def test_a_program_for_each_choice_and_series_and_each_formula_once():
    written = program()
    assert len(written["programs"]) == 4
    starts, rows, steps = zip(*[formulas for formulas, _ in written["programs"]], strict=True)
    assert len(set(starts)) == 2  # one for each side
    assert len(set(rows)) == 1
    assert len(set(steps)) == 2  # one for each rule
    assert len(written["formulas"]) == 5
    assert written["tables"] == [[0, 1, 0], [0.5, 0, 0]]
    assert written["columns"] == ["t", "x", "y"]


def computed(formula, *values):
    """Return what explorer.js computes from a formula."""
    assert len(values) == formula["inputs"]
    operations = [operator.add, operator.sub, operator.mul, operator.truediv, operator.pow]
    operations += [lambda a, _: -a, lambda a, _: abs(a)]
    memory = [*values, *formula["constants"]]
    for operation, a, b in zip(*[iter(formula["code"])] * 3, strict=True):
        memory.append(operations[operation](memory[a], memory[b]))
    return [memory[end] for end in formula["ends"]]


def test_a_program_computes_the_rows():
    written, beta, lr = program(), 0.6, 0.3
    runs = itertools.product(SIDES, written["series"])
    for (places, columns), (side, run) in zip(written["programs"], runs, strict=True):
        start, row, step = (written["formulas"][place] for place in places)
        state, rows = computed(start, beta, lr), []
        for t in range(written["steps"] + 1):
            if t:
                state = computed(step, beta, lr, *state, *(written["tables"][c][t - 1] for c in columns))
            rows.append(computed(row, beta, lr, *state)[1:])  # the first says whether the run goes on
        expected = walk()(side=side, lr=lr, beta=beta)
        expected = expected.loc[expected.rule == run["rule"], written["columns"]]
        np.testing.assert_allclose(rows, expected, rtol=1e-12)


def test_a_formula_keeps_each_number_and_operation_once():
    one = Recurrence(
        start=lambda: {"w": 1.0},
        step=lambda w, lr: {"w": (w - 0.5 * lr) * (w - 0.5 * lr) + 0.5},
        row=lambda w: {"x": w},
        steps=1,
    ).program(["lr"], {})
    formula = one["formulas"][one["programs"][0][0][2]]
    assert formula["inputs"] == 2 and formula["constants"] == [0.5]
    assert len(formula["code"]) == 3 * 4


# --- what is refused ---------------------------------------------------------------------------------


def nan_table():
    return {"push": [[0, 0], [0, np.nan], [0, 0]]}


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: walk(steps=0), "steps=0 .*whole number > 0"),
        (lambda: walk(steps=2.0), "steps=2.0 .*whole number > 0"),
        (lambda: walk(start=lambda surface: {}), "start asks for 'surface': it can have .*'side'"),
        (lambda: walk(step=lambda w, g: {}), "step asks for 'g': it can have .*'push'"),
        (lambda: walk(row=lambda push: {}), "row asks for 'push'"),
        (lambda: walk(inputs=lambda lr: {"push": [lr] * 3}), "inputs asks for 'lr'"),
        (lambda: walk(inputs=lambda: {"push": [[0, 0]]}), "input 'push' has 1 entries.*3 steps"),
        (lambda: walk(inputs=nan_table), "input 'push' .*all finite"),
        (lambda: walk(inputs=lambda: {"w": [0, 0, 0]}), "name 'w' is not allowed twice"),
        (lambda: walk(series={"lr": [1]}), "name 'lr' is not allowed twice"),
        (lambda: walk(step=lambda w: {"w": w}), r"step returned {'w': \(2,\)}.*'memory'"),
        (lambda: walk(step=lambda w, memory: {"w": w[0], "memory": memory}), r"step returned {'w': \(\)"),
        (lambda: walk(row=lambda w: {"step": w[0]}), "row returned 'step'"),
        (lambda: walk(row=lambda w: {"x": w}), r"'x' has the shape \(2,\)"),
        (lambda: walk(row=lambda w: w), "row returned a value of type ndarray.* dictionary"),
        (lambda: walk(start=lambda: (1.0, 2.0)), "start returned .* tuple.* dictionary"),
        (lambda: walk(while_positive=lambda w: w), r"'while_positive' has the shape \(2,\)"),
        (lambda: walk(inputs=lambda: {"push": 1.0}), "input 'push' has 1 entries"),
        (lambda: walk(row=lambda w, side: {side: w[0]}), r"row returned \['right'\].*before"),
        (lambda: walk(row=lambda w: {"lr": w[0]}), "control 'lr'.*column of that name"),
        (lambda: walk(row=lambda w: {"x": np.exp(w[0])}), "row .*cannot be written down.*exp"),
        (lambda: walk(row=lambda w: {"x": np.maximum(w, 0)[0]}), "cannot be written down.*'>='"),
        (lambda: walk(row=lambda lr: {"x": 1 if lr else 0}), "cannot be written down.*branch"),
        (lambda: walk(row=lambda lr: {"x": float(lr == 1)}), "cannot be written down.*compare"),
        (lambda: walk(row=lambda lr: {"x": lr * np.inf}), "constants .*finite"),
        (lambda: walk(while_positive=lambda w: abs(w[0]) < 9), "cannot be written down.*'<'"),
        (lambda: walk(while_positive=lambda: 0), "no run of it can start"),
    ],
)
def test_refused_with_a_reason(build, words):
    with pytest.raises(ValueError, match=words):
        explorer(build())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"compute": lambda **setting: None}, "compute=.*recurrence"),
        ({"controls": [*CONTROLS[:2], Slider("side", "Side", minimum=0, maximum=1)]}, "start .*KeyError"),
        ({"controls": [Slider("lr", "Rate"), *CONTROLS[1:]]}, "control 'lr'.*minimum and a maximum"),
        ({"controls": [*CONTROLS[:2], Choice("side", "Side")]}, "control 'side'.*options"),
        ({"draw": lambda runs, chosen: chosen.mark_line().encode(x="wrong:Q")}, "column 'wrong'"),
        ({"initial": {"lr": 2.0}}, "initial lr=2.0"),
    ],
)
def test_explorer_refuses(more, words):
    with pytest.raises(ValueError, match=words):
        explorer(**more)


# --- in an explorer ----------------------------------------------------------------------------------


def test_starts_where_told_and_stores_no_rows():
    shown = explorer(initial={"lr": 0.0777, "side": "right"})
    assert shown.setting == {"lr": 0.0777, "beta": 0.5, "side": "right"}
    assert 0.0777 in shown.stops["lr"] and shown.stops["lr"] == sorted(shown.stops["lr"])
    data = shown._data()
    assert set(data) == {"controls", "panels", "recurrence"}
    assert '"_rows"' in json.dumps(data["panels"])


def test_draw_is_given_no_runs():
    seen = []
    explorer(draw=lambda runs, chosen: seen.append(runs) or line(runs, chosen))
    assert seen == [None]


def test_picture_shows_the_rows():
    assert [spec["params"][-1]["value"] for spec in explorer().filled()] == [
        walk()(side="left", lr=0.1, beta=0.5).to_dict("records")
    ]


def test_live_slider_computes_while_it_moves():
    shown = explorer()
    slider = shown.controls["lr"]
    assert slider.continuous_update
    slider.value = slider.options[-1][1]
    rows = walk()(side="left", lr=1.0, beta=0.5)
    assert shown.live.charts[0].params._rows == rows.to_dict("records")
    assert shown.live.status.value.count("compute") == 0


def test_a_mistake_at_one_setting_is_told_and_breaks_nothing():
    def strict(w, memory, lr):
        if isinstance(lr, float) and lr > 0.9:
            raise ValueError("lr is too large")
        return {"w": w * lr, "memory": memory}

    shown = explorer(walk(step=strict))
    shown.controls["lr"].value = 1.0
    assert "lr is too large" in shown.live.status.value
    assert shown.live.charts[0].params._rows == []
    shown.controls["lr"].value = shown.stops["lr"][0]
    assert "too large" not in shown.live.status.value and len(shown.live.charts[0].params._rows) == 8
