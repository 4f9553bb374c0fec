"""What chapter 3.3 shows: its measurements and its explorers."""

import copy

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch.nn.functional import cross_entropy

from dlopt_helpers.bridges.pruning_torch import make_permanent, mask_units, prunable, prune, remove_units
from dlopt_helpers.chapters import pruning_runs
from dlopt_helpers.chapters.pruning_runs import (
    KEPT,
    METHODS,
    SEEDS,
    STEPS,
    dense,
    magnitude_masks,
    pruned,
    units,
)
from dlopt_helpers.chapters.pruning_speed import stored_speeds
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.summary import over_seeds
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.lab.twins import keras_twin
from dlopt_helpers.page.explorer import BLUE, GREEN, INK, MUTED, PALETTE, RED, Choice, Explorer, Slider
from dlopt_helpers.pruning import best_units, magnitude_mask, sparsity, threshold_for, unit_scores

LAYERS = {"0": "first layer", "2": "second layer", "4": "output layer"}
PERCENT = alt.Axis(format="%")


def accuracy(model):
    """Return the share of MNIST-1D's 1,000 test examples that ``model`` gets right."""
    return pruning_runs.accuracy(model, *mnist1d()[2:])


def cut(model, thresholds):
    """Return a copy of ``model`` without the weights below the threshold, or below that of their layer.

    Args:
      model: a network.
      thresholds: a number, or a dict from layer names to numbers.
    """
    weights = prunable(model)
    if not isinstance(thresholds, dict):
        thresholds = dict.fromkeys(weights, thresholds)
    masks = {name: magnitude_mask(weights[name], threshold) for name, threshold in thresholds.items()}
    return make_permanent(prune(copy.deepcopy(model), masks))


# --- Does the mask hold, does removal change nothing? -----------------------------------------------

WAYS_TO_MASK = ["cut once", "gradients masked too", "held"]


@one_thread()
def zeros_left(way, steps=20):
    """Return the share of pruned weights that are still zero after some steps of SGD with momentum.

    Args:
      way: ``"cut once"``, ``"gradients masked too"`` or ``"held"``, which is :func:`prune`. The optimiser
        has been at work before the cut, so there is momentum left.
      steps: made after the cut.
    """
    model, (x, y) = dense("mlp512", 0), map(torch.from_numpy, mnist1d()[:2])
    weights = [layer.weight for layer in model if isinstance(layer, torch.nn.Linear)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    masks, tensors = magnitude_masks(model, 0.9), []
    for step in range(steps + 1):
        optimizer.zero_grad()
        cross_entropy(model(x[:500]), y[:500]).backward()
        if step and way == "gradients masked too":
            for w, mask in tensors:
                w.grad *= mask
        optimizer.step()
        if step == 0 and way == "held":
            prune(model, masks)
        elif step == 0:
            tensors = list(zip(weights, masks.values(), strict=True))
            for w, mask in tensors:
                w.data *= mask
    now = prunable(model)
    return np.mean([(now[n][mask == 0] == 0).double().mean() for n, mask in masks.items()])


def _conv_with_batch_norm():
    """Return a convolutional network whose batch norms have seen some batches."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Unflatten(1, (1, 40))]
        for inputs in (1, 16, 16):
            conv = torch.nn.Conv1d(inputs, 16, 3, stride=2, padding=1)
            layers += [conv, torch.nn.BatchNorm1d(16), torch.nn.ReLU()]
        model = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(80, 10))
    for batch in np.split(mnist1d().x_train[:500], 5):
        model(torch.from_numpy(batch))
    return model.eval()


def removal_differences():
    """Return the largest difference of any output between silent and removed units, half of each layer.

    One row for each network: MLP and CNN of the chapter, a CNN with batch norm, and the MLP in Keras.
    """
    x = mnist1d().x_test
    rows = []
    networks = {"mlp512": dense("mlp512", 0), "cnn64": dense("cnn64", 0)}
    for name, model in (networks | {"cnn16, batch norm": _conv_with_batch_norm()}).items():
        keep, inputs = units(model, 0.5), torch.from_numpy(x)
        with torch.no_grad():
            silent, removed = (f(model, keep)(inputs) for f in (mask_units, remove_units))
        rows.append((name, "PyTorch", silent.numpy(), removed.numpy()))
    rows.append(("mlp512", "Keras", *_in_keras(networks["mlp512"], x)))
    return pd.DataFrame(
        [(name, where, abs(a).max(), abs(a - b).max()) for name, where, a, b in rows],
        columns=["network", "framework", "largest output", "difference"],
    )


def _in_keras(model, x):
    from dlopt_helpers.bridges import pruning_keras as bridge

    twin = keras_twin(model)
    kernels = list(bridge.prunable(twin).items())[:-1]
    keep = {
        name: best_units(unit_scores(kernel, axis=-1, p=2), kernel.shape[-1] // 2) for name, kernel in kernels
    }
    return [f(twin, keep).predict(x, verbose=0) for f in (bridge.mask_units, bridge.remove_units)]


# --- The threshold --------------------------------------------------------------------------------

THRESHOLDS = np.linspace(0, 0.4, 161)
CELLS = 32  # units and inputs of the picture of a mask


def threshold_rows(model, threshold):
    """Return what a threshold does to each layer and to all of them: ``part``, ``pruned``, ``accuracy``."""
    pruned = cut(model, threshold)
    weights = {LAYERS[name]: w for name, w in prunable(pruned).items()}
    shares = {"all layers": sparsity(*weights.values())} | {n: sparsity(w) for n, w in weights.items()}
    return pd.DataFrame({"part": list(shares), "pruned": list(shares.values())}).assign(
        accuracy=accuracy(pruned)
    )


def _histograms(weights):
    """Return how many weights of each layer lie in each of 81 bins, as a share of the fullest one."""
    for name, w in weights.items():
        edge = abs(w).max().item()
        counts, edges = np.histogram(w.numpy(), bins=81, range=(-edge, edge))
        middle = (edges[1:] + edges[:-1]) / 2
        yield pd.DataFrame(
            {"layer": name, "left": edges[:-1], "right": edges[1:], "w": middle, "n": counts / counts.max()}
        ).round(4)


def _cells(weights):
    """Return the first weights of each layer, those of the picture."""
    for name, w in weights.items():
        part = w[:CELLS, :CELLS].numpy()
        unit, inputs = np.indices(part.shape)
        yield pd.DataFrame({"layer": name, "unit": unit.ravel(), "input": inputs.ravel(), "w": part.ravel()})


def threshold_explorer(retrained):
    """Return the explorer of the threshold on the weights of one trained MLP.

    Args:
      retrained: the runs of :func:`~dlopt_helpers.chapters.pruning_runs.prunings`.
    """
    model = dense("mlp512", 0)
    weights = {LAYERS[name]: w for name, w in prunable(model).items()}
    runs = pd.concat([threshold_rows(model, t).assign(threshold=t) for t in THRESHOLDS], ignore_index=True)
    bins, cells = pd.concat(_histograms(weights)), pd.concat(_cells(weights)).round({"w": 4})
    chosen_layer = "datum.layer == layer"
    dots = _retrained_dots(retrained, list(weights.values()))

    def draw(runs, chosen):
        stays = "abs(datum.w) >= threshold"
        kept = alt.condition(stays, alt.value(BLUE), alt.value(MUTED))
        faint = alt.condition(stays, alt.value(1), alt.value(0.3))
        histogram = (
            alt.Chart(bins)
            .transform_filter(chosen_layer)
            .mark_bar(binSpacing=0)
            .encode(
                x=alt.X("left:Q", title="weight"),
                x2="right:Q",
                y=alt.Y("n:Q", title="how many (root scale)", scale=alt.Scale(type="sqrt"), axis=None),
                y2=alt.Y2Datum(0),
                color=kept,
                opacity=faint,
            )
        )
        picture = (
            alt.Chart(cells)
            .transform_filter(chosen_layer)
            .mark_rect()
            .encode(
                x=alt.X(
                    "input:O",
                    title="input",
                    axis=alt.Axis(values=[0, 10, 20, 30], labelAngle=0),
                    scale=alt.Scale(domain=list(range(CELLS))),
                ),
                y=alt.Y(
                    "unit:O",
                    title="unit",
                    axis=alt.Axis(values=[0, 10, 20, 30]),
                    scale=alt.Scale(domain=list(range(CELLS))),
                ),
                color=alt.condition("datum.w > 0", alt.value(BLUE), alt.value(RED)),
                opacity=alt.condition(stays, alt.value(1), alt.value(0)),
            )
        )
        part = alt.Y("part:N", title=None, sort=["all layers", *LAYERS.values()])
        # Room for the number beside a full bar.
        share = alt.X(
            "pruned:Q",
            title="pruned",
            axis=alt.Axis(format="%", values=[0, 0.25, 0.5, 0.75, 1]),
            scale=alt.Scale(domain=[0, 1.3], nice=False),
        )
        bars = chosen.mark_bar().encode(
            x=share,
            y=part,
            color=alt.condition("datum.part == 'all layers'", alt.value(INK), alt.value(BLUE)),
        )
        words = chosen.transform_calculate(words="format(datum.pruned, '.1%')")
        words = words.mark_text(align="left", dx=4).encode(x=share, y=part, text="words:N")
        t = alt.X("threshold:Q", title="threshold", scale=alt.Scale(domain=[0, 0.4], nice=False))
        height = alt.Y("accuracy:Q", title="test accuracy", axis=PERCENT, scale=alt.Scale(domain=[0, 0.8]))
        label = alt.Color(
            "what:N",
            title=None,
            scale=alt.Scale(domain=["cut", "cut and retrained"], range=[BLUE, GREEN]),
            legend=alt.Legend(orient="bottom", symbolType="stroke"),
        )
        once = "datum.part == 'all layers'"
        curve = runs.transform_filter(once).transform_calculate(what="'cut'").mark_line()
        again = alt.Chart(dots).mark_line(point=alt.OverlayMarkDef(size=50))
        here = chosen.transform_filter(once).mark_circle(size=160, color=BLUE, opacity=1)
        accuracies = (
            curve.encode(x=t, y=height, color=label)
            + again.encode(x=t, y=height, color=label)
            + here.encode(x=t, y=height)
        )
        return histogram, accuracies, bars + words, picture

    return Explorer(
        runs,
        draw,
        controls=[
            Slider("threshold", "Threshold τ", minimum=0, maximum=0.4),
            Choice("layer", "Layer shown", options=list(LAYERS.values())),
        ],
        initial={"threshold": 0.1, "layer": "second layer"},
        compute=lambda threshold, **_: threshold_rows(model, threshold),
        title="One threshold for all weights",
        caption=(
            "A trained MLP with 512 units in each hidden layer. Grey weights go. Dots: networks that were "
            "trained on for 1,000 steps after the cut. The picture shows a corner of the chosen layer: what "
            "stays of it, blue above zero and red below."
        ),
    )


def _retrained_dots(runs, weights):
    """Return the accuracy after cutting once and retraining, at the threshold of each sparsity."""
    rows = runs.query("network == 'mlp512' and seed == 0 and method in ['dense', 'one shot']")
    last = rows.groupby("sparsity", as_index=False).last()
    thresholds = [threshold_for(s, *weights) for s in last.sparsity]
    return pd.DataFrame({"threshold": thresholds, "accuracy": last.accuracy, "what": "cut and retrained"})


# --- How and how much -----------------------------------------------------------------------------

SETTING = ["network", "method", "sparsity"]
# The range of the chosen network's accuracies.
FROM_ZERO = alt.Scale(domainMin=0, domainMax=alt.ExprRef("network == 'mlp512' ? 0.8 : 1"), nice=False)


def final_accuracy(runs):
    """Return the mean accuracy on fresh examples at the end, by network, method and sparsity."""
    return runs.groupby([*SETTING, "seed"]).final.last().groupby(SETTING).mean()


def _dense_accuracy(runs):
    return final_accuracy(runs)[:, "dense"].reset_index()


def curves(runs):
    """Return the means over seeds at each step after the cut, and ``final``, that at the end."""
    final = final_accuracy(runs)
    table = over_seeds(runs, [*SETTING, "step"]).drop(columns="loss")
    table["final"] = [final[key] for key in table[SETTING].itertuples(index=False, name=None)]
    return table.assign(fewer=1 / (1 - table.sparsity)).round(4)


def one_setting(**setting):
    """Return what ``curves`` says about a single setting, trained now."""
    runs = pd.concat([pruned(**setting, seed=seed) for seed in SEEDS], ignore_index=True)
    return curves(runs).drop(columns=SETTING)


def methods_explorer(runs):
    """Return the explorer of accuracy against the share of weights pruned, with the runs behind it."""
    dense = _dense_accuracy(runs)
    scale = alt.Scale(domain=METHODS, range=PALETTE[: len(METHODS)])
    legend = alt.Legend(orient="bottom", columns=3, symbolType="stroke", symbolOpacity=1)
    method, unnamed = (alt.Color("method:N", title=None, scale=scale, legend=one) for one in (legend, None))

    def draw(runs, chosen):
        fewer = alt.X(
            "fewer:Q",
            title="times fewer weights",
            scale=alt.Scale(type="log", domain=[1.8, 56], nice=False),
            axis=alt.Axis(values=[2, 5, 10, 20, 50]),
        )
        height = alt.Y("final:Q", title="accuracy at the end", axis=PERCENT, scale=FROM_ZERO)
        ends = runs.transform_filter("datum.step == 0 && datum.network == network")
        lines = ends.mark_line(point=True).encode(
            x=fewer,
            y=height,
            color=method,
            opacity=alt.condition("datum.method == method", alt.value(1), alt.value(0.4)),
        )
        untouched = alt.Chart(dense).transform_filter("datum.network == network")
        untouched = untouched.mark_rule(strokeDash=[5, 4]).encode(y="final:Q")
        here = chosen.transform_filter("datum.step == 0").mark_circle(size=160, opacity=1)
        step = alt.X("step:Q", title="step after the cut", scale=alt.Scale(domain=[0, STEPS]))
        accuracy = alt.Y("accuracy:Q", title="test accuracy", axis=PERCENT, scale=FROM_ZERO)
        band = chosen.mark_area(opacity=0.2).encode(x=step, y="low:Q", y2="high:Q", color=unnamed)
        line = chosen.mark_line(point=True).encode(x=step, y=accuracy, color=unnamed)
        return untouched + lines + here.encode(x=fewer, y=height, color=unnamed), band + line

    return Explorer(
        curves(runs.query("method in @METHODS")),
        draw,
        controls=[
            Choice("network", "Network"),
            Choice("method", "Method", options=METHODS),
            Slider("sparsity", "Share pruned", minimum=0.5, maximum=0.99),
        ],
        initial={"network": "mlp512", "method": "one shot", "sparsity": 0.95},
        compute=one_setting,
        title="How much can go, and how",
        caption=(
            "By how much is cut: mean accuracy of five seeds on 10,000 fresh examples after the cut and "
            "1,000 more steps; dashed, the dense network after the same 1,000 steps. By step: the runs "
            "behind the large dot (the band spans the seeds)."
        ),
    )


# --- Units ----------------------------------------------------------------------------------------

WAYS = ["retrained", "from scratch", "cut"]


def units_rows(removals, speeds):
    """Return accuracy and cost by network and share of units kept, one row for each bar and point."""
    means = removals.rename(columns={"L2": "cut"}).groupby(["network", "kept"], as_index=False)[WAYS].mean()
    points = means.melt(["network", "kept"], var_name="what", value_name="value").assign(kind="accuracy")
    return pd.concat([points, *_savings(speeds)], ignore_index=True).round(4)


def _savings(speeds):
    """Return how many times less a network with fewer units costs than the dense one."""
    by_units = speeds[speeds.variant.str.contains("units")]
    for (network, variant), rows in by_units.groupby(["network", "variant"], sort=False):
        whole = speeds.query("network == @network and variant == 'dense'").iloc[0]
        saved = {
            "multiplications": whole.multiplications / rows.multiplications.iloc[0],
            "bytes of the file": whole.bytes / rows.bytes.iloc[0],
            **{f"time, batch {row.batch:,}": row.faster for row in rows.itertuples()},
        }
        yield pd.DataFrame({"what": list(saved), "value": list(saved.values())}).assign(
            network=network, kept=float(variant.split()[1]) / 100, kind="cost"
        )


def units_explorer(removals, runs):
    """Return the explorer of the share of units kept: accuracy, and what it saves.

    Args:
      removals: of :func:`~dlopt_helpers.chapters.pruning_runs.removals`.
      runs: of :func:`~dlopt_helpers.chapters.pruning_runs.prunings`, which holds the dense networks.
    """
    dense = _dense_accuracy(runs)
    scale = alt.Scale(domain=WAYS, range=PALETTE[: len(WAYS)])
    way = alt.Color(
        "what:N", title=None, scale=scale, legend=alt.Legend(orient="bottom", symbolType="stroke")
    )

    def draw(runs, chosen):
        kept = alt.X(
            "kept:Q",
            title="share of units kept",
            scale=alt.Scale(type="log", domain=[0.045, 0.55], nice=False),
            axis=alt.Axis(values=KEPT, format="%"),
        )
        height = alt.Y("value:Q", title="accuracy", axis=PERCENT, scale=FROM_ZERO)
        points = runs.transform_filter("datum.kind == 'accuracy' && datum.network == network")
        lines = points.mark_line(point=True).encode(x=kept, y=height, color=way)
        here = chosen.transform_filter("datum.kind == 'accuracy'").mark_circle(size=160, opacity=1)
        untouched = alt.Chart(dense).transform_filter("datum.network == network")
        untouched = untouched.mark_rule(strokeDash=[5, 4]).encode(y="final:Q")
        saved = alt.X(
            "value:Q",
            title="times less",
            scale=alt.Scale(type="log", domain=[0.8, 300], nice=False),
            axis=alt.Axis(values=[1, 3, 10, 30, 100], format="~g"),
        )
        what = alt.Y("what:N", title=None, sort=None)
        costs = chosen.transform_filter("datum.kind == 'cost'")
        words = costs.transform_calculate(words="format(datum.value, '.2~r')")
        return (
            untouched + lines + here.encode(x=kept, y=height, color=way),
            costs.mark_bar().encode(x=saved, x2=alt.X2Datum(1), y=what)
            + words.mark_text(align="left", dx=4).encode(x=saved, y=what, text="words:N"),
        )

    return Explorer(
        units_rows(removals, stored_speeds()),
        draw,
        controls=[Choice("network", "Network"), Slider("kept", "Share of units kept")],
        initial={"network": "mlp512", "kept": 0.25},
        title="Taking units out",
        caption=(
            "By share of units: mean accuracy of five seeds on 10,000 fresh examples, after the cut, after "
            "1,000 more steps, and of a network of that size trained from scratch; dashed, the dense "
            "network. Bars: what the smaller network saves. The times are stored measurements."
        ),
    )


# --- One threshold or several ---------------------------------------------------------------------


def rescaled(model, factor=10.0):
    """Return an MLP with the same outputs: its first layer divided by ``factor``, its second multiplied.

    ReLU passes a positive factor on, so that the two cancel.
    """
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[0].weight /= factor
        other[0].bias /= factor
        other[2].weight *= factor
    return other


SCANNED = [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98]


def sensitivity(model):
    """Return the test accuracy after each layer alone has lost each share of its weights."""
    rows = [
        (LAYERS.get(name, name), share, accuracy(cut(model, {name: threshold_for(share, w)})))
        for name, w in prunable(model).items()
        for share in SCANNED
    ]
    return pd.DataFrame(rows, columns=["layer", "share", "accuracy"])


def by_layer(model, shares):
    """Return ``model`` without the share of each layer's weights that ``shares`` names, a list."""
    weights = prunable(model).items()
    return cut(model, {n: threshold_for(s, w) for (n, w), s in zip(weights, shares, strict=True)})


def balanced_shares(model, target):
    """Return the shares to prune of each layer so that no layer alone loses more accuracy than another.

    The smallest loss is taken at which the shares reach ``target`` over all weights together.
    """
    scan = sensitivity(model)
    sizes = np.array([w.numel() for w in prunable(model).values()])
    for allowed in np.arange(0, 1, 0.005):
        good = scan[scan.accuracy >= scan.accuracy[0] - allowed]
        shares = good.groupby("layer", sort=False).share.max().to_numpy()
        if shares @ sizes >= target * sizes.sum():
            return shares.tolist()
