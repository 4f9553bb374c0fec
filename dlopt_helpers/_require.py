"""One way to refuse a bad argument: name it, show its value, say what is allowed."""

import math
import numbers

import numpy as np


def require(name, value, allowed, ok):
    """Raise ``ValueError`` unless ``ok(value)`` holds for a number or an array of numbers.

    Tensors of a framework pass unchecked: inside a compiled graph they have no value yet.

    Args:
      name: the argument as its caller wrote it.
      value: a number, a NumPy array of numbers, or a tensor.
      allowed: the permitted values in words, such as ``"a finite number >= 0"``.
      ok: a predicate that works element by element.
    """
    if isinstance(value, np.ndarray):
        good = value.dtype.kind in "iuf" and value.size and np.all(np.isfinite(value) & ok(value))
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        good = abs(value) < math.inf and ok(value)
    else:
        good = is_tensor(value)
    if not good:
        refuse(name, value, allowed)


def require_one(name, value, allowed, ok):
    """As :func:`require`, of a single number: an array is refused, whatever it holds."""
    if isinstance(value, np.ndarray) and value.ndim:
        refuse(name, value, allowed)
    require(name, value, allowed, ok)


def require_whole(name, value, least, most=None):
    """Return ``value`` as an ``int``; raise ``ValueError`` unless it is a whole number in that range."""
    allowed = f"a whole number >= {least}" if most is None else f"a whole number in [{least}, {most}]"
    number = isinstance(value, numbers.Real) and not isinstance(value, bool) and abs(value) < math.inf
    if not (number and value % 1 == 0 and value >= least and (most is None or value <= most)):
        refuse(name, value, allowed)
    return int(value)


def require_bool(**flags):
    """Raise ``ValueError`` unless each of ``flags`` is True or False: no word or number stands for one."""
    for name, value in flags.items():
        if not isinstance(value, bool | np.bool_):
            refuse(name, value, "True or False")


def require_option(name, value, options):
    """Raise ``ValueError`` unless ``value`` is a word among ``options``."""
    if not (isinstance(value, str) and value in options):
        refuse(name, value, f"one of {list(options)}")


def require_kind(name, value, kinds, allowed):
    """Raise ``ValueError`` unless ``value`` is an instance of ``kinds``, which ``allowed`` says in words."""
    if not isinstance(value, kinds):
        refuse(name, value, allowed)


def require_function(name, value, allowed="a function"):
    """Raise ``ValueError`` unless ``value`` can be called."""
    if not callable(value):
        refuse(name, value, allowed)


def require_array(name, value, allowed="an array of finite numbers", axes=None, finite=True):
    """Raise ``ValueError`` unless ``value`` is an array of so many ``axes``, or a tensor.

    The numbers of NumPy's arrays are looked at, and those of tensors are not.
    """
    numeric = value.dtype.kind in "iuf" if isinstance(value, np.ndarray) else is_tensor(value)
    if not (numeric and hasattr(value, "shape")):
        refuse(name, value, allowed)
    shape, ours = tuple(value.shape), isinstance(value, np.ndarray)
    if (ours and not value.size) or axes not in (None, len(shape)):
        along = "" if axes is None else f" along {axes} axes"
        raise ValueError(f"{name} has the shape {shape}: it must be {allowed}{along}, and not empty")
    if ours and finite and not np.isfinite(value).all():
        refuse(name, value, allowed)


def is_tensor(value):
    """Say whether ``value`` is an array of a framework, or a symbol for one: something with a dtype.

    Data of pandas have one, too, but align by their index where an array would broadcast.
    """
    ours = isinstance(value, type | np.generic | np.ndarray) or hasattr(value, "iloc")
    return hasattr(value, "dtype") and not ours


def refuse(name, value, allowed):
    """Raise ``ValueError`` with the name of an argument, its value, and what is allowed."""
    raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")
