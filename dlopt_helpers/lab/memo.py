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
# What draws, asks, refuses, keeps, spreads or bears the version cannot change a result.
_ASIDE = ("page/", "_require.py", "lab/memo.py", "lab/published.py", "lab/spread.py", "__init__.py")
_LIBRARIES = ("numpy", "torch", "mnist1d", "scikit-learn")
_inside = contextvars.ContextVar("inside a memoised function", default=False)


def cache_dir():
    """Return where results are kept: ``$DLOPT_CACHE``, else the user's cache directory."""
    return Path(os.environ.get("DLOPT_CACHE") or platformdirs.user_cache_path("dlopt"))


@functools.cache
def code_digest(*files):
    """Return a SHA-256 over what ``files`` say, and what of the package they import says.

    Comments, docstrings and layout say nothing that could change a result, so they do not count.

    Raises:
      ValueError: if there is no such file.
    """
    for file in files:
        if not (isinstance(file, str | Path) and Path(file).is_file()):
            refuse("files", file, "paths of files that exist")
    digest = hashlib.sha256()
    for file in sorted(_with_imports(files)):
        digest.update(file.name.encode() + repr(_said(_parsed(file))).encode())
    return digest.hexdigest()


def source_digest(*files):
    """Return :func:`code_digest`, mixed with the versions of the libraries that train.

    Raises:
      ValueError: if there is no such file.
    """
    return hashlib.sha256(f"{code_digest(*files)} {libraries()}".encode()).hexdigest()


def libraries():
    """Return the libraries that could change a result, with their versions.

    Example:
      >>> sorted(libraries())
      ['mnist1d', 'numpy', 'scikit-learn', 'torch']
    """
    return {name: metadata.version(name) for name in _LIBRARIES}


def _parsed(file):
    return ast.parse(file.read_text(encoding="utf-8"))


def _said(node):
    """Return a syntax tree as nested tuples, alike for each version of Python and without docstrings."""
    if isinstance(node, list):
        return tuple(map(_said, node))
    if not isinstance(node, ast.AST):
        return node
    fields = dict(ast.iter_fields(node))
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
        fields["body"] = node.body[1:]
    # Newer versions of Python add fields, which are empty in code that older ones can read.
    return type(node).__name__, *((name, _said(f)) for name, f in fields.items() if f is not None and f != [])


def _with_imports(files):
    """Return ``files`` and what of the package they import, directly or not, but for ``_ASIDE``."""
    found, left = set(), [Path(file) for file in files]
    while left:
        file = left.pop()
        if file not in found and file.exists():
            found.add(file)
            left += _imported(file)
    return found


def _imported(file):
    for node in ast.walk(_parsed(file)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom):  # a name may be a module, or something inside one
            names = [node.module, *(f"{node.module}.{name}" for name in names)]
        for package, *rest in (name.split(".") for name in names):
            if package == _PACKAGE.name:
                path = "/".join(rest) + ".py" if rest else "__init__.py"
                if not path.startswith(_ASIDE):
                    yield _PACKAGE / path


def _of_package(function):
    return getattr(function, "__module__", "").startswith("dlopt_helpers.")


def sources(function, arguments):
    """Return the file of ``function`` and those of the functions and classes among its arguments.

    None if one of them is not of the package, or the function is typed in: such code has no key.
    """
    file = inspect.getsourcefile(inspect.unwrap(function))
    given = [a for a in arguments if callable(a)]
    if not (file and os.path.exists(file) and all(map(_of_package, given))):
        return None
    return file, *sorted({inspect.getsourcefile(inspect.unwrap(a)) for a in given})


def inside():
    """Say whether this runs within a memoised function."""
    return _inside.get()


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

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        files = sources(function, [*args, *kwargs.values()])
        if not files:
            return function(*args, **kwargs)
        memory = joblib.Memory(cache_dir() / source_digest(*files)[:16], verbose=0)
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
    return [(_kept, (f, *args), kwargs) for f, args, kwargs in jobs] if inside() else jobs


def _kept(function, *args, **kwargs):
    ours = inspect.isfunction(function) and _of_package(function)
    return (memoise(function) if ours else function)(*args, **kwargs)
