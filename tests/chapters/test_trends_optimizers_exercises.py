"""The exercises' solutions are right: the subject's own rules and other ways to them pass."""

import numpy as np
import pytest

from dlopt_helpers.chapters import trends_optimizers_exercises as exercises
from dlopt_helpers.trends import Lion, ScheduleFreeSGD, newton_schulz


def lion_by_the_book(w, gradient, m, **hyper):
    w, state = Lion(**hyper).step(w, gradient, {"m": m})
    return w, state["m"]


def values_of_the_matrix(s, steps):
    return np.diag(newton_schulz(np.diag(s), steps, eps=0.0))


def weight_by_the_book(w, gradients, lr):
    rule, y = ScheduleFreeSGD(lr), w
    state = rule.init(w)
    for gradient in gradients:
        y, state = rule.step(y, gradient, state)
    return rule.average(y, state)


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (exercises.check_lion, lion_by_the_book),
        (exercises.check_newton_schulz, values_of_the_matrix),
        (exercises.check_average, weight_by_the_book),
    ],
)
def test_an_independent_solution_passes(check, answer):
    assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")
