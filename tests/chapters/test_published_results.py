"""What comes with the package is what its code gives: one small call of each experiment, computed anew."""

import importlib
import json

import pandas as pd
import pytest

from dlopt_helpers.lab import published
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.sweep import cosine
from dlopt_helpers.sgd import SGD

SWEEP = {
    "rule": SGD,
    "model": mlp,
    "data": None,
    "steps": 4_000,
    "every": 4_000,
    "dtype": "float32",
    "schedule": cosine,
}
CALLS = {
    "lab.sweep._sweep": {"settings": [{"lr": 1.8}], "seeds": list(range(5)), **SWEEP},
    "chapters.background_memory.memory_grid": {},
    "chapters.sgd.gradient_clouds": {},
    "chapters.pruning_runs._two_of_four": {"network": "mlp512", "seed": 0},
    "chapters.distillation_runs._error_told": {"seed": 0},
    "chapters.quantization_runs._ranges": {"network": "cnn25", "seed": 1},
    "chapters.structure_runs._ranked": {"way": "SVD", "rank": 1},
    "chapters.code_example_runs._epochs": {"share": 1.0, "seeds": list(range(5))},
    "chapters.pipeline_runs._bar": {"seed": 0},
    "chapters.trends_hardware_runs._in_bits": {"way": "float32", "rate": 0.001, "seed": 0},
    "chapters.trends_challenges._with_noise": {"share": 0.2, "seed": 1},
    "chapters.trends_search.search": {
        "sampler": "TPE",
        "budget": 4_000,
        "seed": 0,
        "trials": 10,
        "steps": 100,
    },
}


def numbers(result):
    """Return the numbers of a result, and the rest."""
    table = result if isinstance(result, pd.DataFrame) else pd.DataFrame([result])
    return table.select_dtypes("number"), table.select_dtypes(exclude="number")


@pytest.mark.parametrize("name", CALLS)
def test_a_published_result_can_be_trained(name, monkeypatch):
    module, function = f"dlopt_helpers.{name}".rsplit(".", 1)
    function = getattr(importlib.import_module(module), function)
    monkeypatch.setenv("DLOPT_TRAIN", "never")
    stored, words = numbers(function(**CALLS[name]))
    monkeypatch.setenv("DLOPT_TRAIN", "always")
    measured, same = numbers(function.__wrapped__(**CALLS[name]))
    pd.testing.assert_frame_equal(words, same)
    # Another processor adds in another order, and training makes more of that: two to four points.
    apart = abs(measured - stored) / (0.02 + 0.02 * abs(stored))
    assert apart.mean().max() < 1, json.dumps(apart.mean().to_dict())


def test_each_file_of_results_is_tried():
    files = {
        path.relative_to(published._PACKAGE).with_suffix("") for path in published._PACKAGE.rglob("*.jsonl")
    }
    tried = {"/".join(name.split(".")[:-1]) for name in CALLS}
    assert tried == set(map(str, files)), "CALLS lacks a small call of each"
