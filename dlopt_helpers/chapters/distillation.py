"""What chapter 3.4 shows: its measurements and its explorers."""

import copy

import altair as alt
import numpy as np
import pandas as pd
import torch

from dlopt_helpers.bridges.distillation_torch import distillation_step, logits
from dlopt_helpers.chapters.distillation_runs import (
    ALPHAS,
    NETWORKS,
    RATES,
    gains,
    taught,
    teacher,
    teacher_accuracy,
)
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.summary import at_best_rate
from dlopt_helpers.lab.training import batches, one_thread
from dlopt_helpers.lab.twins import keras_twin
from dlopt_helpers.page.explorer import BLUE, GOLD, GREEN, MUTED, RED, Choice, Explorer, Slider

PERCENT = alt.Axis(format="%")
QUARTERS = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
ROOM = alt.Scale(domain=[0, 1.15], nice=False)  # for the number beside a full bar

# --- The same lessons in two frameworks -----------------------------------------------------------


@one_thread()
def same_lessons_twice(steps=200):
    """Return what one student loses in PyTorch and in Keras: the same weights, batches and teacher.

    Returns:
      Two arrays, the loss of each step; and whether the teacher is bit for bit what it was.
    """
    import keras

    from dlopt_helpers.bridges.distillation_keras import Distiller

    network, (x, y) = teacher(labels=1_000), (torch.from_numpy(a[:1_000]) for a in mnist1d()[:2])
    before = copy.deepcopy(network.state_dict())
    student = NETWORKS["mlp100"](0)
    twin = Distiller(keras_twin(student), temperature=4.0, alpha=0.9)
    twin.compile(keras.optimizers.SGD(0.01, momentum=0.9))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.01, momentum=0.9)
    losses = []
    for batch in batches(len(x), 64, steps, seed=0):
        v = logits(network, x[batch])
        ours = distillation_step(student, network, optimizer, x[batch], y[batch], 4.0, 0.9)
        twin.reset_metrics()  # else Keras reports the mean of all steps so far
        told = y[batch].numpy(), v.numpy()
        losses.append((ours, twin.train_on_batch(x[batch].numpy(), told, return_dict=True)["loss"]))
    same = all(torch.equal(before[name], w) for name, w in network.state_dict().items())
    return *np.array(losses, dtype=float).T, same


# --- The temperature ------------------------------------------------------------------------------

# What the browser computes from logits: probabilities at any temperature, their entropy, and the gap.
_ENTROPY = "datum.p > 0 ? -datum.p * log(datum.p) : 0"
_GAP = "datum.rank == 1 ? datum.p : datum.rank == 2 ? -datum.p : 0"


def _softened(chart, temperature, groupby=()):
    """Give each row of ``chart`` its probability ``p``: the formula of the chapter, in Vega's words."""
    chart = chart.transform_calculate(e=f"exp((datum.z - datum.top) / {temperature})")
    chart = chart.transform_joinaggregate(total="sum(e)", groupby=list(groupby))
    return chart.transform_calculate(p="datum.e / datum.total")


def _rows(z, **columns):
    """Return a row for each class of one example: its logit, the largest, and its rank."""
    rank = (-z).argsort().argsort() + 1
    table = pd.DataFrame({"class": np.arange(len(z)), "z": z, "top": z.max(), "rank": rank, **columns})
    return table.round(3)


def examples(z, y):
    """Return the indices of six test examples, by name: sure, hesitant and wrong answers.

    Args:
      z: the teacher's logits, of shape ``(n, classes)``.
      y: the labels.
    """
    margin = -np.diff(np.sort(z, axis=1)[:, :-3:-1], axis=1)[:, 0]
    right, found = z.argmax(1) == y, {}
    for label, share in ((0, 0.95), (6, 0.5), (8, 0.1), (3, 0.05)):
        own = np.flatnonzero(right & (y == label))
        chosen = own[margin[own].argsort()[int(share * len(own))]]
        found[f"a {label}, {'sure' if share > 0.4 else 'hesitant'}"] = chosen
    wrong = np.flatnonzero(~right)
    for chosen in wrong[margin[wrong].argsort()[[len(wrong) // 2, -1]]]:
        found[f"a {y[chosen]}, taken for {z[chosen].argmax()}"] = chosen
    return found


def temperature_explorer():
    """Return the explorer of the temperature on what one teacher says about test examples."""
    x, y = mnist1d()[2:]
    z = logits(teacher(), x).numpy()
    chosen_ones = examples(z, y)
    runs = pd.concat([_rows(z[i], example=name, label=y[i]) for name, i in chosen_ones.items()])
    many = pd.concat(
        [_rows(z[i], label=label, number=i) for label in range(10) for i in np.flatnonzero(y == label)[:30]]
    )

    def draw(runs, chosen):
        share = alt.X("p:Q", title="probability", axis=QUARTERS, scale=ROOM)
        of = alt.Y("class:O", title="class")
        softened = _softened(chosen, "temperature")
        own = alt.condition("datum.class == datum.label", alt.value(BLUE), alt.value(MUTED))
        bars = softened.mark_bar().encode(x=share, y=of, color=own)
        words = softened.transform_calculate(words="format(datum.p, '.1%')")
        words = words.mark_text(align="left", dx=4).encode(x=share, y=of, text="words:N")
        t = alt.X(
            "t:Q",
            title="temperature",
            scale=alt.Scale(type="log", domain=[0.5, 50], nice=False),
            axis=alt.Axis(values=[0.5, 1, 2, 5, 10, 20, 50], format="~g"),
        )
        curves = _measures(chosen, "pow(10, datum.power)", "sequence(-0.3, 1.7, 0.02)")
        here, both = _measures(chosen, "temperature", "[0]"), _measured()
        return (
            bars + words,
            curves.mark_line().encode(x=t, **both)
            + here.mark_circle(size=160, opacity=1).encode(x=t, **both)
            + _beside(here, "entropy", dy=-10).encode(x=t, **both)
            + _beside(here, "gap", dy=12).encode(x=t, **both),
            _likeness(many),
        )

    return Explorer(
        runs.reset_index(drop=True),
        draw,
        controls=[
            Slider("temperature", "Temperature T", scale="log", minimum=0.5, maximum=50),
            Choice("example", "Example", options=list(chosen_ones)),
        ],
        initial={"temperature": 4.0, "example": list(chosen_ones)[2]},
        title="What a teacher knows beyond the label",
        caption=(
            "Bars: the teacher's probabilities for one test example, its label in blue. Curves: their "
            "entropy, as a share of that of ten equal classes, and the gap between the two likeliest. "
            "Squares: the mean over 30 test examples of each label; the stronger, the likelier."
        ),
    )


def _measures(chosen, temperature, powers):
    """Return entropy and gap at one or more temperatures, computed from the logits of the example."""
    chart = chosen.transform_calculate(power=powers).transform_flatten(["power"])
    chart = _softened(chart.transform_calculate(t=temperature), "datum.t", ["t"])
    chart = chart.transform_calculate(h=f"({_ENTROPY}) / log(10)", g=_GAP)
    chart = chart.transform_aggregate(entropy="sum(h)", gap="sum(g)", groupby=["t"])
    return chart.transform_fold(["entropy", "gap"], as_=["what", "value"])


def _beside(chart, what, dy):
    """Return the number of one measure, on the side of its curve that is free."""
    words = chart.transform_filter(f"datum.what == '{what}'")
    return words.mark_text(align="right", dx=-8, dy=dy).encode(text=alt.Text("value:Q", format=".2f"))


def _measured():
    names = {"entropy": "entropy / ln 10", "gap": "gap to the runner-up"}
    label = alt.Color(
        "what:N",
        title=None,
        scale=alt.Scale(domain=list(names), range=[GREEN, RED]),
        legend=alt.Legend(
            orient="bottom", symbolType="stroke", symbolOpacity=1, labelExpr=f"{names!r}[datum.label]"
        ),
    )
    return {"y": alt.Y("value:Q", title=None, scale=alt.Scale(domain=[0, 1])), "color": label}


def _likeness(rows):
    """Return the picture of which class the teacher takes for which, at the temperature of the slider."""
    chart = _softened(alt.Chart(rows), "temperature", ["number"])
    chart = chart.transform_aggregate(p="mean(p)", groupby=["label", "class"])
    return chart.mark_rect(color=BLUE).encode(
        x=alt.X("class:O", title="class", axis=alt.Axis(labelAngle=0)),
        y=alt.Y("label:O", title="label"),
        opacity=alt.Opacity("p:Q", scale=alt.Scale(type="sqrt", domain=[0, 1], range=[0, 1]), legend=None),
    )


# --- When it helps --------------------------------------------------------------------------------

SETTING = ["labels", "alpha", "temperature", "logits"]
TOLD = ["teacher", "shuffled"]


def lessons_rows(runs, alone):
    """Return, for each setting, accuracy by learning rate, and what it gains at its best one.

    Args:
      runs: rows of :func:`~dlopt_helpers.chapters.distillation_runs.taught` without those of ``alone``.
      alone: those.
    """
    rows = runs.groupby([*SETTING, "rate"], as_index=False).accuracy.mean()
    by_rate = alone.groupby(["labels", "rate"]).accuracy.mean()
    rows["alone"] = [by_rate[labels, rate] for labels, rate in zip(rows.labels, rows.rate, strict=True)]
    best = at_best_rate(runs, SETTING).groupby(SETTING).rate.first().rename("best").reset_index()
    found = gains(runs, alone, SETTING).drop(columns="accuracy")
    rows = rows.merge(found, on=SETTING).merge(best, on=SETTING)
    rows[["gain", "error"]] *= 100  # points; a formula of the chart would multiply rows that come back again
    rows["low"], rows["high"] = rows.gain - 2 * rows.error, rows.gain + 2 * rows.error
    return rows.drop(columns="error").round(4)


def lessons_explorer(runs):
    """Return the explorer of temperature, share of the teacher and number of labels, with the control."""
    alone, runs = runs[runs.logits == "alone"], runs[runs.logits != "alone"]

    def one_setting(labels, alpha, temperature, logits):
        made = taught(labels=[labels], temperatures=[temperature], alphas=[alpha], kinds=[logits])
        return lessons_rows(made[made.logits != "alone"], alone).drop(columns=SETTING)

    told = alt.Color(
        "logits:N",
        title=None,
        scale=alt.Scale(domain=[*TOLD, "alone"], range=[BLUE, RED, MUTED]),
        legend=alt.Legend(orient="bottom", symbolType="stroke", symbolOpacity=1),
    )

    def draw(runs, chosen):
        rate = alt.X(
            "rate:Q",
            title="learning rate",
            scale=alt.Scale(type="log", domain=[0.0135, 0.28], nice=False),
            axis=alt.Axis(values=RATES, format="~g"),
        )
        # The range of the chosen number of labels.
        top = alt.ExprRef("labels == 300 ? 0.4 : labels == 1000 ? 0.6 : 0.8")
        height = alt.Y(
            "accuracy:Q", title="accuracy", axis=PERCENT, scale=alt.Scale(domainMin=0, domainMax=top)
        )
        line = chosen.mark_line(point=True).encode(x=rate, y=height, color=told)
        here = chosen.transform_filter("datum.rate == datum.best").mark_circle(size=160, opacity=1)
        without = chosen.transform_calculate(logits="'alone'", accuracy="datum.alone")
        without = without.mark_line(point=True).encode(x=rate, y=height, color=told)
        once = "datum.rate == datum.best"
        same = f"{once} && datum.labels == labels && datum.alpha == alpha"
        others = runs.transform_filter(same)
        t = alt.X(
            "temperature:Q",
            title="temperature",
            scale=alt.Scale(type="log", domain=[0.85, 19], nice=False),
            axis=alt.Axis(values=[1, 2, 4, 8, 16]),
        )
        gain = alt.Y("gain:Q", title="gain, points", scale=alt.Scale(domain=[-13, 9], nice=False))
        faint = alt.condition("datum.logits == logits", alt.value(1), alt.value(0.35))
        curves = others.mark_line(point=True).encode(x=t, y=gain, color=told, opacity=faint)
        spread = others.mark_rule(strokeWidth=2).encode(
            x=t, y="low:Q", y2="high:Q", color=told, opacity=faint
        )
        zero = alt.Chart(pd.DataFrame({"gain": [0]})).mark_rule(strokeDash=[5, 4]).encode(y="gain:Q")
        point = chosen.transform_filter(once).mark_circle(size=160, opacity=1).encode(x=t, y=gain, color=told)
        return without + line + here.encode(x=rate, y=height, color=told), zero + spread + curves + point

    return Explorer(
        lessons_rows(runs, alone),
        draw,
        controls=[
            Choice("labels", "Labelled examples"),
            Choice("alpha", "Teacher's share α", options=ALPHAS),
            Slider("temperature", "Temperature T", scale="log", minimum=1, maximum=16),
            Choice("logits", "Logits told", options=TOLD),
        ],
        initial={"labels": 1_000, "alpha": 0.9, "temperature": 4.0, "logits": "teacher"},
        compute=one_setting,
        title="When a teacher helps",
        caption=(
            "By learning rate: accuracy on 10,000 fresh examples, mean of five seeds; the large dot is the "
            "rate that the validation examples choose. By temperature: gain over the student alone, each at "
            "its best rate, with two standard errors. Shuffled: the control."
        ),
    )


# --- Examples without labels ----------------------------------------------------------------------

TELLERS = ["teacher", "its classes", "true labels"]


def transfer_rows(runs):
    """Return mean, lowest and highest accuracy over seeds, each setting at its best rate."""
    by = ["labels", "unlabelled", "told"]
    found = at_best_rate(runs, by).groupby(by, as_index=False).accuracy
    rows = found.agg(accuracy="mean", low="min", high="max")
    return rows.round(4)


def transfer_explorer(runs):
    """Return the explorer of the number of examples without labels.

    Args:
      runs: of :func:`~dlopt_helpers.chapters.distillation_runs.transferred`.
    """
    rows = transfer_rows(runs)
    teachers = {labels: teacher_accuracy(labels=labels) for labels in rows.labels.unique()}
    rows["teachers"] = rows.labels.map(teachers).round(4)
    colors = alt.Scale(domain=TELLERS, range=[BLUE, GOLD, GREEN])
    color = alt.Color(
        "told:N",
        title=None,
        scale=colors,
        legend=alt.Legend(orient="bottom", columns=3, symbolType="stroke", symbolOpacity=1),
    )

    def draw(runs, chosen):
        size = alt.X(
            "unlabelled:Q",
            title="examples without labels",
            scale=alt.Scale(type="sqrt", domain=[0, 17_000], nice=False),
            axis=alt.Axis(values=[0, 1_000, 4_000, 16_000], format=",d"),
        )
        scale = alt.Scale(domain=[0.4, 1], nice=False)
        height = alt.Y("accuracy:Q", title="accuracy", axis=PERCENT, scale=scale)
        same = runs.transform_filter("datum.labels == labels")
        band = same.mark_area(opacity=0.15).encode(
            x=size, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color
        )
        lines = same.mark_line(point=True).encode(x=size, y=height, color=color)
        here = chosen.mark_circle(size=160, opacity=1).encode(x=size, y=height, color=color)
        rule = chosen.transform_filter("datum.told == 'teacher'")
        rule = rule.mark_rule(strokeDash=[5, 4]).encode(y=alt.Y("teachers:Q", scale=scale))
        return rule + band + lines + here, bars(chosen)

    def bars(chosen):
        of = alt.Y("told:N", title=None, sort=TELLERS)
        share = alt.X("accuracy:Q", title="accuracy", axis=QUARTERS, scale=ROOM)
        words = chosen.transform_calculate(words="format(datum.accuracy, '.1%')")
        words = words.mark_text(align="left", dx=4).encode(x=share, y=of, text="words:N")
        unnamed = alt.Color("told:N", scale=colors, legend=None)
        return chosen.mark_bar(size=40).encode(x=share, y=of, color=unnamed) + words

    return Explorer(
        rows,
        draw,
        controls=[
            Choice("labels", "Labelled examples"),
            Slider("unlabelled", "Without labels"),
        ],
        initial={"labels": 1_000, "unlabelled": 4_000},
        title="A teacher for examples that nobody labelled",
        caption=(
            "Accuracy of the student on 10,000 fresh examples, mean of five seeds (the band spans them). For "
            "all its examples it is told the teacher's probabilities, only the classes the teacher finds "
            "likeliest, or the true labels. Dashed: the teacher."
        ),
    )
