"""Masks and removal for PyTorch: masks hold in training, and what is removed is what was silent."""

import copy
import io
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from dlopt_helpers.bridges.pruning_torch import (
    CSRLinear,
    make_permanent,
    mask_units,
    prunable,
    prune,
    remove_units,
    to_csr,
)
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.pruning import best_units, magnitude_mask, threshold_for, unit_scores

torch.set_num_threads(1)
EXAMPLE = {"mlp": (12,), "tabular": (12,), "conv1d": (1, 16), "signal": (16,), "conv2d": (2, 12, 12)}
CLOSE = {torch.float32: 1e-5, torch.float64: 1e-12}  # seen: 2e-6 and 3e-15


def net(name, dtype=torch.float64):
    relu = nn.ReLU(inplace=True)  # one object in three places, as many models have it
    chains = {
        "mlp": lambda: [*mlp(12, (9, 8), 3)],
        "tabular": lambda: [
            *[nn.BatchNorm1d(12), nn.Linear(12, 9, bias=False), nn.BatchNorm1d(9), relu, nn.Dropout(0.2)],
            *[nn.Linear(9, 8), nn.GELU(), nn.BatchNorm1d(8, affine=False), nn.Linear(8, 3)],
        ],
        "conv1d": lambda: [
            *[nn.Conv1d(1, 6, 3, padding=1), nn.BatchNorm1d(6), relu, nn.MaxPool1d(2), nn.Conv1d(6, 5, 3)],
            *[nn.ELU(), nn.Flatten(), nn.BatchNorm1d(30), nn.Linear(30, 7), nn.Tanh(), nn.Linear(7, 3)],
        ],
        "signal": lambda: [
            *[
                nn.Unflatten(1, (1, 16)),
                nn.Conv1d(1, 6, 3, stride=2, padding_mode="circular", padding=1),
                relu,
            ],
            *[nn.Flatten(), nn.Linear(48, 3, bias=False)],
        ],
        "conv2d": lambda: [
            *[nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6), relu, nn.AvgPool2d(2, padding=1)],
            *[nn.Conv2d(6, 8, 3), nn.Hardswish(), nn.BatchNorm2d(8, track_running_stats=False), nn.SiLU()],
            *[nn.Conv2d(8, 5, 1), relu, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)],
        ],
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(*chains[name]())
    return model.to(dtype)


def batch(name, dtype=torch.float64, n=32, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = 1 + 2 * torch.randn(n, *EXAMPLE[name], generator=generator, dtype=torch.float64)
    return x.to(dtype), torch.randint(3, (n,), generator=generator)


def fit(model, name="mlp", optimizer=None, steps=5, clip=None):
    optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    x, labels = batch(name, next(model.parameters()).dtype)

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        return loss

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(steps):
            optimizer.step(closure)
    return model


def half(model):
    return {name: magnitude_mask(w, threshold_for(0.5, w)) for name, w in prunable(model).items()}


def random_keep(model, seed):
    draw = np.random.default_rng(seed)
    sizes = {name: len(w) for name, w in prunable(model).items()}
    keep = {name: draw.permutation(n)[: draw.integers(n // 2, n)].tolist() for name, n in sizes.items()}
    return dict(list(keep.items())[:-1])


def outputs(model, name):
    with torch.no_grad():
        return copy.deepcopy(model).eval()(batch(name, next(model.parameters()).dtype, seed=2)[0])


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[k].nan_to_num(7), b[k].nan_to_num(7)) for k in a)


OPTIMIZERS = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 0.05, weight_decay=0.1),
    "AdamW": lambda p: torch.optim.AdamW(p, 0.05, weight_decay=0.1),
    "LBFGS": lambda p: torch.optim.LBFGS(p, 0.5, max_iter=4),
}


@pytest.mark.parametrize("clip", [None, 0.01])
@pytest.mark.parametrize("made", ["before", "after"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_masks_hold_and_the_rest_learns(optimizer, made, clip):
    model = net("mlp")
    make, before = OPTIMIZERS[optimizer], {id(p) for p in model.parameters()}
    early = make(model.parameters())
    fit(model, optimizer=early)  # its momentum remembers the weights that go
    masks = half(model)
    prune(model, masks)
    pruned = prunable(model)
    fit(model, optimizer=early if made == "before" else make(model.parameters()), clip=clip)
    for name, w in prunable(model).items():
        kept = masks[name] == 1
        assert w[~kept].eq(0).all() and (~kept).sum() == w.numel() // 2
        assert (w[kept] != pruned[name][kept]).float().mean() > 0.8  # units may be dead
        assert model.get_submodule(name).parametrizations.weight.original.grad[~kept].eq(0).all()
    make_permanent(model)
    assert {id(p) for p in model.parameters()} == before
    assert all(w[masks[name] == 0].eq(0).all() for name, w in prunable(model).items())
    assert list(model.state_dict()) == list(net("mlp").state_dict())
    assert [p.shape for p in model.parameters()] == [p.shape for p in net("mlp").parameters()]


def test_nothing_pruned_comes_back_and_masks_are_copies():
    model = net("mlp")
    first, second = torch.ones(9, 12, dtype=torch.float64), np.ones((9, 12), dtype=bool)
    first[:, 1], second[:, 0] = 0, False
    assert prune(prune(model, {"0": first}), {"0": second}) is model
    assert len(model[0].parametrizations.weight) == 1
    hidden = model[0].parametrizations.weight.original
    assert first[:, 0].eq(1).all() and hidden[:, :2].eq(0).all()
    first[:] = 1
    fit(model)
    assert prunable(model)["0"][:, :2].eq(0).all()
    assert prunable(model)["0"][:, 2:].ne(0).all() and model[2].weight.ne(0).all()


def test_a_whole_layer_may_go():
    model = prune(net("mlp"), {"2": np.zeros((8, 9))})
    assert outputs(model, "mlp").var(0).max() == 0


def test_copies_and_files_keep_the_masks():
    model, file = fit(prune(net("mlp"), half(net("mlp")))), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = prune(net("mlp"), {name: torch.ones_like(w) for name, w in prunable(net("mlp")).items()})
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copy.deepcopy(model), loaded):
        assert same(other.state_dict(), model.state_dict())
        fit(other)
        assert sum(w.eq(0).sum().item() for w in prunable(other).values()) == (9 * 12 + 8 * 9 + 3 * 8) // 2


def test_prunable_is_every_linear_and_convolution_layer_and_nothing_else():
    model = nn.ModuleDict(
        {"a": nn.Sequential(nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2)), "b": nn.Bilinear(2, 2, 1)}
    )
    model["c"] = nn.Linear(2, 1)
    assert {name: tuple(w.shape) for name, w in prunable(model).items()} == {
        "a.0": (2, 1, 1, 1, 1),
        "c": (1, 2),
    }
    assert not prunable(model)["c"].requires_grad
    with pytest.raises(ValueError, match=r"holds no nn\.Linear"):
        prunable(nn.ReLU())


@pytest.mark.parametrize("dtype", CLOSE)
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", EXAMPLE)
def test_removed_is_silent(name, seed, dtype):
    model = fit(net(name, dtype), name)  # batch norms have seen data, and their scale and shift have moved
    for layer in prunable(model):
        model.get_submodule(layer).weight.data *= 3  # outputs are of the order of 1
    keep, before = random_keep(model, seed), copy.deepcopy(model.state_dict())
    masked, small = mask_units(model, keep), remove_units(model, keep)
    assert (outputs(masked, name) - outputs(small, name)).abs().max() < CLOSE[dtype]
    assert (outputs(model, name) - outputs(masked, name)).abs().max() > 0.05
    assert same(model.state_dict(), before) and {p.dtype for p in small.parameters()} == {dtype}
    for names, indices in keep.items():
        assert len(prunable(small)[names]) == len(indices)
    # The masks still hold after training; removing then what is silent changes nothing.
    fit(masked, name)
    assert (outputs(masked, name) - outputs(remove_units(masked, keep), name)).abs().max() < CLOSE[dtype]


def test_silent_units_are_exactly_silent_in_training_too():
    model = fit(mask_units(fit(net("conv1d"), "conv1d"), {"0": [4, 1], "4": [2]}), "conv1d")
    signal = batch("conv1d")[0]
    for i, layer in enumerate(model):
        signal = layer(signal)
        if i in (2, 5):
            alive = {2: [1, 4], 5: [2]}[i]
            silent = [j for j in range(signal.shape[1]) if j not in alive]
            assert signal[:, silent].eq(0).all() and signal[:, alive].abs().max() > 0


def test_parameter_counts_modes_and_names():
    model = net("conv1d").eval()
    model[1].train()
    model[4].weight.requires_grad_(False)
    small = remove_units(model, {"0": torch.tensor([0, 5]), "4": range(1, 3), "8": np.array([3, 6, 0])})
    # conv 2*3+2, norm 4, conv 2*2*3+2, norm of 2 channels of 6: 24, linear 12*3+3, linear 3*3+3
    assert sum(p.numel() for p in small.parameters()) == 8 + 4 + 14 + 24 + 39 + 12
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in model.parameters()]
    assert list(small.state_dict()) == list(model.state_dict())
    sizes = (small[0].out_channels, small[4].in_channels, small[8].in_features, small[7].num_features)
    assert sizes == (2, 2, 12, 12)
    assert same(remove_units(model, {}).state_dict(), model.state_dict())


def test_the_smaller_model_keeps_what_is_left_of_the_masks():
    model = fit(prune(net("conv1d"), half(net("conv1d"))), "conv1d")
    keep = {name: best_units(unit_scores(prunable(model)[name], axis=0), keep=3) for name in ("0", "4", "8")}
    before = outputs(model, "conv1d")
    small = remove_units(mask_units(model, {"0": keep["0"]}), keep)
    make_permanent(copy.deepcopy(model))
    assert torch.equal(outputs(model, "conv1d"), before)  # PyTorch lets copies share a class
    zeros = {name: w.eq(0) for name, w in prunable(small).items()}
    assert zeros["4"].equal(prunable(model)["4"][keep["4"]][:, keep["0"]].eq(0)) and zeros["8"].any()
    assert type(small[1]) is nn.BatchNorm1d  # nothing left of that mask
    fit(small, "conv1d")
    assert all(w.eq(0).equal(zeros[name]) for name, w in prunable(small).items())


def chain(*layers):
    return nn.Sequential(*layers, nn.Linear(4, 2))


def four():
    return chain(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))


def changed(change, model=None):
    model = model or four()
    change(model[2], model[0])
    return model


ONES = np.ones((4, 4))
TWICE, NORM = nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)
PARAMETERS = [
    (changed(lambda b, a: setattr(b, "weight", a.weight)), "layer '0' is shared by 0.weight, 2.weight"),
    (chain(TWICE, nn.ReLU(), TWICE), "the weight of layer '0' is shared by 0.weight, 2.weight"),
    (changed(lambda b, a: b.weight.data[0].fill_(torch.inf)), "layer '2' holds a number that is not finite"),
    (changed(lambda b, a: parametrizations.weight_norm(b)), "layer '2' is computed from other tensors"),
    (changed(lambda b, a: parametrizations.spectral_norm(b)), "layer '2' is computed from other tensors"),
    (changed(lambda b, a: torch_prune.random_unstructured(b, "weight", 0.5)), "layer '2' is computed from"),
]
MASKS = [
    ({"0": ONES, "1": ONES}, r"masks names '1': it must be a prunable layer, one of 0, 2, 3"),
    ({"0": ONES, "2": np.ones(4)}, r"masks\['2'\] has the shape \(4,\).* \(4, 4\)"),
    ({"0": ONES, "2": ONES[:3]}, r"masks\['2'\] has the shape \(3, 4\)"),
    ({"0": ONES, "2": "ones"}, r"masks\['2'\] has the shape \(\)"),
    ({"0": ONES, "2": 2 * ONES}, r"masks\['2'\] holds other numbers than 0 and 1"),
    ({"0": ONES, "2": torch.full((4, 4), torch.nan)}, r"masks\['2'\] holds other numbers"),
]
FLAGS = torch.ones(4, dtype=bool)
BAD_INDICES = [[], np.arange(0), [4], [-1], [1, 1], 2, None, {0}, [0.0], [[0]], [True, False], FLAGS]
KEEPS = [
    ({"1": [0]}, "keep names '1': it must be a layer with units, one of 0, 2"),
    ({"conv": [0]}, "keep names 'conv'"),
    ({"3": [0]}, "keep names layer '3', whose units are the outputs"),
    *[({"0": [1], "2": bad}, r"keep\['2'\]=.*: it must be .* in \[0, 4\)") for bad in BAD_INDICES],
]
CHAINS = [
    (four()[0], "model is Linear: it must be a flat nn.Sequential"),
    (type("Residual", (nn.Sequential,), {})(four()[0]), "model is Residual"),
    (chain(nn.Linear(4, 4), nn.Sigmoid()), "layer '1' is Sigmoid: units cannot be followed"),
    (chain(nn.Sequential(nn.Linear(4, 4))), "layer '0' is Sequential"),
    (chain(nn.ConvTranspose1d(1, 4, 1), nn.Flatten()), "layer '0' is ConvTranspose1d"),
    (chain(nn.Conv1d(4, 4, 1, groups=2), nn.Flatten()), "layer '0' has groups=2"),
    (chain(nn.Conv1d(4, 4, 1)), "layer '1' is Linear after Conv1d: it would mix"),
    (chain(nn.Conv1d(4, 4, 1), nn.MaxPool2d(1), nn.Flatten()), "layer '1' is MaxPool2d after Conv1d"),
    (chain(nn.Linear(4, 8), nn.MaxPool1d(2)), "layer '1' is MaxPool1d after Linear"),
    (chain(nn.Conv1d(1, 2, 1), nn.Flatten(), nn.AvgPool1d(2)), "layer '2' is AvgPool1d after Flatten"),
    (chain(nn.Conv1d(4, 4, 1), nn.Flatten(2)), r"layer '1' is Flatten\(start_dim=2"),
    (chain(nn.Linear(4, 4), nn.Unflatten(1, (2, 2))), "layer '1' is Unflatten after Linear"),
    (chain(nn.Linear(4, 4), NORM, nn.Linear(4, 4), NORM), "the running_mean of layer '1' is shared by 1"),
    (chain(nn.Linear(4, 2), nn.Flatten()), "layer '2' takes 4 inputs from 2 units"),
]
SPECTRAL = changed(lambda b, a: parametrizations.spectral_norm(b), prune(four(), {"0": ONES, "2": ONES}))
REFUSALS = [
    *[(lambda m: prune(m, {"0": ONES, "2": ONES}), *case) for case in PARAMETERS],
    *[(lambda m, masks=masks: prune(m, masks), four(), message) for masks, message in MASKS],
    *[(lambda m, f=f: f(m, {}), *case) for f in (mask_units, remove_units) for case in PARAMETERS + CHAINS],
    *[(lambda m, k=k: mask_units(m, k), four(), message) for k, message in KEEPS],
    *[(lambda m, k=k: remove_units(m, k), four(), message) for k, message in KEEPS],
    (lambda m: prune(m, {"2": ONES}), PARAMETERS[1][0], "layer '2' is shared by 0.weight, 2.weight"),
    (to_csr, net("conv2d"), "layer '0' is Conv2d"),
    (to_csr, chain(nn.Sequential(nn.Linear(4, 4))), "layer '0.0' is Linear: only nn.Linear in a flat"),
    (to_csr, nn.Linear(4, 4), "model is Linear: it must be a flat nn.Sequential"),
    (make_permanent, SPECTRAL, "the weight of layer '2' is computed from other"),
]


@pytest.mark.parametrize("call, model, message", REFUSALS, ids=itertools.count())
def test_refused_and_nothing_changed(call, model, message):
    before, tensors = copy.deepcopy(model.state_dict()), [id(p) for p in model.parameters()]
    with pytest.raises(ValueError, match=message):
        call(model)
    assert same(model.state_dict(), before) and [id(p) for p in model.parameters()] == tensors


@pytest.mark.parametrize("dtype", CLOSE)
def test_csr_equals_the_masked_model(dtype):
    model = fit(prune(net("tabular", dtype), half(net("tabular", dtype))), "tabular")
    prune(model, {"8": np.zeros((3, 8))})
    for one in (model, net("mlp", dtype)):
        name = "tabular" if one is model else "mlp"
        sparse, x = to_csr(one).eval(), batch(name, dtype)[0]
        with torch.inference_mode():
            for inputs in (x, x[:1], x[:0]):
                difference = sparse(inputs) - copy.deepcopy(one).eval()(inputs)
                assert difference.abs().sum() < CLOSE[dtype] and difference.dtype == dtype
        file = io.BytesIO()
        torch.save(sparse.state_dict(), file)
        file.seek(0)
        loaded = copy.deepcopy(to_csr(one))
        loaded.load_state_dict(torch.load(file, weights_only=True))
        assert same(loaded.state_dict(), sparse.state_dict())
    layer = CSRLinear(model[1])
    assert layer.values.numel() == 54 and layer(torch.ones(2, 5, 12, dtype=dtype)).shape == (2, 5, 9)
    assert [m.training for m in to_csr(model)] == [True] * 9


def test_no_warning_about_csr_reaches_the_reader():
    code = "import torch; from dlopt_helpers.bridges.pruning_torch import to_csr; from torch import nn\n"
    code += "to_csr(nn.Sequential(nn.Linear(3, 2)))(torch.ones(1, 3))"
    ran = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
