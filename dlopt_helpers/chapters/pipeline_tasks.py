"""Where the pipelines of chapter 4.2 start, and what they train on.

The start is the dense network of its seed. What teaches it are the four CNNs of chapter 3.3 that have the
other seeds, so that no network teaches itself; all of them have seen the same 4,000 labelled examples and no
others.
"""

import numpy as np
import torch
from scipy.special import softmax
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.distillation_torch import logits
from dlopt_helpers.chapters.pruning_runs import dense
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.memo import memoise
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import train
from dlopt_helpers.pipeline import Made, Task

SEEDS = range(5)
COPIES = 25  # of each labelled example, each shifted by another number of places
FARTHEST = 5  # places
UNLABELLED = 50_000

# --- starts ----------------------------------------------------------------------------------------


def start(network, seed):
    """Return the dense network of a seed: ``mlp1024``, far too big for its task, or ``cnn64``, which is not.

    Both are trained as those of chapter 3.3: 1,000 steps of SGD with momentum at the best of its rates.
    """
    if network == "cnn64":
        return Made(dense("cnn64", seed))
    model = mlp(hidden=1_024, seed=seed)
    model.load_state_dict({name: torch.from_numpy(w) for name, w in _mlp1024(seed).items()})
    return Made(model)


@memoise
def _mlp1024(seed):
    model, data = mlp(hidden=1_024, seed=seed), mnist1d()
    optimizer = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, fused=True)
    train(model, optimizer, data, 1_000, seed=seed, schedule=CosineAnnealingLR(optimizer, 1_000), every=1_000)
    return {name: w.numpy() for name, w in model.state_dict().items()}


# --- tasks -----------------------------------------------------------------------------------------


def shifted(x, seed):
    """Return ``COPIES`` of each example, each shifted by up to ``FARTHEST`` places.

    The value at the end is repeated into the places that become free.
    """
    x = np.tile(x, (COPIES, 1))
    by = np.random.default_rng(seed).integers(-FARTHEST, FARTHEST + 1, size=(len(x), 1))
    return np.take_along_axis(x, np.clip(np.arange(x.shape[1]) - by, 0, x.shape[1] - 1), axis=1)


def one_hot(labels):
    """Return probabilities of 1 for the labels."""
    return np.eye(10, dtype="float32")[labels]


@memoise
def taught(kind, seed):
    """Return the mean of the four teachers' probabilities for the examples of a task."""
    x, teachers = _examples(kind, seed), [dense("cnn64", other) for other in SEEDS if other != seed]
    return np.mean([softmax(logits(model, x).numpy(), axis=1) for model in teachers], axis=0)


def _examples(kind, seed):
    if kind in ("transfer", "true labels"):
        return fresh_test(UNLABELLED, seed=3)[0]
    x = mnist1d().x_train
    return x if kind == "labels" else shifted(x, seed)


def _labels(kind):
    if kind == "true labels":
        return fresh_test(UNLABELLED, seed=3)[1]
    return np.tile(mnist1d().y_train, COPIES if kind == "shifted" else 1)


def task(kind, seed):
    """Return what the stages train on, by one of the ``TASKS``."""
    targets = taught(kind, seed) if kind in ("strict", "transfer") else one_hot(_labels(kind))
    return Task(_examples(kind, seed), targets, fresh_test(), seed)


TASKS = {
    "labels": "the 4,000 labelled examples",
    "shifted": "the same, 25 times shifted",
    "strict": "the same, shifted, with the teachers' probabilities instead of the labels",
    "transfer": "50,000 others that nobody labelled, with the teachers' probabilities",
    "true labels": "these 50,000 with labels that nobody would have",
}
