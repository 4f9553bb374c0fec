"""What chapter 3.6 measures, and the rows behind its explorers."""

import itertools

import pandas as pd
import pytest
import torch

from dlopt_helpers.chapters import pruning_runs
from dlopt_helpers.chapters import structure as chapter
from dlopt_helpers.chapters import structure_runs as trainings
from dlopt_helpers.chapters.structure_speed import stored_speeds
from dlopt_helpers.lab.blocks import KINDS


@pytest.fixture(autouse=True)
def untrained(monkeypatch):
    monkeypatch.setattr(chapter, "dense", lambda network, seed: pruning_runs.untrained(network, seed))


@pytest.fixture(scope="module")
def ranked():
    rows = [
        (way, rank, seed, 0.1 + seed / 10, rank / 1000 + seed / 10)
        for way, rank in trainings.SETTINGS
        for seed in (0, 1)
    ]
    return pd.DataFrame(rows, columns=["way", "rank", "seed", "before", "accuracy"])


@pytest.fixture(scope="module")
def blocks():
    settings = itertools.product(KINDS, trainings.WIDTHS, trainings.DEPTHS, (0, 1))
    rows = [(k, w, d, s, 0.6 + 0.05 * KINDS.index(k) + w / 1000 + s / 100) for k, w, d, s in settings]
    return pd.DataFrame(rows, columns=["kind", "width", "depth", "seed", "accuracy"])


def test_counts():
    table = chapter.counts()
    assert (table.parameters == table["by PyTorch"]).all() and (table.MACs == table["MACs by PyTorch"]).all()
    assert len(table) == 6


def test_full_rank_differences():
    found = chapter.full_rank_differences()
    assert list(found.framework) == ["PyTorch", "Keras"] * 2
    assert (found.difference < 2e-5 * found["largest output"]).all() and (found.difference > 0).all()


def test_rank_explorer(ranked):
    explorer = chapter.rank_explorer(ranked, stored_speeds())
    assert explorer.stops["rank"] == trainings.RANKS
    rows = {row["what"]: row["value"] for row in explorer.find({"rank": 64})}
    assert rows["cut"] == 0.15 and rows["SVD"] == pytest.approx(0.114)
    assert rows["MACs"] == pytest.approx((50 * 512 + 128 * 512) / 287_744, abs=1e-3)
    assert rows["parameters"] == pytest.approx(92_170 / 288_778, abs=1e-3)
    u, s, v = torch.linalg.svd(chapter.layer_weights())
    error = (chapter.layer_weights() - u[:, :64] * s[:64] @ v[:64]).norm() / s.norm()
    assert rows["error of the layer"] == pytest.approx(error.item(), abs=1e-3)
    stored = stored_speeds().query("family == 'rank' and width == 64 and batch == 64").time.iloc[0]
    assert rows["time, batch 64"] == pytest.approx(stored, abs=1e-3)


def test_block_table(blocks):
    table = chapter.block_table(blocks, stored_speeds()).set_index(["kind", "width", "depth"])
    assert len(table) == 32
    assert (table.loc[("plain", 32, 4), chapter.MEASURES[:2]] == 1).all()
    assert table.loc[("plain", 8, 2), "parameters"] == 882 / 14_378
    assert table.accuracy["grouped", 8, 2] == pytest.approx(0.713)
    assert table.low["grouped", 8, 2] == pytest.approx(0.708)
    stored = stored_speeds().query("family == 'blocks' and kind == 'grouped' and width == 8 and depth == 2")
    stored = stored.set_index(["layout", "batch"]).time
    assert table.loc[("grouped", 8, 2), "time, batch 1"] == stored["1-D", 1]
    assert table.loc[("grouped", 8, 2), "time as images, batch 64"] == stored["2-D", 64]


def test_block_rows_mark_the_front(blocks):
    rows = chapter.block_rows(blocks, stored_speeds())
    assert len(rows) == 32 * len(chapter.MEASURES)
    for _, group in rows.groupby("measure"):
        best = group[group.front].sort_values("cost")
        assert best.accuracy.is_monotonic_increasing and 1 <= len(best) < 32
        for row in group[~group.front].itertuples():
            assert ((best.cost <= row.cost) & (best.accuracy >= row.accuracy)).any()


def test_blocks_explorer(blocks):
    explorer = chapter.blocks_explorer(blocks, stored_speeds())
    settings = [explorer.stops[name] for name in ("measure", "kind", "channels", "depth")]
    for measure, kind, channels, depth in itertools.product(*settings):
        rows = explorer.find({"measure": measure, "kind": kind, "channels": channels, "depth": depth})
        assert len(rows) == 1
    low, high = 0.01, 8  # the axis
    assert all(low < row["cost"] < high for rows in explorer._groups.values() for row in rows)
