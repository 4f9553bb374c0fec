"""The checks of chapter 3.2's exercises, and the mistakes they know."""

import itertools

import numpy as np

from dlopt_helpers.page.exercises import Check

# --- Exercise 1: one step of Adam -----------------------------------------------------------------


def _one_step(rng):
    """Moments as after a few steps; an epsilon so large that its place shows."""
    hyper = {"lr": rng.uniform(0.01, 0.5), "beta1": rng.uniform(0.6, 0.95), "beta2": rng.uniform(0.8, 0.99)}
    arrays = {name: rng.normal(size=3) for name in ("w", "gradient", "m")}
    return arrays | {"v": rng.uniform(0.1, 1, size=3), "t": int(rng.integers(2, 9)), **hyper, "eps": 0.1}


def _means(gradient, m, v, beta1, beta2):
    return beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * gradient**2


def _adam(change):
    """Return a step whose move is ``change`` of the new means and the hyper-parameters."""

    def step(w, gradient, m, v, t, lr, beta1, beta2, eps):
        m, v = _means(gradient, m, v, beta1, beta2)
        return w - change(m, v, 1 - beta1**t, 1 - beta2**t, lr, eps), m, v

    return step


_right = _adam(lambda m, v, c1, c2, lr, eps: lr * (m / c1) / ((v / c2) ** 0.5 + eps))


def _old_means(w, gradient, m, v, t, lr, beta1, beta2, eps):
    after = _means(gradient, m, v, beta1, beta2)
    return (w - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps), *after)


def _count_one_short(**inputs):
    return _right(**inputs | {"t": inputs["t"] - 1})


def _count_one_long(**inputs):
    return _right(**inputs | {"t": inputs["t"] + 1})


def _corrected_kept(**inputs):
    w, m, v = _right(**inputs)
    return w, m / (1 - inputs["beta1"] ** inputs["t"]), v / (1 - inputs["beta2"] ** inputs["t"])


def _betas_swapped(**inputs):
    return _right(**inputs | {"beta1": inputs["beta2"], "beta2": inputs["beta1"]})


def _whole_gradient(w, gradient, m, v, t, lr, beta1, beta2, eps):
    m, v = beta1 * m + gradient, beta2 * v + gradient**2
    return w - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps), m, v


def _not_squared(w, gradient, m, v, t, lr, beta1, beta2, eps):
    m, v = beta1 * m + (1 - beta1) * gradient, beta2 * v + (1 - beta2) * abs(gradient)
    return w - lr * (m / (1 - beta1**t)) / ((v / (1 - beta2**t)) ** 0.5 + eps), m, v


check_adam = Check(
    solution=_right,
    inputs=_one_step,
    mistakes={
        "The step goes uphill: it is subtracted.": _adam(
            lambda m, v, c1, c2, lr, eps: -lr * (m / c1) / ((v / c2) ** 0.5 + eps)
        ),
        "The learning rate is missing.": _adam(
            lambda m, v, c1, c2, lr, eps: (m / c1) / ((v / c2) ** 0.5 + eps)
        ),
        "Epsilon is added to the weights: it belongs to the denominator. Mind the brackets.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * (m / c1) / (v / c2) ** 0.5 + eps
        ),
        "Epsilon is subtracted from the weights: it belongs to the denominator. Mind the brackets.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * (m / c1) / (v / c2) ** 0.5 - eps
        ),
        "Epsilon stands under the root: here it is added to the root.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * (m / c1) / (v / c2 + eps) ** 0.5
        ),
        "Epsilon is missing: a weight that never had a gradient would become 0/0.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * (m / c1) / (v / c2) ** 0.5
        ),
        "That is Keras's form, with epsilon before the correction. This book corrects v first.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * (m / c1) * c2**0.5 / (v**0.5 + eps)
        ),
        "Neither mean is corrected for its start at 0.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * m / (v**0.5 + eps)
        ),
        "Only m is corrected: v started at 0 too.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * (m / c1) / (v**0.5 + eps)
        ),
        "Only v is corrected: m started at 0 too.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * m / ((v / c2) ** 0.5 + eps)
        ),
        "The root is missing: the denominator is a gradient, not a squared one.": _adam(
            lambda m, v, c1, c2, lr, eps: lr * (m / c1) / (v / c2 + eps)
        ),
        "The step uses the old means: update m and v first, then the weights.": _old_means,
        "The correction counts one step too few: t counts this step already.": _count_one_short,
        "The correction counts one step too many: t counts this step already.": _count_one_long,
        "The corrected means are handed back: keep m and v as they are, and correct anew in each step.": (
            _corrected_kept
        ),
        "The two betas are swapped: beta1 belongs to m, beta2 to v.": _betas_swapped,
        "The gradient enters whole: a mean takes only the share 1 - beta of it.": _whole_gradient,
        "v is a mean of squares: the gradient enters it squared.": _not_squared,
        "Only the weights come back: return w, m and v.": lambda **inputs: _right(**inputs)[0],
    },
    praise="These are the lines that train most of today's networks.",
)

# --- Exercise 2: the first ten steps without correction -------------------------------------------


def _betas(rng):
    return {"beta1": rng.uniform(0.5, 0.95), "beta2": rng.uniform(0.96, 0.999)}


_T = np.arange(1, 11)

check_first_steps = Check(
    solution=lambda beta1, beta2: (1 - beta1**_T) / (1 - beta2**_T) ** 0.5,
    inputs=_betas,
    mistakes={
        "That is the factor by which the correction changes them: turn it over.": (
            lambda beta1, beta2: (1 - beta2**_T) ** 0.5 / (1 - beta1**_T)
        ),
        "With the correction every step has the length 1. What is left without it?": (
            lambda beta1, beta2: np.ones(10)
        ),
        "That is m. It is still divided by the root of v.": lambda beta1, beta2: 1 - beta1**_T,
        "v is divided by before its root was taken.": lambda beta1, beta2: (1 - beta1**_T) / (1 - beta2**_T),
        "Those are the powers of beta. m grows from 1 - beta1 towards 1.": (
            lambda beta1, beta2: beta1**_T / beta2 ** (_T / 2)
        ),
        "The means have seen one gradient already when the first step is made: count from 1.": (
            lambda beta1, beta2: np.divide(
                1 - beta1 ** (_T - 1), (1 - beta2 ** (_T - 1)) ** 0.5, out=np.zeros(10), where=_T > 1
            )
        ),
        "That is right for the first step. After t steps m is 1 - beta1**t.": (
            lambda beta1, beta2: np.full(10, (1 - beta1) / (1 - beta2) ** 0.5)
        ),
    },
    praise="The start at 0 makes the first steps too long, not too short.",
)

# --- Exercise 3: a broken Adam --------------------------------------------------------------------


def broken(w, gradients, lr, beta1, beta2, eps):
    t, m, v = 1, 0 * w, 0 * w
    for gradient in gradients:
        m = beta1 * m + (1 - beta1) * gradient
        v = beta2 * v + (1 - beta2) * gradient**2
        m_hat = m / (1 - beta1**t)
        v_hat = v / (1 - beta2**t)
        w = w - lr * m_hat / v_hat**0.5 + eps
    return w


def _run(w, gradients, lr, beta1, beta2, eps, counts=range(1, 99), inside=True):
    m, v = 0 * w, 0 * w
    for t, gradient in zip(counts, gradients, strict=False):
        m, v = _means(gradient, m, v, beta1, beta2)
        m_hat, root = m / (1 - beta1**t), (v / (1 - beta2**t)) ** 0.5
        w = w - lr * m_hat / (root + eps) if inside else w - lr * m_hat / root + eps
    return w


def _some_gradients(rng):
    hyper = {"lr": rng.uniform(0.01, 0.5), "beta1": rng.uniform(0.6, 0.95), "beta2": rng.uniform(0.8, 0.99)}
    return {"w": rng.normal(size=3), "gradients": rng.normal(size=(6, 3)), **hyper, "eps": 0.1}


check_repaired = Check(
    solution=_run,
    inputs=_some_gradients,
    mistakes={
        "Nothing has changed yet. Follow t through the loop, then look at the brackets around eps.": broken,
        "Epsilon is mended. The second mistake is in the counting: what is t in the second step?": (
            lambda **inputs: _run(**inputs, counts=itertools.repeat(1))
        ),
        "The count is mended. The second mistake moves every weight alike, whatever its gradient.": (
            lambda **inputs: _run(**inputs, inside=False)
        ),
        "t advances too early: in the first step it has to be 1.": (
            lambda **inputs: _run(**inputs, counts=range(2, 99))
        ),
    },
    praise="Both mistakes train a network all the same. Only a comparison step by step finds them.",
)
