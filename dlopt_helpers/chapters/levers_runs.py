"""The runs of chapter 2: one task, five levers, and each of their 32 combinations as an exported file.

What a combination has trained is kept on disk, so a call that was stopped goes on where it was.
"""

import copy
import datetime
import functools
import itertools

import joblib
import numpy as np
import pandas as pd
import torch
from scipy.special import log_softmax
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from dlopt_helpers.bridges.structure_torch import costs
from dlopt_helpers.chapters.pipeline_tasks import task
from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.data import fresh_test
from dlopt_helpers.lab.measure import device_name, ratios
from dlopt_helpers.lab.memo import cache_dir, source_digest
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.training import batches, one_thread
from dlopt_helpers.pipeline import Made, onnx_file, prune_neurons, quantize, run, stage

LEVERS = ["algorithm", "structure", "distillation", "pruning", "quantization"]
SEEDS = range(3)
BATCH = 64
STEPS = (800, 400)  # of plain SGD, before neurons may go and after; the better algorithm gets half of them
NETWORKS = {"mlp1024": functools.partial(mlp, hidden=1_024), "cnn25": functools.partial(cnn, channels=25)}
TRIED = {
    ("mlp1024", "sgd"): [0.05, 0.1, 0.2, 0.5],
    ("mlp1024", "adam"): [0.001, 0.003, 0.01],
    ("cnn25", "sgd"): [0.05, 0.1, 0.2, 0.5],
    ("cnn25", "adam"): [0.001, 0.003, 0.01],
}
RATES = dict(zip(TRIED, [0.5, 0.003, 0.2, 0.01], strict=True))  # the best of them: see `validated`
TEACHERS, TEACHER_STEPS, EXAMPLES = 4, 1_000, 100_000  # as in chapter 4.2

# --- two stages of a pipeline -------------------------------------------------------------------------


def _whatever(name, value):
    """Accept a setting: only this module writes them."""


@stage(network=_whatever, algorithm=_whatever, steps=_whatever, rate=_whatever)
def learn(made, task, network, algorithm, steps, rate):
    """Train a new network, from the first weights of the task's seed."""
    return trained(Made(NETWORKS[network](seed=task.seed)), task, algorithm, steps, rate)


@stage(keep=_whatever, algorithm=_whatever, steps=_whatever, rate=_whatever)
def go_on(made, task, keep, algorithm, steps, rate):
    """Train on, after neurons were removed: ``keep`` is the share of them that stays, 1 for all."""
    return trained(_cut(made, keep), task, algorithm, steps, rate)


def _cut(made, keep):
    return prune_neurons(keep).apply(made, _Nothing) if keep < 1 else made


class _Nothing:
    """A task for pruning without training, which needs none."""


@one_thread()
def trained(made, task, algorithm, steps, rate):
    """Return ``made`` after training: "sgd" is plain and keeps its rate, "adam" has a schedule."""
    model = copy.deepcopy(made.model)
    x, targets = torch.from_numpy(task.x), torch.from_numpy(task.targets)
    optimizer, schedule = optimizer_for(model, algorithm, steps, rate)
    for chosen in torch.from_numpy(batches(len(x), BATCH, steps, task.seed)):
        optimizer.zero_grad()
        cross_entropy(model(x[chosen]), targets[chosen]).backward()
        optimizer.step()
        schedule.step()
    return made._replace(model=model)


def optimizer_for(model, algorithm, steps, rate):
    """Return the optimiser and the schedule of an algorithm, "sgd" or "adam"."""
    if algorithm == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), rate, fused=True)
        return optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1)
    optimizer = torch.optim.Adam(model.parameters(), rate, fused=True)
    return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)


# --- combinations -------------------------------------------------------------------------------------


def combinations():
    """Return the 32 combinations, each a dict of five bools: in the first all are off, in the last on."""
    return [dict(zip(LEVERS, on, strict=True)) for on in itertools.product([False, True], repeat=len(LEVERS))]


def plan(combination):
    """Return network, algorithm, steps of the two parts of training, and the share of neurons that stays."""
    network = "cnn25" if combination["structure"] else "mlp1024"
    algorithm = "adam" if combination["algorithm"] else "sgd"
    steps = [n // 2 if combination["algorithm"] else n for n in STEPS]
    return network, algorithm, steps, 0.5 if combination["pruning"] else 1.0


def stages(combination):
    """Return the stages of a combination."""
    network, algorithm, (first, second), keep = plan(combination)
    how = {"algorithm": algorithm, "rate": RATES[network, algorithm]}
    last = [quantize(8)] if combination["quantization"] else []
    return [learn(network, steps=first, **how), go_on(keep, steps=second, **how), *last]


def right(onnx, reference, x, y):
    """Return what a file is worth, apart from its speed: a measure for :func:`dlopt_helpers.pipeline.run`."""
    log_p = log_softmax(onnxrt.load(onnx)(x), axis=1)
    nll = float(-log_p[np.arange(len(y)), y].mean())
    return {"accuracy": float((log_p.argmax(1) == y).mean()), "nll": nll, "bytes": len(onnx)}


def folder():
    """Return where the files are kept, for this version of the code."""
    return cache_dir() / f"levers-{source_digest(__file__)[:16]}"


def macs(combination):
    """Return the multiply-accumulates of training: one pass forward, and two as long backward.

    Returns:
      A dict: ``macs`` of the network itself, and ``teachers``, those of the four teachers, their training
      and their answers to all examples; 0 without distillation.
    """
    network, _, (first, second), keep = plan(combination)
    model = NETWORKS[network]()
    whole, left = _forward(model), _forward(_cut(Made(model), keep).model)
    teachers = TEACHERS * _forward(cnn(64)) * (3 * BATCH * TEACHER_STEPS + EXAMPLES)
    return {
        "macs": 3 * BATCH * (first * whole + second * left),
        "teachers": teachers if combination["distillation"] else 0,
    }


def _forward(model):
    return int(costs(model, torch.zeros(1, 40)).macs.sum())


def one_row(combination, seed):
    """Train, export and measure a combination; return its row without times."""
    kind = "strict" if combination["distillation"] else "shifted"
    start = Made(NETWORKS["mlp1024"](seed=seed))
    last = run(start, stages(combination), task(kind, seed), folder(), right).iloc[-1]
    measures = last[["accuracy", "nll", "bytes", "parameters", "key"]].to_dict()
    return (
        {**{lever: int(on) for lever, on in combination.items()}, "seed": seed} | measures | macs(combination)
    )


def made(seeds=SEEDS):
    """Return the rows of all combinations, 96 for three seeds."""
    jobs = [joblib.delayed(one_row)(combination, seed) for seed in seeds for combination in combinations()]
    return pd.DataFrame(spread(jobs, "combinations"))


def validated(network, algorithm, rate):
    """Return the accuracy of a rate on 2,000 examples that neither training nor test has, for seed 0."""
    examples, made = task("shifted", 0), Made(NETWORKS[network](seed=0))
    for steps in STEPS:
        made = trained(made, examples, algorithm, steps if algorithm == "sgd" else steps // 2, rate)
    x, y = map(torch.from_numpy, fresh_test(2_000, seed=7))
    with torch.no_grad():
        return float((made.model(x).argmax(1) == y).double().mean())


# --- times --------------------------------------------------------------------------------------------


def timed(rows):
    """Return ``rows`` with ratios of times, each measured in turn with the combination without any lever.

    ``faster 1`` and ``faster 64`` are how many times as fast the file answers one example and 64, in ONNX
    Runtime on one thread; ``time`` is how many times as long its own training takes.
    """
    x, files = fresh_test(64 * 10, seed=7)[0], rows.set_index([*LEVERS, "seed"]).key
    found, training = [], {}
    for row in tqdm(rows.to_dict("records"), "files"):
        keys = files[0, 0, 0, 0, 0, row["seed"]], row["key"]
        speeds = _speeds(*(onnxrt.load(onnx_file(folder(), key)) for key in keys), x)
        of = tuple(row[lever] for lever in ("algorithm", "structure", "pruning"))
        if of not in training:
            training[of] = training_time({lever: bool(row[lever]) for lever in LEVERS})
        found.append(speeds | {"time": training[of]})
    return rows.assign(**pd.DataFrame(found, index=rows.index))


def _speeds(slow, fast, x):
    """Return how many times as fast the second one answers."""
    found = {}
    for n, calls in ((1, 100), (64, 10)):
        one, other = (functools.partial(run, x[:n]) for run in (slow, fast))
        found[f"faster {n}"] = ratios(one, other, repeats=7, calls=calls).median
    return found


def training_time(combination, steps=5):
    """Return how many times as long a combination trains as the one without a lever: steps, in turn."""
    network, algorithm, counts, keep = plan(combination)
    base = functools.partial(_some_steps, NETWORKS["mlp1024"](), "sgd", steps)
    total = 0
    for count, share in zip(counts, (1.0, keep), strict=True):
        model = _cut(Made(NETWORKS[network]()), share).model
        total += (
            count * ratios(functools.partial(_some_steps, model, algorithm, steps), base, repeats=5).median
        )
    return total / sum(STEPS)


def _some_steps(model, algorithm, steps):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, 40)).astype("float32")
    examples = _Examples(x, np.full((BATCH, 10), 0.1, "float32"))
    trained(Made(model), examples, algorithm, steps, 0.001)


class _Examples:
    seed = 0

    def __init__(self, x, targets):
        self.x, self.targets = x, targets


def stored(rows, path):
    """Write rows to the file that the chapter shows, with the date and the device."""
    rows = rows.drop(columns="key")  # it holds for this version of the code alone
    rows = rows.assign(date=datetime.date.today().isoformat(), device=device_name("cpu"))
    rows.to_csv(path, index=False, float_format="%.5g")
