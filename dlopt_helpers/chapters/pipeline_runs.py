"""The runs of chapter 4.2: networks made cheap by several stages, with their controls.

What a stage makes is kept under a key of all that led to it, so nothing here is computed twice.
"""

import datetime

import joblib
import pandas as pd
from tqdm import tqdm

from dlopt_helpers.chapters.pipeline_tasks import SEEDS, TASKS, start, task
from dlopt_helpers.lab.deployed import measured
from dlopt_helpers.lab.measure import device_name
from dlopt_helpers.lab.memo import cache_dir
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.pipeline import (
    distil,
    export,
    factorise,
    onnx_file,
    prune_neurons,
    prune_weights,
    quantize,
    run,
    share_weights,
)

STEPS = 8_000
# The columns that are alike on each machine and for each version of the code.
LASTING = ["group", "recipe", "seed", "number", "stage", "settings", "form"]
LASTING += ["parameters", "accuracy", "nll", "bytes"]
FEWER_SEEDS = {"data": range(3), "pairs": range(3)}

# --- recipes ---------------------------------------------------------------------------------------

# Each is a start, a task and stages. Those of one group are compared with each other.
TRAINED = {"steps": STEPS, "rate": 0.005}
FEW = {"steps": STEPS, "rate": 0.002}
BAR = [distil("mlp", 100, **TRAINED), prune_neurons([48, 48], **TRAINED), quantize(4, **FEW)]
HARD = [distil("cnn", 20, steps=6_000, rate=0.01), quantize(4, steps=3_000, rate=0.003)]

_more = {"steps": 1_000, "rate": 0.003}
ONE_BY_ONE = {
    "prune neurons": prune_neurons(0.5, **_more),
    "prune weights": prune_weights(0.8, **_more),
    "factorise": factorise(0.4, **_more),
    "quantize": quantize(4, **_more),
    "share weights": share_weights(4),
}

RECIPES = {
    "bar": {kind: ("mlp1024", kind, BAR) for kind in ("strict", "transfer")},
    "hard": {"strict": ("cnn64", "strict", HARD), "labels": ("cnn64", "labels", HARD)},
    "order": {
        "distil, prune, quantize": ("mlp1024", "strict", BAR),
        "distil small, quantize": (
            "mlp1024",
            "strict",
            [distil("mlp", 48, steps=2 * STEPS, rate=0.005), quantize(4, **FEW)],
        ),
        "prune, quantize": (
            "mlp1024",
            "strict",
            [prune_neurons([48, 48], steps=2 * STEPS, rate=0.005), quantize(4, **FEW)],
        ),
        "distil, quantize, prune": ("mlp1024", "strict", [BAR[0], quantize(4, **FEW), BAR[1]]),
        "distil, prune, round": ("mlp1024", "strict", [*BAR[:2], quantize(4)]),
        "distil, prune, int8": ("mlp1024", "strict", [*BAR[:2], export("int8")]),
    },
    "data": {
        **{f"dense, {kind}": ("mlp1024", kind, [prune_neurons(1.0, 2_000, 0.001)]) for kind in TASKS},
        **{f"small, {kind}": ("mlp1024", kind, [distil("mlp", 48, **TRAINED)]) for kind in TASKS},
    },
    "pairs": {
        **{one: ("cnn64", "strict", [stage]) for one, stage in ONE_BY_ONE.items()},
        **{
            f"{one}, {other}": ("cnn64", "strict", [ONE_BY_ONE[one], ONE_BY_ONE[other]])
            for one in ONE_BY_ONE
            for other in ONE_BY_ONE
            if one != other
        },
    },
}


def _one(group, recipe, seed):
    network, kind, stages = RECIPES[group][recipe]
    rows = run(start(network, seed), stages, task(kind, seed), folder())
    return rows.assign(group=group, recipe=recipe, seed=seed, number=range(len(rows)))


def folder():
    """Return where the networks of all runs are kept."""
    return cache_dir() / "pipeline"


def made(group, recipes=None, seeds=None):
    """Run the recipes of a group, or take them up where they were stopped.

    Args:
      group: one of the ``RECIPES``.
      recipes: some of its names; all unless given.
      seeds: of the starts, the tasks and the students; all unless given.

    Returns:
      One row per stage: ``group``, ``recipe``, ``seed``, ``number`` (0 is the start), and the columns of
      :func:`dlopt_helpers.pipeline.run`.
    """
    names, seeds = recipes or RECIPES[group], seeds or FEWER_SEEDS.get(group, SEEDS)
    jobs = [joblib.delayed(_one)(group, name, seed) for name in names for seed in seeds]
    return pd.concat(spread(jobs, "pipelines"), ignore_index=True)


def bar(seeds=SEEDS):
    """Return the rows of the bar's pipeline for each seed: of :func:`made`, without times and keys."""
    return pd.concat([_bar(seed) for seed in seeds], ignore_index=True)


@published
def _bar(seed):
    return made("bar", ["strict"], [seed])[LASTING]


def timed(rows, test):
    """Return ``rows`` with what their files do now, measured one after the other.

    Args:
      rows: of :func:`made`.
      test: examples and labels, as of a task.
    """
    starts = rows[rows.number == 0].set_index(["group", "recipe", "seed"]).key
    reference = {row.key: starts[row.group, row.recipe, row.seed] for row in rows.itertuples()}
    found = {
        key: measured(onnx_file(folder(), key), onnx_file(folder(), start), *test)
        for key, start in tqdm(reference.items(), "files")
    }
    return rows.assign(**pd.DataFrame([found[key] for key in rows.key], index=rows.index))


def stored(rows, path):
    """Write rows to the file that the chapter shows, with the date and the device."""
    first = ["group", "recipe", "seed", "number"]
    rest = rows.columns.drop([*first, "key"])  # a key holds for this version of the code alone
    rows = rows[[*first, *rest]].assign(date=datetime.date.today().isoformat(), device=device_name("cpu"))
    rows.to_csv(path, index=False, float_format="%.5g")
