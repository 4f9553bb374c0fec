"""The trainings of trend 3 in chapter 5: a teacher that moves to new classes, and its students.

The old task is the digits 0 to 6 of MNIST-1D with all their labels, the new one the digits 7 to 9 with few.
Each way to learn has its own learning rate from ``RATES``, chosen on 600 validation examples of the new
classes. ``accuracy`` is measured on 3,000 others, ``old`` on 7,000 of the old classes.
"""

import copy
import itertools

import joblib
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.distillation_torch import logits
from dlopt_helpers.chapters.distillation_runs import Lesson, train_students, validation
from dlopt_helpers.distillation import cross_entropy, distillation_loss
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.memo import memoise
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.summary import at_best_rate
from dlopt_helpers.lab.training import train

OLD = 7  # the classes 0 to 6 are old, 7 to 9 new
LABELS = [5, 10, 30, 100]  # of each new class
UNLABELLED = [0, 300, 3_000]
SEEDS = range(5)
RATES = [0.003, 0.01, 0.03, 0.1, 0.3]
OLD_STEPS, TEACHER_STEPS, STUDENT_STEPS = 1_000, 200, 500
BATCH = 64  # of every training
# Teachers: what their body learned before, and what they train on the new classes.
TEACHERS = {
    "from scratch": ("untrained", "all"),
    "fine-tuned": ("pre-trained", "all"),
    "new head": ("pre-trained", "head"),
    "shuffled, fine-tuned": ("shuffled", "all"),
    "shuffled, new head": ("shuffled", "head"),
    "untrained, new head": ("untrained", "head"),
    "old self": ("pre-trained", "all"),  # with the loss that keeps the old answers
}
KEEP, SOFT = 1.0, 2.0  # weight and temperature of the old answers

# --- the two tasks ---------------------------------------------------------------------------------


def of_new(x, y):
    """Return the examples of the new classes, whose labels count from 0."""
    return x[y >= OLD], y[y >= OLD] - OLD


def few(labels, seed):
    """Return ``labels`` labelled examples of each new class, drawn by ``seed``."""
    x, y = of_new(*mnist1d()[:2])
    order = np.random.default_rng(seed).permutation(len(x))
    chosen = np.concatenate([order[y[order] == c][:labels] for c in range(3)])
    return x[chosen], y[chosen]


def unlabelled(n):
    """Return ``n`` examples of the new classes, and their labels, which only the control sees."""
    return [a[:n] for a in of_new(*fresh_test(16_000, seed=3))]


def repeated(*arrays):
    """Repeat few examples until they fill a batch."""
    times = -(-BATCH // len(arrays[0]))
    return [np.tile(a, (times, *[1] * (a.ndim - 1))) for a in arrays]


# --- the old task ----------------------------------------------------------------------------------


def network(kind, body, seed):
    """Return a network whose outputs 7 to 9 are a new head.

    Args:
      kind: ``"cnn"``, the teacher, or ``"mlp"``, the student.
      body: what it learned on the old classes: ``"pre-trained"``; ``"shuffled"``, the same training with
        the labels in random order; or ``"untrained"``, nothing.
      seed: of the weights.
    """
    model = {"cnn": cnn, "mlp": lambda seed: mlp(hidden=32, seed=seed)}[kind](seed=seed)
    if body != "untrained":
        fresh = copy.deepcopy(model[-1])
        model.load_state_dict({n: torch.from_numpy(w) for n, w in _old_task(kind, body, seed).items()})
        with torch.no_grad():
            model[-1].weight[OLD:], model[-1].bias[OLD:] = fresh.weight[OLD:], fresh.bias[OLD:]
    return model


@memoise
def _old_task(kind, body, seed):
    data, model = mnist1d(), network(kind, "untrained", seed)
    x, y = (a[data.y_train < OLD] for a in data[:2])
    y = np.random.default_rng(seed).permutation(y) if body == "shuffled" else y
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, fused=True)
    schedule = CosineAnnealingLR(optimizer, OLD_STEPS)
    data = data._replace(x_train=x, y_train=y)
    train(model, optimizer, data, OLD_STEPS, BATCH, seed, schedule, every=OLD_STEPS)
    return {n: w.numpy() for n, w in model.state_dict().items()}


# --- teachers --------------------------------------------------------------------------------------


def new_and_old(student, before, labels, temperature=SOFT, alpha=0.0):
    """Return the loss on the new classes and, with weight ``alpha``, the distance to the old answers."""
    kept = distillation_loss(student[..., :OLD], before[..., :OLD], temperature=temperature)
    return cross_entropy(student[..., OLD:], labels) + alpha * kept


def _grade(z, labels, seed):
    """Return the columns of students or teachers from a function for their logits of the new classes."""
    (x, y), (x_test, y_test) = of_new(*validation()), of_new(*fresh_test())
    right = z(x).argmax(-1) == y
    order = np.random.default_rng(seed).permutation(len(x))
    some = np.concatenate([order[y[order] == c][:labels] for c in range(3)])
    return {
        "validation": right.mean(axis=1),
        "few": right[:, some].mean(axis=1),  # on as many as there are labels to learn from
        "accuracy": (z(x_test).argmax(-1) == y_test).mean(axis=1),
    }


@memoise
def _teachers(labels, seed):
    """Return a row per teacher, and the logits of those who teach, for labelled and unlabelled examples."""
    x, y = few(labels, seed)
    x_all = np.concatenate([x, unlabelled(max(UNLABELLED))[0]])
    x_test, y_test = fresh_test()
    x_old, y_old = x_test[y_test < OLD], y_test[y_test < OLD]
    rows, says = [], {}
    for way, (body, trained) in TEACHERS.items():
        model = network("cnn", body, seed)
        features = (lambda x, m=model[:-1]: logits(m, x).numpy()) if trained == "head" else (lambda x: x)
        part = model[-1] if trained == "head" else model
        told = logits(model, x).numpy()
        keep = KEEP if way == "old self" else 0.0
        rates = RATES[:-1] if body == "pre-trained" else RATES[1:]  # what has learned wants smaller steps
        lessons = [Lesson(*repeated(y, told), SOFT, keep, rate) for rate in rates]
        ways = train_students(part, *repeated(features(x)), lessons, seed, TEACHER_STEPS, new_and_old)

        def z(x, ways=ways, features=features):
            return ways(features(x))

        graded = _grade(lambda x: z(x)[..., OLD:], labels, seed)
        old = (z(x_old)[..., :OLD].argmax(-1) == y_old).mean(axis=1)
        rows.append(pd.DataFrame({"way": way, "rate": rates, **graded, "old": old}))
        says[way] = dict(zip(rates, z(x_all)[..., OLD:], strict=True))
    return pd.concat(rows, ignore_index=True).assign(labels=labels, seed=seed), says


def teachers(labels=LABELS, seeds=SEEDS):
    """Train the teachers of each number of labels and each seed.

    Returns:
      One row per teacher and rate: ``way``, ``rate``, ``labels``, ``seed``; its accuracies on the
      ``validation`` examples, on the ``few`` of them that are as many as the labels, on the test examples
      (``accuracy``), and on those of the old classes (``old``), among which the old head chooses.
    """
    jobs = [joblib.delayed(_teachers)(n, seed) for n in labels for seed in seeds]
    return pd.concat([rows for rows, _ in spread(jobs, "teachers")], ignore_index=True)


# --- students --------------------------------------------------------------------------------------

# What a student's own body learned before, and who tells it about the examples: nobody but the labels, a
# teacher, or (about those without labels, too) the truth, which nobody has.
STUDENTS = {
    "labels alone": ("untrained", "labels"),
    "pre-trained": ("pre-trained", "labels"),
    "teacher from scratch": ("untrained", "from scratch"),
    "teacher transferred": ("untrained", "fine-tuned"),
    "teacher shuffled": ("untrained", "shuffled, fine-tuned"),
    "both": ("pre-trained", "fine-tuned"),
    "true labels": ("untrained", "truth"),
}


def student(body, seed):
    """Return a student for the three new classes: an MLP whose head is the new head alone."""
    model = network("mlp", body, seed)
    head = nn.Linear(model[-1].in_features, 3)
    head.load_state_dict({"weight": model[-1].weight[OLD:], "bias": model[-1].bias[OLD:]})
    return nn.Sequential(*model[:-1], head)


def pupils(body, more):
    """Return the names of the students with that body, given ``more`` examples without labels."""
    idle = "labels" if more else "truth"  # the first has no use for them, the second needs them
    return [way for way, (own, who) in STUDENTS.items() if own == body and who != idle]


def lesson(y, z, rate, more):
    """Return what a student is told: labels alone where ``z`` is None, else as chapter 3.4 found best."""
    if z is None:
        return Lesson(*repeated(y, np.zeros((len(y), 3), "float32")), 1.0, 0.0, rate)
    temperature, alpha = (1.0, 1.0) if more else (4.0, 0.9)
    return Lesson(*repeated(y, z), temperature, alpha, rate)


@memoise
def _students(labels, more, seed, rates):
    """Return a row per student; ``rates`` are those of the teachers, by name."""
    says = _teachers(labels, seed)[1]
    x, y = map(np.concatenate, zip(few(labels, seed), unlabelled(more), strict=True))
    told = {who: says[who][rate][: len(x)] for who, rate in rates.items()}
    rows = []
    for body in ("untrained", "pre-trained"):
        runs = list(itertools.product(pupils(body, more), RATES))
        lessons = [lesson(y, told.get(STUDENTS[way][1]), rate, more > 0) for way, rate in runs]
        students = train_students(student(body, seed), *repeated(x), lessons, seed, STUDENT_STEPS)
        rows.append(pd.DataFrame(runs, columns=["way", "rate"]).assign(**_grade(students, labels, seed)))
    return pd.concat(rows, ignore_index=True).assign(labels=labels, more=more, seed=seed)


def teaching_rates(rows):
    """Return the rate of each teacher that has students, a dict: the validation examples choose it."""
    best = at_best_rate(rows, ["way"])
    rates = dict(zip(best.way, best.rate, strict=True))
    return {who: rates[who] for _, who in STUDENTS.values() if who in rates}


def students(rows, labels=LABELS, seeds=SEEDS, unlabelled=UNLABELLED):
    """Train the students of the teachers in ``rows``, which :func:`teachers` returns.

    Returns:
      One row per student and rate, with the columns of the teachers but ``old``, and with ``more``, the
      number of examples without labels.
    """
    told = {n: teaching_rates(rows[rows.labels == n]) for n in labels}
    settings = itertools.product(labels, unlabelled, seeds)
    jobs = [joblib.delayed(_students)(n, more, seed, told[n]) for n, more, seed in settings]
    return pd.concat(spread(jobs, "students"), ignore_index=True)
