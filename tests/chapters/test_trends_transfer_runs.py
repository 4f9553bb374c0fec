"""The trainings of trend 3 do what they are called, tried on a few steps."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch.nn import functional

from dlopt_helpers.chapters import trends_transfer_runs as module
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.models import cnn, mlp

torch.set_num_threads(1)


@pytest.fixture
def small(monkeypatch):
    """Few steps and rates, and nothing on disk."""
    monkeypatch.delenv("DLOPT_JOBS", raising=False)
    for name in ("_old_task", "_teachers", "_students"):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    for name in ("OLD_STEPS", "TEACHER_STEPS", "STUDENT_STEPS"):
        monkeypatch.setattr(module, name, 8)
    monkeypatch.setattr(module, "RATES", [0.01, 0.03, 0.1])
    monkeypatch.setattr(module, "UNLABELLED", [0, 70])


@pytest.fixture
def lessons(monkeypatch):
    """What each stack of copies was given, without a training."""
    seen = []

    def noted(model, x, lessons, seed, steps, loss=None):
        seen.append((model, x, lessons, steps, loss))
        outputs = [m for m in model.modules() if isinstance(m, torch.nn.Linear)][-1].out_features
        return lambda x: np.zeros((len(lessons), len(x), outputs), "float32")

    monkeypatch.setattr(module, "train_students", noted)
    return seen


def _in(rows, those):
    return (rows[:, None] == those[None]).all(axis=2).any(axis=1)


def test_few_are_as_many_of_each_new_class_and_another_draw_for_each_seed():
    x, y = module.few(5, seed=0)
    assert np.bincount(y).tolist() == [5, 5, 5]
    x_train, y_train = mnist1d()[:2]
    for a, label in zip(x, y, strict=True):
        assert y_train[(x_train == a).all(axis=1)] == [label + 7]
    assert not _in(module.few(5, seed=1)[0], x).all()


def test_nobody_is_tested_on_what_somebody_learned_from():
    x, y = module.unlabelled(300)
    assert len(x) == len(y) == 300 and set(y) == {0, 1, 2}
    others = [module.few(100, 0)[0], module.of_new(*fresh_test())[0], module.of_new(*module.validation())[0]]
    assert not any(_in(x, other).any() for other in others)
    assert not _in(others[1], others[2]).any() and not _in(others[0], others[1]).any()


def test_repeated_fills_a_batch_and_keeps_pairs():
    x, y = module.repeated(np.arange(30).reshape(15, 2), np.arange(15))
    assert x.shape == (75, 2) and (x[:, 0] == 2 * y).all()
    assert len(module.repeated(np.zeros(300))[0]) == 300


def test_the_body_is_old_and_the_head_of_new_classes_is_fresh(small, monkeypatch):
    trained = cnn(seed=77)
    known = {n: w.numpy() for n, w in trained.state_dict().items()}
    monkeypatch.setattr(module, "_old_task", lambda kind, body, seed: known)
    model, fresh = module.network("cnn", "pre-trained", 0), cnn(seed=0)
    assert torch.equal(model[1].weight, trained[1].weight)
    assert torch.equal(model[-1].weight[:7], trained[-1].weight[:7])
    assert torch.equal(model[-1].weight[7:], fresh[-1].weight[7:])
    assert torch.equal(model[-1].bias[7:], fresh[-1].bias[7:])
    untrained = module.network("cnn", "untrained", 0)
    assert all(torch.equal(a, b) for a, b in zip(untrained.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize("body", ["pre-trained", "shuffled"])
def test_the_old_task_has_no_new_class_and_the_control_its_labels_in_another_order(small, monkeypatch, body):
    seen = []
    monkeypatch.setattr(module, "train", lambda model, optimizer, data, *args, **kwargs: seen.append(data))
    module._old_task("mlp", body, 3)
    x, y = mnist1d()[:2]
    data = seen[0]
    assert (data.x_train == x[y < 7]).all()
    assert np.bincount(data.y_train).tolist() == np.bincount(y[y < 7]).tolist()
    assert (data.y_train == y[y < 7]).mean() == (
        1 if body == "pre-trained" else pytest.approx(1 / 7, abs=0.05)
    )


def test_the_loss_sees_new_classes_alone_unless_it_has_to_keep_the_old():
    z, before = torch.randn(2, 6, 10, dtype=torch.float64)
    z, y = z.requires_grad_(), torch.tensor([0, 1, 2, 0, 1, 2])
    plain = module.new_and_old(z, before, y)
    assert torch.isclose(plain, functional.cross_entropy(z[:, 7:], y))
    assert not torch.autograd.grad(plain, z)[0][:, :7].any()
    p, q = (functional.log_softmax(a[:, :7] / 2, -1) for a in (before, z))
    kept = 4 * functional.kl_div(q, p, log_target=True, reduction="batchmean")
    assert torch.isclose(module.new_and_old(z, before, y, 2.0, 0.5), plain + 0.5 * kept)


def test_a_new_head_leaves_the_old_classes_as_they_were(small, monkeypatch):
    names = ["new head", "old self"]
    monkeypatch.setattr(module, "TEACHERS", {name: module.TEACHERS[name] for name in names})
    rows, says = module._teachers(5, 0)
    old = rows[rows.way == "new head"].old
    assert old.nunique() == 1 and old.iloc[0] > 1 / 14
    assert set(says) == set(names) and says["new head"][0.01].shape == (15 + 70, 3)
    assert rows[["validation", "few", "accuracy", "old"]].apply(lambda c: c.between(0, 1).all()).all()
    assert (rows.few * 15 % 1).round(6).isin([0, 1]).all()


def test_teachers_differ_in_what_they_learned_and_what_they_train(small, lessons, monkeypatch):
    monkeypatch.setattr(module, "_old_task", lambda kind, body, seed: cnn(seed=5).state_dict_numpy())
    monkeypatch.setattr(
        torch.nn.Module,
        "state_dict_numpy",
        lambda self: {n: w.numpy() for n, w in self.state_dict().items()},
        raising=False,
    )
    module._teachers(5, 0)
    for (way, (body, trained)), (model, x, given, steps, loss) in zip(
        module.TEACHERS.items(), lessons, strict=True
    ):
        assert (x.shape[1] == 125) == (trained == "head") == isinstance(model, torch.nn.Linear)
        assert [lesson.rate for lesson in given] == ([0.01, 0.03] if body == "pre-trained" else [0.03, 0.1])
        assert {lesson.alpha for lesson in given} == {1.0 if way == "old self" else 0.0}
        assert steps == 8 and loss is module.new_and_old


def test_students_hear_the_teacher_of_their_name(small, lessons, monkeypatch):
    says = {
        who: {0.1: np.full((15 + 70, 3), number, "float32")}
        for number, who in enumerate(["from scratch", "fine-tuned", "shuffled, fine-tuned"])
    }
    monkeypatch.setattr(module, "_teachers", lambda labels, seed: (None, says))
    known = {n: w.numpy() for n, w in mlp(hidden=32, seed=9).state_dict().items()}
    monkeypatch.setattr(module, "_old_task", lambda *_: known)
    rates = dict.fromkeys(says, 0.1)
    for more in (0, 70):
        rows = module._students(5, more, 0, rates)
        (scratch, x, told, steps, _), (body, _, both, *_) = lessons[-2:]
        assert steps == 8 and len(x) == max(75, 15 + more)
        assert (body[0].weight.detach().numpy() == known["0.weight"]).all()
        assert not (scratch[0].weight.detach().numpy() == known["0.weight"]).any()
        for way, lesson in zip(rows.way, [*told, *both], strict=True):
            who = module.STUDENTS[way][1]
            if who in says:
                assert (lesson.logits == list(says).index(who)).all()
                assert (lesson.temperature, lesson.alpha) == ((1.0, 1.0) if more else (4.0, 0.9))
            else:
                assert lesson.alpha == 0
                assert (lesson.labels[:15] == module.few(5, 0)[1]).all()
            if more:
                assert (lesson.labels[15:] == module.unlabelled(70)[1]).all()


def test_who_has_use_for_examples_without_labels():
    assert module.pupils("pre-trained", 0) == ["pre-trained", "both"]
    assert module.pupils("pre-trained", 300) == ["both"]
    assert "true labels" not in module.pupils("untrained", 0)
    assert "labels alone" not in module.pupils("untrained", 300)
    assert "true labels" in module.pupils("untrained", 300)


def test_a_student_keeps_its_body_and_has_three_classes(small):
    model = module.student("untrained", 4)
    full = mlp(hidden=32, seed=4)
    assert torch.equal(model[0].weight, full[0].weight)
    assert torch.equal(model[-1].weight, full[-1].weight[7:])
    assert model(torch.zeros(2, 40)).shape == (2, 3)


def test_teachers_and_students_of_all_settings(small):
    rows = module.teachers(labels=[5, 30], seeds=range(2))
    assert rows.groupby(["labels", "seed"]).size().tolist() == [2 * len(module.TEACHERS)] * 4
    made = module.students(rows, labels=[5, 30], seeds=range(2), unlabelled=[0, 70])
    assert (
        made.groupby(["labels", "more", "seed"]).way.nunique().unstack().to_numpy().tolist()
        == [
            [6, 6],
            [5, 5],
        ]
        * 2
    )


def test_the_rate_of_a_teacher_is_that_of_the_validation_examples():
    rows = pd.DataFrame(
        [("fine-tuned", 0.1, 0, 0.5), ("fine-tuned", 0.01, 0, 0.6), ("new head", 0.1, 0, 0.9)],
        columns=["way", "rate", "seed", "validation"],
    ).assign(accuracy=[0.9, 0.1, 0.5])
    assert module.teaching_rates(rows) == {"fine-tuned": 0.01}
