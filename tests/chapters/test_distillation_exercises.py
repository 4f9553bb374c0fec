"""The exercises' solutions are right: other ways to them pass, and each flaw earns its hint."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.optimize import brentq, fsolve
from scipy.special import log_softmax, logsumexp, softmax

from dlopt_helpers.chapters import distillation_exercises as exercises

pytestmark = pytest.mark.filterwarnings("error")  # what NumPy warns of would stand beside the hint

# --- Exercise 1 -----------------------------------------------------------------------------------


def soften_by_rows(logits, temperature):
    rows = []
    for row in logits:
        e = np.exp((row - max(row)) / temperature)
        rows.append(list(e / sum(e)))
    return rows


def soften_by_sigmoids(logits, temperature):
    with np.errstate(over="ignore"):
        return 1 / np.exp((logits[:, None, :] - logits[:, :, None]) / temperature).sum(axis=2)


RIGHT_SOFTEN = [
    lambda logits, temperature: softmax(logits / temperature, axis=1),
    lambda logits, temperature: np.exp(log_softmax(logits / temperature, axis=-1)),
    lambda logits, temperature: np.exp(
        logits / temperature - logsumexp(logits / temperature, axis=1, keepdims=True)
    ),
    soften_by_rows,
    soften_by_sigmoids,
]


def normalised(e, axis=1):
    return e / e.sum(axis=axis, keepdims=True)


def less(shift):
    """Return a softmax that subtracts ``shift(z)`` before it takes exponentials."""
    return lambda logits, temperature: normalised(np.exp(logits / temperature - shift(logits / temperature)))


def top(z):
    return z.max(axis=1, keepdims=True)


INFINITE = ") is infinite: subtract from logits / temperature each row's maximum first."

SOFTEN_FLAWS = [
    (less(lambda z: 0), INFINITE),
    (less(lambda z: z.mean(axis=1, keepdims=True)), INFINITE),
    (less(lambda z: z.min(axis=1, keepdims=True)), INFINITE),
    (lambda logits, temperature: normalised(np.exp(logits / temperature - top(logits))), INFINITE),
    (lambda logits, temperature: normalised(np.exp(logits * temperature)), INFINITE),
    (lambda logits, temperature: np.exp(logits / temperature), INFINITE),
    (lambda logits, temperature: np.full(logits.shape, np.nan), INFINITE),
    (less(np.max), "subtract from each row its own maximum"),
    (lambda logits, temperature: softmax(logits / temperature, axis=0), "The columns sum to 1"),
    (
        lambda logits, temperature: normalised(np.exp((logits - top(logits)) / temperature), axis=0),
        "The columns sum to 1",
    ),
    (lambda logits, temperature: softmax(logits / temperature), "The whole matrix sums to 1"),
    (
        lambda logits, temperature: softmax(logits, axis=1) ** (1 / temperature),
        ", not to 1: divide its exponentials by their sum.",
    ),
    (lambda logits, temperature: softmax(logits / temperature, axis=1)[0], "of shape (6, 7) that shape"),
    (lambda logits, temperature: softmax(logits / temperature, axis=1).T, "of shape (6, 7) that shape"),
    (lambda logits, temperature: [[1.0], [1.0, 2.0]], "of shape (6, 7) that shape"),
    (lambda logits, temperature: "p", "of shape (6, 7) that shape"),
    (lambda logits, temperature: softmax(logits / (temperature + 1e-3), axis=1), "Not yet. At T = "),
    (lambda logits, temperature: softmax(-logits / temperature, axis=1), "Not yet. At T = "),
    (lambda logits, temperature: np.full(logits.shape, 1 / 7), "Not yet. At T = "),
    (lambda logits, temperature: None, "is a `return` missing"),
]

# --- Exercise 2 -----------------------------------------------------------------------------------


def mean_entropy(logits, temperature):
    p = soften_by_rows(logits, temperature)
    return np.mean([-sum(q * np.log(q) for q in row) for row in p])


def temperature_by_bisection(logits, entropy):
    low, high = 0.1, 100.0
    while high / low > 1.001:
        middle = (low + high) / 2
        low, high = (middle, high) if mean_entropy(logits, middle) < entropy else (low, middle)
    return low


def temperature_by_fine_grid(logits, entropy):
    grid = np.geomspace(1, 20, 800)
    return grid[np.argmin([abs(mean_entropy(logits, t) - entropy) for t in grid])]


def temperature_by_free_energy(logits, entropy):
    """Find it from another formula for the entropy, dF/dT with F = T log sum exp(z / T)."""

    def energy(t):
        return np.mean(t * logsumexp(logits / t, axis=1))

    return brentq(lambda t: (energy(t + 1e-4) - energy(t - 1e-4)) / 2e-4 - entropy, 1, 50)


def temperature_by_fsolve(logits, entropy):
    return fsolve(lambda t: mean_entropy(logits, t.item()) - entropy, x0=3.0)


def temperature_by_coarse_grid(logits, entropy):
    grid = 2.0 ** np.arange(-3, 7)
    return grid[np.argmin([abs(mean_entropy(logits, t) - entropy) for t in grid])]


RIGHT_TEMPERATURE = [
    temperature_by_bisection,
    temperature_by_fine_grid,
    temperature_by_free_energy,
    temperature_by_fsolve,
]


def found(change):
    """Return a function that finds the temperature and spoils it."""
    return lambda logits, entropy: change(temperature_by_bisection(logits, entropy))


TEMPERATURE_FLAWS = [
    (temperature_by_coarse_grid, "within 0.005 are wanted, so T must be "),
    (found(lambda t: 1.03 * t), "T must be smaller."),
    (found(lambda t: 0.97 * t), "T must be larger."),
    (lambda logits, entropy: 1, "T must be larger."),
    (lambda logits, entropy: 1e-6, "the mean entropy is 0.000 nats"),
    (lambda logits, entropy: 1e6, "the mean entropy is 2.303 nats"),
    (lambda logits, entropy: 0, "a finite number above 0, not 0"),
    (found(lambda t: -t), "a finite number above 0, not -"),
    (lambda logits, entropy: np.inf, "a finite number above 0, not inf"),
    (lambda logits, entropy: np.nan, "The temperature is NaN"),
    (found(lambda t: [t] * 30), "Return one number"),
    (found(lambda t: (t, 0.1)), "Return one number"),
    (lambda logits, entropy: "T", "Return one number"),
    (lambda logits, entropy: None, "is a `return` missing"),
    (lambda logits, entropy: np.float64(0) / 0, "The temperature is NaN"),
]

# --- Exercise 3 -----------------------------------------------------------------------------------


def off_target(logits):
    """Return where the others stand, a row of classes for each example."""
    return np.array([[j for j in range(len(row)) if j != row.argmax()] for row in logits])


def with_others(change):
    """Return a control whose others are ``change(others, rng)``."""

    def control(logits, seed):
        result, places = logits.copy(), off_target(logits)
        others = np.take_along_axis(logits, places, axis=1)
        np.put_along_axis(result, places, change(others, np.random.default_rng(seed)), axis=1)
        return result

    return control


def control_by_keys(logits, seed):
    keys = np.random.default_rng(seed).random(logits.shape)
    rows, label = np.arange(len(logits)), logits.argmax(axis=1)
    keys[rows, label] = 0
    keys = np.log(keys)  # the label's is first in order; that it is infinite is worth no warning
    places, control = keys.argsort(axis=1), np.empty_like(logits)
    order = np.argsort(-logits, axis=1)  # the largest first
    np.put_along_axis(control, places, np.take_along_axis(logits, order, axis=1), axis=1)
    return control


def control_by_loop(logits, seed):
    rng, rows = np.random.default_rng(seed), []
    for z in logits:
        row, label = z.copy(), np.argmax(z)
        rest = np.delete(np.arange(len(z)), label)
        row[rest] = z[rng.permutation(rest)]
        rows.append(list(row))
    return rows


def control_by_swapping_back(logits, seed):
    control = np.random.RandomState(seed).permutation(logits.T.copy()).T  # one order for all, then
    control = np.random.default_rng(seed).permuted(control, axis=1)  # one for each
    rows, label, now = np.arange(len(logits)), logits.argmax(axis=1), control.argmax(axis=1)
    control[rows, now], control[rows, label] = control[rows, label], logits.max(axis=1)
    return control


right_control = with_others(lambda others, rng: rng.permuted(others, axis=1))

RIGHT_CONTROL = [
    right_control,
    control_by_keys,
    control_by_loop,
    control_by_swapping_back,
    lambda logits, seed: right_control(logits, seed).astype("float32"),
    lambda logits, seed: log_softmax(right_control(logits, seed), axis=1),  # as any temperature sees it
]


def smoothed(logits, eps=0.1):
    return (1 - eps) * np.eye(10)[logits.argmax(axis=1)] + eps / 10


def shuffled_in_part(others, rng):
    return np.where(np.arange(len(others))[:, None] % 2, others, rng.permuted(others, axis=1))


def runner_up_elsewhere(others, rng):
    others, rows = others.copy(), np.arange(len(others))
    first, other = others.argmax(axis=1), rng.integers(9, size=len(others))
    others[rows, first], others[rows, other] = others[rows, other], others[rows, first]
    return others


def one_order_for_each_class(logits, seed):
    rng = np.random.default_rng(seed)
    orders, label = [rng.permutation(9) for _ in range(10)], logits.argmax(axis=1)
    return with_others(
        lambda others, _: np.stack([o[orders[k]] for o, k in zip(others, label, strict=True)])
    )(logits, seed)


def only_the_probabilities(logits, seed):
    return softmax(right_control(logits, seed), axis=1)


FORETELLS = "The label still foretells"
ANOTHER_ENTROPY = "The values of a row are others now"
BETWEEN = "Values went from one example to another"
SMOOTHING = "That is label smoothing itself"

CONTROL_FLAWS = [
    (lambda logits, seed: logits, "Nothing is changed"),
    (lambda logits, seed: logits + 0.0, "Nothing is changed"),
    (lambda logits, seed: log_softmax(logits, axis=1), FORETELLS),
    (lambda logits, seed: softmax(logits, axis=1), "Those are probabilities"),
    (only_the_probabilities, "Those are probabilities"),
    (lambda logits, seed: smoothed(logits), SMOOTHING),
    (lambda logits, seed: np.log(smoothed(logits)), SMOOTHING),
    (with_others(lambda others, rng: others.mean(axis=1, keepdims=True) + 0 * others), SMOOTHING),
    (with_others(lambda others, rng: 0 * others), SMOOTHING),
    (lambda logits, seed: np.log(0.9 * softmax(logits, axis=1) + 0.01), ANOTHER_ENTROPY),
    (lambda logits, seed: logits / 2, ANOTHER_ENTROPY),
    (lambda logits, seed: logits + np.random.default_rng(seed).normal(size=logits.shape), ANOTHER_ENTROPY),
    (with_others(lambda others, rng: others + 0.01 * rng.normal(size=others.shape)), ANOTHER_ENTROPY),
    (with_others(lambda others, rng: rng.choice(others.ravel(), others.shape)), ANOTHER_ENTROPY),
    (lambda logits, seed: np.random.default_rng(seed).normal(size=logits.shape), ANOTHER_ENTROPY),
    (lambda logits, seed: np.random.default_rng(seed).permutation(logits), "Rows changed places"),
    (
        lambda logits, seed: np.random.default_rng(seed).permutation(right_control(logits, seed)),
        "Rows changed",
    ),
    (lambda logits, seed: np.random.default_rng(seed).permuted(logits, axis=0), BETWEEN),
    (with_others(lambda others, rng: rng.permutation(others)), BETWEEN),
    (with_others(lambda others, rng: rng.permuted(others)), BETWEEN),
    (lambda logits, seed: np.random.default_rng(seed).permuted(logits, axis=1), "of 200 rows the largest"),
    (lambda logits, seed: np.random.default_rng(seed).permutation(logits.T).T, "of 200 rows the largest"),
    (lambda logits, seed: np.roll(logits, 1, axis=1), "In 200 of 200 rows the largest"),
    (with_others(lambda others, rng: np.sort(others, axis=1)), "stand in one order in every row"),
    (with_others(lambda others, rng: -np.sort(-others, axis=1)), "stand in one order in every row"),
    (with_others(lambda others, rng: np.sort(others)[:, rng.permutation(9)]), "stand in one order"),
    (with_others(lambda others, rng: others[:, rng.permutation(9)]), FORETELLS),
    (with_others(lambda others, rng: others[:, ::-1]), FORETELLS),
    (with_others(lambda others, rng: np.roll(others, 1, axis=1)), FORETELLS),
    (one_order_for_each_class, FORETELLS),
    (with_others(shuffled_in_part), FORETELLS),
    (with_others(runner_up_elsewhere), FORETELLS),
    (lambda logits, seed: right_control(logits, 0), "Another seed gives the same control"),
    (lambda logits, seed: right_control(logits, None), "Two calls with one seed differ"),
    (lambda logits, seed: right_control(logits, seed)[:-1], "of shape (200, 10) that shape"),
    (lambda logits, seed: right_control(logits, seed).T, "of shape (200, 10) that shape"),
    (lambda logits, seed: logits.argmax(axis=1), "of shape (200, 10) that shape"),
    (lambda logits, seed: "logits", "of shape (200, 10) that shape"),
    (lambda logits, seed: np.log(np.eye(10)[logits.argmax(axis=1)]), "NaN or infinite"),
    (lambda logits, seed: np.full(logits.shape, np.nan), "NaN or infinite"),
    (lambda logits, seed: None, "is a `return` missing"),
    (lambda logits, seed: logits.sort(), "changes its arguments in place"),
]

# --- All ------------------------------------------------------------------------------------------

CHECKS = [
    (exercises.check_soften, RIGHT_SOFTEN, SOFTEN_FLAWS),
    (exercises.check_temperature, RIGHT_TEMPERATURE, TEMPERATURE_FLAWS),
    (exercises.check_control, RIGHT_CONTROL, CONTROL_FLAWS),
]


@pytest.mark.parametrize(("check", "answer"), [(check, f) for check, right, _ in CHECKS for f in right])
def test_an_independent_solution_passes(check, answer):
    assert check.judge(answer) == (True, f"✓ Correct. {check.praise}")


@pytest.mark.parametrize(
    ("check", "answer", "hint"), [(check, *flaw) for check, _, flaws in CHECKS for flaw in flaws]
)
def test_an_answer_that_fails_gets_a_hint(check, answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False
    assert line.startswith("✗ ")
    assert hint in line
    assert "\n" not in line


def test_an_overflow_is_no_traceback_and_no_warning(capfd):
    exercises.check_soften(less(lambda z: 0))
    shown, warned = capfd.readouterr()
    assert shown.startswith("✗ The row with a logit of 5000")
    assert (shown.count("\n"), warned) == (1, "")


def test_the_exponential_that_is_named_is_infinite():
    for seed in range(100):
        draw = exercises._rows_of_all_sizes(np.random.default_rng(seed))
        with np.errstate(over="ignore"):
            assert np.exp(5000 / draw["temperature"]) == np.inf
            assert np.isinf(np.exp(draw["logits"] / draw["temperature"])).any(axis=1).sum() == 2
        assert draw["logits"].max() == 5000


def test_the_entropy_in_the_hint_is_the_one_reached():
    logits = exercises._a_wanted_entropy(np.random.default_rng(0))["logits"]
    reached = (
        f"At T = 2.5 the mean entropy is {mean_entropy(logits, 2.5):.3f} nats: 1.900 within 0.005 are wanted"
    )
    assert exercises._has_the_entropy(2.5, logits, 1.9) == f"{reached}, so T must be larger."


def test_a_temperature_right_to_a_thousandth_passes_and_a_power_of_two_does_not():
    draws = [exercises._a_wanted_entropy(np.random.default_rng(seed)) for seed in range(100)]
    right = [exercises.check_temperature.solution(**draw) for draw in draws]
    for draw, t in zip(draws, right, strict=True):
        assert not exercises._has_the_entropy(1.001 * t, **draw)
        assert not exercises._has_the_entropy(t / 1.001, **draw)
        assert exercises._has_the_entropy(1.015 * t, **draw)
        assert exercises._has_the_entropy(t / 1.015, **draw)
    coarse = [2 ** np.round(np.log2(t)) for t in right]
    passes = [not exercises._has_the_entropy(t, **draw) for t, draw in zip(coarse, draws, strict=True)]
    assert np.mean(passes) < 0.1  # each, of five draws that all have to pass


def test_no_mistake_about_the_temperature_passes_often_enough_to_pass_five_times():
    for hint, mistake in exercises.check_temperature.mistakes.items():
        draws = [exercises._a_wanted_entropy(np.random.default_rng(seed)) for seed in range(100)]
        assert sum(not exercises._has_the_entropy(mistake(**draw), **draw) for draw in draws) < 10, hint


def test_chance_stays_far_from_the_margin_and_the_teacher_too():
    def order_left(change, seed):
        draw = exercises._two_hundred_examples(np.random.default_rng(seed))
        control, label = change(**draw), draw["logits"].argmax(axis=1)
        return exercises._order_left(exercises._others(control, label), label)

    chance = [order_left(right_control, seed) for seed in range(1000)]
    assert np.mean(chance) == pytest.approx(0.05, abs=0.001)
    assert np.std(chance) == pytest.approx(0.0079, abs=0.001)  # of a chi square of 80 degrees, over 1600
    assert min(order_left(lambda logits, seed: logits, seed) for seed in range(100)) > 0.7
    for part in (shuffled_in_part, runner_up_elsewhere):
        assert min(order_left(with_others(part), seed) for seed in range(100)) > 0.13


def test_the_control_keeps_label_confidence_and_entropy_at_every_temperature():
    draw = exercises._two_hundred_examples(np.random.default_rng(0))
    logits, control = draw["logits"], exercises.check_control.solution(**draw)
    np.testing.assert_array_equal(control.argmax(axis=1), logits.argmax(axis=1))
    for t in (0.5, 1, 4):
        p, q = softmax(logits / t, axis=1), softmax(control / t, axis=1)
        np.testing.assert_allclose(q.max(axis=1), p.max(axis=1))
        assert mean_entropy(control, t) == pytest.approx(mean_entropy(logits, t))


def test_the_teacher_takes_a_class_for_the_next():
    logits = exercises._two_hundred_examples(np.random.default_rng(0))["logits"]
    label, second = np.argsort(-logits, axis=1)[:, :2].T
    assert np.mean(second == (label + 1) % 10) > 0.8
    assert np.bincount(label, minlength=10).min() > 10


def test_the_checks_load_no_framework():
    code = "import sys, dlopt_helpers.chapters.distillation_exercises; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
