"""The checks of chapter 4.1's exercises, and the mistakes they know."""

import numpy as np

from dlopt_helpers.code_example import binary_cross_entropy
from dlopt_helpers.page.exercises import Check, Goal

# --- Exercise 1: a loss that does not broadcast -----------------------------------------------------


def _answers_and_labels(rng):
    n = int(rng.integers(6, 13))
    y = rng.permutation(np.arange(n) % 3 == 0).astype(float)  # both labels occur, one twice as often
    return {"p": rng.uniform(0.05, 0.95, size=(n, 1)), "y": y}


def _terms(p, y):
    return y * np.log(p) + (1 - y) * np.log(1 - p)


def _is_the_loss(result, p, y):
    expected = -_terms(p, y[:, None]).mean()
    try:
        number = np.asarray(result, dtype=float)
    except (TypeError, ValueError):
        number = np.empty(0)
    if number.size != 1:
        return "Return one number, the mean over all examples."
    if abs(number.item() - expected) <= 1e-6 * expected:
        return ""
    return (
        f"For {len(y)} examples, of which {y.sum():.0f} are 1, it is {expected:.3f}, not {number.item():.3f}."
    )


check_safe_loss = Goal(
    solution=lambda p, y: binary_cross_entropy(p, y[:, None]),
    inputs=_answers_and_labels,
    reached=_is_the_loss,
    mistakes={
        "That is the mean over all pairs: y of shape (n,) and p of shape (n, 1) broadcast to (n, n).": (
            lambda p, y: -_terms(p, y).mean()
        ),
        "The sign: logarithms of probabilities are negative, and a loss is positive.": (
            lambda p, y: _terms(p, y[:, None]).mean()
        ),
        "That is the sum over all examples: take the mean.": lambda p, y: -_terms(p, y[:, None]).sum(),
        "Only the examples with label 1 count there: the others cost -log(1 - p).": (
            lambda p, y: -(y[:, None] * np.log(p)).mean()
        ),
        "Only the examples with label 0 count there: the others cost -log(p).": (
            lambda p, y: -((1 - y[:, None]) * np.log(1 - p)).mean()
        ),
        "That is in bits: take the natural logarithm.": lambda p, y: (
            -_terms(p, y[:, None]).mean() / np.log(2)
        ),
        "That is the mean squared error.": lambda p, y: ((p - y[:, None]) ** 2).mean(),
        "The labels are exchanged: p is the probability of label 1.": (
            lambda p, y: -_terms(1 - p, y[:, None]).mean()
        ),
    },
    praise="One line makes the shapes equal. An assert on the shapes would have found it as well.",
)

# --- Exercise 2: who has stepped how often ------------------------------------------------------------


def _turns(rng):
    """A last pair of turns that is not complete, and in which the two do not share the steps evenly."""
    every = int(rng.integers(2, 8))
    last = int(rng.integers(2, 2 * every - 1))
    steps = 2 * every * int(rng.integers(2, 5)) + last
    return {"steps": steps, "every": every, "beta1": float(rng.choice([0.9, 0.95, 0.98]))}


def _counts(steps, every):
    pairs, last = divmod(steps, 2 * every)
    sgd = pairs * every + min(last, every)
    return sgd, steps - sgd


def _answer(change):
    """Return a function of ``steps``, ``every``, ``beta1`` and the right two counts, as an answer."""
    return lambda steps, every, beta1: change(steps, every, beta1, *_counts(steps, every))


def _whole_turns(steps, every, beta1, *_):
    done = steps // (2 * every) * every
    return done, done, 1 - beta1**done


def _numbers_of_turns(steps, every, beta1, *_):
    turns = -(-steps // every)
    return turns - turns // 2, turns // 2, 1 - beta1 ** (turns // 2)


check_turns = Check(
    solution=_answer(lambda steps, every, beta1, sgd, adam: (sgd, adam, 1 - beta1**adam)),
    inputs=_turns,
    mistakes={
        "The counts are right. Adam's t does not know of SGD's steps: it is the number of its own.": (
            _answer(lambda steps, every, beta1, sgd, adam: (sgd, adam, 1 - beta1**steps))
        ),
        "That is right if they change after each step: here each makes `every` steps in a row.": (
            _answer(
                lambda steps, every, beta1, *_: (steps - steps // 2, steps // 2, 1 - beta1 ** (steps // 2))
            )
        ),
        "SGD is first, in the steps 0 to every - 1: you let Adam begin.": (
            _answer(lambda steps, every, beta1, sgd, adam: (adam, sgd, 1 - beta1**sgd))
        ),
        "The two counts are exchanged; the correction is right.": (
            _answer(lambda steps, every, beta1, sgd, adam: (adam, sgd, 1 - beta1**adam))
        ),
        "That is beta1^t: the correction divides by 1 - beta1^t.": (
            _answer(lambda steps, every, beta1, sgd, adam: (sgd, adam, beta1**adam))
        ),
        "The counts are right. After t steps the last one was corrected by 1 - beta1^t, not t + 1.": (
            _answer(lambda steps, every, beta1, sgd, adam: (sgd, adam, 1 - beta1 ** (adam + 1)))
        ),
        "The counts are right. The last of t steps was corrected by 1 - beta1^t, not t - 1.": (
            _answer(lambda steps, every, beta1, sgd, adam: (sgd, adam, 1 - beta1 ** (adam - 1)))
        ),
        "The last turn is not complete, and its steps count, too.": _answer(_whole_turns),
        "Those are turns: each has `every` steps.": _answer(_numbers_of_turns),
    },
    praise="Two optimisers, two clocks.",
)

# --- Exercise 3: better than a constant answer? ---------------------------------------------------------


def _graded(rng):
    """Labels of which fewer than half are 1, and a number of right answers near that of the constant one."""
    n = int(rng.integers(300, 3_000))
    ones = int(n * rng.uniform(0.2, 0.45))
    away = rng.choice([-1, 1]) * rng.uniform(0.6, 5) * np.sqrt(ones * (n - ones) / n)
    return {"right": round(n - ones + away), "ones": ones, "n": n}


def _score(right, n, chance):
    return (right - n * chance) / np.sqrt(n * chance * (1 - chance))


check_score = Check(
    solution=lambda right, ones, n: _score(right, n, max(ones, n - ones) / n),
    inputs=_graded,
    mistakes={
        "That compares with a coin. The labels are not balanced: the commoner one is right more often.": (
            lambda right, ones, n: _score(right, n, 0.5)
        ),
        "A constant answer gives the commoner label, and here that is 0.": (
            lambda right, ones, n: _score(right, n, ones / n)
        ),
        "The root is missing: n c (1 - c) is the variance.": (
            lambda right, ones, n: (right - (n - ones)) / (ones * (n - ones) / n)
        ),
        "That is how much better it is: divide by the standard deviation.": (
            lambda right, ones, n: right - (n - ones)
        ),
        "That is how much better the share is: divide by its standard deviation.": (
            lambda right, ones, n: (right - (n - ones)) / n
        ),
        "Divide the number by the number's standard deviation; yours is the share's, n times smaller.": (
            lambda right, ones, n: n * _score(right, n, (n - ones) / n)
        ),
        "Divide the share by the share's standard deviation; yours is the number's, n times larger.": (
            lambda right, ones, n: _score(right, n, (n - ones) / n) / n
        ),
        "That takes the spread at the measured share: take it at the share that you compare with.": (
            lambda right, ones, n: (right - (n - ones)) / np.sqrt(right * (n - right) / n)
        ),
        "The sign: more right answers than the constant one has are a positive score.": (
            lambda right, ones, n: -_score(right, n, (n - ones) / n)
        ),
    },
    praise="Above 3 it is hardly chance, as long as no training has seen these examples.",
)
