"""The checks of chapter 5's exercises on transfer, and the mistakes they know."""

import numpy as np

from dlopt_helpers.distillation import log_soften
from dlopt_helpers.page.exercises import Check

# --- Which parameters train? ------------------------------------------------------------------------


def _network(rng):
    """Widths that all differ, and at least two layers that are not frozen."""
    sizes = [int(n) for n in rng.permutation(np.arange(10, 90, 7))[: rng.integers(5, 8)]]
    classes = next(c for c in (2, 3, 4) if c not in sizes)
    return {"sizes": sizes, "classes": classes, "frozen": int(rng.integers(1, len(sizes) - 2))}


def _layers(sizes, classes):
    return list(zip(sizes[:-1], [*sizes[1:-1], classes], strict=True))


def _count(layers, bias=True):
    return sum((m + bias) * n for m, n in layers)


check_trained = Check(
    solution=lambda sizes, classes, frozen: _count(_layers(sizes, classes)[frozen:]),
    inputs=_network,
    mistakes={
        "Each unit has a bias, too: a layer from m to n has (m + 1) n parameters.": (
            lambda sizes, classes, frozen: _count(_layers(sizes, classes)[frozen:], bias=False)
        ),
        "That is with the old head: the new one has `classes` outputs.": (
            lambda sizes, classes, frozen: _count(_layers(sizes, sizes[-1])[frozen:])
        ),
        "That is all of them: those of the first `frozen` layers get no gradient.": (
            lambda sizes, classes, frozen: _count(_layers(sizes, classes))
        ),
        "Those are the frozen ones: the others train.": (
            lambda sizes, classes, frozen: _count(_layers(sizes, classes)[:frozen])
        ),
        "That is one layer too few: `sizes` has one number more than there are layers.": (
            lambda sizes, classes, frozen: _count(_layers(sizes, classes)[frozen + 1 :])
        ),
        "That is one layer too many: exactly `frozen` layers are frozen.": (
            lambda sizes, classes, frozen: (
                _count(_layers(sizes, classes)[frozen - 1 :])
                if frozen > 1
                else _count(_layers(sizes, classes)) + 1
            )
        ),
    },
    praise="Few trained weights also mean few gradients and few moments of Adam to keep.",
)

# --- Labels for some, a teacher for all ----------------------------------------------------------------


def _some_labelled(rng):
    n, classes = int(rng.integers(8, 13)), int(rng.integers(3, 6))
    labels = rng.integers(0, classes - 1, size=n)  # never the last class, which -1 would be taken for
    labels[rng.permutation(n)[: n // 2 + 1]] = -1
    student, teacher = rng.normal(scale=2, size=(2, n, classes))
    alpha = float(rng.choice([0.2, 0.3, 0.7, 0.8]))
    return {"student": student, "teacher": teacher, "labels": labels, "alpha": alpha}


def _parts(student, teacher, labels):
    """Return what each example costs with its teacher and with its label, and which have one."""
    log_p, log_q = log_soften(teacher), log_soften(student)
    return (
        (np.exp(log_p) * (log_p - log_q)).sum(axis=1),
        -log_q[np.arange(len(labels)), labels],
        labels >= 0,
    )


def _mixed(combine):
    return lambda student, teacher, labels, alpha: combine(alpha, *_parts(student, teacher, labels))


check_mixed = Check(
    solution=_mixed(lambda a, soft, hard, known: a * soft.mean() + (1 - a) * hard[known].mean()),
    inputs=_some_labelled,
    mistakes={
        "-1 is no class: NumPy takes it for the last one. Leave those examples out of the labels' part.": (
            _mixed(lambda a, soft, hard, known: a * soft.mean() + (1 - a) * hard.mean())
        ),
        "The labels' part is divided by all examples: take the mean over those that have a label, or "
        "the labels count the less the more examples have none.": (
            _mixed(lambda a, soft, hard, known: a * soft.mean() + (1 - a) * (hard * known).mean())
        ),
        "The teacher judges all examples, those with a label, too.": (
            _mixed(lambda a, soft, hard, known: a * soft[~known].mean() + (1 - a) * hard[known].mean())
        ),
        "The teacher judges all examples: that is the loss without those that nobody labelled.": (
            _mixed(lambda a, soft, hard, known: a * soft[known].mean() + (1 - a) * hard[known].mean())
        ),
        "alpha is the share of the teacher: you gave it to the labels.": (
            _mixed(lambda a, soft, hard, known: (1 - a) * soft.mean() + a * hard[known].mean())
        ),
        "The two parts are right; their shares are alpha and 1 - alpha.": (
            _mixed(lambda a, soft, hard, known: soft.mean() + hard[known].mean())
        ),
        "The divergence has the teacher's probabilities in front: the mean is taken under them.": (
            lambda student, teacher, labels, alpha: (
                alpha * _parts(teacher, student, np.zeros_like(labels))[0].mean()
                + (1 - alpha) * _parts(student, teacher, labels)[1][labels >= 0].mean()
            )
        ),
    },
    praise="The teacher needs no label, so every example counts; the labels count as much as you say.",
)

# --- Do two gains add up? ------------------------------------------------------------------------------


def _accuracies(rng):
    """Four ways over the same seeds: a good seed is good for all of them."""
    n = int(rng.integers(5, 9))
    luck = rng.normal(scale=0.05, size=n)
    means = {"alone": 0.5, "transfer": 0.6, "teacher": 0.63, "both": 0.66}
    return {name: mean + luck + rng.normal(scale=0.01, size=n) for name, mean in means.items()}


def _of_seeds(difference, error=lambda d: d.std(ddof=1) / len(d) ** 0.5):
    def answer(alone, transfer, teacher, both):
        d = difference(alone, transfer, teacher, both)
        return d.mean(), error(d)

    return answer


def _missing(alone, transfer, teacher, both):
    return (transfer - alone) + (teacher - alone) - (both - alone)


def _unpaired(alone, transfer, teacher, both):
    d = _missing(alone, transfer, teacher, both)
    return d.mean(), sum(x.var(ddof=1) / len(x) for x in (alone, transfer, teacher, both)) ** 0.5


check_adding_up = Check(
    solution=_of_seeds(_missing),
    inputs=_accuracies,
    mistakes={
        "The difference is right, its error is not: add up within each seed first. A lucky draw of labels "
        "is lucky for all four.": _unpaired,
        "That is the spread of the seeds: the error of their mean is less, by the root of their number.": (
            _of_seeds(_missing, lambda d: d.std(ddof=1))
        ),
        "The standard deviation of few seeds has n - 1 below: `ddof=1`.": (
            _of_seeds(_missing, lambda d: d.std() / len(d) ** 0.5)
        ),
        "The sign: it is the sum of the two gains less the gain of both.": (
            _of_seeds(lambda *ways: -_missing(*ways))
        ),
        "That is the gain of both. The two single gains belong to it.": (
            _of_seeds(lambda alone, transfer, teacher, both: both - alone)
        ),
        "All three are gains over the student alone: subtract it from each.": (
            _of_seeds(lambda alone, transfer, teacher, both: transfer + teacher - both)
        ),
    },
    praise="Where it is above twice its error, the two give partly the same.",
)
