"""Independent jobs, spread over processes."""

import os

import joblib

from dlopt_helpers._require import refuse
from dlopt_helpers.lab.memo import in_pieces
from dlopt_helpers.lab.training import progress


def spread(jobs, what):
    """Run ``jobs``, a list of ``joblib.delayed`` calls, and return their results in order.

    Inside a memoised function each result is kept as soon as it is there: after an interrupt (the stop
    button) the same call goes on where it was stopped.

    ``joblib.parallel_config(n_jobs=4)`` spreads them over cores (``DLOPT_JOBS=4`` in the environment
    does it for all), and ``backend="dask"`` or ``"ray"`` over a cluster.

    Args:
      jobs: the calls; none may wait for another.
      what: the name of the progress bar.

    Raises:
      ValueError: if ``jobs`` is no such list, ``what`` no text, or ``DLOPT_JOBS`` no whole number >= 1.

    Example:
      >>> spread([joblib.delayed(abs)(n) for n in (-1, 2)], "sizes")
      [1, 2]
    """
    if not isinstance(jobs, list) or not all(isinstance(job, tuple) and len(job) == 3 for job in jobs):
        refuse("jobs", jobs, "a list of joblib.delayed calls")
    return joblib.Parallel(_processes(len(jobs)))(progress(in_pieces(jobs), what))


def _processes(jobs):
    """Return what ``DLOPT_JOBS`` says and ``jobs`` need, or None, which leaves it to joblib."""
    said = os.environ.get("DLOPT_JOBS")
    if said and not (said.isdecimal() and int(said) >= 1):
        raise ValueError(f"DLOPT_JOBS={said!r} is not allowed: it must be a whole number >= 1")
    return min(int(said), max(1, jobs)) if said else None
