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
        good = value.dtype.kind in "iuf" and np.all(np.isfinite(value) & ok(value))
    elif isinstance(value, numbers.Real) and not isinstance(value, bool):
        good = abs(value) < math.inf and ok(value)
    else:
        good = hasattr(value, "dtype") and not isinstance(value, np.generic)
    if not good:
        raise ValueError(f"{name}={value!r} is not allowed: it must be {allowed}")
