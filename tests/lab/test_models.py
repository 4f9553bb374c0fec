import pytest
import torch

from dlopt_helpers.lab.models import cnn, mlp


def test_mlp_has_the_sizes_of_the_paper():
    model = mlp()
    assert sum(p.numel() for p in model.parameters()) == 15_210
    assert isinstance(model[-1], torch.nn.Linear) and model(torch.zeros(3, 40)).shape == (3, 10)


def test_cnn_has_the_sizes_of_the_paper():
    assert sum(p.numel() for p in cnn().parameters()) == 5_210
    assert sum(p.numel() for p in cnn(channels=64).parameters()) == 28_298


def test_one_number_stands_for_two_layers():
    assert [p.shape for p in mlp(hidden=7).parameters()] == [p.shape for p in mlp(hidden=(7, 7)).parameters()]
    assert len(mlp(hidden=())) == 1


@pytest.mark.parametrize("network", [mlp, cnn])
def test_seed_decides_the_weights_and_nothing_else(network):
    state = torch.random.get_rng_state()
    a, b, c = (next(network(seed=seed).parameters()) for seed in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert torch.equal(state, torch.random.get_rng_state())
