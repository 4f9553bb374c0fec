"""What chapter 3.1 shows: its measurements and its explorers."""

import functools
import itertools

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from dlopt_helpers.chapters.landscape import height, landscape, row_on, still_near
from dlopt_helpers.chapters.proof import Walk, differences
from dlopt_helpers.lab import summary
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.surfaces import beale, quadratic, saddle
from dlopt_helpers.lab.sweep import sweep
from dlopt_helpers.lab.training import train
from dlopt_helpers.page.explorer import BLUE, GREEN, INK, MUTED, RED, Choice, Explorer, Slider
from dlopt_helpers.page.recurrence import Recurrence
from dlopt_helpers.sgd import SGD

# --- How far one mini-batch is off -------------------------------------------------------------

STAGES = {"untrained": 0, "after 500 steps": 500}
BATCH_SIZES = [1, 4, 16, 64, 256, 1024, 4000]


def example_gradients(stage, seed=0):
    """Return the gradient of each training example, shape (4000, 2698), for a small MLP at ``stage``."""
    data = mnist1d()
    model = mlp(hidden=32, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, data, steps=STAGES[stage], seed=seed, every=500)
    weights = {name: w.detach().double() for name, w in model.named_parameters()}

    def loss(weights, x, y):
        return cross_entropy(functional_call(model, weights, (x[None],)), y[None])

    x, y = torch.from_numpy(data.x_train).double(), torch.from_numpy(data.y_train)
    gradients = vmap(grad(loss), in_dims=(None, 0, 0))(weights, x, y)
    return torch.cat([g.flatten(1) for g in gradients.values()], dim=1).numpy()


def batch_gradients(gradients, batch_size, draws, seed=0):
    """Return ``draws`` mini-batch gradients, each the mean over ``batch_size`` different examples."""
    rng, n = np.random.default_rng(seed), len(gradients)
    share = np.zeros((draws, n))
    for row in share:
        row[rng.choice(n, batch_size, replace=False)] = 1 / batch_size
    return share @ gradients


@published
def gradient_clouds(draws=150):
    """Return mini-batch gradients seen in the plane of the full gradient and of their widest scatter.

    One row per draw: ``stage``, ``batch_size``, ``along`` and ``across`` (in lengths of the full
    gradient, which is the point (1, 0)), and ``spread``, the root mean square distance of that
    batch size's gradients to the full one in all dimensions, in the same unit.
    """
    rows = []
    for stage in STAGES:
        gradients = example_gradients(stage)
        full = gradients.mean(0)
        length = np.linalg.norm(full)
        noise = gradients - full
        noise -= np.outer(noise @ full, full) / length**2
        across = np.linalg.svd(noise[::4], full_matrices=False)[2][0]
        for batch_size in BATCH_SIZES:
            drawn = batch_gradients(gradients, batch_size, draws)
            spread = np.sqrt(((drawn - full) ** 2).sum(1).mean()) / length
            rows.append(
                pd.DataFrame(
                    {
                        "stage": stage,
                        "batch_size": batch_size,
                        "along": drawn @ full / length**2,
                        "across": drawn @ across / length,
                        "spread": spread,
                    }
                )
            )
    return pd.concat(rows, ignore_index=True)


def gradient_explorer():
    """Return the explorer of mini-batch gradients around the full gradient."""

    def draw(runs, chosen):
        plane = {
            "x": alt.X(
                "along:Q", title="along the full gradient", scale=alt.Scale(domain=[-4, 6], clamp=True)
            ),
            "y": alt.Y("across:Q", title="across it", scale=alt.Scale(domain=[-5, 5], clamp=True)),
        }
        wrong_way = alt.condition("datum.along < 0", alt.value(RED), alt.value(BLUE))
        cloud = chosen.mark_circle(size=28, opacity=0.55).encode(**plane, color=wrong_way)
        full = alt.Chart(alt.Data(values=[{"x": 0, "y": 0, "along": 1, "across": 0}]))
        arrow = full.mark_rule(color=INK, strokeWidth=2).encode(x="x:Q", x2="along:Q", y="y:Q")
        tip = full.mark_point(shape="triangle-right", filled=True, size=90, color=INK, opacity=1).encode(
            x="along:Q", y="across:Q"
        )
        share = (
            chosen.transform_calculate(wrong="datum.along < 0 ? 1 : 0")
            .transform_aggregate(share="mean(wrong)")
            .transform_calculate(label="format(datum.share, '.0%') + ' point uphill'")
            .mark_text(align="right", fontSize=13, color=RED, fontWeight="bold")
            .encode(text="label:N", x=alt.value("width"), y=alt.value(12))
        )
        axes = {
            "x": alt.X(
                "batch_size:Q",
                title="batch size B",
                scale=alt.Scale(type="log", domain=[1, 1024], nice=False),
                axis=alt.Axis(values=BATCH_SIZES[:-1], format="d"),
            ),
            "y": alt.Y(
                "spread:Q",
                title="spread / length of the full gradient",
                scale=alt.Scale(type="log", domain=[0.2, 30]),
                axis=alt.Axis(values=[0.3, 1, 3, 10, 30], format="~g"),
            ),
        }
        spreads = runs.transform_filter("datum.stage == stage && datum.batch_size < 4000")
        spreads = spreads.transform_aggregate(spread="mean(spread)", groupby=["batch_size"])
        line = spreads.mark_line(color=MUTED, point=alt.OverlayMarkDef(color=MUTED, size=40)).encode(**axes)
        here = (
            chosen.transform_filter("datum.batch_size < 4000")
            .transform_aggregate(spread="mean(spread)", groupby=["batch_size"])
            .mark_circle(size=160, color=BLUE, opacity=1)
            .encode(**axes)
        )
        return cloud + arrow + tip + share, line + here

    return Explorer(
        gradient_clouds(),
        draw,
        controls=[
            Slider("batch_size", "Batch size B", scale="log"),
            Choice("stage", "Network"),
        ],
        initial={"batch_size": 16, "stage": "untrained"},
        title="Mini-batch gradients around the full gradient",
        caption=(
            "The cloud: 150 mini-batch gradients, seen along the full gradient (the arrow) and across it; "
            "those left of zero would take the step uphill. By batch size: fourfold B halves their spread."
        ),
    )


# --- Beside the frameworks ---------------------------------------------------------------------

RULES = {"plain": (0.0, False), "heavy ball": (0.9, False), "Nesterov": (0.9, True)}
PROOF_STEPS = 100
RATES = {"constant": np.full(PROOF_STEPS, 0.05), "decaying": 0.05 * 0.97 ** np.arange(PROOF_STEPS)}


def framework_differences():
    """Return how far our SGD is from the frameworks': the largest difference of any weight at any step.

    One row per rule, decay and schedule, with the columns of
    :func:`~dlopt_helpers.chapters.proof.differences`.
    """
    import keras

    rows = []
    for (name, (momentum, nesterov)), decay, (rate, rates) in itertools.product(
        RULES.items(), [0.0, 0.1], RATES.items()
    ):
        options = {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
        found = differences(
            Walk(rates),
            SGD(**options),
            functools.partial(torch.optim.SGD, **options),
            functools.partial(keras.optimizers.SGD, **options),
        )
        rows.append({"rule": name, "decay": decay, "rate": rate, **found})
    return pd.DataFrame(rows)


# --- Paths on surfaces -------------------------------------------------------------------------

SURFACES = {surface.name: surface for surface in (quadratic(), beale(), saddle())}
PATH_STEPS = 50


def paths():
    """Return the recurrence of heavy-ball SGD on the surfaces; ``gap`` is the height above the minimum."""
    normal = np.random.default_rng(0).standard_normal((PATH_STEPS, 2))  # as descend draws it

    def start(surface):
        w = np.array(SURFACES[surface].start)
        return {"w": w, "state": SGD().init(w)}

    def step(w, state, surface, lr, momentum, noise, normal):
        gradient = SURFACES[surface].gradient(w) + noise * normal
        w, state = SGD(lr, momentum).step(w, gradient, state)
        return {"w": w, "state": state}

    return Recurrence(
        start,
        step,
        row_on(SURFACES),
        PATH_STEPS,
        inputs=lambda: {"normal": normal},
        while_positive=still_near,
    )


def path_explorer():
    """Return the explorer of SGD's path on three surfaces."""
    bowl = quadratic()
    surface, axes = landscape(SURFACES)

    def draw(_, chosen):
        steps = chosen.mark_line(color=BLUE, strokeWidth=1.5, clip=True).encode(**axes, order="step:Q")
        dots = chosen.mark_circle(color=BLUE, size=22, opacity=0.9, clip=True).encode(**axes)
        bound = f"2 * (1 + momentum) / {bowl.L}"
        forecast = (
            alt.Chart(alt.Data(values=[{}]))
            .transform_filter(f"surface == '{bowl.name}'")
            .transform_calculate(
                bound=bound,
                label=f"'η ' + (lr > {bound} ? '>' : '<') + ' 2(1 + μ)/L = ' + format({bound}, '.3f') + "
                f"(lr > {bound} ? ': diverges' : ': converges')",
            )
            .mark_text(align="left", fontWeight="bold", fontSize=13)
            .encode(
                text="label:N",
                x=alt.value(0),
                y=alt.value(-14),
                color=alt.condition(f"lr > {bound}", alt.value(RED), alt.value(GREEN)),
            )
        )
        return surface + steps + dots + forecast, height(chosen, PATH_STEPS)

    return Explorer(
        paths(),
        draw,
        controls=[
            Slider("lr", "Learning rate η", scale="log", minimum=0.001, maximum=0.3),
            Slider("momentum", "Momentum μ", minimum=0.0, maximum=0.95, step=0.01),
            Slider("noise", "Gradient noise σ", minimum=0.0, maximum=2.0, step=0.05),
            Choice("surface", "Surface", list(SURFACES)),
        ],
        initial={"surface": bowl.name, "lr": 0.07, "momentum": 0.0, "noise": 0.0},
        title="The path of SGD",
        caption=(
            "On the contour lines: 50 steps; the green cross is the minimum. By step: how high above it the "
            "path is. Above the predicted rate the bowl throws the path out."
        ),
    )


# --- Training a network ------------------------------------------------------------------------

EPOCHS = 20
EXAMPLES = 4_000
SEEDS = 3
TRAINING_GRID = {
    "lr": [0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0],
    "momentum": [0.0, 0.5, 0.9, 0.99],
    "batch_size": [16, 64, 256],
}


def trainings(grid=None):
    """Train the MLP of MNIST-1D for 20 epochs at each setting of ``grid`` (``TRAINING_GRID``).

    Returns:
      One row per setting, seed and measured step, with the columns of ``sweep`` and ``epoch``.
    """
    grid = grid or TRAINING_GRID
    tables = []
    for batch_size in grid["batch_size"]:
        steps = EPOCHS * EXAMPLES // batch_size
        every = -(-steps // EPOCHS)
        runs = sweep({**grid, "batch_size": batch_size}, steps=steps, every=every, seeds=range(SEEDS))
        tables.append(runs.assign(epoch=runs.step * batch_size / EXAMPLES))
    return pd.concat(tables, ignore_index=True)


def over_seeds(runs):
    """Return the runs' means over seeds by epoch (:mod:`dlopt_helpers.lab.summary`)."""
    return summary.over_seeds(runs, [*TRAINING_GRID, "epoch"])


def final_accuracy(runs):
    """Return the last test accuracy of each run (:mod:`dlopt_helpers.lab.summary`)."""
    return summary.final_accuracy(runs, TRAINING_GRID)


def one_training(lr, momentum, batch_size):
    """Return what ``over_seeds`` says about a single setting, trained now."""
    runs = trainings({"lr": [lr], "momentum": [momentum], "batch_size": [batch_size]})
    return over_seeds(runs).drop(columns=list(TRAINING_GRID))


def training_explorer(runs):
    """Return the explorer of training curves over learning rate, momentum and batch size."""

    def draw(runs, chosen):
        epoch = alt.X("epoch:Q", title="epoch", scale=alt.Scale(domain=[0, EPOCHS]))
        loss = alt.Y(
            "loss:Q",
            title="training loss",
            scale=alt.Scale(type="log", domain=[0.1, 5], clamp=True),
            axis=alt.Axis(values=[0.1, 0.3, 1, 2.3, 5], format="~g"),
        )
        accuracy = alt.Y(
            "accuracy:Q", title="test accuracy", scale=alt.Scale(domain=[0, 0.8]), axis=alt.Axis(format="%")
        )
        others = runs.transform_filter("datum.batch_size == batch_size").mark_line(
            color=MUTED, opacity=0.18, strokeWidth=1, clip=True
        )
        detail = ["lr:N", "momentum:N"]
        line = chosen.mark_line(color=BLUE, clip=True)
        seeds = chosen.mark_area(color=BLUE, opacity=0.2).encode(x=epoch, y="low:Q", y2="high:Q")
        return (
            others.encode(x=epoch, y=loss, detail=detail) + line.encode(x=epoch, y=loss),
            others.encode(x=epoch, y=accuracy, detail=detail) + seeds + line.encode(x=epoch, y=accuracy),
        )

    return Explorer(
        over_seeds(runs),
        draw,
        controls=[
            Slider("lr", "Learning rate η", scale="log"),
            Slider("momentum", "Momentum μ"),
            Slider("batch_size", "Batch size B", scale="log"),
        ],
        initial={"lr": 0.1, "momentum": 0.9, "batch_size": 64},
        compute=one_training,
        title="Training the MLP on MNIST-1D",
        caption=(
            "20 epochs at one setting in colour (mean of three seeds; the band spans them), all other rates "
            "and momenta at this batch size faint."
        ),
    )


def basin_explorer(runs):
    """Return the explorer of final accuracy against learning rate or effective rate."""
    final = final_accuracy(runs).groupby(list(TRAINING_GRID), as_index=False).accuracy.mean()

    def draw(runs, chosen):
        rate = "axis == 'learning rate η' ? datum.lr : datum.lr / (1 - datum.momentum)"
        axes = {
            "x": alt.X("rate:Q", title=None, scale=alt.Scale(type="log", domain=[0.001, 300], nice=False)),
            "y": alt.Y(
                "accuracy:Q",
                title="test accuracy",
                scale=alt.Scale(domain=[0, 0.8]),
                axis=alt.Axis(format="%"),
            ),
            "color": alt.Color("momentum:N", title="momentum μ", legend=alt.Legend(orient="bottom")),
        }
        points = chosen.transform_calculate(rate=rate)
        return (points.mark_line() + points.mark_point()).encode(**axes)

    return Explorer(
        final,
        draw,
        controls=[
            Slider("batch_size", "Batch size B", scale="log"),
            Choice("axis", "Horizontal axis", options=["learning rate η", "effective rate η/(1 − μ)"]),
        ],
        initial={"batch_size": 16},
        title="Accuracy after 20 epochs",
        caption=(
            "Each line is one momentum. Against the learning rate the four basins stand apart; against "
            "η/(1 − μ) they lie on one another as long as the batch is small."
        ),
    )
