"""What chapter 3.4 measures, and what its explorers show and compute."""

import numpy as np
import pandas as pd
import pytest
import torch
from scenegraph import marks

from dlopt_helpers.chapters import distillation as chapter
from dlopt_helpers.distillation import soften
from dlopt_helpers.lab.data import Data
from dlopt_helpers.lab.models import mlp

torch.set_num_threads(1)

# --- the same lessons in two frameworks ----------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """A teacher that was never trained, in place of one from the disk."""
    monkeypatch.setattr(chapter, "teacher", lambda labels: mlp(hidden=16, seed=9).eval())


def test_the_same_lessons_in_both_frameworks(quick):
    ours, twins, same = chapter.same_lessons_twice(steps=6)
    assert ours.shape == twins.shape == (6,) and len(set(ours.round(6))) == 6 and same
    np.testing.assert_allclose(ours, twins, rtol=1e-5)


@pytest.mark.parametrize("mistake", [{"alpha": 0.8}, {"temperature": 1.0}])
def test_another_lesson_in_one_framework_would_show(quick, monkeypatch, mistake):
    step = chapter.distillation_step

    def mistaken(student, teacher, optimizer, x, labels, temperature, alpha):
        told = {"temperature": temperature, "alpha": alpha} | mistake
        return step(student, teacher, optimizer, x, labels, **told)

    monkeypatch.setattr(chapter, "distillation_step", mistaken)
    ours, twins, _ = chapter.same_lessons_twice(steps=3)
    assert (abs(ours / twins - 1) > 1e-3).all()


def test_a_teacher_that_is_changed_would_show(quick, monkeypatch):
    step = chapter.distillation_step

    def mistaken(student, teacher, *rest):
        next(teacher.parameters()).data[0, 0] += 1e-6
        return step(student, teacher, *rest)

    monkeypatch.setattr(chapter, "distillation_step", mistaken)
    assert not chapter.same_lessons_twice(steps=3)[2]


# --- what the pictures hold ----------------------------------------------------------------------


def log_place(value, low, high, width=360):
    return width * np.log(value / low) / np.log(high / low)


# --- the temperature -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def said():
    """What a teacher might say about test examples, and their labels."""
    rng = np.random.default_rng(0)
    y = rng.permutation(np.arange(1000) % 10)
    return (2 * rng.normal(size=(1000, 10)) + 4 * np.eye(10)[y]).astype("float32"), y


@pytest.fixture(scope="module")
def by_temperature(said):
    z, y = said
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chapter, "teacher", lambda: None)
        patch.setattr(chapter, "logits", lambda model, x: torch.from_numpy(z))
        patch.setattr(chapter, "mnist1d", lambda: Data(None, None, np.zeros((1000, 40), "float32"), y))
        yield chapter.temperature_explorer()


def margins(z):
    *_, second, first = np.sort(z, axis=1).T
    return first - second


def test_examples_are_what_they_are_called(said):
    z, y = said
    found, margin, right = chapter.examples(z, y), margins(z), z.argmax(1) == y
    assert len(found) == len(set(found.values())) == 6
    for name, chosen in found.items():
        label, rest = int(name.removeprefix("a ").split(",")[0]), name.split(", ")[1]
        assert y[chosen] == label
        like = margin[right & (y == label)]
        if rest == "sure":
            assert right[chosen] and margin[chosen] >= np.median(like)
        elif rest == "hesitant":
            assert right[chosen] and margin[chosen] <= np.quantile(like, 0.15)
        else:
            assert rest == f"taken for {z[chosen].argmax()}" and not right[chosen]
    assert [name.split(", ")[1].split(" ")[0] for name in found] == [
        "sure", "sure", "hesitant", "hesitant", "taken", "taken"
    ]  # fmt: skip
    assert margin[~right].max() == margin[list(found.values())[-1]]


def test_rows_of_the_temperature_explorer(said, by_temperature):
    z, y = said
    for name, chosen in chapter.examples(z, y).items():
        rows = pd.DataFrame(by_temperature.find({"temperature": 4.0, "example": name}))
        assert list(rows["class"]) == list(range(10)) and set(rows.label) == {y[chosen]}
        np.testing.assert_allclose(rows.z, z[chosen], atol=6e-4)
        np.testing.assert_allclose(rows.top, z[chosen].max(), atol=6e-4)
        assert list(rows["class"][rows["rank"].argsort()]) == list((-z[chosen]).argsort())
        assert sorted(rows["rank"]) == list(range(1, 11))


@pytest.mark.parametrize("temperature", [0.5, 4.0, 50.0])
def test_the_page_softens_as_the_formula(said, by_temperature, temperature):
    z, y = said
    for name, chosen in chapter.examples(z, y).items():
        drawn = marks(by_temperature, 0, temperature=temperature, example=name)
        p = soften(z[chosen].astype(float), temperature)
        bars = sorted(drawn["rect"], key=lambda bar: bar["y"])
        np.testing.assert_allclose([bar["width"] / 360 * 1.15 for bar in bars], p, atol=1e-3)
        assert [("blue" in bar["fill"]) for bar in bars] == [c == y[chosen] for c in range(10)]
        words = [text["text"] for text in sorted(drawn["text"], key=lambda text: text["y"])]
        assert np.allclose([float(word.rstrip("%")) / 100 for word in words], p, atol=2e-3)


def entropy_and_gap(z, temperature):
    p = soften(z.astype(float), temperature)
    first, second = np.sort(p)[:-3:-1]
    return -(p * np.log(np.maximum(p, 1e-300))).sum() / np.log(10), first - second


@pytest.mark.parametrize("example", [0, 2, 5])
def test_the_page_measures_entropy_and_gap(said, by_temperature, example):
    name, chosen = list(chapter.examples(*said).items())[example]
    z = said[0][chosen]
    drawn = marks(by_temperature, 1, temperature=2.0, example=name)
    colours = ("green", "red")  # entropy, gap
    for colour, expected in zip(colours, entropy_and_gap(z, 2.0), strict=True):
        (dot,) = (dot for dot in drawn["symbol"] if colour in dot["fill"])
        assert 1 - dot["y"] / 280 == pytest.approx(expected, abs=1e-3)
        assert dot["x"] == pytest.approx(log_place(2.0, 0.5, 50))
    for i, colour in enumerate(colours):
        line = [point for point in drawn["line"] if colour in point["stroke"]]
        temperatures = [0.5 * 100 ** (point["x"] / 360) for point in line]
        assert len(line) == 100 and min(temperatures) < 0.51 and max(temperatures) > 47
        expected = [entropy_and_gap(z, t)[i] for t in temperatures]
        np.testing.assert_allclose([1 - point["y"] / 280 for point in line], expected, atol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 8.0])
def test_the_picture_of_likeness_is_the_mean_over_thirty_of_each_label(said, by_temperature, temperature):
    z, y = said
    rects = marks(by_temperature, 2, temperature=temperature)["rect"]
    rects = sorted(rects, key=lambda rect: (rect["y"], rect["x"]))
    expected = [soften(z[y == label][:30].astype(float), temperature).mean(0) for label in range(10)]
    np.testing.assert_allclose([rect["opacity"] ** 2 for rect in rects], np.ravel(expected), atol=1e-3)


# --- when it helps -------------------------------------------------------------------------------

SEEDS = (0, 1, 2)
WON = np.array([0.02, 0.03, 0.07])  # what the three students gain at their best rate


def made_up(labels, temperature, alpha, logits, shift=0.0):
    """Return students of which the slow ones count, and the fast ones would do better on the test."""
    slow = [(0.03, seed, 0.6, 0.30 + seed / 10 + WON[seed] + shift) for seed in SEEDS]
    fast = [(0.12, seed, 0.5, 0.8) for seed in SEEDS]
    rows = pd.DataFrame(slow + fast, columns=["rate", "seed", "validation", "accuracy"])
    return rows.assign(labels=labels, temperature=temperature, alpha=alpha, logits=logits)


def without(labels):
    """Return students alone of which the fast ones count."""
    fast = [(0.12, seed, 0.6, 0.25 + labels / 20_000 + seed / 10) for seed in SEEDS]
    slow = [(0.03, seed, 0.5, 0.9) for seed in SEEDS]
    rows = pd.DataFrame(slow + fast, columns=["rate", "seed", "validation", "accuracy"])
    return rows.assign(labels=labels, temperature=1.0, alpha=0.0, logits="alone")


@pytest.fixture
def lessons():
    settings = [(n, t, a, told) for n in (300, 1_000) for t in (1.0, 4.0) for a in (0.5, 0.9)
                for told in ("teacher", "shuffled")]  # fmt: skip
    students = [made_up(*setting, shift=-0.1 * (setting[-1] == "shuffled")) for setting in settings]
    return pd.concat([*students, *map(without, (300, 1_000))], ignore_index=True)


SETTING = {"labels": 1_000, "alpha": 0.9, "temperature": 4.0, "logits": "teacher"}


@pytest.mark.parametrize("logits, shift", [("teacher", 0.0), ("shuffled", -0.1)])
def test_lessons_explorer_shows_accuracy_by_rate_and_the_gain_at_the_best(lessons, logits, shift):
    rows = pd.DataFrame(chapter.lessons_explorer(lessons).find(SETTING | {"logits": logits}))
    assert list(rows.rate) == [0.03, 0.12] and set(rows.best) == {0.03}
    np.testing.assert_allclose(rows.accuracy, [0.44 + shift, 0.8], atol=1e-9)
    np.testing.assert_allclose(rows.alone, [0.9, 0.4], atol=1e-9)
    error = WON.std(ddof=1) / np.sqrt(3)
    for column, value in {"gain": 0.04, "low": 0.04 - 2 * error, "high": 0.04 + 2 * error}.items():
        np.testing.assert_allclose(rows[column], 100 * (value + shift), atol=6e-5)


def test_lessons_explorer_computes_what_no_run_holds(lessons, monkeypatch):
    asked = []

    def taught(labels, temperatures, alphas, kinds):
        asked.append((labels, temperatures, alphas, kinds))
        like = made_up(labels[0], temperatures[0], alphas[0], kinds[0], shift=0.05)
        return pd.concat([without(labels[0]).assign(accuracy=0.0), like])  # those alone are at hand already

    monkeypatch.setattr(chapter, "taught", taught)
    explorer = chapter.lessons_explorer(lessons)
    rows = pd.DataFrame(explorer.add(SETTING | {"temperature": 2.5, "logits": "shuffled"}))
    assert asked == [([1_000], [2.5], [0.9], ["shuffled"])]
    assert set(rows.gain) == {9.0} and set(rows.best) == {0.03} and list(rows.alone) == [0.9, 0.4]
    assert explorer.find(SETTING | {"temperature": 2.5, "logits": "shuffled"}) == rows.to_dict("records")


def test_lessons_explorer_draws_the_gain_in_points_and_marks_the_best_rate(lessons):
    lessons.loc[lessons.temperature == 4.0, "accuracy"] -= 0.01  # lower at the chosen temperature
    explorer = chapter.lessons_explorer(lessons)
    (large,) = (dot for dot in marks(explorer, 0, **SETTING)["symbol"] if dot["size"] == 160)
    assert large["x"] == pytest.approx(log_place(0.03, 0.0135, 0.28))
    assert large["y"] == pytest.approx(280 * (1 - 0.43 / 0.6))
    drawn = marks(explorer, 1, **SETTING)
    (large,) = (dot for dot in drawn["symbol"] if dot["size"] == 160)
    assert large["x"] == pytest.approx(log_place(4.0, 0.85, 19)) and "blue" in large["fill"]
    assert large["y"] == pytest.approx(280 * (9 - 3) / 22)
    others = {(round(dot["y"], 3), "blue" in dot["fill"]) for dot in drawn["symbol"]}
    assert others == {(round(280 * (9 - points) / 22, 3), points > 0) for points in (4, 3, -6, -7)}
    assert len(drawn["symbol"]) == 1 + 4  # of one number of labels and one alpha: two curves, two points


# --- examples without labels ---------------------------------------------------------------------


@pytest.fixture
def transfers(monkeypatch):
    monkeypatch.setattr(chapter, "teacher_accuracy", lambda labels: labels / 10_000)
    rows = []
    for labels in (1_000, 4_000):
        for unlabelled in (0, 4_000, 8_000):
            for told, height in (("teacher", 0.6), ("its classes", 0.5), ("true labels", 0.7)):
                base = height + labels / 1e5 + unlabelled / 1e6
                for seed, more in enumerate((0.0, 0.01, 0.05)):
                    rows += [
                        (labels, unlabelled, told, 0.12, seed, 0.6, base + more),
                        (labels, unlabelled, told, 0.25, seed, 0.5, 0.94),  # only on the test is it better
                    ]
    columns = ["labels", "unlabelled", "told", "rate", "seed", "validation", "accuracy"]
    return pd.DataFrame(rows, columns=columns)


def test_transfer_explorer_shows_means_and_ends_at_the_best_rate(transfers):
    explorer = chapter.transfer_explorer(transfers)
    assert explorer.setting == {"labels": 1_000, "unlabelled": 4_000}
    rows = pd.DataFrame(explorer.find({"labels": 4_000, "unlabelled": 8_000})).set_index("told")
    for told, height in (("teacher", 0.6), ("its classes", 0.5), ("true labels", 0.7)):
        base = height + 0.048
        expected = {"accuracy": base + 0.02, "low": base, "high": base + 0.05, "teachers": 0.4}
        assert rows.loc[told, list(expected)].to_dict() == pytest.approx(expected)
    assert len(rows) == 3


def test_transfer_explorer_draws_the_chosen_setting(transfers):
    explorer = chapter.transfer_explorer(transfers)
    setting = {"labels": 4_000, "unlabelled": 4_000}
    drawn = marks(explorer, 0, **setting)
    large = [dot for dot in drawn["symbol"] if dot["size"] == 160]
    colours = {"blue": 0.664, "gold": 0.564, "green": 0.764}
    accuracy = [next(a for name, a in colours.items() if name in dot["fill"]) for dot in large]
    (slope, start), rest, *_ = np.polyfit([dot["y"] for dot in large], accuracy, 1, full=True)
    assert len(large) == 3 and rest < 1e-12 and slope < 0
    shown = [(round(dot["x"], 6), round(start + slope * dot["y"], 4)) for dot in drawn["symbol"]]
    assert len(shown) == 3 + 9  # the curves are of the chosen number of labels
    assert {a for _, a in shown} == {
        round(height + 0.06 + more / 1e6, 4) for height in (0.5, 0.6, 0.7) for more in (0, 4_000, 8_000)
    }
    assert {(round(dot["x"], 6), a) for dot, a in zip(large, accuracy, strict=True)} <= set(shown)
    (rule,) = drawn["rule"]
    assert start + slope * rule["y"] == pytest.approx(0.4)
    bars = marks(explorer, 1, **setting)
    words = [text["text"] for text in sorted(bars["text"], key=lambda text: text["y"])]
    assert words == ["66.4%", "56.4%", "76.4%"]  # in the order of TELLERS
