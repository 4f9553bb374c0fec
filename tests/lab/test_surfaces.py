import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dlopt_helpers.lab.surfaces import FAR, beale, contours, descend, quadratic, saddle, turned
from dlopt_helpers.sgd import SGD

SURFACES = [quadratic(), beale(), saddle(), turned(saddle(), 30, window=((-2.5, 2.5), (-2.5, 2.5)))]
every_surface = pytest.mark.parametrize("surface", SURFACES, ids=lambda s: s.name)


@every_surface
def test_gradient_is_the_derivative_of_the_value(surface):
    w, e = np.random.default_rng(0).normal(size=(50, 2)), 1e-6
    slopes = [(surface.value(w + e * side) - surface.value(w - e * side)) / (2 * e) for side in np.eye(2)]
    np.testing.assert_allclose(surface.gradient(w), np.stack(slopes, axis=-1), rtol=1e-6, atol=1e-6)


@every_surface
def test_minima_are_lowest_and_flat(surface):
    (x_low, x_high), (y_low, y_high) = surface.window
    grid = np.stack(np.meshgrid(np.linspace(x_low, x_high, 99), np.linspace(y_low, y_high, 99)), axis=-1)
    for minimum in np.array(surface.minima):
        assert surface.value(minimum) <= surface.value(grid).min() + 1e-12
        np.testing.assert_allclose(surface.gradient(minimum), 0, atol=1e-12)
    for x, y in (surface.start, *surface.minima):
        assert x_low < x < x_high and y_low < y < y_high


def test_L_is_the_largest_eigenvalue():
    surface = quadratic(kappa=7.0)
    hessian = np.stack([surface.gradient(side) for side in np.eye(2)])
    assert surface.L == np.linalg.eigvalsh(hessian).max() == 7


@settings(deadline=None, derandomize=True, database=None, max_examples=50)
@given(ratio=st.floats(0.05, 2).filter(lambda r: abs(r - 1) > 0.05), momentum=st.floats(0, 0.9))
def test_the_quadratic_diverges_above_the_limit_and_not_below(ratio, momentum):
    surface = quadratic()
    limit = 2 * (1 + momentum) / surface.L
    path = descend(SGD(lr=ratio * limit, momentum=momentum), surface, steps=3000)
    assert path.diverged.all() == (ratio > 1) and path.diverged.any() == (ratio > 1)


def test_path():
    path = descend(SGD(lr=0.02), quadratic(), steps=20)
    assert list(path.columns) == ["step", "x", "y", "value", "diverged"]
    assert list(path.step) == list(range(21))
    assert tuple(path.loc[0, ["x", "y"]]) == quadratic().start
    np.testing.assert_allclose(path.x, -4.0 * 0.98 ** np.arange(21))
    np.testing.assert_allclose(path.value, (path.x**2 + 25 * path.y**2) / 2)


def test_a_path_that_runs_away_ends():
    path = descend(SGD(lr=1.0), beale(), steps=100)
    assert path.diverged.all() and len(path) < 10
    assert np.isfinite(path.value).all() and np.hypot(path.x, path.y).max() < FAR


def test_noise_has_its_size_and_its_seed():
    quiet, a, b, c = (
        descend(SGD(lr=1e-9), quadratic(), steps=4000, noise=n, seed=s)
        for n, s in ((0, 0), (3, 0), (3, 0), (3, 1))
    )
    assert a.equals(b) and not a.equals(c)
    steps = np.diff(a[["x", "y"]], axis=0) - np.diff(quiet[["x", "y"]], axis=0)
    np.testing.assert_allclose(steps.std(axis=0), 3e-9, rtol=0.05)
    assert np.abs(steps.mean(axis=0)).max() < 3e-10


def test_noise_leaves_the_ridge_sooner():
    def steps_on_ridge(noise):
        return (descend(SGD(lr=0.05), saddle(), steps=400, noise=noise).y.abs() < 0.5).sum()

    assert steps_on_ridge(0.3) < steps_on_ridge(0.0) / 2


@every_surface
def test_contours(surface):
    lines = contours(surface)
    assert len(lines) <= 1500 and not lines.isna().any().any() and lines.level.nunique() == 10
    np.testing.assert_allclose(surface.value(lines[["x", "y"]].to_numpy()), lines.level, rtol=0.02, atol=0.01)
    heights = np.sort(lines.level.unique()) - surface.value(np.array(surface.minima[0]))
    ratios = heights[1:] / heights[:-1]
    np.testing.assert_allclose(ratios, ratios[0])
    assert (lines.groupby("line").size() > 3).all() and (lines.groupby("line")["level"].nunique() == 1).all()


@pytest.mark.parametrize(
    "call, name",
    [
        (lambda: quadratic(kappa=0.5), "kappa"),
        (lambda: descend(SGD(), saddle(), steps=-1), "steps"),
        (lambda: descend(SGD(), saddle(), noise=-0.1), "noise"),
        (lambda: contours(saddle(), levels=0), "levels"),
    ],
)
def test_refuses(call, name):
    with pytest.raises(ValueError, match=f"{name}="):
        call()
