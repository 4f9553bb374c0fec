import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from dlopt_helpers.bridges.torch import RuleOptimizer
from dlopt_helpers.lab import training
from dlopt_helpers.lab.data import digits
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import batches, recorded, train
from dlopt_helpers.sgd import SGD


def run(lr=0.1, steps=60, schedule=None, **more):
    model = mlp(inputs=64, hidden=16)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    schedule = schedule(optimizer) if schedule else None
    return model, train(model, optimizer, digits(), steps=steps, schedule=schedule, **more)


def test_rows():
    model, rows = run(lr=0.5, steps=110, every=50)
    assert list(rows.columns) == ["step", "loss", "accuracy", "diverged"]
    assert list(rows.step) == [0, 50, 100, 110] and not rows.diverged.any()
    assert rows.loss.is_monotonic_decreasing and rows.accuracy.iloc[-1] > 0.5 > rows.accuracy.iloc[0]
    data = digits()
    with torch.no_grad():
        loss = cross_entropy(model(torch.tensor(data.x_train[:1000])), torch.tensor(data.y_train[:1000]))
        right = model(torch.tensor(data.x_test)).argmax(1).numpy() == data.y_test
    assert rows.loss.iloc[-1] == loss.item() and rows.accuracy.iloc[-1] == right.mean()


def test_a_run_is_measured_in_evaluation_mode_and_trained_in_its_own():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(64), mlp(inputs=64, hidden=16))
    rows = train(model, torch.optim.SGD(model.parameters(), lr=0.1), digits(), steps=30, every=30)
    assert model.training and model[0].num_batches_tracked == 30  # no batch was counted while measuring
    x, y = torch.from_numpy(digits().x_test), torch.from_numpy(digits().y_test)
    assert rows.accuracy.iloc[-1] == (model.eval()(x).argmax(1) == y).double().mean().item()


def test_same_seed_same_run():
    assert run(seed=1)[1].equals(run(seed=1)[1]) and not run(seed=1)[1].equals(run(seed=2)[1])


def test_bridge_makes_the_same_run():
    model = mlp(inputs=64, hidden=16)
    ours = train(model, RuleOptimizer(model.parameters(), SGD(lr=0.1)), digits(), steps=60)
    np.testing.assert_allclose(ours.loss, run()[1].loss, atol=1e-5)


def test_schedule():
    def ten_steps(optimizer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: float(step < 10))

    _, stopped = run(schedule=ten_steps, every=10)
    assert stopped.loss.iloc[0] > stopped.loss.iloc[1] == stopped.loss.iloc[-1]


def test_a_diverging_run_ends_and_says_so():
    _, rows = run(lr=1e30, every=10)
    assert list(rows.step) == [0] and rows.diverged.all() and np.isfinite(rows.loss).all()


def test_an_interrupt_returns_what_is_there(monkeypatch, capsys):
    update, calls = training._update, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) > 25:
            raise KeyboardInterrupt
        update(*args)

    monkeypatch.setattr(training, "_update", interrupted)
    _, rows = run(every=10)
    assert list(rows.step) == [0, 10, 20]
    assert "stopped by hand after 25 of 60 steps" in capsys.readouterr().out


def test_batches_are_epochs_of_everything():
    order = batches(n=10, batch_size=3, steps=7, seed=0)
    assert order.shape == (7, 3)
    for epoch in (order[:3], order[3:6]):
        assert len(np.unique(epoch)) == 9
    assert not np.array_equal(order[:3], order[3:6])
    assert batches(n=10, batch_size=10, steps=0, seed=0).shape == (0, 10)


@pytest.mark.parametrize(
    "bad",
    [
        {"batch_size": 0},
        {"batch_size": 1438},
        {"batch_size": 1.5},
        {"steps": -1},
        {"every": 0},
        {"every": None},
    ],
)
def test_refuses(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name}="):
        run(**bad)


def test_recorded_steps_end_with_the_last():
    assert recorded(10, 4) == [0, 4, 8, 10] and recorded(8, 4) == [0, 4, 8] and recorded(0, 4) == [0]


def test_the_bar_is_quiet_in_a_built_book(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    list(training.progress(range(3), "a"))
    assert capsys.readouterr().err == ""
    monkeypatch.delenv("DLOPT_STATIC")
    list(training.progress(range(3), "a"))
    assert "a: " in capsys.readouterr().err


def test_one_thread_only_while_training():
    before = torch.get_num_threads()
    with training.one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
