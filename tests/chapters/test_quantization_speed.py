import itertools

import pytest

from dlopt_helpers.chapters import quantization_speed as chapter
from dlopt_helpers.lab.measure import Ratio

SMALL = ["mlp512", "cnn25"]


@pytest.fixture(scope="module")
def calls():
    return []


@pytest.fixture(scope="module")
def quick(calls):
    def ratios(one, other, **options):
        calls.append((one, other, options["calls"]))
        return Ratio(2.0, 1.0, 3.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "ratios", ratios)
        return chapter.speeds(SMALL, repeats=1)


def test_stored_speeds_are_those_that_a_measurement_makes(quick):
    stored = chapter.stored_speeds()
    assert [c for c in stored if c not in ("date", "device", "features")] == list(quick)
    assert set(stored.network) == set(chapter.NETWORKS)
    both = stored[stored.network.isin(SMALL)]
    for column in ("network", "runtime", "variant", "batch"):
        assert list(both[column]) == list(quick[column])
    # What is counted and not timed is the same on every machine.
    assert (abs(both.bytes.to_numpy() / quick.bytes - 1) < 0.05).all()
    assert stored.features.str.len().all() and (stored.low <= stored.faster).all()


def test_each_variant_is_compared_with_the_float_file_of_its_runtime_on_the_same_rows(calls, quick):
    assert len(calls) == len(quick) == 2 * 2 * 3 * 3
    for (one, other, repeated), row in zip(calls, quick.itertuples(), strict=True):
        assert one.args[0].shape == other.args[0].shape == (row.batch, 40) and repeated == max(
            1, 300 // row.batch
        )
        assert (one.func is other.func) == (row.variant == "float")
    by_runtime = [calls[i : i + 9] for i in range(0, len(calls), 9)]
    assert all(len({one.func for one, _, _ in group}) == 1 for group in by_runtime)
    assert all(len({other.func for _, other, _ in group}) == 3 for group in by_runtime)
    assert len({group[0][0].func for group in by_runtime}) == 4


def test_all_files_compute_nearly_the_same(calls, quick):
    for n in range(0, len(calls), 18):
        outputs = [other() for _, other, _ in calls[n + 1 : n + 18 : 3]]  # batch 64, of both runtimes
        for a, b in itertools.combinations(outputs, 2):
            assert abs(a - b).max() < 0.3 * a.std()


def test_bytes_are_those_of_the_files(quick):
    size = quick.query("batch == 1").set_index(["network", "runtime", "variant"]).bytes
    assert size["mlp512", "ONNX Runtime", "int8 static"] == len(chapter.onnx_files("mlp512")["int8 static"])
    for runtime in ("ONNX Runtime", "LiteRT"):
        assert size["mlp512", runtime, "float"] > 3.6 * size["mlp512", runtime, "int8 static"]


def test_microseconds_are_those_of_the_variant_for_one_call(monkeypatch):
    monkeypatch.setattr(chapter.timeit, "repeat", lambda f, number, repeat: [f() * number] * repeat)
    _, time = chapter._measured(lambda: 1.0, lambda: 2e-6, repeats=3, calls=5)
    assert time == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("text", "features"),
    [
        ("vendor_id : A\nvmx flags : amx_int8\nflags\t\t: fpu avx2 avx512_vnni sse\n", "avx2 avx512_vnni"),
        ("processor : 0\nFeatures\t: fp asimddp i8mm sve\n", "asimddp i8mm"),
    ],
)
def test_features_are_read_from_the_system(text, features, tmp_path):
    file = tmp_path / "cpuinfo"
    file.write_text(text)
    assert chapter.cpu_features(file) == features


@pytest.mark.parametrize("text", [None, "flags : fpu sse\n", "nothing known\n"])
def test_without_features_the_kind_of_machine_is_named(text, tmp_path, monkeypatch):
    monkeypatch.setattr(chapter.platform, "machine", lambda: "riscv64")
    file = tmp_path / "cpuinfo"
    if text:
        file.write_text(text)
    assert chapter.cpu_features(file) == "riscv64"


def test_table_shows_each_row():
    stored = chapter.stored_speeds()
    shown = chapter.table(stored.assign(faster=2.0, low=1.0, high=3.0))
    assert len(shown) == len(stored) / 3
    assert list(shown.columns) == ["runtime", "variant", "kB", "µs,\xa0batch\xa01"] + [
        f"batch\xa0{n}" for n in ("1", "64", "1,024")
    ]
    assert list(shown.iloc[1].drop("µs,\xa0batch\xa01")) == [
        "ONNX\xa0Runtime",
        "int8\xa0static",
        f"{stored.bytes[3] / 1e3:.0f}",
        *3 * ["2\xa0(1–3)"],
    ]
    assert shown["µs,\xa0batch\xa01"].iloc[1] == f"{stored.microseconds[3]:.0f}"
