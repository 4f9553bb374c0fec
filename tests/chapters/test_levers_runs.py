"""The runs of chapter 2: what a combination is, what it costs, and that a stored row comes out again."""

import numpy as np
import pandas as pd
import pytest
import torch

from dlopt_helpers.chapters import levers_runs as trainings
from dlopt_helpers.chapters.levers import stored_runs
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.pipeline import Made, Task

OFF = dict.fromkeys(trainings.LEVERS, False)


def on(*levers):
    return OFF | dict.fromkeys(levers, True)


def names(combination):
    return [str(stage) for stage in trainings.stages(combination)]


def test_32_combinations():
    found = trainings.combinations()
    assert len({tuple(c.values()) for c in found}) == 32
    assert found[0] == OFF and all(found[-1].values())


def test_each_lever_changes_its_part_alone():
    plain = names(OFF)
    assert plain == [
        "learn(network='mlp1024', algorithm='sgd', steps=800, rate=0.5)",
        "go_on(keep=1.0, algorithm='sgd', steps=400, rate=0.5)",
    ]
    assert names(on("distillation")) == plain  # it is the task that differs
    assert names(on("quantization"))[:2] == plain and "bits=8" in names(on("quantization"))[2]
    assert names(on("pruning"))[0] == plain[0] and "keep=0.5" in names(on("pruning"))[1]
    assert [part.split("steps=")[1][:3] for part in names(on("algorithm"))] == ["400", "200"]
    assert "cnn25" in names(on("structure"))[0]


def test_rates_are_among_those_tried():
    assert all(trainings.RATES[key] in rates for key, rates in trainings.TRIED.items())


def test_macs_by_hand():
    dense = 40 * 1024 + 1024 * 1024 + 1024 * 10
    half = 40 * 512 + 512 * 512 + 512 * 10
    assert trainings.macs(OFF) == {"macs": 3 * 64 * 1200 * dense, "teachers": 0}
    assert trainings.macs(on("algorithm"))["macs"] == 3 * 64 * 600 * dense
    assert trainings.macs(on("pruning"))["macs"] == 3 * 64 * (800 * dense + 400 * half)
    teacher = 19 * 5 * 64 + 10 * 3 * 64 * 64 + 5 * 3 * 64 * 64 + 5 * 64 * 10
    assert trainings.macs(on("distillation"))["teachers"] == 4 * teacher * (3 * 64_000 + 100_000)


@pytest.fixture
def small():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 40)).astype("float32")
    y = (x[:, 0] > 0).astype(int)
    return Task(x, np.eye(10, dtype="float32")[y], (x, y))


@pytest.mark.parametrize(("algorithm", "rate"), [("sgd", 0.2), ("adam", 0.01)])
def test_training_learns_and_leaves_its_start_alone(small, algorithm, rate):
    start = Made(mlp(hidden=16))
    end = trainings.trained(start, small, algorithm, 200, rate)
    x, y = torch.from_numpy(small.test[0]), torch.from_numpy(small.test[1])
    assert (end.model(x).argmax(1) == y).double().mean() > 0.9
    assert torch.equal(start.model[0].weight, mlp(hidden=16)[0].weight)


@pytest.mark.parametrize(("network", "first"), [(mlp(hidden=16), (8, 40)), (cnn(8), (4, 1, 5))])
def test_half_of_the_neurons_go(small, network, first):
    stage = trainings.go_on(0.5, algorithm="sgd", steps=3, rate=0.1)
    model = stage.apply(Made(network), small).model
    assert next(model.parameters()).shape == first and model(torch.zeros(2, 40)).shape == (2, 10)


def test_plain_sgd_keeps_its_rate_and_adam_does_not():
    for algorithm, constant in (("sgd", True), ("adam", False)):
        optimizer, schedule = trainings.optimizer_for(mlp(), algorithm, 50, 0.1)
        rates = []
        for _ in range(50):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert (len(set(rates)) == 1) == constant and max(rates) == pytest.approx(0.1, rel=0.05)


def test_a_row_of_the_book_comes_out_again(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "folder", lambda: tmp_path)
    combination = on("algorithm", "structure", "quantization")
    row = trainings.one_row(combination, seed=0)
    wanted = stored_runs().query(
        "seed == 0 and " + " and ".join(f"{k} == {int(v)}" for k, v in combination.items())
    )
    assert len(wanted) == 1
    assert row["accuracy"] == pytest.approx(wanted.accuracy.item(), abs=0.03)  # on another machine, too
    assert row["bytes"] == pytest.approx(wanted.bytes.item(), rel=0.01)
    assert row["macs"] == pytest.approx(wanted.macs.item(), rel=1e-4)


def test_times_are_ratios_to_the_combination_without_levers(tmp_path, monkeypatch):
    monkeypatch.setattr(trainings, "folder", lambda: tmp_path)
    monkeypatch.setattr(trainings, "training_time", lambda combination: 0.5)
    for key, hidden in (("large", 512), ("small", 8)):
        (tmp_path / key).mkdir()
        (tmp_path / key / "row.json").touch()
        (tmp_path / key / "model.onnx").write_bytes(trainings.onnxrt.export(mlp(hidden=hidden)))
    rows = pd.DataFrame([{**OFF, "seed": 0, "key": "large"}, {**on("pruning"), "seed": 0, "key": "small"}])
    rows = rows.astype({lever: int for lever in trainings.LEVERS})
    found = trainings.timed(rows)
    assert found["faster 64"][1] > 2 and 0.2 < found["faster 64"][0] < 5 and (found.time == 0.5).all()


def test_a_small_network_trains_in_less_time():
    assert trainings.training_time(on("structure", "algorithm")) < trainings.training_time(OFF)


def test_stored(tmp_path):
    trainings.stored(pd.DataFrame({"accuracy": [0.5], "key": ["abc"]}), tmp_path / "a.csv")
    assert list(pd.read_csv(tmp_path / "a.csv")) == ["accuracy", "date", "device"]
