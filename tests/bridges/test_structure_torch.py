"""Costs equal PyTorch's counts; a factorised model computes the same at full rank."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.flop_counter import FlopCounterMode

from dlopt_helpers.bridges.pruning_torch import prune
from dlopt_helpers.bridges.structure_torch import costs, factorise
from dlopt_helpers.lab.blocks import KINDS, block_net
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.structure import low_rank

MODELS = {
    "mlp": mlp,
    "cnn": cnn,
    **{kind: lambda kind=kind: block_net(kind, 8, 2) for kind in KINDS},
    "no bias": lambda: nn.Sequential(nn.Linear(40, 7, bias=False), nn.BatchNorm1d(7, affine=False)),
    "at each position": lambda: nn.Sequential(nn.Unflatten(1, (8, 5)), nn.Linear(5, 3)),
    "images": lambda: nn.Sequential(
        nn.Unflatten(1, (2, 4, 5)),
        nn.Conv2d(2, 6, (3, 2), (1, 2), dilation=(1, 2), groups=2),
        nn.BatchNorm2d(6),
    ),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_costs_are_what_pytorch_counts(make):
    model, x = make().train(), torch.randn(3, 40)
    before = copy.deepcopy(model.state_dict())
    table = costs(model, x)
    assert table.parameters.sum() == sum(p.numel() for p in model.parameters())
    assert all(model.training for model in model.modules()) and not model._forward_hooks
    assert all(torch.equal(before[name], w) for name, w in model.state_dict().items())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(x[:1])
    assert table.macs.sum() == counter.get_total_flops() // 2


def test_costs_by_layer():
    table = costs(cnn(channels=8), torch.zeros(1, 40))
    assert list(table.kind) == ["Conv1d"] * 3 + ["Linear"]
    assert list(table.parameters) == [5 * 8 + 8, 3 * 64 + 8, 3 * 64 + 8, 40 * 10 + 10]
    assert list(table.macs) == [19 * 40, 10 * 192, 5 * 192, 400]


def test_a_layer_called_twice_computes_twice():
    layer = nn.Linear(40, 40)
    table = costs(nn.Sequential(layer, nn.ReLU(), layer), torch.zeros(1, 40))
    assert table.parameters.sum() == 1_640 and table.macs.sum() == 2 * 1_600


def test_a_masked_layer_costs_as_much():
    model = prune(nn.Sequential(nn.Linear(40, 3)), {"0": torch.zeros(3, 40)})
    assert list(costs(model, torch.zeros(1, 40)).parameters) == [123]


def test_costs_that_are_not_known():
    model = nn.Sequential(nn.Linear(40, 8), nn.LayerNorm(8))
    with pytest.raises(ValueError, match="layer '1' is LayerNorm: what it costs is not known"):
        costs(model, torch.zeros(1, 40))
    tied = nn.Sequential(nn.Linear(40, 40), nn.Linear(40, 40))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="layer '1' shares a parameter with '0'"):
        costs(tied, torch.zeros(1, 40))


# --- factorise -----------------------------------------------------------------------------------


def outputs(model, x):
    with torch.no_grad():
        return model.eval()(x)


CONVS = {
    "plain": {},
    "no bias": {"bias": False},
    "stride": {"stride": 2, "padding": 2},
    "same": {"padding": "same", "dilation": 2},
    "circular": {"padding": 1, "padding_mode": "circular"},
}


@pytest.mark.parametrize("options", CONVS.values(), ids=CONVS)
def test_a_convolution_at_full_rank_is_the_same(options):
    model = nn.Sequential(nn.Unflatten(1, (2, 20)), nn.Conv1d(2, 5, 3, **options)).double()
    x = torch.randn(4, 40, dtype=torch.float64)
    small = factorise(model, {"1": 5})
    torch.testing.assert_close(outputs(small, x), outputs(model, x), atol=1e-12, rtol=0)
    assert small[1][0].out_channels == 5 and small[1][1].kernel_size == (1,)


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_at_any_rank(bias):
    model, x = nn.Sequential(nn.Linear(6, 4, bias=bias), nn.ReLU()).double(), torch.randn(5, 6).double()
    w, b = model[0].weight.detach(), model[0].bias
    for rank in range(1, 5):
        first, second = low_rank(w, rank)
        expected = x @ (first @ second).T + (b.detach() if bias else 0)
        torch.testing.assert_close(outputs(factorise(model, {"0": rank}), x), expected.relu())
    torch.testing.assert_close(outputs(factorise(model, {"0": 4}), x), outputs(model, x))


def test_the_original_and_the_random_state_stay():
    model = mlp()
    before, state = copy.deepcopy(model), torch.get_rng_state()
    small = factorise(model, {"2": 10})
    assert torch.equal(state, torch.get_rng_state())
    assert repr(model) == repr(before)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    assert not {id(p) for p in model.parameters()} & {id(p) for p in small.parameters()}
    assert sum(p.numel() for p in small.parameters()) == 15_210 - 100 * 100 + 2 * 10 * 100
    optimizer = torch.optim.SGD(small.parameters(), 0.1)
    small(torch.randn(8, 40)).square().sum().backward()
    before = copy.deepcopy(small.state_dict())
    optimizer.step()
    assert all(not torch.equal(before[name], w) for name, w in small.state_dict().items())


def test_layers_deep_inside_keep_mode_and_freeze():
    model = block_net("bottleneck", 8, 2).eval()
    model[4].layers[0].requires_grad_(False)
    small = factorise(model, {"4.layers.0": 2, "7": 3})
    assert not small[4].layers[0][0].training and not small[4].layers[0][1].weight.requires_grad
    assert small[7][1].weight.requires_grad
    x = torch.randn(3, 40)
    torch.testing.assert_close(outputs(factorise(model, {"7": 10}), x), outputs(model, x))


def test_bad_ranks_change_nothing_and_name_the_layer():
    model = mlp()
    for ranks, words in [
        ({"2": 10, "9": 3}, "ranks names '9': it must be an nn.Linear or nn.Conv1d, one of 0, 2, 4"),
        ({"1": 3}, "ranks names '1'"),
        ({"2": 0}, r"layer '2' cannot be factorised: rank=0 .* in \[1, 100\]"),
        ({"4": 11}, r"layer '4' cannot be factorised: rank=11 .* in \[1, 10\]"),
    ]:
        with pytest.raises(ValueError, match=words):
            factorise(model, ranks)
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"layer '2' cannot be factorised: .* not finite"):
        factorise(model, {"2": 3})


def test_layers_that_are_no_plain_matrix():
    grouped = nn.Sequential(nn.Conv1d(4, 4, 3, groups=2))
    with pytest.raises(ValueError, match="layer '0' has groups=2"):
        factorise(grouped, {"0": 1})
    with pytest.raises(ValueError, match="layer '0' is computed from other tensors"):
        factorise(nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))), {"0": 1})
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match=r"layer '0' is shared by 0\.weight, 1\.weight"):
        factorise(tied, {"0": 1})
