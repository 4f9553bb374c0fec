"""The exercises' solutions are right: the subject's own rules and other ways to them pass."""

import numpy as np
import pytest

from dlopt_helpers.chapters.sgd_exercises import check_largest_rate, check_momentum, check_step
from dlopt_helpers.sgd import SGD


def by_the_book(w, gradient, velocity, lr, momentum):
    w, state = SGD(lr, momentum).step(w, gradient, {"velocity": velocity})
    return w, state["velocity"]


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (check_step, lambda w, gradient, lr: SGD(lr).step(w, gradient, SGD(lr).init(w))[0]),
        (check_momentum, by_the_book),
        (check_largest_rate, lambda hessian, momentum: 2 * (1 + momentum) / np.linalg.norm(hessian, 2)),
    ],
)
def test_an_independent_solution_passes(check, answer):
    verdict, line = check.judge(answer)
    assert verdict is True
    assert line == f"✓ Correct. {check.praise}"


@pytest.mark.parametrize("momentum", [0.3, 0.9])
@pytest.mark.parametrize(("factor", "falls"), [(0.99, True), (1.01, False)])
def test_the_largest_rate_is_the_edge(momentum, factor, falls):
    hessian = np.array([[3.0, 1.0], [1.0, 2.0]])
    rule = SGD(factor * check_largest_rate.solution(hessian, momentum), momentum)
    w = np.ones(2)
    state = rule.init(w)
    for _ in range(3000):
        w, state = rule.step(w, hessian @ w, state)
    assert (np.linalg.norm(w) < 1) == falls
