"""What is measured about a file."""

import functools
import sys
import timeit
import zlib

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dlopt_helpers.bridges.quantization_torch import quantize_weights
from dlopt_helpers.lab import deployed
from dlopt_helpers.lab.data import fresh_test
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.onnxrt import export


@pytest.fixture(scope="module")
def files():
    return {width: export(mlp(hidden=width)) for width in (4, 1_024)}


TEST = fresh_test(n=200)


def test_a_row_says_what_the_model_does(files):
    x, y = map(torch.from_numpy, TEST)
    model = quantize_weights(mlp(hidden=40), torch.sign)  # of few values: the file has something to zip
    logits, file = model(x), export(model)
    row = deployed.measured(file, files[1_024], *TEST, repeats=3)
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert row["nll"] == pytest.approx(cross_entropy(logits, y).item(), abs=1e-5)
    assert row["bytes"] == len(file)
    assert row["zipped"] == len(zlib.compress(file, 9)) < 0.5 * row["bytes"]


def test_logits_of_any_size_have_a_finite_loss(files, monkeypatch):
    monkeypatch.setattr(deployed, "load", lambda onnx: lambda x: np.full((len(x), 10), -1e4, "float32"))
    assert deployed.measured(files[4], files[4], *TEST, repeats=1)["nll"] == pytest.approx(np.log(10))


def test_times_and_ratios_of_both_batches(files, monkeypatch):
    """The clock is a fake one, on which an example costs the reference ten times as much."""
    now, sizes = [0.0], {files[4]: 1e-6, files[1_024]: 10e-6}

    def load(onnx):
        def run(x):
            now[0] += sizes[onnx] * (1 + len(x))
            return np.zeros((len(x), 10), "float32")

        return run

    monkeypatch.setattr(deployed, "load", load)
    monkeypatch.setattr("dlopt_helpers.lab.measure.time.perf_counter", lambda: now[0])
    monkeypatch.setattr(timeit, "repeat", functools.partial(timeit.repeat, timer=lambda: now[0]))
    row = deployed.measured(files[4], files[1_024], *TEST, repeats=2)
    assert [row["latency 1"], row["latency 64"]] == pytest.approx([2, 65])
    assert [row["faster 1"], row["faster 64"]] == pytest.approx([10, 10])


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell")
def test_memory_grows_with_the_network_and_is_that_of_a_fresh_process(files):
    block = np.ones(25_000_000)  # 200 megabytes that are none of the network's
    small, large = deployed.memory(files[4], 40), deployed.memory(files[1_024], 40)
    assert 1 < small < 40 and 4 < large - small < 40 and block.all()


def test_no_number_where_nobody_tells(files, monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert np.isnan(deployed.memory(files[4], 40))
