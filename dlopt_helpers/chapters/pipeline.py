"""What chapter 4.2 shows: its tables and its explorers."""

import itertools
import re
from pathlib import Path

import altair as alt
import pandas as pd

from dlopt_helpers.chapters.pipeline_runs import ONE_BY_ONE
from dlopt_helpers.page.explorer import BLUE, GOLD, INK, MUTED, RED, Choice, Explorer, Slider
from dlopt_helpers.structure import front

STORED = Path(__file__).with_suffix(".csv")
RUN = ["group", "recipe", "seed"]


def stored_runs():
    """Return all stages of all runs that were made for the book.

    ``python benchmarks/pipeline.py --store`` makes them anew.

    Returns:
      One row per stage: ``group``, ``recipe``, ``seed``, ``number`` (0 is the start), and the columns of
      :func:`dlopt_helpers.pipeline.run`.
    """
    return pd.read_csv(STORED, dtype={"recipe": str})


def ends(rows):
    """Return the last row of each run, with ``smaller``: the bytes of its start over its own."""
    runs = rows.groupby(RUN, sort=False)
    smaller = runs.bytes.transform("first") / rows.bytes
    return rows.assign(smaller=smaller).loc[runs.number.idxmax()]


def table(rows, times=True):
    """Return runs as the chapter shows them: a row per recipe and stage, means over seeds.

    Args:
      rows: of :func:`stored_runs` or, without times, of :func:`~dlopt_helpers.chapters.pipeline_runs.bar`.
      times: whether to show how many times as fast as the start a network answers.
    """
    runs = rows.groupby(RUN, sort=False)
    rows = rows.assign(smaller=runs.bytes.transform("first") / rows.bytes)
    rows = rows.assign(what=[in_words(text) for text in rows.settings])
    of = rows.groupby(["recipe", "number", "what"], sort=False)
    measures = ["accuracy", "nll", "bytes", "smaller", *(["faster 1", "faster 64"] if times else [])]
    mean = of[measures].mean()
    low, high = of.accuracy.min(), of.accuracy.max()
    shown = {
        "accuracy, %": [
            f"{100 * m:.1f}\xa0({100 * a:.1f}–{100 * b:.1f})"
            for m, a, b in zip(mean.accuracy, low, high, strict=True)
        ],
        "−log\xa0p": mean.nll.map("{:.2f}".format),
        "bytes": mean.bytes.map("{:,.0f}".format),
        "smaller": mean.smaller.map(shown_factor),
    }
    if times:
        shown |= {f"faster, batch {n}": mean[f"faster {n}"].map(shown_factor) for n in (1, 64)}
    return pd.DataFrame(shown, index=mean.index).droplevel("number")


def by_examples(last):
    """Return accuracies of the dense and the small network, in percent, by what they learned from."""
    names = last.recipe.str.split(", ")
    by = [names.str[1].rename("learned from"), names.str[0].rename("network")]
    return (100 * last.accuracy.groupby(by, sort=False).mean()).round(1).unstack()


def shown_factor(factor):
    return f"{factor:,.0f}" if factor >= 100 else f"{factor:.2g}"


# --- The front ------------------------------------------------------------------------------------


def pipelines(rows):
    """Return a row for each stage of each pipeline that was searched, as the explorer draws them.

    ``kinds`` are the names of its stages, ``end`` is true in its last row, whose accuracy, bytes and speed
    all of its rows have as ``final``, ``kB`` and ``faster``. The smaller its ``place``, the better it is: the
    most accurate is 0, and of equals the smallest.
    """
    found = rows[rows.group == "search"]
    runs = found.groupby("recipe", sort=False)
    last = found.loc[runs.number.idxmax()].set_index("recipe")
    kinds = found[found.number > 0].groupby("recipe").stage.agg(", ".join).str.replace("_", " ")
    best = last.sort_values(["accuracy", "bytes"], ascending=[False, True], kind="stable").index
    of = found.recipe
    return pd.DataFrame(
        {
            "pipeline": of.astype(int),
            "number": found.number,
            "what": [in_words(text) for text in found.settings],
            "reached": found.accuracy.map("{:.1%}".format),
            "size": (found.bytes / 1e3).map(lambda kB: f"{kB:,.0f}" if kB >= 100 else f"{kB:.1f}"),
            "times": found["faster 64"].map(shown_factor),
            "end": found.number == of.map(last.number),
            "final": of.map(last.accuracy),
            "kB": of.map(last.bytes) / 1e3,
            "faster": of.map(last["faster 64"]),
            "kinds": of.map(kinds),
            "place": of.map({recipe: place for place, recipe in enumerate(best)}),
            "front": of.map(
                dict(zip(last.index, front(last.bytes.to_numpy(), last.accuracy.to_numpy()), strict=True))
            ),
        }
    ).reset_index(drop=True)


def in_words(settings):
    """Return a stage as the explorer writes it: what it does and how strongly, not how long it trains."""
    name, _, rest = settings.partition("(")
    found = re.findall(r"(\w+)=(\[.*?\]|[^,)]+)", rest)
    shown = [value.strip("'[]") for key, value in found if key not in ("steps", "rate")]
    return " ".join([name.replace("_", " "), *shown])


TECHNIQUES = ["any", "distil", *ONE_BY_ONE]
# Of the stages beside the chart, with pixels from its right end.
COLUMNS = {"accuracy": ("reached", -100), "kB": ("size", -52), "faster": ("times", 0)}


def _stages(best):
    """Return a line for each stage of a pipeline: what it is, and what it leaves."""
    y = alt.Y("number:O", axis=None, scale=alt.Scale(domain=list(range(-1, 5))))
    words = best.mark_text(align="left").encode(x=alt.value(0), y=y, text="what:N")
    numbers = [
        best.mark_text(align="right", dx=dx).encode(x=alt.value("width"), y=y, text=f"{column}:N")
        for column, dx in COLUMNS.values()
    ]
    return alt.layer(words, *numbers).properties(height=210)


def _headings(runs, inside):
    """Return the line above them or, where no pipeline is inside the budget, what to do."""
    fits = runs.transform_calculate(fit=f"({inside}) ? 1 : 0").transform_aggregate(fits="max(fit)")
    y, some = alt.value(17), fits.transform_filter("datum.fits")
    none = fits.transform_filter("!datum.fits").mark_text(
        align="left", text=["No pipeline fits.", "Allow more kB, less speed or any technique."]
    )
    heads = [
        some.mark_text(align="right", dx=dx, fontWeight=600, text=name).encode(x=alt.value("width"), y=y)
        for name, (_, dx) in COLUMNS.items()
    ]
    stage = some.mark_text(align="left", fontWeight=600, text="stage").encode(x=alt.value(0), y=y)
    return alt.layer(none.encode(x=alt.value(0), y=y), stage, *heads)


def front_explorer(rows):
    """Return the explorer of all searched pipelines: the best one within a budget, stage by stage."""
    table = pipelines(rows).round(5)
    inside = (
        "datum.kB <= budget && datum.faster >= speed && "
        "(technique == 'any' || indexof(datum.kinds, technique) >= 0)"
    )

    def draw(runs, chosen):
        ends = runs.transform_filter("datum.end").transform_calculate(inside=inside)
        best = runs.transform_filter(inside).transform_joinaggregate(best="min(place)")
        best = best.transform_filter("datum.place == datum.best")
        x = alt.X(
            "kB:Q",
            title="file, kB",
            scale=alt.Scale(type="log", domain=[0.7, 6_000], nice=False),
            axis=alt.Axis(values=[1, 10, 100, 1_000], format=",d"),
        )
        y = alt.Y(
            "final:Q", title="accuracy", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1], nice=False)
        )
        points = ends.mark_circle(size=50).encode(
            x=x,
            y=y,
            color=alt.condition("datum.inside", alt.value(BLUE), alt.value(MUTED)),
            opacity=alt.condition("datum.inside", alt.value(0.9), alt.value(0.3)),
        )
        line = runs.transform_filter("datum.end && datum.front").mark_line(
            color=MUTED, interpolate="step-after"
        )
        here = best.transform_filter("datum.end").mark_circle(size=220, color=RED, opacity=1)
        budget = alt.Chart(pd.DataFrame({"one": [1]})).transform_calculate(kB="budget")
        return (
            line.encode(x=x, y=y, order="kB:Q")
            + budget.mark_rule(strokeDash=[5, 4]).encode(x=x)
            + points
            + here.encode(x=x, y=y),
            _stages(best) + _headings(runs, inside),
        )

    return Explorer(
        table,
        draw,
        controls=[
            Slider("budget", "At most … kB", scale="log", minimum=1, maximum=5_000),
            Slider("speed", "At least … times as fast", scale="log", minimum=0.5, maximum=150),
            Choice("technique", "With", options=TECHNIQUES),
        ],
        initial={"budget": 4.41, "speed": 75, "technique": "any"},
        title="The best within a budget",
        caption=(
            "Each point is a pipeline from the same dense network, exported and measured: bytes of its file, "
            "accuracy on 10,000 fresh examples, speed at batch 64. Blue: within the budget. Red: the most "
            "accurate of these, with its stages, and what each of them leaves. The line is the front, at any "
            "speed."
        ),
    )


# --- Two techniques -------------------------------------------------------------------------------


def pairs(rows):
    """Return what each technique and each two of them, in both orders, make of the CNN.

    Returns:
      One row per ``first`` and ``second`` (empty for one alone): means over seeds of ``accuracy``,
      ``smaller`` (by the bytes of the file) and ``zipped`` (by those of its archive), and the product of
      what the two achieve alone.
    """
    found = rows[rows.group == "pairs"]
    runs = found.groupby(RUN, sort=False)
    last = ends(found).assign(zipped=(runs.zipped.transform("first") / found.zipped))
    means = last.groupby("recipe", sort=False)[["accuracy", "smaller", "zipped"]].mean()
    names = means.index.str.split(", ")
    means["first"], means["second"] = names.str[0], names.str[1].fillna("")
    alone = means.loc[list(ONE_BY_ONE)]
    for column in ("smaller", "zipped"):
        of = alone[column]
        both = [of[a] * (of[b] if b else 1) for a, b in zip(means["first"], means["second"], strict=True)]
        means[f"{column} product"] = both
    return means.reset_index(drop=True)


MEASURES = {"file": "smaller", "zipped file": "zipped"}
ORDERS = ["it comes first", "it comes second"]


def pair_rows(rows):
    """Return a row for each technique, measure, other technique and order, as the explorer draws them."""
    found = pairs(rows).set_index(["first", "second"])
    shown = []
    for technique, (measure, column) in itertools.product(ONE_BY_ONE, MEASURES.items()):
        for other in [name for name in ONE_BY_ONE if name != technique]:
            for order, pair in zip(ORDERS, ((technique, other), (other, technique)), strict=True):
                row = found.loc[pair]
                setting = {"technique": technique, "measure": measure, "other": other, "order": order}
                factors = {"factor": row[column], "product": row[f"{column} product"]}
                shown.append(setting | factors | {"accuracy": row.accuracy})
    return pd.DataFrame(shown).round(4)


def pairs_explorer(rows):
    """Return the explorer of two techniques: whether their gains multiply, and in which order."""
    dense = ends(rows[(rows.group == "pairs") & (rows.number == 0)]).accuracy.mean()

    def draw(runs, chosen):
        other = alt.Y("other:N", title=None, sort=list(ONE_BY_ONE))
        offset = alt.YOffset("order:N", sort=ORDERS)
        color = alt.Color(
            "order:N",
            title=None,
            scale=alt.Scale(domain=ORDERS, range=[BLUE, GOLD]),
            legend=alt.Legend(orient="bottom", columns=1, symbolType="square", symbolOpacity=1),
        )
        times = alt.Scale(type="log", domain=[1, 100], nice=False)
        factor = alt.X(
            "factor:Q", title="times smaller", scale=times, axis=alt.Axis(values=[1, 2, 5, 10, 20, 50])
        )
        share = alt.Scale(domain=[0.7, 1], nice=False)
        axis = alt.Axis(format="%", values=[0.7, 0.8, 0.9, 1])
        accuracy = alt.X("accuracy:Q", title="accuracy", scale=share, axis=axis)
        start = alt.Chart(pd.DataFrame({"start": [round(dense, 4)]})).mark_rule(strokeDash=[5, 4])
        return (
            chosen.mark_bar().encode(x=factor, x2=alt.X2Datum(1), y=other, yOffset=offset, color=color)
            + chosen.mark_tick(thickness=3, size=26, color=INK).encode(
                x=alt.X("product:Q", scale=times), y=other
            )
            + chosen.mark_text(align="right").encode(
                x=alt.value("width"), y=other, yOffset=offset, text=alt.Text("factor:Q", format=".2~r")
            ),
            start.encode(x=alt.X("start:Q", scale=share))
            + chosen.mark_point(filled=True, size=110, opacity=1).encode(
                x=accuracy, y=other, yOffset=offset, color=color
            ),
        )

    return Explorer(
        pair_rows(rows),
        draw,
        controls=[
            Choice("technique", "Technique", options=list(ONE_BY_ONE)),
            Choice("measure", "Bytes of", options=list(MEASURES)),
        ],
        initial={"technique": "quantize", "measure": "file"},
        title="Do gains multiply?",
        caption=(
            "The chosen technique with each of the others, before it and after it, on the CNN: how many "
            "times smaller the file gets, and its accuracy, means of three seeds. Upright marks: products of "
            "what the two achieve alone. Dashed: the accuracy of the start."
        ),
    )
