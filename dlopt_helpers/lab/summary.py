"""Runs of several seeds, drawn together."""

import pandas as pd

from dlopt_helpers._require import refuse


def over_seeds(runs, by):
    """Return the mean over seeds of loss and accuracy, and the lowest and highest accuracy.

    Args:
      runs: a data frame as :func:`~dlopt_helpers.lab.sweep.sweep` returns it.
      by: the columns of a setting, and the one that counts its steps.

    Raises:
      ValueError: if ``runs`` is no such data frame, or ``by`` no list of its columns.
    """
    _require_columns(runs, ["loss", "accuracy"], by=by)
    grouped = runs.groupby(by, as_index=False, sort=False)
    return grouped.agg(
        loss=("loss", "mean"),
        accuracy=("accuracy", "mean"),
        low=("accuracy", "min"),
        high=("accuracy", "max"),
    )


def final_accuracy(runs, by):
    """Return the last row of each run, of ten classes, with the accuracy of chance if it diverged.

    Args:
      runs: a data frame as :func:`~dlopt_helpers.lab.sweep.sweep` returns it.
      by: the columns of a setting.

    Raises:
      ValueError: as :func:`over_seeds`.
    """
    _require_columns(runs, ["seed", "accuracy", "diverged"], by=by)
    last = runs.groupby([*by, "seed"], as_index=False, sort=False).last()
    return last.assign(accuracy=last.accuracy.where(~last.diverged, 0.1))


def at_best_rate(runs, by, among=("rate",)):
    """Return the rows of each setting at the learning rate that is best on the validation examples.

    Args:
      runs: rows with ``rate``, ``seed``, ``validation`` and the columns of a setting.
      by: those columns. The rate is chosen once for all seeds.
      among: the columns to choose in, where not the rate alone. Of equals the last in order is taken.

    Raises:
      ValueError: as :func:`over_seeds`, also of ``among``.
    """
    _require_columns(runs, ["validation"], by=by, among=among)
    means = runs.groupby([*by, *among], as_index=False).validation.mean()
    best = means.sort_values("validation", kind="stable").groupby(by, as_index=False).last()
    return runs.merge(best[[*by, *among]], on=[*by, *among]).reset_index(drop=True)


def _require_columns(runs, needed, **named):
    """Raise unless ``runs`` has rows, the columns that are ``needed``, and those of each list."""
    if not isinstance(runs, pd.DataFrame) or runs.empty or not set(needed) <= set(runs.columns):
        refuse("runs", runs, f"a data frame with rows and the columns {needed}")
    for name, columns in named.items():
        held = isinstance(columns, tuple | list | dict) and all(
            isinstance(c, str) and c in runs.columns for c in columns
        )
        if not held or not columns:
            refuse(name, columns, f"a list of columns of runs, of {list(runs.columns)}")
