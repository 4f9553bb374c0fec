r"""Surfaces over the plane on which an update rule leaves a path."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import contourpy
import numpy as np
import pandas as pd

from dlopt_helpers._require import refuse, require_kind, require_one, require_whole

FAR = 1e3  # a path that gets this far from the origin will not come back
_POINTS = 1_200  # in all contour lines of a surface: enough to look smooth, few enough for a page


@dataclass(frozen=True)
class Surface:
    """A function of a point ``w = (x, y)`` to be minimised.

    Args:
      name: what it is called.
      value: maps an array whose last axis is (x, y) to the values.
      gradient: maps such an array to the gradients, of the same shape.
      start: where a path begins.
      minima: the points with the smallest value.
      window: ``((x_low, x_high), (y_low, y_high))``, the part worth drawing.
      L: the largest eigenvalue of the Hessian where it is the same everywhere, else None. Plain
        gradient descent diverges for learning rates above 2/L, heavy ball above 2(1 + momentum)/L.
    """

    name: str
    value: Callable
    gradient: Callable
    start: tuple
    minima: tuple
    window: tuple
    L: float | None = None


def quadratic(kappa=25.0):
    r"""Return a bowl that is ``kappa`` times as steep along y as along x.

    .. math:: f(x, y) = \tfrac12\,(x^2 + \kappa y^2), \qquad L = \kappa

    Args:
      kappa: condition number, at least 1.

    Raises:
      ValueError: if ``kappa`` is smaller than 1.

    Example:
      >>> quadratic().value(np.array([3.0, 1.0]))
      17.0
    """
    require_one("kappa", kappa, "a finite number >= 1", lambda x: x >= 1)
    curvature = np.array([1.0, kappa])
    return Surface(
        "ill-conditioned bowl",
        value=lambda w: _plain((curvature * w**2).sum(-1) / 2),
        gradient=lambda w: curvature * w,
        start=(-4.0, 0.8),
        minima=((0.0, 0.0),),
        window=((-5.0, 5.0), (-1.5, 1.5)),
        L=float(kappa),
    )


def turned(surface, degrees, window):
    """Return ``surface`` turned counter-clockwise about the origin, seen through another ``window``.

    A rule whose formula treats each coordinate on its own may walk differently there.

    Raises:
      ValueError: if ``surface`` is no :class:`Surface`, ``degrees`` no number, or ``window`` not as in one.

    Example:
      >>> bowl = turned(quadratic(), 90, window=((-1.5, 1.5), (-5.0, 5.0)))
      >>> round(bowl.value(np.array([-1.0, 3.0])), 9)
      17.0
    """
    require_kind("surface", surface, Surface, "a Surface")
    require_one("degrees", degrees, "a finite number", lambda _: True)
    sides = np.shape(window) == (2, 2) and np.asarray(window)
    if sides is False or sides.dtype.kind not in "iuf" or not np.diff(sides).min() > 0:
        refuse("window", window, "((x_low, x_high), (y_low, y_high)), each low below its high")
    angle = np.deg2rad(degrees)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    return replace(
        surface,
        name=f"{surface.name}, turned",
        value=lambda w: surface.value(w @ turn.T),
        gradient=lambda w: surface.gradient(w @ turn.T) @ turn,
        start=tuple((np.array(surface.start) @ turn).tolist()),
        minima=tuple(tuple((np.array(m) @ turn).tolist()) for m in surface.minima),
        window=window,
    )


def beale():
    r"""Return Beale's function: steep walls, a flat bent valley.

    .. math:: f(x, y) = (1.5 - x + xy)^2 + (2.25 - x + xy^2)^2 + (2.625 - x + xy^3)^2

    Example:
      >>> beale().value(np.array([3.0, 0.5]))
      0.0

    References:
      Beale 1958, "On an iterative method for finding a local minimum of a function of more than
      one variable".
    """
    constants, powers = np.array([1.5, 2.25, 2.625]), np.array([1, 2, 3])

    def residuals(w):
        x, y = w[..., :1], w[..., 1:]
        return constants - x + x * y**powers

    def gradient(w):
        x, y = w[..., :1], w[..., 1:]
        by_x, by_y = y**powers - 1, x * powers * y ** (powers - 1)
        return np.stack([(2 * residuals(w) * d).sum(-1) for d in (by_x, by_y)], axis=-1)

    return Surface(
        "Beale's valley",
        value=lambda w: _plain((residuals(w) ** 2).sum(-1)),
        gradient=gradient,
        start=(1.0, 1.6),
        minima=((3.0, 0.5),),
        window=((-0.5, 4.5), (-1.5, 2.0)),
    )


def saddle():
    r"""Return a saddle between two valleys.

    .. math:: f(x, y) = \tfrac12 x^2 + \tfrac14 y^4 - \tfrac12 y^2

    The gradient vanishes at the origin, the pass between the minima at (0, 1) and (0, -1). A path
    starts almost on the ridge that leads there.

    Example:
      >>> saddle().value(np.array([0.0, 1.0]))
      -0.25
    """
    return Surface(
        "saddle",
        value=lambda w: _plain(w[..., 0] ** 2 / 2 + w[..., 1] ** 4 / 4 - w[..., 1] ** 2 / 2),
        gradient=lambda w: np.stack([w[..., 0], w[..., 1] ** 3 - w[..., 1]], axis=-1),
        start=(1.8, 0.001),
        minima=((0.0, 1.0), (0.0, -1.0)),
        window=((-2.0, 2.0), (-1.6, 1.6)),
    )


def _plain(value):
    """Return a Python number for the value at one point, so that it prints as one."""
    return value.item() if isinstance(value, np.generic) else value


def descend(rule, surface, steps=100, noise=0.0, seed=0):
    """Follow ``rule`` from the start of ``surface`` and return the path.

    Args:
      rule: an update rule, such as ``SGD(lr=0.1)``.
      surface: a :class:`Surface`.
      steps: number of updates.
      noise: standard deviation of what a normal distribution adds to each entry of the
        gradient, in place of the noise of a mini-batch.
      seed: of that noise.

    Returns:
      A data frame with the columns ``step`` (0 is the start), ``x``, ``y``, ``value`` and ``diverged``.
      A path that leaves the disc of radius 1000 ends before, and ``diverged`` is true in all its rows.

    Raises:
      ValueError: if ``rule`` or ``surface`` is none, or ``steps``, ``noise`` or ``seed`` out of range.

    Example:
      >>> from dlopt_helpers.sgd import SGD
      >>> path = descend(SGD(lr=0.05), quadratic(), steps=100)
      >>> bool(path.value.iloc[-1] < 0.01)
      True
      >>> bool(descend(SGD(lr=0.1), quadratic()).diverged.all())  # 0.1 > 2/L = 0.08
      True
    """
    if isinstance(rule, type) or not hasattr(rule, "step"):
        refuse("rule", rule, "a rule, such as SGD(lr=0.1)")
    require_kind("surface", surface, Surface, "a Surface")
    steps, seed = require_whole("steps", steps, 0), require_whole("seed", seed, 0)
    require_one("noise", noise, "a finite number >= 0", lambda x: x >= 0)
    rng, w = np.random.default_rng(seed), np.array(surface.start)
    state, points = rule.init(w), [w]
    for _ in range(steps):
        gradient = surface.gradient(w) + noise * rng.standard_normal(2)
        w, state = rule.step(w, gradient, state)
        if not np.hypot(*w) < FAR:  # not a number is not smaller either
            break
        points.append(w)
    x, y = np.array(points).T
    value = surface.value(np.array(points))
    columns = {"step": range(len(points)), "x": x, "y": y, "value": value, "diverged": len(points) <= steps}
    return pd.DataFrame(columns)


def contours(surface, levels=10):
    """Return contour lines of ``surface`` in its window, close together near the minimum.

    Args:
      surface: a :class:`Surface`.
      levels: how many heights, spaced evenly in the logarithm of the height above the minimum.

    Returns:
      A data frame with one row per point of a line, in order along it: ``level``, ``line``
      (a number for each line), ``x`` and ``y``; at most 1,500 rows.

    Raises:
      ValueError: if ``surface`` is none, or ``levels`` no whole number >= 1.

    Example:
      >>> list(contours(quadratic()).columns)
      ['level', 'line', 'x', 'y']
    """
    require_kind("surface", surface, Surface, "a Surface")
    levels = require_whole("levels", levels, 1)
    x, y = (np.linspace(*side, 201) for side in surface.window)
    lowest = float(surface.value(np.array(surface.minima[0])))
    height = surface.value(np.stack(np.meshgrid(x, y), axis=-1)) - lowest
    generator = contourpy.contour_generator(x, y, height)
    heights = np.geomspace(height.max() / 1000, height.max() / 1.5, levels)
    lines = [(h + lowest, line) for h in heights for line in generator.lines(h)]
    skip = -(-sum(len(line) for _, line in lines) // _POINTS)
    rows = [(h, i, *point) for i, (h, line) in enumerate(lines) for point in [*line[:-1:skip], line[-1]]]
    return pd.DataFrame(rows, columns=["level", "line", "x", "y"])
