"""What chapter 1 shows: its comparisons, its tables and its explorers."""

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from dlopt_helpers.chapters.background_memory import (
    BATCHES,
    INPUTS,
    MIXED,
    OPTIMISERS,
    PRECISIONS,
    Trainer,
    a_batch,
    in_segments,
    kept_bytes,
    sizes,
)
from dlopt_helpers.chapters.background_networks import block_in_torch, counted, vgg_16, vgg_16_in_torch
from dlopt_helpers.chapters.background_speed import (
    LAYER_BATCHES,
    LAYERS,
    in_segments_of,
    ridge,
    roofline_rows,
    step_shares,
)
from dlopt_helpers.footprint import Memory, block_cost, kept_numbers, mlp_cost, training_bytes
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.page.explorer import BLUE, GOLD, GREEN, INK, MUTED, PURPLE, RED, Choice, Explorer, Slider
from dlopt_helpers.structure import conv_cost

PERCENT = alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1])
PARTS = list(Memory._fields)
PASSES = ["forward", "backward", "optimiser"]

# --- Are the counts right? ----------------------------------------------------------------------------


def cnn_cost(channels=25):
    """Return the cost of the book's CNN: three convolutions and a linear layer."""
    first, *others = ((1, 5, 19), (channels, 3, 10), (channels, 3, 5))
    cost = conv_cost(first[0], channels, *first[1:])
    for inputs, kernel, length in others:
        cost += conv_cost(inputs, channels, kernel, length)
    return cost + mlp_cost((5 * channels, 10))


def counts():
    """Return our parameters and MACs of networks small and large, and those that PyTorch counts."""
    networks = {
        "mlp": (mlp_cost((40, 100, 100, 10)), counted(mlp, 40)),
        "cnn": (cnn_cost(), counted(cnn, 40)),
        "VGG-16": (vgg_16(), counted(vgg_16_in_torch, 3, 224, 224)),
        "block of GPT-2": (block_cost(768, 1024), counted(lambda: block_in_torch(768, 12), 1024, 768)),
        "block of GPT-3": (
            block_cost(12_288, 2048),
            counted(lambda: block_in_torch(12_288, 96), 2048, 12_288),
        ),
    }
    rows = [
        (name, ours.parameters, theirs.parameters, ours.macs, theirs.macs)
        for name, (ours, theirs) in networks.items()
    ]
    columns = ["network", "parameters", "by PyTorch", "MACs", "MACs by PyTorch"]
    return pd.DataFrame(rows, columns=columns).set_index("network")


def step_macs(model, batch=1):
    """Return the MACs of a forward pass and of a whole training step, as PyTorch counts them."""
    (x, y), found = a_batch(batch), []
    for backward in (False, True):
        with FlopCounterMode(display=False) as counter:
            loss = cross_entropy(model(x), y)
            if backward:
                loss.backward()
        found.append(counter.get_total_flops() // 2)
    return tuple(found)


# --- Precision ------------------------------------------------------------------------------------------


def precisions(batch=256, width=256, depth=2):
    """Return what a training step holds in float32, under autocast, and with a float32 copy, in bytes.

    Adam each time. ``kept of the weights`` are the copies in 16 bits that autocast makes for the
    backward pass.
    """
    rows = []
    for way in ("float32", "autocast", MIXED):
        model = mlp(hidden=(width,) * depth)
        trainer = Trainer(model, "Adam", mixed=way == MIXED)
        x, y = a_batch(batch, torch.bfloat16 if way == MIXED else torch.float32)
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
            kept = kept_bytes(model, x, y)
        trainer.step(x, y)
        rows.append((way, *trainer.held(), kept))
    return pd.DataFrame(rows, columns=["way", *PARTS]).set_index("way")


# --- Checkpoints ----------------------------------------------------------------------------------------


@one_thread()
def checkpoints(segments=(1, 2, 4, 8, 16), width=256, depth=16, batch=256):
    """Return what is kept and computed with checkpoints, as shares of a step without, by segments."""
    model, (x, y) = mlp(hidden=(width,) * depth), a_batch(batch)
    whole, macs = kept_bytes(model, x, y), step_macs(model, batch)[1]
    rows = []
    for number in segments:
        kept = kept_bytes(model, x, y, in_segments(model, number))
        rows.append((number, kept, kept / whole, step_macs(in_segments_of(model, number), batch)[1] / macs))
    return pd.DataFrame(rows, columns=["segments", "kept", "share kept", "MACs"]).set_index("segments")


# --- Where memory and time go ---------------------------------------------------------------------------


def cost_rows(memory, speeds):
    """Return the rows of the explorer: for each setting the parts of memory and the passes of a step.

    ``formula`` and ``measured`` are bytes for the parts; for the passes, shares of the MACs and of the time.
    """
    setting = ["neurons", "depth", "batch", "precision", "optimiser"]
    parts = [
        memory[[*setting, "peak"]].assign(part=part, formula=memory[f"{part}_formula"], measured=memory[part])
        for part in PARTS
    ]
    shares = step_shares(speeds).melt(["neurons", "depth", "batch", "rule"], PASSES, "part", "measured")
    shares = shares.rename(columns={"rule": "optimiser"}).merge(
        pd.DataFrame({"precision": PRECISIONS}), "cross"
    )
    shares["formula"] = [
        _share_of_macs(*row) for row in shares[["neurons", "depth", "part"]].itertuples(index=False)
    ]
    return pd.concat([*parts, shares], ignore_index=True).fillna({"peak": 0}).round(4)


def _share_of_macs(width, depth, part):
    """Backward computes the gradients of weights and of inputs, but no gradient of the examples."""
    forward = mlp_cost(sizes(width, depth)).macs
    backward = 2 * forward - INPUTS * width
    return {"forward": forward, "backward": backward, "optimiser": 0}[part] / (forward + backward)


def _bars(rows, parts, colors, names, title):
    """Return two stacked bars of shares, for the columns ``formula`` and ``measured``."""
    what = alt.Y(
        "what:N",
        title=None,
        sort=["formula", "measured"],
        axis=alt.Axis(labelExpr=f"datum.label == 'formula' ? '{names[0]}' : '{names[1]}'"),
    )
    color = alt.Color(
        "part:N",
        title=None,
        scale=alt.Scale(domain=parts, range=colors),
        legend=alt.Legend(orient="bottom", symbolOpacity=1, columns=2),
    )
    among = " || ".join(f"datum.part == '{part}'" for part in parts)
    order = " : ".join(f"datum.part == '{part}' ? {place}" for place, part in enumerate(parts)) + " : 9"
    folded = rows.transform_filter(among).transform_fold(["formula", "measured"], as_=["what", "value"])
    folded = folded.transform_calculate(place=order)
    share = alt.X("value:Q", stack="normalize", title=title, axis=PERCENT)
    return folded, folded.mark_bar(height=34).encode(x=share, y=what, color=color, order="place:Q"), what


def memory_explorer(memory, speeds):
    """Return the explorer of where memory and time of a training step go.

    Args:
      memory: of :func:`~dlopt_helpers.chapters.background_memory.memory_grid`.
      speeds: of :func:`~dlopt_helpers.chapters.background_speed.stored_speeds`.
    """

    def draw(runs, chosen):
        folded, bars, what = _bars(
            chosen, PARTS, [BLUE, RED, PURPLE, GOLD], ("formula", "measured"), "share of the bytes"
        )
        total = folded.transform_aggregate(total="sum(value)", peak="max(peak)", groupby=["what"])
        most = "', at the peak ' + format(datum.peak / 1e6, '.3~r') + ' MB'"
        peak = f"(datum.what == 'measured' ? {most} : '')"
        total = total.transform_calculate(
            words=f"format(datum.total / 1e6, '.3~r') + ' MB' + {peak}", left="0"
        )
        total = total.mark_text(align="left", dy=-26).encode(
            x=alt.X("left:Q", stack=None), y=what, text="words:N"
        )
        _, times, _ = _bars(chosen, PASSES, [GREEN, BLUE, RED], ("MACs", "time"), "share of a step")
        return (
            (bars + total).properties(height=200),
            _against_batch(runs, chosen),
            times.properties(height=200),
        )

    return Explorer(
        cost_rows(memory, speeds),
        draw,
        controls=[
            Slider("neurons", "Units of a hidden layer", scale="log"),
            Slider("depth", "Hidden layers"),
            Slider("batch", "Batch", scale="log"),
            Choice("precision", "Precision", PRECISIONS),
            Choice("optimiser", "Optimiser", list(OPTIMISERS)),
        ],
        initial={
            "neurons": 256,
            "depth": 2,
            "batch": 64,
            "precision": "float32",
            "optimiser": "Adam",
        },
        title="Where memory and time go",
        caption=(
            "One step of training an MLP for MNIST-1D. Bytes by what they hold, by the formula and as "
            "measured, with the sum, and the most that was there at any moment. Bytes by batch: the lines "
            "are the formula, the points are measured; the rule stands at your batch. Share of a step: "
            "multiply-accumulates, and stored times in float32 on one thread."
        ),
    )


def _against_batch(runs, chosen):
    """Return the bytes that grow with the batch, and those that do not, at the chosen setting."""
    same = " && ".join(f"datum.{name} == {name}" for name in ("neurons", "depth", "precision", "optimiser"))
    kinds = ["activations", "all else"]
    rows = runs.transform_filter(same).transform_filter(
        " || ".join(f"datum.part == '{part}'" for part in PARTS)
    )
    rows = rows.transform_calculate(kind=f"datum.part == '{kinds[0]}' ? '{kinds[0]}' : '{kinds[1]}'")
    rows = rows.transform_aggregate(
        formula="sum(formula)", measured="sum(measured)", groupby=["batch", "kind"]
    )
    batch = alt.X(
        "batch:Q",
        title="batch",
        scale=alt.Scale(type="log", domain=[1, 1024], nice=False),
        axis=alt.Axis(values=BATCHES, format=",d"),
    )
    scale = alt.Scale(type="log", domain=[100, 1e8], nice=False)
    axis = alt.Axis(values=[1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8], format="~s")
    color = alt.Color(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=kinds, range=[GOLD, BLUE]),
        legend=alt.Legend(orient="bottom", symbolOpacity=1),
    )
    lines = rows.mark_line(clip=True).encode(
        x=batch, y=alt.Y("formula:Q", title="bytes", scale=scale, axis=axis), color=color
    )
    points = rows.mark_circle(size=70, opacity=1, clip=True).encode(
        x=batch, y=alt.Y("measured:Q", scale=scale), color=color
    )
    here = chosen.transform_aggregate(groupby=["batch"]).mark_rule(strokeDash=[5, 4]).encode(x=batch)
    return here + lines + points


# --- Roofline -------------------------------------------------------------------------------------------


def layer_rows(speeds):
    """Return the rows of the roofline: for each layer and batch its rate, the roof, the time an example."""
    rows = roofline_rows(speeds)[["neurons", "batch", "intensity", "rate", "roof"]]
    first = rows[rows.batch == 1].set_index("neurons")
    rows["measured"] = first.rate[rows.neurons].to_numpy() / rows.rate
    rows["formula"] = first.roof[rows.neurons].to_numpy() / rows.roof
    return rows.round(5)


def roofline_explorer(speeds):
    """Return the explorer of a linear layer by batch: bound by memory, bound by computing.

    Args:
      speeds: of :func:`~dlopt_helpers.chapters.background_speed.stored_speeds`.
    """
    corner = ridge(speeds)
    ends = np.array([0.2, corner, 400])
    roof = pd.DataFrame({"intensity": ends, "roof": np.minimum(1, ends / corner)}).round(4)

    def draw(runs, chosen):
        intensity = alt.X(
            "intensity:Q",
            title="MACs a byte",
            scale=alt.Scale(type="log", domain=[0.2, 400], nice=False),
            axis=alt.Axis(values=[0.3, 1, 3, 10, 30, 100, 300]),
        )
        scale = alt.Scale(type="log", domain=[0.003, 1.6], nice=False)
        ticks = alt.Axis(values=[0.01, 0.03, 0.1, 0.3, 1], format="%")
        line = alt.Chart(roof).mark_line(color=INK, strokeWidth=2)
        line = line.encode(x=intensity, y=alt.Y("roof:Q", title="share of the peak", scale=scale, axis=ticks))
        rate = alt.Y("rate:Q", scale=scale)
        others = runs.mark_circle(size=30, opacity=0.5, color=MUTED, clip=True).encode(x=intensity, y=rate)
        same = runs.transform_filter("datum.neurons == neurons")
        path = same.mark_line(clip=True, opacity=0.6).encode(x=intensity, y=rate)
        here = chosen.mark_circle(size=220, opacity=1, color=RED).encode(x=intensity, y=rate)
        return line + others + path + here, _time_of_an_example(same, chosen)

    return Explorer(
        layer_rows(speeds),
        draw,
        controls=[
            Slider("batch", "Batch", scale="log"),
            Slider("neurons", "Inputs and outputs of the layer", scale="log"),
        ],
        initial={"batch": LAYER_BATCHES[0], "neurons": LAYERS[1]},
        title="A layer under the roof",
        caption=(
            "Linear layers, float32, one thread; stored times. Share of the peak: the rate of a layer over "
            "that of a large product of matrices; the roof is the formula. Line and red point: your layer at "
            "all batches, and at yours. Time of an example: multiples of that at batch 1, measured and by "
            "the formula."
        ),
    )


def _time_of_an_example(same, chosen):
    batch = alt.X(
        "batch:Q",
        title="batch",
        scale=alt.Scale(type="log", domain=[1, 1024], nice=False),
        axis=alt.Axis(values=[1, 4, 16, 64, 256, 1024], format=",d"),
    )
    scale = alt.Scale(type="log", domain=[0.01, 1.2], nice=False)
    axis = alt.Axis(values=[0.01, 0.03, 0.1, 0.3, 1])
    names = ["measured", "formula"]
    color = alt.Color(
        "what:N",
        title=None,
        scale=alt.Scale(domain=names, range=[BLUE, MUTED]),
        legend=alt.Legend(orient="bottom", symbolType="stroke", symbolOpacity=1),
    )
    both = same.transform_fold(names, as_=["what", "value"])
    height = alt.Y("value:Q", title="time of an example", scale=scale, axis=axis)
    lines = both.mark_line(clip=True).encode(x=batch, y=height, color=color)
    here = chosen.mark_circle(size=220, opacity=1, color=RED).encode(
        x=batch, y=alt.Y("measured:Q", scale=scale)
    )
    return lines + here


# --- Half the MACs --------------------------------------------------------------------------------------


def halving_table(speeds):
    """Return the time of networks beside their MACs, as multiples of those with 1,024 units."""
    rows = speeds[speeds.family == "halving"]
    wide = rows.pivot(index="neurons", columns=["what", "batch"], values="time")
    wide.columns = [f"{what}, batch {batch}" for what, batch in wide.columns]
    macs = rows[rows.batch == 1].drop_duplicates("neurons").set_index("neurons").macs
    return wide.assign(MACs=macs / macs[1024])[["MACs", *wide.columns]].sort_index(ascending=False)


# --- The crossing ---------------------------------------------------------------------------------------


def crossing(parameters, kept, **setting):
    """Return the batch at which activations need as many bytes as all else: see ``training_bytes``."""
    one = training_bytes(parameters, kept, **setting)
    return (one.total - one.activations) / one.activations


def shapes_crossings():
    """Return the crossing for the networks of the book, Adam in float32."""
    from dlopt_helpers.chapters.background_memory import CNN_KEPT

    found = {
        "mlp": (mlp_cost((40, 100, 100, 10)).parameters, kept_numbers((40, 100, 100, 10))),
        "mlp, 1024": (mlp_cost((40, 1024, 1024, 10)).parameters, kept_numbers((40, 1024, 1024, 10))),
        "cnn": (cnn_cost().parameters, CNN_KEPT),
    }
    return pd.Series({name: crossing(*numbers) for name, numbers in found.items()})
