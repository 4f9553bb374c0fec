"""Results of expensive functions, kept on disk until the code that made them changes."""

import ast
import contextvars
import functools
import hashlib
import inspect
import os
from importlib import metadata
from pathlib import Path

import joblib
import platformdirs

from dlopt_helpers._require import refuse

_PACKAGE = Path(__file__).parents[1]
_LIBRARIES = ("numpy", "torch", "mnist1d", "scikit-learn")
_inside = contextvars.ContextVar("inside a memoised function", default=False)


def cache_dir():
    """Return where results are kept: ``$DLOPT_CACHE``, else the user's cache directory."""
    return Path(os.environ.get("DLOPT_CACHE") or platformdirs.user_cache_path("dlopt"))


@functools.cache
def source_digest(*files):
    """Return a SHA-256 over ``files``, what of the package they import, and the libraries' versions.

    Raises:
      ValueError: if there is no such file.
    """
    for file in files:
        if not (isinstance(file, str | Path) and Path(file).is_file()):
            refuse("files", file, "paths of files that exist")
    digest = hashlib.sha256()
    for file in sorted(_with_imports(files)):
        digest.update(file.name.encode() + file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library}=={metadata.version(library)}".encode())
    return digest.hexdigest()


def _with_imports(files):
    """Return ``files`` and all files of the package that they import, directly or not.

    ``page`` is left out: what draws and asks cannot change a result.
    """
    found, left = set(), [Path(file) for file in files]
    while left:
        file = left.pop()
        if file not in found and file.exists() and _PACKAGE / "page" not in file.parents:
            found.add(file)
            left += _imported(file)
    return found


def _imported(file):
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):  # a name may be a module, or something inside one
            names = [node.module, *(f"{node.module}.{name}" for name in names)]
        for package, *rest in (name.split(".") for name in names):
            if package == _PACKAGE.name:
                yield _PACKAGE.joinpath(*rest).with_suffix(".py") if rest else _PACKAGE / "__init__.py"


def _of_package(function):
    return getattr(function, "__module__", "").startswith("dlopt_helpers.")


def memoise(function):
    """Keep the results of ``function`` on disk, for this source code and these arguments.

    The key covers the file in which ``function`` stands, the files of the functions and classes among
    its arguments, and every file of the package that these import: a corrected formula never meets
    an old result, and a new chapter leaves the old results alone. Functions and classes that are
    defined outside the package (in a notebook, say) have no such key, so a call that is given one
    is computed anew each time.

    Raises:
      ValueError: if ``function`` is none of Python's own.

    Example:
      >>> @memoise
      ... def slow(n):
      ...     return n + 1
      >>> slow(1)
      2
    """
    if not inspect.isfunction(function):
        refuse("function", function, "a function written in Python")
    file = inspect.getsourcefile(inspect.unwrap(function))
    known = file and os.path.exists(file)

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        callables = [a for a in (*args, *kwargs.values()) if callable(a)]
        if not known or any(not _of_package(c) for c in callables):
            return function(*args, **kwargs)
        files = {inspect.getsourcefile(inspect.unwrap(c)) for c in callables}
        memory = joblib.Memory(cache_dir() / source_digest(file, *sorted(files))[:16], verbose=0)
        outside = _inside.set(True)
        try:
            return memory.cache(function)(*args, **kwargs)
        finally:
            _inside.reset(outside)

    return wrapper


def in_pieces(jobs):
    """Return ``jobs``, calls of ``joblib.delayed``, so that a memoised function keeps the result of each.

    An interrupt then loses the job at work and no other. Outside a memoised function they stay as they are.
    """
    return [(_kept, (f, *args), kwargs) for f, args, kwargs in jobs] if _inside.get() else jobs


def _kept(function, *args, **kwargs):
    ours = inspect.isfunction(function) and _of_package(function)
    return (memoise(function) if ours else function)(*args, **kwargs)
