"""Famous networks by the formulas of layers, and what their papers say of them."""

from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

from dlopt_helpers.footprint import block_cost, mlp_cost, training_bytes, weight_bytes
from dlopt_helpers.structure import Cost, conv_cost, linear_cost

# --- images ---------------------------------------------------------------------------------------------


def lenet_300_100():
    """Return the cost of the MLP for MNIST that chapter 3.3's papers prune."""
    return mlp_cost((28 * 28, 300, 100, 10))


def lenet_5():
    """Return the cost of LeNet-5 as those papers have it, in Caffe's version with 20 and 50 channels."""
    images = conv_cost(1, 20, 5 * 5, 24 * 24) + conv_cost(20, 50, 5 * 5, 8 * 8)
    return images + mlp_cost((50 * 4 * 4, 500, 10))


def alexnet():
    """Return the cost of AlexNet, with three convolutions in two groups, one for each of its two GPUs."""
    layers = [
        conv_cost(3, 96, 11 * 11, 55 * 55),
        conv_cost(96, 256, 5 * 5, 27 * 27, groups=2),
        conv_cost(256, 384, 3 * 3, 13 * 13),
        conv_cost(384, 384, 3 * 3, 13 * 13, groups=2),
        conv_cost(384, 256, 3 * 3, 13 * 13, groups=2),
    ]
    return sum(layers, Cost()) + mlp_cost((256 * 6 * 6, 4096, 4096, 1000))


VGG = [(64, 224, 2), (128, 112, 2), (256, 56, 3), (512, 28, 3), (512, 14, 3)]  # channels, side, layers


def vgg_16():
    """Return the cost of VGG-16."""
    cost, inputs = Cost(), 3
    for channels, side, layers in VGG:
        for _ in range(layers):
            cost += conv_cost(inputs, channels, 3 * 3, side**2)
            inputs = channels
    return cost + mlp_cost((512 * 7 * 7, 4096, 4096, 1000))


def _conv_norm(inputs, outputs, kernel, side, groups=1):
    """Return the cost of a convolution without bias, and of scale and shift of its batch norm.

    Once trained, the norm is part of the convolution: it adds no MAC.
    """
    return conv_cost(inputs, outputs, kernel, side**2, groups, bias=False) + Cost(parameters=2 * outputs)


def resnet_50():
    """Return the cost of ResNet-50, with the stride in the 3 x 3 convolution."""
    cost, inputs = _conv_norm(3, 64, 7 * 7, 112), 64
    for inner, side, blocks in ((64, 56, 3), (128, 28, 4), (256, 14, 6), (512, 7, 3)):
        for block in range(blocks):
            # The first block of a stage halves the side, but that of the first stage.
            before = 2 * side if block == 0 and inner > 64 else side
            cost += _conv_norm(inputs, inner, 1, before) + _conv_norm(inner, inner, 3 * 3, side)
            cost += _conv_norm(inner, 4 * inner, 1, side)
            if block == 0:
                cost += _conv_norm(inputs, 4 * inner, 1, side)  # the shortcut
            inputs = 4 * inner
    return cost + linear_cost(2048, 1000)


def mobilenet():
    """Return the cost of the first MobileNet: a convolution and 13 depthwise-separable ones."""
    cost, inputs = _conv_norm(3, 32, 3 * 3, 112), 32
    stages = [(64, 112), (128, 56), (128, 56), (256, 28), (256, 28)]
    stages += [(512, 14)] * 6 + [(1024, 7)] * 2
    for outputs, side in stages:
        cost += _conv_norm(inputs, inputs, 3 * 3, side, groups=inputs) + _conv_norm(inputs, outputs, 1, side)
        inputs = outputs
    return cost + linear_cost(1024, 1000)


# --- texts ----------------------------------------------------------------------------------------------


def _per_token(cost, tokens):
    return Cost(cost.parameters, cost.macs // tokens)


def bert_base():
    """Return the cost of BERT base: parameters, and MACs a token in a text of 512."""
    d, tokens = 768, 512
    embeddings = Cost(parameters=(30_522 + 512 + 2) * d + 2 * d)  # words, positions, segments; a norm
    blocks = [block_cost(d, tokens)] * 12
    return embeddings + _per_token(sum(blocks, Cost()), tokens) + Cost(parameters=d**2 + d)  # the pooler


def gpt(width, blocks, tokens):
    """Return the cost of a GPT: parameters, and MACs a token in a text of full length.

    The matrix that looks up a token also makes the logits at the end, so it is stored once.
    """
    vocabulary = 50_257
    embeddings = Cost(parameters=(vocabulary + tokens) * width + 2 * width, macs=vocabulary * width)
    return embeddings + _per_token(sum([block_cost(width, tokens)] * blocks, Cost()), tokens)


def gpt_2():
    """Return the cost of the smallest GPT-2."""
    return gpt(768, 12, 1024)


def gpt_3():
    """Return the cost of the largest GPT-3."""
    return gpt(12_288, 96, 2048)


def llama_7b():
    """Return the cost of LLaMA 7B: no biases, three matrices in the feed-forward layer, two embeddings."""
    d, tokens, vocabulary = 4096, 2048, 32_000
    inner = 11_008  # two thirds of 4 d, rounded up to a multiple of 256
    matrices = 4 * d**2 + 3 * d * inner
    block = Cost(matrices + 2 * d, matrices + 2 * tokens * d)
    return sum([block] * 32, Cost(2 * vocabulary * d + d, vocabulary * d))


# --- beside the papers ------------------------------------------------------------------------------------


class Network(NamedTuple):
    """A network, its cost by formula, and what a paper says; MACs are for an image, or for a token."""

    name: str
    cost: Cost
    parameters: float
    macs: float | None
    source: str


FAMOUS = [
    Network("LeNet-300-100", lenet_300_100(), 267e3, None, "Han et al. 2015"),
    Network("LeNet-5", lenet_5(), 431e3, None, "Han et al. 2015"),
    Network("AlexNet", alexnet(), 61e6, None, "Han et al. 2015"),
    Network("VGG-16", vgg_16(), 138e6, None, "Simonyan and Zisserman 2015"),
    Network("ResNet-50", resnet_50(), 25.5e6, 4.1e9, "Xie et al. 2017"),
    Network("MobileNet", mobilenet(), 4.2e6, 569e6, "Howard et al. 2017"),
    Network("BERT base", bert_base(), 110e6, None, "Devlin et al. 2019"),
    Network("GPT-2, smallest", gpt_2(), 124e6, None, "its authors' repository"),
    Network("GPT-3", gpt_3(), 174.6e9, None, "Brown et al. 2020"),
    Network("LLaMA 7B", llama_7b(), 6.7e9, None, "Touvron et al. 2023"),
]


def famous():
    """Return a row for each network: cost by formula, bytes of its weights and of training, the paper's."""
    rows = []
    for network in FAMOUS:
        n, macs = network.cost
        rows.append(
            {
                "network": network.name,
                "parameters": n,
                "MACs": macs,
                "float32": weight_bytes(n),
                "16 bits": weight_bytes(n, 16),
                "int4": weight_bytes(n, 4),
                "Adam": training_bytes(n).total,
                "paper": network.parameters,
                "paper's MACs": network.macs,
                "source": network.source,
            }
        )
    return pd.DataFrame(rows).set_index("network")


def short(number):
    """Return a number with three digits and a letter for thousands, millions, 10^9 or 10^12.

    Example:
      >>> short(15_210), short(25_557_032), short(None)
      ('15.2 k', '25.6 M', '')
    """
    if number is None or pd.isna(number):
        return ""
    for size, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g} {letter}"
    return f"{number:.3g}"


def shown(table):
    """Return the table as the chapter shows it: numbers short, on one line."""
    numbers = table.drop(columns="source").map(short).map(lambda text: text.replace(" ", "\xa0"))
    return numbers.join(table.source)


# --- beside PyTorch, on the meta device, where a network has shapes and no numbers ------------------------


def vgg_16_in_torch():
    """Return VGG-16 with shapes and without numbers."""
    layers, inputs = [], 3
    for channels, _, repeats in VGG:
        for _ in range(repeats):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.ReLU()]
            inputs = channels
        layers.append(nn.MaxPool2d(2))
    sizes = [512 * 7 * 7, 4096, 4096, 1000]
    linear = [part for m, n in pairwise(sizes) for part in (nn.Linear(m, n), nn.ReLU())]
    return nn.Sequential(*layers, nn.Flatten(), *linear[:-1])


def counted(make, *shape):
    """Return the cost of a network as PyTorch counts it, without a number of its weights in memory.

    Args:
      make: makes the network.
      shape: of an example.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        model = make()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.empty(1, *shape))
    return Cost(sum(p.numel() for p in model.parameters()), counter.get_total_flops() // 2)


def block_in_torch(width, heads):
    """Return a transformer block of PyTorch."""
    # Training mode: in evaluation PyTorch takes a fused kernel, which its counter does not see.
    return nn.TransformerEncoderLayer(width, heads, 4 * width, batch_first=True)
