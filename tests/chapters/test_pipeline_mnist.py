"""The pipeline on MNIST: read, run and shown, on a few made-up images."""

import gzip
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from dlopt_helpers import pipeline
from dlopt_helpers.chapters import pipeline_mnist as chapter
from dlopt_helpers.pipeline import Made, Task, load

RNG = np.random.default_rng(0)
PIXELS = {
    "train": RNG.integers(0, 256, (300, 28, 28), "u1"),
    "test": RNG.integers(0, 256, (100, 28, 28), "u1"),
}
DIGITS = {"train": RNG.integers(0, 10, 300).astype("u1"), "test": RNG.integers(0, 10, 100).astype("u1")}
RECIPES = chapter.RECIPES  # the long ones
NAMES = [name for pair in chapter.FILES.values() for name in pair]


def idx(array):
    """Return an array of bytes as an IDX file."""
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes()


def written(folder):
    for part, (images, labels) in chapter.FILES.items():
        (folder / images).write_bytes(idx(PIXELS[part]))
        (folder / labels).write_bytes(idx(DIGITS[part]))
    return folder


@pytest.fixture(scope="module", autouse=True)
def one_process():
    """What a test replaces here, another process would not know of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("DLOPT_JOBS", raising=False)
        yield


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path)


# --- reading -----------------------------------------------------------------------------------------


def test_pixels_and_labels_are_those_of_the_files(folder):
    data = chapter.mnist(folder)
    for part, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        assert x.dtype == np.float32 and y.dtype == np.int64
        assert x.shape == (len(PIXELS[part]), 784) and y.tolist() == DIGITS[part].tolist()
        assert np.array_equal(np.rint(255 * x), PIXELS[part].reshape(len(x), 784))
        assert x.min() == 0 and x.max() == 1


def test_packed_files_hold_the_same(folder):
    plain = chapter.mnist(str(folder))
    for name in NAMES[:3]:
        file = folder / name
        (folder / f"{name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    for one, other in zip(plain, chapter.mnist(folder), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"{folder.name}: {name} is missing, and so is {name}.gz"):
        chapter.mnist(folder)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (NAMES[0], idx(DIGITS["train"]), "begins with 00 00 08 01: it must begin with 00 00 08 03"),
        (NAMES[1], idx(PIXELS["train"]), "begins with 00 00 08 03: it must begin with 00 00 08 01"),
        (NAMES[2], gzip.compress(idx(PIXELS["test"])), "begins with 1f 8b"),
        (NAMES[3], b"", "begins with : it must"),
        (NAMES[0], idx(PIXELS["train"])[:9], "has 9 bytes: by its first ones it must have 16"),
        (NAMES[0], idx(PIXELS["train"])[:-1], "has 235215 bytes: by its first ones it must have 235216"),
        (NAMES[3], idx(DIGITS["test"]) + b"0", "has 109 bytes: by its first ones it must have 108"),
        (NAMES[2], idx(PIXELS["test"][:, 1:]), r"holds images of \(27, 28\) pixels: they must have 28 x 28"),
        (NAMES[1], idx(DIGITS["train"] + 1), "holds the label 10: they must be digits"),
        (NAMES[1], idx(DIGITS["train"][1:]), f"{NAMES[0]} holds 300 images, {NAMES[1]} 299 labels"),
    ],
)
def test_a_file_that_holds_something_else_is_named(folder, name, content, words):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{folder.name}: .*{words}") as error:
        chapter.mnist(folder)
    assert name in str(error.value)


@pytest.mark.parametrize("cut", [5, -9, None])
def test_a_broken_archive_is_named(folder, cut):
    (folder / NAMES[0]).unlink()
    content = gzip.compress(idx(PIXELS["train"]))[:cut] if cut else idx(PIXELS["train"])
    (folder / f"{NAMES[0]}.gz").write_bytes(content)
    with pytest.raises(ValueError, match=f"{folder.name}: {NAMES[0]}.gz cannot be unpacked"):
        chapter.mnist(folder)


# --- networks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("network", "parameters"), [("lenet-300-100", 266_610), ("lenet-5", 431_080)])
def test_the_networks_are_those_of_the_paper(network, parameters):
    make = chapter.NETWORKS[network]
    model = make(0)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model(torch.zeros(3, 784)).shape == (3, 10)
    before = torch.random.get_rng_state()
    same, other = (list(make(seed).parameters()) for seed in (0, 1))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(map(torch.equal, same, model.parameters()))
    assert not any(map(torch.equal, other, model.parameters()))


def test_nothing_but_pooling_stands_between_the_convolutions():
    kinds = [type(layer) for layer in chapter.lenet5()]
    first, second = (i for i, kind in enumerate(kinds) if kind is nn.Conv2d)
    assert kinds[first + 1 : second] == [nn.MaxPool2d] and kinds.count(nn.ReLU) == 1
    hidden = [layer.weight.shape for layer in chapter.lenet5() if hasattr(layer, "weight")]
    assert [tuple(shape) for shape in hidden] == [(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)]


@pytest.mark.parametrize("down", ["stride", "pool"])
def test_a_small_cnn_halves_width_and_height_twice(down):
    model = chapter.small_cnn((3, 7), down)
    each = [nn.Conv2d, nn.ReLU, nn.MaxPool2d] if down == "pool" else [nn.Conv2d, nn.ReLU]
    assert [type(layer) for layer in model] == [nn.Unflatten, *each, *each, nn.Flatten, nn.Linear]
    x, sides = torch.rand(1, 784), []
    for layer in model:
        x = layer(x)
        sides += x.shape[3:]
    assert sides == {"stride": [28, 12, 12, 4, 4], "pool": [28, 24, 24, 12, 8, 8, 4]}[down]
    weights = [tuple(layer.weight.shape) for layer in model if hasattr(layer, "weight")]
    assert weights == [(3, 1, 5, 5), (7, 3, 5, 5), (10, 7 * 16)]
    same, other = (chapter.small_cnn((3, 7), down, seed)[1].weight for seed in (0, 1))
    assert torch.equal(model[1].weight, same) and not torch.equal(same, other)


def test_a_new_cnn_owes_nothing_to_the_network_before():
    x = RNG.random((200, 784)).astype("float32")
    targets = np.eye(10, dtype="float32")[RNG.integers(0, 10, 200)]
    stage = chapter.new_cnn([2, 3], "pool", steps=5, rate=0.01)
    tasks = [Task(x, targets, (x, targets.argmax(1)), seed) for seed in (4, 4, 5)]
    before = [
        Made(chapter.lenet5(), sparse=True),
        Made(nn.Sequential(nn.Linear(784, 10)), "int8"),
        Made(chapter.lenet5()),
    ]
    made = list(map(stage.apply, before, tasks))
    one, same, other = ([*one.model.parameters()] for one in made)
    assert all(map(torch.equal, one, same)) and not any(map(torch.equal, one, other))
    assert (made[0].form, made[0].sparse) == ("float", False)
    assert not any(map(torch.equal, one, chapter.small_cnn((2, 3), "pool", 4).parameters()))  # it was trained
    untrained = chapter.new_cnn((2, 3), "pool", steps=0, rate=0.01).apply(Made(chapter.lenet5()), tasks[0])
    assert all(
        map(torch.equal, untrained.model.parameters(), chapter.small_cnn((2, 3), "pool", 4).parameters())
    )
    assert stage.settings == {"channels": [2, 3], "down": "pool", "steps": 5, "rate": 0.01}


@pytest.mark.parametrize("wrong", [{"steps": -1}, {"rate": 0}])
def test_a_new_cnn_refuses_what_the_engine_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        chapter.new_cnn(**{"channels": [2, 3], "down": "pool", "steps": 5, "rate": 0.01, **wrong})


# --- runs --------------------------------------------------------------------------------------------


def shorter(stage):
    make = getattr(pipeline, stage.name, None) or getattr(chapter, stage.name)
    return make(**stage.settings | ({"steps": 3} if stage.settings.get("steps") else {}))


def untimed(onnx, reference, x, y):
    right = (pipeline.onnxrt.load(onnx)(x).argmax(1) == y).mean()
    zipped = len(chapter.zlib.compress(onnx, 9))
    return {"accuracy": right, "bytes": len(onnx), "zipped": zipped, "faster 1": 1.0, "faster 64": 1.0}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """Three steps of training, nothing timed; the stages that ran are noted."""
    folder, ran = written(tmp_path_factory.mktemp("mnist")), []
    kept, finish, run = folder / "kept", pipeline._finish, chapter.run

    def noted(stage, made, *rest):
        finish(stage, made, *rest)
        ran.append(stage.name)

    def run_untimed(start, stages, task, folder, measure=untimed):
        return run(start, stages, task, folder, measure)

    recipes = {
        network: {name: [*map(shorter, stages)] for name, stages in of.items()}
        for network, of in chapter.RECIPES.items()
    }
    training = {network: shorter(stage) for network, stage in chapter.TRAINING.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "RECIPES", recipes)
        patch.setattr(chapter, "TRAINING", training)
        patch.setattr(chapter, "kept", lambda: kept)
        patch.setattr(chapter, "run", run_untimed)
        patch.setattr(pipeline, "_finish", noted)
        yield SimpleNamespace(folder=folder, ran=ran, kept=kept)


@pytest.fixture(scope="module")
def stopped(short):
    """What ran of LeNet-300-100 before it was stopped in its second recipe stage."""
    finish = pipeline._finish

    def stop(stage, *rest):
        if stage.name == "share_weights":
            raise KeyboardInterrupt
        finish(stage, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "_finish", stop)
        with pytest.raises(KeyboardInterrupt):
            chapter.lenets(short.folder, "lenet-300-100", ["Deep Compression"], seeds=[0])
    return list(short.ran)


@pytest.fixture(scope="module", params=chapter.NETWORKS)
def made(request, short, stopped):
    """The rows of a network, and how many stages had run before."""
    before = len(short.ran)
    return chapter.lenets(short.folder, request.param, seeds=[0]), before


FORMS = {
    "Deep Compression": ["float", "float", "float", "shared weights"],
    "this chapter": ["float", "float", "int4 weights"],
}


def test_a_stopped_run_goes_on_after_its_last_finished_stage(short, stopped, made):
    rows, before = made
    assert stopped == ["start", "prune_neurons", "start", "prune_weights", "prune_weights"]
    if rows.group[0] == "lenet-300-100":
        new = [stage.name for stage in chapter.RECIPES["lenet-300-100"]["this chapter"]]
        assert short.ran[before : before + 1 + len(new)] == ["share_weights", *new]


def test_each_recipe_makes_its_rows(made):
    rows, _ = made
    (network,) = set(rows.group)
    assert set(rows.seed) == {0} and list(dict.fromkeys(rows.recipe)) == list(chapter.RECIPES[network])
    parameters = sum(p.numel() for p in chapter.NETWORKS[network](0).parameters())
    for recipe, of in rows.groupby("recipe"):
        assert list(of.number) == list(range(len(of))) and list(of.form) == FORMS[recipe]
        assert list(of.settings)[1:] == list(map(str, chapter.RECIPES[network][recipe]))
        assert of.parameters.iloc[0] == parameters and of.bytes.is_monotonic_decreasing
    assert rows.key[rows.number == 0].nunique() == 1  # all recipes have the same start


def test_what_is_finished_is_computed_no_second_time(short, made):
    rows, _ = made
    done = len(short.ran)
    pd.testing.assert_frame_equal(chapter.lenets(short.folder, rows.group[0], seeds=[0]), rows)
    assert len(short.ran) == done


def test_a_start_is_trained_on_the_labels_of_the_folder(short, made):
    rows, _ = made
    network, data = rows.group[0], chapter.mnist(short.folder)
    task = Task(data.x_train, chapter.one_hot(data.y_train), (data.x_test, data.y_test), seed=0)
    start = load(short.kept, rows.key[0]).model
    expected = chapter.TRAINING[network].apply(Made(chapter.NETWORKS[network](0)), task).model
    assert all(map(torch.equal, start.parameters(), expected.parameters()))
    assert not any(map(torch.equal, start.parameters(), chapter.NETWORKS[network](0).parameters()))
    right = (start(torch.from_numpy(data.x_test)).argmax(1).numpy() == data.y_test).mean()
    assert rows.accuracy[0] == pytest.approx(right, abs=0.011)


def test_deep_compression_leaves_the_weights_and_numbers_of_the_paper(short, made):
    rows = made[0][made[0].recipe == "Deep Compression"]
    weights = [w.detach() for w in load(short.kept, rows.key.iloc[-1]).model.parameters() if w.ndim > 1]
    zeros = sum((w == 0).sum() for w in weights) / sum(w.numel() for w in weights)
    assert zeros == pytest.approx(0.92, abs=0.002)
    most = {"lenet-300-100": 64, "lenet-5": 32}[rows.group.iloc[0]]
    assert 0.7 * most < max(len(w.unique()) for w in weights) <= most


def test_each_seed_has_its_own_start_and_order(short, monkeypatch):
    asked = []

    def noted(start, stages, task, folder, measure=None):
        asked.append((task.seed, start.model[0].weight, measure))
        return pd.DataFrame({"key": ["", ""]})

    monkeypatch.setattr(chapter, "run", noted)
    monkeypatch.setattr(chapter, "load", lambda folder, key: Made(nn.Sequential(nn.Linear(1, 1))))
    rows = chapter.lenets(short.folder, "lenet-300-100", ["this chapter"], seeds=[3, 4])
    assert list(rows.seed) == [3, 3, 4, 4] and list(rows.number) == [0, 1, 0, 1]
    assert [seed for seed, *_ in asked] == [3, 3, 4, 4]
    for number, seed in ((0, 3), (2, 4)):
        assert torch.equal(asked[number][1], chapter.NETWORKS["lenet-300-100"](seed)[0].weight)
        assert asked[number][2] is chapter.unmeasured and asked[number + 1][2] is None


def test_both_networks_and_all_recipes_run_unless_some_are_named(monkeypatch, folder):
    asked = []

    def all_of(*job):
        asked.append(job)
        return pd.DataFrame({"number": [0]})

    monkeypatch.setattr(chapter, "_all_of", all_of)
    assert len(chapter.lenets(folder)) == 6
    assert asked == [
        (folder, network, ["Deep Compression", "this chapter"], seed)
        for network in ("lenet-300-100", "lenet-5")
        for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"network": "lenet-4"}, "network: 'lenet-4' is not allowed: .*'lenet-300-100', 'lenet-5'"),
        ({"recipes": ["mine"]}, "recipes: 'mine' is not allowed: .*'Deep Compression', 'this chapter'"),
    ],
)
def test_an_unknown_name_is_refused_before_anything_is_read(wrong, words):
    with pytest.raises(ValueError, match=words):
        chapter.lenets("nowhere", **wrong)


def test_a_wrong_folder_is_refused_before_anything_is_trained(folder, monkeypatch):
    (folder / NAMES[-1]).unlink()
    monkeypatch.setattr(chapter, "spread", lambda *jobs: pytest.fail("it was not refused"))
    with pytest.raises(ValueError, match=NAMES[-1]):
        chapter.lenets(folder)


# --- the page ----------------------------------------------------------------------------------------


def rows_of(network, recipe, *values):
    """Return rows with a start of 1,000 kB for each (seed, number, settings, accuracy, bytes, zipped)."""
    columns = ["seed", "number", "settings", "accuracy", "bytes", "zipped"]
    made = pd.DataFrame(values, columns=columns).assign(group=network, recipe=recipe)
    return made.assign(**{"faster 1": 2.0 + made.seed, "faster 64": 0.5})


MADE = pd.concat(
    [
        rows_of(
            "lenet-5", "b", (0, 0, "start()", 0.99, 1e6, 9e5), (0, 1, "export(form='float')", 0.98, 2e6, 1e5)
        ),
        rows_of(
            "lenet-300-100",
            "a",
            (0, 0, "start()", 0.98, 1e6, 9e5),
            (0, 1, "quantize(bits=4, steps=9, rate=0.1)", 0.97, 2e5, 1e5),
            (1, 0, "start()", 0.99, 1e6, 9e5),
            (1, 1, "quantize(bits=4, steps=9, rate=0.1)", 0.99, 2e5, 2e4),
        ),
    ],
    ignore_index=True,
)


def test_table_shows_means_beside_the_paper():
    shown = chapter.table(MADE)
    assert list(shown.index) == [
        ("lenet-5", "b", "start"),
        ("lenet-5", "b", "export float"),
        ("lenet-5", "the paper", "start"),
        ("lenet-5", "the paper", "Huffman coded"),
        ("lenet-300-100", "a", "start"),
        ("lenet-300-100", "a", "quantize 4"),
        ("lenet-300-100", "the paper", "start"),
        ("lenet-300-100", "the paper", "Huffman coded"),
    ]
    rows = [list(row) for row in shown.to_numpy()]
    assert rows[1] == ["2.00\xa0(2.00–2.00)", "2,000", "100", "0.5", "10", "2", "0.5"]
    assert rows[4] == ["1.50\xa0(1.00–2.00)", "1,000", "900", "1", "1.1", "2.5", "0.5"]
    assert rows[5] == ["2.00\xa0(1.00–3.00)", "200", "60.0", "5", "30", "2.5", "0.5"]
    assert rows[6] == ["1.64", "1,070", "", "", "", "", ""]
    assert rows[7] == ["1.58", "", "27", "", "40", "", ""]
    assert [rows[2][0], *rows[3]] == ["0.80", "0.74", "", "44", "", "39", "", ""]


def test_the_paper_agrees_with_itself_and_with_the_networks():
    for name, said in chapter.PAPER.items():
        before, after = said["kB"]
        assert before / after == pytest.approx(said["smaller"], rel=0.02)
        parameters = sum(p.numel() for p in chapter.NETWORKS[name](0).parameters())
        assert 4 * parameters / 1e3 == pytest.approx(before, rel=0.01)
        assert said["error"][1] < said["error"][0]


# --- what is stored ----------------------------------------------------------------------------------

stored_here = pytest.mark.skipif(not chapter.STORED.exists(), reason="not made yet")


@stored_here
def test_stored_rows_are_those_of_the_recipes():
    stored = chapter.stored_lenets()
    assert list(stored)[:4] == ["group", "recipe", "seed", "number"]
    assert list(stored)[-2:] == ["date", "device"]
    expected = [
        (network, recipe, seed, str(stage))
        for network in chapter.NETWORKS
        for seed in chapter.SEEDS
        for recipe, stages in RECIPES[network].items()
        for stage in [chapter.Stage("start", {}, None), *stages]
    ]
    assert list(zip(stored.group, stored.recipe, stored.seed, stored.settings, strict=True)) == expected
    assert not stored.isna().any().any()


@stored_here
def test_stored_networks_are_as_good_as_those_of_the_paper_and_small():
    stored = chapter.stored_lenets()
    begin = stored[stored.number == 0].groupby("group")
    assert begin.parameters.unique().map(list).to_dict() == {"lenet-300-100": [266_610], "lenet-5": [431_080]}
    for network, said in chapter.PAPER.items():
        of = begin.get_group(network)
        assert (abs(100 * (1 - of.accuracy) - said["error"][0]) < 0.25).all()
        assert (abs(of.bytes / 1e3 / said["kB"][0] - 1) < 0.01).all()
    runs = stored.groupby(["group", "recipe", "seed"])
    last = stored.loc[runs.number.idxmax()].set_index(["group", "recipe"]).sort_index()
    smaller = stored.set_index(["group", "recipe"]).groupby(["group", "recipe"]).bytes.max() / last.bytes
    assert (smaller["lenet-300-100", "this chapter"] > 250).all()
    assert (smaller["lenet-5", "this chapter"] > 180).all()
    assert (last.zipped["lenet-300-100", "Deep Compression"] < 40_000).all()
    assert (last.zipped["lenet-5", "Deep Compression"] < 62_000).all()
