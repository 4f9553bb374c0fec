"""The trainings and measurements of chapter 3.5: networks with few bits, before and after training with them.

The MLP and the larger CNN are the trained networks of chapter 3.3; a smaller CNN joins them. Whatever is
trained on sees 300 more steps at a tenth of the first learning rate, the float network too. Accuracies are
those on 10,000 fresh examples.
"""

import functools
import itertools

import joblib
import numpy as np
import pandas as pd
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges import pruning_torch
from dlopt_helpers.bridges.pruning_torch import prunable, prune
from dlopt_helpers.bridges.quantization_torch import (
    correct_biases,
    equalise,
    layer_inputs,
    make_permanent,
    quantize_in_training,
    quantize_inputs,
    quantize_weights,
)
from dlopt_helpers.chapters import pruning_runs
from dlopt_helpers.chapters.pruning_runs import fresh_accuracy, magnitude_masks
from dlopt_helpers.lab import litert, onnxrt
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.memo import memoise
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.training import one_thread, train
from dlopt_helpers.lab.twins import keras_twin
from dlopt_helpers.quantization import (
    affine,
    fake_quantize,
    huffman_lengths,
    in_groups,
    kullback_leibler,
    least_squares,
    min_max,
    percentile,
    share_weights,
    symmetric,
)

NETWORKS = ["mlp512", "cnn25", "cnn64"]
RATES = {"mlp512": 0.02, "cnn25": 0.01, "cnn64": 0.01}
STEPS = 300
SEEDS = range(5)
BITS = [2, 3, 4, 5, 8]
SCHEMES = ["symmetric", "affine", "per channel", "per group"]
CALIBRATIONS = {
    "min-max": lambda x, bits, scheme: min_max(x),
    "99.9 %": lambda x, bits, scheme: percentile(x, 0.999),
    "99 %": lambda x, bits, scheme: percentile(x, 0.99),
    "least squares": least_squares,
    "KL": lambda x, bits, scheme: kullback_leibler(x, bits),
}


def dense(network, seed):
    """Return a trained network."""
    if network != "cnn25":
        return pruning_runs.dense(network, seed)
    model = pruning_runs.untrained("cnn64", seed, width=25)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in _small_cnn(seed).items()})
    return model


@memoise
def _small_cnn(seed):
    model = pruning_runs.untrained("cnn64", seed, width=25)
    pruning_runs.trained_on(model, "cnn64", seed)
    return {name: w.numpy() for name, w in model.state_dict().items()}


def train_on(model, network, seed):
    """Train ``model`` in place for ``STEPS`` steps, at a rate that no longer throws it far, and return it."""
    optimizer = torch.optim.SGD(model.parameters(), RATES[network], momentum=0.9, fused=True)
    schedule = CosineAnnealingLR(optimizer, STEPS)
    train(model, optimizer, mnist1d(), STEPS, seed=100 * seed + 1, schedule=schedule, every=STEPS)
    return model


def _table(function, networks, seeds):
    jobs = [joblib.delayed(function)(network, seed) for network in networks for seed in seeds]
    return pd.concat(spread(jobs, "networks"), ignore_index=True)


# --- weights -------------------------------------------------------------------------------------


def group_size(w):
    """Return the largest number of neighbours, at most 32, that an output's weights divide into."""
    row = w[0].numel()
    return max(size for size in range(1, 33) if row % size == 0)


def rule(scheme, bits, ranges=min_max):
    """Return what a scheme leaves of a weight, as a function of the weight."""
    if scheme == "per group":
        return functools.partial(_grouped, bits=bits)
    quantizer, axis = (affine if scheme == "affine" else symmetric), (0 if scheme == "per channel" else None)
    return lambda w: fake_quantize(w, quantizer(*ranges(w.detach(), axis=axis), bits))


def _grouped(w, bits):
    groups = in_groups(w, group_size(w))
    return fake_quantize(groups, symmetric(*min_max(groups.detach(), axis=(0, 1)), bits)).reshape(w.shape)


def bits_per_weight(model, scheme, bits):
    """Return the bits of the weights' integers and of their scales, 32 for each, over the weights."""
    weights = prunable(model).values()
    scales = {"per channel": len, "per group": lambda w: w.numel() // group_size(w)}
    extra = sum(32 * scales.get(scheme, lambda w: 1)(w) for w in weights)
    return bits + extra / sum(w.numel() for w in weights)


def quantized(network, scheme, bits, seed):
    """Quantize the weights of one network, train with them, and return the accuracies as a row."""
    model = dense(network, seed)
    before = fresh_accuracy(quantize_weights(model, rule(scheme, bits)))
    trained = train_on(quantize_in_training(dense(network, seed), rule(scheme, bits)), network, seed)
    return pd.DataFrame(
        {
            "network": network,
            "scheme": scheme,
            "bits": bits,
            "seed": seed,
            "before": before,
            "after": fresh_accuracy(make_permanent(trained)),
            "stored": bits_per_weight(model, scheme, bits),
        },
        index=[0],
    )


@published
def _quantizations(network, seed):
    model = dense(network, seed)
    row = {"network": network, "scheme": "float", "bits": 32, "seed": seed, "stored": 32.0}
    accuracies = {"before": fresh_accuracy(model), "after": fresh_accuracy(train_on(model, network, seed))}
    rows = [quantized(network, scheme, bits, seed) for scheme in SCHEMES for bits in BITS]
    return pd.concat([pd.DataFrame([row | accuracies]), *rows], ignore_index=True)


def quantizations(networks=NETWORKS, seeds=SEEDS):
    """Quantize the weights of each network by each scheme, five seeds each, and train with them.

    Returns:
      One row per network, scheme, bits and seed: accuracy ``before`` and ``after`` 300 steps of training
      with the quantized weights, and ``stored``, the bits for each weight with its share of the scales. The
      scheme ``float`` is the control: nothing is quantized.
    """
    return _table(_quantizations, networks, seeds)


@one_thread()
@published
def _ranges(network, seed):
    model, (x, _) = dense(network, seed), fresh_test()
    weights, z = prunable(model), _logits(model, x)
    rows = []
    for scheme, bits in itertools.product(["symmetric", "per channel"], [3, 4]):
        for name, ranges in (
            ("min-max", min_max),
            ("least squares", functools.partial(least_squares, bits=bits)),
        ):
            small = quantize_weights(model, rule(scheme, bits, ranges))
            z_hat, left = _logits(small, x), prunable(small)
            rows.append(
                {
                    "network": network,
                    "seed": seed,
                    "scheme": scheme,
                    "bits": bits,
                    "range": name,
                    "weight error": sum(float(((left[n] - w) ** 2).sum()) for n, w in weights.items()),
                    "output error": float(((z_hat - z) ** 2).mean()),
                    "output size": float(z_hat.std() / z.std()),
                    "accuracy": fresh_accuracy(small),
                    "corrected": fresh_accuracy(correct_biases(model, small, mnist1d().x_train)),
                }
            )
    return pd.DataFrame(rows)


def ranges(networks=NETWORKS, seeds=SEEDS):
    """Quantize weights over their full range, and over the one of least squared error.

    Returns:
      One row per network, scheme, bits, range and seed: ``weight error`` and ``output error`` (squared),
      ``output size`` (the spread of the logits over that of the float network), ``accuracy``, and that after
      the biases were ``corrected``.
    """
    return _table(_ranges, networks, seeds)


@torch.no_grad()
def _logits(model, x):
    return model.eval()(torch.from_numpy(x))


# --- activations ---------------------------------------------------------------------------------


def with_rounded_inputs(model, calibration, bits):
    """Return a copy in which what comes into each layer is rounded, over ranges of 500 training examples."""
    came = layer_inputs(model, mnist1d().x_train[:500])
    found = {name: CALIBRATIONS[calibration](x, bits, affine) for name, x in came.items()}
    return quantize_inputs(model, {name: affine(*map(float, r), bits) for name, r in found.items()})


@published
def _activations(network, seed):
    model, bits = dense(network, seed), [3, 4, 6, 8]
    rows = [
        {"calibration": c, "bits": b, "accuracy": fresh_accuracy(with_rounded_inputs(model, c, b))}
        for c, b in itertools.product(CALIBRATIONS, bits)
    ]
    return pd.DataFrame(
        [{"calibration": "float", "bits": 32, "accuracy": fresh_accuracy(model)}, *rows]
    ).assign(network=network, seed=seed)


def activations(networks=NETWORKS, seeds=SEEDS[:3]):
    """Round what comes into each layer, over ranges found in several ways. Weights stay floats."""
    return _table(_activations, networks, seeds)


# --- a channel out of scale ----------------------------------------------------------------------


@torch.no_grad()
def rescale_channel(model, factor=100):
    """Multiply what one unit of the first layer gives, and divide what the next layer makes of it.

    The unit is the one with the largest weight. The network computes what it did before.
    """
    first, second = (layer for layer in list(model)[:4] if hasattr(layer, "weight"))
    unit = first.weight.abs().flatten(1).amax(1).argmax()
    first.weight[unit] *= factor
    first.bias[unit] *= factor
    second.weight[:, unit] /= factor
    return model


@published
def _rescaled(network, seed):
    as_trained = dense(network, seed)
    model, x = rescale_channel(dense(network, seed)), mnist1d().x_train
    row = {"float": fresh_accuracy(model)}
    for name, one in (("as trained", as_trained), ("rescaled", model), ("equalised", equalise(model))):
        for way, scheme in (("tensor", "symmetric"), ("channel", "per channel")):
            row[f"{name}, per {way}"] = fresh_accuracy(quantize_weights(one, rule(scheme, 8)))
        integers = onnxrt.quantize_static(onnxrt.export(one), x)
        row[f"{name}, runtime"] = _share_right(onnxrt.load(integers))
    return pd.DataFrame([{"network": network, "seed": seed, **row}])


def _share_right(run):
    x, y = fresh_test()
    return (run(x).argmax(1) == y).mean()


def rescaled(networks=NETWORKS, seeds=SEEDS):
    """Quantize networks to 8 bits, one channel of which was made 100 times larger; accuracies as columns.

    ``per tensor`` and ``per channel`` round the weights alone; ``runtime`` is ONNX Runtime with a scale for
    each channel of the weights, and one for each tensor of activations.
    """
    return _table(_rescaled, networks, seeds)


# --- in a runtime --------------------------------------------------------------------------------


RUNTIMES = {"ONNX Runtime": onnxrt, "LiteRT": litert}


def files(network, seed):
    """Return the files of a trained network by runtime and variant, calibrated on training data."""
    model, x = dense(network, seed), mnist1d().x_train
    onnx, twin = onnxrt.export(model), keras_twin(model)
    return {
        ("ONNX Runtime", "float"): onnx,
        ("ONNX Runtime", "int8 static"): onnxrt.quantize_static(onnx, x),
        ("ONNX Runtime", "int8 dynamic"): onnxrt.quantize_dynamic(onnx),
        ("LiteRT", "float"): litert.convert(twin),
        ("LiteRT", "int8 static"): litert.quantize_static(twin, x),
        ("LiteRT", "int8 dynamic"): litert.quantize_dynamic(twin),
    }


@published
def _in_runtimes(network, seed):
    (x, y), rows, made = fresh_test(), [], files(network, seed)
    answers = {(r, v): RUNTIMES[r].load(file)(x).argmax(1) for (r, v), file in made.items()}
    for (runtime, variant), answer in answers.items():
        shares = {"accuracy": (answer == y).mean(), "as float": (answer == answers[runtime, "float"]).mean()}
        rows.append({"runtime": runtime, "variant": variant, "bytes": len(made[runtime, variant]), **shares})
    return pd.DataFrame(rows).assign(network=network, seed=seed)


def in_runtimes(networks=NETWORKS, seeds=SEEDS):
    """Run each network in ONNX Runtime and in LiteRT, as floats and as 8-bit integers.

    Returns:
      One row per network, runtime, variant and seed: ``bytes`` of the file, ``accuracy``, and ``as float``,
      the share of examples that get the answer of the float file.
    """
    return _table(_in_runtimes, networks, seeds)


# --- deep compression ----------------------------------------------------------------------------


def coded_bytes(w, gap_bits=5):
    """Return the bytes of a sparse weight with shared values, its codes and gaps Huffman coded.

    What is stored: for each weight that is left its code and the gap to the one before (a longer gap takes
    fillers of their own code), the codebook in floats, and a byte for each code word's length.
    """
    flat, longest = np.ravel(w), 2**gap_bits
    kept, fillers, gaps = _places(flat, longest)
    values, codes = np.unique(flat[kept], return_inverse=True)
    counts = np.append(np.bincount(codes), fillers.sum())
    gap_counts = np.bincount(gaps, minlength=longest)
    gap_counts[-1] += fillers.sum()
    bits = sum(int(huffman_lengths(c) @ c) for c in (counts, gap_counts))
    return bits / 8 + 4 * len(values) + len(counts) + longest


def _places(w, longest=2**5):
    """Return where weights are left, how many fillers stand before each, and the gap after them."""
    kept = np.flatnonzero(w)
    return kept, *np.divmod(np.diff(kept, prepend=-1) - 1, longest)


def _entries(w):
    """Return how many weights and fillers are stored."""
    kept, fillers, _ = _places(np.ravel(w))
    return len(kept) + int(fillers.sum())


def _shared(w, bits):
    """Share the weights that are left; those that were pruned stay zero."""
    left, kept = w.numpy().copy(), w.numpy() != 0
    codebook, codes = share_weights(left[kept], bits)
    left[kept] = codebook[codes]
    return torch.from_numpy(left)


@published
def _compressed(network, seed, share=0.9, bits=4):
    model = dense(network, seed)
    start = 4 * sum(p.numel() for p in model.parameters())
    rows = [("dense", start, fresh_accuracy(model))]
    prune(model, magnitude_masks(model, share))
    pruning_runs.trained_on(model, network, seed + 1)
    pruning_torch.make_permanent(model)
    weights = prunable(model)
    biases = start - 4 * sum(w.numel() for w in weights.values())
    entries = sum(_entries(w.numpy()) for w in weights.values())
    rows.append(("pruned", entries * (32 + 5) / 8 + biases, fresh_accuracy(model)))
    model = quantize_weights(model, lambda w: _shared(w, bits))
    shared, accuracy = prunable(model).values(), fresh_accuracy(model)
    rows.append(("shared", entries * (bits + 5) / 8 + 4 * 2**bits * len(shared) + biases, accuracy))
    rows.append(("coded", sum(coded_bytes(w.numpy()) for w in shared) + biases, accuracy))
    table = pd.DataFrame(rows, columns=["stage", "bytes", "accuracy"])
    return table.assign(smaller=start / table.bytes, network=network, seed=seed)


def compressed(networks=("mlp512", "cnn64"), seeds=SEEDS):
    """Prune 90 % of the weights, train on, share 16 values in each layer, and code them; bytes by stage."""
    return _table(_compressed, networks, seeds)


# --- one network seen closely --------------------------------------------------------------------

LAYERS = {"0": "first layer", "2": "second layer", "4": "output layer"}


def quick_accuracy(model):
    """Return the share of MNIST-1D's 1,000 test examples that ``model`` gets right."""
    return pruning_runs.accuracy(model, *mnist1d()[2:])


EVEN = {
    "symmetric": lambda w, bits: symmetric(*min_max(w), bits),
    "affine": lambda w, bits: affine(*min_max(w), bits),
    "least squares": lambda w, bits: symmetric(*least_squares(w, bits), bits),
}
FORMATS = [*EVEN, "codebook"]


@published
def formats():
    """Return what each format leaves of the weights of one network.

    Returns:
      One row per layer, format and bits: ``error``, the root mean squared error over the spread of the
      weights, ``accuracy`` with all layers in that format, and the quantizer's ``scale``, ``zero_point``,
      ``q_min`` and ``q_max``; and the codebooks, one row per number, ``level``. A codebook has no quantizer:
      its row has ``q_max < q_min``.
    """
    model, rows, books = dense("mlp512", 0), [], []
    weights = prunable(model)
    for form, bits in itertools.product(FORMATS, range(2, 9)):
        stand = {name: _stand_in(w, form, bits) for name, w in weights.items()}
        share = quick_accuracy(quantize_weights(model, {n: (lambda w, s=s: s[0]) for n, s in stand.items()}))
        for name, (left, even, book) in stand.items():
            setting = {"layer": LAYERS[name], "scheme": form, "bits": bits}
            error = float((left - weights[name]).square().mean().sqrt() / weights[name].std())
            rows.append({**setting, "error": error, "accuracy": share, **even})
            books.append(pd.DataFrame({**setting, "level": book}))
    return pd.DataFrame(rows), pd.concat(books, ignore_index=True)


def _stand_in(w, form, bits):
    """Return what a format leaves of a weight, its quantizer as a dict, and its codebook."""
    if form == "codebook":
        codebook, codes = share_weights(w.numpy(), bits)
        return (
            torch.from_numpy(codebook[codes]),
            {"scale": 1.0, "zero_point": 0, "q_min": 1, "q_max": 0},
            codebook,
        )
    quantizer = EVEN[form](w, bits)
    return fake_quantize(w, quantizer), {k: float(v) for k, v in vars(quantizer).items()}, []


def histogram(x, bins=81):
    """Return how many numbers lie in each bin, as a share of the fullest one: ``left``, ``right``, ``n``."""
    counts, edges = np.histogram(x, bins)
    return pd.DataFrame({"left": edges[:-1], "right": edges[1:], "n": counts / counts.max()}).round(4)


SHARES = np.linspace(0.05, 1, 39).round(3)


@one_thread()
@published
def clippings():
    """Return rounding and clipping error and accuracy for shares of the range, and where calibrations lie."""
    rows, found, bins = [], [], []
    for network, words in (("mlp512", "MLP"), ("cnn64", "CNN")):
        model = dense(network, 0)
        name = list(prunable(model))[1]
        came = layer_inputs(model, mnist1d().x_train[:500])[name]
        for tensor, x in ((f"weights, {words}", prunable(model)[name]), (f"inputs, {words}", came)):
            scheme = symmetric if tensor.startswith("weights") else affine
            bins.append(histogram(x.numpy()).assign(tensor=tensor))
            low, high = (float(bound) for bound in min_max(x))
            for bits in (2, 3, 4, 5, 6, 8):
                for share in SHARES:
                    quantizer = scheme(float(share) * low, float(share) * high, bits)
                    rows.append(
                        (
                            tensor,
                            bits,
                            share,
                            *_errors(x, quantizer),
                            _with_one(model, name, tensor, quantizer),
                        )
                    )
                for calibration, ranges in CALIBRATIONS.items():
                    ends = [float(end) for end in ranges(x, bits, scheme)]
                    found.append((tensor, bits, calibration, max(-ends[0], ends[1]) / max(-low, high)))
    runs = pd.DataFrame(rows, columns=["tensor", "bits", "share", "rounding", "clipping", "both", "accuracy"])
    found = pd.DataFrame(found, columns=["tensor", "bits", "calibration", "share"])
    return runs, found, pd.concat(bins, ignore_index=True)


def _errors(x, quantizer):
    """Return the squared error within the range, that beyond it, and both, over the variance of ``x``."""
    wrong = (quantizer.dequantize(quantizer.quantize(x)) - x) ** 2
    low, high = (quantizer.dequantize(end) for end in (quantizer.q_min, quantizer.q_max))
    half = quantizer.scale / 2
    beyond = (x < low - half) | (x > high + half)
    rounding, clipping = (float(torch.where(where, wrong, 0).mean() / x.var()) for where in (~beyond, beyond))
    return rounding, clipping, rounding + clipping


def _with_one(model, name, tensor, quantizer):
    """Return the accuracy when one layer's weights, or what comes into it, are quantized."""
    if tensor.startswith("weights"):
        return quick_accuracy(quantize_weights(model, {name: lambda w: fake_quantize(w, quantizer)}))
    return quick_accuracy(quantize_inputs(model, {name: quantizer}))
