"""The starts, tasks and recipes of chapter 4.2, the recipes tried on a small network."""

import functools

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import softmax

from dlopt_helpers import pipeline
from dlopt_helpers.bridges.distillation_torch import logits
from dlopt_helpers.chapters import pipeline_runs as module
from dlopt_helpers.chapters import pipeline_tasks as tasks
from dlopt_helpers.chapters.pruning_runs import dense
from dlopt_helpers.lab.data import fresh_test, mnist1d
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.pipeline import Made, Task, distil, prune_neurons, prune_weights, run

torch.set_num_threads(1)

# --- examples -------------------------------------------------------------------------------------


def moved(x, by):
    """Return an example that is ``by`` places further right, in a loop over places."""
    return np.array([x[min(max(place - by, 0), len(x) - 1)] for place in range(len(x))])


def test_each_copy_is_its_example_shifted_by_at_most_five_with_repeated_ends():
    x = np.random.default_rng(0).normal(size=(30, 40)).astype("float32")
    copies = tasks.shifted(x, seed=0)
    assert copies.shape == (25 * 30, 40) and copies.dtype == "float32"
    found = []
    for row, copy in enumerate(copies):
        candidates = {by: moved(x[row % 30], by) for by in range(-5, 6)}
        (by,) = [by for by, candidate in candidates.items() if (candidate == copy).all()]
        found.append(by)
    assert set(found) == set(range(-5, 6)) and np.bincount(np.add(found, 5)).max() < 100
    assert len({tuple(found[start : start + 30]) for start in range(0, 750, 30)}) == 25


def test_shifts_belong_to_their_seed():
    x = np.arange(120, dtype="float32").reshape(3, 40)
    assert (tasks.shifted(x, 1) == tasks.shifted(x, 1)).all()
    assert (tasks.shifted(x, 1) != tasks.shifted(x, 2)).any()


def test_one_hot():
    found = tasks.one_hot(np.array([2, 0]))
    assert found.dtype == "float32" and found.tolist() == [[0, 0, 1] + [0] * 7, [1] + [0] * 9]


def alike(x, others):
    """Return how like its most similar one among ``others`` each example is, whatever their scale."""
    x, others = (a - a.mean(1, keepdims=True) for a in (x, others))
    x, others = (a / np.linalg.norm(a, axis=1, keepdims=True) for a in (x, others))
    return np.concatenate([(x[i : i + 200] @ others.T).max(1) for i in range(0, len(x), 200)])


def test_nobody_has_seen_the_transfer_examples():
    x, data = tasks._examples("transfer", 0), mnist1d()
    assert x.shape == (50_000, 40)
    assert alike(x[:200], x).min() > 0.99999  # so it would show
    for others in (data.x_train, data.x_test, fresh_test()[0]):
        assert alike(others[:1_000], x).max() < 0.9999


def test_the_test_is_the_fresh_one_and_no_training_example(few_teachers):
    data, (x, y) = mnist1d(), fresh_test()
    assert alike(x[:1_000], data.x_train).max() < 0.9999
    for kind in tasks.TASKS:
        assert all((a is b) or (a == b).all() for a, b in zip(tasks.task(kind, 1).test, (x, y), strict=True))


# --- targets --------------------------------------------------------------------------------------


@functools.cache
def small_cnn(seed):
    return cnn(3, seed)


@pytest.fixture
def few_teachers(monkeypatch):
    """Untrained teachers, noted by seed, and few unlabelled examples; nothing on disk."""
    asked = []

    def noted(network, seed):
        asked.append((network, seed))
        return small_cnn(seed)

    monkeypatch.setattr(tasks, "dense", noted)
    monkeypatch.setattr(tasks, "UNLABELLED", 300)
    monkeypatch.setattr(tasks, "taught", tasks.taught.__wrapped__)
    return asked


@pytest.mark.parametrize("kind", ["strict", "transfer"])
@pytest.mark.parametrize("seed", [0, 3])
def test_no_network_teaches_itself(few_teachers, kind, seed):
    task = tasks.task(kind, seed)
    assert few_teachers == [("cnn64", other) for other in range(5) if other != seed]
    answers = [softmax(logits(small_cnn(other), task.x).numpy(), axis=1) for _, other in few_teachers]
    np.testing.assert_allclose(task.targets, sum(answers) / 4, atol=1e-6)
    assert task.targets.dtype == "float32" and task.seed == seed


@pytest.mark.parametrize("kind", tasks.TASKS)
def test_targets_are_probabilities_and_one_for_each_example(few_teachers, kind, tmp_path):
    task = tasks.task(kind, 2)
    examples = {"labels": 4_000, "transfer": 300, "true labels": 300}.get(kind, 100_000)
    assert task.x.shape == (examples, 40) and task.targets.shape == (examples, 10)
    np.testing.assert_allclose(task.targets.sum(1), 1, atol=1e-5)
    few = task._replace(test=tuple(a[:100] for a in task.test))
    run(Made(mlp(hidden=4)), [], few, tmp_path, measure=lambda *_: {})  # it is a task as a run wants it


def test_labels_go_with_their_examples(few_teachers):
    data, labels, copies = mnist1d(), tasks.task("labels", 0), tasks.task("shifted", 0)
    assert (labels.x == data.x_train).all() and (labels.targets.argmax(1) == data.y_train).all()
    known = {row.tobytes(): label for row, label in zip(data.x_train, data.y_train, strict=True)}
    rows = np.random.default_rng(0).integers(100_000, size=300)
    for row in rows:
        example = data.x_train[row % 4_000]
        assert any((moved(example, by) == copies.x[row]).all() for by in range(-5, 6))
        assert copies.targets[row].argmax() == known[example.tobytes()]
    x, y = fresh_test(300, seed=3)
    true = tasks.task("true labels", 0)
    assert (true.x == x).all() and (true.targets.argmax(1) == y).all()
    assert (tasks.task("transfer", 0).x == x).all()
    assert (tasks.task("strict", 0).x == copies.x).all()


def test_the_teachers_are_those_of_chapter_3_3_and_nearly_right():
    task, y = tasks.task("strict", 0), mnist1d().y_train
    right = (task.targets.argmax(1) == np.tile(y, 25)).mean()
    assert 0.9 < right < 1 and task.targets.max(1).mean() > 0.8
    assert tasks.dense is dense


# --- starts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network, parameters, low, high", [("mlp1024", 1_101_834, 0.74, 0.78), ("cnn64", 28_298, 0.935, 0.955)]
)
def test_starts(network, parameters, low, high):
    one, again, other = (tasks.start(network, seed) for seed in (0, 0, 1))
    assert (one.form, one.sparse) == ("float", False)
    assert sum(p.numel() for p in one.model.parameters()) == parameters
    x, y = fresh_test()
    assert low < (logits(one.model, x).argmax(1).numpy() == y).mean() < high
    assert all(
        torch.equal(a, b) for a, b in zip(one.model.parameters(), again.model.parameters(), strict=True)
    )
    assert not torch.equal(next(one.model.parameters()), next(other.model.parameters()))


# --- recipes --------------------------------------------------------------------------------------


def settings(group):
    return {name: (*recipe[:2], *map(str, recipe[2])) for name, recipe in module.RECIPES[group].items()}


def steps(stages):
    return sum(stage.settings.get("steps", 0) for stage in stages)


def test_every_recipe_is_a_start_a_task_and_stages():
    assert list(module.RECIPES) == ["bar", "hard", "order", "data", "pairs"]
    for recipes in module.RECIPES.values():
        for network, kind, stages in recipes.values():
            assert network in ("mlp1024", "cnn64") and kind in tasks.TASKS and 1 <= len(stages) <= 3


@pytest.mark.parametrize("group", ["bar", "hard"])
def test_the_bars_differ_in_what_they_learn_from_alone(group):
    found = settings(group)
    assert all(kind == recipe[1] for kind, recipe in found.items()) and len(found) == 2
    assert len({(recipe[0], recipe[2:]) for recipe in found.values()}) == 1


def test_the_bar_trains_each_stage_equally_long():
    assert [stage.name for stage in module.BAR] == ["distil", "prune_neurons", "quantize"]
    assert [steps([stage]) for stage in module.BAR] == [8_000] * 3


def test_orders_train_equally_long_and_begin_alike():
    total = {name: steps(stages) for name, (_, _, stages) in module.RECIPES["order"].items()}
    rounded = ["distil, prune, round", "distil, prune, int8"]
    assert [total.pop(name) for name in rounded] == [16_000] * 2
    assert set(total.values()) == {24_000} and len(total) == 4
    found = settings("order")
    assert {recipe[:2] for recipe in found.values()} == {("mlp1024", "strict")}
    full = found["distil, prune, quantize"]
    assert full == settings("bar")["strict"]
    assert all(found[name][:4] == full[:4] and found[name] != full for name in rounded)
    other = found["distil, quantize, prune"]
    assert other[:3] == full[:3] and sorted(other) == sorted(full) and other != full
    last = {found[name][-1] for name in ("distil small, quantize", "prune, quantize")}
    assert last == {full[-1]}


def test_all_orders_end_with_the_same_units():
    """48 in each hidden layer, by a new student or by pruning."""
    for _, _, stages in module.RECIPES["order"].values():
        *_, last = [s for s in stages if s.name in ("distil", "prune_neurons")]
        assert last.settings.get("keep", [last.settings.get("width")] * 2) == [48, 48]


def test_data_recipes_differ_in_what_they_learn_from_alone():
    found = settings("data")
    assert list(found) == [f"{network}, {kind}" for network in ("dense", "small") for kind in tasks.TASKS]
    for network in ("dense", "small"):
        of = [recipe for name, recipe in found.items() if name.startswith(network)]
        assert [recipe[1] for recipe in of] == list(tasks.TASKS) and len({recipe[2:] for recipe in of}) == 1
    assert found["dense, labels"][2:] == ("prune_neurons(keep=1.0, steps=2000, rate=0.001)",)


def test_pairs_are_each_technique_alone_and_each_two_in_both_orders():
    found = settings("pairs")
    alone = {name: recipe[2] for name, recipe in found.items() if ", " not in name}
    assert list(alone) == list(module.ONE_BY_ONE) and len(set(alone.values())) == 5
    assert {stage.replace("_", " ").partition("(")[0] for stage in alone.values()} == set(alone)
    two = {(a, b) for a in alone for b in alone if a != b}
    assert {tuple(name.split(", ")) for name in found if ", " in name} == two
    assert all(found[f"{a}, {b}"][2:] == (alone[a], alone[b]) for a, b in two)
    assert {recipe[:2] for recipe in found.values()} == {("cnn64", "strict")}


# --- runs -----------------------------------------------------------------------------------------

X = np.random.default_rng(0).normal(size=(200, 40)).astype("float32")
SMALL = Task(X, np.full((200, 10), 0.1, "float32"), test=(X, np.zeros(200, int)))


ROWS = pd.DataFrame({"stage": ["start"]})


def sizes(onnx, reference, x, y):
    return {"bytes": len(onnx)}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Two short recipes for a small network, not exported, in a folder of their own; calls are noted."""
    monkeypatch.delenv("DLOPT_JOBS", raising=False)  # other processes would know nothing of all this
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path))
    asked, begin = [], distil("mlp", 6, steps=2, rate=0.01)
    recipes = {
        "one": ("mlp1024", "strict", [begin]),
        "two": ("mlp1024", "labels", [begin, prune_neurons(0.5), prune_weights(0.5)]),
    }

    def start(network, seed):
        asked.append((network, seed))
        return Made(mlp(hidden=8, seed=seed))

    def task(kind, seed):
        asked.append((kind, seed))
        return SMALL._replace(seed=seed)

    monkeypatch.setattr(module, "RECIPES", {"order": recipes, "pairs": {"one": recipes["one"]}})
    monkeypatch.setattr(module, "start", start)
    monkeypatch.setattr(module, "task", task)
    monkeypatch.setattr(module, "run", functools.partial(run, measure=sizes))
    monkeypatch.setattr(pipeline.onnxrt, "export", lambda model, inputs: b"")
    return asked


def test_made(tiny, tmp_path):
    rows = module.made("order", seeds=[0, 4])
    assert tiny == [
        (what, seed) for kind in ("strict", "labels") for seed in (0, 4) for what in ("mlp1024", kind)
    ]
    runs = [("one", 0), ("one", 4), ("two", 0), ("two", 4)]
    assert list(rows[["recipe", "seed"]].drop_duplicates().itertuples(index=False, name=None)) == runs
    assert list(rows.number) == 2 * [0, 1] + 2 * [0, 1, 2, 3] and (rows.group == "order").all()
    assert list(rows.stage)[-4:] == ["start", "distil", "prune_neurons", "prune_weights"]
    assert list(rows.index) == list(range(12)) and (rows.raw == 4 * rows.parameters).all()
    assert module.folder() == tmp_path / "pipeline"
    assert all((tmp_path / "pipeline" / key / "model.onnx").exists() for key in rows.key)


def test_what_is_made_is_not_made_again_and_beginnings_are_shared(tiny):
    rows = module.made("order", seeds=[1])
    again = module.made("order", seeds=[1])
    assert again.equals(rows)  # and with them the seconds that it took
    other = module.made("pairs", seeds=[1])
    assert list(other.key) == list(rows.key[:2]) == list(rows.key[2:4])
    assert module.made("order", ["two"], seeds=[1]).equals(rows[2:].reset_index(drop=True))


def test_the_bar_has_what_lasts(tiny, monkeypatch):
    monkeypatch.setattr(module, "RECIPES", {"bar": {"strict": module.RECIPES["order"]["one"]}})
    monkeypatch.setattr(module, "LASTING", ["seed", "number", "stage", "bytes"])  # nothing is measured here
    monkeypatch.setattr(module, "_bar", module._bar.__wrapped__)
    rows = module.bar(seeds=[3, 4])
    assert list(rows.seed) == [3, 3, 4, 4] and list(rows.stage) == 2 * ["start", "distil"]
    assert list(rows.columns) == module.LASTING and list(rows.index) == list(range(4))


def test_seeds_unless_given(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(module, "spread", lambda jobs, what: seen.extend(job[1] for job in jobs) or [ROWS])
    module.made("pairs")
    module.made("order", recipes=["two"])
    assert seen == [("pairs", "one", seed) for seed in range(3)] + [
        ("order", "two", seed) for seed in range(5)
    ]
