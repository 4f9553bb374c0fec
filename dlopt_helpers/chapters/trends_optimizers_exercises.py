"""The checks of chapter 5's exercises on optimisers, and the mistakes they know."""

import numpy as np

from dlopt_helpers.chapters.trends_optimizers import singular_values
from dlopt_helpers.page.exercises import Check

# --- One step of Lion -----------------------------------------------------------------------------


def _one_step(rng):
    """A mean and a gradient of several sizes and signs, so that each direction shows."""
    m = np.array([1.0, 1.0, -1.0, -1.0, 0.1, 1.0]) * rng.uniform(0.8, 1.2, 6)
    gradient = np.array([-12.0, -3.0, 12.0, 3.0, -0.05, 1.0]) * rng.uniform(0.9, 1.1, 6)
    hyper = {"beta1": rng.uniform(0.85, 0.87), "beta2": rng.uniform(0.5, 0.6)}
    hyper |= {"lr": rng.uniform(0.01, 0.1), "weight_decay": rng.uniform(0.1, 0.5)}
    return {"w": rng.normal(size=6), "gradient": gradient, "m": m, **hyper}


def _lion(w, gradient, m, beta1, beta2, lr, weight_decay):
    u = beta1 * m + (1 - beta1) * gradient
    return w - lr * (np.sign(u) + weight_decay * w), beta2 * m + (1 - beta2) * gradient


def _with(change):
    """Return a step whose direction is ``change`` of the arguments, with the right mean."""

    def step(w, gradient, m, beta1, beta2, lr, weight_decay):
        right = _lion(w, gradient, m, beta1, beta2, lr, weight_decay)[1]
        return change(w, gradient, m, beta1, beta2, lr, weight_decay), right

    return step


def _coupled(w, gradient, m, beta1, beta2, lr, weight_decay):
    return _lion(w, gradient + weight_decay * w, m, beta1, beta2, lr, 0.0)


check_lion = Check(
    solution=_lion,
    inputs=_one_step,
    mistakes={
        "The two betas are swapped: beta1 mixes the direction, beta2 keeps the mean.": (
            lambda **i: _lion(**i | {"beta1": i["beta2"], "beta2": i["beta1"]})
        ),
        "That is the sign of the old mean: the gradient has its share 1 - beta1 in the direction.": _with(
            lambda w, g, m, b1, b2, lr, d: w - lr * (np.sign(m) + d * w)
        ),
        "That is the sign of the new mean, mixed with beta2. The direction is mixed with beta1.": _with(
            lambda w, g, m, b1, b2, lr, d: w - lr * (np.sign(b2 * m + (1 - b2) * g) + d * w)
        ),
        "The sign is missing: every weight moves by the learning rate.": _with(
            lambda w, g, m, b1, b2, lr, d: w - lr * (b1 * m + (1 - b1) * g + d * w)
        ),
        "The decay is inside the gradient: here it stands beside the sign.": _coupled,
        "The decay is missing.": lambda **i: _lion(**i | {"weight_decay": 0.0}),
        "The decay is not multiplied by the learning rate.": _with(
            lambda w, g, m, b1, b2, lr, d: w - lr * np.sign(b1 * m + (1 - b1) * g) - d * w
        ),
        "The step goes uphill: it is subtracted.": _with(
            lambda w, g, m, b1, b2, lr, d: w + lr * (np.sign(b1 * m + (1 - b1) * g) - d * w)
        ),
        "Only the weights come back: return w and m.": lambda **i: _lion(**i)[0],
    },
    praise="One array of state, and no root, no division, no bias correction.",
)

# --- Singular values through Newton-Schulz --------------------------------------------------------

_A, _B, _C = 3.4445, -4.7750, 2.0315


def _values(rng):
    return {"s": np.sort(rng.uniform(0.1, 1.1, 4)), "steps": int(rng.integers(3, 6))}


def _through(s, steps):
    return singular_values(s / np.sqrt((s**2).sum()), steps)


check_newton_schulz = Check(
    solution=_through,
    inputs=_values,
    mistakes={
        "The normalisation is missing: divide by the Frobenius norm first.": singular_values,
        "Divided by the largest singular value: the Frobenius norm is the root of the sum of squares.": (
            lambda s, steps: singular_values(s / s.max(), steps)
        ),
        "Divided by the sum of squares: take its root.": (
            lambda s, steps: singular_values(s / (s**2).sum(), steps)
        ),
        "Divided by the sum: the Frobenius norm is the root of the sum of squares.": (
            lambda s, steps: singular_values(s / s.sum(), steps)
        ),
        "That is one step: repeat the polynomial.": lambda s, steps: _through(s, 1),
        "One step too few.": lambda s, steps: _through(s, steps - 1),
        "One step too many.": lambda s, steps: _through(s, steps + 1),
        "The powers are odd: s, s**3 and s**5, for X, (XX')X and (XX')(XX')X.": (
            lambda s, steps: _even(s / np.sqrt((s**2).sum()), steps)
        ),
        "Exactly orthogonal would be all ones. Five steps of this polynomial only come near.": (
            lambda s, steps: np.ones_like(s)
        ),
    },
    praise="Large and small values end up alike, none of them at 1.",
)


def _even(s, steps):
    for _ in range(steps):
        s = _A * s + _B * s**2 + _C * s**3
    return s


# --- The average of schedule-free -----------------------------------------------------------------


def _gradients(rng):
    return {"w": rng.normal(), "gradients": rng.normal(size=5), "lr": rng.uniform(0.1, 1.0)}


def _free(w, gradients, lr, first=1, fading=None):
    z = x = w
    for t, gradient in enumerate(gradients, start=first):
        z = z - lr * gradient
        c = fading or 1 / t
        x = (1 - c) * x + c * z
    return x


check_average = Check(
    solution=_free,
    inputs=_gradients,
    mistakes={
        "That is z, the last point: return the average x.": lambda w, gradients, lr: w - lr * gradients.sum(),
        "The average counts the start: c is 1 in the first step, so that x forgets it.": (
            lambda w, gradients, lr: _free(w, gradients, lr, first=2)
        ),
        "That average fades, with a constant c. Here c is 1/t, and every z counts alike.": (
            lambda w, gradients, lr: _free(w, gradients, lr, fading=0.1)
        ),
        "The steps go uphill: they are subtracted.": lambda w, gradients, lr: _free(w, gradients, -lr),
        "The learning rate is missing.": lambda w, gradients, lr: _free(w, gradients, 1.0),
        "That is y, for beta 0.9. The weights to keep are x.": (
            lambda w, gradients, lr: 0.1 * (w - lr * gradients.sum()) + 0.9 * _free(w, gradients, lr)
        ),
    },
    praise="x is the plain mean of all z after the start.",
)
