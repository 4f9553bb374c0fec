"""The networks of blocks: same skeleton, other insides."""

import pytest
import torch
from torch import nn

from dlopt_helpers.lab.blocks import KINDS, Block, block_layers, block_net
from dlopt_helpers.structure import Cost, bottleneck_cost, conv_cost, linear_cost, separable_cost


def weights(model):
    return sum(p.numel() for p in model.parameters() if p.ndim > 1)


INSIDE = {
    "plain": lambda w: conv_cost(w, w, 3, 1, bias=False),
    "separable": lambda w: separable_cost(w, w, 3, 1, bias=False),
    "grouped": lambda w: conv_cost(w, w, 3, 1, groups=4, bias=False),
    "bottleneck": lambda w: bottleneck_cost(w, w // 4, 3, 1, bias=False),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width, depth", [(8, 2), (16, 6)])
def test_weights_are_those_of_the_formulas(kind, width, depth):
    rest = conv_cost(1, width, 5, 20, bias=False) + linear_cost(5 * width, 10, bias=False)
    blocks = sum([INSIDE[kind](width)] * depth, Cost())
    assert weights(block_net(kind, width, depth)) == (rest + blocks).parameters


@pytest.mark.parametrize("kind", KINDS)
def test_lengths_and_gradients(kind):
    model, lengths = block_net(kind, 8, 4), []
    for layer in model:
        if isinstance(layer, Block):
            layer.register_forward_hook(lambda layer, x, y: lengths.append((x[0].shape[-1], y.shape[-1])))
    model(torch.randn(3, 40)).square().sum().backward()
    assert lengths == [(20, 20), (20, 10), (10, 10), (10, 5)]
    assert all(p.grad.abs().sum() > 0 for p in model.parameters() if p.ndim > 1)


def test_the_shortcut_is_there():
    block = Block("plain", 8).eval()
    with torch.no_grad():
        block.layers[0].weight.zero_()
    x = torch.randn(2, 8, 20)
    torch.testing.assert_close(block(x), x.relu())


def test_every_channel_of_a_grouped_block_reaches_all_groups_after_two():
    x = torch.randn(1, 16, 20, requires_grad=True)
    layers = nn.Sequential(*block_layers("grouped", 16), *block_layers("grouped", 16)).eval()
    layers(x)[0, 0].sum().backward()
    assert (x.grad.abs().sum(dim=(0, 2)) > 0).all()


def test_seeds_and_the_global_state():
    state = torch.get_rng_state()
    a, b, c = (block_net("plain", 8, 2, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(a[-1].weight, b[-1].weight) and not torch.equal(a[-1].weight, c[-1].weight)


def test_bad_arguments():
    for call, words in [
        (lambda: block_net("dense"), "kind='dense' is not allowed: it must be one of .*'separable'"),
        (lambda: block_net("plain", width=6), "width=6 is not allowed: it must be a multiple of 4"),
        (lambda: block_net("plain", width=0), "width=0"),
        (lambda: block_net("plain", depth=3), "depth=3 is not allowed: it must be an even whole number"),
        (lambda: block_net("plain", depth=0), "depth=0"),
        (lambda: block_layers("plain", 5), "channels=5"),
        (lambda: block_layers("plain", 8, stride=0), "stride=0"),
    ]:
        with pytest.raises(ValueError, match=words):
            call()
