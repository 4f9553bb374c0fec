"""The face of an explorer where a kernel runs: real widgets, and settings computed on demand."""

import html
import itertools
import re
import sys
import time

import altair as alt
import ipywidgets as widgets

from dlopt_helpers._require import require_kind
from dlopt_helpers.page import explorer as page

_WIDE = {"description_width": "9.5em"}


class Live:
    """Widgets beside charts. Made by :attr:`Explorer.live`.

    Args:
      explorer: the :class:`~dlopt_helpers.page.explorer.Explorer` shown.
    """

    def __init__(self, explorer):
        require_kind("explorer", explorer, page.Explorer, "an Explorer")
        if "google.colab" not in sys.modules:  # Colab keeps widgets in frames that have the network anyway
            alt.JupyterChart.enable_offline()
        self.explorer = explorer
        self.controls = {name: self._widget(control) for name, control in explorer._controls.items()}
        options = {"actions": False, "renderer": "svg"}
        self.charts = [alt.JupyterChart(chart, embed_options=options) for chart in self._fresh()]
        self.status = widgets.HTML()
        self._say(
            "Move a slider."
            if explorer.compute is None
            else "Move a slider: a setting that no run holds is computed."
        )
        wrap = widgets.Layout(display="flex", flex_flow="row wrap")
        self.box = widgets.VBox(
            [
                widgets.HTML(f"{_dark()}<b>{html.escape(explorer.title)}</b>"),
                widgets.VBox(list(self.controls.values())),
                widgets.Box(self.charts, layout=wrap),
                self.status,
                widgets.HTML(html.escape(explorer.caption)),
            ]
        )
        for widget in self.controls.values():
            widget.observe(self._moved, "value")

    def view(self):
        """Return the widget's entry of a MIME bundle, in ipywidgets 7 as in 8."""
        if self.drawn != self.explorer.setting:  # a chart first shown now starts from its specification
            for chart, fresh in zip(self.charts, self._fresh(), strict=True):
                chart.chart = fresh
        return {"version_major": 2, "version_minor": 0, "model_id": self.box.model_id}

    def _fresh(self):
        self.drawn = self.explorer.setting
        self.more = []  # rows computed since, which join the faint ones
        return [alt.Chart.from_dict(spec) for spec in self.explorer.filled()]

    def _widget(self, control):
        explorer = self.explorer
        stops, value = explorer.stops[control.name], explorer.setting[control.name]
        common = {
            "description": control.label,
            "style": _WIDE,
            "layout": widgets.Layout(width="32em", max_width="98%"),
        }
        if isinstance(control, page.Choice):
            return widgets.Dropdown(options=[(page.shown(v), v) for v in stops], value=value, **common)
        between = (
            explorer.compute and control.name in explorer.keys and not all(isinstance(v, int) for v in stops)
        )
        if not between:
            common["continuous_update"] = explorer.compute is None
            return widgets.SelectionSlider(options=[(page.shown(v), v) for v in stops], value=value, **common)
        places = [control.to_scale(v) for v in stops]
        ends = [control.to_scale(v) for v in (control.minimum, control.maximum) if v is not None]
        low, high = min(places + ends), max(places + ends)
        # The step divides that of an even grid, so that stored values stay in reach.
        step = control.step or min((b - a for a, b in itertools.pairwise(places)), default=high - low) / 5
        kind = widgets.FloatLogSlider if control.scale == "log" else widgets.FloatSlider
        return kind(
            value=value, min=low, max=high, step=step, readout_format=".3g", continuous_update=False, **common
        )

    def _moved(self, _):
        """Show the setting of the widgets; a mistake in the chapter's formula becomes a sentence."""
        explorer = self.explorer
        explorer.setting = {name: widget.value for name, widget in self.controls.items()}
        self._say("")
        try:
            rows = explorer.find(explorer.setting)
            if rows is None and explorer.compute is None:
                self._say("This setting is not among the stored runs.")
            elif rows is None:
                rows = self._compute(explorer)
        except Exception as error:  # whatever is raised, the other settings go on working
            self._say(f"compute failed: {type(error).__name__}: {error}")
            rows = None
        self._draw(rows or [])

    def _compute(self, explorer):
        self._say("computing …")
        start = time.perf_counter()
        rows = explorer.add(explorer.setting)
        self.more = self.more + rows
        self._say(f"computed in {time.perf_counter() - start:.1f} s")
        return rows

    def _draw(self, rows):
        values = {**self.explorer.setting, "_rows": rows, "_more": self.more}
        for chart in self.charts:
            with chart.hold_sync():
                for name, value in values.items():
                    if chart.params.has_trait(name):
                        setattr(chart.params, name, value)

    def _say(self, text):
        self.status.value = f'<span role="status" aria-live="polite">{html.escape(text)}</span>'


def _dark():
    """Return the rules of explorer.css that colour the marks in dark mode."""
    css = (page._HERE / "explorer.css").read_text(encoding="utf-8")
    return f"<style>{re.search(r'html.data-theme[^}]*}', css)[0]}</style>"
