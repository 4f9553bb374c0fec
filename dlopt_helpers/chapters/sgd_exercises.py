"""The checks of chapter 3.1's exercises, and the mistakes they know."""

import numpy as np

from dlopt_helpers.page.exercises import Check


def _one_step(rng):
    return {"w": rng.normal(size=3), "gradient": rng.normal(size=3), "lr": rng.uniform(0.01, 0.5)}


check_step = Check(
    solution=lambda w, gradient, lr: w - lr * gradient,
    inputs=_one_step,
    mistakes={
        "The step goes uphill: the gradient points to larger losses, so it is subtracted.": (
            lambda w, gradient, lr: w + lr * gradient
        ),
        "The learning rate is missing: it scales the gradient.": lambda w, gradient, lr: w - gradient,
        "The learning rate scales the weights as well: only the gradient is multiplied by it.": (
            lambda w, gradient, lr: lr * (w - gradient)
        ),
        "That is the change of the weights. Add it to w.": lambda w, gradient, lr: -lr * gradient,
        "Only the sign of the gradient is used: its size counts too.": (
            lambda w, gradient, lr: w - lr * np.sign(gradient)
        ),
        "The gradient is divided by the rate: a larger rate has to make a larger step.": (
            lambda w, gradient, lr: w - gradient / lr
        ),
    },
    praise="These few characters are the article's step 4.",
)


def _one_quadratic(rng):
    """A random symmetric positive definite matrix, and a momentum that is never 0 nor near it."""
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    curvatures = np.exp(rng.uniform(-2, 3, size=3))
    return {"hessian": rotation @ np.diag(curvatures) @ rotation.T, "momentum": rng.uniform(0.3, 0.95)}


def _curvatures(hessian):
    return np.linalg.eigvalsh(hessian)


check_largest_rate = Check(
    solution=lambda hessian, momentum: 2 * (1 + momentum) / _curvatures(hessian)[-1],
    inputs=_one_quadratic,
    mistakes={
        "That is right without momentum. Heavy ball multiplies the bound by 1 + momentum.": (
            lambda hessian, momentum: 2 / _curvatures(hessian)[-1]
        ),
        "That is the rate that lands in the valley in one step. The edge is twice as far.": (
            lambda hessian, momentum: (1 + momentum) / _curvatures(hessian)[-1]
        ),
        "The flattest direction does not decide: the steepest one is the first to blow up.": (
            lambda hessian, momentum: 2 * (1 + momentum) / _curvatures(hessian)[0]
        ),
        "The largest entry of the diagonal is not the largest curvature: the valley may be turned. "
        "Use the eigenvalues.": (lambda hessian, momentum: 2 * (1 + momentum) / np.diag(hessian).max()),
        "The sum of the curvatures is too careful: only the largest one counts.": (
            lambda hessian, momentum: 2 * (1 + momentum) / np.trace(hessian)
        ),
        "The edge moves by the factor 1 + momentum. Dividing by 1 - momentum is the effective rate.": (
            lambda hessian, momentum: 2 / (1 - momentum) / _curvatures(hessian)[-1]
        ),
        "Momentum widens the stable range, so the factor is 1 + momentum and not 1 - momentum.": (
            lambda hessian, momentum: 2 * (1 - momentum) / _curvatures(hessian)[-1]
        ),
        "That is the bound for Nesterov's rule. The question is about heavy ball.": (
            lambda hessian, momentum: 2 * (1 + momentum) / (1 + 2 * momentum) / _curvatures(hessian)[-1]
        ),
    },
    praise="You can name the rate at which a quadratic breaks before you run it.",
)


def _one_momentum_step(rng):
    return _one_step(rng) | {"velocity": rng.normal(size=3), "momentum": rng.uniform(0.3, 0.95)}


def _momentum_step(w, gradient, velocity, lr, momentum):
    velocity = momentum * velocity + gradient
    return w - lr * velocity, velocity


def _old_velocity(w, gradient, velocity, lr, momentum):
    return w - lr * velocity, momentum * velocity + gradient


def _velocity_lost(w, gradient, velocity, lr, momentum):
    return w - lr * (momentum * velocity + gradient), velocity


def _dampened(w, gradient, velocity, lr, momentum):
    velocity = momentum * velocity + (1 - momentum) * gradient
    return w - lr * velocity, velocity


def _keras(w, gradient, velocity, lr, momentum):
    velocity = momentum * velocity - lr * gradient
    return w + velocity, velocity


def _rate_twice(w, gradient, velocity, lr, momentum):
    velocity = momentum * velocity + lr * gradient
    return w - lr * velocity, velocity


def _nesterov(w, gradient, velocity, lr, momentum):
    velocity = momentum * velocity + gradient
    return w - lr * (gradient + momentum * velocity), velocity


def _uphill(w, gradient, velocity, lr, momentum):
    velocity = momentum * velocity - gradient
    return w - lr * velocity, velocity


check_momentum = Check(
    solution=_momentum_step,
    inputs=_one_momentum_step,
    mistakes={
        "The step uses the old velocity: update the velocity first, then the weights.": _old_velocity,
        "The velocity is not handed back: without it the next step has no memory.": _velocity_lost,
        "That is an average, with 1 - momentum before the gradient. SGD adds the whole gradient.": _dampened,
        "That is Keras's form, with the rate inside the velocity. It is right at a constant rate; the "
        "formula above keeps the rate outside.": _keras,
        "The learning rate is applied twice: once is enough, at the weights.": _rate_twice,
        "That is Nesterov's step. Heavy ball moves along the new velocity alone.": _nesterov,
        "The gradient enters the velocity with the wrong sign.": _uphill,
        "Only the weights come back: return the pair (weights, velocity).": (
            lambda **inputs: _momentum_step(**inputs)[0]
        ),
        "The pair is the wrong way round: the weights come first.": (
            lambda **inputs: _momentum_step(**inputs)[::-1]
        ),
    },
    praise="This is the whole of heavy-ball SGD.",
)
