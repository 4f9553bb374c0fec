"""No check of any chapter accepts its stub, a usual mistake, or an answer that only has the right shape."""

import importlib
import pkgutil

import numpy as np
import pytest

from dlopt_helpers import chapters
from dlopt_helpers.page.exercises import Check

CHECKS = {
    f"{module.name} {name}": check
    for module in pkgutil.iter_modules(chapters.__path__, "dlopt_helpers.chapters.")
    if module.name.endswith("_exercises")
    for name, check in vars(importlib.import_module(module.name)).items()
    if isinstance(check, Check)
}
MISTAKES = [(name, hint) for name, check in CHECKS.items() for hint in check.mistakes]
every_check = pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)


@pytest.mark.parametrize(("name", "hint"), MISTAKES)
def test_each_mistake_earns_its_own_hint(name, hint):
    check = CHECKS[name]
    for _ in range(40):  # draws on which two mistakes agree may be rare
        assert check.judge(check.mistakes[hint]) == (False, f"✗ {hint}")


@every_check
def test_the_solution_passes(check):
    assert check.judge(check.solution) == (True, f"✓ Correct. {check.praise}")


@every_check
def test_the_stub_is_not_an_answer(check):
    assert check.judge(lambda **inputs: ...)[0] is None


@every_check
def test_the_right_shape_is_not_enough(check):
    def only_the_shape(**inputs):
        result = check.solution(**inputs)
        return tuple(map(np.zeros_like, result)) if isinstance(result, tuple) else np.zeros_like(result)

    assert check.judge(only_the_shape)[0] is False
