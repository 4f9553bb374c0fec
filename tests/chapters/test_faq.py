"""What chapter 6 shows: the rows behind its explorers, and the odds of a draw."""

import itertools

import numpy as np
import pandas as pd
import pytest

from dlopt_helpers.chapters import faq as chapter
from dlopt_helpers.chapters import pipeline
from dlopt_helpers.recipes import SCARCE, STEPS, Situation, against, choose


@pytest.fixture(scope="module")
def rows():
    return chapter.chooser_rows()


@pytest.fixture(scope="module")
def tried():
    return chapter.tried()


# --- the chooser --------------------------------------------------------------------------------------


def test_every_situation_has_each_step_once(rows):
    settings = rows.groupby(["scarce", *chapter.QUESTIONS])
    assert len(settings) == len(SCARCE) * 2**5 and len(rows) < 4_000
    for _, of in settings:
        assert list(of.place) == list(range(len(STEPS)))
        taken = of[of.number > 0]
        assert list(taken.number) == list(range(1, len(taken) + 1))
        assert set(of.step.str.replace(r"^\d\. ", "", regex=True)) == set(STEPS)


def test_the_rows_are_those_of_the_rules(rows):
    setting = {"scarce": "time of a batch", "training": "yes", "examples": "no"}
    setting |= {"integers": "yes", "sparsity": "no", "oversized": "no"}
    situation = Situation("batch", True, False, True, False, False)
    shown = rows.loc[(rows[list(setting)] == pd.Series(setting)).all(axis=1)]
    assert list(shown.step[shown.number > 0]) == [
        f"{number}. {step.name}" for number, step in enumerate(choose(situation), 1)
    ]
    left = shown[shown.number == 0]
    assert dict(zip(left.step, left.text, strict=True)) == against(situation)
    assert (left[["smaller", "faster", "points", "judged"]] == 0).all(axis=None)


def test_each_control_changes_the_drawing_between_its_ends():
    explorer = chapter.chooser_explorer()
    for name, stops in explorer.stops.items():
        ends = [explorer.find(explorer.setting | {name: stop}) for stop in (stops[0], stops[-1])]
        drawn = [[{k: v for k, v in row.items() if k not in explorer.keys} for row in end] for end in ends]
        assert str(drawn[0]) != str(drawn[1]), name


def means(group, recipe, number):
    found = pipeline.stored_runs().query("group == @group and recipe == @recipe and number == @number")
    return found[["accuracy", "bytes", "zipped", "faster 1", "faster 64"]].mean()


def test_gains_are_those_of_the_stored_stages():
    before, after = means("bar", "strict", 2), means("bar", "strict", 3)
    worth = chapter.gain("4 bits", Situation("file"))
    assert worth["smaller"] == pytest.approx(before.bytes / after.bytes)
    assert worth["points"] == pytest.approx(100 * (after.accuracy - before.accuracy))
    before, after = means("pairs", "prune weights", 0), means("pairs", "prune weights", 1)
    worth = chapter.gain("weights to zero", Situation("file", True, False, True, True, False))
    assert worth["smaller"] == pytest.approx(before.zipped / after.zipped) and worth["smaller"] > 3
    dense, cut = means("data", "dense, strict", 1), means("order", "prune, quantize", 1)
    for scarce, batch in (("one answer", 1), ("batch", 64)):
        worth = chapter.gain("fewer units", Situation(scarce))
        assert worth["faster"] == pytest.approx(cut[f"faster {batch}"] / dense[f"faster {batch}"])
    assert worth["points"] == pytest.approx(100 * (cut.accuracy - dense.accuracy)) and worth["points"] < 0


def test_points_are_left_out_where_the_examples_differ():
    with_them, without = (chapter.gain("fewer units", Situation("file", examples=e)) for e in (True, False))
    assert with_them["points"] is not None and without["points"] is None
    assert with_them["smaller"] == without["smaller"]
    assert chapter.gain("shared numbers", Situation("file", training=False, examples=False))["points"] < 0


def test_8_bits_and_steps_come_from_their_tables():
    small, large = (chapter.gain("8 bits", Situation("batch", False, oversized=big)) for big in (False, True))
    assert 3.5 < small["smaller"] < 4 and 3.5 < large["smaller"] < 4
    assert small["faster"] > 4 and 1.5 < large["faster"] < 2.5 and abs(large["points"]) < 0.3
    assert 2 < chapter.gain("cheaper steps", Situation("training"))["faster"] < 4
    assert chapter.gain("measure", Situation("file")) == chapter.NOTHING


# --- why is it not faster? ----------------------------------------------------------------------------


def test_speed_rows():
    table = chapter.speed_rows()
    for network, ways in (("mlp512", 7), ("mlp1024", 7), ("cnn64", 5)):
        assert len(table[table.network == network]) == 3 * ways
    found = table.set_index(["network", "batch", "way"])
    assert found.smaller["mlp512", 1, "90 % zeros, masked"] == 1
    assert (
        found.smaller["cnn64", 64, "8 bits, dynamic"] > 3 > 1 > found.faster["cnn64", 64, "8 bits, dynamic"]
    )
    assert not found.index.has_duplicates


@pytest.mark.parametrize("make", [chapter.speed_explorer, chapter.thumb_explorer])
def test_explorers_have_rows_for_every_setting(make):
    explorer = make()
    for values in itertools.product(*(explorer.stops[key] for key in explorer.keys)):
        assert explorer.find(dict(zip(explorer.keys, values, strict=True)))
    assert len(explorer.runs) < 4_000 and "svg" not in explorer.caption


# --- rules of thumb -----------------------------------------------------------------------------------


def test_tried(tried):
    assert len(tried) == 154 and tried.good.sum() == 89 and tried.recipe.is_unique
    one = tried.set_index("recipe").loc[120]
    assert one.stages == ["distil", "share_weights", "prune_neurons", "quantize"]
    assert one.lasts == ["distil", "prune_neurons", "quantize"] and one.network == "cnn" and one.good
    assert one.kB == 3.203 and one.form == "int4 weights"
    assert set(tried.network) == {"mlp", "cnn"}
    assert tried.set_index("recipe").network[63] == "cnn"  # its first student was an MLP


def test_thumb_rows(tried):
    table = chapter.thumb_rows()
    assert len(table) == len(chapter.RULES) * len(tried)
    follows = table.groupby("rule").follows.sum()
    assert follows["a new student somewhere"] == tried.stages.map(lambda s: "distil" in s).sum()
    assert follows["the last stage is few bits"] == tried.form.isin(["int8", "int4 weights"]).sum()
    assert all(0 < share < len(tried) for share in follows)


def test_best_of_is_the_median_of_many_draws(tried):
    rng = np.random.default_rng(0)
    kB = tried.kB.where(tried.good, np.inf).to_numpy()
    for tries in (3, 10):
        drawn = [rng.choice(kB, tries, replace=False).min() for _ in range(4_000)]
        low, high = np.quantile(drawn, [0.47, 0.53], method="nearest")
        assert low <= chapter.best_of(tried, tries) <= high


def test_best_of_small_tables():
    table = pd.DataFrame({"kB": [5.0, 1.0, 3.0, 2.0], "good": [True, False, True, True]})
    assert chapter.best_of(table, 4) == 2 and chapter.best_of(table, 3) == 2
    # Of pairs, half hold the 2; of single draws, half are no better than the third of four.
    assert chapter.best_of(table, 2) == 2 and chapter.best_of(table, 1) == 3
    assert chapter.best_of(table.assign(good=False), 2) == np.inf
    for tries in (0, 5, 1.5):
        with pytest.raises(ValueError, match=r"tries=.* whole number in \[1, 4\]"):
            chapter.best_of(table, tries)
