import numpy as np
import pytest
import torch

from dlopt_helpers.chapters import structure_speed as chapter
from dlopt_helpers.lab.blocks import KINDS, block_net
from dlopt_helpers.lab.measure import Ratio
from dlopt_helpers.lab.onnxrt import export, load, optimised_ops


@pytest.fixture
def quick(monkeypatch):
    """Nothing is exported or timed."""
    monkeypatch.setattr(chapter, "export", lambda model, inputs: None)
    monkeypatch.setattr(chapter, "load", lambda onnx: lambda x: x)
    monkeypatch.setattr(chapter, "ratios", lambda a, b, repeats, calls: Ratio(2.0, 1.0, 3.0))
    return chapter.speeds()


def test_stored_speeds_are_those_that_a_measurement_makes(quick):
    stored = chapter.stored_speeds()
    assert [c for c in stored if c not in ("device", "date", "torch", "onnxruntime")] == list(quick)
    # What is counted and not timed is the same on every machine.
    for column in ("family", "kind", "width", "depth", "layout", "batch", "parameters", "macs"):
        assert list(stored[column]) == list(quick[column])
    assert (stored.low <= stored.time).all() and (stored.time <= stored.high).all()


def test_costs_by_hand(quick):
    once = quick[quick.batch == 1].set_index(["family", "kind", "width", "layout", "depth"])
    assert once.macs["rank", "SVD", 16, "1-D", 3] == 40 * 512 + 2 * 16 * 512 + 512 * 10
    assert (
        once.macs["layers", "depthwise", 64, "1-D", 1]
        == once.macs["layers", "depthwise", 64, "2-D", 1]
        == 64 * 3 * 20
    )
    assert once.macs["layers", "plain", 64, "1-D", 1] == 64 * 64 * 3 * 20
    assert (
        once.parameters["blocks", "plain", 8, "1-D", 2]
        == once.parameters["blocks", "plain", 8, "2-D", 2]
        == 882
    )


def test_every_family_holds_its_reference_and_nothing_twice(quick):
    for family, reference in chapter.REFERENCES.items():
        assert reference in chapter.networks(family)
    assert not quick.duplicated(["family", "kind", "width", "depth", "layout", "batch"]).any()


def test_the_time_is_the_networks_over_the_references(monkeypatch):
    timed = []
    monkeypatch.setattr(chapter, "export", lambda model, inputs: model)
    monkeypatch.setattr(chapter, "load", lambda model: lambda x: timed.append((model, x.shape)))
    monkeypatch.setattr(chapter, "ratios", lambda a, b, repeats, calls: (a(), b(), Ratio(1.0, 1.0, 1.0))[2])
    models = chapter.networks("rank")
    monkeypatch.setattr(chapter, "networks", lambda family: models)
    chapter.speeds(["rank"])
    whole, other = models["dense", 512, 3, "1-D"], models["SVD", 1, 3, "1-D"]
    assert [(m is other, x) for m, x in timed[4:8]] == [
        (True, (1, 40)),
        (False, (1, 40)),
        (True, (64, 40)),
        (False, (64, 40)),
    ]
    assert all(m is whole for m, _ in timed[1::2])


@pytest.mark.parametrize("kind", KINDS)
def test_in_two_dimensions_it_computes_the_same(kind):
    model = block_net(kind, 8, 2)
    x = torch.randn(5, 40)
    for _ in range(3):
        model(torch.randn(50, 40))  # batch norms that have seen something
    model.eval()
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(chapter.in_two_dimensions(model)(x), expected, atol=1e-5, rtol=1e-5)
    np.testing.assert_allclose(load(export(chapter.in_two_dimensions(model)))(x), expected, atol=1e-4)


def test_the_runtime_takes_its_blocked_kernels_for_images_alone():
    model = block_net("separable", 16, 2)
    flat, image = (optimised_ops(export(m)) for m in (model, chapter.in_two_dimensions(model)))
    assert "ReorderOutput" in image and "Add" not in image
    assert "ReorderOutput" not in flat and "Add" in flat


def test_table_shows_each_row(quick):
    shown = chapter.table(quick, "blocks", "1-D")
    assert len(shown) == 32 and list(shown.columns) == [
        "width",
        "depth",
        "parameters",
        "macs",
        "batch\xa01",
        "batch\xa064",
    ]
    assert list(chapter.table(quick, "layers").columns)[:2] == ["layout", "parameters"]
    row = shown[(shown.index == "plain") & (shown.width == 32) & (shown.depth == 4)].iloc[0]
    assert list(row)[2:] == ["14,378", "143,040", "2\xa0(1–3)", "2\xa0(1–3)"]
