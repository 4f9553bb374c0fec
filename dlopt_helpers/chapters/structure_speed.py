"""How long networks of other structure take in ONNX Runtime: measured here, or as it was for the book."""

import copy
import functools
import itertools
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from dlopt_helpers.bridges.structure_torch import costs, factorise
from dlopt_helpers.chapters.structure_runs import DEPTHS, LAYER, RANKS, WIDTHS
from dlopt_helpers.lab.blocks import KINDS, block_net
from dlopt_helpers.lab.measure import ratios
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.onnxrt import export, load

STORED = Path(__file__).with_suffix(".csv")
BATCHES = [1, 64]
LAYOUTS = ["1-D", "2-D"]
CHANNELS, LENGTH = 64, 20  # of the single layers
SINGLE = {
    "plain": functools.partial(nn.Conv1d, kernel_size=3, padding=1),
    "grouped": functools.partial(nn.Conv1d, kernel_size=3, padding=1, groups=4),
    "depthwise": functools.partial(nn.Conv1d, kernel_size=3, padding=1, groups=CHANNELS),
    "pointwise": functools.partial(nn.Conv1d, kernel_size=1),
}
# What each family's times are multiples of: kind, width, depth, layout.
REFERENCES = {
    "rank": ("dense", 512, 3, "1-D"),
    "blocks": ("plain", 32, 4, "1-D"),
    "layers": ("plain", CHANNELS, 1, "1-D"),
}


def stored_speeds():
    """Return the times that were measured for the book, with ``date`` and ``device``.

    ``python benchmarks/structure_speed.py --store`` measures them anew.
    """
    return pd.read_csv(STORED)


def speeds(families=tuple(REFERENCES), repeats=20):
    """Measure each network beside the reference of its family, on one thread; about four minutes.

    What the weights have learned plays no part, so they are the initial ones.

    Returns:
      A data frame with one row per network and batch size: ``family`` (``rank``: the MLP whose second
      layer is factorised, and ``width`` is the rank; ``blocks``; ``layers``: single ones of 64 channels),
      ``kind``, ``width``, ``depth``, ``layout``, ``batch``; ``time``, a multiple of the reference's, with
      ``low`` and ``high``, between which 90 % of the repeats lie; ``parameters`` and ``macs``.
    """
    return pd.DataFrame([row for family in families for row in _speeds(family, repeats)])


def _speeds(family, repeats):
    models = networks(family)
    reference = load(export(models[REFERENCES[family]], _inputs(family)))
    for key, model in models.items():
        setting = {"family": family, **dict(zip(["kind", "width", "depth", "layout"], key, strict=True))}
        x = torch.randn(max(BATCHES), _inputs(family))
        cost = costs(model, x)[["parameters", "macs"]].sum().to_dict()
        network = load(export(model, _inputs(family)))
        for batch in BATCHES:
            few = x[:batch].numpy()
            one, other = (functools.partial(run, few) for run in (network, reference))
            ratio = ratios(one, other, repeats, calls=max(1, 500 // batch))
            yield setting | {"batch": batch, **dict(zip(["time", "low", "high"], ratio, strict=True)), **cost}


def _inputs(family):
    return CHANNELS * LENGTH if family == "layers" else 40


def networks(family):
    """Return the networks of a family by kind, width, depth and layout."""
    return {"rank": _of_ranks, "blocks": _of_blocks, "layers": _single_layers}[family]()


def _of_ranks():
    whole = mlp(hidden=512)
    lower = {("SVD", rank, 3, "1-D"): factorise(whole, {LAYER: rank}) for rank in RANKS}
    return {REFERENCES["rank"]: whole, **lower}


def _of_blocks():
    settings = itertools.product(KINDS, WIDTHS, DEPTHS)
    return _in_both_layouts({setting: block_net(*setting) for setting in settings})


def _single_layers():
    start = [nn.Unflatten(1, (CHANNELS, LENGTH))]
    layers = {name: make(CHANNELS, CHANNELS) for name, make in SINGLE.items()}
    return _in_both_layouts(
        {(name, CHANNELS, 1): nn.Sequential(*start, layer, nn.Flatten()) for name, layer in layers.items()}
    )


def _in_both_layouts(models):
    return {
        (*setting, layout): model if layout == "1-D" else in_two_dimensions(model)
        for setting, model in models.items()
        for layout in LAYOUTS
    }


def in_two_dimensions(model):
    """Return a network with the same outputs that treats its sequences as images of height 1.

    Args:
      model: of ``Conv1d``, ``BatchNorm1d``, ``AvgPool1d``, ``Unflatten`` and layers of any dimension.
    """
    twin = copy.deepcopy(model)
    for name, layer in model.named_modules():
        if new := _flat_image(layer):
            new.load_state_dict(
                {key: _like(w, new.state_dict()[key]) for key, w in layer.state_dict().items()}
            )
            twin.set_submodule(name, new.train(layer.training))
    return twin


def _like(w, other):
    return w.unsqueeze(-2) if w.ndim < other.ndim else w


def _flat_image(layer):
    """Return the layer for images of height 1, or None where it is the same."""
    match layer:
        case nn.Conv1d():
            same = {"groups": layer.groups, "bias": layer.bias is not None}
            wide = [
                (small, *of) for small, of in ((1, layer.kernel_size), (1, layer.stride), (0, layer.padding))
            ]
            return nn.Conv2d(layer.in_channels, layer.out_channels, *wide, **same)
        case nn.BatchNorm1d():
            return nn.BatchNorm2d(layer.num_features)
        case nn.AvgPool1d():
            return nn.AvgPool2d((1, *layer.kernel_size))
        case nn.Unflatten():
            channels, length = layer.unflattened_size
            return nn.Unflatten(1, (channels, 1, length))
    return None


def table(speeds, family, layout=None):
    """Return the times of a family as the chapter shows them: a row per network, a column per batch size."""
    shown = speeds[(speeds.family == family) & (speeds.layout.isin([layout] if layout else LAYOUTS))]
    each = zip(shown.time, shown.low, shown.high, strict=True)
    shown = shown.assign(  # spaces that do not break keep a cell on one line
        time=[f"{median:.2g}\xa0({low:.2g}–{high:.2g})" for median, low, high in each],
        parameters=shown.parameters.map("{:,}".format),
        macs=shown.macs.map("{:,}".format),
        batch=shown.batch.map("batch\xa0{:,}".format),
    )
    rows = ["kind", "width", "depth", "layout", "parameters", "macs"]
    rows = [c for c in rows if c in ("kind", "parameters", "macs") or shown[c].nunique() > 1]
    wide = shown.set_index([*rows, "batch"]).time.unstack(sort=False).reset_index()
    return wide.rename_axis(columns=None).set_index("kind")
