"""What trend 3 of chapter 5 shows: the stored trainings of ``trends_transfer_runs``, and its explorers."""

from pathlib import Path

import altair as alt
import pandas as pd

from dlopt_helpers.chapters.trends_transfer_runs import LABELS
from dlopt_helpers.lab.summary import at_best_rate
from dlopt_helpers.page.explorer import BLUE, GOLD, GREEN, MUTED, PURPLE, RED, Explorer, Slider

TABLE = Path(__file__).with_name("trends_transfer.csv")
SETTING = ["who", "way", "labels", "more"]
MEASURES = {"validation": 600, "few": 0, "accuracy": 3_000, "old": 7_000}  # few: three times the labels
PERCENT = alt.Axis(format="%")

# --- the stored table ------------------------------------------------------------------------------


def _examples(rows, measure):
    return MEASURES[measure] or 3 * rows.labels


def wide(teachers, students):
    """Return a row per setting and rate, with the number of right examples of each seed in a column.

    Args:
      teachers, students: as the functions of those names in ``trends_transfer_runs`` return them.
    """
    teachers = teachers.assign(who="teacher", more=0)
    rows = pd.concat([teachers, students.assign(who="student", old=0.0)])
    for measure in MEASURES:
        rows[measure] = (rows[measure] * _examples(rows, measure)).round().astype(int)
    table = rows.pivot(index=[*SETTING, "rate"], columns="seed", values=list(MEASURES))
    table.columns = [f"{measure}_{seed}" for measure, seed in table.columns]
    return table.reset_index()


def stored():
    """Return the stored trainings: a row per setting, rate and seed, with shares of right examples.

    The columns are ``who`` (teacher or student), ``way``, ``labels`` of each new class, ``more`` examples
    without labels, ``rate``, ``seed``, and the accuracies that ``trends_transfer_runs`` describes.
    """
    table = pd.read_csv(TABLE)
    rows = pd.wide_to_long(table, list(MEASURES), i=[*SETTING, "rate"], j="seed", sep="_").reset_index()
    for measure in MEASURES:
        rows[measure] = rows[measure] / _examples(rows, measure)
    return rows


def best(runs):
    """Return the rows of each setting at the rate that the 600 validation examples choose."""
    return at_best_rate(runs, SETTING)


def at_the_ends(runs):
    """Return by how much each way that wants the end of its grid of rates beats the rate beside it."""
    found = []
    means = runs.groupby([*SETTING, "rate"], as_index=False)[["validation", "accuracy"]].mean()
    for _, curve in means.groupby(SETTING):
        accuracy, at = curve.accuracy.to_numpy(), curve.validation.to_numpy().argmax()
        if at in (0, len(accuracy) - 1):
            found.append(accuracy[at] - accuracy[1 if at == 0 else -2])
    return found


def best_by_few(runs):
    """Return a row per setting and seed, at the rate chosen on as many validation labels as it learns from.

    Each seed has its own few examples and chooses alone, as somebody would who has no others. Of equals
    the smallest rate is taken.
    """
    order = runs.sort_values(["few", "rate"], ascending=[False, True], kind="stable")
    return order.groupby([*SETTING, "seed"], as_index=False).first()


def compared(rows, way, other, more=0, than=None, who="student"):
    """Return by how many points ``way`` beats ``other``: a row per number of labels, paired by seed.

    Args:
      rows: of :func:`best` or :func:`best_by_few`.
      way, other: names of ways.
      more, than: how many examples without labels the two have; ``than`` is ``more`` if not given.
      who: ``"student"`` or ``"teacher"``.

    Returns:
      A frame with the index ``labels``: ``gain`` in points, mean over seeds, and its standard ``error``.
    """
    than = more if than is None else than
    ours, theirs = (
        rows[(rows.who == who) & (rows.way == name) & (rows.more == n)].set_index(["labels", "seed"]).accuracy
        for name, n in ((way, more), (other, than))
    )
    gain = 100 * (ours - theirs.loc[ours.index])
    return gain.groupby("labels").agg(gain="mean", error="sem")


# --- explorers -------------------------------------------------------------------------------------

COLORS = {
    "labels alone": MUTED,
    "teacher from scratch": GOLD,
    "teacher shuffled": RED,
    "pre-trained": GREEN,
    "teacher transferred": BLUE,
    "both": PURPLE,
}


def _spread(rows, by):
    found = rows.groupby(by, as_index=False).accuracy
    return found.agg(accuracy="mean", low="min", high="max")


def student_rows(runs):
    """Return mean, lowest and highest accuracy of each student.

    Those who have no use for examples without labels are there for each number of them.
    """
    chosen = best(runs)
    rows = _spread(chosen[chosen.who == "student"], SETTING)
    rows = rows[rows.way.isin(COLORS)].drop(columns="who")
    idle = rows[rows.way.isin(["labels alone", "pre-trained"])]
    more = [n for n in sorted(rows.more.unique()) if n > 0]
    rows = pd.concat([rows, *(idle.assign(more=n) for n in more)])
    return rows.round(4).reset_index(drop=True)


def _labels_axis():
    return alt.X(
        "labels:Q",
        title="labels of each new class",
        scale=alt.Scale(type="log", domain=[4.3, 116], nice=False),
        axis=alt.Axis(values=LABELS),
    )


def students_explorer(runs):
    """Return the explorer of the students by labels and by examples without labels.

    Args:
      runs: of :func:`stored`.
    """
    color = alt.Color(
        "way:N",
        title=None,
        scale=alt.Scale(domain=list(COLORS), range=list(COLORS.values())),
        legend=alt.Legend(orient="bottom", columns=2, symbolType="stroke", symbolOpacity=1),
    )
    unnamed = alt.Color(
        "way:N", scale=alt.Scale(domain=list(COLORS), range=list(COLORS.values())), legend=None
    )

    def draw(runs, chosen):
        of = alt.Y("way:N", title=None, sort=list(COLORS))
        share = alt.X(
            "accuracy:Q",
            title="accuracy of the student",
            axis=alt.Axis(format="%", values=[0, 1 / 3, 2 / 3, 1]),
            scale=alt.Scale(domain=[0, 1.15], nice=False),
        )
        words = chosen.transform_calculate(words="format(datum.accuracy, '.1%')")
        words = words.mark_text(align="left", dx=4).encode(x=alt.X("high:Q"), y=of, text="words:N")
        spread = chosen.mark_rule(strokeWidth=2).encode(x="low:Q", x2="high:Q", y=of)
        bars = chosen.mark_bar(size=24).encode(x=share, y=of, color=unnamed) + spread + words
        height = alt.Y(
            "accuracy:Q",
            title="accuracy of the student",
            axis=PERCENT,
            scale=alt.Scale(domain=[0.3, 1], nice=False),
        )
        lines = runs.transform_filter("datum.more == more").mark_line(point=True)
        here = chosen.mark_circle(size=160, opacity=1)
        return bars, lines.encode(x=_labels_axis(), y=height, color=color) + here.encode(
            x=_labels_axis(), y=height, color=color
        )

    return Explorer(
        student_rows(runs),
        draw,
        controls=[
            Slider("labels", "Labels of each new class", scale="log"),
            Slider("more", "Examples without labels"),
        ],
        initial={"labels": 10, "more": 3_000},
        title="What a small network gets from transfer and from a teacher",
        caption=(
            "Accuracy on 3,000 fresh examples of the three new classes, mean of five seeds, each way at its "
            "best learning rate; chance is a third. Bars: the chosen setting, with a line from the lowest "
            "to the highest seed. Curves: all numbers of labels. Labels alone and pre-trained have no use "
            "for examples without labels."
        ),
    )


KEPT = {"fine-tuned": BLUE, "old self": GREEN, "new head": MUTED}


def forgetting_rows(runs):
    """Return the accuracies on old and new classes of the transferred teachers, by rate: means over seeds."""
    rows = runs[(runs.who == "teacher") & runs.way.isin(KEPT)]
    found = rows.groupby(["labels", "rate", "way"], as_index=False)
    return found.agg(new=("accuracy", "mean"), old=("old", "mean")).round(4)


def forgetting_explorer(runs):
    """Return the explorer of what the teacher forgets while it learns the new classes.

    Args:
      runs: of :func:`stored`.
    """
    color = alt.Color(
        "way:N",
        title=None,
        scale=alt.Scale(domain=list(KEPT), range=list(KEPT.values())),
        legend=alt.Legend(orient="bottom", columns=3, symbolType="circle", symbolOpacity=1),
    )

    def draw(runs, chosen):
        old = alt.X(
            "old:Q",
            title="accuracy on the seven old classes",
            axis=PERCENT,
            scale=alt.Scale(domain=[0, 1], nice=False),
        )
        new = alt.Y(
            "new:Q",
            title="accuracy on the three new classes",
            axis=PERCENT,
            scale=alt.Scale(domain=[0.3, 1], nice=False),
        )
        same = runs.transform_filter("datum.labels == labels")
        order = alt.Order("rate:Q")
        path = same.mark_line(strokeWidth=1.5).encode(x=old, y=new, color=color, order=order)
        points = same.mark_circle(size=50, opacity=0.6).encode(x=old, y=new, color=color)
        here = chosen.mark_circle(size=220, opacity=1).encode(x=old, y=new, color=color)
        return path + points + here

    return Explorer(
        forgetting_rows(runs),
        draw,
        controls=[
            Slider("labels", "Labels of each new class", scale="log"),
            Slider("rate", "Learning rate η", scale="log"),
        ],
        initial={"labels": 30, "rate": 0.03},
        title="What the teacher forgets",
        caption=(
            "Accuracy of the transferred teacher on new and old classes, mean of five seeds, a point per "
            "learning rate; large: the chosen one. Fine-tuned: all weights, new labels alone. Old self: the "
            "same, and it has to repeat its old answers. New head: nothing but the head moves."
        ),
    )
