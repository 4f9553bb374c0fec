"""What models cost, by hand and against PyTorch, and the famous miscounts."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from dlopt_helpers.chapters.background_networks import block_in_torch, counted
from dlopt_helpers.footprint import (
    Memory,
    block_cost,
    kept_numbers,
    mlp_cost,
    moved_bytes,
    roofline,
    training_bytes,
    weight_bytes,
)

SIZES = (7, 5, 4, 3)


# --- weights ------------------------------------------------------------------------------------------


def test_bytes_have_8_bits():
    assert weight_bytes(1_000) == 4_000
    assert [weight_bytes(1_000, bits) for bits in (16, 8, 4, 1)] == [2_000, 1_000, 500, 125]


def test_an_mlp_is_counted_as_pytorch_does():
    layers = [nn.Linear(m, n) for m, n in pairwise(SIZES)]
    assert mlp_cost(SIZES) == counted(lambda: nn.Sequential(*layers).to("meta"), SIZES[0])
    assert mlp_cost(SIZES) == (7 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3, 35 + 20 + 12)


# --- training -----------------------------------------------------------------------------------------


def test_parts_by_hand():
    found = training_bytes(10, kept=3, batch=5, optimiser="Adam")
    assert found == Memory(40, 40, 80, 60) and found.total == 220
    mixed = training_bytes(10, kept=3, batch=5, optimiser="Adam", mixed=True)
    assert mixed == Memory(20, 20, 120, 30) and mixed.total == 190


@pytest.mark.parametrize(("optimiser", "copies"), [("SGD", 0), ("momentum", 1), ("Adam", 2)])
def test_state_is_what_pytorchs_optimisers_hold(optimiser, copies):
    model = nn.Linear(6, 5)
    make = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
        "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        "Adam": torch.optim.Adam,
    }[optimiser]
    adam = make(model.parameters())
    model(torch.ones(2, 6)).sum().backward()
    adam.step()
    held = [v for s in adam.state.values() for k, v in s.items() if k != "step" and v is not None]
    found = training_bytes(35, optimiser=optimiser)
    assert found.state == sum(4 * v.numel() for v in held) == 4 * copies * 35
    assert training_bytes(35, optimiser=optimiser, mixed=True).state == 4 * (copies + 1) * 35


def test_16_bytes_a_parameter_with_adam_and_activations_apart():
    assert training_bytes(123).total == training_bytes(123, mixed=True).total == 16 * 123
    one, ten = (training_bytes(123, kept=50, batch=batch) for batch in (1, 10))
    assert ten.activations == 10 * one.activations == 2_000 and ten[:3] == one[:3]


# --- what is kept -------------------------------------------------------------------------------------


def saved(model, x, y):
    """Return the numbers that autograd keeps, another way: by the tensors' shapes, each array once."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() if tensor.is_floating_point() else 0
        return tensor.detach()

    held = {p.data_ptr() for p in model.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = nn.functional.cross_entropy(model(x), y)
    assert loss.requires_grad
    return sum(n for place, n in kept.items() if place not in held) - 1  # one number of the loss


@pytest.mark.parametrize(
    ("activation", "twice"), [(nn.ReLU, False), (nn.Tanh, False), (nn.Sigmoid, False), (nn.GELU, True)]
)
def test_kept_numbers_are_what_autograd_keeps(activation, twice):
    layers = [part for m, n in pairwise(SIZES) for part in (nn.Linear(m, n), activation())]
    x, y = torch.randn(6, SIZES[0]), torch.zeros(6, dtype=int)
    assert 6 * kept_numbers(SIZES, twice) == saved(nn.Sequential(*layers[:-1]), x, y)


def test_kept_numbers_by_hand():
    assert kept_numbers(SIZES) == 7 + 5 + 4 + 3  # and not once before and once after each ReLU
    assert kept_numbers(SIZES, twice=True) == 7 + 2 * (5 + 4) + 3
    assert kept_numbers((7, 3)) == kept_numbers((7, 3), twice=True) == 10


# --- transformer --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "heads", "tokens"), [(16, 4, 7), (64, 2, 1), (8, 8, 100)])
def test_block_is_pytorchs(width, heads, tokens):
    assert block_cost(width, tokens) == counted(lambda: block_in_torch(width, heads), tokens, width)


def test_block_with_another_inner_size_and_twice_the_text():
    def make():
        return nn.TransformerEncoderLayer(16, 4, 40, batch_first=True)

    assert block_cost(16, 5, inner=40) == counted(make, 5, 16)
    once, twice = (block_cost(16, tokens).macs for tokens in (8, 16))
    assert twice - 2 * once == 2 * 16 * (16**2 - 2 * 8**2)  # what grows with the square


# --- roofline -----------------------------------------------------------------------------------------


def test_moved_bytes_by_hand():
    assert moved_bytes(3, 5) == 4 * (15 + 8) and moved_bytes(3, 5, batch=10) == 4 * (15 + 80)
    assert moved_bytes(3, 5, batch=10, bits=8) == 15 + 80


def test_the_slower_of_both_decides():
    assert roofline(100, 10, peak=10, bandwidth=10) == 10
    assert roofline(10, 100, peak=10, bandwidth=10) == 10
    assert roofline(100, 100, peak=10, bandwidth=10) == 10  # and not the sum
    assert roofline(0, 30, peak=10, bandwidth=3) == 10


def test_a_batch_costs_nothing_until_the_ridge():
    times = [roofline(b * 10**6, moved_bytes(1000, 1000, b), peak=4e6, bandwidth=4e6) for b in (1, 2, 3, 64)]
    assert times[1] / times[0] < 1.01 and times[3] == 16


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("parameters", lambda bad: weight_bytes(bad)),
        ("parameters", lambda bad: training_bytes(bad)),
        ("batch", lambda bad: training_bytes(1, batch=bad)),
        ("sizes", lambda bad: kept_numbers((3, bad, 2))),
        ("width", lambda bad: block_cost(bad, 1, inner=4)),
        ("tokens", lambda bad: block_cost(1, bad)),
        ("inner", lambda bad: block_cost(1, 1, inner=bad)),
        ("inputs", lambda bad: moved_bytes(bad, 1)),
        ("batch", lambda bad: moved_bytes(1, 1, batch=bad)),
    ],
)
@pytest.mark.parametrize("bad", [0, -1, 1.5, np.nan, np.inf, "2", True])
def test_counts_are_whole(name, call, bad):
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed"):
        call(bad)


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("bits", lambda: weight_bytes(1, bits=0)),
        ("bits", lambda: moved_bytes(1, 1, bits=-1)),
        ("kept", lambda: training_bytes(1, kept=-1)),
        ("kept", lambda: training_bytes(1, kept=0.5)),
        ("optimiser", lambda: training_bytes(1, optimiser="adam")),
        ("sizes", lambda: kept_numbers((3,))),
        ("macs", lambda: roofline(-1, 1, 1, 1)),
        ("moved", lambda: roofline(1, np.nan, 1, 1)),
        ("peak", lambda: roofline(1, 1, 0, 1)),
        ("bandwidth", lambda: roofline(1, 1, 1, -1)),
    ],
)
def test_what_is_not_allowed(name, call):
    with pytest.raises(ValueError, match=f"{name}=.* is not allowed"):
        call()
