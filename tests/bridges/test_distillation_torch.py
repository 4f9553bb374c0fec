"""Distillation in PyTorch: the step is the loop by hand, and the teacher stays as it is."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from dlopt_helpers.bridges.distillation_torch import distillation_step, logits
from dlopt_helpers.distillation import distillation_loss

torch.set_num_threads(1)


def net(seed=0, hidden=16):
    """Return a network with all that a forward pass in training mode moves."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(0.5), nn.Linear(hidden, 3)
        )


def batch(seed=0, n=20):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 6, generator=generator), torch.randint(3, (n,), generator=generator)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def everything(*models, optimizer=None):
    """Return a copy of all that training may change: weights, buffers, modes, gradients and momentum."""
    kept = [
        (
            model.state_dict(),
            [module.training for module in model.modules()],
            [p.grad for p in model.parameters()],
        )
        for model in models
    ]
    return copy.deepcopy((kept, optimizer and optimizer.state_dict(), torch.get_rng_state()))


def assert_same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)


# --- logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_logits_are_those_of_evaluation_mode(batch_size):
    model, x = net(), batch()[0]
    before = everything(model)
    found = logits(model, x, batch_size)
    assert_same(everything(model), before)
    assert not found.requires_grad and found.grad_fn is None
    torch.testing.assert_close(found, copy.deepcopy(model).eval()(x).detach())
    assert_same(logits(model, x.numpy(), batch_size), found)


def test_logits_come_in_batches():
    seen = []
    model = nn.Linear(6, 3)
    model.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    logits(model, batch()[0], batch_size=8)
    assert seen == [8, 8, 4]


def test_logits_of_no_example():
    assert logits(net(), torch.zeros(0, 6)).shape == (0, 3)


def test_each_module_has_its_mode_back():
    model = net().train()
    model[1].eval()  # frozen by hand
    before = [module.training for module in model.modules()]
    logits(model, batch()[0])
    assert [module.training for module in model.modules()] == before
    model.eval()
    logits(model, batch()[0])
    assert not any(module.training for module in model.modules())


def test_each_module_has_its_mode_back_when_the_model_raises():
    model = net().train()
    model[1].eval()
    before = everything(model)
    with pytest.raises(ValueError, match="x has the shape"):
        logits(model, torch.zeros(4, 5))
    assert_same(everything(model), before)
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("batch_size", [0, -1, 1.5, "8", None])
def test_no_such_batch_size(batch_size):
    with pytest.raises(ValueError, match=f"batch_size={batch_size!r} .* a whole number >= 1"):
        logits(net(), batch()[0], batch_size)


# --- the step ------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_the_step_is_the_loop_by_hand(alpha):
    student, teacher = net(0), net(1).eval()
    by_hand = copy.deepcopy(student).train()
    optimizer, own = sgd(by_hand), sgd(student)
    losses = []
    for k in range(10):
        x, y = batch(k)
        torch.manual_seed(k)
        with torch.no_grad():
            v = teacher(x)
        loss = distillation_loss(by_hand(x), v, y, temperature=3.0, alpha=alpha)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.manual_seed(k)
        losses.append(distillation_step(student, teacher, own, x, y, temperature=3.0, alpha=alpha))
        assert type(losses[-1]) is float and losses[-1] == loss.item()
    assert_same(student.state_dict(), by_hand.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_stays_bit_for_bit_as_it_is(training):
    student, teacher = net(0), net(1).train(training)
    teacher[1].train(not training)
    optimizer, (x, y) = sgd(student), batch()
    start, before = everything(student)[0][0][0], everything(teacher)[0]
    for _ in range(30):
        distillation_step(student, teacher, optimizer, x, y, temperature=2.0, alpha=0.5)
    assert_same(everything(teacher)[0], before)
    assert all((start[name] != value).any() for name, value in student.state_dict().items())


def test_the_teacher_draws_no_random_numbers():
    student, teacher = nn.Linear(6, 3), net(1).train()
    before = torch.get_rng_state()
    distillation_step(student, teacher, sgd(student), batch()[0])
    assert_same(torch.get_rng_state(), before)


def test_logits_computed_before_give_the_same_steps():
    student, teacher = net(0), net(1)
    twin = copy.deepcopy(student)
    optimizers = sgd(student), sgd(twin)
    batches = [batch(k) for k in range(4)]
    known = [logits(teacher, x) for x, _ in batches]
    for k in [0, 1, 2, 3] * 3:
        losses = []
        for model, source, optimizer in zip((student, twin), (teacher, known[k]), optimizers, strict=True):
            torch.manual_seed(k)
            losses.append(distillation_step(model, source, optimizer, *batches[k], 2.0, 0.7))
        assert losses[0] == losses[1]
    assert_same(student.state_dict(), twin.state_dict())


def test_the_student_learns_what_the_teacher_says():
    student, teacher, (x, _) = net(0).eval(), net(1), batch()
    student[3].p = 0.0
    optimizer = sgd(student)
    losses = [distillation_step(student, teacher, optimizer, x, temperature=2.0) for _ in range(200)]
    assert student.training
    assert losses[-1] < 0.05 * losses[0]


def test_gradients_of_before_do_not_count():
    student, teacher, (x, y) = net(0), net(1), batch()
    twin = copy.deepcopy(student)
    student(x).sum().backward()
    for model in (student, twin):
        torch.manual_seed(0)
        model.load_state_dict(net(0).state_dict())
        distillation_step(model, teacher, torch.optim.SGD(model.parameters(), 0.1), x, y, alpha=0.5)
    assert_same(student.state_dict(), twin.state_dict())


def test_a_part_of_the_student_may_be_trained_alone():
    student, teacher, (x, y) = net(0), net(1), batch()
    first = student[0].weight.detach().clone()
    distillation_step(student, teacher, sgd(student[4]), x, y, alpha=0.5)
    assert_same(student[0].weight.detach(), first)


# --- what is refused -----------------------------------------------------------------------------


def _refused(named, trained="student", teacher=None, **options):
    student, own = net(0).eval(), net(1).train()
    optimizer = sgd({"student": student, "teacher": own, "both": nn.Sequential(student, own)}[trained])
    before = everything(student, own, optimizer=optimizer)
    with pytest.raises(ValueError, match=named):
        distillation_step(student, own if teacher is None else teacher, optimizer, batch()[0], **options)
    assert_same(everything(student, own, optimizer=optimizer), before)


@pytest.mark.parametrize(
    "trained, named",
    [
        ("both", "optimizer holds a parameter of the teacher"),
        ("teacher", "optimizer holds no parameter of the student"),
    ],
)
def test_the_optimizer_holds_the_student_alone(trained, named):
    _refused(named, trained)


def test_a_student_is_not_its_own_teacher():
    model = net()
    with pytest.raises(ValueError, match="optimizer holds a parameter of the teacher"):
        distillation_step(model, model, sgd(model), batch()[0])


LABELS = batch()[1]


@pytest.mark.parametrize(
    "named, options",
    [
        ("temperature=0 ", {"temperature": 0}),
        ("temperature=nan", {"temperature": float("nan")}),
        ("alpha=1.5", {"alpha": 1.5, "labels": LABELS}),
        ("alpha=0.5 .* 1 where there are no labels", {"alpha": 0.5}),
        *(
            ("labels", {"alpha": 0.5, "labels": labels})
            for labels in (LABELS - 1, LABELS + 1, LABELS[:3], LABELS[:, None], LABELS.double(), LABELS > 0)
        ),
        ("teacher=array", {"teacher": torch.full((20, 3), torch.nan)}),
    ],
)
def test_bad_input_changes_nothing(named, options):
    _refused(named, **options)


def test_logits_of_other_examples_are_refused():
    student, x = net(0), batch()[0]
    before = copy.deepcopy(list(student.parameters()))
    with pytest.raises(ValueError, match=r"student has the shape \(20, 3\) and teacher \(19, 3\)"):
        distillation_step(student, torch.zeros(19, 3), sgd(student), x)
    assert_same(list(student.parameters()), before)


def test_numbers_of_half_precision():
    student, teacher = (net(seed).bfloat16() for seed in (0, 1))
    x, y = batch()
    loss = distillation_step(student, teacher, sgd(student), x.bfloat16(), y, 2.0, 0.5)
    assert np.isfinite(loss)
