"""What chapter 1 shows: famous networks, the memory of training, and the rows behind its explorers."""

import gc
import itertools
import weakref

import numpy as np
import pandas as pd
import pytest
import torch

from dlopt_helpers.chapters import background as chapter
from dlopt_helpers.chapters import background_memory as memory
from dlopt_helpers.chapters import background_networks as networks
from dlopt_helpers.chapters import background_speed as speed
from dlopt_helpers.footprint import Memory, training_bytes
from dlopt_helpers.lab.models import cnn, mlp

# --- networks -------------------------------------------------------------------------------------------

EXACT = {  # parameters that PyTorch's and the authors' own implementations have
    "lenet_300_100": 266_610,
    "lenet_5": 431_080,
    "alexnet": 60_965_224,
    "vgg_16": 138_357_544,
    "resnet_50": 25_557_032,
    "mobilenet": 4_231_976,
    "bert_base": 109_482_240,
    "gpt_2": 124_439_808,
    "llama_7b": 6_738_415_616,
}


@pytest.mark.parametrize(("name", "parameters"), EXACT.items())
def test_parameters_are_those_of_the_implementations(name, parameters):
    assert getattr(networks, name)().parameters == parameters


def test_macs_that_papers_give_for_two_operations_each():
    assert 2 * networks.lenet_300_100().macs == pytest.approx(532e3, rel=1e-3)
    assert 2 * networks.lenet_5().macs == 4_586_000
    assert 2 * networks.vgg_16().macs == pytest.approx(30.9e9, rel=2e-3)


def test_macs_of_the_implementations():
    assert networks.resnet_50().macs == 4_089_184_256  # with the stride in the 3 x 3 convolution
    assert networks.mobilenet().macs == 568_740_352
    assert networks.alexnet().macs == pytest.approx(724e6, rel=1e-3)


def test_macs_of_a_token_grow_with_the_text():
    short, long = (networks.gpt(64, 2, tokens) for tokens in (8, 16))
    assert long.macs - short.macs == 2 * 2 * 8 * 64 and long.parameters - short.parameters == 8 * 64


def test_famous_and_how_it_is_shown():
    famous = networks.famous()
    assert (famous.float32 == 4 * famous.parameters).all() and (famous.Adam == 16 * famous.parameters).all()
    assert (famous["int4"] * 8 == famous.float32).all() and (famous["16 bits"] * 2 == famous.float32).all()
    shown = networks.shown(famous)
    assert shown.loc["VGG-16", "parameters"] == "138\xa0M" and shown.loc["VGG-16", "paper's MACs"] == ""
    assert [networks.short(n) for n in (999, 999_600, 1e9)] == ["999", "1 M", "1 G"]


def test_counts():
    counts = chapter.counts()
    assert (counts.parameters == counts["by PyTorch"]).all()
    assert (counts.MACs == counts["MACs by PyTorch"]).all()


def test_a_step_has_three_times_the_macs_but_for_the_examples():
    assert chapter.step_macs(mlp()) == (15_000, 3 * 15_000 - 40 * 100)
    forward, step = chapter.step_macs(mlp(), batch=7)
    assert (forward, step) == (7 * 15_000, 7 * 41_000)
    whole = sum(chapter._share_of_macs(100, 2, part) for part in chapter.PASSES)
    assert whole == 1 and chapter._share_of_macs(100, 2, "forward") == 15_000 / 41_000


# --- memory ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimiser", memory.OPTIMISERS)
@pytest.mark.parametrize("mixed", [False, True])
def test_measured_is_the_formula(optimiser, mixed):
    found, peak = memory.measured(mlp(hidden=(30, 20)), optimiser, 7, mixed)
    parameters = 40 * 30 + 30 + 30 * 20 + 20 + 20 * 10 + 10
    formula = training_bytes(parameters, 40 + 30 + 20 + 10, 7, optimiser, mixed)
    assert found == formula and peak > found.weights + found.state


def test_cnn_keeps_each_convolutions_output_once():
    found, _ = memory.measured(cnn(), "SGD", 3)
    assert found.activations == 4 * 3 * memory.CNN_KEPT == 4 * 3 * (40 + 25 * 34 + 10)


def test_two_tensors_that_share_an_array_count_once():
    x, y = memory.a_batch(2)
    kept = memory.kept_storages(mlp(), x, y)
    assert sorted(kept.values()) == sorted([4 * 80, 4 * 200, 4 * 200, 4 * 20, 16, 4])


def test_what_was_measured_is_freed():
    model = mlp()
    assert memory.kept_bytes(model, *memory.a_batch(2)) > 0
    weights = weakref.ref(next(model.parameters()))
    del model
    gc.collect()
    assert weights() is None


def test_mixed_training_steps_on_the_copy():
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    trainer = memory.Trainer(model, "SGD", mixed=True)
    trainer.step(*memory.a_batch(8, torch.bfloat16))
    for p, copy, old in zip(model.parameters(), trainer.copies, before, strict=True):
        assert p.dtype == torch.bfloat16 and copy.dtype == torch.float32 and copy.grad is None
        assert torch.equal(p, copy.to(torch.bfloat16))
        torch.testing.assert_close(copy, old - 0.01 * p.grad.float())


def test_allocated_peak_knows_what_was_there_at_once():
    def one_after_the_other():
        for _ in range(3):
            torch.empty(250_000)

    def together():
        return [torch.empty(250_000) for _ in range(3)]

    assert memory.allocated_peak(one_after_the_other) == pytest.approx(1e6, rel=0.01)
    assert memory.allocated_peak(together) == pytest.approx(3e6, rel=0.01)


def test_network_table_and_precisions():
    table = memory.network_table(batch=10)
    parts = list(Memory._fields)
    assert (table.xs("formula", level=1)[parts] == table.xs("measured", level=1)[parts]).all(axis=None)
    held = chapter.precisions(batch=16, width=32)
    assert (held.iloc[:, :3].sum(axis=1) == 4 * held.weights["float32"]).all()
    assert held.activations[memory.MIXED] * 2 == held.activations["float32"]


def test_checkpoints_keep_fewer_and_compute_twice():
    found = chapter.checkpoints(segments=(1, 2, 4), width=32, depth=8, batch=64)
    inner = (found["share kept"] * (40 + 8 * 32 + 10) - 50) / 32
    np.testing.assert_allclose(inner, [8, 1 + 4, 3 + 2])
    assert found.MACs[1] == 1 and 1 < found.MACs[2] < found.MACs[4] < 4 / 3


def test_checkpoints_give_the_same_gradients():
    model, (x, y) = mlp(hidden=(20,) * 4), memory.a_batch(5)
    both = []
    for forward in (model, memory.in_segments(model, 2)):
        loss = torch.nn.functional.cross_entropy(forward(x), y)
        both.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(map(torch.equal, *both))


def test_crossing():
    batch = chapter.crossing(15_210, 250)
    found = training_bytes(15_210, 250, round(batch))
    assert batch == 16 * 15_210 / 1_000 and abs(found.activations / found.total - 0.5) < 0.001
    assert chapter.crossing(100, 10, optimiser="SGD") == 20


# --- times ----------------------------------------------------------------------------------------------


def test_stored_speeds_are_those_that_a_measurement_makes(monkeypatch):
    monkeypatch.setattr(speed, "_seconds", lambda function, calls: 1.0)
    monkeypatch.setattr(speed, "_answers", lambda *setting: None)
    monkeypatch.setattr(speed, "passes", lambda *of: (None, lambda: None))
    monkeypatch.setitem(speed.OPTIMISERS, "Adam", torch.optim.Adam)
    stored, quick = speed.stored_speeds(), speed.speeds(repeats=1)
    assert [c for c in stored if c not in ("device", "date", "torch", "onnxruntime")] == list(quick)
    for column in ("family", "what", "neurons", "depth", "batch", "macs"):
        assert list(stored[column]) == list(quick[column])
    assert (stored.low <= stored.time).all() and (stored.time <= stored.high).all()


def test_ratios_are_of_one_call():
    calls = []
    found = speed.ratios(lambda: calls.append("a"), lambda: calls.append("b"), repeats=2, calls=(3, 2))
    assert "".join(calls) == "aaabb" * 3 and found.low <= found.median <= found.high


def test_more_calls_take_no_longer_each():
    found = speed.ratios(lambda: sum(range(20_000)), lambda: sum(range(20_000)), repeats=9, calls=(20, 5))
    assert 0.5 < found.median < 2


def test_one_cheap_row_measured_again():
    slow = speed.ratios(lambda: sum(range(40_000)), lambda: sum(range(10_000)), repeats=9, calls=(5, 5))
    assert 2.5 < slow.median < 6
    row = speed._row("step", "Adam", slow, neurons=3)
    assert row["time"] == slow.median and row["macs"] == 0


@pytest.fixture
def times():
    places = itertools.product(memory.WIDTHS, memory.DEPTHS, memory.BATCHES)
    passes = {"forward and backward": 3.0, "SGD": 0.5, "momentum": 1.0, "Adam": 2.0}
    rows = [
        dict(family="step", what=what, neurons=n, depth=d, batch=b, macs=1, time=time)
        for (n, d, b), (what, time) in itertools.product(places, passes.items())
    ]
    layers = itertools.product(speed.LAYERS, speed.LAYER_BATCHES)
    rows += [
        dict(
            family="roofline",
            what="linear",
            neurons=n,
            depth=1,
            batch=b,
            macs=b * n * n,
            time=b * n * n / 1024**3,
        )
        for n, b in layers
    ]
    machine = dict(family="machine", what="peak", neurons=1024, depth=1, batch=1024, macs=1024**3, time=16.0)
    return pd.DataFrame([*rows, machine])


def test_step_shares(times):
    shares = speed.step_shares(times)
    assert len(shares) == 3 * 45
    adam = shares[shares.rule == "Adam"].iloc[0]
    assert (adam.forward, adam.backward, adam.optimiser) == (1 / 5, 2 / 5, 2 / 5)


def test_ridge_and_roof(times):
    assert speed.ridge(times) == 1024**3 / (4 * speed.READ) / 16
    rows = speed.roofline_rows(times).set_index(["neurons", "batch"])
    assert (rows.rate == 1).all() and rows.roof.max() == 1
    layer = rows.loc[1024, 1]
    assert layer.intensity == 1024**2 / (4 * (1024**2 + 2048))
    assert layer.roof == pytest.approx(layer.intensity / speed.ridge(times))


def test_halving_table():
    stored = speed.stored_speeds()
    table = chapter.halving_table(stored)
    assert list(table.index) == speed.HIDDEN[::-1] and table.MACs[1024] == 1
    assert table.MACs[8] == (40 * 8 + 64 + 80) / (40 * 1024 + 1024**2 + 10240)


# --- explorers ------------------------------------------------------------------------------------------


@pytest.fixture
def grid():
    settings = itertools.product(
        memory.WIDTHS, memory.DEPTHS, memory.BATCHES, memory.PRECISIONS, memory.OPTIMISERS
    )
    rows = pd.DataFrame(settings, columns=["neurons", "depth", "batch", "precision", "optimiser"])
    for place, part in enumerate(Memory._fields):
        rows[part] = rows[f"{part}_formula"] = (place + 1) * rows.batch
    return rows.assign(peak=rows.batch)


def test_memory_explorer(grid, times):
    explorer = chapter.memory_explorer(grid, times)
    assert len(explorer.runs) == 270 * 7
    for values in itertools.product(*explorer.stops.values()):
        assert len(explorer.find(dict(zip(explorer.stops, values, strict=True)))) == 7
    rows = {row["part"]: row for row in explorer.find(explorer.setting)}
    assert rows["state"]["formula"] == rows["state"]["measured"] == 3 * 64 and rows["state"]["peak"] == 64
    assert rows["optimiser"]["measured"] == 0.4 and rows["optimiser"]["formula"] == 0
    assert len(explorer.to_html()) < 500_000


def test_roofline_explorer(times):
    explorer = chapter.roofline_explorer(times)
    row = explorer.find({"neurons": 1024, "batch": 64})[0]
    assert row["measured"] == 1 and row["formula"] < 1 and row["rate"] == 1


def test_peak_formula_by_hand():
    row = dict(precision="float32", optimiser="Adam", neurons=50, depth=2, batch=10)
    made = dict(weights_formula=1, state_formula=2, gradients_formula=100, activations_formula=70_000)
    rows = pd.DataFrame([row | made, row | made | {"activations_formula": 10, "batch": 1}])
    assert list(memory.peak_formula(rows)) == [3 + 70_000 + 2 * 4 * 10 * 50, 3 + 100 + 4 * 2 * 50**2]
