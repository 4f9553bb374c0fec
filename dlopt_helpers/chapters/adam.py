"""What chapter 3.2 shows: its measurements and its explorers."""

import functools
import itertools

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.chapters.landscape import height, landscape, row_on, still_near
from dlopt_helpers.chapters.proof import Walk, differences
from dlopt_helpers.lab import summary
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.surfaces import beale, quadratic, saddle, turned
from dlopt_helpers.lab.sweep import constant, cosine, sweep
from dlopt_helpers.lab.training import batches, one_thread
from dlopt_helpers.page.explorer import BLUE, MUTED, PALETTE, RED, Choice, Explorer, Slider
from dlopt_helpers.page.recurrence import Recurrence
from dlopt_helpers.sgd import SGD

# --- Beside the frameworks ------------------------------------------------------------------------

PROOF_STEPS = 200
DECAYING = 1e-3 * 0.99 ** np.arange(PROOF_STEPS)
WALKS = {"usual": Walk(DECAYING), "huge": Walk(DECAYING, scale=1e12), "tiny": Walk(DECAYING, scale=1e-12)}
CASES = [("usual", 0.0), ("usual", 0.1), ("huge", 0.1), ("tiny", 0.1)]
RULES = (Adagrad, RMSprop, Adam, AdamW, NAdam)


def framework_differences():
    """Return how far our rules are from the frameworks': the largest difference of any weight at any step.

    One row per rule, size of the gradients and decay, with the columns of
    :func:`~dlopt_helpers.chapters.proof.differences`.
    """
    import keras

    rows = []
    for rule, (gradients, decay) in itertools.product(RULES, CASES):
        name, options = rule.__name__, {"eps": 1e-6, "weight_decay": decay}
        in_torch, in_keras = getattr(torch.optim, name), getattr(keras.optimizers, name.replace("NA", "Na"))
        more = {"rho": rule.beta2} if rule is RMSprop else {}
        found = differences(
            WALKS[gradients],
            rule(**options),
            functools.partial(in_torch, **options),
            functools.partial(in_keras, epsilon=1e-6, weight_decay=decay, **more),
        )
        rows.append({"rule": name, "gradients": gradients, "decay": decay, **found})
    return pd.DataFrame(rows)


# --- A race on surfaces ---------------------------------------------------------------------------

_BOWL = quadratic()
SURFACES = [_BOWL, turned(_BOWL, 45, window=((-4.5, 4.5), (-4.5, 4.5))), beale(), saddle()]
SURFACES = {surface.name: surface for surface in SURFACES}
RACE_STEPS = 100
RACERS = {
    "SGD": lambda lr, beta1, beta2, eps: SGD(lr),
    "momentum": lambda lr, beta1, beta2, eps: SGD(lr, beta1),
    "Adagrad": lambda lr, beta1, beta2, eps: Adagrad(lr, eps),
    "RMSprop": lambda lr, beta1, beta2, eps: RMSprop(lr, beta2, eps),
    "Adam": lambda lr, beta1, beta2, eps: Adam(lr, beta1, beta2, eps),
    "NAdam": lambda lr, beta1, beta2, eps: NAdam(lr, beta1, beta2, eps),
}
# After so many steps nothing is left of the start at 0, and nothing is corrected.
LONG_AGO = {"t": 1e9, "mu_product": 0.0}


def uncorrected(state):
    """Return a state in which the rules of Adam's family see nothing to correct."""
    return {name: LONG_AGO.get(name, value) for name, value in state.items()}


def race():
    """Return the recurrence of all rules on the surfaces; ``gap`` is the height above the minimum."""

    def start(rule, surface):
        w = np.array(SURFACES[surface].start)
        return {"w": w, "state": RACERS[rule](0.1, 0.9, 0.9, 0.1).init(w)}

    def step(w, state, rule, surface, correction, lr, beta1, beta2, eps):
        if correction == "off":
            state = uncorrected(state)
        gradient = SURFACES[surface].gradient(w)
        w, state = RACERS[rule](lr, beta1, beta2, eps).step(w, gradient, state)
        return {"w": w, "state": state}

    return Recurrence(
        start,
        step,
        row_on(SURFACES),
        RACE_STEPS,
        series={"rule": list(RACERS)},
        while_positive=still_near,
    )


def race_explorer():
    """Return the explorer of the race of all rules from one start."""
    surface, axes = landscape(SURFACES)
    scale = alt.Scale(domain=list(RACERS), range=PALETTE)
    legend = alt.Legend(orient="bottom", columns=3, symbolType="stroke")
    rule, unnamed = (alt.Color("rule:N", title=None, scale=scale, legend=one) for one in (legend, None))

    def draw(_, chosen):
        paths = chosen.mark_line(strokeWidth=1.8, clip=True).encode(**axes, color=rule, order="step:Q")
        ends = (
            chosen.transform_joinaggregate(last="max(step)", groupby=["rule"])
            .transform_filter("datum.step == datum.last")
            .mark_circle(size=70, opacity=1, clip=True)
            .encode(**axes, color=unnamed)
        )
        return surface + paths + ends, height(chosen, RACE_STEPS).encode(color=unnamed)

    return Explorer(
        race(),
        draw,
        controls=[
            Slider("lr", "Learning rate η", scale="log", minimum=0.001, maximum=10),
            Slider("beta1", "β₁ (momentum)", minimum=0, maximum=0.99, step=0.01),
            Slider("beta2", "β₂", minimum=0, maximum=0.999, step=0.001),
            Slider("eps", "ε", scale="log", minimum=1e-10, maximum=100),
            Choice("correction", "Bias correction", options=["on", "off"]),
            Choice("surface", "Surface", options=list(SURFACES)),
        ],
        initial={"lr": 0.05, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        title="A race from one start",
        caption=(
            "On the contour lines: 100 steps of each rule; a dot marks where it ended, the green cross the "
            "minimum. By step: how high above it each rule is. A line that breaks off has diverged."
        ),
    )


# --- Inside one step ------------------------------------------------------------------------------

RECORDED = 120


@one_thread()
def recorded_gradients():
    """Return the gradients that four weights of an MLP meet in 120 steps of Adam, by their names."""
    data, model = mnist1d(), mlp()
    optimizer = RuleOptimizer(model.parameters(), Adam())
    x, y, recorded = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train), []
    for batch in batches(len(x), 64, RECORDED, seed=0):
        optimizer.zero_grad()
        cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
        recorded.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double().numpy())
    sizes = [p.numel() for p in model.parameters()]
    first, _, second, *_, last = np.split(np.array(recorded), np.cumsum(sizes)[:-1], axis=1)
    size, asleep = abs(first).mean(axis=0), (second == 0).mean(axis=0)
    return {
        "first layer, loud": first[:, size.argmax()],
        "first layer, quiet": first[:, size.argmin()],
        "second layer, mostly asleep": second[:, abs(asleep - 0.9).argmin()],
        "bias of an output": last[:, 0],
    }


def inside_a_step(gradients):
    """Return the recurrence of what Adam computes for one weight from its recorded ``gradients``.

    Columns: ``gradient``, the means ``m`` and ``m_hat``, the roots of ``v`` and ``v_hat``, and how far the
    weight moves, in learning rates, with the correction (``move``) and without (``raw``).
    """
    columns = ("gradient", "m", "m_hat", "root_v", "root_v_hat", "move", "raw")

    def start():
        return {"state": Adam().init(0.0), "seen": dict.fromkeys(columns, 0.0)}

    def step(state, g, beta1, beta2, eps):
        rule = Adam(1.0, beta1, beta2, eps)
        move, after = rule.step(0.0, g, state)
        raw, _ = rule.step(0.0, g, uncorrected(state))
        m, v, t = after["m"], after["v"], after["t"]
        m_hat, v_hat = m / (1 - beta1**t), v / (1 - beta2**t)
        seen = (g, m, m_hat, v**0.5, v_hat**0.5, move, raw)
        return {"state": after, "seen": dict(zip(columns, seen, strict=True))}

    return Recurrence(
        start, step, lambda seen: seen, RECORDED, inputs=lambda weight: {"g": gradients[weight]}
    )


def step_explorer():
    """Return the explorer of Adam's means and steps for one weight."""
    gradients = recorded_gradients()
    step = alt.X("step:Q", title="step", scale=alt.Scale(domain=[0, RECORDED], nice=False))

    def draw(_, chosen):
        def panel(title, lines):
            labels, colours = zip(*lines.values(), strict=True)
            names = dict(zip(lines, labels, strict=True))
            colour = alt.Color(
                "line:N",
                title=None,
                scale=alt.Scale(domain=list(lines), range=colours),
                legend=alt.Legend(orient="bottom", labelExpr=f"({names})[datum.value]"),
            )
            # At step 0 nothing has been computed yet.
            long = chosen.transform_filter("datum.step > 0").transform_fold(list(lines), ["line", "value"])
            return long.mark_line(strokeWidth=1.5).encode(
                x=step, y=alt.Y("value:Q", title=title), color=colour
            )

        return (
            panel("gradients", {"gradient": ("g", MUTED), "m": ("m", BLUE), "m_hat": ("m̂", RED)}),
            panel("their size", {"root_v": ("√v", BLUE), "root_v_hat": ("√v̂", RED)}),
            panel("step / η", {"raw": ("uncorrected", BLUE), "move": ("corrected", RED)}),
        )

    return Explorer(
        inside_a_step(gradients),
        draw,
        controls=[
            Choice("weight", "Weight", options=list(gradients)),
            Slider("beta1", "β₁", minimum=0, maximum=0.99, step=0.01),
            Slider("beta2", "β₂", minimum=0.5, maximum=0.999, step=0.001),
            Slider("eps", "ε", scale="log", minimum=1e-10, maximum=1),
        ],
        initial={"beta1": 0.9, "beta2": 0.999, "eps": 1e-8},
        title="Inside Adam's steps",
        caption=(
            "The gradients that one weight met in the first 120 steps of a training run, the means that Adam "
            "makes of them, and the steps that come out, in learning rates. With the default memories the "
            "first uncorrected steps are several times too long."
        ),
    )


# --- The basin: final accuracy against learning rate ----------------------------------------------

FAMILY = {
    "SGD": (SGD, {}),
    "momentum": (SGD, {"momentum": 0.9}),
    "Adagrad": (Adagrad, {}),
    "RMSprop": (RMSprop, {}),
    "Adam": (Adam, {}),
    "AdamW": (AdamW, {}),
}
SCHEDULES = {"constant": constant, "cosine": cosine}
RATES = [float(f"{rate:.2g}") for rate in np.logspace(-5, 1, 25)]
STEPS = 1_000


def trainings(rates=RATES, rules=tuple(FAMILY), schedules=tuple(SCHEDULES)):
    """Train the MLP of MNIST-1D with each rule at each rate, under each schedule, from five seeds.

    Returns:
      One row per schedule, rule, rate, seed and measured step, with the columns of ``sweep``.
    """
    tables = []
    for schedule, name in itertools.product(schedules, rules):
        rule, options = FAMILY[name]
        grid = {"lr": list(rates), **options}
        runs = sweep(grid, rule=rule, steps=STEPS, every=100, schedule=SCHEDULES[schedule])
        tables.append(runs.drop(columns=list(options)).assign(schedule=schedule, rule=name))
    return pd.concat(tables, ignore_index=True)


SETTING = ["rule", "lr", "schedule"]


def final_accuracy(runs):
    """Return the last test accuracy of each run (:mod:`dlopt_helpers.lab.summary`)."""
    return summary.final_accuracy(runs, SETTING)


def curves(runs):
    """Return the runs' means over seeds, and ``final``, the mean accuracy at their end."""
    final = final_accuracy(runs).groupby(SETTING, as_index=False, sort=False).accuracy.mean()
    final = final.rename(columns={"accuracy": "final"})
    return (
        summary.over_seeds(runs, [*SETTING, "step"])
        .merge(final, on=SETTING)
        .round({"loss": 3, "accuracy": 3, "low": 3, "high": 3, "final": 3})
    )


def one_training(rule, lr, schedule):
    """Return what ``curves`` says about a single setting, trained now."""
    return curves(trainings([lr], [rule], [schedule])).drop(columns=SETTING)


def basin_explorer(runs):
    """Return the explorer of final accuracy against learning rate, with the run behind each point."""
    scale = alt.Scale(domain=list(FAMILY), range=PALETTE)
    legend = alt.Legend(orient="bottom", columns=3, symbolType="stroke", symbolOpacity=1)
    rule, unnamed = (alt.Color("rule:N", title=None, scale=scale, legend=one) for one in (legend, None))

    def draw(runs, chosen):
        rate = alt.X(
            "lr:Q",
            title="learning rate η",
            scale=alt.Scale(type="log", domain=[1e-5, 10], nice=False),
            axis=alt.Axis(values=[1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1, 10], format="~g"),
        )
        percent = alt.Axis(format="%")
        height = alt.Y(
            "final:Q", title="test accuracy at the end", scale=alt.Scale(domain=[0, 0.8]), axis=percent
        )
        ends = runs.transform_filter("datum.step == 0 && datum.schedule == schedule")
        basins = ends.mark_line().encode(
            x=rate,
            y=height,
            color=rule,
            opacity=alt.condition("datum.rule == rule", alt.value(1), alt.value(0.3)),
        )
        here = chosen.transform_filter("datum.step == 0")
        here = here.mark_circle(size=160, opacity=1).encode(x=rate, y=height, color=unnamed)
        step = alt.X("step:Q", title="step", scale=alt.Scale(domain=[0, STEPS]))
        accuracy = alt.Y("accuracy:Q", title="test accuracy", scale=alt.Scale(domain=[0, 0.8]), axis=percent)
        band = chosen.mark_area(opacity=0.2).encode(x=step, y="low:Q", y2="high:Q", color=unnamed)
        loss = alt.Y(
            "loss:Q",
            title="training loss",
            scale=alt.Scale(type="log", domain=[0.1, 5], clamp=True),
            axis=alt.Axis(values=[0.1, 0.3, 1, 2.3, 5], format="~g"),
        )
        line = chosen.mark_line()
        return (
            basins + here,
            band + line.encode(x=step, y=accuracy, color=unnamed),
            line.encode(x=step, y=loss, color=unnamed),
        )

    return Explorer(
        curves(runs),
        draw,
        controls=[
            Choice("rule", "Rule", options=list(FAMILY)),
            Slider("lr", "Learning rate η", scale="log"),
            Choice("schedule", "Schedule", options=list(SCHEDULES)),
        ],
        initial={"rule": "Adam", "lr": 0.01, "schedule": "constant"},
        compute=one_training,
        title="Basins of the learning rate",
        caption=(
            "By learning rate: mean test accuracy of five seeds after 1,000 steps, a line for each rule. The "
            "dot is the chosen rule at the chosen rate. By step: its runs (the band spans the seeds)."
        ),
    )


LONG_STEPS = 4_000


def long_trainings():
    """Train three rules at their best rates four times as long, under the cosine; one row for each run."""
    rates = {"SGD": 1.8, "momentum": 0.18, "Adam": 0.01}
    tables = []
    for name, lr in rates.items():
        rule, options = FAMILY[name]
        runs = sweep({"lr": lr, **options}, rule=rule, steps=LONG_STEPS, every=LONG_STEPS, schedule=cosine)
        tables.append(runs[runs.step == LONG_STEPS].assign(rule=name))
    return pd.concat(tables, ignore_index=True)


def epsilon_trainings():
    """Train with Adam at several epsilons, each with rates to suit it, under the cosine.

    Returns:
      One row per epsilon and rate: ``eps``, ``lr`` and ``accuracy``, the mean of five seeds at the end.
    """
    rates = {
        1e-8: [0.0056, 0.01, 0.018],
        1e-2: [0.018, 0.032, 0.056],
        0.1: [0.1, 0.18, 0.32],
        1.0: [1.0, 1.8, 3.2],
    }
    runs = pd.concat(
        [
            sweep({"eps": eps, "lr": lrs}, rule=Adam, steps=STEPS, every=STEPS, schedule=cosine)
            for eps, lrs in rates.items()
        ]
    )
    return runs[runs.step == STEPS].groupby(["eps", "lr"], as_index=False).accuracy.mean()
