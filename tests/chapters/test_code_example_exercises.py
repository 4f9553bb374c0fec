"""The checks of chapter 4.1: solutions written another way pass, and each mistake earns its own hint."""

import subprocess
import sys

import numpy as np
import pytest

from dlopt_helpers.adam import Adam
from dlopt_helpers.chapters import code_example_exercises as exercises
from dlopt_helpers.code_example import Alternating
from dlopt_helpers.sgd import SGD


def loss_by_loop(p, y):
    return sum(-np.log(p[i, 0] if y[i] else 1 - p[i, 0]) for i in range(len(y))) / len(y)


def loss_by_flattening(p, y):
    p = p.squeeze()
    return -np.mean(np.where(y == 1, np.log(p), np.log1p(-p)))


def clocks_by_the_rule(steps, every, beta1):
    rule, w = Alternating(SGD(0.1), Adam(0.1, beta1=beta1), every), 1.0
    state = rule.init(w)
    for _ in range(steps):
        w, state = rule.step(w, 1.0, state)
    adam = state["second"]["t"]
    return [steps - adam, adam, 1 - beta1**adam]


def clocks_by_counting(steps, every, beta1):
    adam = len([t for t in range(steps) if (t // every) % 2 == 1])
    return np.array(steps - adam), np.int64(adam), -np.expm1(adam * np.log(beta1))


def score_by_shares(right, ones, n):
    c = 1 - ones / n
    return (right / n - c) / (c * (1 - c) / n) ** 0.5


CHECKS = [
    (exercises.check_safe_loss, [loss_by_loop, loss_by_flattening]),
    (exercises.check_turns, [clocks_by_the_rule, clocks_by_counting]),
    (exercises.check_score, [score_by_shares]),
]
FLAWS = [
    (exercises.check_safe_loss, lambda p, y: 0.0, "examples, of which"),
    (exercises.check_safe_loss, lambda p, y: np.nan, "examples, of which"),
    (exercises.check_safe_loss, lambda p, y: np.log(p), "Return one number"),
    (exercises.check_safe_loss, lambda p, y: "ab", "Return one number"),
    (exercises.check_safe_loss, lambda p, y: None, "is a `return` missing"),
    (exercises.check_safe_loss, lambda p, y: np.log("a"), "The function stopped with"),
    (exercises.check_turns, lambda steps, every, beta1: (0, 0, 0), "Not yet. For steps="),
    (exercises.check_turns, lambda steps, every, beta1: steps, "Not yet."),
    (exercises.check_score, lambda right, ones, n: right / n, "Not yet. For right="),
]


@pytest.mark.parametrize(("check", "answer"), [(check, a) for check, answers in CHECKS for a in answers])
def test_other_ways_to_the_solution_pass(check, answer):
    for _ in range(5):
        assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(("check", "answer", "hint"), FLAWS)
def test_an_answer_that_fails_gets_a_hint(check, answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False and hint in line and "\n" not in line


def test_a_loss_without_a_mean_over_pairs_is_the_one_asked_for():
    draws = [exercises._answers_and_labels(np.random.default_rng(seed)) for seed in range(50)]
    assert all(0 < d["y"].sum() < len(d["y"]) and d["p"].shape == (*d["y"].shape, 1) for d in draws)


def test_no_draw_of_the_clocks_lets_two_counts_be_equal():
    for seed in range(200):
        draw = exercises._turns(np.random.default_rng(seed))
        sgd, adam = exercises._counts(draw["steps"], draw["every"])
        assert sgd > adam and {sgd, adam} != {draw["steps"] // 2, -(-draw["steps"] // 2)}


def test_the_scores_are_on_both_sides_and_possible():
    draws = [exercises._graded(np.random.default_rng(seed)) for seed in range(200)]
    scores = [exercises.check_score.solution(**draw) for draw in draws]
    assert min(scores) < -3 and max(scores) > 3 and min(map(abs, scores)) > 0.3
    assert all(0 < d["right"] < d["n"] and 2 * d["ones"] < d["n"] for d in draws)


def test_the_checks_load_no_framework():
    code = "import sys, dlopt_helpers.chapters.code_example_exercises; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
