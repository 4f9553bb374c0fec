"""The trainings and measurements of chapter 3.5 do what they are called, tried on a few steps."""

import copy
import functools
import inspect
import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.pruning_torch import prunable
from dlopt_helpers.bridges.quantization_torch import QuantizedInput
from dlopt_helpers.chapters import pruning_runs
from dlopt_helpers.chapters import quantization_runs as module
from dlopt_helpers.lab import memo
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.training import batches
from dlopt_helpers.quantization import (
    Quantizer,
    affine,
    huffman_lengths,
    kullback_leibler,
    least_squares,
    percentile,
    share_weights,
    symmetric,
)

torch.set_num_threads(1)

MEMOISED = {
    "_small_cnn": (0,),
    "_quantizations": ("mlp512", 0),
    "_ranges": ("mlp512", 0),
    "_activations": ("mlp512", 0),
    "_rescaled": ("mlp512", 0),
    "_in_runtimes": ("mlp512", 0),
    "_compressed": ("mlp512", 0),
    "formats": (),
    "clippings": (),
}


@functools.cache
def few(n=10_000, seed=1):
    """Return fresh examples, but fewer than asked for."""
    return fresh_test.__wrapped__(100, seed)


def layers(model):
    return [layer for layer in model if hasattr(layer, "weight")]


def small(network, seed):
    """Return a network that was never trained, small and with a few large weights."""
    model = mlp(hidden=40, seed=seed) if network == "mlp512" else cnn(channels=14, seed=seed)
    with torch.no_grad():
        for layer in layers(model):
            layer.weight *= 1 + 2 * (layer.weight < 0.95 * layer.weight.min())  # no range is symmetric
    return model


@pytest.fixture
def short(monkeypatch):
    """Few steps, small networks, nothing on disk; what is measured is noted and gets its number / 1000."""
    monkeypatch.delenv("DLOPT_JOBS", raising=False)  # other processes would know nothing of all this
    for name in MEMOISED:
        monkeypatch.setattr(module, name, inspect.unwrap(getattr(module, name)))
    monkeypatch.setattr(module, "dense", small)
    monkeypatch.setattr(module, "STEPS", 5)
    monkeypatch.setattr(module, "fresh_test", few)
    monkeypatch.setattr(pruning_runs, "fresh_test", few)
    monkeypatch.setattr(pruning_runs, "STEPS", 6)
    measured = []

    def noted(model):
        measured.append(copy.deepcopy(model))
        return len(measured) / 1000

    monkeypatch.setattr(module, "fresh_accuracy", noted)
    monkeypatch.setattr(module, "quick_accuracy", noted)
    return measured


def at(measured, accuracy):
    return measured[round(1000 * accuracy) - 1]


def in_double(network, seed):
    return small(network, seed).double()


def logits(model, x):
    with torch.no_grad():
        return model.eval()(torch.from_numpy(x)).numpy()


# --- the same in NumPy -----------------------------------------------------------------------------


def rounded(w, scheme, bits):
    """Return what a scheme leaves of an array; each number stands for no other reason than the formula."""
    if scheme in ("per channel", "per group"):
        row = w[0].size
        size = row if scheme == "per channel" else max(s for s in range(1, 33) if row % s == 0)
        parts = w.reshape(-1, size)
        return np.stack([rounded(part, "symmetric", bits) for part in parts]).reshape(w.shape)
    if scheme == "symmetric":
        step = abs(w).max() / (2 ** (bits - 1) - 1)
        return step * np.rint(w / step)
    low, high = min(w.min(), 0), max(w.max(), 0)
    step = (high - low) / (2**bits - 1)
    zero = -np.rint(low / step)
    return step * (np.clip(np.rint(w / step) + zero, 0, 2**bits - 1) - zero)


def weights(model):
    return {name: w.detach().numpy() for name, w in prunable(model).items()}


def assert_weights(model, expected, atol=1e-9):
    found = weights(model)
    assert list(found) == list(expected)
    for name, w in expected.items():
        np.testing.assert_allclose(found[name], w, atol=atol, err_msg=name)


def trained_alone(model, network, seed, steps, scheme=None, bits=None):
    """Return a copy of ``model`` that PyTorch has trained in a plain loop, rounded or not."""
    model, data = copy.deepcopy(model), mnist1d()
    x, y = torch.from_numpy(data.x_train).to(model[-1].weight.dtype), torch.from_numpy(data.y_train)
    rate = {"mlp512": 0.02, "cnn25": 0.01, "cnn64": 0.01}[network]
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
    schedule = CosineAnnealingLR(optimizer, steps)

    def seen(w):
        if scheme is None or w.ndim == 1:
            return w
        left = torch.from_numpy(rounded(w.detach().numpy(), scheme, bits))
        low, high = (1.5 * left.min(), 1.5 * left.max()) if scheme != "affine" else half_beyond(left, bits)
        passed = torch.where((w >= low) & (w <= high), w, w.detach())
        return left + (passed - passed.detach())

    for batch in batches(len(x), 64, steps, 100 * seed + 1):
        optimizer.zero_grad()
        used = {name: seen(p) for name, p in model.named_parameters()}
        cross_entropy(functional_call(model, used, x[batch]), y[batch]).backward()
        optimizer.step()
        schedule.step()
    return model


def half_beyond(left, bits):
    """Return the outermost levels, and half a step more."""
    levels = left.unique()
    step = levels.diff().min()
    first = levels[levels.abs().argmin()] - step * round(float(-levels.min() / step))
    return first - step / 2, first + step * (2**bits - 1) + step / 2


# --- on disk -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MEMOISED)
def test_results_on_disk_are_those_of_this_file(name, monkeypatch, tmp_path):
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path))
    monkeypatch.setenv("DLOPT_TRAIN", "always")  # past what comes with the package

    class AskedForError(Exception):
        pass

    def noted(*files):
        raise AskedForError(*files)

    monkeypatch.setattr(memo, "source_digest", noted)
    with pytest.raises(AskedForError) as asked:
        getattr(module, name)(*MEMOISED[name])
    assert asked.value.args == (module.__file__,)


# --- networks ------------------------------------------------------------------------------------


def test_networks_are_those_of_the_chapter_on_pruning_and_a_small_one(monkeypatch):
    monkeypatch.setattr(module, "_small_cnn", inspect.unwrap(module._small_cnn))
    monkeypatch.setattr(pruning_runs, "fresh_test", few)
    monkeypatch.setattr(pruning_runs, "STEPS", 3)
    monkeypatch.setattr(pruning_runs, "dense", lambda network, seed: (network, seed))
    assert module.dense("mlp512", 3) == ("mlp512", 3) and module.dense("cnn64", 4) == ("cnn64", 4)
    found, expected = module.dense("cnn25", 2), cnn(channels=25, seed=2)
    assert not torch.equal(found[1].weight, expected[1].weight)
    pruning_runs.trained_on(expected, "cnn64", 2)
    for name, w in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], w), name


# --- schemes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp512", "cnn25"])
@pytest.mark.parametrize("scheme", module.SCHEMES)
@pytest.mark.parametrize("bits", [2, 3, 8])
def test_a_scheme_is_what_it_is_called(network, scheme, bits):
    for name, w in prunable(in_double(network, 1)).items():
        before = w.clone()
        left = module.rule(scheme, bits)(w)
        np.testing.assert_allclose(left, rounded(w.numpy(), scheme, bits), atol=1e-12, err_msg=name)
        assert torch.equal(w, before)


def test_schemes_leave_different_things_of_a_weight():
    w = in_double("cnn25", 1)[3].weight.detach()
    left = [module.rule(scheme, 3)(w) for scheme in module.SCHEMES]
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(left, 2))
    assert module.SCHEMES == ["symmetric", "affine", "per channel", "per group"]


@pytest.mark.parametrize("scheme", ["symmetric", "per channel"])
def test_a_scheme_over_another_range(scheme):
    w = in_double("cnn25", 1)[3].weight.detach()
    left = module.rule(scheme, 3, functools.partial(least_squares, bits=3))(w)
    for part, found in zip(*((w, left) if scheme == "per channel" else ([w], [left])), strict=True):
        np.testing.assert_allclose(found, squeezed(part.numpy(), 3), atol=1e-12)


def squeezed(w, bits):
    """Return what symmetric levels leave of an array, over the one of 80 ranges that errs least."""
    q_max = 2 ** (bits - 1) - 1
    steps = abs(w).max() / q_max * np.arange(80, 0, -1) / 80
    left = [step * np.clip(np.rint(w / step), -q_max, q_max) for step in steps]
    return min(left, key=lambda found: ((found - w) ** 2).sum())


@pytest.mark.parametrize(
    "shape, size",
    [((10, 25, 3), 25), ((512, 512), 32), ((2, 40), 20), ((5, 37), 1), ((4, 1, 5), 5), ((2, 33), 11)],
)
def test_groups_are_as_large_as_32_neighbours_that_divide_a_row(shape, size):
    assert module.group_size(torch.ones(shape)) == size


@pytest.mark.parametrize(
    "network, scheme, scales",
    [
        ("mlp512", "symmetric", 3),
        ("mlp512", "affine", 3),
        ("mlp512", "per channel", 40 + 40 + 10),
        ("mlp512", "per group", 2 * (40 + 40 + 10)),  # groups of 20
        ("cnn25", "symmetric", 4),
        ("cnn25", "per channel", 3 * 14 + 10),
        ("cnn25", "per group", 14 + 2 * 14 * 2 + 10 * 5),  # of 5, 21, 21 and 14
    ],
)
def test_bits_for_a_weight_have_their_share_of_the_scales(network, scheme, scales):
    n = {"mlp512": 40 * 40 + 40 * 40 + 400, "cnn25": 70 + 2 * 14 * 42 + 700}[network]
    expected = 3 + 32 * scales / n
    assert module.bits_per_weight(small(network, 0), scheme, 3) == pytest.approx(expected)


# --- before and after training -------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp512", "cnn25"])
@pytest.mark.parametrize("scheme, bits", [*zip(module.SCHEMES, [3, 2, 2, 3], strict=True)])
def test_quantized_before_and_after_training(short, monkeypatch, network, scheme, bits):
    monkeypatch.setattr(module, "dense", in_double)
    row = module.quantized(network, scheme, bits, seed=2).iloc[0]
    setting = {"network": network, "scheme": scheme, "bits": bits, "seed": 2}
    assert dict(row[list(setting)]) == setting
    assert row.stored == module.bits_per_weight(small(network, 2), scheme, bits)
    before, after = at(short, row.before), at(short, row.after)
    first = in_double(network, 2)
    assert_weights(before, {name: rounded(w, scheme, bits) for name, w in weights(first).items()})
    assert torch.equal(before[-1].bias, first[-1].bias)
    trained = trained_alone(first, network, 2, 5, scheme, bits)
    assert_weights(after, {name: rounded(w, scheme, bits) for name, w in weights(trained).items()})
    torch.testing.assert_close(after[-1].bias, trained[-1].bias)
    assert list(after.state_dict()) == list(first.state_dict())  # nothing is rounded once more


def test_the_control_is_trained_on_without_rounding(short, monkeypatch):
    monkeypatch.setattr(module, "dense", in_double)
    monkeypatch.setattr(module, "SCHEMES", ["affine"])
    monkeypatch.setattr(module, "BITS", [2])
    runs = module._quantizations("cnn25", 1)
    assert list(runs.scheme) == ["float", "affine"] and list(runs.bits) == [32, 2]
    control, first = runs.iloc[0], in_double("cnn25", 1)
    assert (control.network, control.seed, control.stored) == ("cnn25", 1, 32)
    assert_weights(at(short, control.before), weights(first))
    assert_weights(at(short, control.after), weights(trained_alone(first, "cnn25", 1, 5)))


def test_quantizations_have_a_row_for_each_setting(short, monkeypatch):
    monkeypatch.setattr(module, "STEPS", 1)
    monkeypatch.setattr(
        module,
        "quantized",
        lambda network, scheme, bits, seed: pd.DataFrame(
            {"network": [network], "scheme": scheme, "bits": bits, "seed": seed, "before": 0.1, "after": 0.2,
             "stored": 3.0}
        ),
    )  # fmt: skip
    runs = module.quantizations(["mlp512", "cnn64"], [0, 3])
    by = ["network", "scheme", "bits", "seed"]
    settings = [("float", 32), *itertools.product(module.SCHEMES, module.BITS)]
    expected = {(n, *s, seed) for n in ("mlp512", "cnn64") for s in settings for seed in (0, 3)}
    assert set(runs[by].itertuples(index=False, name=None)) == expected and len(runs) == len(expected)
    assert list(runs) == ["network", "scheme", "bits", "seed", "stored", "before", "after"]
    assert not runs.isna().any().any()


# --- ranges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp512", "cnn25"])
def test_ranges(short, network):
    runs, model, (x, _) = module._ranges(network, 1), small(network, 1), few()
    by = ["scheme", "bits", "range"]
    settings = set(itertools.product(["symmetric", "per channel"], [3, 4], ["min-max", "least squares"]))
    assert set(runs[by].itertuples(index=False, name=None)) == settings and len(runs) == 8
    assert set(runs.network) == {network} and set(runs.seed) == {1}
    z, first = logits(model, x), weights(model)
    for row in runs.rename(columns=lambda name: name.replace(" ", "_")).itertuples():
        left = at(short, row.accuracy)
        narrow = squeezed if row.range == "least squares" else functools.partial(rounded, scheme="symmetric")
        each = (lambda w: [w]) if row.scheme == "symmetric" else (lambda w: w)
        found = {n: np.stack([narrow(part, bits=row.bits) for part in each(w)]) for n, w in first.items()}
        assert_weights(left, {n: w.reshape(first[n].shape) for n, w in found.items()}, atol=1e-6)
        squares = sum(((w - first[name]) ** 2).sum() for name, w in weights(left).items())
        z_hat = logits(left, x)
        assert row.weight_error == pytest.approx(squares, rel=1e-4)
        assert row.output_error == pytest.approx(((z_hat - z) ** 2).mean(), rel=1e-4)
        assert row.output_size == pytest.approx(z_hat.std() / z.std(), rel=1e-3)
        corrected = at(short, row.corrected)
        assert_weights(corrected, weights(left))
        wrong = abs(means(corrected, mnist1d().x_train) - means(model, mnist1d().x_train))
        assert (
            wrong.max() < 1e-5 < abs(means(left, mnist1d().x_train) - means(model, mnist1d().x_train)).max()
        )
    sizes = runs.groupby("range")["weight error"].mean()
    assert sizes["least squares"] < sizes["min-max"]


def means(model, x):
    return logits(model, x).mean(0)


# --- activations ---------------------------------------------------------------------------------


def inputs_of(model, x):
    """Return what comes into each layer with weights."""
    found, x = {}, torch.from_numpy(x)
    for name, layer in model.named_children():
        if hasattr(layer, "weight"):
            found[name] = x.detach()
        x = layer(x)
    return found


FOUND = {
    "min-max": lambda x, bits: (x.min(), x.max()),
    "99.9 %": lambda x, bits: percentile(x, 0.999),
    "99 %": lambda x, bits: percentile(x, 0.99),
    "least squares": lambda x, bits: least_squares(x, bits, affine),
    "KL": lambda x, bits: kullback_leibler(x, bits),
}


def hooks(model):
    """Return the quantizers of what comes into layers."""
    held = {name: layer._forward_pre_hooks.values() for name, layer in model.named_children()}
    assert all(type(hook) is QuantizedInput for each in held.values() for hook in each)
    return {name: hook.quantizer for name, each in held.items() for hook in each}


@pytest.mark.parametrize(
    "network, calibration", [*itertools.product(["mlp512", "cnn25"], list(FOUND)[:-1]), ("mlp512", "KL")]
)
def test_inputs_are_rounded_over_ranges_of_training_examples(network, calibration):
    model = small(network, 1)
    found = module.with_rounded_inputs(model, calibration, bits=4)
    assert_weights(found, weights(model), atol=0)
    assert not hooks(model)
    came = inputs_of(model, mnist1d().x_train[:500])
    assert list(hooks(found)) == list(came) == list(weights(model))
    for name, quantizer in hooks(found).items():
        low, high = map(float, FOUND[calibration](came[name], 4))
        expected = affine(low, high, 4)
        assert float(quantizer.scale) == pytest.approx(float(expected.scale), rel=1e-5), name
        assert (quantizer.zero_point, quantizer.q_min, quantizer.q_max) == (expected.zero_point, -8, 7), name
    assert list(module.CALIBRATIONS) == list(FOUND)


def test_activations_have_a_row_for_each_calibration(short, monkeypatch):
    ways = {name: module.CALIBRATIONS[name] for name in ("min-max", "99 %")}
    monkeypatch.setattr(module, "CALIBRATIONS", ways)
    runs = module.activations(["cnn25"], [2])
    settings = [("float", 32), *itertools.product(ways, [3, 4, 6, 8])]
    assert list(runs[["calibration", "bits"]].itertuples(index=False, name=None)) == settings
    assert set(runs.network) == {"cnn25"} and set(runs.seed) == {2}
    for row in runs.itertuples():
        model = at(short, row.accuracy)
        assert_weights(model, weights(small("cnn25", 2)), atol=0)
        expected = (
            {}
            if row.bits == 32
            else hooks(module.with_rounded_inputs(small("cnn25", 2), row.calibration, row.bits))
        )
        assert {n: (q.q_max, float(q.scale)) for n, q in hooks(model).items()} == {
            n: (2 ** (row.bits - 1) - 1, float(q.scale)) for n, q in expected.items()
        }


# --- a channel out of scale ----------------------------------------------------------------------


@pytest.mark.parametrize("network", ["mlp512", "cnn25"])
def test_a_rescaled_network_computes_what_it_did(network):
    model, x = small(network, 1), few()[0]
    other = module.rescale_channel(small(network, 1))
    np.testing.assert_allclose(logits(other, x), logits(model, x), atol=1e-5)
    (first, w), (second, v), *rest = weights(model).items()
    found = weights(other)
    unit = np.unravel_index(abs(w).argmax(), w.shape)[0]
    factors = np.where(np.arange(len(w)) == unit, 100, 1)
    np.testing.assert_allclose(found[first], w * factors.reshape(-1, *[1] * (w.ndim - 1)), rtol=1e-6)
    np.testing.assert_allclose(found[second], v / factors.reshape(1, -1, *[1] * (v.ndim - 2)), rtol=1e-6)
    bias = model.get_submodule(first).bias.detach().numpy()
    np.testing.assert_allclose(other.get_submodule(first).bias.detach(), bias * factors, rtol=1e-6)
    assert all(np.array_equal(found[name], w) for name, w in rest)


@pytest.mark.parametrize("network", ["mlp512", "cnn25"])
def test_rescaled_compares_three_networks_in_three_ways(short, monkeypatch, network):
    exported = []

    def load(file):
        right = np.arange(len(few()[1])) < 10 * exported.index(file) + 10
        return lambda x: np.eye(10)[(few()[1] + ~right) % 10]

    def export(model):
        exported.append(copy.deepcopy(model))
        return exported[-1]

    def quantize_static(file, x):
        assert x is mnist1d().x_train or np.array_equal(x, mnist1d().x_train)
        return file

    fake = SimpleNamespace(export=export, quantize_static=quantize_static, load=load)
    monkeypatch.setattr(module, "onnxrt", fake)
    row = module._rescaled(network, 1).iloc[0]
    trained = small(network, 1)
    rescaled = module.rescale_channel(small(network, 1))
    of_float, x = at(short, row["float"]), few()[0]
    assert_weights(of_float, weights(rescaled), atol=0)
    ways = {"as trained": weights(trained), "rescaled": weights(rescaled), "equalised": None}
    assert len(row) == 2 + 1 + 3 * 3 and len(exported) == 3
    for (name, expected), model in zip(ways.items(), exported, strict=True):
        if expected is not None:
            assert_weights(model, expected, atol=0)
        else:
            np.testing.assert_allclose(logits(model, x), logits(trained, x), atol=1e-4)
            first, second, *_ = weights(model).values()
            outputs, inputs = (abs(w).reshape(len(w), -1).max(1) for w in (first, second.swapaxes(0, 1)))
            np.testing.assert_allclose(outputs, inputs, rtol=2e-3)
        assert row[f"{name}, runtime"] == (exported.index(model) + 1) / 10
        for way, scheme in (("tensor", "symmetric"), ("channel", "per channel")):
            left = {n: rounded(w, scheme, 8) for n, w in weights(model).items()}
            assert_weights(at(short, row[f"{name}, per {way}"]), left, atol=1e-5)


# --- in a runtime --------------------------------------------------------------------------------


def test_files_run_and_answer_as_the_network(short, monkeypatch):
    calibrated = []
    for runtime in (module.onnxrt, module.litert):

        def noted(model, x, quantize=runtime.quantize_static):
            calibrated.append(x)
            return quantize(model, x)

        monkeypatch.setattr(runtime, "quantize_static", noted)
    model, (x, _) = small("mlp512", 1), few()
    made, z = module.files("mlp512", 1), logits(model, x)
    variants = ["float", "int8 static", "int8 dynamic"]
    assert list(made) == [(r, v) for r in ("ONNX Runtime", "LiteRT") for v in variants]
    assert len({bytes(file) for file in made.values()}) == 6
    assert len(calibrated) == 2 and all(np.array_equal(x, mnist1d().x_train) for x in calibrated)
    for (runtime, variant), file in made.items():
        found = module.RUNTIMES[runtime].load(file)(x)
        error = (found - z).std() / z.std()
        assert error < 1e-5 if variant == "float" else error < 0.1, (runtime, variant)
        if variant == "int8 static":
            assert error > 1e-4 and len(file) < len(made[runtime, "float"])


def test_answers_are_compared_with_labels_and_with_the_same_runtime_s_float(short, monkeypatch):
    _, y = few()
    places = np.arange(len(y))

    def answer(right, wrong_by=1):
        return (y + wrong_by * (places >= right)) % 10

    answers = {
        ("A", "float"): (90, answer(90)),
        ("A", "int8"): (30, answer(70)),
        ("B", "float"): (80, answer(50, wrong_by=2)),
        ("B", "int8"): (20, answer(40, wrong_by=2)),
    }
    files = {key: bytes([i]) * n for i, (key, (n, _)) in enumerate(answers.items())}
    monkeypatch.setattr(module, "files", lambda network, seed: files)

    def load(of):
        def run(file):
            (key,) = (key for key, held in files.items() if held == file)
            assert key[0] == of
            return lambda x: np.eye(10)[answers[key][1]]

        return run

    monkeypatch.setattr(module, "RUNTIMES", {of: SimpleNamespace(load=load(of)) for of in "AB"})
    runs = module.in_runtimes(["mlp512"], [3])
    assert runs.to_dict("list") == {
        "runtime": ["A", "A", "B", "B"],
        "variant": ["float", "int8"] * 2,
        "bytes": [90, 30, 80, 20],
        "accuracy": [0.9, 0.7, 0.5, 0.4],
        "as float": [1.0, 0.8, 1.0, 0.9],
        "network": ["mlp512"] * 4,
        "seed": [3] * 4,
    }


# --- deep compression ----------------------------------------------------------------------------

LONGEST = 32


def words(counts):
    """Return the canonical code words of the symbols: all that a decoder needs are their lengths."""
    lengths, code, last, found = huffman_lengths(counts), 0, 0, {}
    for length, symbol in sorted((n, s) for s, n in enumerate(lengths.tolist()) if n):
        code <<= length - last
        found[format(code, f"0{length}b")] = symbol
        code, last = code + 1, length
    assert code <= 2**last
    return found


def pairs(w):
    """Return a code and a gap for each weight that is left, with fillers between, and the codebook."""
    flat = w.ravel()
    values = np.unique(flat[flat != 0])
    found, gap = [], 0
    for number in flat:
        if number == 0 and gap < LONGEST - 1:
            gap += 1
            continue
        # A place that is too far away is stored although it holds nothing.
        found.append((len(values) if number == 0 else int(np.searchsorted(values, number)), gap))
        gap = 0
    while found and found[-1][0] == len(values):  # nothing follows
        found.pop()
    return found, values


def encode(w):
    """Return the bits, the codebook, and how often each code and each gap occurs."""
    found, values = pairs(w)
    counts = [np.bincount(column, minlength=n) for column, n in zip(
        np.array(found).T, (len(values) + 1, LONGEST), strict=True)]  # fmt: skip
    code_words, gap_words = ({symbol: word for word, symbol in words(c).items()} for c in counts)
    return "".join(code_words[code] + gap_words[gap] for code, gap in found), values, counts


def decode(bits, values, counts, shape):
    """Return the weights, from nothing but what is stored."""
    flat, place, word, code = np.zeros(np.prod(shape)), -1, "", None
    code_words, gap_words = map(words, counts)
    for bit in bits:
        word += bit
        if code is None and word in code_words:
            code, word = code_words[word], ""
        elif code is not None and word in gap_words:
            place += gap_words[word] + 1
            flat[place] = values[code] if code < len(values) else 0
            code, word = None, ""
    assert word == "" and code is None
    return flat.reshape(shape)


def sparse(shape, places, seed=0, n=16):
    w = np.zeros(np.prod(shape))
    w[list(places)] = np.random.default_rng(seed).choice(np.linspace(-1, 1, n), len(places))
    return w.reshape(shape)


@pytest.mark.parametrize(
    "w",
    [
        sparse((40, 50), np.random.default_rng(0).permutation(2000)[:200]),
        sparse((40, 50), np.random.default_rng(0).permutation(2000)[:20]),  # most gaps are long
        sparse((500,), [0, 31 + 1, 64 + 1, 98 + 1]),  # 31, 32 and 33 zeros between
        sparse((500,), [31, 95, 96, 192, 292]),  # 31 in front; 63, 0, 95 and 99 zeros between
        sparse((500,), [32, 96 + 1, 200]),
        sparse((500,), [300]),  # one number, one place
        sparse((4, 5), range(20)),  # nothing pruned
    ],
)
def test_coded_bytes_are_enough_to_get_the_weights_back(w):
    bits, values, counts = encode(w)
    np.testing.assert_array_equal(decode(bits, values, counts, w.shape), w)
    tables = 4 * len(values) + (len(values) + 1) + LONGEST  # floats; a byte for each word's length
    assert module.coded_bytes(w) == pytest.approx(len(bits) / 8 + tables)
    assert module.coded_bytes(w.astype("float32")) == module.coded_bytes(w)


def test_shorter_gaps_need_more_fillers():
    w = sparse((40, 50), np.random.default_rng(0).permutation(2000)[:100])
    assert module.coded_bytes(w, gap_bits=2) > module.coded_bytes(w)


def test_what_was_pruned_stays_pruned_when_weights_are_shared():
    w = torch.from_numpy(sparse((40, 50), np.random.default_rng(0).permutation(2000)[:300], n=200))
    before, left = w.clone(), module._shared(w, 4)
    assert torch.equal(w, before) and torch.equal(left != 0, w != 0)
    codebook, codes = share_weights(w[w != 0].numpy(), 4)
    np.testing.assert_array_equal(left[w != 0], codebook[codes])


@pytest.mark.parametrize("network", ["mlp512", "cnn64"])
def test_compressed_stage_by_stage(short, monkeypatch, network):
    monkeypatch.setattr(module, "dense", even)
    runs = module._compressed(network, 1, share=0.9).set_index("stage")
    assert list(runs.index) == ["dense", "pruned", "shared", "coded"]
    dense, pruned, shared = (at(short, runs.accuracy[stage]) for stage in ("dense", "pruned", "shared"))
    assert runs.accuracy["coded"] == runs.accuracy["shared"]
    first = even(network, 1)
    assert_weights(dense, weights(first), atol=0)
    assert list(pruned.state_dict()) == list(shared.state_dict()) == list(first.state_dict())
    threshold = np.quantile(np.concatenate([abs(w).ravel() for w in weights(first).values()]), 0.9)
    for name, w in weights(first).items():
        left, coded = weights(pruned)[name], weights(shared)[name]
        assert np.array_equal(left != 0, abs(w) > threshold), name
        assert (left != w)[left != 0].any(), name  # trained on
        assert np.array_equal(coded != 0, left != 0) and len(np.unique(coded[coded != 0])) <= 16, name
        assert abs(coded - left).max() < 0.1 * abs(left).max(), name
    assert all(torch.equal(a, b) for a, b in zip(biases(shared), biases(pruned), strict=True))
    assert not torch.equal(biases(pruned)[0], biases(first)[0])
    start, rest = (4 * sum(p.numel() for p in held) for held in (first.parameters(), biases(first)))
    entries = sum(len(pairs(w)[0]) for w in weights(pruned).values())
    coded = weights(shared).values()
    expected = {
        "dense": start,
        "pruned": entries * (32 + 5) / 8 + rest,
        "shared": entries * (4 + 5) / 8 + len(coded) * 16 * 4 + rest,
        "coded": sum(module.coded_bytes(w) for w in coded) + rest,
    }
    assert dict(runs.bytes) == pytest.approx(expected)
    assert dict(runs.smaller) == pytest.approx({stage: start / n for stage, n in expected.items()})
    assert set(runs.network) == {network} and set(runs.seed) == {1}


def even(network, seed):
    """Return a small network that one threshold empties no layer of."""
    model = small(network, seed)
    with torch.no_grad():
        for layer in layers(model):
            layer.weight /= 5 * layer.weight.std()
    return model


def biases(model):
    return [p for p in model.parameters() if p.ndim == 1]


# --- one network seen closely --------------------------------------------------------------------


def test_formats(short):
    runs, books = module.formats()
    first = weights(small("mlp512", 0))
    settings = itertools.product(module.FORMATS, range(2, 9), module.LAYERS.values())
    assert list(runs[["scheme", "bits", "layer"]].itertuples(index=False, name=None)) == list(settings)
    for (scheme, bits), rows in runs.groupby(["scheme", "bits"]):
        assert rows.accuracy.nunique() == 1
        model, stand = at(short, rows.accuracy.iloc[0]), {}
        for name, layer in module.LAYERS.items():
            (row,), w = rows[rows.layer == layer].itertuples(), first[name]
            book = books[(books.scheme == scheme) & (books.bits == bits) & (books.layer == layer)].level
            levels = row.scale * (np.arange(row.q_min, row.q_max + 1) - row.zero_point)
            assert len(book) == 0 or len(levels) == 0
            levels = np.sort(np.concatenate([levels, book]))
            assert len(levels) == (2**bits if scheme in ("affine", "codebook") else 2**bits - 1)
            stand[name] = levels[abs(w[..., None] - levels).argmin(-1)]
            error = np.sqrt(((stand[name] - w) ** 2).mean()) / w.std()
            assert row.error == pytest.approx(error, rel=2e-3), (scheme, bits, layer)
        assert_weights(model, stand, atol=1e-5)
    errors = runs.pivot(index=["layer", "bits"], columns="scheme", values="error")
    assert (errors["least squares"] <= errors["symmetric"]).all()
    assert (errors["codebook"] < errors["least squares"]).all()
    ends = (runs.scale * (runs.q_max - runs.zero_point))[runs.scheme == "symmetric"]
    np.testing.assert_allclose(ends, np.tile([abs(w).max() for w in first.values()], 7), rtol=1e-5)


def test_a_histogram_counts_every_number():
    x = np.random.default_rng(0).normal(size=(30, 40))
    bins = module.histogram(x)
    assert len(bins) == 81 and bins.n.max() == 1
    counts = [((x >= a) & (x < b)).sum() for a, b in itertools.pairwise(np.linspace(x.min(), x.max(), 82))]
    counts[-1] += 1
    assert sum(counts) == x.size
    np.testing.assert_allclose(bins.n * max(counts), counts, atol=1e-4 * max(counts))
    np.testing.assert_allclose(bins.left, np.linspace(x.min(), x.max(), 82)[:-1], atol=1e-4)
    assert np.array_equal(bins.left[1:], bins.right[:-1])


@pytest.mark.parametrize("scheme", [symmetric, affine])
@pytest.mark.parametrize("low, high", [(-1.0, 3.0), (0.0, 3.0), (-3.0, 0.5)])
@pytest.mark.parametrize("share, bits", [(1, 3), (0.6, 2), (0.3, 4)])
def test_rounding_and_clipping_are_the_whole_error(scheme, low, high, share, bits):
    x = torch.from_numpy(np.random.default_rng(0).uniform(low, high, 5_000))
    x[:2] = torch.tensor([low, high])
    quantizer = scheme(share * low, share * high, bits)
    rounding, clipping, both = module._errors(x, quantizer)
    end = share * max(-low, high)
    ends = (-end, end) if scheme is symmetric else (share * min(low, 0), share * max(high, 0))
    n = 2**bits - (2 if scheme is symmetric else 1)
    step = (ends[1] - ends[0]) / n
    first = np.rint(ends[0] / step)
    places = np.rint(x.numpy() / step) - first
    squares = (step * (np.clip(places, 0, n) + first) - x.numpy()) ** 2
    beyond = (places < 0) | (places > n)
    size = x.size(0) * x.numpy().var(ddof=1)
    assert rounding == pytest.approx(squares[~beyond].sum() / size, rel=1e-6)
    assert clipping == pytest.approx(squares[beyond].sum() / size, rel=1e-6, abs=1e-12)
    assert both == pytest.approx(squares.sum() / size, rel=1e-6)
    assert (clipping > 0) == (share < 1)


@pytest.fixture
def tensors():
    """What the clippings are of: the second layers' weights and what comes into them, by their words."""
    found = {}
    for network, words in (("mlp512", "MLP"), ("cnn64", "CNN")):
        model = small(network, 0)
        name = list(prunable(model))[1]
        came = inputs_of(model, mnist1d().x_train[:500])[name]
        found |= {f"weights, {words}": (network, name, prunable(model)[name])}
        found |= {f"inputs, {words}": (network, name, came)}
    return found


def test_clippings(short, monkeypatch, tensors):
    monkeypatch.setattr(module, "SHARES", np.array([0.2, 0.5, 1.0]))
    ways = {name: module.CALIBRATIONS[name] for name in ("min-max", "99 %", "least squares")}
    monkeypatch.setattr(module, "CALIBRATIONS", ways)
    runs, found, bins = module.clippings()
    assert len(runs) == 4 * 6 * 3 and set(runs.tensor) == set(tensors)
    for row in runs.itertuples():
        network, name, x = tensors[row.tensor]
        scheme = "symmetric" if row.tensor.startswith("weights") else "affine"
        quantizer = of_range(x, scheme, row.share, row.bits)
        left = quantizer.dequantize(quantizer.quantize(x.numpy().astype(float)))
        assert row.both == pytest.approx(((left - x.numpy()) ** 2).mean() / x.numpy().var(ddof=1), rel=1e-3)
        assert row.rounding + row.clipping == pytest.approx(row.both)
        assert (row.clipping > 0) == (row.share < 0.99)
        model, first = at(short, row.accuracy), weights(small(network, 0))
        if scheme == "symmetric":
            assert_weights(model, first | {name: left}, atol=1e-5)
            assert not hooks(model)
        else:
            assert_weights(model, first, atol=0)
            assert list(hooks(model)) == [name]
            assert float(hooks(model)[name].scale) == pytest.approx(quantizer.scale, rel=1e-5)
    assert set(found.query("calibration == 'min-max'").share) == {1}
    settings = [(t, b, c) for t in tensors for b in (2, 3, 4, 5, 6, 8) for c in ways]
    assert list(found[["tensor", "bits", "calibration"]].itertuples(index=False, name=None)) == settings
    for tensor, (_, _, x) in tensors.items():
        held = bins[bins.tensor == tensor]
        np.testing.assert_allclose([held.left.min(), held.right.max()], [x.min(), x.max()], atol=1e-4)
        assert len(held) == 81


def of_range(x, scheme, share, bits):
    """Return the quantizer of a share of the range, computed here."""
    low, high = share * min(float(x.min()), 0), share * max(float(x.max()), 0)
    if scheme == "symmetric":
        q_max = 2 ** (bits - 1) - 1
        return Quantizer(max(-low, high) / q_max, 0, -q_max, q_max)
    step = (high - low) / (2**bits - 1)
    return Quantizer(step, -np.rint(low / step), 0, 2**bits - 1)


def test_calibrations_stand_where_they_belong(short, monkeypatch, tensors):
    """Least squares stands at the lowest point of the curve that the picture draws."""
    monkeypatch.setattr(module, "SHARES", np.linspace(1 / 80, 1, 80))
    monkeypatch.setattr(
        module, "CALIBRATIONS", {n: module.CALIBRATIONS[n] for n in ("99 %", "least squares")}
    )
    monkeypatch.setattr(module, "_with_one", lambda *given: 0.5)
    runs, found, _ = module.clippings()
    for (tensor, bits), rows in runs.groupby(["tensor", "bits"]):
        shares = found[(found.tensor == tensor) & (found.bits == bits)].set_index("calibration").share
        error = rows.set_index(rows.share.round(6)).both
        assert error[round(shares["least squares"], 6)] <= error.min() * (1 + 1e-4), (tensor, bits)
        x = tensors[tensor][2]
        low, high = map(float, percentile(x, 0.99))
        assert shares["99 %"] == pytest.approx(max(-low, high) / float(abs(x).max()))
