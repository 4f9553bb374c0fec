"""Cost of one step of SGD and Adam: the bridge, plain and compiled, against torch.optim's own.

Run from the repository root: python benchmarks/optimizer_step.py
"""

import functools
import time

import pandas as pd
import torch

from dlopt_helpers.adam import Adam
from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.lab.measure import ratios
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.sgd import SGD


def resnet_shapes():
    """Return the shapes of the 161 parameters of a ResNet-50: 25,557,032 numbers, most tensors tiny."""
    shapes, inputs = [(64, 3, 7, 7), (64,), (64,)], 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            convolutions = [(width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)]
            convolutions += [(4 * width, inputs, 1, 1)] * (block == 0)
            shapes += [shape for conv in convolutions for shape in (conv, conv[:1], conv[:1])]
            inputs = 4 * width
    return [*shapes, (1000, 2048), (1000,)]


NETWORKS = {  # name -> shapes of its parameters, steps in one measurement
    "MLP, 15 k": ([p.shape for p in mlp().parameters()], 50),
    "MLP, 3 M": ([p.shape for p in mlp(hidden=(1240, 1240, 1100)).parameters()], 3),
    "ResNet-50": (resnet_shapes(), 1),
}
# The arrays that a step must read and write: weights, gradient and state, then weights and state.
RULES = {
    "SGD": (SGD(lr=1e-6, momentum=0.9), functools.partial(torch.optim.SGD, lr=1e-6, momentum=0.9), 3 + 2),
    "Adam": (Adam(lr=1e-6), functools.partial(torch.optim.Adam, lr=1e-6), 4 + 3),
}


def parameters(shapes, device):
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(device)) for shape in shapes]
    for p in made:
        p.grad = torch.randn(p.shape, generator=generator).to(device)
    return made


def variants(rule, own):
    """Return the ways to make a step, functions of the parameters."""
    return {
        "default": own,
        "foreach": functools.partial(own, foreach=True),
        "fused": functools.partial(own, fused=True),
        "ours": lambda ps: RuleOptimizer(ps, rule),
        "ours, compiled": lambda ps: RuleOptimizer(ps, rule, compiled=True),
    }


def finished(function, device):
    """Return a function that waits until ``device`` has done the work of ``function``."""
    if torch.device(device).type != "cuda":
        return function

    def run():
        function()
        torch.cuda.synchronize(device)

    return run


@one_thread()
def step_costs(name, network, device="cpu", repeats=30):
    """Measure a step of a rule in each variant, on one thread.

    Args:
      name: one of ``RULES``.
      network: one of ``NETWORKS``.
      device: ``"cpu"`` or ``"cuda"``.
      repeats: pairs of measurements for each ratio.

    Returns:
      A data frame with one row per variant and one for a copy of the weights: the time as a multiple of
      the default's and of ``fused``'s (each a :class:`~dlopt_helpers.lab.measure.Ratio`), the seconds
      of the first step, in which the compiler works, the microseconds of a step, and the 10^9 bytes
      per second that had to move.
    """
    rule, own, arrays = RULES[name]
    shapes, calls = NETWORKS[network]
    size = sum(torch.Size(shape).numel() for shape in shapes)
    steps, first = {}, {}
    for variant, make in variants(rule, own).items():
        steps[variant] = finished(make(parameters(shapes, device)).step, device)
        start = time.perf_counter()
        steps[variant]()
        first[variant] = time.perf_counter() - start
    source, target = torch.randn(2, size, device=device)
    steps["copy"] = finished(lambda: target.copy_(source), device)
    return pd.DataFrame(
        [
            {
                "variant": variant,
                "over default": ratios(step, steps["default"], repeats, calls),
                "over fused": ratios(step, steps["fused"], repeats, calls),
                "first step [s]": first.get(variant),
                "step [µs]": (microseconds := median_time(step, repeats, calls) * 1e6),
                "GB/s": 4 * size * (2 if variant == "copy" else arrays) / microseconds / 1e3,
            }
            for variant, step in steps.items()
        ]
    )


def median_time(function, repeats, calls):
    def seconds():
        start = time.perf_counter()
        for _ in range(calls):
            function()
        return (time.perf_counter() - start) / calls

    return sorted(seconds() for _ in range(repeats))[repeats // 2]


def main():
    print("All on one thread. In brackets: where 90 % of the repeats lie.")
    shown = dict.fromkeys(["over default", "over fused"], str)
    for device in ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]:
        for network, (shapes, _) in NETWORKS.items():
            size = sum(torch.Size(shape).numel() for shape in shapes)
            for name in RULES:
                print(f"\n{name}, {network}: {size:,} parameters, {len(shapes)} tensors, {device}")
                costs = step_costs(name, network, device, repeats=30 if size < 1e7 else 10)
                print(costs.to_string(index=False, float_format="{:.3g}".format, formatters=shown))


if __name__ == "__main__":
    main()
