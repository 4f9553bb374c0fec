"""The checks of chapter 4.2: solutions written another way pass, and each mistake earns its own hint."""

import itertools
import subprocess
import sys

import numpy as np
import pytest

from dlopt_helpers.chapters import pipeline_exercises as exercises
from dlopt_helpers.page.exercises import _agree

# --- Exercise 1 -----------------------------------------------------------------------------------


def bytes_in_two_sums(layers, rest):
    weights = sum(m * n * bits for m, n, bits in layers) // 8
    floats = sum(2 * n if bits != 32 else n for _, n, bits in layers)
    return np.int64(weights + 4 * floats + rest)


def bytes_by_packing(layers, rest):
    """As a file holds them: two codes of 4 bits in a byte."""
    for m, n, bits in layers:
        w = np.zeros(m * n, "float32" if bits == 32 else "uint8")
        packed = w[::2] + 16 * w[1::2] if bits == 4 else w
        rest += packed.nbytes + np.zeros(n, "float32").nbytes * (2 if bits < 32 else 1)
    return rest


BYTES_FLAWS = [
    (lambda layers, rest: 77, "Not yet. For layers="),
    (lambda layers, rest: sum(layers), "stopped with TypeError"),
    (lambda layers, rest: layers.clear(), "changes its arguments"),
    (lambda layers, rest: None, "is a `return` missing"),
]

# --- Exercise 2 -----------------------------------------------------------------------------------


def needed_by_bytes(share, wanted):
    file = 1_000.0
    stays = (1 - share) * file
    return [share * file / (file / wanted - stays), file / stays]


def needed_by_halving(share, wanted):
    low, high = 1.0, 1e6
    for _ in range(100):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if 1 / (1 - share + share / middle) < wanted else (low, middle)
    return low, (1 - share) ** -1


NEEDED_FLAWS = [
    (lambda share, wanted: (1, 1), "Not yet. For share="),
    (lambda share, wanted: share / (1 / wanted - (1 - share)), "Not yet. For share="),
    (lambda share, wanted: None, "is a `return` missing"),
]

# --- Exercise 3 -----------------------------------------------------------------------------------


def computed_as_in_the_folder(finished, wanted):
    """Every beginning of every run has its folder."""
    folder = {tuple(run[:n]) for run in finished for n in range(len(run) + 1)}
    return sum(tuple(wanted[: n + 1]) not in folder for n in range(len(wanted)))


def computed_backwards(finished, wanted):
    for there in range(len(wanted), 0, -1):
        if any(run[:there] == wanted[:there] for run in finished):
            return len(wanted) - there
    return len(wanted)


def computed_by_index(finished, wanted):
    return min(
        len(wanted) - next(i for i in range(len(run) + 1) if i == len(run) or run[i] != wanted[i])
        for run in finished
    )


COMPUTED_FLAWS = [
    (lambda finished, wanted: 99, "Not yet. For finished="),
    (lambda finished, wanted: [run[i] == wanted[i] for run in finished for i in range(99)], "IndexError"),
    (lambda finished, wanted: finished.sort(), "changes its arguments"),
    (lambda finished, wanted: wanted.pop(), "changes its arguments"),
    (lambda finished, wanted: None, "is a `return` missing"),
]

# --- All ------------------------------------------------------------------------------------------

CHECKS = [
    (exercises.check_file_bytes, [bytes_in_two_sums, bytes_by_packing], BYTES_FLAWS),
    (exercises.check_needed, [needed_by_bytes, needed_by_halving], NEEDED_FLAWS),
    (
        exercises.check_to_compute,
        [computed_as_in_the_folder, computed_backwards, computed_by_index],
        COMPUTED_FLAWS,
    ),
]


@pytest.mark.parametrize(("check", "answer"), [(check, f) for check, right, _ in CHECKS for f in right])
def test_an_independent_solution_passes(check, answer):
    for _ in range(50):
        assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(
    ("check", "answer", "hint"), [(check, *flaw) for check, _, flaws in CHECKS for flaw in flaws]
)
def test_an_answer_that_fails_gets_a_hint(check, answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False and line.startswith("✗ ") and "\n" not in line
    assert hint in line, line


@pytest.mark.parametrize(
    ("check", "hint"), [(check, hint) for check, *_ in CHECKS for hint in check.mistakes]
)
def test_each_known_mistake_earns_its_hint(check, hint):
    for _ in range(20):
        verdict, line = check.judge(check.mistakes[hint])
        assert verdict is False and line == f"✗ {hint}"


@pytest.mark.parametrize("check", [check for check, *_ in CHECKS])
def test_no_two_mistakes_give_one_result_on_any_draw(check):
    rng, functions = np.random.default_rng(0), [check.solution, *check.mistakes.values()]
    for _ in range(100):
        draw = check.inputs(rng)
        results = [function(**draw) for function in functions]
        for one, other in itertools.combinations(results, 2):
            assert not _agree(one, other, 10 * check.tolerance), draw


def test_a_network_has_layers_of_each_kind_and_whole_bytes():
    rng = np.random.default_rng(0)
    for _ in range(50):
        layers = exercises.check_file_bytes.inputs(rng)["layers"]
        assert {bits for *_, bits in layers} == {4, 8, 32}
        assert all(m * n * bits % 8 == 0 for m, n, bits in layers)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(layers))


def test_the_formula_counts_a_real_file():
    from dlopt_helpers.lab.models import mlp
    from dlopt_helpers.lab.onnx_weights import int4_weights
    from dlopt_helpers.lab.onnxrt import export

    model, layers = mlp(hidden=48), [(40, 48), (48, 48), (48, 10)]
    for name, w in model.named_parameters():
        if name.endswith("weight"):
            w.data = (7 * w.data.sign())[:]  # on the grid of 4 bits
    onnx = export(model)
    rest = len(onnx) - exercises.check_file_bytes.solution([(*layer, 32) for layer in layers], 0)
    small = exercises.check_file_bytes.solution([(*layer, 4) for layer in layers], rest)
    assert 200 < rest < 400 and abs(len(int4_weights(onnx)) / small - 1) < 0.1


def test_the_wish_can_be_fulfilled_and_what_is_needed_does_it():
    rng = np.random.default_rng(0)
    for _ in range(100):
        draw = exercises.check_needed.inputs(rng)
        factor, limit = exercises.check_needed.solution(**draw)
        assert 1 < draw["wanted"] < factor and draw["wanted"] < limit
        assert 1 / (1 - draw["share"] + draw["share"] / factor) == pytest.approx(draw["wanted"])


def test_the_checks_load_no_framework():
    code = "import sys, dlopt_helpers.chapters.pipeline_exercises; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
