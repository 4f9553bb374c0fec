"""The bridge to PyTorch: same paths as torch.optim.SGD, and the manners of an optimiser."""

import copy
import io
import itertools
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.sgd import SGD

COMBINATIONS = [
    {"momentum": momentum, "nesterov": nesterov, "weight_decay": decay}
    for momentum, nesterov, decay in itertools.product([0.0, 0.9], [False, True], [0.0, 0.1])
    if momentum or not nesterov
]
SCHEDULERS = {
    "none": lambda optimizer: None,
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 10, gamma=0.5),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(  # it changes the momentum too
        optimizer, 0.1, total_steps=60, cycle_momentum=optimizer.defaults["momentum"] > 0
    ),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}
ROUNDING = 1e-12  # seen: 2e-14 after 50 steps, which amplify the 2e-16 of each


def net(dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)]
    return torch.nn.Sequential(*layers).to(dtype)


def backward(model):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(16, 4, generator=generator, dtype=torch.float64).to(model[0].weight.dtype)
    model.zero_grad()
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    loss.backward()
    return loss


def fit(model, optimizer, scheduler=None, steps=50):
    for _ in range(steps):
        backward(model)
        optimizer.step()
        if scheduler:
            scheduler.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_equals_torch_sgd(options, scheduler):
    ours, theirs = net(), net()
    a = RuleOptimizer(ours.parameters(), SGD(lr=0.05, **options), convention="torch")
    b = torch.optim.SGD(theirs.parameters(), lr=0.05, **options)
    difference = fit(ours, a, SCHEDULERS[scheduler](a)) - fit(theirs, b, SCHEDULERS[scheduler](b))
    assert difference.abs().max() < ROUNDING


@pytest.mark.parametrize("options", COMBINATIONS, ids=str)
def test_keras_convention_equals_keras_inside_torch(options):
    model = net(torch.float32)
    weights = [keras.Variable(p.detach().numpy()) for p in model.parameters()]
    a = RuleOptimizer(model.parameters(), SGD(lr=0.1, **options), convention="keras")
    b = keras.optimizers.SGD(0.1, **options | {"weight_decay": options["weight_decay"] or None})
    scheduler = lr_scheduler.ExponentialLR(a, 0.9)
    for _ in range(50):
        backward(model)
        b.learning_rate = a.param_groups[0]["lr"]
        b.apply([keras.ops.convert_to_tensor(p.grad.numpy()) for p in model.parameters()], weights)
        a.step()
        scheduler.step()
    for p, w in zip(model.parameters(), weights, strict=True):
        np.testing.assert_allclose(p.detach().numpy(), keras.ops.convert_to_numpy(w), rtol=0, atol=1e-6)


def test_groups_keep_their_own_options():
    ours, theirs = net(), net()

    def groups(model):
        return [
            {"params": model[0].parameters(), "lr": 0.02, "weight_decay": 0.3},
            {"params": model[2].parameters(), "momentum": 0.5},
        ]

    a, b = RuleOptimizer(groups(ours), SGD(lr=0.05)), torch.optim.SGD(groups(theirs), lr=0.05)
    assert (fit(ours, a) - fit(theirs, b)).abs().max() < ROUNDING


@pytest.mark.parametrize("clone", ["state_dict", "file", "deepcopy"])
@pytest.mark.parametrize("convention", ["torch", "keras"])
def test_saved_training_continues_bit_by_bit(clone, convention):
    rule = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01)
    model = net()
    optimizer = RuleOptimizer(model.parameters(), rule, convention)
    fit(model, optimizer, steps=10)
    if clone == "deepcopy":
        model_2, optimizer_2 = copy.deepcopy((model, optimizer))
    else:
        model_2, saved = copy.deepcopy(model), optimizer.state_dict()
        if clone == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        optimizer_2 = RuleOptimizer(model_2.parameters(), SGD(lr=9.0), convention)
        optimizer_2.load_state_dict(copy.deepcopy(saved))
    assert torch.equal(fit(model, optimizer, steps=10), fit(model_2, optimizer_2, steps=10))


def test_state_of_another_optimiser_is_refused():
    other = torch.optim.RMSprop(net().parameters())
    optimizer = RuleOptimizer(net().parameters(), SGD())
    with pytest.raises(ValueError, match="no 'nesterov': it was not saved by SGD"):
        optimizer.load_state_dict(other.state_dict())


@pytest.mark.parametrize(
    "group, message",
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": "fast"}, "lr='fast'"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"dampening": 0.1}, "'dampening' is unknown: it must be one of lr, momentum"),
    ],
)
def test_bad_groups(group, message):
    with pytest.raises(ValueError, match=message):
        RuleOptimizer([{"params": net().parameters(), **group}], SGD())


def test_a_bad_rate_later_changes_nothing():
    model = net()
    optimizer = RuleOptimizer(
        [{"params": model[0].parameters()}, {"params": model[2].parameters()}], SGD(lr=0.1, momentum=0.9)
    )
    before = fit(model, optimizer, steps=3)
    state = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.param_groups[1]["lr"] = float("nan")
    backward(model)
    with pytest.raises(ValueError, match="lr=nan"):
        optimizer.step()
    assert torch.equal(before, torch.cat([p.detach().flatten() for p in model.parameters()]))
    for i, entry in optimizer.state_dict()["state"].items():
        assert torch.equal(entry["velocity"], state[i]["velocity"])


def test_sparse_gradient():
    layer = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = RuleOptimizer(layer.parameters(), SGD())
    layer(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()


def test_parameters_without_gradient_stay_and_get_no_state():
    used, unused = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = RuleOptimizer([used, unused], SGD(lr=0.5, weight_decay=0.1))
    used.sum().backward()
    optimizer.step()
    assert (unused == 1).all() and unused not in optimizer.state and (used < 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (2, 3)])
def test_shapes_and_dtypes(shape, dtype):
    p = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = RuleOptimizer([p], SGD(lr=0.5, momentum=0.5))
    for _ in range(2):
        optimizer.zero_grad()
        p.sum().backward()
        optimizer.step()
    assert p.shape == shape and p.dtype == dtype and p.is_leaf and (p == -0.25).all()


def test_closure_is_evaluated_with_gradients():
    model = net()
    optimizer = RuleOptimizer(model.parameters(), SGD(lr=0.1))
    losses = [optimizer.step(lambda: backward(model)).item() for _ in range(5)]
    assert losses == sorted(losses, reverse=True) and losses[0] > losses[-1]


def test_any_rule_runs():
    @dataclass(frozen=True)
    class Signs:
        def init(self, w):
            return {}

        def step(self, w, gradient, state):
            return w - gradient / abs(gradient), state

    p = torch.nn.Parameter(torch.tensor([3.0, -3.0]))
    optimizer = RuleOptimizer([p], Signs())
    p.square().sum().backward()
    optimizer.step()
    assert p.tolist() == [2.0, -2.0]
