"""The networks of the experiments."""

from itertools import pairwise

import torch
from torch import nn

from dlopt_helpers._require import require_whole


def mlp(inputs=40, hidden=(100, 100), classes=10, seed=0):
    """Return a multi-layer perceptron with ReLU between its linear layers.

    Its sizes are those of the MLP in the MNIST-1D paper (15,210 parameters), without the skip
    connection that the paper's code has. The weights are drawn as PyTorch does by default; the
    global random state stays as it is.

    Args:
      inputs: numbers in an example.
      hidden: units of each hidden layer, a tuple; one number stands for two such layers.
      classes: numbers in the output, the logits.
      seed: of the initial weights, a whole number in [0, 2**32).

    Raises:
      ValueError: if a size is no whole number >= 1, or ``seed`` is not allowed.

    Example:
      >>> sum(p.numel() for p in mlp().parameters())
      15210
    """
    if isinstance(hidden, tuple | list):
        hidden = [require_whole("hidden", units, 1) for units in hidden]
    else:
        hidden = 2 * [require_whole("hidden", hidden, 1)]
    sizes = [require_whole("inputs", inputs, 1), *hidden, require_whole("classes", classes, 1)]
    seed = require_whole("seed", seed, 0, 2**32 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [layer for m, n in pairwise(sizes) for layer in (nn.Linear(m, n), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def cnn(channels=25, seed=0):
    """Return a convolutional network for the 40 numbers of MNIST-1D and their ten classes.

    Its sizes are those of the CNN in the MNIST-1D paper (5,210 parameters): three convolutions that
    halve the length, with ReLU, and a linear layer. The weights are drawn as by :func:`mlp`.

    Args:
      channels: of each convolution.
      seed: of the initial weights, a whole number in [0, 2**32).

    Raises:
      ValueError: if ``channels`` is no whole number >= 1, or ``seed`` is not allowed.

    Example:
      >>> cnn()(torch.zeros(3, 40)).shape
      torch.Size([3, 10])
    """
    channels, seed = require_whole("channels", channels, 1), require_whole("seed", seed, 0, 2**32 - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Unflatten(1, (1, 40))]
        for inputs, kernel in ((1, 5), (channels, 3), (channels, 3)):
            layers += [nn.Conv1d(inputs, channels, kernel, stride=2, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(5 * channels, 10))
