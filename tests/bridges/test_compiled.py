"""Compiled steps: the numbers and the manners of plain ones, and nothing built anew on the way."""

import copy
import io
import subprocess
import sys
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch._dynamo.utils import counters

from dlopt_helpers.adam import Adagrad, Adam, AdamW, NAdam, RMSprop
from dlopt_helpers.bridges import compiled
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.sgd import SGD

RULES = [
    SGD(lr=0.05),
    SGD(lr=0.05, momentum=0.9, weight_decay=0.1),
    SGD(lr=0.05, momentum=0.9, nesterov=True),
    Adagrad(lr=0.05, weight_decay=0.1),
    RMSprop(lr=0.01),
    Adam(lr=0.01, weight_decay=0.1),
    Adam(lr=0.01, amsgrad=True),
    AdamW(lr=0.01),
    NAdam(lr=0.01),
]
# Seen after 60 steps: 6e-8 and 2e-16 of 1 + the value, where the loops run uncompiled.
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14}


@pytest.fixture
def built(monkeypatch):
    """Run the loops uncompiled, as torch.compile would have got them, and list those that were built."""
    built = []

    def compile_nothing(function, **options):
        assert options == {"dynamic": True, "fullgraph": True}
        built.append(function)

        def loop(constants, *tensors):
            assert all(x.numel() > 1 and x.ndim == 1 for x in tensors), (
                "torch.compile would build anew for it"
            )
            function(constants, *tensors)

        return loop

    compiled._loop.cache_clear()
    monkeypatch.setattr(torch, "compile", compile_nothing)
    yield built
    compiled._loop.cache_clear()


@pytest.fixture
def few(monkeypatch):
    """Let a call take three parameters, so that five make a whole call and a part of one."""
    monkeypatch.setattr(compiled, "AT_ONCE", 3)


def parameters(dtype=torch.float64):
    rng = np.random.default_rng(0)
    shapes = [(4, 3), (3,), (), (0,), (2, 2, 2)]
    tensors = [torch.tensor(rng.normal(size=shape), dtype=dtype) for shape in shapes]
    tensors += [tensors[0].clone().T, torch.ones(4, 8, dtype=dtype)[:, ::2]]
    return [torch.nn.Parameter(x) for x in tensors]


def give_gradients(ps, t):
    for i, p in enumerate(ps):
        gradient = torch.tensor(np.random.default_rng([t, i]).normal(size=p.shape), dtype=p.dtype)
        turned = tuple(range(p.ndim))[::-1]  # every other gradient lies in another order
        p.grad = gradient if t % 2 else gradient.permute(turned).contiguous().permute(turned)


def run(optimizer, ps, steps, start=0):
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.99)
    for t in range(start, start + steps):
        give_gradients(ps, t)
        optimizer.step()
        scheduler.step()


def both(rule, convention=None, groups=lambda ps: ps, dtype=torch.float64):
    made = []
    for chosen in (True, False):
        ps = parameters(dtype)
        made += [ps, RuleOptimizer(groups(ps), rule, convention, compiled=chosen)]
    return made


def assert_same(ps, qs, a, b, tolerance=1e-14):
    for p, q in zip(ps, qs, strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
        ours, theirs = a.state.get(p, {}), b.state.get(q, {})
        assert {k: type(x) for k, x in ours.items()} == {k: type(x) for k, x in theirs.items()}
        for name, x in ours.items():
            torch.testing.assert_close(x, theirs[name], rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
@pytest.mark.parametrize("convention", ["torch", "keras"])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_same_path_as_uncompiled(rule, convention, dtype, built, few):
    ps, a, qs, b = both(rule, convention, dtype=dtype)
    run(a, ps, 60)
    run(b, qs, 60)
    assert_same(ps, qs, a, b, ROUNDING[dtype])
    assert len(built) == 2  # for three parameters and for two


@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_inductor_computes_the_same_and_compiles_once(dtype, few):
    alike = [torch.nn.Parameter(torch.ones(6, dtype=dtype)) for _ in range(3)]
    run(RuleOptimizer(alike, Adam(), compiled=True), alike, 1)
    graphs, misses = counters["stats"]["unique_graphs"], sum(counters["recompiles"].values())
    ps, a, qs, b = both(Adam(lr=0.01), groups=lambda ps: ps[:5], dtype=dtype)  # three lengths
    with torch.compiler.set_stance("fail_on_recompile"):
        run(a, ps, 60)
    assert (counters["stats"]["unique_graphs"], sum(counters["recompiles"].values())) == (graphs, misses)
    run(b, qs, 60)
    assert_same(ps, qs, a, b, ROUNDING[dtype])


def test_other_shapes_and_other_options_build_nothing(built):
    for size, rule in ((3, Adam()), (4, Adam(lr=0.5, beta1=0.5, weight_decay=0.1)), (2**17, Adam(eps=1.0))):
        p = torch.nn.Parameter(torch.ones(size))
        run(RuleOptimizer([p], rule, compiled=True), [p], 2)
    assert len(built) == 1


def test_tensors_are_laid_out_once(built, few, monkeypatch):
    ps = parameters()
    optimizer = RuleOptimizer(ps, NAdam(lr=0.01), compiled=True)
    run(optimizer, ps, 1)
    monkeypatch.setattr(compiled, "_Layout", None)
    run(optimizer, ps, 300, start=1)


def test_groups_keep_their_own_options(built, few):
    def groups(ps):
        return [{"params": ps[:2], "lr": 0.2, "amsgrad": True}, {"params": ps[2:], "beta1": 0.5}]

    ps, a, qs, b = both(Adam(lr=0.01), groups=groups)
    run(a, ps, 20)
    run(b, qs, 20)
    assert_same(ps, qs, a, b)


def test_a_parameter_without_gradient_keeps_its_own_count(built, few):
    ps, a, qs, b = both(NAdam(lr=0.01))
    for t in range(9):
        for parameters, optimizer in ((ps, a), (qs, b)):
            give_gradients(parameters, t)
            if t in (0, 1, 4):
                parameters[0].grad = parameters[1].grad = None
            optimizer.step()
    assert [a.state[p]["t"] for p in ps] == [6, 6, 9, 9, 9, 9, 9]
    assert_same(ps, qs, a, b)


def test_hyper_parameters_and_states_set_by_hand_count(built, few):
    ps, a, qs, b = both(Adam(lr=0.01))
    for parameters, optimizer in ((ps, a), (qs, b)):
        run(optimizer, parameters, 2)
        optimizer.param_groups[0]["beta2"] = 0.5
        optimizer.state[parameters[1]]["t"] = 7
        optimizer.state[parameters[0]]["m"] = torch.ones_like(parameters[0])
        optimizer.state[parameters[4]]["v"].fill_(2.0)
        run(optimizer, parameters, 2)
    assert_same(ps, qs, a, b)


def test_weights_changed_by_hand_count(built, few):
    ps, a, qs, b = both(Adam(lr=0.01))
    for parameters, optimizer in ((ps, a), (qs, b)):
        run(optimizer, parameters, 2)
        for p in parameters:
            p.data.mul_(0.5)  # as a mask would
        run(optimizer, parameters, 1)
        parameters[0].data = 2 * parameters[0].data  # in another place
        run(optimizer, parameters, 1)
    assert_same(ps, qs, a, b)


@pytest.mark.parametrize("clone", ["state_dict", "file", "deepcopy"])
@pytest.mark.parametrize("first, second", [(True, True), (True, False), (False, True)])
def test_saved_training_continues(clone, first, second, built, few):
    ps, qs = parameters(), parameters()
    a, b = (RuleOptimizer(x, Adam(lr=0.01), compiled=chosen) for x, chosen in ((ps, first), (qs, first)))
    run(a, ps, 5)
    run(b, qs, 5)
    if clone == "deepcopy":
        qs, b = copy.deepcopy((qs, b))
        assert b.compiled == first
        b.compiled = second
    else:
        saved = b.state_dict()
        if clone == "file":
            file = io.BytesIO()
            torch.save(saved, file)
            file.seek(0)
            saved = torch.load(file, weights_only=True)
        b = RuleOptimizer(qs, Adam(), compiled=second)
        b.load_state_dict(copy.deepcopy(saved))
    give_gradients(ps, 5)
    give_gradients(qs, 5)
    a.step()
    b.step()
    assert_same(ps, qs, a, b)


def test_weights_stay_the_tensors_that_others_hold(built, few):
    ps = parameters()
    held = [(p.data_ptr(), p.stride(), p.detach(), p.detach().clone()) for p in ps]
    run(RuleOptimizer(ps, Adam(lr=0.01), compiled=True), ps, 2)
    for p, (place, stride, alias, before) in zip(ps, held, strict=True):
        assert (p.data_ptr(), p.stride(), p.is_leaf) == (place, stride, True)
        assert torch.equal(p, alias) and (not p.numel() or not torch.equal(p, before))


def test_empty_parameters_alone(built):
    ps = [torch.nn.Parameter(torch.ones(0, 2)), torch.nn.Parameter(torch.ones(0))]
    for chosen in (ps, ps[:1]):
        optimizer = RuleOptimizer(chosen, Adam(), compiled=True)
        run(optimizer, chosen, 2)
        assert optimizer.state[ps[0]]["t"] == 2 and optimizer.state[ps[0]]["m"].shape == (0, 2)


def test_half_types_round_once_a_step(built):
    p = torch.nn.Parameter(torch.full([3], 2.0, dtype=torch.bfloat16))
    exact = p.detach().double()
    a, state = RuleOptimizer([p], Adam(lr=0.1), compiled=True), Adam().init(exact)
    for _ in range(5):
        p.grad = torch.full_like(p, 0.3)
        a.step()
        exact, state = Adam(lr=0.1).step(exact, p.grad.double(), state)
        exact = exact.bfloat16().double()
        state |= {name: state[name].bfloat16().double() for name in ("m", "v")}
        assert torch.equal(p.double(), exact)
        assert a.state[p]["v"].dtype == p.dtype and torch.equal(a.state[p]["v"].double(), state["v"])


@dataclass(frozen=True)
class Own:
    """A rule from outside the package, with one tensor under two names and a branch."""

    lr: float = 0.1
    signs: bool = False

    def init(self, w):
        zero = 0 * w
        return {"a": zero, "b": zero}

    def step(self, w, gradient, state):
        a, b = state["a"] + gradient, state["b"] - 2 * gradient
        return w - self.lr * (a / abs(a) if self.signs else a * b), {"a": a, "b": b}


@pytest.mark.parametrize("signs", [False, True])
def test_any_rule_of_operators_runs(signs, built, few):
    ps, a, qs, b = both(Own(signs=signs))
    run(a, ps, 3)
    run(b, qs, 3)
    assert_same(ps, qs, a, b)


@dataclass(frozen=True)
class Roots(Own):
    def step(self, w, gradient, state):
        return w - torch.sqrt(gradient**2), state


@dataclass(frozen=True)
class Branches(Own):
    def step(self, w, gradient, state):
        return (w if gradient == 0 else w - gradient), state


@dataclass(frozen=True)
class Means(Own):
    def init(self, w):
        return {"a": w.mean()}


@dataclass(frozen=True)
class Counts(Own):
    def init(self, w):
        return {"a": 0}

    def step(self, w, gradient, state):
        return w - gradient, {"a": gradient}


@pytest.mark.parametrize(
    "rule", [Roots(), Branches(), Means(), Counts(), Adam(lr=torch.tensor(0.1))], ids=str
)
def test_what_cannot_be_followed_is_named_and_changes_nothing(rule, built):
    p, q = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = RuleOptimizer([{"params": [p]}, {"params": [q], "lr": rule.lr}], rule, compiled=True)
    p.grad = q.grad = torch.ones(2)
    with pytest.raises(ValueError, match=rf"{type(rule).__name__}.*compiled=False"):
        optimizer.step()
    assert not built and (p == 1).all() and not optimizer.state


def test_bad_options_and_sparse_gradients_change_nothing(built):
    ps = parameters()
    groups = [{"params": ps[:1]}, {"params": ps[1:]}]
    optimizer = RuleOptimizer(groups, Adam(), compiled=True)
    run(optimizer, ps, 2)
    before = [p.detach().clone() for p in ps]
    states = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.param_groups[1]["beta1"] = 1.0
    with pytest.raises(ValueError, match=r"beta1=1\.0"):
        optimizer.step()
    optimizer.param_groups[1]["beta1"] = 0.9
    ps[1].grad = ps[1].grad.to_sparse()
    with pytest.raises(ValueError, match="sparse"):
        optimizer.step()
    assert all(map(torch.equal, before, ps))
    for i, state in optimizer.state_dict()["state"].items():
        assert state["t"] == 2 and torch.equal(state["m"], states[i]["m"])


def test_no_compiler_is_one_sentence_and_changes_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TORCHINDUCTOR_FORCE_DISABLE_CACHES", "1")
    script = """
import torch
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.sgd import SGD
p = torch.nn.Parameter(torch.ones(2))
optimizer = RuleOptimizer([p], SGD(), compiled=True)
p.grad = torch.ones(2)
try:
    optimizer.step()
except RuntimeError as error:
    print(error.__cause__, error.__suppress_context__, (p == 1).all().item(), len(optimizer.state), error)
"""
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setenv("PATH", str(tmp_path))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    (line,) = done.stdout.splitlines()
    assert line.startswith("None True True 0 compiled=True needs torch.compile")
    assert "C++ compiler (g++, clang++ or cl)" in line and "compiled=False" in line


def test_who_does_not_ask_pays_nothing():
    script = """
import sys, torch
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.sgd import SGD
p = torch.nn.Parameter(torch.ones(2))
p.grad = torch.ones(2)
torch.compile = None
RuleOptimizer([p], SGD()).step()
print([name for name in ("torch._inductor.compile_fx", "triton") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
