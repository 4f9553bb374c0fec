"""What chapter 3.5 measures, and what its explorers show and compute."""

import inspect
import itertools
import json
import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scenegraph import marks

from dlopt_helpers.chapters import quantization as chapter
from dlopt_helpers.chapters import quantization_runs as trainings
from dlopt_helpers.lab.models import mlp

torch.set_num_threads(1)


def small(network="mlp512", seed=0):
    return mlp(hidden=24, seed=seed)


# --- equal to the frameworks, equal to the runtime -------------------------------------------------


def test_fake_quantize_differences():
    found = chapter.fake_quantize_differences()
    frameworks, schemes = ("PyTorch", "TensorFlow"), ("symmetric", "affine")
    rows = found.set_index(["framework", "scheme"])
    assert set(rows.index) == {(f, s) for f in frameworks for s in schemes} and len(found) == 4
    assert (rows.value < 1e-6).all() and (rows.gradient < 1e-6).all()


def leaking(x, quantizer):
    left = quantizer.dequantize(quantizer.quantize(x)).detach()
    return left + x - x.detach()


def stopped(x, quantizer):
    return quantizer.dequantize(quantizer.quantize(x)).detach() + 0 * x


def shifted(x, quantizer):
    return chapter_fake_quantize(x, replace(quantizer, zero_point=quantizer.zero_point + 1))


chapter_fake_quantize = chapter.fake_quantize


@pytest.mark.parametrize(
    "mistake, column, bits",
    [(leaking, "gradient", 4), (stopped, "gradient", 4), (shifted, "value", 4), (leaking, "gradient", 8)],
)
def test_a_mistake_in_fake_quantize_would_show(monkeypatch, mistake, column, bits):
    monkeypatch.setattr(chapter, "fake_quantize", mistake)
    assert (chapter.fake_quantize_differences(bits)[column] > 0.1).all()


@pytest.fixture(scope="module")
def as_integers():
    """The comparison of a small network, which a mistake may be made in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "dense", small)
        yield chapter.integers_against_runtime


def test_integers_are_those_of_the_runtime(as_integers):
    found = as_integers(examples=200)
    assert list(found.layer) == ["0", "2", "4"] and list(found.outputs) == [200 * 24, 200 * 24, 200 * 10]
    assert (found.steps <= 1).all() and (found.equal > 0.99).all()


@pytest.mark.parametrize("forgotten", ["x", "y", "bias"])
def test_what_is_forgotten_among_integers_would_show(as_integers, monkeypatch, forgotten):
    right = chapter.integer_linear

    def mistaken(q_x, q_w, bias, x, w, y):
        if forgotten == "bias":
            return right(q_x, q_w, 0 * bias, x, w, y)
        quantizers = {"x": x, "y": y}
        quantizers[forgotten] = replace(quantizers[forgotten], zero_point=np.int32(0))
        return right(q_x, q_w, bias, quantizers["x"], w, quantizers["y"])

    monkeypatch.setattr(chapter, "integer_linear", mistaken)
    found = as_integers(examples=50)
    assert found.steps.max() > 1 and found.equal.min() < 0.5


# --- what the pictures hold ----------------------------------------------------------------------


def place(value, low, high, size=360):
    return size * (value - low) / (high - low)


def height(value, low, high):
    """Return where a value stands on an axis that goes up."""
    return 280 - place(value, low, high, 280)


def log_height(value, low, high):
    return height(np.log(value), np.log(low), np.log(high))


def large(items, size=160):
    return [item for item in items if item["size"] == size]


def opacity(item):
    return item.get("opacity", 1)


def check_words_and_columns(explorer):
    """Panels wrap on a phone, so no word says where one stands; and no formula replaces its own input."""
    assert not re.search(r"(?i)\b(on|at|to) the left\b|\bleft:|\bright\b", explorer.caption)
    assert explorer.title and explorer.caption.endswith(".")
    columns = set(explorer.runs.columns)
    for panel in explorer.panels:
        for layer in panel.get("layer", [panel]):
            steps = layer.get("transform", [])
            mine = [i for i, step in enumerate(steps) if step.get("flatten") == list(explorer.runs.columns)]
            made = json.dumps([step.get("as") for step in steps[max(mine, default=-1) + 1 :]])
            assert not columns & set(re.findall(r'"(\w+)"', made))


# --- the levels ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made():
    """What the formats leave of a small network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainings, "dense", small)
        return inspect.unwrap(trainings.formats)()


@pytest.fixture(scope="module")
def by_levels(made):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "dense", small)
        patch.setattr(chapter, "formats", lambda: made)
        yield chapter.levels_explorer()


def test_levels_explorer(made, by_levels):
    check_words_and_columns(by_levels)
    assert by_levels.stops == {
        "bits": list(range(2, 9)),
        "scheme": trainings.FORMATS,
        "layer": list(trainings.LAYERS.values()),
    }
    runs = made[0].set_index(["scheme", "bits", "layer"])
    for scheme, bits, layer in itertools.product(*(by_levels.stops[n] for n in ("scheme", "bits", "layer"))):
        (row,) = by_levels.find({"scheme": scheme, "bits": bits, "layer": layer})
        assert row["error"] == runs.error[scheme, bits, layer]
        assert row["accuracy"] == runs.accuracy[scheme, bits, layer]


@pytest.mark.parametrize("scheme", trainings.FORMATS)
@pytest.mark.parametrize("bits, layer", [(2, "first layer"), (3, "output layer"), (5, "second layer")])
def test_the_levels_drawn_are_those_of_the_quantizer(made, by_levels, scheme, bits, layer):
    drawn = marks(by_levels, 0, scheme=scheme, bits=bits, layer=layer)
    name = next(name for name, words in trainings.LAYERS.items() if words == layer)
    w = small().get_submodule(name).weight.detach()
    bins = trainings.histogram(w.numpy())
    bars = sorted(drawn["rect"], key=lambda bar: bar["x"])
    assert len(bars) == len(bins) == 81
    slope, start = np.polyfit([bar["x"] for bar in bars], bins.left, 1)
    tall = max(bar["height"] for bar in bars)
    np.testing.assert_allclose([(bar["height"] / tall) ** 2 for bar in bars], bins.n, atol=1e-3)
    levels = np.sort([start + slope * line["x"] for line in drawn["rule"]])
    if scheme == "codebook":
        expected = trainings.share_weights(w.numpy(), bits)[0]
    else:
        quantizer = trainings.EVEN[scheme](w, bits)
        expected = quantizer.dequantize(torch.arange(quantizer.q_min, quantizer.q_max + 1)).numpy()
    np.testing.assert_allclose(levels, expected, atol=1e-3)
    assert all(-1 < item["x"] < 361 for item in drawn["rule"])  # none beside the picture
    assert len({line["stroke"] for line in drawn["rule"]}) == 1


@pytest.mark.parametrize("scheme", trainings.FORMATS)
def test_error_and_accuracy_of_the_chosen_format_stand_out(made, by_levels, scheme):
    setting = {"bits": 3, "scheme": scheme, "layer": "output layer"}
    runs = made[0].query("layer == 'output layer'")
    chosen = runs.query("scheme == @scheme and bits == 3").iloc[0]
    ends = {"error": (0.01, 2), "accuracy": (0, 0.8)}
    for panel, column, y in ((1, "error", log_height), (2, "accuracy", height)):
        drawn = marks(by_levels, panel, **setting)
        (dot,) = large(drawn["symbol"])
        assert dot["x"] == pytest.approx(place(3, 1.8, 8.2))
        assert dot["y"] == pytest.approx(y(chosen[column], *ends[column]), abs=0.1)
        strong = [point for point in drawn["line"] if opacity(point) == 1]
        assert len(drawn["line"]) == 4 * 7 and {point["stroke"] for point in strong} == {dot["fill"]}
        expected = y(runs[runs.scheme == scheme].sort_values("bits")[column], *ends[column])
        found = [point["y"] for point in sorted(strong, key=lambda point: point["x"])]
        np.testing.assert_allclose(found, expected, atol=0.1)
    (untouched,) = drawn["rule"]
    assert untouched["y"] == pytest.approx(height(trainings.quick_accuracy(small()), 0, 0.8))


# --- clipping ------------------------------------------------------------------------------------

SHARES, TENSORS = [0.25, 0.5, 1.0], {"weights, CNN": (-1.0, 2.0), "inputs, CNN": (0.0, 3.0)}
ERRORS = {"rounding": 1e-4, "clipping": 1e-2, "both": 3e-2}


@pytest.fixture(scope="module")
def by_share():
    """A clipping explorer of numbers that differ in every setting."""
    runs = [
        (tensor, bits, share, *(error * scale for error in clipped.values()), 0.1 * number + share / 2)
        for number, (tensor, bits) in enumerate(itertools.product(TENSORS, (3, 4)))
        for share in SHARES
        for scale in [share * (number + 1)]
        for clipped in [ERRORS | ({"clipping": 0} if share == 1 else {})]
    ]
    found = [
        (tensor, bits, calibration, (number + 1) / (10 - bits))
        for tensor, bits in itertools.product(TENSORS, (3, 4))
        for number, calibration in enumerate(trainings.CALIBRATIONS)
    ]
    columns = ["tensor", "bits", "share", "rounding", "clipping", "both", "accuracy"]
    bins = [trainings.histogram(np.linspace(*ends, 1000)).assign(tensor=t) for t, ends in TENSORS.items()]
    held = (
        pd.DataFrame(runs, columns=columns),
        pd.DataFrame(found, columns=["tensor", "bits", "calibration", "share"]),
        pd.concat(bins, ignore_index=True),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "clippings", lambda: held)
        yield chapter.clipping_explorer()


SETTING = {"share": 0.5, "bits": 4, "tensor": "inputs, CNN"}


def test_clipping_explorer(by_share):
    check_words_and_columns(by_share)
    assert by_share.setting == SETTING
    assert by_share.stops == {"share": SHARES, "bits": [3, 4], "tensor": list(TENSORS)}
    (row,) = by_share.find(SETTING | {"bits": 3})
    expected = {name: error * 1.5 for name, error in ERRORS.items()} | {"accuracy": 0.45}
    assert {name: row[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("tensor, low, high", [("weights, CNN", -2.0, 2.0), ("inputs, CNN", 0.0, 3.0)])
@pytest.mark.parametrize("share", SHARES)
def test_what_is_clipped_is_red(by_share, tensor, low, high, share):
    """A quantizer of weights is symmetric, though the weights are not."""
    bars = sorted(marks(by_share, 0, share=share, tensor=tensor)["rect"], key=lambda bar: bar["x"])
    bins = trainings.histogram(np.linspace(*TENSORS[tensor], 1000))
    kept = (bins.left >= share * low - 1e-6) & (bins.right <= share * high + 1e-6)
    assert ["blue" in bar["fill"] for bar in bars] == list(kept)
    assert ["red" in bar["fill"] for bar in bars] == list(~kept)
    assert share < 1 or kept.all()


@pytest.mark.parametrize("share, number", [(0.5, 3), (1.0, 3), (0.25, 1)])
def test_rounding_clipping_and_accuracy_at_the_chosen_range(by_share, share, number):
    tensor = list(TENSORS)[number // 2]
    setting = {"share": share, "bits": 4, "tensor": tensor}
    drawn = marks(by_share, 1, **setting)
    colours = {"rounding": "blue", "clipping": "red", "both": "currentColor"}
    errors = {name: ERRORS[name] for name in colours if name != "clipping" or share < 1}
    dots = large(drawn["symbol"], 120)
    assert len(dots) == len(errors) and all(dot["x"] == pytest.approx(360 * share) for dot in dots)
    for name, error in errors.items():
        (dot,) = (dot for dot in dots if colours[name] in dot["fill"])
        assert dot["y"] == pytest.approx(log_height(error * share * (number + 1), 1e-6, 1), abs=0.1)
        line = [point["y"] for point in drawn["line"] if colours[name] in point["stroke"]]
        shares = [share for share in SHARES if name != "clipping" or share < 1]
        expected = [log_height(error * share * (number + 1), 1e-6, 1) for share in shares]
        np.testing.assert_allclose(np.sort(line), np.sort(expected), atol=0.1)
    drawn = marks(by_share, 2, **setting)
    (dot,) = drawn["symbol"]
    assert (dot["x"], dot["y"]) == pytest.approx((360 * share, height(0.1 * number + share / 2, 0, 1)))
    assert len(drawn["line"]) == len(SHARES)


@pytest.mark.parametrize("bits", [3, 4])
def test_calibrations_stand_at_their_shares(by_share, bits):
    drawn = marks(by_share, 3, **SETTING | {"bits": bits})
    points = sorted(drawn["symbol"], key=lambda point: point["y"])  # in the order of CALIBRATIONS
    shares = [(number + 1) / (10 - bits) for number in range(5)]
    np.testing.assert_allclose([point["x"] / 360 for point in points], shares, atol=1e-6)
    (rule,) = drawn["rule"]
    assert rule["x"] == pytest.approx(180)


# --- how few bits --------------------------------------------------------------------------------


def made_up(network, scheme, bits, seed, shift=0.0):
    number = [*trainings.SCHEMES, "float"].index(scheme)
    base = 0.3 + 0.02 * bits * (scheme != "float") + 0.03 * number + 0.1 * (network == "cnn25") + shift
    row = {"network": network, "scheme": scheme, "bits": bits, "seed": seed}
    stored = bits + 0.1 * number
    accuracies = {"before": base + seed / 100, "after": base + 0.1 + seed / 50}
    return pd.DataFrame([row | accuracies | {"stored": stored}])


@pytest.fixture
def runs():
    settings = [*itertools.product(trainings.SCHEMES, (2, 3, 8)), ("float", 32)]
    networks = ("mlp512", "cnn25")
    return pd.concat([made_up(n, *s, seed) for n in networks for s in settings for seed in (0, 1, 5)])


def test_means_are_over_the_seeds_alone(runs):
    table = chapter.means(runs.sample(frac=1, random_state=0)).set_index(["network", "scheme", "bits"])
    assert len(table) == 2 * (4 * 3 + 1) and list(table) == ["before", "after", "stored"]
    for (network, scheme, bits), row in table.iterrows():
        like = made_up(network, scheme, bits, seed=2).iloc[0]
        assert (row.before, row.after) == pytest.approx((like.before, like.after), abs=1e-4)
        assert row.stored == pytest.approx(like.stored)


def test_bits_explorer_shows_each_setting(runs):
    explorer = chapter.bits_explorer(runs)
    check_words_and_columns(explorer)
    assert explorer.setting == {"bits": 3, "scheme": "symmetric", "network": "cnn25"}
    assert explorer.stops["bits"] == [2, 3, 8] and explorer.stops["scheme"] == trainings.SCHEMES
    (row,) = explorer.find({"bits": 8, "scheme": "affine", "network": "mlp512"})
    assert row["before"] == pytest.approx(0.3 + 0.16 + 0.03 + 0.02) and row["stored"] == 8.1


def test_bits_explorer_computes_what_no_run_holds(runs, monkeypatch):
    asked = []

    def quantized(network, scheme, bits, seed):
        asked.append(seed)
        return made_up(network, scheme, bits, seed, shift=0.01)

    monkeypatch.setattr(chapter, "quantized", quantized)
    explorer = chapter.bits_explorer(runs)
    setting = {"bits": 6, "scheme": "per group", "network": "mlp512"}
    (row,) = explorer.add(setting)
    assert asked == list(trainings.SEEDS)
    expected = made_up("mlp512", "per group", 6, seed=2, shift=0.01).iloc[0]
    assert (row["before"], row["after"]) == pytest.approx((expected.before, expected.after))
    assert row["stored"] == pytest.approx(expected.stored)
    assert explorer.find(setting) == [row] and 6 in explorer.stops["bits"]


@pytest.mark.parametrize("network, top", [("mlp512", 0.85), ("cnn25", 1)])
def test_bits_explorer_draws_before_and_after(runs, network, top):
    explorer = chapter.bits_explorer(runs)
    setting = {"bits": 3, "scheme": "per channel", "network": network}
    means = chapter.means(runs).query("network == @network")
    chosen = means.query("scheme == 'per channel' and bits == 3").iloc[0]
    control = means.query("scheme == 'float'").iloc[0]
    for panel, when, x in ((0, "before", "bits"), (1, "after", "bits"), (2, "after", "stored")):
        drawn = marks(explorer, panel, **setting)
        (dot,) = large(drawn["symbol"])
        assert dot["x"] == pytest.approx(place(chosen[x], 1.8, 10), abs=0.05)
        assert dot["y"] == pytest.approx(height(chosen[when], 0, top), abs=0.05)
        (rule,) = drawn["rule"]
        assert rule["y"] == pytest.approx(height(control[when], 0, top), abs=0.05)
        strong = [point for point in drawn["line"] if opacity(point) == 1]
        assert len(drawn["line"]) == 4 * 3 and len(strong) == 3
        assert {point["stroke"] for point in strong} == {dot["fill"]}
        held = means.query("scheme == 'per channel'").sort_values("bits")
        line = sorted((point["x"], point["y"]) for point in strong)
        expected = [(place(a, 1.8, 10), height(b, 0, top)) for a, b in zip(held[x], held[when], strict=True)]
        np.testing.assert_allclose(line, expected, atol=0.05)


def test_one_setting_is_trained_on_every_seed(monkeypatch):
    """As the explorer asks: with the slider's numbers, in the real functions, on a few steps."""
    monkeypatch.setattr(trainings, "dense", small)
    monkeypatch.setattr(trainings, "STEPS", 2)
    seen = []
    monkeypatch.setattr(trainings, "fresh_accuracy", lambda model: float(seen.append(model) or len(seen)))
    found = chapter.one_setting(network="mlp512", scheme="per group", bits=6.0)
    assert len(seen) == 2 * len(trainings.SEEDS) == 10
    # 24 columns are one group; the first layer's 40 are two.
    assert found.to_dict("list") == {
        "before": [5.0],
        "after": [6.0],
        "stored": [pytest.approx(6 + 32 * (48 + 24 + 10) / (960 + 576 + 240), abs=1e-4)],
    }
