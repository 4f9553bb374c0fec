"""The trainings of chapter 3.4 do what they are called, tried on a few steps."""

import copy
import functools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional
from torch.optim.lr_scheduler import CosineAnnealingLR

from dlopt_helpers.bridges.distillation_torch import logits
from dlopt_helpers.chapters import distillation_runs as module
from dlopt_helpers.distillation import cross_entropy, distillation_loss, soften
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.training import batches

torch.set_num_threads(1)

SEEDS = set(module.SEEDS)
MEMOISED = ["_teacher", "_taught", "_decayed", "_hinted", "_transferred", "_omitted", "_error_told", "_knows"]


@functools.cache
def few(n=10_000, seed=1):
    """Return fresh examples, but fewer than asked for, for the test and the validation set."""
    return fresh_test.__wrapped__({10_000: 100, 2_000: 50}.get(n, n), seed)


@pytest.fixture
def small(monkeypatch):
    """Few steps, small networks and sets, and nothing on disk."""
    monkeypatch.delenv("DLOPT_JOBS", raising=False)  # other processes would know nothing of all this
    for name in MEMOISED:
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    networks = {
        "mlp100": lambda seed: mlp(hidden=8, seed=seed),
        "cnn25": lambda seed: cnn(channels=2, seed=seed),
        "cnn64": lambda seed: cnn(channels=3, seed=seed),
    }
    monkeypatch.setattr(module, "NETWORKS", networks)
    monkeypatch.setattr(module, "fresh_test", few)
    monkeypatch.setattr(module, "STEPS", 12)
    monkeypatch.setattr(module, "SEEDS", range(2))
    monkeypatch.setattr(module, "RATES", [0.03, 0.06, 0.12])
    monkeypatch.setattr(module, "UNLABELLED", [0, 10, 30])


@pytest.fixture
def short(small, monkeypatch):
    """As ``small``, with teachers that know nothing; each of them and each stack of students is noted."""
    seen, train_students = SimpleNamespace(students=[], teachers=[]), module.train_students

    def noted_teacher(network="cnn64", labels=4_000, seed=0):
        model = module.NETWORKS[network](seed).eval()
        seen.teachers.append(SimpleNamespace(network=network, labels=labels, seed=seed, model=model))
        return model

    def noted_students(model, x, lessons, seed, steps=None, **more):
        seen.students.append(
            SimpleNamespace(model=model, x=x, lessons=lessons, seed=seed, steps=steps, **more)
        )
        seen.answers = train_students(model, x, lessons, seed, steps=steps or 6, **more)
        return seen.answers

    monkeypatch.setattr(module, "teacher", noted_teacher)
    monkeypatch.setattr(module, "train_students", noted_students)
    return seen


def examples(n):
    data = mnist1d()
    return data.x_train[:n], data.y_train[:n]


def trained_alone(model, x, lesson, seed, steps, loss=distillation_loss):
    """Return a copy of ``model`` that PyTorch has trained in a plain loop."""
    model = copy.deepcopy(model).requires_grad_(True)
    x, y, v = (torch.from_numpy(a) for a in (x, lesson.labels, lesson.logits))
    optimizer = torch.optim.SGD(
        model.parameters(), lesson.rate, momentum=0.9, weight_decay=lesson.weight_decay
    )
    schedule = CosineAnnealingLR(optimizer, steps)
    for batch in batches(len(x), 64, steps, seed):
        optimizer.zero_grad()
        loss(model(x[batch]), v[batch], y[batch], lesson.temperature, lesson.alpha).backward()
        optimizer.step()
        schedule.step()
    return model


# --- teachers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", module.TEACHERS)
def test_a_teacher_is_trained_by_its_recipe_on_the_first_labels(small, name):
    found = module.teacher(name, labels=70, seed=3)
    assert not found.training and not any(p.requires_grad for p in found.parameters())
    x, y = examples(70)
    network, rate, decay = module.TEACHERS[name]
    recipe = module.Lesson(y, np.zeros((70, 10), "float32"), 1.0, 0.0, rate, decay)
    other = recipe._replace(weight_decay=3e-3 - decay)
    fresh, net = few()[0], module.NETWORKS[network]
    expected, unlike = (logits(trained_alone(net(3), x, r, seed=3, steps=12), fresh) for r in (recipe, other))
    torch.testing.assert_close(logits(found, fresh), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(logits(found, fresh), unlike, atol=1e-4)


def test_shuffled_logits_keep_the_largest_and_the_values_of_each_row():
    z = np.random.default_rng(0).normal(size=(200, 10)).astype("float32")
    before = z.copy()
    control = module.shuffle_others(z, seed=1)
    assert np.array_equal(z, before) and control.dtype == z.dtype
    assert np.array_equal(control.argmax(1), z.argmax(1)) and np.array_equal(control.max(1), z.max(1))
    assert np.array_equal(np.sort(control), np.sort(z))
    for temperature in (0.5, 1.0, 8.0):
        p, q = soften(z, temperature), soften(control, temperature)
        entropies = [-(each * np.log(each)).sum(1) for each in (p, q)]
        np.testing.assert_allclose(*entropies, rtol=1e-5)
    moved = (control != z).sum(1)
    assert moved.mean() > 7  # of nine, and a place is kept by chance once in nine times
    assert np.array_equal(control, module.shuffle_others(z, seed=1))
    assert not np.array_equal(control, module.shuffle_others(z, seed=2))


def test_each_row_is_shuffled_in_its_own_order():
    alike = np.tile(np.arange(10.0), (50, 1))
    control = module.shuffle_others(alike, seed=0)
    assert len(np.unique(control, axis=0)) > 45
    where_is_the_second = (control == 8).argmax(1)
    assert len(np.unique(where_is_the_second)) == 9  # every class but the largest


# --- students ------------------------------------------------------------------------------------

_DRAW = np.random.default_rng(0)
X, Y = _DRAW.normal(size=(150, 40)).astype("float32"), _DRAW.integers(10, size=150)
V = 3 * _DRAW.normal(size=(150, 10)).astype("float32")
BASE = module.Lesson(Y, V, 2.0, 0.5, 0.1, 0.01)
CHANGES = {
    "labels": (Y + 1) % 10,
    "logits": V[::-1].copy(),
    "temperature": 8.0,
    "alpha": 0.9,
    "rate": 0.2,
    "weight_decay": 0.1,
}
LESSONS = [BASE, *(BASE._replace(**{name: value}) for name, value in CHANGES.items())]


@pytest.mark.parametrize("model", [mlp(hidden=12, seed=1), cnn(channels=3, seed=1)], ids=["mlp", "cnn"])
@pytest.mark.parametrize("loss", [distillation_loss, lambda z, v, y, t, a: a * cross_entropy(z / t, y)])
def test_each_student_of_a_stack_is_trained_as_if_alone(model, loss):
    before = copy.deepcopy(model.state_dict())
    students = module.train_students(model, X, LESSONS, seed=5, steps=7, loss=loss)
    x = few()[0]
    for lesson, found in zip(LESSONS, students(x), strict=True):
        expected = logits(trained_alone(model, X, lesson, 5, 7, loss), x).numpy()
        np.testing.assert_allclose(found, expected, atol=2e-5)
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    assert not any(p.grad is not None for p in model.parameters())


def test_everything_in_a_lesson_has_an_effect_and_none_on_the_neighbours():
    model, x = mlp(hidden=12, seed=1), few()[0]
    base, *others = module.train_students(model, X, LESSONS, seed=5, steps=7)(x)
    for name, other in zip(CHANGES, others, strict=True):
        assert abs(other - base).max() > 3e-3, name
    alike = module.train_students(model, X, [BASE] * len(LESSONS), seed=5, steps=7)(x)
    np.testing.assert_allclose(alike, np.broadcast_to(base, alike.shape), atol=1e-5)


def test_validation_and_test_examples_are_two_sets(small, monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "fresh_test", lambda n=10_000, seed=1: asked.append((n, seed)) or few(n, seed)
    )
    module._graded(lambda x: np.zeros((1, len(x), 10)), [(0.1,)], ["rate"])
    assert asked == [(2_000, 2), (10_000, 1)]


def test_graded_on_the_validation_and_on_the_test_examples(small):
    (x_val, y_val), (x_test, y_test) = module.validation(), few()
    assert (len(x_val), len(x_test)) == (50, 100)

    def students(x):
        y = y_val if np.array_equal(x, x_val) else y_test
        knows, only_validation = np.eye(10)[y], np.eye(10)[y if y is y_val else (y + 1) % 10]
        return np.stack([knows, only_validation, np.tile(np.eye(10)[0], (len(x), 1))])

    rows = module._graded(students, [("a", 0.1), ("b", 0.2), ("c", 0.3)], ["name", "rate"])
    assert rows.to_dict("list") == {
        "name": ["a", "b", "c"],
        "rate": [0.1, 0.2, 0.3],
        "validation": [1.0, 1.0, 0.1],
        "accuracy": [1.0, 0.0, 0.1],
    }


# --- what is gained -------------------------------------------------------------------------------


def frame(columns, *rows):
    return pd.DataFrame(rows, columns=columns.split())


ALONE = frame(
    "labels seed rate validation accuracy",
    (300, 0, 0.1, 0.3, 0.40),
    (300, 1, 0.1, 0.3, 0.30),
    (300, 2, 0.1, 0.3, 0.20),
    (300, 0, 0.2, 0.2, 0.90),  # better on the test examples: not the rate that counts
    (300, 1, 0.2, 0.2, 0.90),
    (300, 2, 0.2, 0.2, 0.90),
    (900, 0, 0.1, 0.5, 0.10),
    (900, 1, 0.1, 0.5, 0.10),
    (900, 2, 0.1, 0.5, 0.10),
    (900, 0, 0.2, 0.6, 0.60),
    (900, 1, 0.2, 0.6, 0.70),
    (900, 2, 0.2, 0.6, 0.50),
)
TAUGHT = frame(
    "labels temperature seed rate validation accuracy",
    *((300, 4.0, seed, 0.1, 0.1, 0.95) for seed in range(3)),
    (300, 4.0, 0, 0.2, 0.9, 0.41),
    (300, 4.0, 1, 0.2, 0.9, 0.33),
    (300, 4.0, 2, 0.2, 0.9, 0.25),
    *((300, 8.0, seed, 0.1, 0.9, 0.3) for seed in range(3)),
    *((900, 4.0, seed, 0.1, 0.9, (0.60, 0.65, 0.55)[seed]) for seed in range(3)),
)


def test_gains_pair_the_seeds_each_at_its_own_best_rate():
    runs = TAUGHT.sample(frac=1, random_state=0)
    found = module.gains(runs, ALONE.sample(frac=1, random_state=1), ["labels", "temperature"])
    assert list(found) == ["labels", "temperature", "accuracy", "gain", "error"]
    found = found.set_index(["labels", "temperature"]).sort_index()
    expected = {
        (300, 4.0): (0.33, [0.01, 0.03, 0.05]),
        (300, 8.0): (0.30, [-0.1, 0.0, 0.1]),
        (900, 4.0): (0.60, [0.0, -0.05, 0.05]),
    }
    assert list(found.index) == list(expected)
    for setting, (accuracy, gains) in expected.items():
        error = np.std(gains, ddof=1) / np.sqrt(3)
        np.testing.assert_allclose(found.loc[setting], [accuracy, np.mean(gains), error], atol=1e-12)


# --- with the labels that the teacher saw ----------------------------------------------------------


@pytest.mark.parametrize(
    "run, labels",
    [
        (lambda: module.taught(labels=[70], temperatures=[2.0], alphas=[0.5]), 70),
        (lambda: module.decayed(70), 70),
        (lambda: module.hinted(70), 70),
        (lambda: module.transferred([70], [10]), 70),
        (lambda: module.omitted(), 4_000),
        (lambda: module.error_told(), 4_000),
        (lambda: module.teacher_accuracy(labels=70), 70),
    ],
    ids=["taught", "decayed", "hinted", "transferred", "omitted", "error", "accuracy"],
)
def test_each_student_has_a_teacher_of_a_seed_that_no_student_has(short, run, labels):
    run()
    seeds = [teacher.seed for teacher in short.teachers]
    assert len(set(seeds)) == len(seeds) == 2 and not SEEDS & set(seeds)
    assert {(teacher.network, teacher.labels) for teacher in short.teachers} == {("cnn64", labels)}
    assert [call.seed for call in short.students] in ([0, 1], [])
    for call in short.students:
        own = module.NETWORKS["mlp100"](call.seed)[0].weight
        assert torch.equal(next(w for w in call.model.parameters() if w.shape == own.shape), own)


def test_what_teachers_know_is_the_mean_over_them(small, monkeypatch):
    y = few()[1]

    def said(network, labels, seed, x):
        return np.eye(10)[np.where(np.arange(100) < 30 + 20 * seed, y, (y + 1) % 10)]

    monkeypatch.setattr(module, "_teacher_logits", said)
    assert module.teacher_accuracy() == pytest.approx(0.4)


@pytest.mark.parametrize("temperature", [1.0, 4.0, 16.0])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9, 1.0])
def test_without_the_factor_a_step_is_that_of_the_loss_without_it(temperature, alpha):
    v, y = torch.from_numpy(V[:20]).double(), torch.from_numpy(Y[:20])
    z = torch.randn(20, 10, dtype=torch.double, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def step(loss, rate):
        return rate * torch.autograd.grad(loss, z)[0]

    def expected(factor):
        p, log_q = (v / temperature).softmax(1), (z / temperature).log_softmax(1)
        soft = functional.kl_div(log_q, p, reduction="batchmean")
        return step(alpha * factor * soft + (1 - alpha) * functional.cross_entropy(z, y), 0.1)

    for with_it, factor in ((True, temperature**2), (False, 1.0)):
        lesson = module._lesson(Y, V, temperature, alpha, 0.1, factor=with_it)
        assert lesson.labels is Y and lesson.logits is V and 0 <= lesson.alpha <= 1
        found = step(distillation_loss(z, v, y, lesson.temperature, lesson.alpha), lesson.rate)
        torch.testing.assert_close(found, expected(factor), atol=1e-15, rtol=1e-12)


def test_each_row_of_taught_is_a_student_that_was_told_so(short):
    kinds = ["teacher", "shuffled", "no factor"]
    rows = module._taught("mlp100", "cnn64", 70, 1, [1.0, 4.0], [0.5, 0.9], kinds)
    (call,), (teacher,), (x, y) = short.students, short.teachers, examples(70)
    assert np.array_equal(call.x, x) and call.steps is None  # a thousand
    assert len(rows) == (1 + 3 * 2 * 2) * 3 == len(call.lessons)
    z = logits(teacher.model, x).numpy()
    assert set(rows.logits) == {"alone", *kinds} and set(rows.query("logits == 'alone'").alpha) == {0.0}
    assert set(zip(rows.temperature, rows.alpha, strict=True)) == {
        (1.0, 0.0), (1.0, 0.5), (1.0, 0.9), (4.0, 0.5), (4.0, 0.9)
    }  # fmt: skip
    for lesson, row in zip(call.lessons, rows.itertuples(), strict=True):
        assert np.array_equal(lesson.labels, y) and lesson.weight_decay == 0
        told = module.shuffle_others(z, 1) if row.logits == "shuffled" else z
        np.testing.assert_array_equal(lesson.logits, told)
        like = module._lesson(y, told, row.temperature, row.alpha, row.rate, row.logits != "no factor")
        assert lesson[2:] == like[2:]
    right = [(answers.argmax(1) == few()[1]).mean() for answers in short.answers(few()[0])]
    assert list(rows.accuracy) == right


def test_a_student_alone_hears_no_teacher(short):
    def alone(teacher):
        rows = module._taught("cnn25", teacher, 70, 0, [], [], [])
        return np.stack([short.answers(few()[0])]), rows.drop(columns="teacher")

    (answers, rows), (others, other_rows) = alone("cnn64"), alone("mlp100")
    assert np.array_equal(answers, others) and rows.equals(other_rows)
    told = [call.lessons[0].logits for call in short.students]
    assert not np.array_equal(*told)


def test_taught_has_a_row_for_each_student(short):
    runs = module.taught(labels=[70, 80], temperatures=[1.0, 4.0], alphas=[0.5])
    by = ["logits", "temperature", "alpha", "labels", "rate", "seed"]
    assert set(runs) == {*by, "student", "teacher", "validation", "accuracy"}
    assert len(runs) == 2 * 2 * (1 + 2 * 2) * 3 and not runs.duplicated(by).any()
    assert {(call.seed, len(call.x)) for call in short.students} == {(s, n) for s in (0, 1) for n in (70, 80)}
    assert set(runs.labels) == {70, 80} and set(runs.seed) == {0, 1}
    assert set(runs.student) == {"mlp100"} and set(runs.teacher) == {"cnn64"}


def test_decayed_tries_each_weight_decay_alone_and_with_the_teacher(short):
    rows = module.decayed(70).query("seed == 0")
    call, y = short.students[0], examples(70)[1]
    for lesson, row in zip(call.lessons, rows.itertuples(), strict=True):
        told = (8.0, 0.9) if row.logits == "teacher" else (1.0, 0.0)
        assert lesson[2:] == (*told, row.rate, row.decay) and np.array_equal(lesson.labels, y)
        np.testing.assert_array_equal(lesson.logits, logits(short.teachers[0].model, call.x))
    assert set(rows.decay) == {0.0, *module.DECAYS} and len(rows) == 2 * 4 * 3


def test_a_student_with_hints_gives_its_logits_and_its_hidden_layer():
    student = mlp(hidden=12, seed=0)
    state = torch.get_rng_state()
    model, again, other = (module.WithHints(student, 30, seed) for seed in (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state()) and torch.equal(model.projection, again.projection)
    assert not torch.equal(model.projection, other.projection)
    x = torch.from_numpy(few()[0])
    found = model(x)
    torch.testing.assert_close(found[:, :10], student(x), atol=0, rtol=0)
    torch.testing.assert_close(found[:, 10:], student[:-1](x) @ model.projection, atol=0, rtol=0)
    assert model.projection.shape == (12, 30)
    assert {id(p) for p in model.parameters()} == {id(model.projection), *map(id, student.parameters())}


@pytest.mark.parametrize("weight", [0.0, 0.1, 2.0])
def test_loss_of_labels_and_hints(weight):
    found, told = (torch.randn(20, 40, generator=torch.Generator().manual_seed(s)) for s in (0, 1))
    y = torch.from_numpy(Y[:20])
    loss = module._labels_and_hints(found, told, y, torch.tensor(1.0), torch.tensor(weight))
    hint = ((found[:, 10:] - told[:, 10:]) ** 2).sum(1).mean() / 2
    torch.testing.assert_close(loss, functional.cross_entropy(found[:, :10], y) + weight * hint)


def test_hinted_students_hear_labels_and_the_teachers_last_hidden_layer(short):
    rows = module.hinted(70).query("seed == 1")
    call, teacher, (x, y) = short.students[1], short.teachers[1], examples(70)
    assert np.array_equal(call.x, x) and call.loss is module._labels_and_hints
    with torch.no_grad():
        hidden = teacher.model[:-1](torch.from_numpy(x))
    assert hidden.shape[1] == teacher.model[-1].in_features == call.model.projection.shape[1]
    for lesson, row in zip(call.lessons, rows.itertuples(), strict=True):
        assert np.array_equal(lesson.labels, y) and lesson[2:] == (1.0, row.weight, row.rate, 0.0)
        np.testing.assert_allclose(lesson.logits[:, 10:], hidden, atol=1e-6)
    assert set(rows.weight) == set(module.HINTS) and len(rows) == 3 * 3
    assert list(rows.accuracy) == [(z[:, :10].argmax(1) == few()[1]).mean() for z in short.answers(few()[0])]


# --- with examples that nobody labelled ------------------------------------------------------------


def rows_of(x):
    return {row.tobytes() for row in x}


@pytest.mark.parametrize("unlabelled", [0, 10, 30])
def test_transferred_students_hear_whose_word_the_row_says(short, unlabelled):
    rows = module._transferred(70, unlabelled, 1)
    (call,), (teacher,), (x, y) = short.students, short.teachers, examples(70)
    assert call.steps == 2 * module.STEPS and len(call.x) == 70 + unlabelled
    assert np.array_equal(call.x[:70], x)
    more = rows_of(call.x[70:])
    assert len(more) == unlabelled
    for others in (mnist1d().x_train, mnist1d().x_test, module.validation()[0], few()[0]):
        assert not more & rows_of(others)
    z = logits(teacher.model, call.x).numpy()
    truth = np.concatenate([y, few(30, seed=3)[1][:unlabelled]])
    for lesson, row in zip(call.lessons, rows.itertuples(), strict=True):
        assert (lesson.temperature, lesson.rate, lesson.weight_decay) == (1.0, row.rate, 0.0)
        assert lesson.alpha == {"teacher": 1.0, "its classes": 0.0, "true labels": 0.0}[row.told]
        if row.told == "teacher":
            np.testing.assert_array_equal(lesson.logits, z)
        else:
            assert np.array_equal(lesson.labels, z.argmax(1) if row.told == "its classes" else truth)
    assert not np.array_equal(z.argmax(1), truth)
    assert set(rows.told) == {"teacher", "its classes", "true labels"}
    assert set(rows.rate) == {0.06, 0.12} and len(rows) == 6 and set(rows.unlabelled) == {unlabelled}


# --- without a class -------------------------------------------------------------------------------


def test_best_bias_is_the_least_of_those_with_which_most_are_right():
    y = np.array([3, 3, 3, 0, 1])
    z = np.zeros((5, 10))
    z[:3, 0] = [2.0, 4.0, 9.0]  # the omitted class wins above these
    z[3, 0], z[4, 1] = 6.0, 20.0  # and below these it leaves the others alone
    assert module.best_bias(z, y) == pytest.approx(4.2)
    assert module.best_bias(np.eye(10)[y] * 30, y) == 0


def test_without_a_class_the_students_see_no_example_of_it(short):
    rows = module.omitted().query("seed == 0")
    call, teacher = short.students[0], short.teachers[0]
    x, y = mnist1d()[:2]
    assert np.array_equal(call.x, x[y != 3]) and len(call.x) < 4_000
    z = logits(teacher.model, call.x).numpy()
    for lesson, row in zip(call.lessons, rows.itertuples(), strict=True):
        assert np.array_equal(lesson.labels, y[y != 3]) and np.array_equal(lesson.logits, z)
        assert lesson[2:] == (row.temperature, row.alpha, row.rate, 0.0)
        assert row.alpha == (row.told == "teacher")
    assert set(rows.told) == {"labels", "teacher"} and len(rows) == 4 * 3


def test_the_bias_is_chosen_on_the_validation_examples(short, monkeypatch):
    needed = {50: [2, 2, 5, 0], 100: [2, 5, 2, 0]}  # what the threes lack: validation, test examples

    def students(x):
        y = {50: module.validation()[1], 100: few()[1]}[len(x)]
        answers = np.tile(15 * np.eye(10)[y], (12, 1, 1))
        for z, bias in zip(answers, needed[len(x)], strict=False):
            z[y == 3] = bias * np.eye(10)[0] if bias else z[y == 3]
        return answers

    monkeypatch.setattr(module, "train_students", lambda *_: students)
    rows = module._omitted(0)[:4]
    assert list(rows["at once"]) == [0, 0, 0, 1]
    assert list(rows["with bias"]) == [1, 0, 1, 1]
    assert list(rows.accuracy) == [1, 0.9, 1, 1]
    assert list(rows.validation) == [1, 1, 1, 1]


# --- the article's words, taken at their word --------------------------------------------------------


def test_error_told_students_learn_the_probabilities_less_the_label(short):
    rows = module.error_told().query("seed == 1").reset_index(drop=True)
    x, y = examples(4_000)
    call = short.students[1]
    error = logits(short.teachers[1].model, x).softmax(1).numpy() - np.eye(10, dtype="float32")[y]
    assert error[np.arange(4_000), y].max() < 0
    fresh, labels = few()
    for row, lesson, z in zip(rows.itertuples(), call.lessons, short.answers(fresh), strict=True):
        assert lesson.rate == row.rate
        np.testing.assert_allclose(lesson.logits, error, atol=1e-6)
        expected = trained_alone(call.model, x, lesson, 1, 6, loss=lambda z, v, *_: functional.mse_loss(z, v))
        np.testing.assert_allclose(z, logits(expected, fresh).numpy(), atol=1e-5, rtol=1e-4)
        assert row.largest == (z.argmax(1) == labels).mean()
        assert row.smallest == (z.argmin(1) == labels).mean()
    assert list(rows.rate) == module.RATES
