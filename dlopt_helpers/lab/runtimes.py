"""What the runtimes share: silence while they work, and what calibration data must be."""

import contextlib
import io
import logging
import os
import warnings

import numpy as np

from dlopt_helpers._require import refuse, require_whole


@contextlib.contextmanager
def quiet():
    """Drop warnings, logs below errors and all that is printed, by C++ code too; exceptions pass.

    Example:
      >>> with quiet():
      ...     print("not seen")
    """
    level, handlers = logging.root.manager.disable, list(logging.root.handlers)
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.callback(logging.root.handlers.__setitem__, slice(None), handlers)  # logging.warning adds one
        stack.callback(logging.disable, level)
        logging.disable(logging.WARNING)
        for number in (1, 2):  # C++ code writes to the descriptors and knows nothing of sys.stderr
            stack.enter_context(_nowhere(number))
        yield


@contextlib.contextmanager
def _nowhere(number):
    kept, nowhere = os.dup(number), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, number)
        yield
    finally:
        os.dup2(kept, number)
        os.close(kept)
        os.close(nowhere)


def checked_calibration(calibration, inputs):
    """Return ``calibration`` as float32, once it is sure that ranges can be read from it.

    Raises:
      ValueError: if ``inputs`` is no whole number >= 1, or ``calibration`` is not an array (n, ``inputs``)
        with n >= 1, has a number that is not finite, or has only one value.

    Example:
      >>> checked_calibration([[0.0, 1.0]], 2).dtype
      dtype('float32')
    """
    require_whole("inputs", inputs, 1)
    try:
        x = np.asarray(calibration)
    except ValueError:  # lists of several lengths
        refuse("calibration", calibration, f"an array of numbers, (n, {inputs}) with n >= 1")
    if x.dtype.kind not in "iuf" or x.ndim != 2 or x.shape[1] != inputs or not len(x):
        seen = f"calibration has shape {x.shape} and type {x.dtype}"
        raise ValueError(f"{seen}: it must be an array of numbers, (n, {inputs}) with n >= 1")
    with np.errstate(over="ignore"):
        x = x.astype("float32")
    if not np.isfinite(x).all() or x.min() == x.max():
        seen = f"calibration has values in [{x.min()}, {x.max()}]"
        raise ValueError(f"{seen}: they must be finite and not all the same")
    return x
