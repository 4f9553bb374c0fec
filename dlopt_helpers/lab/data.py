"""Small data sets that are generated, never downloaded."""

import contextlib
import random
from typing import NamedTuple

import numpy as np

from dlopt_helpers._require import refuse, require_whole
from dlopt_helpers.lab.memo import memoise


class Data(NamedTuple):
    """A training and a test set: inputs float32, one example a row; labels int64."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


@contextlib.contextmanager
def _random_states_kept():
    """Undo what a generator that seeds the global random states does to them."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _generate(samples, train_split, seed):
    from mnist1d.data import get_dataset_args, make_dataset

    args = get_dataset_args()
    args.num_samples, args.train_split, args.seed = samples, train_split, seed
    with _random_states_kept():
        made = make_dataset(args)
    x, y = (made["x"], made["x_test"]), (made["y"], made["y_test"])
    return Data(x[0].astype("float32"), y[0].astype("int64"), x[1].astype("float32"), y[1].astype("int64"))


@memoise
def mnist1d():
    """Return MNIST-1D: 4,000 training and 1,000 test examples of 40 numbers, ten classes.

    The generator of its authors with their settings and seed. Their code scales all 5,000
    examples to mean 0 and standard deviation 1, so nothing more needs to be scaled.

    Example:
      >>> mnist1d().x_train.shape
      (4000, 40)

    References:
      Greydanus and Kobak 2020, "Scaling down deep learning with MNIST-1D", arXiv 2011.14439.
    """
    return _generate(5_000, 0.8, seed=42)


@memoise
def fresh_test(n=10_000, seed=1):
    """Return ``(x, y)``: ``n`` more examples of MNIST-1D, for a test ten times as sharp.

    Scaled, as all sets of this generator, by their own mean and standard deviation.

    Args:
      n: number of examples, a multiple of 10 (the classes are equally frequent).
      seed: any but 42, whose examples are the training set.

    Raises:
      ValueError: if ``n`` or ``seed`` is not allowed.

    Example:
      >>> data = mnist1d()
      >>> x, y = fresh_test(n=100)
      >>> data = data._replace(x_test=x, y_test=y)
    """
    if require_whole("n", n, 10) % 10:
        refuse("n", n, "a positive multiple of 10")
    if require_whole("seed", seed, 0, 2**32 - 1) == 42:
        refuse("seed", seed, "another than 42")
    made = _generate(int(n), 0.0, int(seed))
    return made.x_test, made.y_test


def digits():
    """Return scikit-learn's 8 x 8 digits as :class:`Data`: 1,437 training and 360 test examples.

    For smoke tests: 64 numbers in [0, 1] an example, at hand without any generation.

    Example:
      >>> digits().x_train.shape
      (1437, 64)
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.2, random_state=0, stratify=y)
    return Data(x_train.astype("float32"), y_train, x_test.astype("float32"), y_test)
