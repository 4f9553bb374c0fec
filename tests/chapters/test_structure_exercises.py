"""The checks of chapter 3.6: solutions written another way pass, and each mistake earns its own hint."""

import subprocess
import sys

import numpy as np
import pytest
from torch import nn

from dlopt_helpers.chapters import structure_exercises as exercises

# --- Exercise 1 -----------------------------------------------------------------------------------


def cost_by_pytorch(inputs, outputs, kernel, length, stride):
    first = nn.Conv1d(inputs, inputs, kernel, stride, padding=kernel // 2, groups=inputs)
    second, out = nn.Conv1d(inputs, outputs, 1), -(-length // stride)
    parameters = sum(p.numel() for layer in (first, second) for p in layer.parameters())
    return parameters, out * (first.weight.numel() + second.weight.numel())


def cost_by_hand(inputs, outputs, kernel, length, stride):
    out = length / stride
    return [inputs * (kernel + 1) + outputs * (inputs + 1), (inputs * kernel + inputs * outputs) * out]


COST_FLAWS = [
    (lambda inputs, outputs, kernel, length, stride: (0, 0), "Not yet. For inputs="),
    (lambda inputs, outputs, kernel, length, stride: 3, "Not yet."),
    (lambda **block: None, "is a `return` missing"),
]

# --- Exercise 2 -----------------------------------------------------------------------------------


def factors_to_the_left(w, budget):
    u, s, vt = np.linalg.svd(w)
    r = int(budget / (len(w) + len(w[0])))
    return (u[:, :r] * s[:r]).tolist(), vt[:r]


def factors_by_projection(w, budget):
    """The eigenvectors of the inputs' side, and w in their directions."""
    values, vectors = np.linalg.eigh(w.T @ w)
    basis = vectors[:, values.argsort()[::-1][: budget // sum(w.shape)]]
    return w @ basis, basis.T


def with_rank(change):
    def factors(w, budget):
        r = change(budget // sum(w.shape))
        u, s, vt = np.linalg.svd(w, full_matrices=False)
        return u[:, :r] * s[:r], vt[:r]

    return factors


def drawn_by_lot(w, budget):
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(w.shape[1], budget // sum(w.shape))))[0]
    return w @ basis, basis.T


FACTOR_FLAWS = [
    (with_rank(lambda r: r + 1), "is too much"),
    (with_rank(lambda r: r - 1), "leaves room"),
    (with_rank(lambda r: 99), "is too much"),
    (drawn_by_lot, "The error is "),
    (lambda w, budget: w, "Return two matrices"),
    (lambda w, budget: (w, 3), "Return two matrices"),
    (lambda w, budget: "ab", "Return two matrices"),
    (lambda w, budget: factors_to_the_left(w, budget)[::-1], "must have that of w"),
    (lambda w, budget: tuple(f * np.nan for f in factors_by_projection(w, budget)), "NaN or infinite"),
    (lambda w, budget: None, "is a `return` missing"),
]

# --- Exercise 3 -----------------------------------------------------------------------------------


def choice_by_loop(macs, times, accuracies, budget):
    best, chosen = -1, None
    for i in range(len(macs)):
        if np.percentile(times[i], 95) <= budget and sum(accuracies[i]) / len(accuracies[i]) > best:
            best, chosen = sum(accuracies[i]) / len(accuracies[i]), i
    return chosen


def choice_by_order(macs, times, accuracies, budget):
    ranking = np.argsort(-accuracies.mean(axis=1))
    return np.array([next(i for i in ranking if (times[i] <= budget).mean() >= 0.95)])


def choice_by_the_median(macs, times, accuracies, budget):
    return np.where(np.median(times, axis=1) <= budget, accuracies.mean(axis=1), 0).argmax()


CHOICE_FLAWS = [
    (choice_by_the_median, ["right for the mean or the median"]),
    (
        lambda macs, times, accuracies, budget: int(macs.argmax()),
        ["fast enough, with", "needs over", "the slowest"],
    ),
    (
        lambda macs, times, accuracies, budget: int(macs.argmin()),
        ["fast enough, with", "needs over", "fastest"],
    ),
    (lambda macs, times, accuracies, budget: 99, ("Return the number",)),
    (lambda macs, times, accuracies, budget: -1, ("Return the number",)),
    (lambda macs, times, accuracies, budget: 1.5, ("Return the number",)),
    (lambda macs, times, accuracies, budget: times <= budget, ("Return the number",)),
    (lambda macs, times, accuracies, budget: None, ("is a `return` missing",)),
]

# --- All ------------------------------------------------------------------------------------------

CHECKS = [
    (exercises.check_block_cost, [cost_by_pytorch, cost_by_hand], COST_FLAWS),
    (exercises.check_budget, [factors_to_the_left, factors_by_projection], FACTOR_FLAWS),
    (exercises.check_choice, [choice_by_loop, choice_by_order], CHOICE_FLAWS),
]


@pytest.mark.parametrize(("check", "answer"), [(check, f) for check, right, _ in CHECKS for f in right])
def test_an_independent_solution_passes(check, answer):
    for _ in range(5):
        assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(
    ("check", "answer", "hint"), [(check, *flaw) for check, _, flaws in CHECKS for flaw in flaws]
)
def test_an_answer_that_fails_gets_a_hint(check, answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False and line.startswith("✗ ") and "\n" not in line
    assert any(words in line for words in ([hint] if isinstance(hint, str) else hint)), line


def test_no_mistake_in_the_choice_is_right_by_chance_five_times():
    draws = [exercises._measured(np.random.default_rng(seed)) for seed in range(100)]
    for hint, mistake in exercises.check_choice.mistakes.items():
        passes = sum(not exercises._is_the_best(mistake(**draw), **draw) for draw in draws)
        assert passes < 20, hint


def test_where_the_time_is_asked_some_network_is_allowed_and_some_is_not():
    for seed in range(50):
        draw = exercises._measured(np.random.default_rng(seed))
        slow = np.quantile(draw["times"], 0.95, axis=1)
        assert 0 < (slow <= draw["budget"]).sum() < len(slow)


def test_the_checks_load_no_framework():
    code = "import sys, dlopt_helpers.chapters.structure_exercises; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
