"""One chart with sliders: alive with a kernel, alive on a plain web page, a picture elsewhere."""

import base64
import functools
import html
import io
import itertools
import json
import math
import numbers
import os
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import altair as alt
import numpy as np
import pandas as pd

from dlopt_helpers._require import refuse, require_function, require_kind, require_one, require_option
from dlopt_helpers.page.recurrence import Recurrence

# After Okabe and Ito: told apart where red and green look alike, and strong enough for thin lines. In dark
# mode explorer.css sets the variables; the value behind the comma serves light mode and pictures.
BLUE = "var(--dlopt-blue, #0072b2)"
RED = "var(--dlopt-red, #d55e00)"
GREEN = "var(--dlopt-green, #008f68)"
PURPLE = "var(--dlopt-purple, #9c2470)"
GOLD = "var(--dlopt-gold, #6e5200)"
INDIGO = "var(--dlopt-indigo, #332288)"
MUTED = "var(--dlopt-muted, #66707a)"
GRID = "var(--dlopt-grid, #e3e6ea)"
INK = "currentColor"
PALETTE = [BLUE, RED, GREEN, PURPLE, GOLD, INDIGO]

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
_TEXT = {
    "labelColor": INK,
    "titleColor": INK,
    "labelFontSize": 12,
    "titleFontSize": 13,
    "titleFontWeight": 600,
}
STYLE = {
    "mark": {"color": BLUE},
    "aria": False,  # the chart has one name as a whole; one for each of 3,000 marks would be noise
    "background": "transparent",
    "font": _FONT,
    "padding": 4,
    "view": {"stroke": None},
    "axis": {
        **_TEXT,
        "gridColor": GRID,
        "domainColor": MUTED,
        "tickColor": MUTED,
        "tickSize": 4,
        "labelPadding": 5,
        "titlePadding": 8,
        "labelFlush": False,
        "labelOverlap": True,
    },
    "axisX": {"grid": False},
    "axisY": {
        "domain": False,
        "ticks": False,
        "titleAngle": 0,
        "titleAlign": "left",
        "titleBaseline": "bottom",
        "titleAnchor": "end",
        "titleX": 0,
        "titleY": -10,
    },
    "legend": {**_TEXT, "orient": "top", "symbolStrokeWidth": 3},
    "title": {"color": INK, "fontSize": 14, "fontWeight": 600, "anchor": "start", "offset": 12},
    "text": {"color": INK, "fontSize": 13},
    "line": {"strokeWidth": 2.5, "strokeCap": "round", "strokeJoin": "round"},
    "rule": {"color": MUTED},
    "point": {"filled": True, "size": 60},
    "range": {"category": PALETTE},
}
_HEIGHT = 280
_RESERVED = {
    "width",
    "height",
    "padding",
    "autosize",
    "background",
    "cursor",
    "datum",
    "event",
    "item",
    "parent",
}
_COMPOSITE = ("concat", "hconcat", "vconcat", "facet", "repeat")
_HERE = Path(__file__).parent
_VEGA_LITE = ".".join(alt.SCHEMA_VERSION.lstrip("v").split(".")[:2])


@dataclass(frozen=True)
class Slider:
    """A number that the reader moves.

    Args:
      name: a column of ``runs``, whose sorted values are then the stops; or, with ``minimum``
        and ``maximum``, a parameter that the chart's own expressions compute from.
      label: what the reader sees, such as ``"Learning rate η"``.
      scale: ``"linear"`` or ``"log"``.
      minimum, maximum: the ends. For a column they only widen the live slider of an
        explorer with ``compute``.
      step: distance between neighbours, in decades on a log scale.

    Raises:
      ValueError: if the ends or the scale make no range.

    Example:
      >>> Slider("bits", "Bits", minimum=1, maximum=4, step=1).stops({})
      [1.0, 2.0, 3.0, 4.0]
    """

    name: str
    label: str
    scale: str = "linear"
    minimum: float | None = None
    maximum: float | None = None
    step: float | None = None

    def __post_init__(self):
        _check_name(self.name)
        _check_text("label", self.label)
        require_option("scale", self.scale, ("linear", "log"))
        for name in ("minimum", "maximum", "step"):
            if getattr(self, name) is not None:
                require_one(name, getattr(self, name), "a finite number", lambda _: True)
        if (self.minimum is None) != (self.maximum is None):
            raise ValueError(
                f"slider {self.name!r} has minimum={self.minimum!r} and maximum={self.maximum!r}: "
                "give both or neither"
            )
        if self.minimum is not None:
            self._check_ends(self.minimum, self.maximum)
        if self.step is not None:
            require_one("step", self.step, "a finite number > 0", lambda step: step > 0)

    def _check_ends(self, low, high):
        if not -1e100 <= low < high <= 1e100:
            raise ValueError(
                f"slider {self.name!r} has minimum={low!r} and maximum={high!r}: "
                "minimum must be less than maximum, both finite (within 1e100 of zero)"
            )
        self._check_log(low)

    def _check_log(self, low):
        if self.scale == "log" and low <= 0:
            raise ValueError(f"slider {self.name!r} has minimum={low!r}: a log scale needs values > 0")

    def stops(self, runs):
        """Return the values that the slider can take, in order."""
        _check_runs(runs)
        if self.name in runs:
            values = sorted(set(_listed(runs[self.name])))
            if not all(isinstance(v, int | float) for v in values):
                raise ValueError(
                    f"slider {self.name!r} needs a column of numbers, and runs holds {values[:3]!r}"
                )
            self._check_log(values[0])
            return values
        if self.minimum is None:
            raise ValueError(
                f"control {self.name!r} is not allowed: it must be a column of runs "
                f"{list(runs)!r}, or have a minimum and a maximum"
            )
        low, high = self.to_scale(self.minimum), self.to_scale(self.maximum)
        count = 200 if self.step is None else max(1, round((high - low) / self.step))
        if count > 10_000:
            raise ValueError(f"step={self.step!r} is not allowed: it must leave at most 10,000 stops")
        ends = [float(self.minimum), float(self.maximum)]
        inner = [self.from_scale(v) for v in np.linspace(low, high, count + 1).tolist()[1:-1]]
        for digits in range(3, 18):  # where three digits tell the stops apart, a stop is what the reader sees
            rounded = np.clip([_rounded(v, digits) for v in inner], *ends)
            stops = [ends[0], *rounded.tolist(), ends[1]]
            if all(a < b for a, b in itertools.pairwise(stops)):
                break
        return stops

    def to_scale(self, value):
        """Return where the value sits on the slider: itself, or its decimal logarithm."""
        return math.log10(value) if self.scale == "log" else value

    def from_scale(self, position):
        """Return the value at a position of the slider."""
        return 10**position if self.scale == "log" else position


@dataclass(frozen=True)
class Choice:
    """One of a few values, chosen from a list.

    Args:
      name: a column of ``runs``; or, with ``options``, a parameter of the chart's expressions.
      label: what the reader sees.
      options: the values in the order of the list; by default those of the column.

    Raises:
      ValueError: if no option is left to choose.

    Example:
      >>> Choice("rule", "Rule", ["plain", "Nesterov"]).stops({})
      ['plain', 'Nesterov']
    """

    name: str
    label: str
    options: list | None = None

    def __post_init__(self):
        _check_name(self.name)
        _check_text("label", self.label)
        if self.options is not None and not (isinstance(self.options, list | tuple) and self.options):
            refuse("options", self.options, f"a list of at least one value for choice {self.name!r}")

    def stops(self, runs):
        """Return the values that can be chosen, in order."""
        _check_runs(runs)
        if self.options is None and self.name not in runs:
            raise ValueError(
                f"control {self.name!r} is not allowed: it must be a column of runs "
                f"{list(runs)!r}, or have options"
            )
        held = list(dict.fromkeys(_listed(runs[self.name]))) if self.name in runs else self.options
        for option in self.options or held:
            if option not in held:
                raise ValueError(
                    f"option {option!r} of choice {self.name!r} is not allowed: runs holds {held!r}"
                )
        return list(self.options or held)


class Explorer:
    """A chart over real runs that follows its controls, with a kernel and without one.

    Args:
      runs: a tidy ``pandas.DataFrame``, one row per point: a column per control and the data columns.
        Or a :class:`~dlopt_helpers.page.recurrence.Recurrence`, which computes the rows of any setting
        wherever the explorer is read: each slider then has a ``minimum`` and a ``maximum``, each
        choice ``options``.
      draw: ``draw(runs, chosen)`` makes an Altair chart, or a tuple of charts that stand side by side
        and wrap on a phone. Both arguments are ``alt.Chart`` bases: the rows of all runs, and those of
        the setting chosen now; ``runs`` is ``None`` with a recurrence, which stores none. Every
        encoding states its type (``"loss:Q"``). The value of each control is a Vega parameter of its
        name. Give the axes a ``domain``: they then stay where they are, and a chart of 3,000 faint
        rows follows its slider five times faster.
      controls: :class:`Slider` and :class:`Choice` in the order shown.
      caption: a sentence that says what to see; also the text of the picture.
      title: the name of the figure.
      compute: ``compute(**setting)`` returns the data columns for a setting no run holds. Used only
        where a kernel runs, and not with a recurrence.
      initial: the setting shown first; by default the middle of each slider and the first choice.
        A continuous slider also stops at its initial value.

    Raises:
      ValueError: if the runs are empty or not finite, if a control names nothing, if two controls
        share a name, if ``initial`` lies off the grid, if ``draw`` uses a column that is missing or
        computes one from itself, or if the recurrence's functions do not fit together or cannot be
        written down.

    Example:
      >>> rows = [{"lr": lr, "step": t, "w": (1 - lr) ** t} for lr in (0.1, 0.5) for t in range(9)]
      >>> def draw(runs, chosen):
      ...     faint = runs.mark_line(opacity=0.3).encode(x="step:Q", y="w:Q", detail="lr:N")
      ...     return faint + chosen.mark_line(color=BLUE).encode(x="step:Q", y="w:Q")
      >>> words = {"title": "Decay", "caption": "A larger rate is faster."}
      >>> explorer = Explorer(pd.DataFrame(rows), draw, [Slider("lr", "Learning rate η")], **words)
      >>> explorer.setting
      {'lr': 0.5}
    """

    def __init__(self, runs, draw, controls, *, caption, title, compute=None, initial=None):
        if not isinstance(controls, list | tuple) or not all(
            isinstance(c, Slider | Choice) for c in controls
        ):
            refuse("controls", controls, "a list of Slider and Choice")
        _check_text("caption", caption)
        _check_text("title", title)
        require_function("draw", draw)
        if compute is not None:
            require_function("compute", compute)
        names = [control.name for control in controls]
        if len(set(names)) < len(names) or not names:
            raise ValueError(
                f"controls={names!r} is not allowed: it must hold one or more controls, each name once"
            )
        self._controls = {control.name: control for control in controls}
        self._recurrence = self._program = None
        if isinstance(runs, Recurrence):
            self._recurrence = runs
            runs = self._write_down(compute)
        else:
            _check_frame("runs", runs)
        self.stops = {control.name: control.stops(runs) for control in controls}
        self.keys = [name for name in names if name in runs]
        self.runs, self.caption, self.title, self.compute = (
            runs.reset_index(drop=True),
            caption,
            title,
            compute,
        )
        self._groups = dict(self._split(self.runs))
        self.setting = self._initial(initial)
        self.panels = self._panels(draw)
        self._live = None

    # --- runs and settings -------------------------------------------------------------------------

    def _write_down(self, compute):
        """Keep what the page computes a recurrence from, and return its columns, still without rows."""
        if compute is not None:
            raise ValueError(f"compute={compute!r} is not allowed: a recurrence computes all settings")
        choices = {name: c.stops({}) for name, c in self._controls.items() if isinstance(c, Choice)}
        sliders = [name for name in self._controls if name not in choices]
        self._program = self._recurrence.program(sliders, choices)
        columns = [*self._recurrence.series, "step", *self._program["columns"]]
        for name in self._controls:
            if name in columns:
                raise ValueError(f"control {name!r} is not allowed: the recurrence has a column of that name")
        return pd.DataFrame(columns=columns)

    @property
    def data_columns(self):
        """The columns of ``runs`` that are no control."""
        return [column for column in self.runs.columns if column not in self.keys]

    def _split(self, runs):
        if not self.keys:
            return [((), _records(runs))]
        grouped = runs.groupby(self.keys, sort=False, observed=True)
        return [(tuple(_listed(rows[self.keys].iloc[0])), _records(rows)) for _, rows in grouped]

    def find(self, setting):
        """Return the rows of a setting as a list of dictionaries, or ``None`` where none are stored.

        Raises:
          ValueError: if ``setting`` is no dict with a value for each control.
        """
        self._check_setting(setting)
        if self._recurrence is not None:
            return _records(self._recurrence(**setting))
        wanted = tuple(setting[name] for name in self.keys)
        if wanted in self._groups:
            return self._groups[wanted]
        return next((rows for key, rows in self._groups.items() if all(map(_same, key, wanted))), None)

    def _check_setting(self, setting):
        if (
            not isinstance(setting, dict)
            or not set(setting) <= set(self._controls)
            or set(self.keys) - set(setting)
        ):
            refuse("setting", setting, f"a dict with a value for each of {list(self._controls)}")
        for name in self.keys:
            kind = str if any(isinstance(v, str) for v in self.stops[name]) else numbers.Real
            require_kind(f"setting[{name!r}]", setting[name], kind, f"one as in {self.stops[name]!r}")

    def add(self, setting):
        """Compute the rows of a setting, let them join ``runs``, and return them as :meth:`find` does.

        Raises:
          ValueError: as :meth:`find`, or if ``compute`` is missing or returns other columns.
        """
        self._check_setting(setting)
        require_function("compute", self.compute)
        made = self.compute(**setting)
        if not isinstance(made, pd.DataFrame) or set(made.columns) != set(self.data_columns):
            found = list(made.columns) if isinstance(made, pd.DataFrame) else type(made).__name__
            raise ValueError(
                f"compute returned {found!r}: it must return a DataFrame with the columns "
                f"{self.data_columns!r}"
            )
        _check_frame("compute's rows", made)
        made = made.assign(**{name: setting[name] for name in self.keys})[list(self.runs.columns)]
        self.runs = pd.concat([self.runs, made], ignore_index=True)
        rows = _records(made)
        self._groups[tuple(setting[name] for name in self.keys)] = rows
        self.stops.update({name: self._controls[name].stops(self.runs) for name in self.keys})
        return rows

    def _initial(self, initial):
        setting = {
            name: stops[0] if isinstance(self._controls[name], Choice) else stops[len(stops) // 2]
            for name, stops in self.stops.items()
        }
        if initial is None:
            if self.find(setting) is None:
                setting.update(zip(self.keys, list(self._groups)[len(self._groups) // 2], strict=True))
            return setting
        require_kind("initial", initial, dict, "a dict from names of controls to values")
        for name, value in initial.items():
            if name not in setting:
                raise ValueError(f"initial={initial!r} names {name!r}: it must be one of {list(setting)!r}")
            setting[name] = self._stop(name, value)
        if self.find(setting) is None:
            raise ValueError(f"initial={initial!r} is not allowed: no run holds {setting!r}")
        return setting

    def _stop(self, name, value):
        stops, control = self.stops[name], self._controls[name]
        if isinstance(control, Slider) and name not in self.keys and stops[0] <= value <= stops[-1]:
            if control.step is None:
                self.stops[name] = sorted({*stops, value})
            return min(self.stops[name], key=lambda stop: abs(stop - value))
        for stop in stops:
            if _same(stop, value):
                return stop
        raise ValueError(f"initial {name}={value!r} is not allowed: it must be one of {stops!r}")

    # --- the chart ---------------------------------------------------------------------------------

    def _base(self, source, lists):
        # The rows arrive in a parameter, so that moving a slider sends one setting and never a new chart.
        chart = alt.Chart(alt.NamedData(source)).transform_calculate(_lists=lists)
        chart = chart.transform_flatten(["_lists"], ["_list"])
        for column in self.runs.columns:
            chart = chart.transform_calculate(**{column: f"pluck(datum._list, {json.dumps(column)})"})
        return chart.transform_flatten(list(self.runs.columns))

    def _panels(self, draw):
        runs = None if self._recurrence is not None else self._base("_runs", "[datum.rows, _more]")
        drawn = draw(runs, self._base("_one", "[_rows]"))
        specs = [chart.to_dict() for chart in (drawn if isinstance(drawn, tuple | list) else [drawn])]
        return [self._finish(spec) for spec in specs]

    def _finish(self, spec):
        composite = [key for key in _COMPOSITE if key in spec]
        if composite:
            raise ValueError(f"draw returned a chart with {composite[0]!r}: return a tuple of charts instead")
        _check_fields(spec, set(self.runs.columns))
        text = json.dumps(spec)
        wanted = [
            *self._controls,
            *(["_rows"] if "[_rows]" in text else []),
            *(["_more"] if '"_runs"' in text else []),
        ]
        spec["params"] = [*spec.get("params", []), *({"name": name, "value": None} for name in wanted)]
        spec["config"] = _merged(STYLE, {k: v for k, v in spec.get("config", {}).items() if k != "view"})
        spec.setdefault("height", _HEIGHT)
        spec.setdefault("description", self.title)
        return spec

    def filled(self, width=None):
        """Return each panel with its data and parameters in place, ready to be drawn.

        Raises:
          ValueError: if ``width`` is no number > 0.
        """
        if width is not None:
            require_one("width", width, "a number > 0", lambda w: w > 0)
        values = {**self.setting, "_rows": self.find(self.setting) or [], "_more": []}
        width = width or (560 if len(self.panels) == 1 else 360)
        specs = []
        for panel in self.panels:
            spec = {"width": width, **panel}
            spec["params"] = [
                {**p, "value": values[p["name"]]} if p["name"] in values else p for p in panel["params"]
            ]
            spec["datasets"] = {**panel.get("datasets", {}), "_one": [{}]}
            if any(p["name"] == "_more" for p in panel["params"]):
                spec["datasets"]["_runs"] = [
                    {"rows": [row for rows in self._groups.values() for row in rows]}
                ]
            specs.append(spec)
        return specs

    # --- the face without a kernel -----------------------------------------------------------------

    def to_html(self):
        """Return the figure for a web page: a picture, and the data from which explorer.js makes it move."""
        e = html.escape
        at = ", ".join(f"{c.label} = {shown(self.setting[c.name])}" for c in self._controls.values())
        pictures = "".join(
            f'<img alt="{e(self.caption)}" src="data:image/png;base64,{_png(spec)}">'
            for spec in self.filled()
        )
        # Only < can end or open an element inside a script of data.
        data = json.dumps(self._data(), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
        return (
            f'<figure class="dlopt-explorer" aria-label="{e(self.title)}">'
            f'<p class="dlopt-title">{e(self.title)}</p>'
            f'<div class="dlopt-picture">{pictures}<p>{e(at)}</p></div>'
            f"<figcaption>{e(self.caption)}</figcaption>"
            f'<script type="application/json">{data}</script></figure>'
        )

    def _data(self):
        controls = [
            {
                "name": name,
                "label": control.label,
                "kind": type(control).__name__.lower(),
                "values": self.stops[name],
                "labels": [shown(v) for v in self.stops[name]],
                "start": self._place(name),
            }
            for name, control in self._controls.items()
        ]
        data = {"controls": controls, "panels": self.panels}
        if self._program is not None:
            return data | {"recurrence": self._program}
        position = {name: {v: i for i, v in enumerate(self.stops[name])} for name in self.keys}
        kept = {
            key: rows
            for key, rows in self._groups.items()
            if all(value in position[name] for name, value in zip(self.keys, key, strict=True))
        }
        return data | {
            "keys": self.keys,
            "settings": [[position[name][v] for name, v in zip(self.keys, key, strict=True)] for key in kept],
            "counts": [len(rows) for rows in kept.values()],
            "columns": {
                c: _column([row[c] for rows in kept.values() for row in rows]) for c in self.data_columns
            },
        }

    def _place(self, name):
        # A live slider may stand where compute failed: the page then starts in the middle.
        stops = self.stops[name]
        return next((i for i, stop in enumerate(stops) if _same(stop, self.setting[name])), len(stops) // 2)

    # --- the face with a kernel --------------------------------------------------------------------

    @property
    def live(self):
        """The widgets of this explorer: ``live.controls``, ``live.charts``, ``live.status``, ``live.box``."""
        if self._live is None:
            from dlopt_helpers.page.live import Live

            self._live = Live(self)
        return self._live

    @property
    def controls(self):
        """The widget of each control by name, to observe or to link."""
        return self.live.controls

    def _repr_mimebundle_(self, include=None, exclude=None):
        bundle = {"text/plain": repr(self), "text/html": self.to_html()}
        if not os.environ.get("DLOPT_STATIC"):
            bundle["application/vnd.jupyter.widget-view+json"] = self.live.view()
        return bundle

    def __repr__(self):
        settings = "any" if self._recurrence is not None else len(self._groups)
        return f"Explorer({self.title!r}, controls={list(self._controls)!r}, settings={settings})"


def write_assets(folder):
    """Write what a page of explorers needs into ``folder``: vega.js, explorer.js and explorer.css.

    Raises:
      ValueError: if ``folder`` is no path.
    """
    require_kind("folder", folder, str | Path, "a path")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vega.js").write_text(_bundle(), encoding="utf-8")
    for name in ("explorer.js", "explorer.css"):
        (folder / name).write_text((_HERE / name).read_text(encoding="utf-8"), encoding="utf-8")


def shown(value):
    """Return a value as the reader sees it: three significant digits, never an exponent.

    Example:
      >>> shown(0.0316227766), shown(1e-6), shown(128), shown("saddle")
      ('0.0316', '0.000001', '128', 'saddle')
    """
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return str(value)
    return str(value) if isinstance(value, int) else f"{Decimal(f'{value:.3g}'):f}"


@functools.cache
def _bundle():
    import vl_convert

    bundle = vl_convert.javascript_bundle("window.dloptEmbed = vegaEmbed;", vl_version=_VEGA_LITE)
    return f"(function () {{\n{bundle}\n}})();\n"  # its top-level names would collide with the page's own


def _png(spec):
    import vl_convert
    from PIL import Image

    text = json.dumps({**spec, "background": "white"}).replace(INK, "#1f2933")
    text = re.sub(r"var\(--[\w-]+, ?([^()]+)\)", r"\1", text)  # a picture has no page to ask for variables
    png = Image.open(io.BytesIO(vl_convert.vegalite_to_png(text, vl_version=_VEGA_LITE, scale=2)))
    small = io.BytesIO()
    # A palette makes a chart of faint lines five times smaller, and every page carries its pictures.
    # The whole range of colours counts, or the thin lines of a legend would take their neighbours' hue.
    few = png.convert("RGB").quantize(64, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(small, "png", optimize=True)
    return base64.b64encode(small.getvalue()).decode()


def _check_name(name):
    if not isinstance(name, str) or not name.isidentifier() or name in _RESERVED or name.startswith("_"):
        raise ValueError(
            f"name={name!r} is not allowed: it must be a word that Vega leaves free, such as 'lr'"
        )


def _check_text(name, text):
    if not (isinstance(text, str) and text.strip()):
        refuse(name, text, "text")


def _check_runs(runs):
    """Refuse what is no frame or not finite; one without rows, or {}, stands for no stored runs."""
    require_kind("runs", runs, pd.DataFrame | dict, "a DataFrame")
    if isinstance(runs, dict) and runs:
        refuse("runs", runs, "a DataFrame")
    if len(runs):
        _check_frame("runs", runs)


def _check_frame(name, frame):
    if not isinstance(frame, pd.DataFrame) or frame.empty:
        what = f"a frame of shape {frame.shape}" if isinstance(frame, pd.DataFrame) else repr(frame)
        raise ValueError(f"{name}={what} is not allowed: it must be a DataFrame with at least one row")
    for column in frame.columns:
        values = frame[column]
        bad = values.isna() | (np.isinf(values) if pd.api.types.is_float_dtype(values) else False)
        if bad.any():
            at = int(np.flatnonzero(bad)[0])
            raise ValueError(
                f"{name} holds {_listed(values)[at]!r} in column {column!r}, row {at}: only finite values"
            )


def _check_fields(view, columns):
    """Refuse an encoding without a column or result of that name, and a formula that replaces its input.

    A chart that filters by a choice computes the rows that come back from what they were when they left.
    """
    for layer in view.get("layer", []):
        _check_fields(layer, columns)
    transforms = view.get("transform", [])
    for t in transforms:
        if "calculate" in t and re.search(rf"\bdatum\.{re.escape(t['as'])}\b", t["calculate"]):
            raise ValueError(f"draw computes {t['as']!r} from itself: give the result a name of its own")
    if not any(t.get("as") == "_lists" for t in transforms):
        return  # a layer over the chapter's own data
    made = json.dumps(transforms)
    for channel in view.get("encoding", {}).values():
        for part in channel if isinstance(channel, list) else [channel]:
            field = part.get("field")
            if isinstance(field, str) and field not in columns and json.dumps(field) not in made:
                raise ValueError(f"draw uses the column {field!r}: runs has {sorted(columns)!r}")


def _listed(column):
    """Return the values as Python numbers and strings: NumPy's own are no JSON."""
    return [v.item() if isinstance(v, np.generic) else v for v in column]


def _records(frame):
    columns = [_listed(frame[column]) for column in frame.columns]
    return [dict(zip(frame.columns, row, strict=True)) for row in zip(*columns, strict=True)]


def _column(values):
    """Return a column for the page: short numbers, and each word once."""
    if any(isinstance(v, str) for v in values):
        words = list(dict.fromkeys(values))
        place = {word: i for i, word in enumerate(words)}
        return {"words": words, "codes": [place[v] for v in values]}
    return [_rounded(v, 5) if isinstance(v, float) else v for v in values]


def _rounded(value, digits):
    short = float(f"{value:.{digits}g}")
    return int(short) if digits == 5 and short.is_integer() and abs(short) < 1e9 else short


def _same(a, b):
    if isinstance(a, str | bool) or isinstance(b, str | bool):
        return a == b
    return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-12)


def _merged(base, over):
    out = dict(base)
    for key, value in over.items():
        out[key] = (
            _merged(out[key], value) if isinstance(value, dict) and isinstance(out.get(key), dict) else value
        )
    return out
