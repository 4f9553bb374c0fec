"""The search of chapter 4.2, tried on a small network, and one of its stored pipelines made again."""

import collections
import functools
import json
import runpy
import subprocess
import sys

import numpy as np
import optuna
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from dlopt_helpers import pipeline
from dlopt_helpers.chapters import pipeline_search as module
from dlopt_helpers.chapters.pipeline import stored_runs
from dlopt_helpers.chapters.pipeline_tasks import start, task
from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.pipeline import Made, Stage, Task, quantize, run, share_weights

torch.set_num_threads(1)

# --- what a trial suggests ------------------------------------------------------------------------

LONG = "steps=2000, rate=0.005)"


@pytest.mark.parametrize(
    "suggested, stage",
    [
        ({"1": "distil", "1 network": "mlp", "1 mlp width": 20}, f"distil(network='mlp', width=20, {LONG}"),
        ({"1": "distil", "1 network": "cnn", "1 cnn width": 9}, f"distil(network='cnn', width=9, {LONG}"),
        ({"1": "prune neurons", "1 keep": 0.123456}, f"prune_neurons(keep=0.123, {LONG}"),
        ({"1": "prune weights", "1 share": 0.5}, f"prune_weights(share=0.5, {LONG}"),
        ({"1": "factorise", "1 rank": 0.05}, f"factorise(share=0.05, {LONG}"),
        ({"1": "quantize", "1 bits": 8}, f"quantize(bits=8, {LONG}"),
        ({"1": "share weights", "1 code bits": 3}, "share_weights(bits=3)"),
    ],
)
def test_a_trial_suggests_a_stage_and_asks_for_nothing_more(suggested, stage):
    trial = optuna.trial.FixedTrial({"stages": 1, **suggested})
    assert [str(one) for one in module.stages(trial)] == [stage]
    assert trial.params == {"stages": 1, **suggested}


def test_stages_follow_each_other_and_may_repeat():
    names = ["quantize", "share weights", "quantize", "distil"]
    suggested = {str(number + 1): name for number, name in enumerate(names)}
    settings = {"1 bits": 8, "3 bits": 4, "2 code bits": 2, "4 network": "cnn", "4 cnn width": 6}
    found = module.stages(optuna.trial.FixedTrial({"stages": 4, **suggested, **settings}))
    assert [one.name for one in found] == ["quantize", "share_weights", "quantize", "distil"]
    assert [found[0].settings["bits"], found[2].settings["bits"]] == [8, 4]


def test_every_kind_at_every_place_is_tried_and_makes_a_stage():
    """A stage refuses what it does not allow, so that every suggestion is one that can be tried."""
    study, seen = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)), collections.Counter()
    for _ in range(300):
        found = module.stages(study.ask())
        seen.update((place, one.name) for place, one in enumerate(found))
        seen[len(found)] += 1
    assert set(seen) == {(place, kind.replace(" ", "_")) for place in range(4) for kind in module.KINDS} | {
        1,
        2,
        3,
        4,
    }


# --- the search -----------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(200, 40)).astype("float32")


def small(patch):
    """Make training short, the start small, and a file as many bytes as the network has parameters."""
    patch.setattr(module, "TRAINING", {"steps": 2, "rate": 0.01})
    patch.setattr(module, "start", lambda network, seed: Made(mlp(hidden=16, seed=seed)))
    labels = np.arange(200) % 10
    examples = Task(X, np.eye(10, dtype="float32")[labels], test=(X, labels))
    patch.setattr(module, "task", lambda kind, seed: examples._replace(seed=seed))
    patch.setattr(module, "run", functools.partial(run, measure=sizes))
    patch.setattr(
        pipeline.onnxrt, "export", lambda model, inputs: bytes(sum(p.numel() for p in model.parameters()))
    )
    for form in pipeline.FORMS:
        patch.setitem(pipeline.FORMS, form, lambda onnx, x: onnx)


def sizes(onnx, reference, x, y):
    return {"accuracy": 1 / len(onnx), "bytes": len(onnx), "faster 64": len(reference) / len(onnx)}


@pytest.fixture
def tiny(monkeypatch):
    small(monkeypatch)


def test_a_search_is_taken_up_again(tiny, tmp_path):
    folder = tmp_path / "made"
    first = [trial.params for trial in module.search(2, folder).trials]
    again = module.search(3, folder)
    assert [trial.number for trial in again.trials] == [0, 1, 2, 3, 4]
    assert len(first) == 2 and [trial.params for trial in again.trials[:2]] == first
    assert len(module.search(0, folder).trials) == 5
    assert again.directions == [optuna.study.StudyDirection(d) for d in (2, 1, 1)]  # more, fewer, less


def test_a_trial_carries_its_rows_and_their_last_one_is_what_counts(tiny, tmp_path):
    study = module.search(3, tmp_path)
    for trial in study.trials:
        names = [str(one) for one in module.stages(optuna.trial.FixedTrial(trial.params))]
        rows = trial.user_attrs["rows"]
        assert [row["settings"] for row in rows] == ["start()", *names]
        assert all((tmp_path / row["key"] / "model.onnx").exists() for row in rows)
        last = rows[-1]
        assert trial.values == [last["accuracy"], last["bytes"], 1 / last["faster 64"]]
    assert len({trial.user_attrs["rows"][0]["key"] for trial in study.trials}) == 1


def test_a_seed_makes_the_search_the_same(tiny, tmp_path):
    def tried(folder, seed):
        return [trial.params for trial in module.search(3, tmp_path / folder, seed).trials]

    assert tried("a", 1) == tried("b", 1) != tried("c", 2)


def failing(made, task):
    raise ZeroDivisionError("no luck")


def test_a_failed_stage_is_recorded_and_the_search_goes_on(tiny, tmp_path, monkeypatch):
    tries = iter([[share_weights(2)], [share_weights(3), Stage("bad", {}, failing)], [quantize(4)]])
    monkeypatch.setattr(module, "stages", lambda trial: next(tries))
    study = module.search(3, tmp_path)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]
    reason = module.search(0, tmp_path).trials[1].user_attrs["failed"]
    assert reason == "stage 2, bad(), failed: ZeroDivisionError: no luck"
    rows = module.searched(study)
    assert list(rows.recipe) == ["0", "0", "2", "2"] and list(rows.number) == [0, 1, 0, 1]
    assert list(rows.stage) == ["start", "share_weights", "start", "quantize"]
    assert list(rows.index) == [0, 1, 2, 3]
    assert set(rows.group) == {"search"} and set(rows.seed) == {0}


def test_another_error_stops_the_search(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "stages", lambda trial: ["no stage"])
    with pytest.raises(ValueError, match=r"stages\[0\]='no stage'"):
        module.search(3, tmp_path)
    assert len(module.search(0, tmp_path).trials) == 1


def test_a_trial_under_way_is_left_out(tiny, tmp_path):
    study = module.search(1, tmp_path)
    study.ask()
    assert set(module.searched(study).recipe) == {"0"}
    assert module.searched(module.search(0, tmp_path / "none")).empty


def test_columns_are_those_of_the_other_runs(tiny, tmp_path):
    rows = module.searched(module.search(1, tmp_path))
    assert {"group", "recipe", "seed", "number", "stage", "settings", "key", "seconds"} <= set(rows)


WORKER = """
import runpy, sys, pytest
runpy.run_path(sys.argv[1])["small"](pytest.MonkeyPatch())
from dlopt_helpers.chapters.pipeline_search import search
search(3, sys.argv[2])
"""


def test_two_workers_share_a_folder(tiny, tmp_path):
    command = [sys.executable, "-c", WORKER, __file__, str(tmp_path)]
    workers = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    errors = [worker.communicate(timeout=250)[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    study = module.search(1, tmp_path)
    assert [trial.number for trial in study.trials] == list(range(7))
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    lines = [json.loads(line) for line in (tmp_path / "search.log").read_text().splitlines()]
    assert len({line["worker_id"] for line in lines}) == 3
    assert not list(tmp_path.glob("unfinished-*"))


def test_the_command_line(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(sys, "argv", ["search", "--trials", "0", "--folder", str(tmp_path / "there")])
    monkeypatch.setattr(
        optuna.study.Study, "optimize", lambda self, *_, n_trials, **__: calls.append(n_trials)
    )
    monkeypatch.delitem(sys.modules, module.__name__)
    runpy.run_module(module.__name__, run_name="__main__")
    assert calls == [0] and (tmp_path / "there" / "search.log").exists()


# --- corners of the front -------------------------------------------------------------------------


def test_corners_are_the_best_of_those_that_are_as_accurate_as_the_start():
    ends = {  # accuracy, bytes, speed
        "0": (0.70, 1, 99),  # less accurate than the start
        "1": (0.76, 20, 2),
        "2": (0.80, 10, 5),
        "3": (0.95, 90, 1),
        "4": (0.76, 50, 9),
    }
    rows = [
        {"recipe": recipe, "number": number, "accuracy": a, "bytes": b, "faster 64": f}
        for recipe, end in ends.items()
        for number, (a, b, f) in enumerate([(0.76, 100, 1), (0.99, 1, 100), end])
    ]
    found = module.corners(pd.DataFrame(rows))
    assert found == {"most accurate": 3, "smallest": 2, "fastest": 4}


def test_corners_are_repeated_with_their_stages_from_each_start(tiny, tmp_path):
    study = module.search(4, tmp_path, seed=0)
    tried = module.searched(study)
    tried["faster 64"] = range(len(tried))  # timed again: another is the fastest
    chosen = module.corners(tried)
    assert chosen["fastest"] == 3
    rows = module.repeated(study, tried, seeds=(0, 2), folder=tmp_path)
    assert set(rows.group) == {"corners"}
    for (recipe, seed), made in rows.groupby(["recipe", "seed"]):
        stages = module.stages(optuna.trial.FixedTrial(study.trials[chosen[recipe]].params))
        assert list(made.settings) == ["start()", *map(str, stages)]
        same = made.key.iloc[0] == rows.key.iloc[0]
        assert same is (seed == 0)
    assert set(zip(rows.recipe, rows.seed, strict=True)) == {
        (name, seed) for name in chosen for seed in (0, 2)
    }


# --- the stored pipelines -------------------------------------------------------------------------


def answers(onnx, reference, x, y):
    return {"accuracy": (softmax(onnxrt.load(onnx)(x), axis=1).argmax(1) == y).mean(), "bytes": len(onnx)}


def test_a_stored_pipeline_can_be_made_again(tmp_path):
    """That which took the least time among the good ones: of a poor network another machine makes another."""
    found = stored_runs().query("group == 'search'")
    good = found.groupby("recipe").filter(lambda rows: rows.accuracy.iloc[-1] > 0.85 and len(rows) > 2)
    stored = good[good.recipe == good.groupby("recipe").seconds.sum().idxmin()]
    stages = [eval(settings, vars(pipeline)) for settings in stored.settings[1:]]
    rows = run(start("mlp1024", 0), stages, task("strict", 0), tmp_path, answers)
    assert list(rows.settings) == list(stored.settings) and list(rows.form) == list(stored.form)
    assert list(rows.bytes) == list(stored.bytes) and list(rows.parameters) == list(stored.parameters)
    assert abs(rows.accuracy.iloc[-1] - stored.accuracy.iloc[-1]) < 0.015
