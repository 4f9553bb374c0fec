"""What pruning saves in time and bytes: measured here, or as it was measured for the book."""

import functools
from pathlib import Path

import pandas as pd
import torch
from torch.utils.flop_counter import FlopCounterMode

from dlopt_helpers.bridges.pruning_torch import CSRLinear, make_permanent, prunable, prune, to_csr
from dlopt_helpers.lab.measure import file_bytes, finished, ratios
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.pruning import magnitude_mask, threshold_for

STORED = Path(__file__).with_suffix(".csv")
NETWORKS = {
    "mlp512": lambda share: mlp(hidden=round(512 * share)),
    "mlp1024": lambda share: mlp(hidden=round(1_024 * share)),
    "cnn64": lambda share: cnn(channels=round(64 * share)),
}
SHARES = [0.5, 0.25, 0.1, 0.05]
BATCHES = [1, 64, 1_024]


def stored_speeds():
    """Return the speeds that were measured for the book, with ``date`` and ``device``.

    ``python benchmarks/pruning_speed.py --store`` measures them anew.
    """
    return pd.read_csv(STORED)


@one_thread()
def speeds(networks=tuple(NETWORKS), device="cpu", repeats=20):
    """Measure each way to run a pruned network beside the dense one, on one thread; about two minutes.

    What the weights have learned plays no part, so they are the initial ones.

    Returns:
      A data frame with one row per network, variant and batch size: ``faster``, the dense network's time
      as a multiple of the variant's, with ``low`` and ``high``, between which 90 % of the repeats lie;
      and for the variant ``bytes`` of its file and ``multiplications`` for one example, those with a
      stored zero included.
    """
    rows = [row for network in networks for row in _speeds(network, device, repeats)]
    return pd.DataFrame(rows)


def _speeds(network, device, repeats):
    models = {name: model.to(device).eval() for name, model in variants(network).items()}
    for name, model in models.items():
        costs = {"bytes": file_bytes(model), "multiplications": _work(model)}
        for batch in BATCHES:
            ratio = _faster(models["dense"], model, torch.randn(batch, 40, device=device), repeats)
            setting = {"network": network, "variant": name, "batch": batch}
            yield setting | {"faster": ratio.median, "low": ratio.low, "high": ratio.high} | costs


@torch.inference_mode()
def _faster(dense, model, x, repeats):
    one, other = (finished(functools.partial(m, x), x.device) for m in (dense, model))
    return ratios(one, other, repeats, calls=max(1, 500 // len(x)))


def variants(network):
    """Return the dense network and the ways to run it with fewer weights, by their names."""
    make = NETWORKS[network]
    few = {"dense": make(1.0), "masked 90 %": _sparse(make(1.0), 0.9)}
    if network != "cnn64":
        few |= {f"CSR {percent} %": to_csr(_sparse(make(1.0), percent / 100)) for percent in (90, 95, 98)}
    return few | {f"units {100 * share:.0f} %": make(share) for share in SHARES}


def _sparse(model, sparsity):
    """Prune the same share of each layer."""
    masks = {n: magnitude_mask(w, threshold_for(sparsity, w)) for n, w in prunable(model).items()}
    return make_permanent(prune(model, masks))


def _work(model):
    """Return the multiplications for one example."""
    if sparse := [layer for layer in model if isinstance(layer, CSRLinear)]:
        return sum(layer.values.numel() for layer in sparse)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 40, device=next(model.parameters()).device))
    return counter.get_total_flops() // 2  # each is counted with its addition


def table(speeds):
    """Return the speeds as the chapter shows them: a row per variant, a column per batch size."""
    each = zip(speeds.faster, speeds.low, speeds.high, strict=True)
    shown = speeds.assign(  # spaces that do not break keep a cell on one line
        faster=[f"{median:.2g}\xa0({low:.2g}–{high:.2g})" for median, low, high in each],
        variant=speeds.variant.str.replace(" ", "\xa0"),
        multiplications=speeds.multiplications.map("{:,}".format),
        kB=(speeds.bytes / 1e3).map("{:,.0f}".format),
        batch=speeds.batch.map("batch\xa0{:,}".format),
    )
    rows = ["network", "variant", "multiplications", "kB"]
    wide = shown.set_index([*rows, "batch"]).faster.unstack(sort=False).reset_index()
    return wide.rename_axis(columns=None).set_index("network")
