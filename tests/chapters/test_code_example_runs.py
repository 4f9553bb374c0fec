"""The trainings of chapter 4.1 do what they are called, tried on a few steps."""

import numpy as np
import pytest
import torch
from torch import nn

from dlopt_helpers.adam import Adam
from dlopt_helpers.chapters import code_example_runs as module
from dlopt_helpers.code_example import Alternating, binary_cross_entropy
from dlopt_helpers.sgd import SGD


@pytest.fixture
def short(monkeypatch):
    """Few steps, few seeds and nothing on disk."""
    monkeypatch.delenv("DLOPT_JOBS", raising=False)  # other processes would know nothing of all this
    for name in ("_memorised", "_alternated", "_epochs", "_broadcast", "_grid"):
        monkeypatch.setattr(module, name, getattr(module, name).__wrapped__)
    for name, value in {"TEN": [0, 1], "FIVE": [0], "THREE": [0, 1], "FRESH": 50, "STEPS": 4}.items():
        monkeypatch.setattr(module, name, value)
    train = module.train

    def shorter(rule, runs, steps=None, every=2, **options):
        return train(rule, runs, min(steps or module.STEPS, 40), min(every, 2), **options)

    monkeypatch.setattr(module, "train", shorter)


# --- examples --------------------------------------------------------------------------------------


def test_the_target():
    x = np.array([[1.0, 2.0, -9], [-1, -2, 9], [1, -2, 9], [-1, 2, 0]])
    assert module.target(x).tolist() == [1, 1, 0, 0]
    x, y = module.examples(0, share=0.0, n=5_000)
    assert x.dtype == y.dtype == np.float32 and x.shape == (5_000, 10) and y.shape == (5_000, 1)
    assert (y[:, 0] == module.target(x)).all() and 0.47 < y.mean() < 0.53


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_half_of_the_random_labels_stay_right(share):
    y = np.random.default_rng(1).integers(0, 2, 20_000)
    noisy = module.labels_with_noise(y, share, np.random.default_rng(2))
    assert set(noisy) == {0, 1} and (noisy == y).mean() == pytest.approx(1 - share / 2, abs=0.01)
    assert noisy[y == 1].mean() == pytest.approx(1 - share / 2, abs=0.015)  # no label is preferred


@pytest.mark.parametrize("bad", [-0.1, 1.1, np.nan, "1", None])
def test_shares_out_of_range(bad):
    with pytest.raises(ValueError, match="share="):
        module.labels_with_noise(np.zeros(3), bad, np.random.default_rng(0))


def test_fresh_examples_are_others_of_the_same_kind():
    seen, fresh = module.examples(0, 0.0), module.examples(0, 0.0, fresh=True)
    assert not np.isin(fresh[0], seen[0]).any()
    assert not np.array_equal(seen[0], module.examples(1, 0.0)[0])
    np.testing.assert_array_equal(seen[0], module.examples(0, 1.0)[0])
    assert 0.4 < (module.examples(0, 1.0)[1] == seen[1]).mean() < 0.6


def test_weights_are_glorots():
    w1, b1, w2, b2 = module.network(0)
    assert [w.shape for w in (w1, b1, w2, b2)] == [(10, 16), (16,), (16, 1), (1,)]
    assert not b1.any() and not b2.any()
    for w, size in ((w1, 26), (w2, 17)):
        assert 0.8 * (6 / size) ** 0.5 < abs(w).max() <= (6 / size) ** 0.5
    assert module.network(0, units=4)[0].shape == (10, 4)


# --- training ----------------------------------------------------------------------------------------


def by_pytorch(seed, share, order=None, steps=6):
    """Return what the article's program in PyTorch gives before each step and at the end."""
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
    w1, b1, w2, b2 = map(torch.from_numpy, module.network(seed))
    model.load_state_dict({"0.weight": w1.T, "0.bias": b1, "2.weight": w2.T, "2.bias": b2})
    optimizers = [kind(model.parameters(), 0.01) for kind in (torch.optim.SGD, torch.optim.Adam)]
    seen, fresh = (
        [torch.from_numpy(a) for a in module.examples(seed, share, n, fresh=fresh)]
        for n, fresh in ((1_000, False), (module.FRESH, True))
    )
    loss, rows = nn.BCELoss(), []
    for step in range(steps + 1):
        rows.append([])
        for x, y in (seen, fresh):
            p = model(x)
            rows[-1] += [loss(p, y).item(), ((p > 0.5) == (y > 0.5)).float().mean().item()]
        rows[-1].append(p.std().item())
        batch = slice(None) if order is None or step == steps else order[step]
        model.zero_grad()
        loss(model(seen[0][batch]), seen[1][batch]).backward()
        optimizers[step % 2].step()
    return rows


COLUMNS = ["loss", "accuracy", "fresh_loss", "fresh_accuracy", "spread"]


@pytest.mark.parametrize("batch_size", [None, 50])
def test_networks_trained_at_once_are_those_trained_alone(batch_size):
    runs = [(0, 0.0), (3, 1.0)]
    rows, lengths = module.train(module.article(), runs, steps=6, every=1, batch_size=batch_size)
    assert lengths.shape == (6, 2) and list(rows.run.unique()) == [0, 1]
    for number, (seed, share) in enumerate(runs):
        mine = rows[rows.run == number]
        assert set(mine.seed) == {seed} and set(mine.share) == {share} and list(mine.step) == list(range(7))
        order = batch_size and module.batches(1_000, batch_size, 6, seed)
        np.testing.assert_allclose(mine[COLUMNS], by_pytorch(seed, share, order), atol=4e-4)
    # SGD's steps are its rate times the gradient; Adam's first moves each weight by the rate.
    assert lengths[1] == pytest.approx(0.01 * 193**0.5, rel=0.05) and (lengths[::2] < 0.01).all()


def test_rates_of_each_run():
    rate = torch.tensor([0.01, 0.5])[:, None, None]
    both, lengths = module.train(SGD(rate), [(0, 1.0)] * 2, steps=2, every=2)
    alone, _ = module.train(SGD(0.5), [(0, 1.0)], steps=2, every=2)
    np.testing.assert_allclose(both[both.run == 1][COLUMNS], alone[COLUMNS], atol=1e-5)
    assert lengths[0, 1] == pytest.approx(50 * lengths[0, 0], rel=1e-4)


# --- the mistakes that are shown -------------------------------------------------------------------------


def states_after(rule, steps):
    w, state = 1.0, rule.init(1.0)
    for _ in range(steps):
        w, state = rule.step(w, 1.0, state)
    return w, state


def test_counts_all():
    w, state = states_after(module.CountsAll(SGD(0.1), Adam(0.1)), 3)
    right, own = states_after(Alternating(SGD(0.1), Adam(0.1)), 3)
    assert state["t"] == state["second"]["t"] == 3 and own["second"]["t"] == 1
    assert state["second"]["m"] == own["second"]["m"] and w > right  # its first step is shorter
    _, state = states_after(module.CountsAll(SGD(0.1), Adam(0.1)), 1)
    hat = 0.1 / (1 - 0.9**2) / (0.001 / (1 - 0.999**2)) ** 0.5
    w, _ = module.CountsAll(SGD(0.1), Adam(0.1)).step(0.0, 1.0, state)
    assert w == pytest.approx(-0.1 * hat, rel=1e-6)


def test_both_see_all():
    w, state = states_after(module.SeesAll(SGD(0.2), Adam(0.1)), 4)
    assert state["t"] == state["second"]["t"] == 4
    assert w == pytest.approx(1 - 2 * (0.2 + 0.1), abs=1e-6)  # under a gradient of 1 Adam moves by its rate
    _, adam = states_after(Adam(0.1), 4)
    assert state["second"]["v"] == pytest.approx(adam["v"])


def test_the_broadcast_is_the_mean_over_all_pairs():
    p, y = torch.rand(2, 30, 1, requires_grad=True), (torch.rand(2, 30, 1) > 0.3).float()
    pairs = y[:, None, :, 0] * torch.log(p) + (1 - y[:, None, :, 0]) * torch.log(1 - p)
    assert pairs.shape == (2, 30, 30)
    by_hand = -pairs.mean()
    ours = module.against_the_mean(p, y)
    torch.testing.assert_close(ours, by_hand)
    torch.testing.assert_close(*(torch.autograd.grad(loss, p)[0] for loss in (ours, by_hand)))
    assert abs(ours - binary_cross_entropy(p, y)) > 0.01


# --- what the chapter asks for ----------------------------------------------------------------------------


def test_memorised(short):
    rows = module.memorised()
    sizes = rows.groupby(["units", "share"]).seed.nunique().to_dict()
    assert sizes == {(16, 1.0): 2, **{(16, s): 1 for s in (0.0, 0.25, 0.5, 0.75)}, (4, 1.0): 2, (64, 1.0): 2}
    assert not rows[COLUMNS].isna().any(axis=None)


def test_alternated(short):
    rows = module.alternated()
    assert set(rows.way) == set(module.WAYS) and len(rows) == 5 * 2 * 2 * 3
    last = rows[rows.step == 4].set_index(["way", "share", "seed"])
    assert (last.path_odd["alternating"] > 5 * last.path_even["alternating"]).all()
    assert (last.path_odd["SGD alone"] < 0.02).all() and (last.path_even["Adam alone"] > 0.1).all()
    _, lengths = module.train(module.article(), [(1, 0.0)])
    assert last.path_odd["alternating", 0.0, 1] == pytest.approx(lengths[[1, 3], 0].sum(), rel=1e-4)
    assert rows[rows.step < 4].path_odd.isna().all()


def test_epochs(short):
    rows = module.epochs()
    assert set(rows.share) == {0.0, 1.0} and rows.step.max() == 40
    loss = rows[rows.share == 1].set_index("step").loss
    assert loss[20] - loss[40] > 3 * abs(loss[0] - loss[20])  # SGD makes 20 steps, then Adam 20


def test_broadcast(short):
    rows = module.broadcast().set_index(["way", "step"])
    assert rows.loss["right", 0] == rows.loss["broadcast", 0]
    assert rows.spread["right", 40] > 1.2 * rows.spread["broadcast", 40]


def test_grid(short):
    rows = module.grid()
    key = ["turns", "share", "lr_sgd", "lr_adam"]
    assert rows.groupby(key).size().to_dict() == {
        (turns, share, sgd, adam): 3
        for turns in module.IN_TURN for share in module.SHARES
        for sgd in module.LR_SGD for adam in module.LR_ADAM
    }  # fmt: skip
    last = rows[rows.step == 4].set_index(key).loss
    assert last.loc["SGD alone"].groupby(["share", "lr_sgd"]).nunique().max() == 1
    assert last.loc["Adam alone"].groupby(["share", "lr_adam"]).nunique().max() == 1
    pairs = {"SGD alone": SGD(0.1), "Adam alone": Adam(0.03), "every step": Alternating(SGD(0.1), Adam(0.03))}
    for turns, rule in pairs.items():
        alone = module.train(rule, [(seed, 0.5) for seed in (0, 1)])[0]
        expected = alone[alone.step == 4].loss.mean()
        assert last[turns, 0.5, 0.1, 0.03] == pytest.approx(expected, rel=1e-4)


def test_the_rules_of_the_grid():
    assert module._rules("every 25", 0.1, 0.2) == Alternating(SGD(0.1), Adam(0.2), every=25)
