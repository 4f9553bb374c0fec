"""The bridge to PyTorch: same paths as those of torch.optim, and the manners of an optimiser."""

import copy
import io
from dataclasses import dataclass

import keras
import numpy as np
import pytest
import torch
from frameworks import RULES, keras_optimizer, torch_optimizer
from torch.optim import lr_scheduler

from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.sgd import SGD

every_rule = pytest.mark.parametrize("rule", RULES, ids=str)
SCHEDULERS = {
    "none": lambda optimizer: None,
    "StepLR": lambda optimizer: lr_scheduler.StepLR(optimizer, 10, gamma=0.5),
    "CosineAnnealingLR": lambda optimizer: lr_scheduler.CosineAnnealingLR(optimizer, 40),
    "OneCycleLR": lambda optimizer: lr_scheduler.OneCycleLR(  # it changes the momentum too
        optimizer, 0.02, total_steps=60, cycle_momentum=optimizer.defaults.get("momentum", 0) > 0
    ),
    "LambdaLR": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
}
ROUNDING = 1e-12  # seen: 2e-14 after 50 steps, which amplify the 2e-16 of each
PRODUCT_OF_FLOAT32 = 1e-8  # torch.optim.NAdam keeps the product of its momenta in float32


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
@every_rule
def test_equals_torch(rule, scheduler):
    ours, theirs = net(), net()
    a = RuleOptimizer(ours.parameters(), rule, convention="torch")
    b = torch_optimizer(rule, theirs.parameters())
    difference = fit(ours, a, SCHEDULERS[scheduler](a)) - fit(theirs, b, SCHEDULERS[scheduler](b))
    assert difference.abs().max() < (PRODUCT_OF_FLOAT32 if type(rule) is NAdam else ROUNDING)


@pytest.mark.parametrize("make", [lr_scheduler.OneCycleLR, lr_scheduler.CyclicLR])
@pytest.mark.parametrize("rule", [Adagrad(), RMSprop(), Adam(), NAdam()], ids=str)
def test_schedulers_find_no_momentum_to_cycle_in_the_family_of_adam(rule, make):
    optimizer = RuleOptimizer(net().parameters(), rule)
    rates = {"max_lr": 0.1} | ({"total_steps": 9} if make is lr_scheduler.OneCycleLR else {"base_lr": 0.01})
    with pytest.raises(ValueError, match="cycle_momentum"):
        make(optimizer, **rates)
    make(optimizer, **rates, cycle_momentum=False)


@every_rule
def test_keras_convention_equals_keras_inside_torch(rule):
    model = net(torch.float32)
    weights = [keras.Variable(p.detach().numpy()) for p in model.parameters()]
    a, b = RuleOptimizer(model.parameters(), rule, convention="keras"), keras_optimizer(rule)
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


def test_groups_of_adam_keep_their_own_options():
    ours, theirs = net(), net()
    decay = {"lr": 0.02, "weight_decay": 0.3}
    groups = [[{"params": m[0].parameters(), **decay}, {"params": m[2].parameters()}] for m in (ours, theirs)]
    groups[0][1] |= {"beta1": 0.5, "beta2": 0.9, "amsgrad": True}
    groups[1][1] |= {"betas": (0.5, 0.9), "amsgrad": True}
    a, b = RuleOptimizer(groups[0], AdamW(lr=0.01)), torch.optim.AdamW(groups[1], lr=0.01)
    assert (fit(ours, a) - fit(theirs, b)).abs().max() < ROUNDING


@pytest.mark.parametrize("clone", ["state_dict", "file", "deepcopy"])
@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize(
    "rule", [SGD(0.1, 0.9, True, 0.01), Adam(0.01, amsgrad=True, weight_decay=0.01), NAdam(0.01)], ids=str
)
def test_saved_training_continues_bit_by_bit(rule, clone, convention):
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
        optimizer_2 = RuleOptimizer(model_2.parameters(), type(rule)(lr=9.0), convention)
        optimizer_2.load_state_dict(copy.deepcopy(saved))
    assert torch.equal(fit(model, optimizer, steps=10), fit(model_2, optimizer_2, steps=10))


@pytest.mark.parametrize(
    "other, name",
    [
        (lambda params: torch.optim.AdamW(params), "another optimiser"),
        (lambda params: RuleOptimizer(params, AdamW()), "AdamW"),  # its fields are those of Adam
        (lambda params: RuleOptimizer(params, Adam(), convention="keras"), "KerasAdam"),
    ],
)
def test_state_of_another_optimiser_is_refused(other, name):
    optimizer = RuleOptimizer(net().parameters(), Adam())
    with pytest.raises(ValueError, match=f"was saved by {name}: it must be Adam's"):
        optimizer.load_state_dict(other(net().parameters()).state_dict())


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
@pytest.mark.parametrize("rule", [SGD(0.5, momentum=0.5), Adam(0.625, 0.5, 0.75, eps=0.0)], ids=str)
def test_shapes_and_dtypes(rule, shape, dtype):
    p = torch.nn.Parameter(torch.ones(shape, dtype=dtype))
    optimizer = RuleOptimizer([p], rule)
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
