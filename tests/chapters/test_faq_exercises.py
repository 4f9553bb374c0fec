"""The checks of chapter 6: solutions written another way pass, and wrong ones get a hint."""

import math

import numpy as np
import pytest

from dlopt_helpers.chapters import faq_exercises as exercises
from dlopt_helpers.recipes import lasting

BITS = ("quantize", "share_weights")


def lasts_from_behind(stages):
    marks, student, trained = [], False, False
    for stage in reversed(stages):
        marks.insert(0, not student and not (stage in BITS and trained))
        student, trained = student or stage == "distil", True
    return np.array(marks)


def luck_by_products(n, good, tries):
    return 1 - math.prod(1 - good / (n - drawn) for drawn in range(tries))


CHECKS = [
    (exercises.check_lasting, lasts_from_behind),
    (exercises.check_merit, lambda dense_old, dense_new, small_old, small_new: [
        (dense_new - dense_old) * 100, (small_new - dense_new) * 100]),
    (exercises.check_luck, luck_by_products),
]  # fmt: skip
FLAWS = [
    (exercises.check_lasting, lambda stages: [1] * len(stages), "Not yet."),
    (exercises.check_lasting, lambda stages: None, "is a `return` missing"),
    (exercises.check_lasting, lambda stages: lasting(stages), "Not yet."),
    (exercises.check_merit, lambda dense_old, dense_new, small_old, small_new: 0.0, "Not yet."),
    (exercises.check_luck, lambda n, good, tries: 0.5, "Not yet."),
]


@pytest.mark.parametrize(("check", "answer"), CHECKS)
def test_another_way_to_the_solution_passes(check, answer):
    for _ in range(5):
        assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(("check", "answer", "hint"), FLAWS)
def test_an_answer_that_fails_gets_a_hint(check, answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False and hint in line


def test_the_solution_marks_what_lasts():
    for seed in range(50):
        stages = exercises._pipeline(np.random.default_rng(seed))["stages"]
        marks = exercises.check_lasting.solution(stages)
        assert [s for s, mark in zip(stages, marks, strict=True) if mark] == lasting(stages)
        assert 0 in marks and 1 in marks


def test_the_accuracies_are_possible():
    for seed in range(50):
        draw = exercises._accuracies(np.random.default_rng(seed))
        assert all(0 < value < 1 for value in draw.values()) and draw["small_new"] < draw["dense_new"]
