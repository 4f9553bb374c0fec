r"""What a model costs, as in chapter 1: bytes of its weights, bytes of its training, time at the least.

Parameters and multiply-accumulates (MACs) of layers are counted in :mod:`dlopt_helpers.structure`; here is
what follows from them. A byte has 8 bits, and a megabyte (MB) is 10^6 bytes.
"""

from itertools import pairwise
from typing import NamedTuple

from dlopt_helpers._require import refuse, require_bool, require_one, require_option, require_whole
from dlopt_helpers.structure import Cost, linear_cost

# Numbers that an optimiser keeps for each parameter.
STATE = {"SGD": 0, "momentum": 1, "Adam": 2}


class Memory(NamedTuple):
    """Where the bytes of training go.

    Example:
      >>> Memory(weights=4, gradients=4, state=8, activations=1).total
      17
    """

    weights: float
    gradients: float
    state: float
    activations: float

    @property
    def total(self):
        """The sum of the four."""
        return sum(self)


def weight_bytes(parameters, bits=32):
    r"""Return the bytes of a model's weights.

    .. math:: n\,\frac{b}{8}

    Args:
      parameters: :math:`n`.
      bits: :math:`b` of each: 32 for float32, 16 for float16 and bfloat16, 8 for int8, 4 for int4.

    Raises:
      ValueError: if ``parameters`` is no whole number >= 1, or ``bits`` no number > 0.

    Example:
      >>> weight_bytes(15_210), weight_bytes(15_210, bits=4)
      (60840.0, 7605.0)
    """
    require_whole("parameters", parameters, 1)
    require_one("bits", bits, "a number > 0", lambda b: b > 0)
    return parameters * bits / 8


def kept_numbers(sizes, twice=False):
    r"""Return how many numbers an MLP keeps of each example, from the forward to the backward pass.

    With :math:`n_0` inputs, hidden layers of :math:`n_1, \dots, n_{k-1}` units and :math:`n_k` logits

    .. math:: \underbrace{n_0}_{\text{input}} + \underbrace{n_1 + \dots + n_{k-1}}_{\text{hidden units}}
              + \underbrace{n_k}_{\text{log-probabilities}} .

    The gradient of a linear layer's weights needs the layer's input. That of ReLU needs to know where
    its output is 0, and its output is the next layer's input: one array serves both.

    Args:
      sizes: :math:`n_0, \dots, n_k`, such as ``(40, 100, 100, 10)``.
      twice: whether the activation function keeps its own input besides, as GELU does and ReLU,
        sigmoid and tanh do not. The hidden units then count twice.

    Raises:
      ValueError: if there are fewer than two sizes, or one is no whole number >= 1.

    Example:
      >>> kept_numbers((40, 100, 100, 10)), kept_numbers((40, 100, 100, 10), twice=True)
      (250, 450)
    """
    _require_sizes(sizes)
    require_bool(twice=twice)
    first, *hidden, last = sizes
    return first + (2 if twice else 1) * sum(hidden) + last


def training_bytes(parameters, kept=0, batch=1, optimiser="Adam", mixed=False):
    r"""Return the bytes that training needs, by what they hold.

    With :math:`s` = 0, 1 or 2 numbers of optimiser state for each of :math:`n` parameters, and
    :math:`a` numbers kept of each of :math:`B` examples,

    ============  ===================  ===================================
    part          float32              mixed precision
    ============  ===================  ===================================
    weights       :math:`4n`           :math:`2n`
    gradients     :math:`4n`           :math:`2n`
    state         :math:`4sn`          :math:`4n + 4sn`, a copy in float32
    activations   :math:`4aB`          :math:`2aB`
    ============  ===================  ===================================

    With Adam that is 16 bytes a parameter either way, and activations.

    Args:
      parameters: :math:`n`.
      kept: :math:`a`, as of :func:`kept_numbers`.
      batch: :math:`B`, examples in a mini-batch.
      optimiser: ``"SGD"``, ``"momentum"`` or ``"Adam"``.
      mixed: whether weights, gradients and activations have 16 bits and the optimiser steps on a
        float32 copy of the weights.

    Returns:
      A :class:`Memory`.

    Raises:
      ValueError: if ``parameters`` or ``batch`` is no whole number >= 1, ``kept`` no whole number
        >= 0, or the optimiser is unknown.

    Example:
      >>> training_bytes(15_210, kept=250, batch=100)
      Memory(weights=60840, gradients=60840, state=121680, activations=100000)
      >>> training_bytes(1).total, training_bytes(1, mixed=True).total
      (16, 16)
      >>> training_bytes(1, optimiser="SGD").total
      8

    References:
      Rajbhandari et al. 2020, "ZeRO: memory optimizations toward training trillion parameter models".
    """
    for name, value, least in (("parameters", parameters, 1), ("kept", kept, 0), ("batch", batch, 1)):
        require_whole(name, value, least)
    require_option("optimiser", optimiser, STATE)
    require_bool(mixed=mixed)
    size = 2 if mixed else 4
    copies = STATE[optimiser] + (1 if mixed else 0)
    return Memory(size * parameters, size * parameters, 4 * copies * parameters, size * kept * batch)


def mlp_cost(sizes):
    r"""Return parameters and MACs of an MLP, the sum over its linear layers.

    .. math:: \sum_i (n_{i-1}\,n_i + n_i) \text{ parameters}, \qquad \sum_i n_{i-1}\,n_i \text{ MACs}

    Args:
      sizes: as for :func:`kept_numbers`.

    Raises:
      ValueError: as :func:`kept_numbers` does.

    Example:
      >>> mlp_cost((40, 100, 100, 10))
      Cost(parameters=15210, macs=15000)
    """
    _require_sizes(sizes)
    return sum((linear_cost(m, n) for m, n in pairwise(sizes)), Cost())


def block_cost(width, tokens, inner=None):
    r"""Return the cost of a transformer block, for a text of so many tokens.

    Four matrices make queries, keys, values and the attention's output; two make the feed-forward
    layer. Scores and weighted sums of attention have no parameters, and each token meets each:

    .. math:: 4d^2 + 2df + 9d + f \text{ parameters}, \qquad
              T\,(4d^2 + 2df) + 2\,T^2 d \text{ MACs}.

    The rest are biases, and scale and shift of two layer norms. With :math:`f = 4d` there are
    :math:`12d^2 + 13d` parameters.

    Args:
      width: :math:`d`, numbers that stand for a token.
      tokens: :math:`T`.
      inner: :math:`f`, units of the feed-forward layer; by default :math:`4d`.

    Raises:
      ValueError: if a number is no whole number >= 1.

    Example:
      >>> block_cost(768, tokens=1024)
      Cost(parameters=7087872, macs=8858370048)
      >>> block_cost(768, tokens=1).parameters == 12 * 768**2 + 13 * 768
      True

    References:
      Vaswani et al. 2017, "Attention is all you need".
    """
    for name, value in (("width", width), ("tokens", tokens), ("inner", 1 if inner is None else inner)):
        require_whole(name, value, 1)
    inner = 4 * width if inner is None else inner
    matrices = 4 * width**2 + 2 * width * inner
    return Cost(matrices + 9 * width + inner, tokens * matrices + 2 * tokens**2 * width)


def moved_bytes(inputs, outputs, batch=1, bits=32):
    r"""Return the bytes that a linear layer moves at the least: weights once, inputs and outputs.

    .. math:: \frac b8\,\bigl(n\,m + B\,(n + m)\bigr)

    Args:
      inputs, outputs: :math:`n` and :math:`m`.
      batch: :math:`B`, examples at once. They share the weights.
      bits: :math:`b` of each number.

    Raises:
      ValueError: if a number is no whole number >= 1, or ``bits`` no number > 0.

    Example:
      >>> moved_bytes(1024, 1024), moved_bytes(1024, 1024, batch=64)
      (4202496.0, 4718592.0)
    """
    for name, value in (("inputs", inputs), ("outputs", outputs), ("batch", batch)):
        require_whole(name, value, 1)
    require_one("bits", bits, "a number > 0", lambda b: b > 0)
    return bits / 8 * (inputs * outputs + batch * (inputs + outputs))


def roofline(macs, moved, peak, bandwidth):
    r"""Return the time that a computation takes at the least, in seconds.

    .. math:: \max\Bigl(\frac{\text{MACs}}{\text{peak}},\; \frac{\text{bytes}}{\text{bandwidth}}\Bigr)

    A machine computes and moves at the same time, so the slower of both decides. Below peak /
    bandwidth MACs for each byte it is the moving.

    Args:
      macs: multiply-accumulates.
      moved: bytes to and from memory.
      peak: MACs a second that the machine can do.
      bandwidth: bytes a second that it can move.

    Raises:
      ValueError: if ``macs`` or ``moved`` is no number >= 0, or a rate no number > 0.

    Example:
      >>> roofline(macs=10, moved=40, peak=5, bandwidth=10)
      4.0
      >>> roofline(macs=100, moved=40, peak=5, bandwidth=10)
      20.0

    References:
      Williams, Waterman and Patterson 2009, "Roofline: an insightful visual performance model".
    """
    for name, value in (("macs", macs), ("moved", moved)):
        require_one(name, value, "a number >= 0", lambda x: x >= 0)
    for name, value in (("peak", peak), ("bandwidth", bandwidth)):
        require_one(name, value, "a number > 0", lambda x: x > 0)
    return max(macs / peak, moved / bandwidth)


def _require_sizes(sizes):
    if not isinstance(sizes, tuple | list) or len(sizes) < 2:
        refuse("sizes", sizes, "two or more whole numbers >= 1")
    for size in sizes:
        require_whole("a number of sizes", size, 1)
