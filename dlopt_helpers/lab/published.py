"""Results that come with the package, as text beside the code that made them.

What the calls of an experiment gave lies in a file of its module's name, ``pruning_runs.jsonl`` beside
``pruning_runs.py``, one line per call. So nobody has to train for hours what others have trained, and anybody
can: ``DLOPT_TRAIN=always``. ``make claims`` writes these files.
"""

import functools
import hashlib
import inspect
import json
import os
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd

from dlopt_helpers._require import refuse
from dlopt_helpers.lab.memo import code_digest, inside, libraries, memoise, sources

_PACKAGE = Path(__file__).parents[1]
_WORDS = ("always", "never")


def published(function):
    """Take the results of ``function`` from the package, as far as this code has made them.

    A line holds while the code says what it said (:func:`~dlopt_helpers.lab.memo.code_digest`), whichever
    versions of Python and of the libraries are here. Any other call is computed, and kept as
    :func:`~dlopt_helpers.lab.memo.memoise` does.

    ``DLOPT_TRAIN`` in the environment says ``always`` to compute everything here, or ``never``.

    Args:
      function: returns a data frame, or what JSON can hold, or a list, tuple or dict of such.

    Raises:
      ValueError: if ``function`` is none of Python's own, or ``DLOPT_TRAIN`` holds another word.
      LookupError: if nothing may be computed, and this call has no line.

    Example:
      >>> @published
      ... def slow(n):
      ...     return {"n": n + 1}
      >>> slow(1)
      {'n': 2}
    """
    compute = memoise(function)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        path, call = _call(function, args, kwargs)
        line = _line(path, call)
        result = _decoded(line["result"]) if line else compute(*args, **kwargs)
        if path and not inside():
            _note(path, line or {**call, "libraries": libraries()}, result)
        return result

    return wrapper


def _call(function, args, kwargs):
    """Return the file in which a call may have a line, None if it cannot have one, and what the line says."""
    files = sources(function, [*args, *kwargs.values()])
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    try:
        path = Path(files[0]).with_suffix(".jsonl")
        path.relative_to(_PACKAGE)
        arguments = _simple(bound.arguments)
    except (TypeError, ValueError):  # of a reader's own code, or for data that has no name
        return None, {"function": function.__qualname__}
    return path, {"function": function.__qualname__, "arguments": arguments, "code": code_digest(*files)[:16]}


def _simple(value):
    """Return an argument as JSON has it, a function or class by its name."""
    if isinstance(value, dict):
        return {name: _simple(v) for name, v in value.items()}
    if isinstance(value, list | tuple | range):
        return [_simple(v) for v in value]
    if callable(value):
        return f"{value.__module__}.{value.__qualname__}"
    if isinstance(value, np.generic):  # a seed or a share that was read off a table
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(value)


def _line(path, call):
    """Return the published line of a call, or None if it is to be computed."""
    word = os.environ.get("DLOPT_TRAIN")
    if word and word not in _WORDS:
        raise ValueError(f"DLOPT_TRAIN={word!r} is not allowed: it must be one of {list(_WORDS)}, or absent")
    line = _lines(path).get(_key(call)) if path and word != "always" else None
    if line is None and word == "never":
        raise LookupError(f"{_key(call)} has no published result, and DLOPT_TRAIN=never: run `make claims`")
    return line


def _key(call):
    return json.dumps([call.get(name) for name in ("function", "arguments", "code")], sort_keys=True)


@functools.cache
def _lines(path):
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {_key(line): line for line in map(json.loads, lines)}


# --- results as JSON ----------------------------------------------------------------------------------


def _encoded(result):
    """Return a result as JSON has it: a data frame by its columns, a tuple by name, the rest as it is."""
    if isinstance(result, pd.DataFrame):
        columns = {name: column.tolist() for name, column in result.items()}
        narrow = [name for name, column in result.items() if column.dtype == "float32"]
        encoded = {"table": columns, **({"float32": narrow} if narrow else {})}
        pd.testing.assert_frame_equal(_decoded(encoded), result, check_exact=True)
        return encoded
    if isinstance(result, dict):
        return {name: _encoded(value) for name, value in result.items()}
    if isinstance(result, list):
        return list(map(_encoded, result))
    if isinstance(result, tuple):
        return {"tuple": list(map(_encoded, result))}
    return result.item() if isinstance(result, np.generic) else result


def _decoded(encoded):
    if isinstance(encoded, list):
        return list(map(_decoded, encoded))
    if not isinstance(encoded, dict):
        return encoded
    if "table" in encoded:
        return pd.DataFrame(encoded["table"]).astype(dict.fromkeys(encoded.get("float32", []), "float32"))
    if "tuple" in encoded:
        return tuple(map(_decoded, encoded["tuple"]))
    return {name: _decoded(value) for name, value in encoded.items()}


# --- publishing ---------------------------------------------------------------------------------------


def _note(path, line, result):
    """Write the line of a call into the folder ``$DLOPT_NOTED``, if there is one: any process may do so."""
    if folder := os.environ.get("DLOPT_NOTED"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256(f"{path}{_key(line)}".encode()).hexdigest()[:16]
        noted = {"file": path.relative_to(_PACKAGE).as_posix(), "line": {**line, "result": _encoded(result)}}
        Path(folder, f"{name}.json").write_text(json.dumps(noted), encoding="utf-8")


def publish(folder):
    """Make the files of results from the lines that the chapters' calls left in ``folder``, and no others.

    Returns:
      The files, with the number of their lines.

    Raises:
      ValueError: if ``folder`` holds none.
    """
    files = defaultdict(list)
    for note in Path(folder).glob("*.json"):
        noted = json.loads(note.read_text(encoding="utf-8"))
        files[_PACKAGE / noted["file"]].append(noted["line"])
    if not files:
        refuse("folder", str(folder), "a folder with what calls left there: set DLOPT_NOTED to it beforehand")
    for old in set(_PACKAGE.rglob("*.jsonl")) - set(files):
        old.unlink()
    for path, lines in files.items():
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in sorted(lines, key=_key))
        path.write_text(text, encoding="utf-8", newline="\n")
    return {path: len(lines) for path, lines in sorted(files.items())}


if __name__ == "__main__":
    for path, n in publish(sys.argv[1]).items():
        print(f"{path}: {n} results, {path.stat().st_size / 1e3:.0f} kB")
