import joblib
import pytest

from dlopt_helpers.lab import memo
from dlopt_helpers.lab import spread as module
from dlopt_helpers.lab.data import digits
from dlopt_helpers.lab.spread import spread
from dlopt_helpers.lab.sweep import sweep

JOBS = [joblib.delayed(abs)(n) for n in (-3, 2, -1)]


def test_results_keep_their_order():
    assert spread(JOBS, "sizes") == [3, 2, 1]
    with joblib.parallel_config(backend="loky", n_jobs=2):
        assert spread(JOBS, "sizes") == [3, 2, 1]


def test_the_environment_spreads_them(monkeypatch):
    monkeypatch.setenv("DLOPT_JOBS", "2")
    asked, here = [], joblib.Parallel(1)
    monkeypatch.setattr(module.joblib, "Parallel", lambda n_jobs: asked.append(n_jobs) or here)
    spread(JOBS, "sizes")
    spread(JOBS[:1], "sizes")
    assert asked == [2, 1]  # for a single job a second process would only cost its start


@pytest.mark.parametrize("bad", ["0", "-1", "two", "1.5"])
def test_a_bad_number_of_processes(monkeypatch, bad):
    monkeypatch.setenv("DLOPT_JOBS", bad)
    with pytest.raises(ValueError, match=f"DLOPT_JOBS='{bad}' is not allowed"):
        spread(JOBS, "sizes")


def test_processes_keep_their_jobs(tmp_path, monkeypatch):
    monkeypatch.setenv("DLOPT_CACHE", str(tmp_path))
    with joblib.parallel_config(backend="loky", n_jobs=2):
        sweep({"lr": [0.01, 0.1], "inputs": 64, "hidden": [8, 9]}, data=digits(), steps=2, seeds=[0])
    assert len(list(tmp_path.rglob("_train_stack/*/output.pkl"))) == 2


def test_an_interrupt_keeps_what_is_finished(monkeypatch):
    """The second call goes on: no job that was finished runs again."""
    monkeypatch.setattr(memo, "_of_package", lambda function: True)
    ran, stop = [], [3]

    def job(n):
        if n in stop:
            raise KeyboardInterrupt
        ran.append(n)
        return -n

    def outer(numbers):
        return spread([joblib.delayed(job)(n) for n in numbers], "numbers")

    with pytest.raises(KeyboardInterrupt):
        memo.memoise(outer)([1, 2, 3, 4])
    stop.clear()
    assert memo.memoise(outer)([1, 2, 3, 4]) == [-1, -2, -3, -4] and ran == [1, 2, 3, 4]
    assert outer([1, 2]) == [-1, -2] and ran[4:] == [1, 2], "kept outside a memoised function"
