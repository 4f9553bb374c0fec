"""What chapter 5 shows of better optimisers: the proof, the counts and the explorers."""

import contextlib
import functools
from unittest import mock

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from dlopt_helpers.adam import Adam
from dlopt_helpers.chapters.landscape import height, landscape, row_on, still_near
from dlopt_helpers.chapters.trends_optimizers_runs import RULES
from dlopt_helpers.lab.surfaces import beale, quadratic, turned
from dlopt_helpers.page.explorer import BLUE, PALETTE, Choice, Explorer, Slider
from dlopt_helpers.page.recurrence import Recurrence
from dlopt_helpers.sgd import SGD
from dlopt_helpers.trends import (
    QUINTIC,
    Lion,
    Muon,
    ScheduleFreeAdamW,
    ScheduleFreeSGD,
    newton_schulz,
)

# --- Beside the libraries -------------------------------------------------------------------------

PROOF_STEPS = 100
SHAPES = [(4, 6), (6, 4)]


def _noise(shape, precision):
    return np.random.default_rng(0).normal(size=(PROOF_STEPS, *shape)).astype(precision)


def ours(rule, shape, precision="float64"):
    """Return the weights after a walk down a noisy bowl, and those to use where they differ."""
    w = np.ones(shape, precision)
    state = rule.init(w)
    for noise in _noise(shape, precision):
        w, state = rule.step(w, w + noise, state)
    return w, rule.average(w, state) if hasattr(rule, "average") else w


def in_torch(optimizer, shape, precision="float64"):
    """Return the same of an optimiser of PyTorch's kind, made by ``optimizer(params)``."""
    w = torch.nn.Parameter(torch.ones(shape, dtype=getattr(torch, precision)))
    optimizer = optimizer([w])
    switch = hasattr(optimizer, "eval")  # schedule-free swaps the weights in place
    if switch:
        optimizer.train()
    for noise in _noise(shape, precision):
        w.grad = w.detach() + torch.from_numpy(noise)
        optimizer.step()
    in_training = w.detach().numpy().copy()
    if switch:
        optimizer.eval()
    return in_training, w.detach().numpy().copy()


def in_keras(optimizer, shape, precision="float64"):
    """Return the same of Keras's optimiser, made by ``optimizer()``."""
    import keras

    w, optimizer = keras.Variable(np.ones(shape, precision), dtype=precision), optimizer()
    optimizer.build([w])
    for noise in _noise(shape, precision):
        optimizer.apply([keras.ops.convert_to_tensor(w) + noise])
    return (keras.ops.convert_to_numpy(w),) * 2


@contextlib.contextmanager
def unrounded():
    """Let PyTorch's Muon compute in the precision of the weights: its own lines, without the rounding."""
    with mock.patch.object(torch.Tensor, "bfloat16", lambda x: x.clone()):
        yield


def _apart(mine, theirs):
    return max(np.abs(a - b).max() for a, b in zip(mine, theirs, strict=True))


def library_differences():
    """Return the largest difference of any weight after 100 steps, a row per rule and library."""
    import keras
    import schedulefree

    rows = []
    for decay in (0.0, 0.125):
        options = {"lr": 0.01, "weight_decay": decay}
        for scale, name in (("original", "original"), ("moonshot", "match_rms_adamw")):
            make = functools.partial(torch.optim.Muon, **options, eps=0.0, adjust_lr_fn=name)
            for library in ("torch.optim.Muon", "torch.optim.Muon, unrounded"):
                rows.append(_compared(Muon(**options, scale=scale, eps=0.0), library, in_torch, make))
        keras_options = {"learning_rate": 0.01, "weight_decay": decay}
        betas = {"beta_1": 0.875, "beta_2": 0.96875}  # Keras rounds others to float32
        make = functools.partial(keras.optimizers.Lion, **keras_options, **betas)
        rows.append(_compared(Lion(0.01, 0.875, 0.96875, decay), "keras.optimizers.Lion", in_keras, make))
        make = functools.partial(keras.optimizers.Muon, **keras_options)
        rows.append(_compared(Muon(**options, scale="moonshot"), "keras.optimizers.Muon", in_keras, make))
        for rule, theirs in (
            (ScheduleFreeSGD, schedulefree.SGDScheduleFree),
            (ScheduleFreeAdamW, schedulefree.AdamWScheduleFree),
        ):
            make = functools.partial(theirs, **options)
            rows.append(_compared(rule(**options), "schedulefree", in_torch, make))
    return pd.DataFrame(rows).sort_values("rule", kind="stable", ignore_index=True)


def _compared(rule, library, walk, make):
    row = {"rule": type(rule).__name__, "scale": getattr(rule, "scale", ""), "library": library}
    row["decay"] = rule.weight_decay
    for precision in ("float64", "float32"):
        if (library, precision) == ("keras.optimizers.Muon", "float64"):
            continue  # stops with an error in Keras 3.15: its scale is of float32
        with unrounded() if library.endswith("unrounded") else contextlib.nullcontext():
            found = [_apart(ours(rule, s, precision), walk(make, s, precision)) for s in SHAPES]
        row[precision] = max(found)
    return row


# --- What a rule keeps, and what a step costs -----------------------------------------------------


def state_per_weight():
    """Return how many numbers each rule keeps for a weight of a matrix, counted in its state."""
    kept = {}
    for rule in (SGD(momentum=0.9), Adam(), Lion(), Muon(), ScheduleFreeSGD(), ScheduleFreeAdamW()):
        w = np.ones((3, 4))
        _, state = rule.step(w, w, rule.init(w))
        kept[type(rule).__name__] = sum(np.size(v) for v in state.values() if np.ndim(v)) / w.size
    return kept


def counted_macs(function):
    """Return the multiply-accumulates of the matrix products in a call of ``function``, as PyTorch counts."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops() // 2


def layer_costs(rows=100, columns=100, batches=(16, 64, 256, 1024, 4096)):
    """Return what Newton-Schulz costs beside forward and backward of one layer, counted, by batch size."""
    made = []
    orthogonal = counted_macs(lambda: newton_schulz(torch.ones(rows, columns)))
    for batch in batches:
        layer = torch.nn.Linear(columns, rows, bias=False)
        x = torch.ones(batch, columns, requires_grad=True)
        passes = counted_macs(lambda layer=layer, x=x: layer(x).sum().backward())
        made.append({"batch": batch, "passes": passes, "Newton-Schulz": orthogonal})
    table = pd.DataFrame(made)
    return table.assign(ratio=table["Newton-Schulz"] / table.passes)


# --- A race with noise ----------------------------------------------------------------------------

_BOWL = quadratic()
SURFACES = [_BOWL, turned(_BOWL, 45, window=((-4.5, 4.5), (-4.5, 4.5))), beale()]
SURFACES = {surface.name: surface for surface in SURFACES}
RACE_STEPS = 100
FREE = ("schedule-free, y", "schedule-free, x")
RACERS = {
    "SGD with momentum": lambda lr, beta1, beta2: SGD(lr, beta1),
    "Adam": lambda lr, beta1, beta2: Adam(lr, beta1, beta2),
    "Lion": lambda lr, beta1, beta2: Lion(lr, beta1, beta2),
    **dict.fromkeys(FREE, lambda lr, beta1, beta2: ScheduleFreeSGD(lr, beta1)),
}


def race():
    """Return the recurrence of the rules on the surfaces, all with the same noise on the gradients."""
    walked, seen = np.random.default_rng(3).normal(size=(RACE_STEPS, 2)), row_on(SURFACES)

    def start(rule, surface):
        w = np.array(SURFACES[surface].start)
        return {"w": w, "state": RACERS[rule](0.1, 0.9, 0.9).init(w)}

    def step(w, state, jolt, rule, surface, lr, beta1, beta2, noise):
        gradient = SURFACES[surface].gradient(w) + noise * jolt
        w, state = RACERS[rule](lr, beta1, beta2).step(w, gradient, state)
        return {"w": w, "state": state}

    def row(w, state, rule, surface, lr, beta1, beta2):
        if rule == FREE[1]:
            w = RACERS[rule](lr, beta1, beta2).average(w, state)
        return seen(w, surface)

    return Recurrence(
        start,
        step,
        row,
        RACE_STEPS,
        series={"rule": list(RACERS)},
        inputs=lambda: {"jolt": walked},
        while_positive=still_near,
    )


def race_explorer():
    """Return the explorer of the race of the new rules beside SGD with momentum and Adam."""
    surface, axes = landscape(SURFACES)
    scale = alt.Scale(domain=list(RACERS), range=PALETTE[: len(RACERS)])
    legend = alt.Legend(orient="bottom", columns=2, symbolType="stroke")
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
            Slider("lr", "Learning rate η", scale="log", minimum=0.001, maximum=1),
            Slider("noise", "Noise of the gradient", minimum=0, maximum=5, step=0.1),
            Slider("beta1", "β, β₁ or μ", minimum=0.05, maximum=0.98, step=0.01),
            Slider("beta2", "β₂ (Adam, Lion)", minimum=0, maximum=0.999, step=0.001),
            Choice("surface", "Surface", options=list(SURFACES)),
        ],
        initial={"lr": 0.05, "noise": 1.0, "beta1": 0.9, "beta2": 0.99},
        title="The new rules on a noisy surface",
        caption=(
            "On the contour lines: 100 steps of each rule, all with the same noise; a dot marks where it "
            "ended, the green cross the minimum. By step: how high above it each is. Lion's steps stay as "
            "long as the learning rate; the average x is calmer than y, where the gradients are taken."
        ),
    )


# --- What Newton-Schulz does to singular values ---------------------------------------------------

POLYNOMIALS = {"Muon's quintic": QUINTIC, "cubic (1.5, -0.5, 0)": (1.5, -0.5, 0.0)}
MOST = 10


def singular_values(s, steps, coefficients=QUINTIC):
    """Return what ``steps`` of Newton-Schulz make of singular values ``s``."""
    a, b, c = coefficients
    for _ in range(steps):
        s = a * s + b * s**3 + c * s**5
    return s


def spectrum_explorer():
    """Return the explorer of singular values before and after some steps of Newton-Schulz."""
    s = np.logspace(-3, 0, 161)
    runs = pd.concat(
        pd.DataFrame({"s": s, "after": singular_values(s, k, c), "steps": k, "polynomial": name})
        for name, c in POLYNOMIALS.items()
        for k in range(MOST + 1)
    ).round({"s": 5, "after": 3})

    def draw(_, chosen):
        x = alt.X(
            "s:Q",
            title="singular value before",
            scale=alt.Scale(type="log", domain=[1e-3, 1]),
            axis=alt.Axis(values=[0.001, 0.01, 0.1, 1], format="~g"),
        )
        y = alt.Y("after:Q", title="after", scale=alt.Scale(domain=[0, 1.3]))
        ones = alt.Chart(alt.Data(values=[{"y": 1}])).mark_rule(strokeDash=[4, 4]).encode(y="y:Q")
        return ones + chosen.mark_line(color=BLUE).encode(x=x, y=y, order="s:Q")

    return Explorer(
        runs,
        draw,
        controls=[
            Slider("steps", "Steps"),
            Choice("polynomial", "Polynomial", options=list(POLYNOMIALS)),
        ],
        initial={"steps": 5, "polynomial": "Muon's quintic"},
        title="Singular values through Newton-Schulz",
        caption=(
            "What a singular value between 0.001 and 1 becomes. The dashed line is 1, where a truly "
            "orthogonal matrix has them all. The quintic lifts small values fast and then wavers; the cubic "
            "settles at 1 and takes its time."
        ),
    )


# --- Basins ---------------------------------------------------------------------------------------


def finals(table):
    """Return the mean over seeds of the accuracies at the end, by rule, schedule and rate."""
    last = [name for name in table.columns if name.startswith("test_")][-1]
    means = table.rename(columns={last: "test"}).groupby(["rule", "schedule", "lr"], sort=False)
    return means[["test", "fresh"]].mean().reset_index()


def at_best(table):
    """Return the runs of each rule and schedule at the rate with the best test accuracy, a row per seed."""
    ends = finals(table)
    best = ends.loc[ends.groupby(["rule", "schedule"], sort=False).test.idxmax()]
    return table.merge(best[["rule", "schedule", "lr"]], on=["rule", "schedule", "lr"])


def width(table, within=0.05):
    """Return how many of the eight rates end within ``within`` of the best, by rule and schedule."""
    by = finals(table).groupby(["rule", "schedule"], sort=False).test
    return by.apply(lambda test: int((test > test.max() - within).sum()))


def curves(table):
    """Return the table for the explorer: a row per run, relative rate and step, the means over seeds."""
    steps = [name for name in table.columns if name.startswith("test_")]
    long = table.melt(["rule", "schedule", "lr", "seed", "fresh"], steps, "step", "test")
    long["step"] = long.step.str.removeprefix("test_").astype(int)
    grouped = long.groupby(["rule", "schedule", "lr", "step"], sort=False)
    made = grouped.test.agg(accuracy="mean", low="min", high="max").reset_index()
    made["run"] = made.rule + ", " + made.schedule
    middle = made.rule.map({name: middle for name, (_, _, middle) in RULES.items()})
    relative = np.log2(made.lr / middle).round()
    made["final"] = made.groupby(["run", "lr"]).accuracy.transform("last")
    return made.assign(relative=2.0**relative).round({"accuracy": 3, "low": 3, "high": 3, "final": 3})


def basin_explorer(table):
    """Return the explorer of accuracy against learning rate, with the run behind each point."""
    runs = curves(table)
    scale = alt.Scale(domain=list(RULES), range=PALETTE)
    legend = alt.Legend(orient="bottom", columns=2, symbolType="stroke", symbolOpacity=1)
    rule, unnamed = (alt.Color("rule:N", title=None, scale=scale, legend=one) for one in (legend, None))
    dash = alt.StrokeDash(
        "schedule:N",
        scale=alt.Scale(domain=["constant", "cosine"], range=[[5, 4], [1, 0]]),
        legend=None,
    )

    def draw(runs, chosen):
        rate = alt.X(
            "lr:Q",
            title="learning rate η",
            scale=alt.Scale(type="log", domain=[3e-5, 20], nice=False),
            axis=alt.Axis(values=[1e-4, 1e-3, 1e-2, 0.1, 1, 10], format="~g"),
        )
        percent, tall = alt.Axis(format="%"), alt.Scale(domain=[0, 0.8])
        top = alt.Y("final:Q", title="test accuracy at the end", scale=tall, axis=percent)
        basins = (
            runs.transform_filter("datum.step == 0")
            .mark_line(strokeWidth=2)
            .encode(
                x=rate,
                y=top,
                color=rule,
                strokeDash=dash,
                opacity=alt.condition("datum.run == run", alt.value(1), alt.value(0.35)),
            )
        )
        here = chosen.transform_filter("datum.step == 0").mark_circle(size=160, opacity=1)
        step = alt.X("step:Q", title="step")
        accuracy = alt.Y("accuracy:Q", title="test accuracy", scale=tall, axis=percent)
        band = chosen.mark_area(opacity=0.2).encode(x=step, y="low:Q", y2="high:Q", color=unnamed)
        line = chosen.mark_line().encode(x=step, y=accuracy, color=unnamed)
        return basins + here.encode(x=rate, y=top, color=unnamed), band + line

    return Explorer(
        runs,
        draw,
        controls=[
            Choice("run", "Rule and schedule", options=list(dict.fromkeys(runs.run))),
            Slider("relative", "Rate, times the middle of the rule's rates", scale="log"),
        ],
        initial={"run": "Muon, constant", "relative": 1.0},
        title="Basins of old and new rules",
        caption=(
            "By learning rate: mean test accuracy of five seeds after 600 steps, a line for each rule, solid "
            "under a cosine and dashed at a constant rate; the dot is the chosen run. By step: its accuracy, "
            "with a band that spans the seeds."
        ),
    )
