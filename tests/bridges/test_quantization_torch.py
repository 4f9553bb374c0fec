"""Quantization in PyTorch: what is computed with, what training moves, and what stays as it was."""

import copy
import io
import itertools

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.nn.utils import prune as torch_prune

from dlopt_helpers.bridges import pruning_torch
from dlopt_helpers.bridges.pruning_torch import prunable, prune
from dlopt_helpers.bridges.quantization_torch import (
    correct_biases,
    equalise,
    layer_inputs,
    make_permanent,
    quantize_in_training,
    quantize_inputs,
    quantize_weights,
)
from dlopt_helpers.lab.data import Data
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.lab.training import train
from dlopt_helpers.quantization import (
    affine,
    fake_quantize,
    in_groups,
    kullback_leibler,
    least_squares,
    min_max,
    percentile,
    share_weights,
    symmetric,
)

torch.set_num_threads(1)


def rule(w, bits=3):
    return fake_quantize(w, symmetric(*min_max(w, axis=0), bits=bits))


def coarse(w):
    return rule(w, bits=2)


def grouped(w):
    parts = in_groups(w, 3)
    return fake_quantize(parts, symmetric(*min_max(parts, axis=(0, 1)), bits=4)).reshape(w.shape)


def codebook(w):
    numbers, codes = share_weights(w.numpy(), bits=2)
    return numbers[codes]


QUANTIZERS = {
    "symmetric": lambda w: symmetric(*min_max(w, axis=0), bits=3),
    "affine": lambda w: affine(*min_max(w), bits=4),
    "percentile": lambda w: symmetric(*percentile(w, 0.9), bits=4),
    "least squares": lambda w: symmetric(*least_squares(w, 3, axis=0), bits=3),
    "kl": lambda w: symmetric(*kullback_leibler(w, 4, bins=64), bits=4),
}
CLIPPING = {"percentile", "least squares"}
RULES = {name: lambda w, of=of: fake_quantize(w, of(w)) for name, of in QUANTIZERS.items()}
RULES["groups"] = grouped


def net():
    model = mlp(12, (9, 6), 3)
    for layer in model[::2]:
        layer.bias.data += 0.1
    return model


def batch(n=64, seed=1, inputs=12):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, inputs, generator=generator) + 0.5
    return x, x[:, :3].argmax(1)


def fit(model, steps=20, lr=0.1):
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    x, labels = batch()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return model


def floats(model):
    """Return the weights that training moves."""
    moved = [name for name in model.state_dict() if name.endswith(("weight", "original"))]
    return {name.split(".")[0]: model.state_dict()[name].clone() for name in moved}


def same(a, b):
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


# --- weights after training ----------------------------------------------------------------------


@pytest.mark.parametrize("name", [*RULES, "codebook"])
def test_weights_are_what_the_rule_leaves_and_biases_stay(name):
    one, model = RULES.get(name, codebook), net()
    before = copy.deepcopy(model.state_dict())
    quantized = quantize_weights(model, one)
    for key, w in quantized.state_dict().items():
        assert torch.equal(w, torch.as_tensor(one(before[key])) if "weight" in key else before[key])
        assert w.dtype == torch.float32
        assert "bias" in key or not torch.equal(w, before[key])
    assert same(model.state_dict(), before) and list(quantized.state_dict()) == list(before)
    assert not any(hasattr(layer, "parametrizations") for layer in quantized)


def test_a_channel_of_a_convolution_has_its_own_range():
    model = cnn(channels=4)
    model[3].weight.data[0] *= 100
    w, left = model[3].weight.detach(), quantize_weights(model, rule)[3].weight.detach()
    for channel, rounded in zip(w, left, strict=True):
        assert 1 < len(rounded.unique()) <= 7
        assert (channel - rounded).abs().max() <= channel.abs().max() / 3 / 2 * 1.001


def test_mixed_precision_and_layers_left_out():
    model = net()
    quantized = quantize_weights(model, {"0": coarse, "4": rule})
    assert [torch.equal(quantized[i].weight, model[i].weight) for i in (0, 2, 4)] == [False, True, False]
    assert torch.equal(quantized[0].weight, coarse(model[0].weight))
    assert torch.equal(quantized[4].weight, rule(model[4].weight))


# --- in training ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_the_forward_pass_is_quantized_and_the_gradient_goes_straight_through(name):
    model, one, x = net(), RULES[name], batch()[0]
    for i in (0, 2, 4):
        model[i].weight.data.mul_(10).pow_(3)  # a few are far from the others, and clipped
    rounded = quantize_weights(model, one)
    assert quantize_in_training(model, one) is model
    for network in (model, rounded):
        network(x).square().sum().backward()
    assert torch.equal(model(x), rounded(x))
    clipped = 0
    for i in (0, 2, 4):
        w, gradient = model[i].parametrizations.weight.original, rounded[i].weight.grad
        if name in QUANTIZERS:  # what is clipped learns nothing
            quantizer = QUANTIZERS[name](w.detach())
            q = (w.detach() / quantizer.scale).round() + quantizer.zero_point
            inside = (q >= quantizer.q_min) & (q <= quantizer.q_max)
            clipped, gradient = clipped + (~inside).sum(), gradient * inside
        # A range's own dependence on the weights has no part in it: the equality is exact.
        assert torch.equal(w.grad, gradient)
    assert clipped or name not in CLIPPING


def test_small_steps_add_up_underneath():
    """What trains the rounded weights forgets each step that is too small to reach the next level."""
    model = quantize_in_training(nn.Sequential(nn.Linear(2, 1, bias=False)), lambda w: fake_quantize(w, GRID))
    model[0].parametrizations.weight.original.data[:] = torch.tensor([[0.0, 1.0]])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(6):
        assert model[0].weight.tolist() == [[0.0, 1.0]], step
        optimizer.zero_grad()
        model(torch.tensor([[1.0, 0.0]])).sum().neg().backward()
        optimizer.step()
    assert model[0].weight.tolist() == [[1.0, 1.0]]


GRID = symmetric(-7.0, 7.0, bits=4)  # whole numbers


def test_training_moves_floats_and_computes_with_levels():
    model = quantize_in_training(net(), coarse)
    before = floats(model)
    fit(model)
    for name, w in floats(model).items():
        assert (w != before[name]).float().mean() > 0.5
        assert torch.equal(prunable(model)[name], coarse(w))
    assert len(model[0].bias.unique()) == 9


def test_the_training_loop_of_the_lab():
    x, y = (array.numpy() for array in batch(n=200))
    model = quantize_in_training(mlp(12, (9, 6), 3), rule)
    run = train(model, torch.optim.Adam(model.parameters(), 0.01), Data(x, y, x, y), steps=60, batch_size=20)
    assert run.loss.iloc[-1] < 0.9 * run.loss.iloc[0]


def test_a_run_that_diverges_ends_as_one():
    x, y = (array.numpy() for array in batch())
    model = quantize_in_training(mlp(12, (9, 6), 3), rule)
    run = train(model, torch.optim.SGD(model.parameters(), 1e30), Data(x, y, x, y), steps=60, batch_size=20)
    assert run.diverged.all()
    with pytest.raises(ValueError, match="layer '0': a number is not finite"):
        make_permanent(model)


def test_once_in_a_forward_pass():
    calls = []
    model = quantize_in_training(net(), lambda w: calls.append(1) or rule(w))
    calls.clear()
    model(batch()[0])
    assert len(calls) == 3


def test_an_optimiser_made_before_goes_on_and_parameters_stay_the_same():
    model = net()
    parameters = {id(p) for p in model.parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    quantize_in_training(model, rule)(batch()[0]).sum().backward()
    before = floats(model)
    optimizer.step()
    assert all((w != before[name]).any() for name, w in floats(model).items())
    assert {id(p) for p in make_permanent(model).parameters()} == parameters
    assert list(model.state_dict()) == list(net().state_dict())
    assert [p.shape for p in model.parameters()] == [p.shape for p in net().parameters()]


def test_permanent_is_what_was_computed_with():
    model, x = fit(quantize_in_training(net(), coarse)), batch(seed=2)[0]
    y, w = model(x), prunable(model)
    assert make_permanent(model) is model
    assert torch.equal(model(x), y) and type(model[0]) is nn.Linear
    assert same(floats(model), w)
    fit(model)
    assert len(model[0].weight.unique()) > 50


def test_a_second_rule_replaces_the_first():
    model = quantize_in_training(quantize_in_training(net(), coarse), {"2": rule})
    assert same(floats(model), floats(net()))
    assert torch.equal(model[0].weight, net()[0].weight)
    assert torch.equal(model[2].weight, rule(net()[2].weight))
    assert same(prunable(quantize_weights(model, coarse)), prunable(quantize_weights(net(), coarse)))
    assert torch.equal(model[2].weight, rule(net()[2].weight))


def test_copies_and_files():
    model, file = fit(quantize_in_training(net(), rule)), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    loaded = quantize_in_training(net(), rule)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    x, copied = batch(seed=2)[0], copy.deepcopy(model)
    for other in (loaded, copied):
        assert torch.equal(other(x), model(x)) and same(other.state_dict(), model.state_dict())
    before = floats(model)
    make_permanent(fit(copied))
    assert same(floats(model), before)  # PyTorch lets copies share a class
    assert torch.equal(model[0].weight, rule(before["0"]))


def test_masks_stay():
    masks = {name: (w > 0).float() for name, w in prunable(net()).items()}
    model = fit(quantize_in_training(prune(net(), masks), rule))
    kept = {name: w != 0 for name, w in prunable(model).items()}
    assert all((mask == 0)[~kept[name]].sum() == (mask == 0).sum() for name, mask in masks.items())
    for one in (make_permanent(copy.deepcopy(model)), quantize_weights(prune(net(), masks), rule)):
        fit(one)
        for name, w in prunable(one).items():
            assert (w[masks[name] == 0] == 0).all() and len(w.unique()) > 7
    x = batch(seed=2)[0]
    with torch.no_grad():  # as momentum may do
        model[0].parametrizations.weight.original[masks["0"] == 0] = 9.0
    assert torch.equal(make_permanent(copy.deepcopy(model))(x), model(x))
    assert list(pruning_torch.make_permanent(make_permanent(model)).state_dict()) == list(net().state_dict())


# --- inputs --------------------------------------------------------------------------------------


def test_inputs_of_layers():
    model, x = net().train(), batch()[0]
    came = layer_inputs(model, x.numpy().astype("float64"))
    assert list(came) == ["0", "2", "4"] and not any(a.requires_grad for a in came.values())
    assert torch.equal(came["0"], x) and torch.equal(came["2"], model[:2](x))
    assert model.training and not model[0]._forward_hooks
    dropped = nn.Sequential(nn.Dropout(0.9), nn.Linear(12, 2), nn.ReLU(inplace=True))
    assert torch.equal(layer_inputs(dropped, x)["1"], x)
    with pytest.raises(ValueError, match=r"x has the shape \(0, 12\)"):
        layer_inputs(model, x[:0])


@pytest.mark.parametrize("as_numpy", [False, True])
def test_inputs_are_rounded(as_numpy):
    model, x = net(), batch()[0]
    a = layer_inputs(model, x)["2"]
    low, high = kullback_leibler(a, 4, bins=64) if as_numpy else min_max(a)
    q = affine(low, high, bits=4)
    quantized, unchanged = quantize_inputs(model, {"2": q}), model(x)
    want = model[2:](fake_quantize(a, q).float())
    for network in (quantized, copy.deepcopy(quantized)):
        assert torch.allclose(network(x), want, atol=1e-6) and network(x).dtype == torch.float32
    assert torch.equal(model(x), unchanged) and not torch.allclose(want, unchanged, atol=1e-3)
    assert same(quantized.state_dict(), model.state_dict())
    quantized(x).sum().backward()
    assert quantized[0].weight.grad.abs().max() > 0


def test_a_second_quantizer_replaces_the_first():
    x = batch()[0]
    fine, rough = (affine(-3.0, 3.0, bits) for bits in (8, 2))
    twice = quantize_inputs(quantize_inputs(net(), {"0": rough}), {"0": fine})
    assert torch.equal(twice(x), quantize_inputs(net(), {"0": fine})(x))


# --- repairs -------------------------------------------------------------------------------------


def in_place():
    model = net()
    model[1].inplace = model[3].inplace = True
    return model


@pytest.mark.parametrize("make", [net, in_place, lambda: cnn(channels=4)])
def test_corrected_biases_give_each_layer_its_mean(make):
    model = make()
    x = batch(inputs=40 if isinstance(model[0], nn.Unflatten) else 12)[0]
    ranges = {name: affine(*min_max(a), bits=4) for name, a in layer_inputs(model, x).items()}
    quantized = quantize_inputs(quantize_weights(model, coarse), ranges)
    corrected = correct_biases(model, quantized, x)
    before, wanted, got = (outputs(one, x) for one in (quantized, model, corrected))
    for name in wanted:
        assert (before[name] - wanted[name]).abs().max() > 1e-3
        assert (got[name] - wanted[name]).abs().max() < 1e-6
    assert same(prunable(corrected), prunable(quantized))
    assert same(quantized.state_dict(), quantize_weights(model, coarse).state_dict())


def outputs(model, x):
    """Return the mean output of each unit of each layer."""
    means, model = {}, copy.deepcopy(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            layer.register_forward_hook(
                lambda _, came, y, name=name: means.update(
                    {name: y.detach().transpose(0, 1).reshape(y.shape[1], -1).mean(1)}
                )
            )
    model(x)
    return means


def uneven(layers):
    """Return a network of channels whose ranges differ by factors of a thousand, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(*layers()).double()
        for layer in model:
            if hasattr(layer, "weight"):
                layer.weight.data *= 10 ** (3 * torch.rand(len(layer.weight), *[1] * (layer.weight.ndim - 1)))
    return model


CHAINS = {
    "mlp": (lambda: [nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 7, bias=False), nn.Linear(7, 3)], (5,)),
    "conv1d": (
        lambda: [
            nn.Unflatten(1, (1, 12)),
            nn.Conv1d(1, 4, 3),
            nn.ReLU(inplace=True),
            nn.Conv1d(4, 5, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(50, 3),
            nn.Softmax(1),
        ],
        (12,),
    ),
    "conv2d": (
        lambda: [
            nn.Tanh(),
            nn.Conv2d(2, 4, 3),
            nn.Conv2d(4, 3, 1),
            nn.Flatten(),
            nn.ReLU(),
            nn.Linear(48, 2),
        ],
        (2, 6, 6),
    ),
}


@pytest.mark.parametrize("name", CHAINS)
def test_equalised_networks_compute_the_same_with_even_ranges(name):
    layers, shape = CHAINS[name]
    model = uneven(layers)
    before, even = copy.deepcopy(model.state_dict()), equalise(model)
    x = torch.randn(16, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(even(x), model(x), rtol=1e-10, atol=1e-10) and same(model.state_dict(), before)
    weights = list(prunable(even).values())
    for w1, w2 in itertools.pairwise(weights):
        out = w1.abs().reshape(len(w1), -1).amax(1)
        into = w2.abs().reshape(len(w2), len(w1), -1).amax((0, 2))
        assert ((out / into).log().abs() < 0.01).all()

    def spread(model):
        ranges = [w.abs().reshape(len(w), -1).amax(1) for w in list(prunable(model).values())[:-1]]
        return max((r.max() / r.min()).item() for r in ranges)

    assert spread(even) < spread(model) / 5
    assert same(equalise(mlp(4, (), 2)).state_dict(), mlp(4, (), 2).state_dict())


def test_equalised_networks_lose_less():
    model = uneven(CHAINS["mlp"][0])
    x = torch.randn(64, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def error(network):
        whole = quantize_weights(network, lambda w: fake_quantize(w, symmetric(*min_max(w), bits=6)))
        return (whole(x) - model(x)).square().mean()

    assert error(equalise(model)) < error(model) / 2


# --- what is refused -----------------------------------------------------------------------------


def four(middle=None):
    return nn.Sequential(nn.Linear(4, 4), middle or nn.ReLU(), nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4))


def changed(change, make=four):
    model = make()
    change(model[2], model[0])
    return model


def conv(*middle, out=None):
    return nn.Sequential(nn.Conv1d(4, 4, 1), *middle, out or nn.Linear(4, 2))


ZERO = changed(lambda b, a: b.weight.data.zero_())
TWICE, EMPTY = nn.Linear(4, 4), nn.Linear(2, 2)
EMPTY.weight = nn.Parameter(torch.zeros(2, 0))
PARAMETERS = [
    (changed(lambda b, a: setattr(b, "weight", a.weight)), "layer '0' is shared by 0.weight, 2.weight"),
    (nn.Sequential(TWICE, nn.ReLU(), TWICE), "layer '0' is shared by 0.weight, 2.weight"),
    (changed(lambda b, a: parametrizations.weight_norm(b)), "layer '2' is computed from other tensors"),
    (changed(lambda b, a: torch_prune.random_unstructured(b, "weight", 0.5)), "layer '2' is computed from"),
    (nn.Sequential(nn.ReLU()), r"holds no nn\.Linear"),
]
RULED = [
    (four(), {"0": rule, "1": rule}, "rule names '1': it must be one of 0, 2, 4"),
    (four(), {"0": rule, "2": 8}, r"rule\['2'\]=8 is not allowed: it must be a function"),
    (four(), 8, "rule=8 is not allowed"),
    (ZERO, rule, "layer '2': a range is the single number 0"),
    (changed(lambda b, a: b.weight.data[0].fill_(torch.nan)), rule, "layer '2': a number is not finite"),
    (four(), lambda w: rule(w, bits=17), r"layer '0': bits=17 is not allowed: .* \[2, 16\]"),
    (four(), {"2": lambda w: in_groups(w, 3)}, "layer '2': size=3"),
    (
        four(),
        {"0": rule, "2": lambda w: in_groups(w, 2)},
        r"layer '2': the rule returns the shape \(4, 2, 2\)",
    ),
    (four(), {"2": lambda w: None}, r"layer '2': the rule returns the shape \(\), not \(4, 4\)"),
    (nn.Sequential(nn.Linear(3, 2), EMPTY), rule, "layer '1': there is not a single number"),
]
BIASED, UNBIASED = four(), changed(lambda b, a: setattr(b, "bias", None))
CORRECTED = [
    (four(), lambda m: correct_biases(m, UNBIASED, torch.ones(2, 4)), "layer '2' has no bias to correct"),
    (
        four(),
        lambda m: correct_biases(m, m[:3], torch.ones(2, 4)),
        "quantized has the layers 0, 2: .* 0, 2, 4",
    ),
    (four(), lambda m: correct_biases(m, m, torch.full((2, 4), torch.nan)), "layer '0': a number is not"),
    (four(), lambda m: layer_inputs(m, torch.ones(0, 4)), r"x has the shape \(0, 4\)"),
    (
        four(),
        lambda m: quantize_inputs(m, {"2": affine(0.0, 1.0, 8), "1": None}),
        "quantizers names '1': .* 0, 2, 4",
    ),
    (four(), lambda m: quantize_inputs(m, {"2": 8}), r"quantizers\['2'\]=8 is not allowed"),
]
UNEQUAL = [
    (four(), "layer '3' is Sigmoid after Linear: no factor passes it"),
    (four(nn.BatchNorm1d(4)), "layer '1' is BatchNorm1d after Linear"),
    (conv(nn.MaxPool1d(1), nn.Flatten()), "layer '1' is MaxPool1d after Conv1d"),
    (conv(), "layer '1' is Linear after Conv1d: no factor passes it"),
    (conv(nn.Flatten(), out=nn.Conv1d(4, 4, 1)), "layer '1' is Flatten after Conv1d"),
    (nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.Linear(4, 4)), "layer '1' is Flatten after Linear"),
    (nn.Sequential(nn.Conv1d(4, 4, 1, groups=2), nn.Conv1d(4, 4, 1)), "layer '0' has groups=2"),
    (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Conv1d(4, 4, 1, groups=2)), "layer '1' has groups=2"),
    (nn.Sequential(nn.Linear(4, 4), nn.Linear(3, 4)), "layers '0' and '1': w2 takes 3 channels: w1 gives 4"),
    (conv(nn.Flatten(), out=nn.Linear(6, 2)), "layers '0' and '2': w2 takes 6 channels: w1 gives 4"),
    (ZERO[:3], "layers '0' and '2': w1 or w2 has a channel of zeros"),
    (quantize_in_training(four()[:3], {"2": rule}), "layer '2' is quantized: equalise first"),
    (nn.Linear(4, 4), "model is Linear: it must be a flat"),
    *PARAMETERS,
]
REFUSALS = [
    *[
        (m, lambda m, r=r, f=f: f(m, r), say)
        for m, r, say in RULED
        for f in (quantize_weights, quantize_in_training)
    ],
    *[(m, lambda m: quantize_in_training(m, rule), say) for m, say in PARAMETERS],
    *[(m, lambda m: quantize_weights(m, rule), say) for m, say in PARAMETERS],
    *[(m, equalise, say) for m, say in UNEQUAL],
    *CORRECTED,
]


@pytest.mark.parametrize("model, call, message", REFUSALS, ids=itertools.count())
def test_refused_and_nothing_changed(model, call, message):
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        call(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(np.array_equal(before[name], p.detach(), equal_nan=True) for name, p in after.items())
