"""What chapter 4.2 stores, its tables, and what its explorers draw."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scenegraph import marks

from dlopt_helpers.chapters import pipeline as chapter
from dlopt_helpers.chapters.pipeline_runs import FEWER_SEEDS, RECIPES
from dlopt_helpers.chapters.pipeline_search import LONGEST, corners
from dlopt_helpers.chapters.pipeline_tasks import SEEDS
from dlopt_helpers.page.explorer import BLUE, GOLD, INK, MUTED, RED

# --- what is stored -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored():
    return chapter.stored_runs()


def test_stored_runs_are_those_of_the_recipes_and_of_the_corners(stored):
    searched = stored[stored.group == "search"]
    expected = [
        (group, recipe, seed, number, settings)
        for group, recipes in RECIPES.items()
        for recipe, (_, _, stages) in recipes.items()
        for seed in FEWER_SEEDS.get(group, SEEDS)
        for number, settings in enumerate(["start()", *map(str, stages)])
    ] + [
        ("corners", corner, seed, number, settings)
        for corner, trial in corners(searched).items()
        for seed in SEEDS
        for number, settings in enumerate(searched[searched.recipe == str(trial)].settings)
    ]
    found = stored[stored.group != "search"]
    columns = [found[name] for name in ("group", "recipe", "seed", "number", "settings")]
    assert list(zip(*columns, strict=True)) == expected
    assert (stored.stage == stored.settings.str.partition("(")[0]).all()


def test_stored_search(stored):
    found = stored[stored.group == "search"]
    assert found.recipe.nunique() >= 30 and (found.seed == 0).all()
    for recipe, rows in found.groupby("recipe", sort=False):
        assert recipe.isdecimal() and 2 <= len(rows) <= 1 + LONGEST
        assert list(rows.number) == list(range(len(rows)))
        assert (rows.stage == "start").tolist() == [True] + [False] * (len(rows) - 1)


def test_stored_numbers_make_sense(stored):
    assert "key" not in stored  # a hash of code that will change
    assert stored.notna().all().all() and (stored.raw == 4 * stored.parameters).all()
    assert stored.accuracy.between(0.05, 1).all() and (stored.nll > 0).all()
    assert (stored.zipped < 1.01 * stored.bytes).all()
    floats = stored[stored.form == "float"]
    assert floats.bytes.between(floats.raw, floats.raw + 5_000).all()
    few = stored[stored.form.isin(["int4 weights", "shared weights"]) & (stored.parameters > 20_000)]
    assert few.bytes.between(few.raw / 16, few.raw / 3.5).all()
    assert (stored[["latency 1", "latency 64", "memory"]] > 0).all(axis=None)
    starts = stored[stored.number == 0]
    assert starts[["faster 1", "faster 64"]].stack().between(0.6, 1.6).all()


def test_stored_runs_that_begin_alike_are_alike(stored):
    """The same stages on the same task gave the same network, wherever they stand."""
    runs = stored[stored.group.isin(["bar", "order"]) & (stored.recipe != "transfer")]
    history = runs.groupby(chapter.RUN, sort=False).settings.transform(lambda of: [*itertools.accumulate(of)])
    of = runs.groupby([runs.seed, history])
    assert (of.size() > 1).any()
    assert (of[["accuracy", "bytes", "latency 64"]].nunique() == 1).all(axis=None)


def test_each_run_of_the_bar_is_above_its_own_start(stored):
    runs = stored[stored.group == "bar"].set_index(["recipe", "seed", "number"]).sort_index()
    start, end = runs.xs(0, level="number"), runs.xs(3, level="number")
    gain = end.accuracy - start.accuracy
    assert gain["strict"].between(0.03, 0.07).all() and gain["transfer"].between(0.06, 0.1).all()
    assert (end.nll < start.nll - 0.2).all()
    assert start.bytes.between(4.40e6, 4.42e6).all() and end.bytes.between(3_500, 3_800).all()
    assert (start.bytes / end.bytes > 1_150).all()
    assert (end["faster 64"] > 35).all() and end["faster 1"].between(4, 16).all()
    assert end.parameters.unique().tolist() == [4_810] and set(end.form) == {"int4 weights"}


def test_the_hard_bar(stored):
    last = chapter.ends(stored[stored.group == "hard"]).set_index(["recipe", "seed"])
    start = stored[(stored.group == "hard") & (stored.number == 0)].set_index(["recipe", "seed"])
    gain = last.accuracy - start.accuracy
    assert (gain["strict"] > -0.005).all() and (gain["labels"] < -0.015).all()
    assert last.smaller.between(33, 38).all() and (last["faster 64"] > 2).all()


# --- tables ---------------------------------------------------------------------------------------


def run_of(recipe, *stages, group="search", seed=0):
    """Return rows of a run: for each stage its settings, accuracy, bytes and speed."""
    rows = [{"settings": s, "accuracy": a, "bytes": b, "faster 64": f} for s, a, b, f in stages]
    same = {"group": group, "recipe": recipe, "seed": seed, "number": range(len(rows))}
    rows = pd.DataFrame(rows).assign(**same)
    named = rows.assign(stage=rows.settings.str.partition("(")[0], nll=1 - rows.accuracy)
    return named.assign(zipped=rows.bytes / 2, **{"faster 1": rows["faster 64"] / 10})


START = ("start()", 0.76, 4_400_000, 1.0)


def test_ends_are_the_last_rows_of_runs():
    rows = pd.concat(
        [
            run_of("a", START, ("quantize(bits=4)", 0.7, 550_000, 1.0), seed=1),
            run_of("a", START, seed=2),
            run_of("b", ("start()", 0.9, 1_000, 1.0), ("quantize(bits=8)", 0.8, 250, 2.0)),
        ],
        ignore_index=True,
    )
    found = chapter.ends(rows)
    assert list(found.recipe) == ["a", "a", "b"] and list(found.accuracy) == [0.7, 0.76, 0.8]
    assert list(found.smaller) == [8, 1, 4]


def test_table():
    def one(seed, accuracy, size):
        steps = f"prune_neurons(keep=[48, {size}], steps=1, rate=0.1)"
        return run_of("r", START, (steps, accuracy, 4_000 * size, 120.4), group="bar", seed=seed)

    found = chapter.table(pd.concat([one(0, 0.8, 9), one(1, 0.83, 9)], ignore_index=True))
    assert list(found.index) == [("r", "start"), ("r", "prune neurons 48, 9")]
    assert list(found.iloc[1]) == ["81.5\xa0(80.0–83.0)", "0.18", "36,000", "122", "12", "120"]
    assert list(found.iloc[0])[:4] == ["76.0\xa0(76.0–76.0)", "0.24", "4,400,000", "1"]
    rows = pd.concat([one(0, 0.8, 9), one(1, 0.83, 10)], ignore_index=True)
    assert list(chapter.table(rows, times=False)) == list(found)[:4]
    assert list(chapter.table(rows).index.get_level_values("what")).count("start") == 1


def test_a_stage_in_words():
    words = {
        "start()": "start",
        "distil(network='mlp', width=100, steps=8000, rate=0.005)": "distil mlp 100",
        "prune_neurons(keep=[48, 48], steps=8000, rate=0.005)": "prune neurons 48, 48",
        "prune_neurons(keep=0.5, steps=0, rate=0.003)": "prune neurons 0.5",
        "share_weights(bits=4)": "share weights 4",
        "export(form='int4 weights')": "export int4 weights",
    }
    assert {settings: chapter.in_words(settings) for settings in words} == words


def test_by_examples():
    names = ["dense, labels", "dense, true labels", "small, labels", "small, true labels"]
    last = pd.DataFrame({"recipe": names * 2, "accuracy": [0.7, 0.9, 0.5, 0.8, 0.71, 0.91, 0.51, 0.81]})
    found = chapter.by_examples(last)
    assert list(found) == ["dense", "small"] and list(found.index) == ["labels", "true labels"]
    assert found.to_numpy().tolist() == [[70.5, 50.5], [90.5, 80.5]]


# --- the front ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tried():
    """Five pipelines: two equally accurate of different size, two that are the same twice, a poor one."""
    few, half = "quantize(bits=4, steps=1, rate=0.1)", "prune_neurons(keep=0.5, steps=1, rate=0.1)"
    runs = [
        run_of("7", START, (half, 0.9, 1_500_000, 3.0), (few, 0.88, 200_000, 3.5)),
        run_of("8", START, (few, 0.9, 560_000, 1.0)),
        run_of("9", START, (half, 0.9, 1_500_000, 3.0)),
        run_of("10", START, ("share_weights(bits=2)", 0.4, 280_000, 1.0)),
        run_of("11", START, (half, 0.9, 1_500_000, 3.0), (few, 0.88, 200_000, 3.5)),
    ]
    return pd.concat([run_of("strict", START, group="bar"), *runs], ignore_index=True)


def test_pipelines(tried):
    found = chapter.pipelines(tried)
    assert list(found.pipeline) == [7, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 11]
    last = found[found.end].set_index("pipeline")
    assert list(last.index) == [7, 8, 9, 10, 11] and list(last.kB) == [200, 560, 1_500, 280, 200]
    assert list(last.final) == [0.88, 0.9, 0.9, 0.4, 0.88] and list(last.faster) == [3.5, 1, 3, 1, 3.5]
    assert last.kinds[7] == "prune neurons, quantize" and last.kinds[10] == "share weights"
    assert list(last.place) == [2, 0, 1, 4, 3]  # of equals the smallest, of these the first
    assert last.front[8] and last.front[7] and not last.front[9] and not last.front[10]
    same = found.groupby("pipeline")[["final", "kB", "faster", "kinds", "place", "front"]]
    assert (same.nunique() == 1).all(axis=None)
    line = found.iloc[1]
    assert [line.what, line.reached, line["size"], line.times] == ["prune neurons 0.5", "90.0%", "1,500", "3"]


def shown(explorer, **setting):
    """Return the blue pipelines' places on the chart, the red one's, and the lines of text beside it."""
    points, texts = marks(explorer, 0, **setting)["symbol"], marks(explorer, 1).get("text", [])
    lines = {}
    for item in sorted(texts, key=lambda item: (item["y"], item["x"] + item.get("dx", 0))):
        lines.setdefault(item["y"], []).append(item["text"])
    at = {color: {(p["x"], p["y"]) for p in points if p["fill"] == color} for color in (BLUE, RED, MUTED)}
    return at, list(lines.values())


HEADINGS = ["stage", "accuracy", "kB", "faster"]


@pytest.mark.parametrize(
    "setting, blue, lines",
    [
        (
            {"budget": 600, "speed": 0.5, "technique": "any"},
            3,  # two of them at one place
            [["start", "76.0%", "4,400", "1"], ["quantize 4", "90.0%", "560", "1"]],
        ),
        (
            {"budget": 200, "speed": 3.5, "technique": "any"},
            1,
            [
                ["start", "76.0%", "4,400", "1"],
                ["prune neurons 0.5", "90.0%", "1,500", "3"],
                ["quantize 4", "88.0%", "200", "3.5"],
            ],
        ),
        (
            {"budget": 5_000, "speed": 0.5, "technique": "share weights"},
            1,
            [["start", "76.0%", "4,400", "1"], ["share weights 2", "40.0%", "280", "1"]],
        ),
        (
            {"budget": 5_000, "speed": 2, "technique": "any"},
            2,
            [["start", "76.0%", "4,400", "1"], ["prune neurons 0.5", "90.0%", "1,500", "3"]],
        ),
    ],
)
def test_the_best_within_the_budget_is_shown_stage_by_stage(tried, setting, blue, lines):
    points, texts = shown(chapter.front_explorer(tried), **setting)
    assert len(points[BLUE]) == blue and len(points[RED]) == 1 and points[RED] <= points[BLUE]
    assert len(points[BLUE] | points[MUTED]) == 4
    assert texts == [HEADINGS, *lines]


@pytest.mark.parametrize(
    "setting",
    [
        {"budget": 1, "speed": 0.5, "technique": "any"},
        {"budget": 5_000, "speed": 150, "technique": "any"},
        {"budget": 5_000, "speed": 0.5, "technique": "factorise"},
    ],
)
def test_a_budget_that_nothing_fits_says_so(tried, setting):
    points, texts = shown(chapter.front_explorer(tried), **setting)
    assert not points[BLUE] and not points[RED] and len(points[MUTED]) == 4
    assert texts == [[["No pipeline fits.", "Allow more kB, less speed or any technique."]]]


def drawn(explorer, **setting):
    explorer.setting.update(setting)
    return [
        sorted((name, *(str(item.get(key)) for key in ("x", "y", "width", "fill", "opacity", "text")))
        for name, items in marks(explorer, panel).items() for item in items)
        for panel in (0, 1)
    ]  # fmt: skip


@pytest.mark.parametrize("name, value", [("budget", 10), ("speed", 1.2), ("technique", "factorise")])
def test_each_control_of_the_front_moves_it_and_comes_back(stored, name, value):
    explorer = chapter.front_explorer(stored)
    before = explorer.setting | {"budget": 5_000, "speed": 0.5}
    first, moved = drawn(explorer, **before), drawn(explorer, **{name: value})
    again = drawn(explorer, **before)
    assert first == again and first[0] != moved[0]


def test_the_front_explorer_shows_all_that_was_searched(stored):
    explorer = chapter.front_explorer(stored)
    last = chapter.pipelines(stored).query("end")
    points, _ = shown(explorer, budget=5_000, speed=explorer.stops["speed"][0], technique="any")
    assert len(points[BLUE]) == len(last.drop_duplicates(["kB", "final"])) and not points[MUTED]
    assert all(0 <= x <= 360 and 0 <= y <= 280 for x, y in points[BLUE] | points[RED])  # within the axes
    assert last.what.str.len().max() <= 20  # longer words would run into the numbers on a phone
    kinds = {kind for kinds in last.kinds for kind in kinds.split(", ")}
    assert kinds == set(explorer.stops["technique"]) - {"any"}
    at_first = shown(chapter.front_explorer(stored))[1]
    assert at_first[0] == HEADINGS and len(at_first) >= 3


def test_the_line_is_the_front(stored):
    last = chapter.pipelines(stored).query("end")
    for row in last.itertuples():
        better = (last.kB <= row.kB) & (last.final >= row.final) & (last.pipeline != row.pipeline)
        strictly = better & ((last.kB < row.kB) | (last.final > row.final))
        assert row.front == (not strictly.any())
    line = marks(chapter.front_explorer(stored), 0)["line"]
    assert sorted((p["x"], -p["y"]) for p in line) == [(p["x"], -p["y"]) for p in line]
    assert len(line) == last.front.sum()


# --- two techniques -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two():
    """The techniques alone make a file 2, 3, 4, 5 and 6 times smaller, and each two multiply, nearly."""
    alone = {name: 2 + number for number, name in enumerate(chapter.ONE_BY_ONE)}
    rows = []
    for seed in (0, 1, 2):
        begin = ("start()", 0.94 + seed / 100, 8_000, 1.0)
        for one, factor in alone.items():
            after = (f"{one}()", 0.9 + seed / 100, 8_000 / factor, 1.0)
            rows.append(run_of(one, begin, after, group="pairs", seed=seed))
            for other in alone.keys() - {one}:
                size = 8_000 / factor / alone[other] * (1 + seed / 10)
                both = (f"{other}()", 0.75 + alone[other] / 100 + factor / 1_000, size, 1.0)
                rows.append(run_of(f"{one}, {other}", begin, after, both, group="pairs", seed=seed))
    return pd.concat([run_of("7", START), *rows], ignore_index=True)


def test_pairs(two):
    found = chapter.pairs(two).set_index(["first", "second"])
    assert len(found) == 5 + 5 * 4
    assert found.smaller["factorise", ""] == pytest.approx(4) == found["smaller product"]["factorise", ""]
    row = found.loc["prune neurons", "share weights"]
    assert row["smaller product"] == pytest.approx(12) == row["zipped product"]
    assert row.smaller == pytest.approx(12 * np.mean([1, 1 / 1.1, 1 / 1.2])) == pytest.approx(row.zipped)
    assert row.accuracy == pytest.approx(0.75 + 0.06 + 0.002)
    assert found.accuracy["share weights", "prune neurons"] == pytest.approx(0.75 + 0.02 + 0.006)


def test_pairs_count_the_archive_by_itself(stored):
    found = chapter.pairs(stored).set_index(["first", "second"])
    zeros = found.loc["prune weights", ""]
    assert zeros.smaller == pytest.approx(1, abs=0.01) and zeros.zipped > 3
    row = found.loc["prune weights", "quantize"]
    assert row["zipped product"] == pytest.approx(zeros.zipped * found.zipped["quantize", ""])


def test_pair_rows(two):
    rows = chapter.pair_rows(two)
    assert (
        len(rows) == 5 * 2 * 4 * 2
        and rows.notna().all(axis=None)
        and not (rows.technique == rows.other).any()
    )
    first = rows.query("technique == 'prune neurons' and other == 'share weights' and measure == 'file'")
    first = first.set_index("order")
    assert list(first.index) == ["it comes first", "it comes second"]
    assert list(first["product"]) == [12, 12]
    assert first.accuracy["it comes first"] == pytest.approx(0.812)
    assert first.accuracy["it comes second"] == pytest.approx(0.776)


COLORS = {"it comes first": BLUE, "it comes second": GOLD}


@pytest.mark.parametrize("technique", chapter.ONE_BY_ONE)
def test_pairs_explorer(two, technique):
    explorer = chapter.pairs_explorer(two)
    size, hits = (marks(explorer, panel, technique=technique, measure="file") for panel in (0, 1))
    rows = chapter.pair_rows(two).query("technique == @technique and measure == 'file'")
    width = size["text"][0]["x"]
    for order, of in rows.groupby("order"):
        bars = [bar["width"] for bar in size["rect"] if bar["fill"] == COLORS[order]]
        assert sorted(bars) == pytest.approx(sorted(across(of.factor, width)))
        points = [point["x"] for point in hits["symbol"] if point["fill"] == COLORS[order]]
        assert sorted(points) == pytest.approx(sorted((of.accuracy - 0.7) / 0.3 * width_of(hits)), rel=1e-3)
    products = [tick["x"] + tick["width"] / 2 for tick in size["rect"] if tick["fill"] == INK]
    assert sorted(products) == pytest.approx(sorted(across(rows["product"], width)))
    texts = sorted(float(text["text"]) for text in size["text"])
    assert texts == pytest.approx(sorted(rows.factor), rel=0.06)


def across(factor, width):
    return width * np.log(factor) / np.log(100)


def width_of(panel):
    """Return the width of the chart of accuracies, from its rule at 95 %."""
    (rule,) = panel["rule"]
    return rule["x"] / ((0.95 - 0.7) / 0.3)


@pytest.mark.parametrize(
    "name, value, panels", [("technique", "factorise", [0, 1]), ("measure", "zipped file", [0])]
)
def test_each_control_of_the_pairs_moves_them_and_comes_back(stored, name, value, panels):
    explorer = chapter.pairs_explorer(stored)
    before = dict(explorer.setting)
    first, moved, again = drawn(explorer), drawn(explorer, **{name: value}), drawn(explorer, **before)
    assert first == again and all(first[panel] != moved[panel] for panel in panels)


def test_stored_pairs_lie_within_the_axes(stored):
    rows = chapter.pair_rows(stored)
    assert rows[["factor", "product"]].stack().between(0.999, 75).all()  # beyond it stand the numbers
    assert rows.accuracy.between(0.7, 1).all()
