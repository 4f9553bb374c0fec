"""What other tools make of a network by themselves: tried on a small one."""

import copy
import importlib.util
import io
import zlib
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from dlopt_helpers.chapters import pipeline_peers as chapter
from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.measure import Ratio
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.pipeline import Made

HERE = [key for key in chapter.TOOLS if key[0] != "torchao" or importlib.util.find_spec("torchao")]
FLOATS = 4 * (40 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10)  # bytes
EXACT = [key for key in HERE if key[1] == "float"]
X = np.random.default_rng(0).normal(size=(300, 40)).astype("float32")
Y = np.random.default_rng(1).integers(0, 10, size=300)
MODELS = [mlp(hidden=128, seed=seed) for seed in (0, 1)]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Untrained networks, random examples, nothing timed; what would be timed is noted."""
    timed = []

    def ratios(one, other, **options):
        timed.append((one, other, options))
        return Ratio(2.0, 1.0, 3.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "start", lambda network, seed: Made(MODELS[seed]))
        patch.setattr(chapter, "fresh_test", lambda: (X, Y))
        patch.setattr(chapter, "mnist1d", lambda: SimpleNamespace(x_train=X))
        patch.setattr(chapter, "ratios", ratios)
        yield timed


@pytest.fixture(scope="module")
def made(quick):
    return chapter.peers(seeds=[0, 1], repeats=4)


@pytest.fixture(scope="module")
def tools(made):
    """The file and the function of each tool, for the first network."""
    return {key: chapter.TOOLS[key](copy.deepcopy(MODELS[0]), X) for key in HERE if key != PRUNED}


PRUNED = ("PyTorch", "90 % of the weights pruned")


def test_a_row_for_each_tool_and_seed(made):
    assert list(zip(made.tool, made.what, made.seed, strict=True)) == [
        (*key, seed) for seed in (0, 1) for key in HERE
    ]
    assert not made.isna().any().any()


def test_each_is_timed_beside_the_float_file_of_its_seed(made, quick):
    assert len(quick) == 2 * len(made) and set(made["faster 1"]) == set(made["faster 64"]) == {2.0}
    for number, (one, other, options) in enumerate(quick[: 2 * len(made)]):
        seed, n = number // 2 // len(HERE), chapter.BATCHES[number % 2]
        assert one.args[-1].shape == other.args[-1].shape == (n, 40) and options["repeats"] == 4
        assert options["calls"] == {1: 300, 64: 4}[n]
        assert abs(one() - onnxrt.load(onnxrt.export(MODELS[seed]))(X[:n])).max() < 1e-6
        assert (one.func is other.func) == (number // 2 % len(HERE) == 0)


def test_each_computes_what_the_network_does(made, tools):
    logits = MODELS[0](torch.from_numpy(X)).detach().numpy()
    for key, (_, run) in tools.items():
        error = abs(run(X) - logits).max() / logits.std()
        assert error < 1e-4 if key in EXACT else 1e-4 < error < 0.2, key


def test_accuracy_is_that_of_what_each_computes(made, tools):
    first = made[made.seed == 0].set_index(["tool", "what"])
    right = {key: (run(X).argmax(1) == Y).mean() for key, (_, run) in tools.items()}
    assert first.accuracy[list(right)].to_dict() == pytest.approx(right)


def test_bytes_are_those_of_the_files(made, tools):
    size = made[made.seed == 0].set_index(["tool", "what"])
    for key, (file, _) in tools.items():
        assert abs(size.bytes[key] - len(file)) < 300, key  # names and dates
        assert abs(size.zipped[key] / len(zlib.compress(file, 9)) - 1) < 0.02, key
        of = size.bytes[key] / FLOATS
        assert 1 < of < 1.35 if key in EXACT else 0.25 < of < 0.6, key
    assert 1 < size.bytes[PRUNED] / FLOATS < 1.35 and size.zipped[PRUNED] < 0.3 * size.bytes[PRUNED]


def test_pruned_means_zeros_in_nine_of_ten_weights_of_the_file():
    model = mlp(hidden=128)
    file, run = chapter.TOOLS[PRUNED](model, X)
    weights = torch.load(io.BytesIO(file), weights_only=True)
    assert set(weights) == set(mlp().state_dict())
    matrices = torch.cat([weights[f"{layer}.weight"].flatten() for layer in (0, 2, 4)])
    assert (matrices == 0).float().mean() == pytest.approx(0.9, abs=1e-3)
    left = torch.cat([w.flatten() for w in mlp(hidden=128).state_dict().values() if w.ndim > 1])
    # The smallest of all layers, by one threshold.
    assert abs(left[matrices == 0]).max() <= abs(left[matrices != 0]).min()
    twin = mlp(hidden=128)
    twin.load_state_dict(weights)
    assert abs(run(X) - twin(torch.from_numpy(X)).detach().numpy()).max() < 1e-5


@pytest.mark.parametrize("what", ["int8 weights", "int8 dynamic"])
def test_torchao_keeps_its_weights_in_8_bits(what):
    pytest.importorskip("torchao")
    model = mlp(hidden=128)
    chapter.TOOLS["torchao", what](model, X)
    assert (
        type(model[2].weight).__module__.startswith("torchao") and model[2].weight.qdata.dtype == torch.int8
    )


def test_no_tool_changes_the_network_of_the_next(made):
    for seed, model in enumerate(MODELS):
        for name, w in mlp(hidden=128, seed=seed).state_dict().items():
            assert torch.equal(model.state_dict()[name], w)
        assert type(model[0].weight) is torch.nn.Parameter


def test_without_torchao_its_rows_are_missing(monkeypatch):
    find = importlib.util.find_spec

    def without_torchao(name, *more):
        return None if name == "torchao" else find(name, *more)

    monkeypatch.setattr(importlib.util, "find_spec", without_torchao)
    few = [chapter.REFERENCE, ("torchao", "int8 weights"), ("PyTorch", "float")]
    monkeypatch.setattr(chapter, "TOOLS", {key: chapter.TOOLS[key] for key in few})
    assert list(chapter.peers(seeds=[0], repeats=1).tool) == ["ONNX Runtime", "PyTorch"]


@pytest.mark.skipif(not chapter.STORED.exists(), reason="not measured yet")
def test_stored_rows_are_those_that_a_measurement_makes(made):
    stored = chapter.stored_peers()
    assert list(stored)[: len(made.columns)] == list(made)
    assert list(zip(stored.tool, stored.what, stored.seed, strict=True)) == [
        (*key, seed) for seed in chapter.SEEDS for key in chapter.TOOLS
    ]
    assert stored.accuracy.between(0.5, 0.9).all() and (stored.zipped < stored.bytes).all()


def test_table_shows_a_row_for_each_tool():
    rows = [
        (*chapter.REFERENCE, 0.5, 4e6, 3e6, 1.0, 1.0),
        ("T", "it", 0.4, 1e6, 9e5, 2.0, 0.1),
        (*chapter.REFERENCE, 0.7, 4e6, 3e6, 1.0, 1.0),
        ("T", "it", 0.5, 3e6, 7e5, 4.0, 0.3),
    ]
    columns = ["tool", "what", "accuracy", "bytes", "zipped", "faster 1", "faster 64"]
    shown = chapter.table(pd.DataFrame(rows, columns=columns))
    assert list(shown.index) == [chapter.REFERENCE, ("T", "it")]
    assert list(shown.iloc[0]) == ["60.0\xa0(50.0–70.0)", "4,000", "3,000", "1", "1", "1"]
    assert list(shown.iloc[1]) == ["45.0\xa0(40.0–50.0)", "2,000", "800", "2", "3", "0.2"]
