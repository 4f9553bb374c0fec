"""What chapter 2 shows: its tables, its map of pairs and its explorers."""

from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

from dlopt_helpers.chapters.levers_runs import LEVERS
from dlopt_helpers.levers import effect, interaction, shapley
from dlopt_helpers.page.explorer import BLUE, RED, Choice, Explorer

STORED = Path(__file__).with_suffix(".csv")
# Each measure by its name on the page: larger is better, and whether effects on it multiply.
MEASURES = {
    "accuracy": False,
    "smaller file": True,
    "faster, 1 example": True,
    "faster, 64 examples": True,
    "cheaper training": True,
    "cheaper, with teachers": True,
}


def stored_runs():
    """Return the 96 runs that were made for the book.

    ``python benchmarks/levers.py --store`` makes them anew.

    Returns:
      One row per combination and seed: a column of 0 and 1 for each lever, ``seed``, ``accuracy`` and ``nll``
      on 10,000 fresh examples, ``bytes`` of the file, ``faster 1`` and ``faster 64`` against the combination
      without levers, ``macs`` of training, ``teachers``' macs, and ``time``, the seconds of its own training
      as a multiple.
    """
    return pd.read_csv(STORED)


def worth(rows):
    """Return rows with a column for each of the ``MEASURES``, against the same seed without levers."""
    base = rows[(rows[LEVERS] == 0).all(axis=1)].set_index("seed")
    of = rows.seed.map
    total = rows.macs + rows.teachers
    return rows.assign(
        **{
            "smaller file": of(base.bytes) / rows.bytes,
            "faster, 1 example": rows["faster 1"],
            "faster, 64 examples": rows["faster 64"],
            "cheaper training": of(base.macs) / rows.macs,
            "cheaper, with teachers": of(base.macs) / total,
        }
    )


def game(rows, measure):
    """Return what each combination is worth, an array with an axis of length 2 for each lever.

    Args:
      rows: of :func:`stored_runs`, of one seed or of several, of which the mean is taken: of factors the
        geometric one.
      measure: one of the ``MEASURES``.
    """
    found = worth(rows).set_index(LEVERS)[measure]
    if MEASURES[measure]:
        found = np.log(found)
    mean = found.groupby(LEVERS).mean().to_numpy().reshape((2,) * len(LEVERS))
    return np.exp(mean) if MEASURES[measure] else mean


def games(rows, measure):
    """Return :func:`game` of each seed, along a first axis."""
    return np.stack([game(of, measure) for _, of in rows.groupby("seed")])


def together(on, rows, measure):
    """Return what the levers named in ``on`` are worth together, for each seed."""
    return games(rows, measure)[(slice(None), *(int(lever in on) for lever in LEVERS))]


def in_words(value, measure):
    """Return a number as the page writes it: points, or a factor."""
    if not MEASURES[measure]:
        return f"{100 * value:+.1f}".replace("-", "−")
    return f"× {value:,.0f}" if value >= 100 else f"× {value:.2g}" if value >= 10 else f"× {value:.2f}"


def alone_table(rows):
    """Return what each lever does alone, and all together: means over seeds."""
    shown = {}
    for name, on in {**{lever: [lever] for lever in LEVERS}, "all five": LEVERS}.items():
        shown[name] = {}
        for measure, multiply in MEASURES.items():
            change = game(rows, measure)[tuple(int(lever in on) for lever in LEVERS)]
            change -= 0 if multiply else game(rows, measure).flat[0]
            shown[name]["accuracy, points" if not multiply else measure] = in_words(change, measure)
    return pd.DataFrame(shown).T


# --- the map of pairs ---------------------------------------------------------------------------------

COUNTED = ["first, the others off", "on average over all orders", "last, the others on"]


def _picked(array, counted):
    """Return one number of those for all settings of the other levers."""
    return {COUNTED[0]: array.flat[0], COUNTED[1]: array.mean(), COUNTED[2]: array.flat[-1]}[counted]


def parts(values, multiply, counted):
    """Return the effect of each lever: as the first one, as the last one, or its Shapley value.

    Where effects multiply they are logarithms.
    """
    if counted == COUNTED[1]:
        return shapley(values, multiply)
    w = np.log(values) if multiply else values
    return np.array([_picked(effect(w, lever, multiply=False), counted) for lever in range(len(LEVERS))])


def pair_map(values, multiply, counted):
    """Return the interaction of each two levers, a matrix with zeros on its diagonal.

    On average over all orders means the mean over all settings of the others.
    """
    k = len(LEVERS)
    return np.array(
        [
            [0.0 if a == b else _picked(interaction(values, a, b, multiply), counted) for b in range(k)]
            for a in range(k)
        ]
    )


def part_rows(rows):
    """Return a row for each bar and each field of the map, as the explorer draws them."""
    shown = []
    for measure, multiply in MEASURES.items():
        values = game(rows, measure)
        for counted in COUNTED:
            setting = {"measure": measure, "counted": counted}
            alone, pairs = parts(values, multiply, counted), pair_map(values, multiply, counted)
            for a, lever in enumerate(LEVERS):
                cells = [(lever, alone[a], alone)] + [
                    (other, pairs[a, b], pairs) for b, other in enumerate(LEVERS) if b != a
                ]
                for other, value, among in cells:
                    # Where nothing but the noise of a measurement is left, a bar stays short.
                    largest = max(abs(among).max(), 0.1 if multiply else 0.01)
                    size = value / largest
                    text = in_words(np.exp(value) if multiply else value, measure)
                    shown.append(setting | {"lever": lever, "other": other, "size": size, "text": text})
    return pd.DataFrame(shown).round(4)


def _pairs(chosen):
    """Return the chart of the pairs: a field for each two levers."""
    fields = chosen.transform_filter("datum.lever != datum.other").encode(
        x=alt.X(
            "other:N",
            title=None,
            sort=LEVERS,
            axis=alt.Axis(labelAngle=-45, labelOverlap=False, domain=False, ticks=False),
        ),
        y=alt.Y("lever:N", title=None, sort=LEVERS, axis=alt.Axis(domain=False, ticks=False)),
    )
    color = alt.condition("datum.size < 0", alt.value(RED), alt.value(BLUE))
    strength = alt.Opacity("strength:Q", scale=alt.Scale(domain=[0, 1], range=[0.0, 0.45]), legend=None)
    squares = fields.transform_calculate(strength="abs(datum.size)").mark_rect()
    return (
        squares.encode(color=color, opacity=strength) + fields.mark_text(fontSize=11).encode(text="text:N")
    ).properties(title="together, against each alone", height=230)


def parts_explorer(rows):
    """Return the explorer of who did how much: each lever's part, and each pair's interaction."""

    def draw(runs, chosen):
        bars = chosen.transform_filter("datum.lever == datum.other")
        y = alt.Y("lever:N", title=None, sort=LEVERS, axis=alt.Axis(domain=False, ticks=False))
        size = alt.X("size:Q", title=None, axis=None, scale=alt.Scale(domain=[-1, 1.5], nice=False))
        color = alt.condition("datum.size < 0", alt.value(RED), alt.value(BLUE))
        zero = alt.Chart(pd.DataFrame({"size": [0]})).mark_rule().encode(x=size)
        labels = bars.mark_text(align="right").encode(x=alt.value("width"), y=y, text="text:N")
        return (
            (bars.mark_bar().encode(x=size, x2=alt.X2Datum(0), y=y, color=color) + zero + labels).properties(
                title="each lever's part", height=230
            ),
            _pairs(chosen),
        )

    return Explorer(
        part_rows(rows),
        draw,
        controls=[
            Choice("measure", "Measure", options=list(MEASURES)),
            Choice("counted", "Each lever counts as switched on", options=COUNTED),
        ],
        initial={"measure": "smaller file", "counted": COUNTED[1]},
        title="Who did how much?",
        caption=(
            "Bars: the part of each lever in the chosen measure, in points of accuracy or as a factor; blue "
            "is a gain, red a loss. On average over all orders it is the Shapley value, and the parts make "
            "up the whole. Squares: what two levers do together beyond what each does: × 1 means that their "
            "factors multiply, red that they stand in each other's way. Means of the seeds."
        ),
    )


# --- switches -----------------------------------------------------------------------------------------

SWITCH = ["off", "on"]
FACTORS = [measure for measure, multiply in MEASURES.items() if multiply]


def switch_rows(rows):
    """Return a row for each combination and measure, as the explorer draws them."""
    shown = []
    for measure in MEASURES:
        values = game(rows, measure)
        for index in np.ndindex(values.shape):
            setting = {lever: SWITCH[on] for lever, on in zip(LEVERS, index, strict=True)}
            value = values[index]
            text = f"{value:.1%}" if measure == "accuracy" else in_words(value, measure)
            shown.append(setting | {"measure": measure, "value": value, "text": text})
    return pd.DataFrame(shown).round(4)


def switches_explorer(rows):
    """Return the explorer of the 32 combinations: five switches, and what the network then costs."""
    base = round(float(game(rows, "accuracy").flat[0]), 4)

    def draw(runs, chosen):
        share = alt.X(
            "value:Q",
            title=None,
            axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]),
            scale=alt.Scale(domain=[0, 1], nice=False),
        )
        times = alt.X(
            "value:Q",
            title=None,
            axis=alt.Axis(values=[0.1, 1, 10, 100, 1_000], format=",~r"),
            scale=alt.Scale(type="log", domain=[0.1, 100_000], nice=False),
        )
        y = alt.Y("measure:N", title=None, sort=list(MEASURES), axis=alt.Axis(labelLimit=220))
        right = chosen.transform_filter("datum.measure == 'accuracy'")
        factors = chosen.transform_filter("datum.measure != 'accuracy'")
        before = alt.Chart(pd.DataFrame({"value": [base]})).mark_rule(strokeDash=[5, 4], size=2)
        one = alt.Chart(pd.DataFrame({"value": [1]})).mark_rule(strokeDash=[5, 4], size=2)
        color = alt.condition("datum.value < 1", alt.value(RED), alt.value(BLUE))
        return (
            (
                right.mark_bar(size=26).encode(x=share, x2=alt.X2Datum(0), y=y)
                + before.encode(x=share)
                + right.mark_text(align="left", dx=6, fontWeight=600).encode(x=share, y=y, text="text:N")
            ).properties(title="right, of 10,000 fresh examples", height=60),
            (
                factors.mark_bar(size=20).encode(x=times, x2=alt.X2Datum(1), y=y, color=color)
                + one.encode(x=times)
                + factors.mark_text(align="right", fontWeight=600).encode(
                    x=alt.value("width"), y=y, text="text:N"
                )
            ).properties(title="against the network without levers", height=190),
        )

    return Explorer(
        switch_rows(rows),
        draw,
        controls=[Choice(lever, lever.capitalize(), options=SWITCH) for lever in LEVERS],
        initial={lever: "off" for lever in LEVERS} | {"structure": "on", "quantization": "on"},
        title="Five switches",
        caption=(
            "The chosen combination, trained, exported and measured: means of the seeds. Dashed: the same "
            "network with all levers off. Red: worse than that. The training costs are counted in "
            "multiply-accumulates, so they hold on any machine."
        ),
    )
