"""Stages alone, in any order, and runs of them that stop, fail and go on."""

import contextlib
import copy
import itertools
import json
import pickle
import tempfile

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dlopt_helpers import pipeline
from dlopt_helpers.bridges.pruning_torch import mask_units, prunable
from dlopt_helpers.lab import onnxrt
from dlopt_helpers.lab.data import digits
from dlopt_helpers.lab.models import cnn, mlp
from dlopt_helpers.pipeline import (
    FORMS,
    LAYERS,
    Made,
    Stage,
    StageFailed,
    Task,
    distil,
    export,
    factorise,
    load,
    onnx_file,
    prune_neurons,
    prune_weights,
    quantize,
    run,
    share_weights,
)

RNG = np.random.default_rng(0)
X = RNG.normal(size=(400, 40)).astype("float32")
LABELS = (X @ RNG.normal(size=(40, 10))).argmax(1)  # something that can be learned
TASK = Task(X, np.eye(10, dtype="float32")[LABELS], test=(X, LABELS))
NETWORKS = {"mlp": mlp(hidden=12), "cnn": cnn(6)}
each_network = pytest.mark.parametrize("name", NETWORKS)


def made(name, **more):
    return Made(copy.deepcopy(NETWORKS[name]), **more)


def weights(made):
    return list(prunable(made.model).values())


def loss(made, task=TASK):
    with torch.no_grad():
        return cross_entropy(made.model(torch.from_numpy(task.x)), torch.from_numpy(task.targets)).item()


def same(one, other):
    a, b = (x.model.state_dict() for x in (one, other))
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


def zeros(made):
    return [w == 0 for w in weights(made)]


def on_grid(made, bits):
    """Say whether the weights of each output are whole multiples of its largest over 2^(bits-1) - 1."""
    for w in (w.flatten(1) for w in weights(made)):
        q = w / w.abs().amax(1, keepdim=True).clamp(min=1e-9) * (2 ** (bits - 1) - 1)
        if not torch.allclose(q, q.round(), atol=1e-3):
            return False
    return True


# --- stages --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network, width, parameters", [("mlp", 9, 369 + 90 + 100), ("cnn", 3, 238)])
def test_distil_trains_a_new_network(network, width, parameters):
    start = made("mlp", form="int8", sparse=True)
    untrained = distil(network, width, steps=0, rate=0.01).apply(start, TASK)
    student = distil(network, width, steps=60, rate=0.01).apply(start, TASK)
    assert sum(p.numel() for p in student.model.parameters()) == parameters
    assert (student.form, student.sparse) == ("float", False)
    assert loss(student) < 0.9 * loss(untrained)
    assert same(student, distil(network, width, steps=60, rate=0.01).apply(start, TASK))
    others = [TASK._replace(seed=1), TASK._replace(targets=np.roll(TASK.targets, 1, axis=1))]
    for other in others:
        assert not same(student, distil(network, width, steps=60, rate=0.01).apply(start, other))
    assert not same(untrained, distil(network, width, steps=0, rate=0.01).apply(start, others[0]))
    orders = (quantize(8, steps=5).apply(start, task) for task in (TASK, others[0]))
    assert not same(*orders)  # of the examples


def test_targets_may_be_the_probabilities_of_a_teacher():
    flat = TASK._replace(targets=np.full((400, 10), 0.1, "float32"))
    student = distil("mlp", 8, steps=200, rate=0.01).apply(made("mlp"), flat)
    assert loss(student, flat) < np.log(10) + 0.01  # it says that all classes are equally likely


@each_network
@pytest.mark.parametrize("keep", [0.5, [3, 1], [2, 5, 1]], ids=str)
def test_prune_neurons_removes_the_units_with_the_smallest_weights(name, keep):
    start = made(name)
    hidden = list(prunable(start.model).items())[:-1]
    if isinstance(keep, list) and len(keep) != len(hidden):
        with pytest.raises(ValueError, match=f"the model has {len(hidden)} hidden layers"):
            prune_neurons(keep).apply(start, TASK)
        return
    small = prune_neurons(keep).apply(start, TASK)
    sizes = [len(w) for w in weights(small)]
    assert sizes == [*(keep if isinstance(keep, list) else [len(w) // 2 for _, w in hidden]), 10]
    chosen = {
        key: w.flatten(1).norm(dim=1).argsort(descending=True)[:size].sort().values.tolist()
        for (key, w), size in zip(hidden, sizes, strict=False)
    }
    x = torch.from_numpy(X)
    torch.testing.assert_close(small.model(x), mask_units(start.model, chosen)(x))
    assert loss(prune_neurons(keep, steps=60, rate=0.01).apply(start, TASK)) < loss(small)


def test_at_least_one_unit_stays():
    assert [len(w) for w in weights(prune_neurons(0.01).apply(made("mlp"), TASK))] == [1, 1, 10]


@each_network
def test_prune_weights_cuts_by_one_threshold_and_keeps_the_zeros_in_later_training(name):
    start = made(name)
    cut = prune_weights(0.6).apply(start, TASK)
    before = torch.cat([w.flatten() for w in weights(start)])
    after = torch.cat([w.flatten() for w in weights(cut)])
    assert cut.sparse and round(0.6 * len(before)) == (after == 0).sum()
    assert before[after == 0].abs().max() < before[after != 0].abs().min()
    assert torch.equal(before[after != 0], after[after != 0])
    trained = prune_weights(0.6, steps=30, rate=0.01).apply(start, TASK)
    assert loss(trained) < loss(cut)
    again = prune_neurons(1, steps=30, rate=0.01).apply(trained, TASK)
    for one in (trained, again):
        assert all(torch.equal(a, b) for a, b in zip(zeros(cut), zeros(one), strict=True))
    dense = prune_neurons(1, steps=30, rate=0.01).apply(trained._replace(sparse=False), TASK)
    assert sum(z.sum() for z in zeros(dense)) < 0.5 * sum(z.sum() for z in zeros(cut))


@each_network
def test_factorise_makes_two_layers_where_that_saves(name):
    start = made(name)
    pairs = factorise(0.34).apply(start, TASK)
    ranks = [len(w) for w in weights(pairs)]
    assert ranks == {"mlp": [4, 12, 4, 12, 10], "cnn": [2, 6, 2, 6, 2, 6, 10]}[name]
    assert list(pairs.model._modules) == [str(i) for i in range(len(pairs.model))]
    factors = weights(pairs)[:-1]
    for b, a, w in zip(factors[0::2], factors[1::2], weights(start)[:-1], strict=True):
        u, s, v = torch.linalg.svd(w.flatten(1), full_matrices=False)
        r = len(b)
        torch.testing.assert_close(a.flatten(1) @ b.flatten(1), u[:, :r] * s[:r] @ v[:r])
    assert loss(factorise(0.34, steps=60, rate=0.01).apply(start, TASK)) < loss(pairs)
    assert same(start, factorise(0.99).apply(start, TASK))  # nearly full rank would need more than it has


@each_network
@pytest.mark.parametrize("bits", [4, 8])
def test_quantize_leaves_a_grid_for_each_output(name, bits):
    start = made(name)
    with torch.no_grad():
        first = next(layer for layer in start.model if hasattr(layer, "weight"))
        first.weight[0] *= 100  # an own scale: no other output may suffer from it
        first.weight[1] = 0
    rounded, trained = (quantize(bits, steps, rate=0.003).apply(start, TASK) for steps in (0, 40))
    for one in (rounded, trained):
        assert one.form == {4: "int4 weights", 8: "int8"}[bits]
        assert on_grid(one, bits) and not on_grid(one, bits - 1)
    for w, q in zip(weights(start), weights(rounded), strict=True):
        w, q = w.flatten(1), q.flatten(1)
        step = w.abs().amax(1) / (2 ** (bits - 1) - 1)
        assert ((w - q).abs().amax(1) <= 0.501 * step).all()
    assert loss(trained) < loss(rounded) and not on_grid(start, bits)


@each_network
@pytest.mark.parametrize("bits", [4, 8])
def test_training_with_few_bits_beats_rounding_and_holds_zeros(name, bits):
    start = prune_weights(0.5, steps=100, rate=0.01).apply(made(name), TASK)
    rounded, trained = (quantize(bits, steps, rate=0.003).apply(start, TASK) for steps in (0, 100))
    assert trained.sparse and on_grid(trained, bits) and loss(trained) < loss(rounded)
    for before, after in zip(zeros(start), zeros(trained), strict=True):
        assert (after | ~before).all()  # what was zero is zero


@each_network
@pytest.mark.parametrize("bits", [2, 4])
def test_share_weights_leaves_few_numbers_and_zeros_among_them(name, bits):
    for start in (made(name), prune_weights(0.5).apply(made(name), TASK)):
        shared = share_weights(bits).apply(start, TASK)
        assert shared.form == "shared weights" and shared.sparse == start.sparse
        for w, left, was_zero in zip(weights(start), weights(shared), zeros(start), strict=True):
            assert len(left.unique()) <= 2**bits and (left[was_zero] == 0).all()
            assert (w - left).abs().max() < w.abs().max()


def test_share_weights_leaves_a_layer_of_one_number():
    start = made("mlp", sparse=True)
    with torch.no_grad():
        start.model[2].weight[:] = 0
    assert (weights(share_weights(4).apply(start, TASK))[1] == 0).all()


def test_training_knows_of_the_rounding():
    """With four bits it must do better than as much training before the rounding."""
    known = quantize(4, steps=300, rate=0.01).apply(made("mlp"), TASK)
    later = quantize(4).apply(prune_neurons(1, steps=300, rate=0.01).apply(made("mlp"), TASK), TASK)
    assert loss(known) < loss(later)


def test_what_is_trained_or_cut_is_made_of_floats_again():
    few_bits = quantize(4).apply(made("mlp"), TASK)
    for stage in (prune_neurons(0.5), prune_weights(0.5, 3), factorise(0.3), distil("mlp", 4, 3, 0.01)):
        assert stage.apply(few_bits, TASK).form == "float"


def test_what_goes_in_stays_as_it_is():
    start = made("cnn", sparse=True)
    before, x = copy.deepcopy(start), TASK.x.copy()
    state = torch.get_rng_state()
    for stage in STAGES:
        stage.apply(start, TASK)
    assert same(start, before) and np.array_equal(x, TASK.x) and torch.equal(state, torch.get_rng_state())


STAGES = [
    distil("cnn", 4, steps=2, rate=0.01),
    prune_neurons(0.5, steps=2),
    prune_weights(0.5, steps=2),
    factorise(0.3, steps=2),
    quantize(4, steps=2),
    quantize(8, steps=2),
    share_weights(4),
    export("float"),
]


@each_network
def test_stages_follow_each_other_in_any_order(name):
    x = torch.from_numpy(X)
    long = (STAGES[first:] + STAGES[:first] for first in range(len(STAGES)))
    for order in (*itertools.product(STAGES, repeat=2), *long):
        one, previous = made(name), None
        for stage in order:
            previous, one = one, stage.apply(one, TASK)
            assert one.model(x).isfinite().all()
            assert list(one.model._modules) == [str(i) for i in range(len(one.model))]
            assert {type(layer) for layer in one.model} <= set(LAYERS)
            if stage.name == "quantize":
                assert on_grid(one, stage.settings["bits"])
            if previous.sparse and stage.name in ("quantize", "share_weights", "export"):
                pairs = zip(zeros(previous), zeros(one), strict=True)
                assert all((after | ~before).all() for before, after in pairs), order


# --- files ---------------------------------------------------------------------------------------

FILES = {"float": export("float"), "int8": quantize(8), "int4 weights": quantize(4)}
FILES["shared weights"] = share_weights(4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("front")


@each_network
@pytest.mark.parametrize("form", FILES)
def test_the_file_of_each_form_answers_as_the_model(name, form, folder):
    rows = run(made(name), [prune_weights(0.5), factorise(0.3), FILES[form]], TASK, folder, sizes)
    one, file = load(folder, rows.key[3]), onnx_file(folder, rows.key[3])
    assert one.form == form == rows.form[3] and rows.bytes[3] == len(file)
    expected = one.model(torch.from_numpy(X)).detach().numpy()
    error = np.sqrt(np.mean((onnxrt.load(file)(X) - expected) ** 2)) / expected.std()
    assert (1e-4 < error < 0.03) if form == "int8" else error < 1e-5
    assert ("QGemm" in onnxrt.optimised_ops(file)) == (form == "int8")


def sizes(onnx, reference, *test):
    return {"bytes": len(onnx), "reference": len(reference)}


BEFORE = ["stage", "settings", "form", "parameters", "raw"]
TIMES = ["latency 1", "latency 64", "faster 1", "faster 64"]
AFTER = ["memory", "seconds", "key"]


def test_a_row_holds_what_is_measured_in_use(tmp_path, monkeypatch):
    rows = run(made("mlp"), [quantize(4, steps=60, rate=0.01)], TASK, tmp_path)
    one, x = load(tmp_path, rows.key[1]), torch.from_numpy(X)
    assert list(rows.columns) == [*BEFORE, "accuracy", "nll", "bytes", "zipped", *TIMES, *AFTER]
    assert rows.stage.tolist() == ["start", "quantize"]
    assert rows.settings.tolist() == ["start()", "quantize(bits=4, steps=60, rate=0.01)"]
    assert (rows.parameters == 778).all() and (rows.raw == 4 * 778).all() and rows.seconds.gt(0).all()
    assert rows.accuracy[1] == pytest.approx((one.model(x).argmax(1).numpy() == LABELS).mean())
    assert rows.bytes.tolist() == [len(onnx_file(tmp_path, key)) for key in rows.key]


# --- runs ----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Let a file be made in no time: what is in it plays no part here."""
    monkeypatch.setattr(pipeline.onnxrt, "export", lambda model, inputs: repr(model.state_dict()).encode())


class Counted:
    """Stages that add a number to the weights, and note that they did."""

    def __init__(self):
        self.calls = []

    def stage(self, number, error=None):
        def apply(made, task):
            self.calls.append(number)
            if error:
                raise error
            model = copy.deepcopy(made.model)
            with torch.no_grad():
                model[0].weight += number
            return made._replace(model=model)

        return Stage("add", {"number": number}, apply)


@pytest.fixture
def counted():
    return Counted()


def test_a_run_is_taken_up_from_its_last_finished_stage(tmp_path, quick, counted):
    one, two, broken = counted.stage(1), counted.stage(2), counted.stage(2, OSError("disk on fire"))
    with pytest.raises(StageFailed) as failed:
        run(made("mlp"), [one, broken, counted.stage(3)], TASK, tmp_path, sizes)
    assert str(failed.value) == "stage 2, add(number=2), failed: OSError: disk on fire"
    assert isinstance(failed.value.__cause__, OSError)
    assert failed.value.rows.settings.tolist() == ["start()", "add(number=1)"]
    usable = load(tmp_path, failed.value.rows.key[1])
    assert torch.equal(usable.model[0].weight, made("mlp").model[0].weight + 1)
    rows = run(made("mlp"), [one, two, counted.stage(3)], TASK, tmp_path, sizes)
    assert counted.calls == [1, 2, 2, 3]
    unbroken = run(made("mlp"), [one, two, counted.stage(3)], TASK, tmp_path / "other", sizes)
    columns = ["stage", "settings", "bytes", "reference", "key"]
    pd.testing.assert_frame_equal(rows[columns], unbroken[columns])
    pd.testing.assert_frame_equal(rows.iloc[:2], failed.value.rows)
    last = load(tmp_path, rows.key[3])
    assert same(last, load(tmp_path / "other", rows.key[3]))
    assert torch.equal(last.model[0].weight, made("mlp").model[0].weight + 1 + 2 + 3)


def test_a_finished_run_computes_nothing(tmp_path, quick, counted):
    stages = [counted.stage(1), counted.stage(2)]
    measurements = []

    def measure(onnx, reference, *test):
        measurements.append((onnx, reference))
        return {}

    first, second = (run(made("mlp"), stages, TASK, tmp_path, measure) for _ in range(2))
    assert counted.calls == [1, 2] and len(measurements) == len(set(measurements)) == 3
    assert {reference for _, reference in measurements} == {measurements[0][0]}  # that of the start
    pd.testing.assert_frame_equal(first, second)


def test_runs_share_their_beginning_and_nothing_else(tmp_path, quick, counted):
    one, two, three = map(counted.stage, (1, 2, 3))
    orders = [one, two], [one, three], [two, one]
    rows = [run(made("mlp"), order, TASK, tmp_path, sizes) for order in orders]
    assert counted.calls == [1, 2, 3, 2, 1]
    assert rows[0].key[1] == rows[1].key[1] and rows[0].key[2] != rows[1].key[2] != rows[2].key[2]
    assert len(list(tmp_path.iterdir())) == 6


def test_nothing_is_learned_from_the_test_examples(tmp_path, quick, monkeypatch):
    """Neither a weight nor the range of an activation: with other test examples all is the same."""
    monkeypatch.setitem(FORMS, "int8", lambda onnx, x: onnx + x.tobytes())  # what it is calibrated on
    tasks = TASK, TASK._replace(test=(3 * X[::-1], LABELS))
    keys = [run(made("mlp"), [quantize(8, steps=10)], task, tmp_path, sizes).key[1] for task in tasks]
    assert keys[0] != keys[1] and onnx_file(tmp_path, keys[0]) == onnx_file(tmp_path, keys[1])
    assert same(*(load(tmp_path, key) for key in keys))


def other_measure(onnx, reference, *test):
    return {}


def test_whatever_decides_a_result_is_in_its_key(tmp_path, quick, counted, monkeypatch):
    shifted = made("mlp")
    with torch.no_grad():
        shifted.model[0].bias[0] += 1e-6
    x = X.copy()
    x[7, 7] += 1
    usual = (made("mlp"), [counted.stage(1)], TASK, tmp_path, sizes)
    changes = {
        "weights": {0: shifted},
        "form": {0: made("mlp", form="shared weights")},
        "sparse": {0: made("mlp", sparse=True)},
        "layers": {0: Made(nn.Sequential(*made("mlp").model, nn.ReLU()))},
        "setting": {1: [counted.stage(2)]},
        "name": {1: [Stage("subtract", {"number": 1}, counted.stage(1).apply)]},
        "seed": {2: TASK._replace(seed=1)},
        "x": {2: TASK._replace(x=x)},
        "targets": {2: TASK._replace(targets=TASK.targets[::-1])},
        "test": {2: TASK._replace(test=(x, LABELS))},
        "measure": {4: other_measure},
    }
    monkeypatch.setitem(FORMS, "shared weights", lambda onnx, x: onnx)
    keys = {"usual": run(*usual).key[1]}
    for what, change in changes.items():
        keys[what] = run(*(change.get(i, argument) for i, argument in enumerate(usual))).key[1]
    monkeypatch.setattr(pipeline, "source_digest", lambda *files: "another version of the code")
    keys["code"] = run(*usual).key[1]
    assert len(set(keys.values())) == len(keys) == 13
    assert len(counted.calls) == 13


def test_the_code_of_all_that_a_stage_calls_is_in_the_key():
    from dlopt_helpers.lab import memo

    files = {str(file.relative_to(memo._PACKAGE)) for file in memo._with_imports([pipeline.__file__])}
    assert {"pruning.py", "bridges/structure_torch.py", "lab/onnx_weights.py", "lab/deployed.py"} <= files


@pytest.mark.parametrize("moment", ["apply", "write"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_half_finished_stage_leaves_nothing(tmp_path, quick, counted, monkeypatch, moment, error):
    stages = [counted.stage(1), counted.stage(2, error() if moment == "apply" else None)]
    run(made("mlp"), stages[:1], TASK, tmp_path, sizes)
    finished = set(tmp_path.iterdir())
    if moment == "write":
        monkeypatch.setattr(pipeline, "_json", refusing(pipeline._json, error))
    with pytest.raises(KeyboardInterrupt if error is KeyboardInterrupt else StageFailed):
        run(made("mlp"), stages, TASK, tmp_path, sizes)
    assert set(tmp_path.iterdir()) == finished
    monkeypatch.undo()
    monkeypatch.setattr(pipeline.onnxrt, "export", lambda model, inputs: b"")
    assert len(run(made("mlp"), [stages[0], counted.stage(2)], TASK, tmp_path, sizes)) == 3


def refusing(function, error):
    """Return a function that raises ``error`` where a row is written."""

    def wrapped(value):
        if isinstance(value, dict) and "key" in value:
            raise error
        return function(value)

    return wrapped


def test_what_a_killed_process_left_behind_is_never_read(tmp_path, quick, counted, monkeypatch):
    def left(dir, prefix):
        return contextlib.nullcontext(tempfile.mkdtemp(dir=dir, prefix=prefix))

    monkeypatch.setattr(pipeline.tempfile, "TemporaryDirectory", left)
    monkeypatch.setattr(pipeline, "_json", refusing(pipeline._json, ValueError))
    with pytest.raises(StageFailed):
        run(made("mlp"), [], TASK, tmp_path, sizes)
    (left,) = tmp_path.glob("unfinished-*/*")
    assert (left / "model.onnx").exists() and not (left / "row.json").exists()
    monkeypatch.undo()
    monkeypatch.setattr(pipeline.onnxrt, "export", lambda model, inputs: b"")
    rows = run(made("mlp"), [counted.stage(1)], TASK, tmp_path, sizes)
    assert rows.key[0] == left.name and len(rows) == 2


def test_another_process_may_be_faster(tmp_path, quick, counted):
    def slow(onnx, reference, *test):
        if not other:
            other.append(None)
            run(made("mlp"), [counted.stage(1)], TASK, tmp_path, slow)
        return {}

    other = []
    rows = run(made("mlp"), [counted.stage(1)], TASK, tmp_path, slow)
    assert len(rows) == len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_written_is_no_faster_process(tmp_path, quick, monkeypatch):
    def refused(self, target):
        raise PermissionError(target)

    monkeypatch.setattr(pipeline.Path, "rename", refused)
    with pytest.raises(StageFailed, match=r"stage 0, start\(\), failed: PermissionError"):
        run(made("mlp"), [], TASK, tmp_path, sizes)


def test_a_file_that_cannot_be_made_is_a_failure_of_its_stage(tmp_path):
    message = r"stage 1, export\(form='int4 weights'\), failed: ValueError: layer 1 .* no 4-bit integers"
    with pytest.raises(StageFailed, match=message) as failed:
        run(made("mlp"), [export("int4 weights")], TASK, tmp_path, sizes)
    assert len(failed.value.rows) == 1


def test_a_training_that_diverges_is_named(tmp_path):
    with pytest.raises(StageFailed, match=r"stage 1, prune_neurons.*not finite"):
        run(made("mlp"), [prune_neurons(0.5, steps=30, rate=1e30)], TASK, tmp_path, sizes)


def test_failures_pass_between_processes():
    failed = StageFailed("stage 1 failed", pd.DataFrame({"stage": ["start"]}))
    other = pickle.loads(pickle.dumps(failed))
    assert str(other) == "stage 1 failed" and other.rows.equals(failed.rows)


def test_a_row_can_be_the_start_of_another_run(tmp_path, quick):
    sparse = run(made("mlp"), [prune_weights(0.5)], TASK, tmp_path, sizes)
    more = run(load(tmp_path, sparse.key[1]), [prune_neurons(0.5)], TASK, tmp_path, sizes)
    assert load(tmp_path, more.key[1]).sparse


def test_a_file_of_another_class_is_not_loaded(tmp_path):
    (tmp_path / "key").mkdir()
    (tmp_path / "key" / "row.json").touch()
    torch.save({"model": nn.Sequential(nn.Dropout())}, tmp_path / "key" / "model.pt")
    with pytest.raises(pickle.UnpicklingError, match="Dropout"):
        load(tmp_path, "key")


def test_images_and_other_classes_pass_through_every_stage(tmp_path):
    x, y, x_test, y_test = digits()
    images = nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    task = Task(x, np.eye(10, dtype="float32")[y], test=(x_test, y_test))
    stages = [
        prune_neurons(0.5, steps=60),
        prune_weights(0.5, 60),
        quantize(4, 60),
        distil("mlp", 8, 60, 0.01),
    ]
    rows = run(Made(images), stages, task, tmp_path, sizes)
    assert rows.parameters.tolist() == [1_370, 690, 690, 690, 64 * 8 + 8 + 8 * 8 + 8 + 80 + 10]
    for key in rows.key:
        one = load(tmp_path, key).model
        with torch.no_grad():
            answers = one(torch.from_numpy(x_test)).numpy()
        np.testing.assert_allclose(onnxrt.load(onnx_file(tmp_path, key))(x_test), answers, atol=1e-4)


# --- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: distil("rnn", 8, 10, 0.01), "network='rnn'"),
        (lambda: distil(["mlp"], 8, 10, 0.01), "network="),
        (lambda: distil("mlp", 0, 10, 0.01), "width=0"),
        (lambda: distil("mlp", 8, -1, 0.01), "steps=-1"),
        (lambda: distil("mlp", 8, 1.5, 0.01), "steps=1.5"),
        (lambda: distil("mlp", 8, 10, 0), "rate=0"),
        (lambda: distil("mlp", 8, 10, float("nan")), "rate=nan"),
        (lambda: prune_neurons(0), "keep=0"),
        (lambda: prune_neurons(1.1), "keep=1.1"),
        (lambda: prune_neurons([4, 0]), "a number of keep=0"),
        (lambda: prune_neurons("half"), "keep='half'"),
        (lambda: prune_weights(1.0), "share=1.0"),
        (lambda: prune_weights(True), "share=True"),
        (lambda: factorise(0), "share=0"),
        (lambda: quantize(5), "bits=5"),
        (lambda: share_weights(1), "bits=1"),
        (lambda: share_weights(9), "bits=9"),
        (lambda: export("int2"), "form='int2'"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_runs(make, name):
    with pytest.raises(ValueError, match="is not allowed: it must be") as error:
        make()
    assert str(error.value).startswith(name)


def test_settings_are_those_that_json_gives_back():
    stage = prune_neurons(keep=(np.int64(6), 5), rate=np.float64(0.5))
    assert (
        stage.settings == {"keep": [6, 5], "steps": 0, "rate": 0.5} == json.loads(json.dumps(stage.settings))
    )
    assert stage.settings == prune_neurons([6, 5], 0, 0.5).settings
    assert str(stage) == "prune_neurons(keep=[6, 5], steps=0, rate=0.5)"


@pytest.mark.parametrize(
    "change, message",
    [
        ({"x": X[0]}, r"task\.x has shape \(40,\)"),
        ({"x": X.astype(float)}, r"task\.x has .* float64"),
        ({"x": X[:127], "targets": TASK.targets[:127]}, r"128 or more"),
        ({"x": np.where(X > 3, np.nan, X)}, r"task\.x holds a number that is not finite"),
        ({"targets": LABELS}, r"task\.targets has shape \(400,\)"),
        ({"targets": TASK.targets[:399]}, r"task\.targets has shape"),
        ({"targets": 2 * TASK.targets}, r"no probabilities"),
        ({"targets": 3 * TASK.targets - 0.2}, r"no probabilities"),
        ({"test": (X[:, :39], LABELS)}, r"task\.test\[0\] has 39 columns: it must have those of x, 40"),
        ({"test": (X[1:], LABELS)}, r"task\.test\[0\] has shape \(399, 40\)"),
        ({"test": (X[:0], LABELS[:0])}, r"task\.test\[0\] has shape \(0, 40\)"),
        ({"test": (X, LABELS - 1)}, r"values from -1 to 8: it must hold whole numbers in \[0, 9\]"),
        ({"test": (X, LABELS + 0.5)}, r"task\.test\[1\] has type float64"),
        ({"seed": -1}, r"task\.seed=-1"),
    ],
)
def test_a_bad_task_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        run(made("mlp"), [], TASK._replace(**change), tmp_path / "folder", sizes)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize(
    "start, stages, message",
    [
        (made("mlp", form="int2"), [], r"start\.form='int2'"),
        (Made(nn.Linear(40, 10)), [], r"start\.model is Linear"),
        (
            Made(nn.Sequential(nn.Linear(40, 10), nn.Dropout())),
            [],
            r"layer '1' is Dropout: it must be one of Linear",
        ),
        (made("mlp"), [export("float"), quantize], r"stages\[1\]=<function quantize.* must be a Stage"),
    ],
)
def test_a_bad_start_or_stage_is_refused(tmp_path, start, stages, message):
    with pytest.raises(ValueError, match=message):
        run(start, stages, TASK, tmp_path / "folder", sizes)
    assert not (tmp_path / "folder").exists()
