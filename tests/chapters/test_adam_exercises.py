"""The exercises' solutions are right: the subject's own rules and other ways to them pass."""

import numpy as np
import pytest

from dlopt_helpers.adam import Adam
from dlopt_helpers.chapters import adam_exercises as exercises


def adam_by_the_book(w, gradient, m, v, t, **hyper):
    w, state = Adam(**hyper).step(w, gradient, {"t": t - 1, "m": m, "v": v})
    return w, state["m"], state["v"]


def first_steps_by_walking(beta1, beta2):
    m = v = 0.0
    lengths = []
    for _ in range(10):
        m, v = beta1 * m + 1 - beta1, beta2 * v + 1 - beta2
        lengths.append(m / np.sqrt(v))
    return lengths


def repaired_by_the_book(w, gradients, **hyper):
    rule = Adam(**hyper)
    state = rule.init(w)
    for gradient in gradients:
        w, state = rule.step(w, gradient, state)
    return w


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        (exercises.check_adam, adam_by_the_book),
        (exercises.check_first_steps, first_steps_by_walking),
        (exercises.check_repaired, repaired_by_the_book),
    ],
)
def test_an_independent_solution_passes(check, answer):
    assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")
