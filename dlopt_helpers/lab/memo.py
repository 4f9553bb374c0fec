"""Results of expensive functions, kept on disk until the code that made them changes."""

import functools
import hashlib
import inspect
import os
from importlib import metadata
from pathlib import Path

import joblib
import platformdirs

_PACKAGE = Path(__file__).parents[1]
_NOT_LAB = {"page", "chapters"}  # what draws and asks cannot change a result
_LIBRARIES = ("numpy", "torch", "mnist1d", "scikit-learn")


def cache_dir():
    """Return where results are kept: ``$DLOPT_CACHE``, else the user's cache directory."""
    return Path(os.environ.get("DLOPT_CACHE") or platformdirs.user_cache_path("dlopt"))


@functools.cache
def source_digest(*more):
    """Return a SHA-256 over the package's algorithms, the files ``more`` and the libraries' versions."""
    files = [f for f in _PACKAGE.rglob("*.py") if f.relative_to(_PACKAGE).parts[0] not in _NOT_LAB]
    digest = hashlib.sha256()
    for file in sorted({*files, *map(Path, more)}):
        digest.update(file.name.encode() + file.read_bytes())
    for library in _LIBRARIES:
        digest.update(f"{library}=={metadata.version(library)}".encode())
    return digest.hexdigest()


def _of_package(function):
    return getattr(function, "__module__", "").startswith("dlopt_helpers.")


def memoise(function):
    """Keep the results of ``function`` on disk, for this source code and these arguments.

    The key covers every algorithm of the package and the file in which ``function`` stands,
    not only its own lines: a corrected formula never meets an old result. Functions and
    classes that are defined outside the package (in a notebook, say) have no such key, so a
    call that is given one is computed anew each time.

    Example:
      >>> @memoise
      ... def slow(n):
      ...     return n + 1
      >>> slow(1)
      2
    """
    file = inspect.getsourcefile(function)
    more = (file,) if file and os.path.exists(file) else ()

    @functools.wraps(function)
    def wrapper(*args, **kwargs):
        callables = [a for a in (*args, *kwargs.values()) if callable(a)]
        if not more or any(not _of_package(c) for c in callables):
            return function(*args, **kwargs)
        memory = joblib.Memory(cache_dir() / source_digest(*more)[:16], verbose=0)
        return memory.cache(function)(*args, **kwargs)

    return wrapper
