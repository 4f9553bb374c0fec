"""The trainings of chapter 3.4: teachers, their students, and the controls.

Every training has its own cosine and its learning rate from ``RATES``. Which rate counts is decided on
2,000 validation examples, for each way to teach anew; ``accuracy`` is measured on 10,000 others.
"""

import itertools
from dataclasses import replace
from typing import NamedTuple

import joblib
import numpy as np
import pandas as pd
import torch
from torch.func import functional_call, grad, vmap
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.distillation_torch import logits
from dlopt_helpers.distillation import cross_entropy, distillation_loss, hint_loss, soften
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.memo import memoise
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.published import published
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.summary import at_best_rate
from dlopt_helpers.lab.sweep import cosine
from dlopt_helpers.lab.training import batches, one_thread, train
from dlopt_helpers.sgd import SGD

NETWORKS = {
    "mlp100": lambda seed: mlp(hidden=100, seed=seed),
    "cnn25": lambda seed: cnn(channels=25, seed=seed),
    "cnn64": lambda seed: cnn(channels=64, seed=seed),
}
# Teachers: their network, learning rate and weight decay.
TEACHERS = {
    "mlp100": ("mlp100", 0.25, 1e-3),
    "cnn64": ("cnn64", 0.1, 3e-3),
    "cnn64, no decay": ("cnn64", 0.1, 0.0),
}
STEPS = 1_000
SEEDS = range(5)
RATES = [0.015, 0.03, 0.06, 0.12, 0.25]
LABELS = [300, 1_000, 4_000]
TEMPERATURES = [1.0, 2.0, 4.0, 8.0, 16.0]
ALPHAS = [0.5, 0.9]
DECAYS = [1e-3, 3e-3, 1e-2]
HINTS = [0.03, 0.1, 0.3]  # weights of the hints beside the labels
UNLABELLED = [0, 1_000, 4_000, 16_000]
OMITTED = 3  # the class that a student does not see


def validation():
    """Return 2,000 examples that choose among learning rates, and nothing else."""
    return fresh_test(2_000, seed=2)


# --- teachers ------------------------------------------------------------------------------------


def teacher(name="cnn64", labels=4_000, seed=0):
    """Return one of ``TEACHERS`` in evaluation mode; it has seen the first ``labels`` training examples."""
    model = NETWORKS[TEACHERS[name][0]](seed)
    model.load_state_dict({n: torch.from_numpy(w) for n, w in _teacher(name, labels, seed).items()})
    return model.eval().requires_grad_(False)


@memoise
def _teacher(name, labels, seed):
    (network, rate, decay), data = TEACHERS[name], mnist1d()
    model = NETWORKS[network](seed)
    data = data._replace(x_train=data.x_train[:labels], y_train=data.y_train[:labels])
    optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9, weight_decay=decay, fused=True)
    train(model, optimizer, data, STEPS, seed=seed, schedule=CosineAnnealingLR(optimizer, STEPS), every=STEPS)
    return {n: w.numpy() for n, w in model.state_dict().items()}


def shuffle_others(logits, seed):
    """Return logits in which each row's largest stays and the others change places at random: the control.

    The confidence and the entropy of each example stay; which of the other classes it resembles is lost.
    """
    control, others = logits.copy(), np.arange(logits.shape[1]) != logits.argmax(1)[:, None]
    rows = logits[others].reshape(len(logits), -1)
    control[others] = np.random.default_rng(seed).permuted(rows, axis=1).ravel()
    return control


# --- students ------------------------------------------------------------------------------------


class Lesson(NamedTuple):
    """What one student is told about the examples that several share, and how it is trained."""

    labels: np.ndarray
    logits: np.ndarray
    temperature: float
    alpha: float
    rate: float
    weight_decay: float = 0.0


@one_thread()
def train_students(model, x, lessons, seed, steps=STEPS, loss=distillation_loss):
    """Train a copy of ``model`` for each lesson, all at once, and return a function for their logits.

    SGD with momentum 0.9 on batches of 64. The copies see the same batches and differ in their lessons.

    Args:
      model: an ``nn.Module``, which stays as it is.
      x: the examples, an array.
      lessons: a list of :class:`Lesson`.
      seed: of the order of the examples.
      steps: number of updates.
      loss: of the student's output and what a lesson holds.
    """
    labels, teacher, *numbers = (torch.from_numpy(np.stack(each)) for each in zip(*lessons, strict=True))
    temperature, alpha, rate, weight_decay = (each.float() for each in numbers)

    def cost(weights, x, labels, teacher, temperature, alpha):
        return loss(functional_call(model, weights, (x,)), teacher, labels, temperature, alpha)

    def rule(w):
        shape = (-1, *[1] * (w.ndim - 1))
        return SGD(lr=rate.view(shape), momentum=0.9, weight_decay=weight_decay.view(shape))

    gradients = vmap(grad(cost), in_dims=(0, None, 0, 0, 0, 0))
    weights = {n: w.detach().expand(len(lessons), *w.shape).clone() for n, w in model.named_parameters()}
    rules, x = {n: rule(w) for n, w in weights.items()}, torch.from_numpy(x)
    states = {n: rules[n].init(w) for n, w in weights.items()}
    for step, batch in enumerate(batches(len(x), 64, steps, seed)):
        told = labels[:, batch], teacher[:, batch], temperature, alpha
        for n, gradient in gradients(weights, x[batch], *told).items():
            now = replace(rules[n], lr=cosine(step, steps) * rules[n].lr)
            weights[n], states[n] = now.step(weights[n], gradient, states[n])

    @one_thread()
    def students(x):
        of_each = vmap(lambda w, x: functional_call(model, w, (x,)), in_dims=(0, None))
        parts = torch.from_numpy(x).split(200)  # a hundred students' hidden layers of all would fill memory
        return torch.cat([of_each(weights, part) for part in parts], dim=1).numpy()

    return students


def _graded(students, runs, keys):
    """Return a row for each student: what ``keys`` and ``runs`` say, and its accuracies."""
    rows = pd.DataFrame(runs, columns=keys)
    for name, (x, y) in (("validation", validation()), ("accuracy", fresh_test())):
        rows[name] = (students(x).argmax(-1) == y).mean(axis=1)
    return rows


def gains(runs, alone, by, among=("rate",)):
    """Return by how much students beat the student alone of the same seed, each at its best rate.

    Args:
      runs: rows with ``labels``, ``seed``, ``rate``, ``validation``, ``accuracy`` and the columns ``by``.
      alone: rows of students without a teacher, for the same numbers of labels.
      by, among: as for :func:`~dlopt_helpers.lab.summary.at_best_rate`.

    Returns:
      One row per setting: ``accuracy`` (mean over seeds), ``gain`` and its standard error ``error``.
    """
    alone = at_best_rate(alone, ["labels"]).set_index(["labels", "seed"]).accuracy
    best = at_best_rate(runs, by, among)
    best["gain"] = best.accuracy - alone.loc[list(zip(best.labels, best.seed, strict=True))].to_numpy()
    found = best.groupby(by, as_index=False, sort=False)
    return found.agg(accuracy=("accuracy", "mean"), gain=("gain", "mean"), error=("gain", "sem"))


# --- with the labels that the teacher saw ----------------------------------------------------------


def _examples(labels):
    return (a[:labels] for a in mnist1d()[:2])


def _teacher_of(name, labels, seed):
    """Return the teacher of the student with this seed; its own is none of a student."""
    return teacher(name, labels, seed + 50)


def _teacher_logits(name, labels, seed, x):
    return logits(_teacher_of(name, labels, seed), x).numpy()


def teacher_accuracy(name="cnn64", labels=4_000):
    """Return the share of fresh examples that the students' teachers get right, the mean over seeds."""
    return np.mean([_knows(name, labels, seed) for seed in SEEDS])


@published
def _knows(name, labels, seed):
    x, y = fresh_test()
    return float((_teacher_logits(name, labels, seed, x).argmax(1) == y).mean())


def _lesson(y, z, temperature, alpha, rate, factor=True):
    """Return a lesson; without the factor T^2 it is one with another alpha and another rate."""
    scale = 1.0 if factor else alpha / temperature**2 + 1 - alpha
    alpha = alpha if factor else alpha / temperature**2 / scale
    return Lesson(y, z, float(temperature), alpha, rate * scale)


@published
def _taught(student, network, labels, seed, temperatures, alphas, kinds):
    x, y = _examples(labels)
    z = _teacher_logits(network, labels, seed, x)
    told = {"alone": z, "teacher": z, "shuffled": shuffle_others(z, seed), "no factor": z}
    settings = [("alone", 1.0, 0.0), *itertools.product(kinds, temperatures, alphas)]
    runs = [(*setting, rate) for setting in settings for rate in RATES]
    lessons = [_lesson(y, told[kind], *rest, factor=kind != "no factor") for kind, *rest in runs]
    students = train_students(NETWORKS[student](seed), x, lessons, seed)
    rows = _graded(students, runs, ["logits", "temperature", "alpha", "rate"])
    return rows.assign(student=student, teacher=network, labels=labels, seed=seed)


def taught(
    student="mlp100",
    teacher="cnn64",
    labels=LABELS,
    temperatures=TEMPERATURES,
    alphas=ALPHAS,
    kinds=("teacher", "shuffled"),
):
    """Train students with a teacher that saw the same labels, at each rate, five seeds each.

    Returns:
      One row per student: ``logits`` (``alone``, or what it was told: the ``teacher``'s, those ``shuffled``,
      or the teacher's with ``no factor`` :math:`T^2`), ``temperature``, ``alpha``, ``labels``, ``rate``,
      ``seed``, ``student`` and ``teacher``, and its accuracies on the ``validation`` and the test examples.
    """
    settings = list(temperatures), list(alphas), list(kinds)
    jobs = [joblib.delayed(_taught)(student, teacher, n, seed, *settings) for n in labels for seed in SEEDS]
    return pd.concat(spread(jobs, "students"), ignore_index=True)


@published
def _decayed(labels, seed):
    x, y = _examples(labels)
    z = _teacher_logits("cnn64", labels, seed, x)
    told = {"alone": (1.0, 0.0), "teacher": (8.0, 0.9)}
    runs = list(itertools.product(told, [0.0, *DECAYS], RATES))
    lessons = [Lesson(y, z, *told[kind], rate, decay) for kind, decay, rate in runs]
    students = train_students(NETWORKS["mlp100"](seed), x, lessons, seed)
    return _graded(students, runs, ["logits", "decay", "rate"]).assign(labels=labels, seed=seed)


def decayed(labels=1_000):
    """Train students with several weight decays, alone and with the teacher at T = 8, alpha = 0.9."""
    jobs = [joblib.delayed(_decayed)(labels, seed) for seed in SEEDS]
    return pd.concat(spread(jobs, "students"), ignore_index=True)


class WithHints(torch.nn.Module):
    """A student that gives its logits and, behind them, its last hidden layer in the teacher's units."""

    def __init__(self, student, units, seed):
        super().__init__()
        self.body, self.head = student[:-1], student[-1]
        draw = torch.Generator().manual_seed(seed)
        self.projection = torch.nn.Parameter(
            torch.empty(self.head.in_features, units).uniform_(-0.1, 0.1, generator=draw)
        )

    def forward(self, x):
        h = self.body(x)
        return torch.cat([self.head(h), h @ self.projection], dim=-1)


def _labels_and_hints(student, hints, labels, temperature, alpha):
    """Return the loss of labels and hints; ``alpha`` is the weight of the hints."""
    return cross_entropy(student[..., :10], labels) + alpha * hint_loss(student[..., 10:], hints[..., 10:])


@published
def _hinted(labels, seed):
    x, y = _examples(labels)
    hints = logits(_teacher_of("cnn64", labels, seed)[:-1], x).numpy()
    model = WithHints(NETWORKS["mlp100"](seed), hints.shape[1], seed)
    told = np.concatenate([np.zeros((labels, 10), "float32"), hints], axis=1)
    runs = list(itertools.product(HINTS, RATES))
    lessons = [Lesson(y, told, 1.0, weight, rate) for weight, rate in runs]
    students = train_students(model, x, lessons, seed, loss=_labels_and_hints)
    return _graded(lambda x: students(x)[..., :10], runs, ["weight", "rate"]).assign(labels=labels, seed=seed)


def hinted(labels=1_000):
    """Train students on labels and on hints: the teacher's last hidden layer, for the same examples."""
    jobs = [joblib.delayed(_hinted)(labels, seed) for seed in SEEDS]
    return pd.concat(spread(jobs, "students"), ignore_index=True)


# --- with examples that nobody labelled ------------------------------------------------------------


@published
def _transferred(labels, unlabelled, seed):
    x, y = _examples(labels)
    more = fresh_test(max(UNLABELLED), seed=3)
    x, y = np.concatenate([x, more[0][:unlabelled]]), np.concatenate([y, more[1][:unlabelled]])
    z = _teacher_logits("cnn64", labels, seed, x)
    told = {"teacher": (y, 1.0), "its classes": (z.argmax(1), 0.0), "true labels": (y, 0.0)}
    runs = list(itertools.product(told, RATES[-2:]))
    lessons = [Lesson(told[kind][0], z, 1.0, told[kind][1], rate) for kind, rate in runs]
    students = train_students(NETWORKS["mlp100"](seed), x, lessons, seed, steps=2 * STEPS)
    return _graded(students, runs, ["told", "rate"]).assign(labels=labels, unlabelled=unlabelled, seed=seed)


def transferred(labels=(1_000, 4_000), unlabelled=UNLABELLED):
    """Train students for 2,000 steps on labelled examples and on more that only the teacher judges.

    Returns:
      One row per student; ``told`` is whose word it got for all of them: the ``teacher``'s probabilities,
      ``its classes`` (the likeliest alone), or the ``true labels``, which nobody would have. The teacher
      saw the ``labels`` first examples and no others.
    """
    jobs = [joblib.delayed(_transferred)(n, m, s) for n in labels for m in unlabelled for s in SEEDS]
    return pd.concat(spread(jobs, "students"), ignore_index=True)


# --- without a class -------------------------------------------------------------------------------


def best_bias(logits, labels):
    """Return what to add to the omitted class's logit so that most of the examples are right."""
    biases = np.linspace(0, 20, 101)
    shift = np.eye(logits.shape[1])[OMITTED]
    return biases[np.argmax([((logits + b * shift).argmax(1) == labels).mean() for b in biases])]


@published
def _omitted(seed):
    x, y = (a[mnist1d().y_train != OMITTED] for a in mnist1d()[:2])
    z = _teacher_logits("cnn64", 4_000, seed, x)
    settings = [("labels", 1.0, 0.0), *(("teacher", t, 1.0) for t in (1.0, 4.0, 16.0))]
    runs = [(*setting, rate) for setting in settings for rate in RATES]
    students = train_students(NETWORKS["mlp100"](seed), x, [Lesson(y, z, *r[1:]) for r in runs], seed)
    (x_val, y_val), (x_test, y_test) = validation(), fresh_test()
    threes, shift, rows = y_test == OMITTED, np.eye(10)[OMITTED], []
    for z_val, z_test in zip(students(x_val), students(x_test), strict=True):
        bias = best_bias(z_val, y_val)
        right = (z_test + bias * shift).argmax(1) == y_test
        at_once = (z_test[threes].argmax(1) == OMITTED).mean()
        chosen = ((z_val + bias * shift).argmax(1) == y_val).mean()
        rows.append((at_once, right[threes].mean(), right.mean(), chosen))
    rows = pd.DataFrame(rows, columns=["at once", "with bias", "accuracy", "validation"])
    return pd.DataFrame(runs, columns=["told", "temperature", "alpha", "rate"]).join(rows).assign(seed=seed)


def omitted():
    """Train students on all classes but one; the teacher saw all ten.

    Returns:
      One row per student: the share of the omitted class's test examples that it gets right ``at once``
      and ``with bias`` (:func:`best_bias` on the validation examples), and the accuracy on all then.
    """
    return pd.concat(
        spread([joblib.delayed(_omitted)(seed) for seed in SEEDS], "students"), ignore_index=True
    )


# --- the article's words, taken at their word --------------------------------------------------------


def _squared_error(student, target, labels, temperature, alpha):
    return ((student - target) ** 2).mean()


@published
def _error_told(seed):
    x, y = _examples(4_000)
    error = soften(_teacher_logits("cnn64", 4_000, seed, x)) - np.eye(10, dtype="float32")[y]
    lessons = [Lesson(y, error, 1.0, 1.0, rate) for rate in RATES]
    students = train_students(NETWORKS["mlp100"](seed), x, lessons, seed, loss=_squared_error)
    x, y = fresh_test()
    z = students(x)
    shares = {"largest": (z.argmax(-1) == y).mean(axis=1), "smallest": (z.argmin(-1) == y).mean(axis=1)}
    return pd.DataFrame({"rate": RATES, **shares}).assign(seed=seed)


def error_told():
    """Train students to give the teacher's prediction error, its probabilities less the label.

    Returns:
      One row per learning rate and seed: the share of test examples whose class has the ``largest`` of a
      student's outputs, and the ``smallest``, which a negative error would single out.
    """
    jobs = [joblib.delayed(_error_told)(seed) for seed in SEEDS]
    return pd.concat(spread(jobs, "students"), ignore_index=True)
