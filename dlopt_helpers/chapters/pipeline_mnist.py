"""The pipeline of chapter 4.2 on MNIST, with the networks and beside the numbers of Deep Compression.

It needs the four files of MNIST, which the book does not fetch.
"""

import gzip
import math
import zlib
from itertools import pairwise
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import torch
from torch import nn

from dlopt_helpers.chapters.pipeline import in_words, shown_factor
from dlopt_helpers.chapters.pipeline_runs import folder as kept
from dlopt_helpers.chapters.pipeline_tasks import one_hot
from dlopt_helpers.lab.data import Data
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.pipeline import (
    Made,
    Stage,
    Task,
    load,
    prune_neurons,
    prune_weights,
    quantize,
    run,
    share_weights,
)

STORED = Path(__file__).with_suffix(".csv")
SEEDS = range(3)


def stored_lenets():
    """Return the rows that :func:`lenets` made for the book, with ``date`` and ``device``.

    ``python benchmarks/pipeline_mnist.py FOLDER --store`` makes them anew.
    """
    return pd.read_csv(STORED)


# --- MNIST -----------------------------------------------------------------------------------------

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def mnist(folder):
    """Return MNIST as :class:`~dlopt_helpers.lab.data.Data`, from the four files under their usual names.

    Args:
      folder: it holds ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte`` and the two that begin with
        ``t10k``, each as it is or packed (``.gz``).

    Returns:
      Images as float32 (n, 784) in [0, 1], where 1 is ink, and labels as int64 (n,): 60,000 for training and
      10,000 for the test.

    Raises:
      ValueError: naming the folder and the file, if one is missing or holds something else, or there are
        other labels than images.

    References:
      LeCun et al. 1998, "Gradient-based learning applied to document recognition".
    """
    arrays = []
    for images, labels in FILES.values():
        x, y = _images(folder, images), _labels(folder, labels)
        if len(x) != len(y):
            raise ValueError(f"{folder}: {images} holds {len(x)} images, {labels} {len(y)} labels")
        arrays += [x, y]
    return Data(*arrays)


def _images(folder, name):
    pixels = _idx(folder, name)
    if pixels.shape[1:] != (28, 28):
        raise ValueError(
            f"{folder}: {name} holds images of {pixels.shape[1:]} pixels: they must have 28 x 28"
        )
    return (pixels.reshape(-1, 28 * 28) / 255).astype("float32")


def _labels(folder, name):
    labels = _idx(folder, name)
    if labels.max(initial=0) > 9:
        raise ValueError(f"{folder}: {name} holds the label {labels.max()}: they must be digits")
    return labels.astype("int64")


def _idx(folder, name):
    """Return the bytes that an IDX file holds, in its shape: the 3 or the 1 in its name is the axes."""
    raw, axes = _unpacked(folder, name), int(name.split("idx")[1][0])
    magic = bytes([0, 0, 8, axes])  # 8: of bytes
    shape = tuple(np.frombuffer(raw[4 : 4 + 4 * axes].ljust(4 * axes, b"\0"), ">u4").tolist())
    wanted = 4 + 4 * axes + math.prod(shape)
    if raw[:4] != magic:
        begins = f"begins with {raw[:4].hex(' ')}: it must begin with {magic.hex(' ')}"
        raise ValueError(f"{folder}: {name} {begins}")
    if len(raw) != wanted:
        raise ValueError(f"{folder}: {name} has {len(raw)} bytes: by its first ones it must have {wanted}")
    return np.frombuffer(raw, "u1", offset=4 + 4 * axes).reshape(shape)


def _unpacked(folder, name):
    plain, packed = Path(folder, name), Path(folder, f"{name}.gz")
    if plain.exists():
        return plain.read_bytes()
    if not packed.exists():
        raise ValueError(f"{folder}: {name} is missing, and so is {packed.name}")
    try:
        return gzip.decompress(packed.read_bytes())
    except (EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{folder}: {packed.name} cannot be unpacked: {error}") from None


# --- starts ----------------------------------------------------------------------------------------


def lenet5(seed=0):
    """Return LeNet-5 as Caffe and Deep Compression have it: nothing but pooling between its convolutions.

    Example:
      >>> sum(p.numel() for p in lenet5().parameters())
      431080
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Unflatten(1, (1, 28, 28)),
            nn.Conv2d(1, 20, 5),
            nn.MaxPool2d(2),
            nn.Conv2d(20, 50, 5),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * 50, 500),
            nn.ReLU(),
            nn.Linear(500, 10),
        )


NETWORKS = {"lenet-300-100": lambda seed: mlp(784, (300, 100), seed=seed), "lenet-5": lenet5}
# It keeps all neurons, so nothing but the training is left of it.
TRAINING = {
    "lenet-300-100": prune_neurons(1.0, steps=5_000, rate=0.003),
    "lenet-5": prune_neurons(1.0, steps=4_000, rate=0.002),
}


def start(network, task):
    """Return one of the ``NETWORKS`` as :class:`~dlopt_helpers.pipeline.Made`, trained on the task."""
    rows = run(Made(NETWORKS[network](task.seed)), [TRAINING[network]], task, kept(), unmeasured)
    return load(kept(), rows.key[1])


def unmeasured(onnx, reference, x, y):
    """Measure nothing of a file."""
    return {}


# --- recipes ---------------------------------------------------------------------------------------


DOWN = {"stride": 2, "pool": 1}  # the stride of its convolutions


def small_cnn(channels, down, seed=0):
    """Return a CNN for the pixels of MNIST that halves width and height after each of two convolutions.

    Args:
      channels: of its two convolutions of 5 x 5 pixels.
      down: how it halves: "stride", which computes a quarter of the outputs, or "pool", which computes all of
        them and takes the largest of each 2 x 2.
      seed: of the initial weights.

    Example:
      >>> small_cnn((8, 16), "stride")(torch.zeros(3, 784)).shape
      torch.Size([3, 10])
    """
    layers = [nn.Unflatten(1, (1, 28, 28))]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for inputs, outputs in pairwise((1, *channels)):
            layers += [nn.Conv2d(inputs, outputs, 5, stride=DOWN[down]), nn.ReLU()]
            layers += [nn.MaxPool2d(2)] if down == "pool" else []
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * channels[1], 10))


def new_cnn(channels, down, steps, rate):
    """Return a stage that trains a :func:`small_cnn` on the task; the network before is gone.

    Args:
      channels: a list of two numbers.
      down: "stride" or "pool".
      steps, rate: as of :func:`~dlopt_helpers.pipeline.distil`.
    """
    train = prune_neurons(1.0, steps, rate)
    settings = {"channels": list(channels), "down": down, "steps": steps, "rate": rate}

    def apply(made, task):
        return train.apply(Made(small_cnn(channels, down, task.seed)), task)

    return Stage("new_cnn", settings, apply)


def deep_compression(bits):
    """Return the stages of the paper: 92 % of the weights go, the others share ``2 ** bits`` numbers.

    The paper has a threshold and a number of bits for each layer, trains the shared numbers, too, and packs
    by Huffman's code. Here one threshold and one number of bits serve all layers, the shared numbers stay as
    k-means finds them, and zlib packs.
    """
    few = {"steps": 2_000, "rate": 0.002}
    return [prune_weights(0.8, **few), prune_weights(0.92, **few), share_weights(bits)]


RECIPES = {
    "lenet-300-100": {
        "Deep Compression": deep_compression(6),
        "this chapter": [new_cnn([8, 16], "stride", 6_000, 0.005), quantize(4, 2_000, 0.002)],
    },
    "lenet-5": {
        "Deep Compression": deep_compression(5),
        "this chapter": [new_cnn([12, 32], "pool", 6_000, 0.005), quantize(4, 2_000, 0.002)],
    },
}


def lenets(folder, network=None, recipes=None, seeds=SEEDS):
    """Run the recipes on MNIST, or take them up where they were stopped.

    Args:
      folder: of the files of :func:`mnist`.
      network: one of the ``NETWORKS``; both unless given.
      recipes: some of the names in ``RECIPES``; all unless given.
      seeds: of the starts, the order of the examples and the students.

    Returns:
      One row per stage: ``group``, the network, ``recipe``, ``seed``, ``number`` (0 is the start), and the
      columns of :func:`dlopt_helpers.pipeline.run`.

    Raises:
      ValueError: as :func:`mnist`, or if there is no such network or recipe.
    """
    networks = [*NETWORKS] if network is None else [network]
    names = [*RECIPES["lenet-5"]] if recipes is None else list(recipes)
    _require_known("network", networks, NETWORKS)
    _require_known("recipes", names, RECIPES["lenet-5"])
    mnist(folder)  # what is wrong with it shows before anything is trained
    jobs = [joblib.delayed(_all_of)(folder, name, names, seed) for name in networks for seed in seeds]
    return pd.concat(spread(jobs, "pipelines"), ignore_index=True)


def _require_known(argument, names, known):
    for name in names:
        if name not in known:
            raise ValueError(f"{argument}: {name!r} is not allowed: it must be one of {list(known)}")


def _all_of(folder, network, recipes, seed):
    """Return the rows of one start; its recipes follow each other, so that it is trained once."""
    data = mnist(folder)
    task = Task(data.x_train, one_hot(data.y_train), (data.x_test, data.y_test), seed)
    begin = start(network, task)
    found = []
    for name in recipes:
        rows = run(begin, RECIPES[network][name], task, kept())
        found.append(rows.assign(group=network, recipe=name, seed=seed, number=range(len(rows))))
    return pd.concat(found, ignore_index=True)


# --- the page --------------------------------------------------------------------------------------

# Before and after: error in %, kB, and how many times smaller. Table 1 of Han, Mao and Dally 2016, "Deep
# compression", arXiv 1510.00149.
PAPER = {
    "lenet-300-100": {"error": (1.64, 1.58), "kB": (1_070, 27), "smaller": 40},
    "lenet-5": {"error": (0.80, 0.74), "kB": (1_720, 44), "smaller": 39},
}


def table(rows):
    """Return the rows as the chapter shows them: one per network, recipe and stage, means over seeds.

    Each network ends with the paper's rows. ``smaller`` is the bytes of the start's file over those of this
    one, ``zipped`` over those of its archive, which is what the paper counts.
    """
    runs = rows.groupby(["group", "recipe", "seed"], sort=False)
    begin = runs.bytes.transform("first")
    rows = rows.assign(
        what=[in_words(text) for text in rows.settings],
        error=100 * (1 - rows.accuracy),
        smaller=begin / rows.bytes,
        packed=begin / rows.zipped,
    )
    of = rows.groupby(["group", "recipe", "number", "what"], sort=False)
    mean = of[["bytes", "zipped", "smaller", "packed", "faster 1", "faster 64"]].mean()
    error = of.error.agg(["mean", "min", "max"])
    shown = pd.DataFrame(
        {  # spaces that do not break keep a cell on one line
            "error, %": [f"{m:.2f}\xa0({a:.2f}–{b:.2f})" for m, a, b in error.to_numpy()],
            "kB": (mean.bytes / 1e3).map(_kilo),
            "zipped, kB": (mean.zipped / 1e3).map(_kilo),
            "smaller": mean.smaller.map(shown_factor),
            "smaller, zipped": mean.packed.map(shown_factor),
            **{f"faster, batch {n}": mean[f"faster {n}"].map(shown_factor) for n in (1, 64)},
        }
    ).droplevel("number")
    parts = [part for name in rows.group.unique() for part in (shown.loc[[name]], _paper(name, shown))]
    return pd.concat(parts).rename_axis(["network", "recipe", None])


def _kilo(kilobytes):
    return f"{kilobytes:,.0f}" if kilobytes >= 100 else f"{kilobytes:.1f}"


def _paper(network, shown):
    """Return the two rows of the paper, in the columns of ``shown``; what it does not say stays empty."""
    said = PAPER[network]
    rows = [[f"{error:.2f}", *[""] * (shown.shape[1] - 1)] for error in said["error"]]
    found = pd.DataFrame(
        rows,
        columns=shown.columns,
        index=pd.MultiIndex.from_tuples(
            [(network, "the paper", what) for what in ("start", "Huffman coded")]
        ),
    )
    before, after = said["kB"]
    found.iloc[0, 1] = f"{before:,}"
    found.iloc[1, 2] = f"{after}"
    found.iloc[1, 4] = f"{said['smaller']}"
    return found
