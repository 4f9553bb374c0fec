"""The checks of chapter 3.4's exercises, and the mistakes they know."""

import numpy as np
from scipy.optimize import brentq
from scipy.special import entr

from dlopt_helpers.distillation import log_soften, soften
from dlopt_helpers.page.exercises import Goal


def _numbers(result):
    """Return ``result`` as an array of numbers, which is empty where there are none."""
    try:
        return np.asarray(result, dtype=float)
    except (TypeError, ValueError):  # also of lists of unequal lengths
        return np.empty(0)


# --- Exercise 1: soften ---------------------------------------------------------------------------


def _rows_of_all_sizes(rng):
    """Some usual rows, one near 4000, one near -4000, and one that goes from -5000 to 5000."""
    logits = rng.normal(scale=3, size=(5, 7))
    logits += rng.permutation([0, 0, 0, 4000, -4000])[:, None]
    wide = rng.permutation(np.linspace(-5000, 5000, 7))
    return {"logits": np.insert(logits, rng.integers(6), wide, axis=0), "temperature": rng.uniform(1.5, 4)}


def _softens(result, logits, temperature):
    p = _numbers(result)
    if p.shape != logits.shape:
        return f"Return a probability for each logit: for logits of shape {logits.shape} that shape."
    finite = np.isfinite(p).all(axis=1)
    if not finite[logits.max(axis=1).argmax()]:
        return (
            f"The row with a logit of 5000 is not finite, for exp({5000 / temperature:.0f}) is infinite: "
            "subtract from logits / temperature each row's maximum first."
        )
    if not finite.all():
        return "Rows far below the largest logit come out as NaN: subtract from each row its own maximum."
    return _sums_differ(p) or _a_row_differs(p, logits, temperature)


def _sums_differ(p):
    if np.allclose(p.sum(axis=1), 1):
        return ""
    if np.allclose(p.sum(axis=0), 1):
        return "The columns sum to 1: a row is an example, and each row is to sum to 1."
    if np.isclose(p.sum(), 1):
        return "The whole matrix sums to 1: each row is to, so divide each by its own sum."
    row = np.abs(p.sum(axis=1) - 1).argmax()
    return f"Row {row} sums to {p[row].sum():.3g}, not to 1: divide its exponentials by their sum."


def _a_row_differs(p, logits, temperature):
    expected = soften(logits, temperature)
    off = np.abs(p - expected).max(axis=1)
    if off.max() <= 1e-6:
        return ""
    row = off.argmax()
    with np.printoptions(precision=3, suppress=True, linewidth=1000):
        z, right, given = (str(a[row]) for a in (logits, expected, p))
    return f"Not yet. At T = {temperature:.3g} the row {z} becomes {right}, not {given}."


check_soften = Goal(
    solution=soften,
    inputs=_rows_of_all_sizes,
    reached=_softens,
    mistakes={
        "The temperature multiplies the logits: it is to divide them.": (
            lambda logits, temperature: soften(logits * temperature)
        ),
        "The temperature enters squared: divide by it once.": (
            lambda logits, temperature: soften(logits, temperature**2)
        ),
        "The temperature changes nothing: divide the logits by it.": (
            lambda logits, temperature: soften(logits)
        ),
        "The temperature divides the probabilities, so they sum to 1/T: divide the logits by it.": (
            lambda logits, temperature: soften(logits) / temperature
        ),
        "The softmax is taken twice: its results are probabilities already.": (
            lambda logits, temperature: soften(soften(logits, temperature))
        ),
        "A softmax comes before the temperature: divide the logits, then take the softmax once.": (
            lambda logits, temperature: soften(soften(logits), temperature)
        ),
        "Those are logarithms of the probabilities: take their exponentials.": log_soften,
        "Those are still logits: take their exponentials and divide by the sum of each row.": (
            lambda logits, temperature: logits / temperature
        ),
        "Those are still logits, less their maximum: exponentials and a division by their sum are left.": (
            lambda logits, temperature: (logits - logits.max(axis=1, keepdims=True)) / temperature
        ),
        "The exponentials are right: divide them by the sum of each row.": (
            lambda logits, temperature: np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        ),
    },
    praise="The ranking stays at every temperature; a higher one brings the classes closer together.",
)

# --- Exercise 2: a temperature from the entropy ---------------------------------------------------


def _teacher(rng, labels):
    """Logits of a teacher that takes a class for the next one or two, surer of some examples than others."""
    likeness = np.array([9, 5, 3, 0, 0, 0, 0, 0, 0, 0])
    logits = likeness[(np.arange(10) - labels[:, None]) % 10] + rng.normal(size=(len(labels), 10))
    return logits * rng.uniform(0.5, 1.5, size=(len(labels), 1))


def _entropies(p):
    return entr(p).sum(axis=-1)


def _mean_entropy(logits, temperature):
    return _entropies(soften(logits, temperature)).mean()


def _temperature_where(quantity):
    """Return the function that finds the temperature at which ``quantity`` is the wanted entropy."""
    return lambda logits, entropy: brentq(lambda t: quantity(logits, t) - entropy, 0.05, 1000)


def _a_wanted_entropy(rng):
    """Rows of two classes only, so that the mean row, too, can have so low an entropy."""
    logits = _teacher(rng, labels=np.repeat(rng.choice(10, size=2, replace=False), 15))
    return {"logits": logits, "entropy": rng.uniform(1.6, 2)}


_temperature_for = _temperature_where(_mean_entropy)
_NATS = 0.005  # the temperature may be wrong by about as many parts of itself


def _has_the_entropy(result, logits, entropy):
    temperature = _numbers(result)
    if temperature.size != 1:
        return "Return one number: a temperature for all rows."
    temperature = temperature.item()
    if np.isnan(temperature):
        return "The temperature is NaN: at a small T a logarithm of 0 or an exponential went wrong."
    if not 0 < temperature < np.inf:
        return f"A temperature is a finite number above 0, not {temperature:g}."
    reached = _mean_entropy(logits, temperature)
    if abs(reached - entropy) <= _NATS:
        return ""
    wanted = f"{entropy:.3f} within {_NATS} are wanted"
    change = "larger" if reached < entropy else "smaller"
    return (
        f"At T = {temperature:.4g} the mean entropy is {reached:.3f} nats: {wanted}, so T must be {change}."
    )


check_temperature = Goal(
    solution=_temperature_for,
    inputs=_a_wanted_entropy,
    reached=_has_the_entropy,
    tolerance=_NATS,
    mistakes={
        "That is right for the mean row: average the entropies of the rows, not the rows.": (
            _temperature_where(lambda logits, t: _entropies(soften(logits, t).mean(axis=0)))
        ),
        "That is right in bits: the wanted entropy is in nats, so take the natural logarithm.": (
            _temperature_where(lambda logits, t: _mean_entropy(logits, t) / np.log(2))
        ),
        "That is right for the first row alone: the mean over all rows is wanted.": (
            _temperature_where(lambda logits, t: _mean_entropy(logits[:1], t))
        ),
        "That is the mean of a temperature for each row: one T for all rows gives the mean entropy.": (
            lambda logits, entropy: np.mean([_temperature_for(row[None], entropy) for row in logits])
        ),
        "That is right for the sum over the rows: the mean is wanted.": (
            _temperature_where(lambda logits, t: _entropies(soften(logits, t)).sum())
        ),
        "The wanted entropy is divided by log(classes): it is in nats already.": (
            lambda logits, entropy: _temperature_for(logits, entropy / np.log(logits.shape[1]))
        ),
        "That is 1/T.": lambda logits, entropy: 1 / _temperature_for(logits, entropy),
        "That is the logarithm of T.": lambda logits, entropy: np.log(_temperature_for(logits, entropy)),
        "That is an entropy: return the temperature that gives it.": lambda logits, entropy: entropy,
    },
    praise="A wanted entropy fits any teacher; a wanted temperature depends on the scale of its logits.",
)

# --- Exercise 3: the control ----------------------------------------------------------------------


def _two_hundred_examples(rng):
    return {"logits": _teacher(rng, labels=rng.permutation(200) % 10), "seed": int(rng.integers(1_000_000))}


def _others(z, top):
    """Return the logits but for each row's one at ``top``, in the order of the classes."""
    return z[np.arange(z.shape[1]) != top[:, None]].reshape(len(z), -1)


def _shuffled(logits, seed):
    control, top = logits.copy(), logits.argmax(axis=1)
    others = np.random.default_rng(seed).permuted(_others(logits, top), axis=1)
    control[np.arange(logits.shape[1]) != top[:, None]] = others.ravel()
    return control


def _order_left(others, top):
    """Return the share of the others' variance, within rows, that a row's largest class foretells.

    Where the 9 others of n rows change places at random, 8 n times that share is about a chi square of 80
    degrees of freedom, 8 for each of 10 classes: of 200 rows the share is 0.05, its spread 0.008.
    """
    z = others - others.mean(axis=1, keepdims=True)
    z /= z.std(axis=1, keepdims=True)
    return sum((top == c).sum() * (z[top == c].mean(axis=0) ** 2).sum() for c in np.unique(top)) / z.size


def _values(z):
    """Return each row's values in order, less the largest: a softmax does not see what is added to a row."""
    return np.sort(z - z.max(axis=1, keepdims=True), axis=1)


def _equal(a, b):
    return np.allclose(a, b, rtol=0, atol=1e-4)  # float32 does for logits


def _is_a_control(result, logits, seed):
    control = _numbers(result)
    if control.shape != logits.shape:
        return f"Return a logit for each logit: for logits of shape {logits.shape} that shape."
    if not np.isfinite(control).all():
        return "A logit is NaN or infinite: only change the places of those that there are."
    if _equal(control, logits):
        return "Nothing is changed: the control is the teacher."
    return _label_or_confidence_lost(control, logits) or _knowledge_left(control, logits.argmax(axis=1))


def _label_or_confidence_lost(control, logits):
    top = logits.argmax(axis=1)
    moved = (control.argmax(axis=1) != top).sum()
    if not moved and _equal(np.ptp(_others(control, top), axis=1), 0):
        return (
            "That is label smoothing itself: the entropy of each example is another now, and a difference "
            "could come from that. Keep each row's values and change their places."
        )
    if _equal(control.sum(axis=1), 1) and (control >= 0).all():
        return "Those are probabilities: return logits, which the training will soften."
    if flaw := _values_lost(control, logits):
        return flaw
    return (
        f"In {moved} of {len(top)} rows the largest logit moved: it is the label, and stays." if moved else ""
    )


def _values_lost(control, logits):
    values, kept = _values(control), _values(logits)
    if _equal(values, kept):
        return ""
    if _equal(*(v[np.lexsort(v.T)] for v in (values, kept))):
        return "Rows changed places, so they no longer fit their examples: change places within each row."
    if _equal(*(np.sort(z, axis=None) for z in (control, logits))):
        return "Values went from one example to another: change places within each row."
    return (
        "The values of a row are others now, and with them its entropy: a difference could come from that. "
        "Change only their places."
    )


def _knowledge_left(control, top):
    others = _others(control, top)
    order = others.argsort(axis=1)
    if (order == order[0]).all():
        return "The others stand in one order in every row: that can be learned, too. Draw one for each row."
    # Chance goes above 0.13, 10 spreads up, less than once in 10**12 (chi square). The teacher shows 0.8.
    if (left := _order_left(others, top)) > 0.13:
        return (
            f"The label still foretells {100 * left:.0f} % of where the others stand (by chance: 5 %), so "
            "what is alike stays alike. Draw a new order of all others for each row."
        )
    return ""


class _Seeded(Goal):
    """A goal whose right answers depend on the seed, and on nothing else that changes."""

    @np.errstate(all="ignore")
    def judge(self, answer):
        verdict, line = super().judge(answer)
        if not verdict:
            return verdict, line
        logits = self.inputs(np.random.default_rng())["logits"]
        first, again, other = (_numbers(answer(logits=logits.copy(), seed=seed)) for seed in (1, 1, 2))
        if not np.array_equal(first, again):
            return False, "✗ Two calls with one seed differ: draw from np.random.default_rng(seed)."
        if np.array_equal(first, other):
            return False, "✗ Another seed gives the same control: draw from np.random.default_rng(seed)."
        return verdict, line


check_control = _Seeded(
    solution=_shuffled,
    inputs=_two_hundred_examples,
    reached=_is_a_control,
    mistakes={
        "That is the label alone: the control keeps the confidence of the teacher, too.": (
            lambda logits, seed: np.eye(logits.shape[1])[logits.argmax(axis=1)]
        ),
    },
    praise="A student that does better with the teacher than with this control got more than smooth labels.",
)
