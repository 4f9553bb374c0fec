"""Cost of a step through the bridge to PyTorch, as a multiple of torch.optim.SGD's own.

Run from the repository root: python benchmarks/sgd_step.py
"""

import torch

from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.lab.measure import ratios
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.sgd import SGD

MODELS = {"mlp100": (100, 100), "mlp1024": (1024, 1024, 1024)}
OPTIONS = {"plain": {}, "momentum": {"momentum": 0.9}, "Nesterov": {"momentum": 0.9, "nesterov": True}}
CALLS = {"mlp100": 100, "mlp1024": 5}


def with_gradients(hidden):
    model = mlp(hidden=hidden)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    return model.parameters()


@one_thread()
def main():
    print("SGD step, bridge over torch.optim.SGD, one thread")
    for name, hidden in MODELS.items():
        for options_name, options in OPTIONS.items():
            bridge = RuleOptimizer(with_gradients(hidden), SGD(lr=1e-6, **options))
            own = torch.optim.SGD(with_gradients(hidden), lr=1e-6, **options)
            ratio = ratios(bridge.step, own.step, repeats=30, calls=CALLS[name])
            print(f"{name:8} {options_name:9} {ratio}", flush=True)


if __name__ == "__main__":
    main()
