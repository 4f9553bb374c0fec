import joblib
import pytest

from dlopt_helpers.lab import spread as module
from dlopt_helpers.lab.spread import spread

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
