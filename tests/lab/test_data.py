import random

import numpy as np
import pytest
import torch
from mnist1d.data import get_dataset_args, make_dataset
from sklearn.datasets import load_digits

from dlopt_helpers.lab.data import digits, fresh_test, mnist1d


def test_mnist1d_is_what_its_package_generates():
    made = make_dataset(get_dataset_args())
    for ours, theirs in zip(mnist1d(), (made["x"], made["y"], made["x_test"], made["y_test"]), strict=True):
        np.testing.assert_array_equal(ours, theirs.astype(ours.dtype))


def test_mnist1d_has_the_published_size_and_scale():
    data = mnist1d()
    assert [a.shape for a in data] == [(4000, 40), (4000,), (1000, 40), (1000,)]
    assert [str(a.dtype) for a in data] == ["float32", "int64", "float32", "int64"]
    x = np.concatenate([data.x_train, data.x_test])
    assert abs(x.mean()) < 1e-5 and abs(x.std() - 1) < 1e-5


def test_fresh_test_is_new_balanced_and_repeatable():
    x, y = fresh_test(n=200, seed=3)
    assert x.shape == (200, 40) and x.dtype == "float32" and set(np.bincount(y)) == {20}
    seen = {row.tobytes() for row in np.concatenate([mnist1d().x_train, mnist1d().x_test])}
    assert not any(row.tobytes() in seen for row in x)
    np.testing.assert_array_equal(x, fresh_test.__wrapped__(n=200, seed=3)[0])
    assert (x != fresh_test(n=200, seed=4)[0]).any()


@pytest.mark.parametrize(
    "name, value", [("n", 0), ("n", 15), ("n", "10"), ("n", True), ("seed", 42), ("seed", -1), ("seed", 0.5)]
)
def test_fresh_test_refuses(name, value):
    with pytest.raises(ValueError, match=f"{name}="):
        fresh_test(**{name: value})


def test_generation_leaves_the_random_states_alone():
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    fresh_test.__wrapped__(n=10)
    assert states[0] == random.getstate()
    assert all(np.array_equal(a, b) for a, b in zip(states[1], np.random.get_state(), strict=True))
    assert torch.equal(states[2], torch.random.get_rng_state())


def test_digits():
    data = digits()
    assert [len(a) for a in data] == [1437, 1437, 360, 360] and data.x_train.dtype == "float32"
    assert data.x_train.min() == 0 and data.x_train.max() == 1
    both = np.concatenate([data.x_train, data.x_test]), np.concatenate([data.y_train, data.y_test])
    x, y = load_digits(return_X_y=True)
    # Each example is in one of the sets, and in one alone.
    assert examples(*both) == examples((x / 16).astype("float32"), y)


def examples(x, y):
    return sorted(zip(map(bytes, x), y.tolist(), strict=True))
