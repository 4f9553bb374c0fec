"""No check accepts its stub, a usual mistake, or an answer that only has the right shape."""

import numpy as np
import pytest

from dlopt_helpers.adam import Adam
from dlopt_helpers.chapters import adam_exercises as exercises

CHECKS = {
    "adam": exercises.check_adam,
    "first steps": exercises.check_first_steps,
    "repaired": exercises.check_repaired,
}
MISTAKES = [(name, hint) for name, check in CHECKS.items() for hint in check.mistakes]


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
    ("name", "answer"),
    [
        ("adam", adam_by_the_book),
        ("first steps", first_steps_by_walking),
        ("repaired", repaired_by_the_book),
    ],
)
def test_an_independent_solution_passes(name, answer):
    check = CHECKS[name]
    assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(("name", "hint"), MISTAKES)
def test_each_mistake_earns_its_own_hint(name, hint):
    check = CHECKS[name]
    assert check.judge(check.mistakes[hint]) == (False, f"✗ {hint}")


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_stub_is_not_an_answer(check):
    assert check.judge(lambda **inputs: ...)[0] is None


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_the_right_shape_is_not_enough(check):
    def only_the_shape(**inputs):
        result = check.solution(**inputs)
        return tuple(map(np.zeros_like, result)) if isinstance(result, tuple) else np.zeros_like(result)

    assert check.judge(only_the_shape)[0] is False
