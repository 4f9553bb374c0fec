"""Networks of one skeleton and several kinds of block, for the 40 numbers of MNIST-1D."""

import torch
from torch import nn

from dlopt_helpers._require import refuse, require_option, require_whole

GROUPS = 4  # of the grouped convolution
INNER = 4  # how many times fewer channels a bottleneck has inside


def block_layers(kind, channels, stride=1):
    """Return the layers inside a block, which keep the number of channels, as a list.

    Args:
      kind: ``plain``, a convolution of 3 numbers; ``separable``, one for each channel alone and a
        pointwise one; ``grouped``, one in 4 groups, whose channels are then shuffled; ``bottleneck``,
        one on a quarter of the channels, between two pointwise ones.
      channels: a multiple of 4.
      stride: of the convolution of 3 numbers.

    Raises:
      ValueError: if an argument is not allowed.

    Example:
      >>> len(block_layers("plain", 8))
      2

    References:
      Howard et al. 2017, "MobileNets" (separable); Zhang et al. 2018, "ShuffleNet" (grouped); He et al.
      2016, "Deep residual learning for image recognition" (bottleneck).
    """
    require_option("kind", kind, KINDS)
    return _INSIDE[kind](_multiple_of(4, "channels", channels), require_whole("stride", stride, 1))


def _multiple_of(n, name, value):
    if (whole := require_whole(name, value, n)) % n:
        refuse(name, value, "a multiple of 4" if n == 4 else "an even whole number")
    return whole


def _conv(inputs, outputs, kernel, stride=1, groups=1):
    # Without bias: the batch norm after it has one.
    conv = nn.Conv1d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm1d(outputs)]


def _separable(c, stride):
    return [*_conv(c, c, 3, stride, groups=c), nn.ReLU(), *_conv(c, c, 1)]


def _grouped(c, stride):
    return [*_conv(c, c, 3, stride, groups=GROUPS), nn.ChannelShuffle(GROUPS)]


def _bottleneck(c, stride):
    inner = c // INNER
    return [*_conv(c, inner, 1), nn.ReLU(), *_conv(inner, inner, 3, stride), nn.ReLU(), *_conv(inner, c, 1)]


_INSIDE = {
    "plain": lambda c, stride: _conv(c, c, 3, stride),
    "separable": _separable,
    "grouped": _grouped,
    "bottleneck": _bottleneck,
}
KINDS = list(_INSIDE)


class Block(nn.Module):
    """A block with a shortcut: ReLU of what its layers make of the input, plus the input itself.

    With a stride the shortcut takes means over as many positions. It has no parameters.

    Args, and what is raised: those of :func:`block_layers`.
    """

    def __init__(self, kind, channels, stride=1):
        super().__init__()
        self.layers = nn.Sequential(*block_layers(kind, channels, stride))
        stride = int(stride)
        self.shortcut = nn.AvgPool1d(stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return torch.relu(self.layers(x) + self.shortcut(x))


def block_net(kind, width=32, depth=4, seed=0):
    """Return a network of ``depth`` blocks of one kind.

    A convolution of 5 numbers makes ``width`` channels of length 20. Half of the blocks work at that
    length, the last of them halves it, and so do the others: the last linear layer sees length 5. All
    kinds have this skeleton in common. The weights are drawn as PyTorch does by default; the global
    random state stays as it is.

    Args:
      kind: as for :func:`block_layers`.
      width: channels, a multiple of 4.
      depth: number of blocks, even.
      seed: of the initial weights.

    Raises:
      ValueError: if an argument is not allowed.

    Example:
      >>> block_net("bottleneck", width=16)(torch.zeros(3, 40)).shape
      torch.Size([3, 10])
    """
    require_option("kind", kind, KINDS)
    width, half = _multiple_of(4, "width", width), _multiple_of(2, "depth", depth) // 2
    seed = require_whole("seed", seed, 0, 2**32 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stem = [nn.Conv1d(1, width, 5, stride=2, padding=2, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        strides = 2 * [*[1] * (half - 1), 2]
        blocks = [Block(kind, width, stride) for stride in strides]
        return nn.Sequential(nn.Unflatten(1, (1, 40)), *stem, *blocks, nn.Flatten(), nn.Linear(5 * width, 10))
