import numpy as np
import torch

from dlopt_helpers.chapters import trends_hardware_exercises as exercises
from dlopt_helpers.pruning import n_of_m_mask


def test_just_above_the_smallest_update_survives_and_half_a_spacing_does_not():
    for seed in range(20):
        w = float(torch.tensor(np.random.default_rng(seed).uniform(0.01, 0.45)).bfloat16())
        limit = exercises.check_smallest_update.solution(w, 7)
        kept = torch.tensor([w + 0.99 * limit, w + 1.01 * limit]).bfloat16() == w
        assert kept.tolist() == [True, False]


def test_unequal_shares_give_the_gradient_of_the_whole_batch():
    rng = np.random.default_rng(0)
    each, sizes = rng.normal(size=(50, 3)), np.array([9, 30, 11])
    means = np.stack([part.mean(axis=0) for part in np.split(each, np.cumsum(sizes)[:-1])])
    found = exercises.check_unequal_shares.solution(means, sizes)
    np.testing.assert_allclose(found, each.mean(axis=0))


def test_packed_is_what_the_mask_keeps():
    row = np.random.default_rng(0).normal(size=16)
    values, places = exercises.check_pack.solution(row)
    back = np.zeros((4, 4))
    np.put_along_axis(back, places, values, axis=1)
    np.testing.assert_array_equal(back.ravel(), row * n_of_m_mask(row))
