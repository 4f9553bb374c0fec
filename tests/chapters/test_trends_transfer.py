"""What trend 3 shows is what was stored, and a stored row can be made anew."""

import numpy as np
import pandas as pd
import pytest
import torch

from dlopt_helpers.chapters import trends_transfer as module
from dlopt_helpers.chapters import trends_transfer_runs as trainings
from dlopt_helpers.lab.summary import at_best_rate

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def runs():
    return module.stored()


def _rows(**columns):
    """Two seeds at two rates, of two ways."""
    table = pd.DataFrame(columns)
    return table.assign(who=table.get("who", "student"), labels=5, more=table.get("more", 0))


def test_the_table_holds_every_setting_once(runs):
    keys = [*module.SETTING, "rate", "seed"]
    assert not runs.duplicated(keys).any()
    assert set(runs.seed) == set(trainings.SEEDS) and (runs.groupby(keys[:-1]).size() == 5).all()
    assert set(runs[runs.who == "teacher"].way) == set(trainings.TEACHERS)
    students = runs[runs.who == "student"]
    for more in trainings.UNLABELLED:
        expected = {way for body in ("untrained", "pre-trained") for way in trainings.pupils(body, more)}
        found = students[students.more == more].groupby("labels").way.unique()
        assert list(found.index) == trainings.LABELS and all(set(ways) == expected for ways in found)
    for measure in module.MEASURES:
        assert runs[measure].between(0, 1).all()


def test_stored_is_what_wide_was_given(monkeypatch, tmp_path):
    rng = np.random.default_rng(0)

    def some(who, **columns):
        rows = pd.DataFrame(
            [
                (way, labels, rate, seed)
                for way in who
                for labels in (5, 30)
                for rate in (0.1, 0.3)
                for seed in (0, 1)
            ],
            columns=["way", "labels", "rate", "seed"],
        ).assign(**columns)
        for measure, whole in {"validation": 600, "accuracy": 3_000, "old": 7_000}.items():
            rows[measure] = rng.integers(0, whole, size=len(rows)) / whole
        return rows.assign(few=rng.integers(0, 3 * rows.labels) / (3 * rows.labels))

    teachers, students = some(["a", "b"]), some(["c"], more=300).drop(columns="old")
    monkeypatch.setattr(module, "TABLE", tmp_path / "table.csv")
    module.wide(teachers, students).to_csv(module.TABLE, index=False)
    keys, measures = [*module.SETTING, "rate", "seed"], ["validation", "few", "accuracy"]
    given = pd.concat([teachers.assign(who="teacher", more=0), students.assign(who="student")])
    given, back = (rows.set_index(keys)[measures].sort_index() for rows in (given, module.stored()))
    pd.testing.assert_frame_equal(given, back)
    old = module.stored().query("who == 'teacher'").set_index(keys).old.sort_index()
    assert np.allclose(old, teachers.assign(who="teacher", more=0).set_index(keys).old.sort_index())


def test_a_row_made_anew_is_the_stored_one(runs, monkeypatch):
    monkeypatch.setattr(trainings, "TEACHERS", {"new head": trainings.TEACHERS["new head"]})
    made, _ = trainings._teachers.__wrapped__(30, 1)
    kept = runs.query("who == 'teacher' and way == 'new head' and labels == 30 and seed == 1")
    both = made.merge(kept, on="rate")
    assert len(both) == 4
    for measure in ("validation", "accuracy", "old"):
        assert np.allclose(both[f"{measure}_x"], both[f"{measure}_y"], atol=0.02)


def test_few_validation_labels_choose_for_each_seed_and_take_the_smallest_of_equals():
    rows = _rows(
        way=["a"] * 6,
        rate=[0.1, 0.3, 0.6] * 2,
        seed=[0, 0, 0, 1, 1, 1],
        few=[0.5, 0.9, 0.9, 0.8, 0.7, 0.6],
        validation=[0.9, 0.1, 0.1, 0.9, 0.1, 0.1],
        accuracy=[0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
    )
    assert module.best_by_few(rows).set_index("seed").rate.to_dict() == {0: 0.3, 1: 0.1}
    assert set(module.best(rows).rate) == {0.1}


def test_compared_is_paired_by_seed_whatever_the_order():
    rows = _rows(
        way=["a", "a", "b", "b", "b"],
        seed=[0, 1, 1, 0, 0],
        more=[0, 0, 0, 0, 300],
        accuracy=[0.5, 0.9, 0.8, 0.4, 0.0],
    )
    found = module.compared(rows, "a", "b")
    assert found.gain.round(9).to_dict() == {5: 10.0} and found.error.round(9).to_dict() == {5: 0.0}
    rows.loc[rows.more == 300, "seed"] = 1
    other = rows[(rows.way == "b") & (rows.more == 0)].assign(more=300, accuracy=[0.0, 0.1])
    found = module.compared(pd.concat([rows[rows.more == 0], other]), "b", "a", more=300, than=0)
    assert found.gain.round(9).to_dict() == {5: -65.0} and found.error.round(9).to_dict() == {5: 25.0}


def test_the_explorers_show_means_over_seeds_at_the_best_rate(runs):
    rows = module.student_rows(runs).set_index(["way", "labels", "more"])
    students = at_best_rate(runs[runs.who == "student"], ["way", "labels", "more"])
    means = students.groupby(["way", "labels", "more"]).accuracy.mean()
    assert rows.accuracy["both", 10, 300] == pytest.approx(means["both", 10, 300], abs=1e-4)
    assert rows.accuracy["labels alone", 10, 3_000] == pytest.approx(means["labels alone", 10, 0], abs=1e-4)
    assert (rows.low <= rows.accuracy).all() and (rows.accuracy <= rows.high).all()
    forgot = module.forgetting_rows(runs).set_index(["labels", "rate", "way"])
    head = runs.query("way == 'new head' and labels == 5 and rate == 0.03")
    assert forgot.old[5, 0.03, "new head"] == pytest.approx(head.old.mean(), abs=1e-4)


def test_the_explorers_have_a_row_for_each_stop(runs):
    explorer = module.students_explorer(runs)
    assert all(
        len(explorer.find({"labels": n, "more": m})) == 6
        for n in trainings.LABELS
        for m in trainings.UNLABELLED
    )
    explorer = module.forgetting_explorer(runs)
    assert explorer.stops["rate"] == [0.003, 0.01, 0.03, 0.1]
    assert all(
        len(explorer.find({"labels": n, "rate": rate})) == 3
        for n in trainings.LABELS
        for rate in explorer.stops["rate"]
    )
