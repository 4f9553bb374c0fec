"""What chapter 2 shows, from rows whose answers are known and from the stored runs."""

import itertools

import numpy as np
import pandas as pd
import pytest

from dlopt_helpers.chapters import levers as chapter
from dlopt_helpers.chapters.levers_runs import LEVERS

FACTORS = {"structure": 200.0, "pruning": 3.0, "quantization": 4.0}


@pytest.fixture(scope="module")
def rows():
    """Two seeds of a world in which bytes multiply, accuracies add, and teachers cost as much as the base."""
    found = []
    for seed, on in itertools.product([0, 1], itertools.product([0, 1], repeat=5)):
        row = dict(zip(LEVERS, on, strict=True))
        size = np.prod([f for lever, f in FACTORS.items() if row[lever]])
        found.append(
            row
            | {"seed": seed, "nll": 1.0, "parameters": 7, "faster 1": 1 + row["pruning"], "time": 1.0}
            | {"accuracy": 0.5 + 0.1 * row["structure"] + 0.04 * row["distillation"] + 0.01 * seed}
            | {"bytes": (1 + seed) * 1e6 / size, "faster 64": size}
            | {"macs": 800 / (1 + row["algorithm"]), "teachers": 800 * row["distillation"]}
        )
    return pd.DataFrame(found)


def test_a_game_has_an_axis_for_each_lever(rows):
    v = chapter.game(rows, "smaller file")
    assert v.shape == (2,) * 5 and v[0, 0, 0, 0, 0] == pytest.approx(1)
    assert v[0, 1, 0, 0, 0] == pytest.approx(200) and v[1, 0, 1, 1, 1] == pytest.approx(12)


def test_a_shuffled_table_is_the_same_game(rows):
    mixed = rows.sample(frac=1, random_state=0)
    for measure in chapter.MEASURES:
        np.testing.assert_allclose(chapter.game(mixed, measure), chapter.game(rows, measure))


def test_games_and_together_are_by_seed(rows):
    assert chapter.games(rows, "accuracy").shape == (2, 2, 2, 2, 2, 2)
    np.testing.assert_allclose(chapter.together(["structure"], rows, "accuracy"), [0.6, 0.61])
    np.testing.assert_allclose(chapter.together(["pruning", "quantization"], rows, "smaller file"), 12)


def test_teachers_count_where_they_are_said_to(rows):
    taught = chapter.together(["distillation"], rows, "cheaper, with teachers")
    np.testing.assert_allclose(taught, 0.5)
    np.testing.assert_allclose(chapter.together(["distillation"], rows, "cheaper training"), 1)
    both = chapter.together(["algorithm", "distillation"], rows, "cheaper, with teachers")
    np.testing.assert_allclose(both, 800 / 1200)


def test_alone_table(rows):
    table = chapter.alone_table(rows)
    assert list(table.index) == [*LEVERS, "all five"]
    assert list(table["accuracy, points"]) == ["+0.0", "+10.0", "+4.0", "+0.0", "+0.0", "+14.0"]
    assert list(table["smaller file"]) == ["× 1.00", "× 200", "× 1.00", "× 3.00", "× 4.00", "× 2,400"]


def test_parts_do_not_depend_on_the_order_where_nothing_interacts(rows):
    for measure in ("accuracy", "smaller file"):
        v, multiply = chapter.game(rows, measure), chapter.MEASURES[measure]
        first, mean, last = (chapter.parts(v, multiply, counted) for counted in chapter.COUNTED)
        np.testing.assert_allclose(first, last, atol=1e-9)
        np.testing.assert_allclose(first, mean, atol=1e-9)
        for counted in chapter.COUNTED:
            np.testing.assert_allclose(chapter.pair_map(v, multiply, counted), 0, atol=1e-9)


def test_first_and_last_are_the_others_off_and_on():
    v = np.ones((2,) * 5)
    v[1, 0, 0, 0, 0], v[1, 1, 1, 1, 1], v[0, 1, 1, 1, 1] = 2, 8, 4
    v[1, 1, 0, 0, 0] = 3
    first, _, last = (chapter.parts(v, True, counted) for counted in chapter.COUNTED)
    assert np.exp(first[0]) == pytest.approx(2) and np.exp(last[0]) == pytest.approx(2)
    assert np.exp(first[1]) == pytest.approx(1) and np.exp(last[1]) == pytest.approx(8)
    pairs = chapter.pair_map(v, True, chapter.COUNTED[0])
    assert np.exp(pairs[0, 1]) == pytest.approx(1.5) and (pairs == pairs.T).all()


def test_in_words():
    said = [chapter.in_words(value, "smaller file") for value in (1294.3, 14.71, 3.944, 0.528)]
    assert said == ["× 1,294", "× 15", "× 3.94", "× 0.53"]
    assert [chapter.in_words(v, "accuracy") for v in (0.041, -0.034)] == ["+4.1", "−3.4"]


def test_switches_explorer(rows):
    explorer = chapter.switches_explorer(rows)
    for values in itertools.product(chapter.SWITCH, repeat=5):
        found = explorer.find(dict(zip(LEVERS, values, strict=True)))
        assert [row["measure"] for row in found] == list(chapter.MEASURES)
    small = explorer.find(dict.fromkeys(LEVERS, "off") | {"structure": "on", "quantization": "on"})
    assert [row["value"] for row in small] == [0.605, 800, 1, 800, 1, 1]
    off = explorer.find(dict.fromkeys(LEVERS, "off"))
    assert [row["value"] for row in off] == [0.505, 1, 1, 1, 1, 1]
    assert off[0]["text"] == "50.5%" and len(explorer.to_html()) < 400_000


def test_parts_explorer(rows):
    explorer = chapter.parts_explorer(rows)
    found = explorer.find({"measure": "smaller file", "counted": chapter.COUNTED[1]})
    assert len(found) == 25 and max(abs(row["size"]) for row in found) <= 1
    bars = {row["lever"]: row["text"] for row in found if row["lever"] == row["other"]}
    assert bars["structure"] == "× 200" and bars["algorithm"] == "× 1.00"
    assert len(explorer.to_html()) < 400_000


# --- what is stored ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    return chapter.stored_runs()


def test_each_combination_and_seed_is_stored_once(stored):
    assert len(stored) == 96 and not stored.duplicated([*LEVERS, "seed"]).any()
    assert stored.notna().all(axis=None) and chapter.STORED.stat().st_size < 60_000
    assert stored.accuracy.between(0.1, 1).all() and (stored[["faster 1", "faster 64", "time"]] > 0).all(
        axis=None
    )
    assert len(stored[["date", "device"]].drop_duplicates()) == 1


def test_the_explorers_show_what_is_stored(stored):
    for explorer in (chapter.switches_explorer(stored), chapter.parts_explorer(stored)):
        assert explorer.find(explorer.setting)
    values = chapter.switch_rows(stored).query("measure != 'accuracy'").value
    assert values.between(0.1, 3_000).all()  # the ends of the axis
