"""The checks of chapter 1: solutions written another way pass, and flawed answers get a hint."""

import numpy as np
import pytest

from dlopt_helpers.chapters import background_exercises as exercises


def blocks_by_loop(width, blocks, tokens):
    parameters = macs = 0
    for _ in range(blocks):
        for m, n in [(width, width)] * 4 + [(width, 4 * width), (4 * width, width)]:
            parameters += m * n
            macs += m * n
        macs += tokens * width + tokens * width
    return parameters, macs


def batch_by_trying(parameters, kept, budget):
    batch = 0
    while 4 * (4 * parameters + kept * (batch + 1)) <= budget:
        batch += 1
    return batch


def roof_by_loop(inputs, outputs, batch, peak, bandwidth):
    times = []
    for b in batch:
        numbers = inputs * outputs + b * inputs + b * outputs
        times.append(max(b * inputs * outputs / peak, 4 * numbers / bandwidth))
    return np.array(times)


CHECKS = [
    (exercises.check_blocks, blocks_by_loop),
    (exercises.check_batch, batch_by_trying),
    (exercises.check_roof, roof_by_loop),
]
FLAWS = [
    (exercises.check_blocks, lambda width, blocks, tokens: None, "is a `return` missing"),
    (exercises.check_blocks, lambda width, blocks, tokens: 12 * width**2, "Not yet."),
    (exercises.check_batch, lambda parameters, kept, budget: budget // kept, "Not yet."),
    (exercises.check_batch, lambda parameters, kept, budget: 1 / 0, "The function stopped with"),
    (
        exercises.check_roof,
        lambda inputs, outputs, batch, peak, bandwidth: max(batch / peak, batch / bandwidth),
        "The function stopped with",
    ),
]


@pytest.mark.parametrize(("check", "answer"), CHECKS)
def test_other_ways_to_the_solution_pass(check, answer):
    for _ in range(5):
        assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(("check", "answer", "hint"), FLAWS)
def test_an_answer_that_fails_gets_a_hint(check, answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False and hint in line


def test_each_draw_has_a_layer_on_both_sides_of_the_ridge():
    for seed in range(50):
        layer = exercises._a_layer(np.random.default_rng(seed))
        n, m, b = layer["inputs"], layer["outputs"], layer["batch"]
        computes = b * n * m / layer["peak"] > 4 * (n * m + b * (n + m)) / layer["bandwidth"]
        assert computes.tolist() == [False, True]
