"""What chapter 3.6 shows: its measurements and its explorers."""

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from dlopt_helpers.bridges.structure_torch import costs, factorise
from dlopt_helpers.chapters.pruning_runs import dense
from dlopt_helpers.chapters.structure_runs import DEPTHS, LAYER
from dlopt_helpers.lab.blocks import KINDS, block_net
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.page.explorer import BLUE, GOLD, GREEN, INK, MUTED, PURPLE, RED, Choice, Explorer, Slider
from dlopt_helpers.structure import front, low_rank_error, singular_values

PERCENT = alt.Axis(format="%")
LEGEND = alt.Legend(orient="bottom", symbolType="stroke", symbolOpacity=1, columns=3)

# --- Are the counts right, is the factorised network the same? --------------------------------------


def counts():
    """Return our parameters and MACs of several networks, and those that PyTorch counts."""
    models = {"mlp512": mlp(hidden=512), "cnn64": cnn(channels=64)}
    models |= {f"{kind} blocks": block_net(kind) for kind in KINDS}
    rows, x = [], torch.zeros(1, 40)
    for name, model in models.items():
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model.eval()(x)
        ours = costs(model, x)[["parameters", "macs"]].sum()
        theirs = sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2
        rows.append((name, ours.parameters, theirs[0], ours.macs, theirs[1]))
    columns = ["network", "parameters", "by PyTorch", "MACs", "MACs by PyTorch"]
    return pd.DataFrame(rows, columns=columns).set_index("network")


def full_rank_differences():
    """Return the largest difference of any output that factorising at full rank makes."""
    from dlopt_helpers.bridges import structure_keras
    from dlopt_helpers.lab.twins import keras_twin

    x, rows = mnist1d().x_test, []
    for name, layers in (("mlp512", {"2": 512}), ("cnn64", {"3": 64, "5": 64})):
        model = dense(name, 0).eval()
        twin = keras_twin(model)
        named = [layer.name for layer in twin.layers if layer.weights]
        ranks = dict(zip(named[1:], layers.values(), strict=False))
        with torch.no_grad():
            before, after = (m(torch.from_numpy(x)).numpy() for m in (model, factorise(model, layers)))
        rows.append((name, "PyTorch", abs(before).max(), abs(before - after).max()))
        before, after = (m.predict(x, verbose=0) for m in (twin, structure_keras.factorise(twin, ranks)))
        rows.append((name, "Keras", abs(before).max(), abs(before - after).max()))
    return pd.DataFrame(rows, columns=["network", "framework", "largest output", "difference"])


# --- Rank -----------------------------------------------------------------------------------------


def layer_weights(seed=0, trained=True):
    """Return the 512 x 512 weights of an MLP's second layer, trained or as they were drawn."""
    model = dense("mlp512", seed) if trained else mlp(hidden=512, seed=seed)
    return model.get_submodule(LAYER).weight.detach()


def _accuracies(runs):
    """Return the mean accuracy of each way at each rank; ``cut`` is that before training on."""
    means = runs.groupby(["way", "rank"], as_index=False)[["before", "accuracy"]].mean()
    cut = means[means.way == "SVD"].assign(way="cut", accuracy=lambda rows: rows.before)
    return pd.concat([cut, means], ignore_index=True)[["way", "rank", "accuracy"]]


def rank_rows(runs, speeds):
    """Return accuracies and costs by rank, one row for each point and bar."""
    found = _accuracies(runs[runs.way == "SVD"]).rename(columns={"way": "what", "accuracy": "value"})
    sigma = singular_values(layer_weights())
    network = speeds[speeds.family == "rank"]
    whole = network[network.kind == "dense"].set_index("batch")
    rows = [found.assign(group="accuracy")]
    for rank, times in network[network.kind == "SVD"].groupby("width"):
        one = times.set_index("batch")
        share = {
            "error of the layer": low_rank_error(sigma, rank),
            "parameters": one.parameters[1] / whole.parameters[1],
            "MACs": one.macs[1] / whole.macs[1],
            **{f"time, batch {batch}": one.time[batch] for batch in one.index},
        }
        rows.append(
            pd.DataFrame({"what": share.keys(), "value": share.values()}).assign(rank=rank, group="cost")
        )
    return pd.concat(rows, ignore_index=True).round(4)


WAYS = ["cut", "SVD", "random", "from scratch", "narrow"]
WAY_COLORS = [BLUE, GREEN, GOLD, RED, PURPLE]


def rank_explorer(runs, speeds):
    """Return the explorer of the rank of one layer.

    Args:
      runs: of :func:`~dlopt_helpers.chapters.structure_runs.ranked`.
      speeds: of :func:`~dlopt_helpers.chapters.structure_speed.stored_speeds`.
    """
    sigma = singular_values(layer_weights()).numpy()
    values = pd.DataFrame({"number": np.arange(1, len(sigma) + 1), "sigma": sigma}).round(4)
    before = singular_values(layer_weights(trained=False))[0].item()
    controls = _accuracies(runs[runs.way.isin(WAYS[2:])])
    whole = runs[runs.way == "dense"].accuracy.mean()

    def draw(runs, chosen):
        kept = "datum.number <= rank"
        number = alt.X(
            "number:Q",
            title="number of the singular value",
            scale=alt.Scale(type="log", domain=[0.9, 560], nice=False),
            axis=alt.Axis(values=[1, 4, 16, 64, 256]),
        )
        size = alt.Y("sigma:Q", title="singular value", scale=alt.Scale(domain=[0, 9]))
        spectrum = (
            alt.Chart(values)
            .mark_circle(size=40)
            .encode(
                x=number,
                y=size,
                color=alt.condition(kept, alt.value(BLUE), alt.value(MUTED)),
                opacity=alt.condition(kept, alt.value(1), alt.value(0.35)),
            )
        )
        drawn = alt.Chart(pd.DataFrame({"sigma": [round(before, 4)]}))
        drawn = drawn.mark_rule(strokeDash=[5, 4]).encode(y=size)
        rank = alt.X(
            "rank:Q",
            title="rank",
            scale=alt.Scale(type="log", domain=[0.9, 285], nice=False),
            axis=alt.Axis(values=[1, 4, 16, 64, 256]),
        )
        scale = alt.Scale(domain=[0, 0.8], nice=False)
        color = alt.Color("way:N", title=None, scale=alt.Scale(domain=WAYS, range=WAY_COLORS), legend=LEGEND)
        points = runs.transform_filter("datum.group == 'accuracy'").transform_calculate(way="datum.what")
        lines = points.mark_line(point=True).encode(
            x=rank, y=alt.Y("value:Q", title="accuracy", axis=PERCENT, scale=scale), color=color
        )
        here = chosen.transform_filter("datum.group == 'accuracy'").transform_calculate(way="datum.what")
        here = here.mark_circle(size=160, opacity=1).encode(
            x=rank, y=alt.Y("value:Q", scale=scale), color=color
        )
        others = alt.Chart(controls.round(4)).mark_line(point=True, strokeDash=[2, 4])
        others = others.encode(x=rank, y=alt.Y("accuracy:Q", scale=scale), color=color)
        untouched = alt.Chart(pd.DataFrame({"whole": [round(whole, 4)]}))
        untouched = untouched.mark_rule(strokeDash=[5, 4]).encode(y=alt.Y("whole:Q", scale=scale))
        share = alt.X(
            "value:Q",
            title="share of the dense network's",
            axis=alt.Axis(format="%", values=[0, 0.5, 1]),
            scale=alt.Scale(domain=[0, 1.5], nice=False),
        )
        what = alt.Y("what:N", title=None, sort=None)
        bars = chosen.transform_filter("datum.group == 'cost'")
        words = bars.transform_calculate(words="format(datum.value, '.0%')")
        own = alt.condition("datum.what == 'error of the layer'", alt.value(RED), alt.value(BLUE))
        return (
            spectrum + drawn,
            untouched + others + lines + here,
            bars.mark_bar().encode(x=share, y=what, color=own)
            + words.mark_text(align="left", dx=4).encode(x=share, y=what, text="words:N"),
        )

    return Explorer(
        rank_rows(runs, speeds),
        draw,
        controls=[Slider("rank", "Rank")],
        initial={"rank": 32},
        title="One layer becomes two",
        caption=(
            "Singular values: those kept are blue; dashed, the largest before any training. Accuracy: mean "
            "of five seeds on 10,000 fresh examples, just cut, and trained on (SVD), with three controls; "
            "dashed, the dense network trained on as long. Bars: what the network then costs, with stored "
            "times."
        ),
    )


# --- Blocks ---------------------------------------------------------------------------------------

MEASURES = [
    "multiply-accumulates",
    "parameters",
    "time, batch 1",
    "time, batch 64",
    "time as images, batch 64",
]
KIND_COLORS = dict(zip(KINDS, [BLUE, RED, GREEN, PURPLE], strict=True))
NETWORK = ["kind", "width", "depth"]


def block_table(runs, speeds):
    """Return accuracy and costs of each network of blocks, one row each.

    All costs are multiples of those of the plain network with 32 channels and 4 blocks. Times as images
    are those of the same network in two dimensions, of height 1.
    """
    found = runs.groupby(NETWORK).accuracy.agg(accuracy="mean", low="min", high="max")
    blocks = speeds[speeds.family == "blocks"].set_index([*NETWORK, "layout", "batch"]).sort_index()
    for measure, column, layout, batch in (
        (MEASURES[0], "macs", "1-D", 1),
        (MEASURES[1], "parameters", "1-D", 1),
        (MEASURES[2], "time", "1-D", 1),
        (MEASURES[3], "time", "1-D", 64),
        (MEASURES[4], "time", "2-D", 64),
    ):
        cost = blocks[column].xs((layout, batch), level=("layout", "batch"))
        same = 1 if column == "time" else cost["plain", 32, 4]
        found[measure] = cost / same
    return found.reset_index()


def block_rows(runs, speeds):
    """Return a row for each network and measure: ``cost``, ``accuracy`` and whether it is on the front."""
    wide = block_table(runs, speeds)
    rows = wide.melt([*NETWORK, "accuracy", "low", "high"], MEASURES, "measure", "cost")
    for _, group in rows.groupby("measure"):
        rows.loc[group.index, "front"] = front(group.cost.to_numpy(), group.accuracy.to_numpy())
    return rows.astype({"front": bool}).round(4)


def blocks_explorer(runs, speeds):
    """Return the explorer of width, depth and kind of block: what is best for which cost.

    Args:
      runs: of :func:`~dlopt_helpers.chapters.structure_runs.blocks`.
      speeds: of :func:`~dlopt_helpers.chapters.structure_speed.stored_speeds`.
    """
    rows = block_rows(runs, speeds).rename(columns={"width": "channels"})  # Vega has a width of its own
    color = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=KINDS, range=list(KIND_COLORS.values())),
        legend=alt.Legend(orient="bottom", symbolOpacity=1, columns=2),
    )
    ticks = [0.01, 0.03, 0.1, 0.3, 1, 3]

    def draw(runs, chosen):
        cost = alt.X(
            "cost:Q",
            title="cost, times that of plain 32 × 4",
            scale=alt.Scale(type="log", domain=[0.01, 8], nice=False),
            axis=alt.Axis(values=ticks, format="~g"),
        )
        scale = alt.Scale(domain=[0.45, 1], nice=False)
        height = alt.Y("accuracy:Q", title="accuracy", axis=PERCENT, scale=scale)
        same = runs.transform_filter("datum.measure == measure")
        points = same.mark_circle(size=60).encode(
            x=cost,
            y=height,
            color=color,
            opacity=alt.condition("datum.kind == kind", alt.value(1), alt.value(0.4)),
        )
        best = same.transform_filter("datum.front")
        best = best.mark_line(color=MUTED, interpolate="step-after").encode(x=cost, y=height, order="cost:Q")
        here = chosen.mark_circle(size=220, opacity=1).encode(x=cost, y=height, color=color)
        spread = chosen.mark_rule(strokeWidth=2).encode(
            x=cost, y=alt.Y("low:Q", scale=scale), y2="high:Q", color=color
        )
        mine = "datum.kind == kind && datum.channels == channels && datum.depth == depth"
        of_one = runs.transform_filter(mine)
        times = alt.X(
            "cost:Q",
            title="times that of plain 32 × 4",
            scale=alt.Scale(type="log", domain=[0.01, 30], nice=False),
            axis=alt.Axis(values=ticks, format="~g"),
        )
        what = alt.Y("measure:N", title=None, sort=MEASURES)
        words = of_one.transform_calculate(words="format(datum.cost, '.2~r')", beside="max(datum.cost, 1)")
        beside = alt.X("beside:Q", scale=alt.Scale(type="log", domain=[0.01, 30], nice=False))
        marked = alt.condition("datum.measure == measure", alt.value(INK), alt.value(MUTED))
        return (
            best + points + spread + here,
            of_one.mark_bar().encode(x=times, x2=alt.X2Datum(1), y=what, color=marked)
            + words.mark_text(align="left", dx=4).encode(x=beside, y=what, text="words:N"),
        )

    return Explorer(
        rows,
        draw,
        controls=[
            Choice("measure", "Cost", options=MEASURES),
            Choice("kind", "Kind of block", options=KINDS),
            Slider("channels", "Channels"),
            Choice("depth", "Blocks", options=DEPTHS),
        ],
        initial={"measure": MEASURES[0], "kind": "separable", "channels": 32, "depth": 4},
        title="Which block for which budget",
        caption=(
            "A point is a network: mean accuracy of four seeds on 10,000 fresh examples against the chosen "
            "cost; the line is the front, and no point above it is cheaper. Bars: all costs of the chosen "
            "network. Change the cost from multiply-accumulates to time, and see who moves."
        ),
    )
