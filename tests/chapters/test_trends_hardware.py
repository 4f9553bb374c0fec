import numpy as np
import pytest
import torch

from dlopt_helpers.chapters import trends_hardware as chapter
from dlopt_helpers.lab.measure import Ratio

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8 e4m3": torch.float8_e4m3fn,
}


@pytest.mark.parametrize("name", DTYPES)
def test_rounded_is_what_torch_keeps(name):
    """From subnormal numbers to the largest, either sign, and the ties."""
    largest, smallest = chapter.FORMATS[name].largest, float(chapter.spacing(0.0, name))
    exponents = np.random.default_rng(0).uniform(np.log2(smallest) - 3, np.log2(largest), 20_000)
    x = 2.0**exponents * np.where(np.arange(20_000) % 2, 1, -1)
    kept = chapter.rounded(x, name)
    ties = kept + chapter.spacing(kept, name) / 2
    x = np.concatenate([x, ties[abs(ties) < largest], [0.0, largest]])
    if name != "float32":
        x = x.astype("float32").astype("float64")  # torch rounds float64 twice on some ways
    np.testing.assert_array_equal(chapter.rounded(x, name), torch.from_numpy(x).to(DTYPES[name]).double())


def test_too_large_is_infinite():
    for name in ("bfloat16", "float16"):
        too_large = chapter.FORMATS[name].largest * 1.01
        assert chapter.rounded(-too_large, name) == -np.inf
        assert torch.tensor(too_large, dtype=torch.float64).to(DTYPES[name]).isinf()


@pytest.mark.parametrize("name", ["float32", "bfloat16", "float16"])
def test_spacing_at_one_is_torchs_eps(name):
    info = torch.finfo(DTYPES[name])
    assert chapter.spacing(1.0, name) == info.eps == chapter.spacing(-1.99, name)
    assert chapter.spacing(0.999, name) == info.eps / 2
    assert chapter.FORMATS[name].largest == info.max
    assert 2.0 ** chapter.FORMATS[name].lowest == info.tiny


def test_bytes_of_two_of_four():
    assert chapter.sparse_share(16) == 0.5625  # 2 * 16 + 2 * 2 bits of 4 * 16
    assert chapter.sparse_share(16, n=1, m=2) == (16 + 1) / 32


def test_all_reduce_by_walking_round_the_ring():
    """Each process sends one of p parts at each of 2 (p - 1) turns; all end with the sum."""
    p, rng = 4, np.random.default_rng(0)
    parts, sent = rng.normal(size=(p, p)), 0
    total = parts.sum(axis=0)
    for turn in range(2 * (p - 1)):
        before = parts.copy()
        for rank in range(p):
            part = (rank - turn) % p
            to = (rank + 1) % p
            add = before[to, part] if turn < p - 1 else 0
            parts[to, part] = before[rank, part] + add
        sent += 1 / p
    np.testing.assert_allclose(parts, np.tile(total, (p, 1)))
    assert chapter.all_reduce_bytes(1.0, p) == pytest.approx(sent)


def test_parallel_time_has_a_floor():
    given = {"compute": 0.1, "size": 1e8, "bandwidth": 1e10}
    assert chapter.parallel_time(**given, processes=1) == 0.1
    assert chapter.parallel_time(**given, processes=10**9) == pytest.approx(2 * 1e8 / 1e10)


def test_break_even_is_where_the_totals_meet():
    first, time = 500.0, 0.8
    n = chapter.break_even(first, time)
    assert n == pytest.approx(first + n * time)
    assert chapter.break_even(first, 1.0) == np.inf


@pytest.mark.parametrize(
    ("function", "given", "named"),
    [
        (chapter.spacing, {"x": np.nan, "name": "bfloat16"}, "x="),
        (chapter.rounded, {"x": 1.0, "name": "float12"}, "name="),
        (chapter.sparse_share, {"bits": 0}, "bits="),
        (chapter.sparse_share, {"bits": 16, "n": 5}, "n="),
        (chapter.sparse_share, {"bits": 16, "m": 1}, "m="),
        (chapter.all_reduce_bytes, {"size": -1, "processes": 2}, "size="),
        (chapter.all_reduce_bytes, {"size": 1, "processes": 0}, "processes="),
        (chapter.parallel_time, {"compute": 0, "size": 1, "bandwidth": 1, "processes": 1}, "compute="),
        (chapter.parallel_time, {"compute": 1, "size": 1, "bandwidth": 0, "processes": 1}, "bandwidth="),
        (chapter.break_even, {"first": -1, "time": 1}, "first="),
        (chapter.break_even, {"first": 1, "time": 0}, "time="),
    ],
)
def test_bad_input_is_named(function, given, named):
    with pytest.raises(ValueError, match=f"^{named}"):
        function(**given)


@pytest.fixture
def quick(monkeypatch):
    """Nothing is timed or compiled."""
    monkeypatch.setattr(chapter, "_call", lambda *of: lambda: None)
    monkeypatch.setattr(chapter, "ratios", lambda a, b, repeats, calls: Ratio(2.0, 1.0, 3.0))
    return chapter.speeds()


def test_stored_speeds_are_those_that_a_measurement_makes(quick):
    stored = chapter.stored_speeds()
    assert [c for c in stored if c not in ("date", "device", "units", "torch")] == list(quick)
    for column in ("network", "batch", "work", "variant"):
        assert list(stored[column]) == list(quick[column])
    assert (stored.low <= stored.time).all() and (stored.time <= stored.high).all()
    assert (stored["first"] > 0).all() and stored.device.nunique() == 1
    without = chapter.stored_without_units()
    assert list(without) == list(stored) and set(without.device) == set(stored.device)


def test_a_row_can_be_measured_again():
    row = chapter.speeds(["CNN, 2-D"], [64], ["channels last"], repeats=1)
    assert list(row.work) == ["training", "inference"] and (row.low <= row.time).all() and (row.low > 0).all()


@pytest.mark.parametrize("variant", ["plain", "autocast", "all bfloat16", "channels last"])
def test_training_changes_the_weights_and_inference_does_not(variant, monkeypatch):
    made = []
    monkeypatch.setitem(
        chapter.NETWORKS, "CNN, 2-D", (lambda: made.append(chapter.image_cnn()) or made[-1], (3, 16, 16))
    )
    monkeypatch.setattr(torch.optim, "SGD", lambda ps, rate: _Spy(ps, made))
    for work, steps in (("training", 1), ("inference", 0)):
        _Spy.steps, recording = 0, []
        call = chapter._call("CNN, 2-D", 4, work, variant, "cpu")
        made[-1].register_forward_hook(lambda *of, seen=recording: seen.append(torch.is_grad_enabled()))
        call()
        assert recording == [work == "training"]
        assert _Spy.steps == steps
        assert all((p.grad is not None) == bool(steps) for p in made[-1].parameters())


class _Spy:
    steps = 0

    def __init__(self, ps, made):
        self.ps = list(ps)

    def zero_grad(self):
        for p in self.ps:
            p.grad = None

    def step(self):
        _Spy.steps += 1


def test_table_shows_each_row(quick):
    shown = chapter.table(quick)
    assert len(shown) == 12 and list(shown.columns) == chapter.VARIANTS
    assert shown.loc["training", "MLP, width 100", 64]["channels last"] == ""
    assert shown.loc["training", "CNN, 2-D", 64]["channels last"] == "2\xa0(1–3)"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it measures")
def test_without_a_gpu_it_says_so():
    assert "8.0" in chapter.sparse_speed()


@pytest.mark.parametrize(
    "make",
    [chapter.format_explorer, chapter.speed_explorer, chapter.scaling_explorer],
    ids=lambda f: f.__name__,
)
def test_explorers_can_be_drawn(make):
    assert "<figure" in make().to_html()
