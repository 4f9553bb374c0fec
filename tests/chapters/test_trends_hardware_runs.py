import pytest
import torch

from dlopt_helpers.chapters import trends_hardware_runs as chapter
from dlopt_helpers.lab.models import mlp


def test_autocast_computes_in_bfloat16_and_keeps_its_weights():
    model = chapter.Autocast(mlp())
    inside = []
    model.network[0].register_forward_hook(lambda layer, x, out: inside.append(out.dtype))
    out = model(torch.randn(3, 40))
    out.sum().backward()
    assert inside == [torch.bfloat16] and out.dtype == torch.float32
    assert (
        {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {torch.float32}
    )


def test_weights_are_rounded_after_each_step():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([p], lr=0.003)
    optimizer.register_step_post_hook(chapter._round_weights)
    for sign in (1.0, -1.0):  # below 1 half a spacing is 0.00195, above it 0.0039
        p.data.fill_(1.0)
        p.grad = torch.full((3,), sign)
        optimizer.step()
        assert (p == 1).all() == (sign < 0)


@pytest.mark.parametrize("pattern", chapter.PATTERNS)
def test_every_pattern_keeps_what_it_says(pattern):
    w = {"0": torch.randn(8, 16), "2": torch.randn(4, 8)}
    for name, mask in chapter.masks(pattern, w, seed=0).items():
        assert mask.mean() == (1 if pattern == "dense" else 0.5)
        fours = mask.reshape(-1, 4).sum(1)
        assert ((fours == 2).all()) == ("2:4" in pattern)
        kept, gone = (abs(w[name])[mask == one] for one in (1, 0))
        if pattern == "any half":
            assert kept.min() > gone.max()
