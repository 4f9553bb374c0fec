"""What chapter 3.5 shows: its measurements and its explorers."""

import altair as alt
import numpy as np
import pandas as pd
import torch

from dlopt_helpers.bridges.pruning_torch import prunable
from dlopt_helpers.bridges.quantization_torch import layer_inputs
from dlopt_helpers.chapters.quantization_runs import (
    CALIBRATIONS,
    FORMATS,
    LAYERS,
    SCHEMES,
    SEEDS,
    clippings,
    dense,
    formats,
    histogram,
    quantized,
    quick_accuracy,
)
from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.page.explorer import (
    BLUE,
    GOLD,
    GREEN,
    INK,
    MUTED,
    PALETTE,
    RED,
    Choice,
    Explorer,
    Slider,
)
from dlopt_helpers.quantization import (
    Quantizer,
    affine,
    fake_quantize,
    integer_linear,
    symmetric,
)

PERCENT = alt.Axis(format="%")


# --- Equal to the frameworks, equal to the runtime ------------------------------------------------


def fake_quantize_differences(bits=4):
    """Return the largest differences from PyTorch's and TensorFlow's own, in values and in gradients.

    Returns:
      A data frame with one row for each framework and scheme, over 10,000 normal numbers and a range that
      clips some of them: ``value`` and ``gradient``. Within half a step of the range's ends TensorFlow has
      another convention for the gradient, and those numbers do not count.
    """
    import tensorflow as tf

    x = np.random.default_rng(0).normal(size=10_000).astype("float32")
    weights = np.random.default_rng(1).normal(size=10_000).astype("float32")  # of the sum to differentiate
    rows = []
    for scheme in (symmetric, affine):
        quantizer = scheme(np.float32(-1.7), np.float32(2.1), bits)
        ends = quantizer.q_min, quantizer.q_max
        given = float(quantizer.scale), int(quantizer.zero_point), *ends
        ours, slope = _torch_slope(fake_quantize, x, weights, _tensors(quantizer))
        theirs = _torch_slope(torch.fake_quantize_per_tensor_affine, x, weights, *given)
        rows.append(("PyTorch", scheme.__name__, ours - theirs[0], slope - theirs[1]))
        bounds = [float(quantizer.dequantize(end)) for end in ends]
        narrow = scheme is symmetric
        with tf.GradientTape() as tape:
            tape.watch(t := tf.constant(x))
            y = tf.quantization.fake_quant_with_min_max_args(t, *bounds, bits, narrow)
            total = tf.reduce_sum(weights * y)
        border = np.min([abs(x - bound) for bound in bounds], axis=0) < given[0] / 2
        slopes = np.where(border, 0, slope - tape.gradient(total, t).numpy())
        rows.append(("TensorFlow", scheme.__name__, ours - y.numpy(), slopes))
    table = [(where, scheme, abs(value).max(), abs(slope).max()) for where, scheme, value, slope in rows]
    return pd.DataFrame(table, columns=["framework", "scheme", "value", "gradient"])


def _tensors(quantizer):
    scale, zero = (torch.as_tensor(number) for number in (quantizer.scale, quantizer.zero_point))
    return Quantizer(scale, zero, quantizer.q_min, quantizer.q_max)


def _torch_slope(function, x, weights, *given):
    x = torch.from_numpy(x).requires_grad_()
    y = function(x, *given)
    (torch.from_numpy(weights) * y).sum().backward()
    return y.detach().numpy(), x.grad.numpy()


@one_thread()
def integers_against_runtime(network="mlp512", seed=0, examples=1_000):
    """Compute each layer of a network in integers, here and in ONNX Runtime, from the runtime's own file.

    Returns:
      One row per layer: its ``outputs`` for the test examples, the share that is ``equal``, and the
      largest difference in ``steps`` of the quantizer.
    """
    model, (x, _) = dense(network, seed), mnist1d()[2:]
    rows = []
    for name, came in layer_inputs(model, x[:examples]).items():
        layer = torch.nn.Sequential(model.get_submodule(name))
        onnx = onnxrt.quantize_static(onnxrt.export(layer, came.shape[1]), came.numpy())
        of = runtime_numbers(onnx)
        q_x = of["x"].quantize(came.numpy()).astype("int8")
        ours = integer_linear(q_x, of["q_w"], of["bias"], of["x"], of["w"], of["y"])
        theirs = of["y"].quantize(onnxrt.load(onnx)(came.numpy()))
        steps = abs(ours - theirs)
        rows.append((name, ours.size, (steps == 0).mean(), int(steps.max())))
    return pd.DataFrame(rows, columns=["layer", "outputs", "equal", "steps"])


def runtime_numbers(onnx):
    """Return what a quantized file of one linear layer holds: its quantizers, integers and biases."""
    from onnx import load_from_string, numpy_helper

    graph = load_from_string(onnx).graph
    held = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    roundings = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    x, y = (Quantizer(*(held[name] for name in node.input[1:]), -128, 127) for node in roundings)
    x, y = (Quantizer(q.scale, q.zero_point.astype(np.int32), q.q_min, q.q_max) for q in (x, y))
    integers = [n for n in graph.node if n.op_type == "DequantizeLinear" and n.input[0] in held]
    q_w, scale = (held[name] for name in integers[0].input[:2])
    gemm = next(node for node in graph.node if node.op_type == "Gemm")
    w = Quantizer(scale, 0, -127, 127)
    return {"x": x, "y": y, "w": w, "q_w": q_w, "bias": held[gemm.input[2]]}


# --- The levels -----------------------------------------------------------------------------------


def _bars(bins, here, title, width):
    return (
        alt.Chart(bins)
        .transform_filter(here)
        .mark_bar(binSpacing=0)
        .encode(
            x=alt.X("left:Q", title=title, scale=width),
            x2="right:Q",
            y=alt.Y("n:Q", title="how many (root scale)", scale=alt.Scale(type="sqrt"), axis=None),
            y2=alt.Y2Datum(0),
        )
    )


def levels_explorer():
    """Return the explorer of bits and formats on the weights of one trained MLP."""
    runs, books = formats()
    weights = {LAYERS[name]: w.numpy() for name, w in prunable(dense("mlp512", 0)).items()}
    bins = pd.concat([histogram(w).assign(layer=name) for name, w in weights.items()])
    dense_accuracy = quick_accuracy(dense("mlp512", 0))
    # The outermost level of two bits may lie half a step, a third, beyond the largest weight.
    edges = {name: 4 / 3 * abs(w).max() for name, w in weights.items()}
    edge = alt.ExprRef(" : ".join([f"layer == {k!r} ? {end:.3f}" for k, end in edges.items()] + ["1"]))
    width = alt.Scale(domainMin=alt.ExprRef(f"-({edge.expr})"), domainMax=edge, nice=False)
    scale = alt.Scale(domain=FORMATS, range=PALETTE[: len(FORMATS)])
    legend = alt.Legend(orient="bottom", columns=2, symbolType="stroke", symbolOpacity=1)
    named, unnamed = (alt.Color("scheme:N", title=None, scale=scale, legend=one) for one in (legend, None))
    strong = alt.condition("datum.scheme == scheme", alt.value(1), alt.value(0.35))

    def draw(runs, chosen):
        here = "datum.layer == layer && datum.scheme == scheme && datum.bits == bits"
        bars = _bars(bins, "datum.layer == layer", "weight", width).encode(color=alt.value(MUTED))
        even = chosen.transform_calculate(q="sequence(datum.q_min, datum.q_max + 1)").transform_flatten(["q"])
        even = even.transform_calculate(level="datum.scale * (datum.q - datum.zero_point)")
        uneven = alt.Chart(books.round(4)).transform_filter(here)
        b = alt.X(
            "bits:Q", title="bits", scale=alt.Scale(domain=[1.8, 8.2], nice=False), axis=alt.Axis(tickCount=7)
        )
        of_layer = runs.transform_filter("datum.layer == layer")
        e = alt.Y(
            "error:Q", title="error / spread of the weights", scale=alt.Scale(type="log", domain=[0.01, 2])
        )
        a = alt.Y("accuracy:Q", title="test accuracy", axis=PERCENT, scale=alt.Scale(domain=[0, 0.8]))
        dot = chosen.mark_circle(size=160, opacity=1)
        once = runs.transform_filter("datum.layer == 'first layer'")  # all layers have the same accuracy
        untouched = alt.Chart(pd.DataFrame({"accuracy": [dense_accuracy]})).mark_rule(strokeDash=[5, 4])
        return (
            bars
            + even.mark_rule(strokeWidth=1).encode(x="level:Q", color=unnamed)
            + uneven.mark_rule(strokeWidth=1).encode(x="level:Q", color=unnamed),
            of_layer.mark_line(point=True).encode(x=b, y=e, color=named, opacity=strong)
            + dot.encode(x=b, y=e, color=named),
            untouched.encode(y=a)
            + once.mark_line(point=True).encode(x=b, y=a, color=unnamed, opacity=strong)
            + dot.encode(x=b, y=a, color=unnamed),
        )

    return Explorer(
        runs,
        draw,
        controls=[
            Slider("bits", "Bits"),
            Choice("scheme", "Format", options=FORMATS),
            Choice("layer", "Layer shown", options=list(LAYERS.values())),
        ],
        initial={"bits": 4, "scheme": "symmetric", "layer": "second layer"},
        title="Which numbers stand for the weights",
        caption=(
            "A trained MLP with 512 units in each hidden layer: its weights in grey, the numbers that are "
            "left to them as lines. One scale for each layer; the accuracy is that with all layers quantized "
            "and nothing trained. Dashed: the float network."
        ),
    )


# --- Clipping -------------------------------------------------------------------------------------


def clipping_explorer():
    """Return the explorer of the clipping range: rounding error against clipping error."""
    runs, found, bins = clippings()
    runs = runs.round(6)
    here = "datum.tensor == tensor && datum.bits == bits"

    def draw(runs, chosen):
        bars = _bars(bins, "datum.tensor == tensor", "value", alt.Scale(nice=False)).transform_joinaggregate(
            lowest="min(left)", highest="max(right)"
        )
        # The quantizer of the weights is symmetric, though they are not.
        end = "max(-datum.lowest, datum.highest)"
        low, high = (
            f"share * (slice(tensor, 0, 7) == 'weights' ? {even} : {own})"
            for even, own in ((f"-{end}", "datum.lowest"), (end, "datum.highest"))
        )
        inside = f"datum.left >= {low} - 1e-9 && datum.right <= {high} + 1e-9"
        bars = bars.encode(color=alt.condition(inside, alt.value(BLUE), alt.value(RED)))
        s = alt.X("share:Q", title="share of the full range", scale=alt.Scale(domain=[0, 1]), axis=PERCENT)
        of = runs.transform_filter(here)
        what = {"rounding": BLUE, "clipping": RED, "both": INK}
        colours = alt.Color(
            "what:N",
            title=None,
            scale=alt.Scale(domain=list(what), range=list(what.values())),
            legend=alt.Legend(orient="bottom", symbolType="stroke"),
        )
        e = alt.Y(
            "error:Q",
            title="squared error / variance",
            scale=alt.Scale(type="log", domain=[1e-6, 1], clamp=True),
        )
        errors = of.transform_fold(list(what), as_=["what", "error"]).transform_filter("datum.error > 0")
        dots = chosen.transform_fold(list(what), as_=["what", "error"]).transform_filter("datum.error > 0")
        marks = alt.Chart(found).transform_filter(here)
        a = alt.Y("accuracy:Q", title="test accuracy", axis=PERCENT, scale=alt.Scale(domain=[0, 1]))
        names = alt.Y("calibration:N", title=None, sort=list(CALIBRATIONS))
        now = chosen.mark_rule(strokeDash=[5, 4]).encode(x=s)
        return (
            bars,
            errors.mark_line().encode(x=s, y=e, color=colours)
            + dots.mark_circle(size=120, opacity=1).encode(x=s, y=e, color=colours),
            of.mark_line(color=GREEN).encode(x=s, y=a)
            + chosen.mark_circle(size=160, opacity=1, color=GREEN).encode(x=s, y=a),
            marks.mark_point(filled=True, size=90, color=GOLD, opacity=1).encode(x=s, y=names) + now,
        )

    return Explorer(
        runs,
        draw,
        controls=[
            Slider("share", "Share of the range kept"),
            Slider("bits", "Bits"),
            Choice("tensor", "Tensor"),
        ],
        initial={"share": 0.5, "bits": 4, "tensor": "inputs, CNN"},
        title="Round coarsely or clip",
        caption=(
            "The second layer of a trained network: its weights, or what comes into it. Red is clipped. A "
            "narrow range rounds finely and clips much; the dots show which range each calibration chooses, "
            "the dashed line yours. The accuracy is that with this tensor alone quantized."
        ),
    )


# --- How few bits ---------------------------------------------------------------------------------


def means(runs):
    """Return the means over seeds of :func:`~dlopt_helpers.chapters.quantization_runs.quantizations`."""
    by = ["network", "scheme", "bits"]
    return runs.groupby(by, as_index=False, sort=False)[["before", "after", "stored"]].mean().round(4)


def one_setting(**setting):
    """Return what ``means`` says about a single setting, trained now."""
    runs = pd.concat([quantized(**setting, seed=seed) for seed in SEEDS], ignore_index=True)
    return means(runs).drop(columns=list(setting))


def bits_explorer(runs):
    """Return the explorer of accuracy against bits, before and after training, with the runs behind it."""
    table = means(runs)
    control = table.query("scheme == 'float'")
    scale = alt.Scale(domain=SCHEMES, range=PALETTE[: len(SCHEMES)])
    legend = alt.Legend(orient="bottom", columns=2, symbolType="stroke", symbolOpacity=1)
    named, unnamed = (alt.Color("scheme:N", title=None, scale=scale, legend=one) for one in (legend, None))
    strong = alt.condition("datum.scheme == scheme", alt.value(1), alt.value(0.35))
    range_ = alt.Scale(domainMin=0, domainMax=alt.ExprRef("network == 'mlp512' ? 0.85 : 1"), nice=False)

    def draw(runs, chosen):
        of = runs.transform_filter("datum.network == network")
        untouched = (
            alt.Chart(control).transform_filter("datum.network == network").mark_rule(strokeDash=[5, 4])
        )
        panels = []
        for when, x, words, colour in (
            ("before", "bits:Q", "rounded", named),
            ("after", "bits:Q", "rounded and trained on", unnamed),
            ("after", "stored:Q", "rounded and trained on", unnamed),
        ):
            x = alt.X(
                x,
                title="bits" if x == "bits:Q" else "bits for a weight, scales included",
                scale=alt.Scale(domain=[1.8, 10], nice=False),
                axis=alt.Axis(values=[2, 3, 4, 5, 6, 8, 10]),
            )
            y = alt.Y(f"{when}:Q", title=f"accuracy, {words}", axis=PERCENT, scale=range_)
            panels.append(
                untouched.encode(y=y)
                + of.mark_line(point=True).encode(x=x, y=y, color=colour, opacity=strong)
                + chosen.mark_circle(size=160, opacity=1).encode(x=x, y=y, color=colour)
            )
        return tuple(panels)

    return Explorer(
        table.query("scheme != 'float'"),
        draw,
        controls=[
            Slider("bits", "Bits", minimum=2, maximum=8, step=1),
            Choice("scheme", "Scheme", options=SCHEMES),
            Choice("network", "Network"),
        ],
        initial={"bits": 3, "scheme": "symmetric", "network": "cnn25"},
        compute=one_setting,
        title="How few bits",
        caption=(
            "Weights rounded to a few bits; then 300 steps of training with the rounded weights. Each dot is "
            "the mean of five networks on 10,000 fresh examples; dashed: the float network, trained as long."
        ),
    )
