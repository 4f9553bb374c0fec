"""Runs that the reader's browser computes itself, from the book's own formula."""

import inspect
import itertools
import json
from collections.abc import Iterable

import numpy as np
import pandas as pd

from dlopt_helpers._require import refuse, require_function, require_kind
from dlopt_helpers._trace import Trace

# explorer.js knows the operations by their places in this list.
_OPERATIONS = ["add", "sub", "mul", "truediv", "pow", "neg", "abs"]


class Recurrence:
    """Runs made by repeating one step, for any setting: given to an ``Explorer`` in place of stored runs.

    With a kernel the functions run on numbers. For a plain web page they run once for each combination
    of choices, on symbols that write every operation down, and the browser repeats those. Whatever
    depends on a slider, on the state or on an input may therefore use only ``+ - * / **`` and ``abs``,
    alone or on NumPy arrays of them (which may be indexed, stacked and summed); with choices and series
    a function does what it likes.

    Each function is called with the arguments that it names, out of

    - the controls of the explorer by name, numbers of sliders and values of choices,
    - the series that is being computed, by its column,
    - the entries of the state (``step``, ``row`` and ``while_positive``),
    - the entries of ``inputs`` at this step (``step`` alone).

    Args:
      start: returns the state before the first step: a dictionary of numbers, arrays and
        dictionaries of them.
      step: returns the state after one step, with the same entries.
      row: returns what is shown of a state, a dictionary of numbers.
      steps: number of steps.
      series: a column and the values it takes, such as ``{"rule": ["SGD", "Adam"]}``, if a setting
        has more than one run.
      inputs: returns what the steps read, a dictionary (or data frame) of arrays: ``array[t]`` is for
        step t, counted from 0. It may name choices and series, no sliders.
      while_positive: returns a number; a run ends before it is 0 or less, or before a number of its
        row is not finite.

    Raises:
      ValueError: if ``steps`` is no whole number > 0; when called or given to an explorer, if a function
        asks for an argument that nobody gives, if two arguments share a name, if a function returns
        anything else than it should, if an input is too short or not finite, or if a formula uses
        what cannot be written down.

    Example:
      >>> def start():
      ...     return {"w": np.array([4.0, 1.0]), "velocity": np.zeros(2)}
      >>> def step(w, velocity, lr, momentum):
      ...     velocity = momentum * velocity + w
      ...     return {"w": w - lr * velocity, "velocity": velocity}
      >>> def row(w):
      ...     return {"x": w[0], "y": w[1]}
      >>> walk = Recurrence(start, step, row, steps=2)
      >>> walk(lr=0.5, momentum=0.0).to_numpy().tolist()
      [[0.0, 4.0, 1.0], [1.0, 2.0, 0.5], [2.0, 1.0, 0.25]]
      >>> list(walk(lr=0.5, momentum=0.0).columns)
      ['step', 'x', 'y']
    """

    def __init__(self, start, step, row, steps, *, series=None, inputs=None, while_positive=None):
        if not isinstance(steps, int) or isinstance(steps, bool) or steps < 1:
            refuse("steps", steps, "a whole number > 0")
        given = {"start": start, "step": step, "row": row, "inputs": inputs, "while_positive": while_positive}
        for what, function in given.items():
            if function is not None or what in ("start", "step", "row"):
                require_function(what, function)
        series = {} if series is None else series
        _require_lists("series", series, "a dict from columns to lists of values")
        self.steps, self.series = steps, dict(series)
        self._functions = {
            "start": start,
            "step": step,
            "row": row,
            "inputs": inputs or (lambda: {}),
            "while_positive": while_positive or (lambda: 1.0),
        }
        self._asked = {what: _asked(function) for what, function in self._functions.items()}
        values = itertools.product(*self.series.values())
        self._runs = [dict(zip(self.series, run, strict=True)) for run in values]

    def __call__(self, **setting):
        """Return the rows of a setting as a data frame: each series, ``step`` (0 is the start), the row."""
        with np.errstate(all="ignore"):  # a run that overflows ends there
            rows = [{**run, **row} for run in self._runs for row in self._follow(_given(setting, run))]
        if not rows:
            raise ValueError(f"setting={setting!r} is not allowed: no run of it can start")
        return pd.DataFrame(rows)

    def _follow(self, given):
        tables, state = self._tables(given), self._ask("start", given)
        state = _filled(state, map(np.float64, _leaves(state)))
        for t in range(self.steps + 1):
            if t:
                state = self._after(given, state, {name: table[t - 1] for name, table in tables.items()})
            room, row = self._seen(given, state)
            if not (room > 0 and np.isfinite(list(row.values())).all()):
                return
            yield {"step": t, **{name: float(value) for name, value in row.items()}}

    # --- the functions, called with what they ask for --------------------------------------------------

    def _ask(self, what, given):
        names, everything = self._asked[what]
        missing = [name for name, needed in names.items() if needed and name not in given]
        if missing:
            raise ValueError(f"{what} asks for {missing[0]!r}: it can have {sorted(given)!r}")
        wanted = given if everything else {name: given[name] for name in names if name in given}
        result = self._functions[what](**wanted)
        if what != "while_positive" and not hasattr(result, "items"):
            raise ValueError(
                f"{what} returned a value of type {type(result).__name__}: it must return a dictionary"
            )
        return result

    def _after(self, given, state, now):
        after = self._ask("step", _joined(given, state, now))
        if _form(after) != _form(state):
            raise ValueError(f"step returned {_form(after)}: it must return what start does, {_form(state)}")
        return after

    def _seen(self, given, state):
        given = _joined(given, state)
        room, row = self._ask("while_positive", given), self._ask("row", given)
        for name, value in {"while_positive": room, **row}.items():
            if name == "step" or name in self.series:
                raise ValueError(f"row returned {name!r}: this column is made already")
            if np.shape(value) != ():
                raise ValueError(f"{name!r} has the shape {np.shape(value)}: it must be a number")
        return room, row

    def _tables(self, given):
        tables = {name: np.atleast_1d(v).astype(float) for name, v in self._ask("inputs", given).items()}
        for name, table in tables.items():
            if len(table) < self.steps or not np.isfinite(table).all():
                raise ValueError(
                    f"input {name!r} has {len(table)} entries, {np.isfinite(table).sum()} numbers of them "
                    f"finite: {self.steps} steps need as many entries, all finite"
                )
        return tables

    # --- the formulas written down ---------------------------------------------------------------------

    def program(self, sliders, choices):
        """Return what explorer.js makes the same rows from, ready for JSON.

        Args:
          sliders: the names of the numbers that the reader sets.
          choices: the options of each choice by its name.

        Raises:
          ValueError: if one of both is none of these, or a function asks for what nobody gives.
        """
        named = isinstance(sliders, Iterable) and not isinstance(sliders, str | bytes | np.ndarray)
        if not named or not all(isinstance(name, str) for name in sliders):
            refuse("sliders", sliders, "a list of names")
        _require_lists("choices", choices, "a dict from names to lists of options")
        formulas, tables, programs, names = {}, {}, [], None
        for options in itertools.product(*choices.values()):
            for run in self._runs:
                given = _given(dict(zip(choices, options, strict=True)), run)
                written, columns, row = self._write(sliders, given)
                if row != (names or row):
                    raise ValueError(f"row returned {row!r} at {given!r}, and {names!r} before")
                names = row
                places = [_place(f, formulas) for f in written], [_place(c, tables) for c in columns]
                programs.append(places)
        return {
            "steps": self.steps,
            "sliders": sorted(sliders),  # as _leaves orders everything
            "choices": list(choices),
            "series": self._runs,
            "columns": names,
            "programs": programs,
            "formulas": [json.loads(text) for text in formulas],
            "tables": [json.loads(text) for text in tables],
        }

    def _write(self, sliders, given):
        """Return the formulas of start, row and step, the numbers that step reads, and the row's names."""
        tables = self._tables(given)
        sliders, now = dict.fromkeys(sliders, 0.0), {name: table[0] for name, table in tables.items()}
        start, state = _formula("start", lambda values: self._ask("start", _joined(given, values)), sliders)

        def see(values, state):
            room, row = self._seen(_joined(given, values), state)
            return {"": room, **row}

        row, seen = _formula("row or while_positive", see, sliders, state)
        step, _ = _formula(
            "step", lambda values, *more: self._after(_joined(given, values), *more), sliders, state, now
        )
        columns = [tables[name][: self.steps].reshape(self.steps, -1).T.tolist() for name in sorted(tables)]
        return (start, row, step), list(itertools.chain(*columns)), sorted(seen)[1:]


def _require_lists(name, value, allowed):
    require_kind(name, value, dict, allowed)
    if not all(isinstance(k, str) and isinstance(v, list | tuple) and len(v) for k, v in value.items()):
        refuse(name, value, allowed)


def _asked(function):
    """Return the arguments of a function, each with whether it must be given, and whether it takes all."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name: p.default is p.empty for p in parameters if p.kind is not p.VAR_KEYWORD}
    return names, len(names) < len(parameters)


def _given(setting, run):
    """Return both together, with floats as in the browser: 1 / 0 is infinite where Python would raise."""
    given = _joined(setting, run)
    return {name: np.float64(value) if isinstance(value, float) else value for name, value in given.items()}


def _joined(*parts):
    joined = {name: value for part in parts for name, value in part.items()}
    if len(joined) < sum(map(len, parts)):
        names = [name for part in parts for name in part]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"name {twice!r} is not allowed twice among controls, series, state and inputs")
    return joined


def _leaves(tree):
    """Yield the numbers of a state, those of a dictionary in the order of its sorted names."""
    if isinstance(tree, dict):
        for name in sorted(tree):
            yield from _leaves(tree[name])
    else:
        yield from np.ravel(tree)


def _filled(tree, numbers):
    """Return a state of the same form that holds the numbers of an iterator."""
    if isinstance(tree, dict):
        return {name: _filled(tree[name], numbers) for name in sorted(tree)}
    if np.ndim(tree) == 0:
        return next(numbers)
    return np.array([next(numbers) for _ in range(np.size(tree))]).reshape(np.shape(tree))


def _form(tree):
    return {name: _form(part) for name, part in tree.items()} if isinstance(tree, dict) else np.shape(tree)


def _formula(what, function, *trees):
    """Return ``function``, of symbols in the form of ``trees``, written down, and what it returned."""
    trace = Trace()
    inputs = map(trace.input, itertools.count())
    try:
        result = function(*(_filled(tree, inputs) for tree in trees))
        ends = [trace.place(value) for value in _leaves(result)]
    except (TypeError, AttributeError, LookupError) as error:
        raise ValueError(
            f"{what} does what cannot be written down ({type(error).__name__}: {error}): with sliders, "
            "state and inputs it may use + - * / ** and abs alone"
        ) from error
    return _compact(what, trace.entries, ends), result


def _compact(what, entries, ends):
    """Return a formula's inputs, constants, operations and ends, each number and operation kept once.

    The places are those of the inputs, then of the constants, then of the operations.
    """
    inputs = sum(kind == "input" for kind, *_ in entries)
    constants = list(dict.fromkeys(entry[1] for entry in entries if entry[0] == "constant"))
    if not np.isfinite(constants).all():
        raise ValueError(f"{what} holds the constants {constants!r}: all must be finite")
    known = [("input", i) for i in range(inputs)] + [("constant", number) for number in constants]
    known = {entry: place for place, entry in enumerate(known)}
    first, places = len(known), []
    for entry in entries:
        if entry[0] in _OPERATIONS:
            entry = (_OPERATIONS.index(entry[0]), places[entry[1]], places[entry[-1]])
        places.append(known.setdefault(entry, len(known)))
    return {
        "inputs": inputs,
        "constants": constants,
        "code": list(itertools.chain(*list(known)[first:])),
        "ends": [places[end] for end in ends],
    }


def _place(value, pool):
    return pool.setdefault(json.dumps(value, separators=(",", ":")), len(pool))
