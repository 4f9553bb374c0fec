"""Surfaces and the walks on them, as the chapters draw them."""

import altair as alt
import numpy as np

from dlopt_helpers.lab.surfaces import FAR, contours
from dlopt_helpers.page.explorer import GREEN, MUTED

# Vega shows some powers of ten as 0.0001 and others as 1e-8: write them all as 10 with an exponent.
_POWERS_OF_TEN = "'10' + ['⁻⁸', '⁻⁶', '⁻⁴', '⁻²', '⁰', '²', '⁴'][round((log(datum.value) / LN10 + 8) / 2)]"


def landscape(surfaces):
    """Return the chart of the surface that the choice ``surface`` names, and its axes ``x`` and ``y``.

    The chart shows contour lines and a cross at each minimum.

    Args:
      surfaces: a dict of :class:`~dlopt_helpers.lab.surfaces.Surface` by name.
    """

    def edge(axis, end):
        """Return the Vega expression for an end of the chosen surface's window."""
        return alt.ExprRef(str({name: s.window[axis][end] for name, s in surfaces.items()}) + "[surface]")

    axes = {
        name: channel(f"{name}:Q", title=None, scale=alt.Scale(domain=[edge(i, 0), edge(i, 1)]))
        for i, (name, channel) in enumerate({"x": alt.X, "y": alt.Y}.items())
    }
    lines, minima = [], []
    for name, surface in surfaces.items():
        # Lists of points weigh a third of what a row for each point would.
        for _, line in contours(surface).round(3).groupby("line"):
            lines.append({"surface": name, "line": len(lines), "x": line.x.tolist(), "y": line.y.tolist()})
        minima += [{"surface": name, "x": x, "y": y} for x, y in surface.minima]
    valley = (
        alt.Chart(alt.Data(values=lines))
        .transform_filter("datum.surface == surface")
        .transform_flatten(["x", "y"])
        .mark_line(order=False, strokeWidth=1, color=MUTED, opacity=0.5, clip=True)
        .encode(**axes, detail="line:N")
    )
    goal = (
        alt.Chart(alt.Data(values=minima))
        .transform_filter("datum.surface == surface")
        .mark_point(shape="cross", size=110, color=GREEN, filled=True, opacity=1)
        .encode(**axes)
    )
    return valley + goal, axes


def row_on(surfaces):
    """Return a recurrence's function ``row``: ``x``, ``y`` and ``gap``, the height above the minimum."""

    def row(w, surface):
        surface = surfaces[surface]
        return {"x": w[0], "y": w[1], "gap": surface.value(w) - surface.value(np.array(surface.minima[0]))}

    return row


def still_near(w):
    """Return a number that is positive as long as a walk may come back."""
    return FAR**2 - (w**2).sum()


def height(chosen, steps):
    """Return the chart of ``gap`` over the steps of a walk, to be encoded further."""
    # A path that reached the minimum has a gap of 0, which no log axis can show.
    reached = chosen.transform_calculate(height="max(datum.gap, 1e-12)")
    return reached.mark_line(strokeWidth=1.8, clip=True).encode(
        x=alt.X("step:Q", title="step", scale=alt.Scale(domain=[0, steps])),
        y=alt.Y(
            "height:Q",
            title="height above the minimum",
            scale=alt.Scale(type="log", domain=[1e-8, 1e4], clamp=True),
            axis=alt.Axis(values=[1e-8, 1e-6, 1e-4, 1e-2, 1, 1e2, 1e4], labelExpr=_POWERS_OF_TEN),
        ),
    )
