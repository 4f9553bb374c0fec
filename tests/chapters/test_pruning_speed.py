import pytest
import torch

from dlopt_helpers.bridges.pruning_torch import prunable
from dlopt_helpers.chapters import pruning_speed as chapter
from dlopt_helpers.lab.measure import Ratio
from dlopt_helpers.pruning import sparsity


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(chapter, "ratios", lambda a, b, repeats, calls: Ratio(2.0, 1.0, 3.0))
    return chapter.speeds(["mlp512", "cnn64"])


def test_stored_speeds_are_those_that_a_measurement_makes(quick):
    stored = chapter.stored_speeds()
    assert [c for c in stored if c not in ("device", "date", "torch")] == list(quick)
    both = stored.query("network != 'mlp1024'")
    assert list(both.variant) == list(quick.variant) and list(both.batch) == list(quick.batch)
    # The costs that are counted and not timed are the same on every machine.
    assert list(both.multiplications) == list(quick.multiplications)
    assert (abs(both.bytes.to_numpy() / quick.bytes - 1) < 0.02).all()


def test_multiplications_by_hand(quick):
    work = quick.query("batch == 1").set_index(["network", "variant"]).multiplications
    assert work["mlp512", "dense"] == work["mlp512", "masked 90 %"] == 40 * 512 + 512 * 512 + 512 * 10
    assert work["mlp512", "units 50 %"] == 40 * 256 + 256 * 256 + 256 * 10
    lengths = 19 * 5 * 64 + 10 * 3 * 64 * 64 + 5 * 3 * 64 * 64
    assert work["cnn64", "dense"] == lengths + 5 * 64 * 10
    assert work["mlp512", "CSR 90 %"] == pytest.approx(0.1 * work["mlp512", "dense"], rel=0.01)


def test_variants_are_what_they_are_called():
    found = chapter.variants("mlp512")
    assert sparsity(*prunable(found["masked 90 %"]).values()) == pytest.approx(0.9, abs=1e-3)
    assert found["units 25 %"][0].out_features == 128
    x = torch.randn(3, 40)
    with torch.no_grad():
        torch.testing.assert_close(found["CSR 90 %"](x), found["masked 90 %"](x), atol=1e-5, rtol=0)
    assert not any("CSR" in name for name in chapter.variants("cnn64"))


def test_table_shows_each_row(quick):
    shown = chapter.table(quick)
    assert len(shown) == len(quick) / 3
    assert list(shown.columns[-3:]) == ["batch\xa01", "batch\xa064", "batch\xa01,024"]
    assert list(shown.iloc[0])[:4] == ["dense", "287,744", "1,158", "2\xa0(1–3)"]
