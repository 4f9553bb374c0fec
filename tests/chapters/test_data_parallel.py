import numpy as np
import pytest

from dlopt_helpers.chapters import data_parallel as chapter


@pytest.fixture(scope="module")
def found():
    return chapter.launch(processes=2)


@pytest.fixture(scope="module")
def one():
    return chapter.train("by hand")


def _apart(a, b):
    return abs(a - b).max()


@pytest.mark.parametrize("way", ["by hand", "DDP", "uneven, weighted"])
def test_two_processes_are_one(found, one, way):
    assert _apart(found[way], one) < 1e-6


def test_each_bug_is_what_the_page_says(found, one):
    assert _apart(found["summed"], chapter.train("by hand", rate=2 * chapter.RATE)) < 1e-6
    assert _apart(found["same examples"], chapter.train("by hand", batch_size=chapter.BATCH // 2)) < 1e-6
    for way in ("summed", "same examples", "uneven, plain mean"):
        assert _apart(found[way][0], one) > 1e-3, way
        assert _apart(found[way][0], found[way][1]) < 1e-7, way
    assert _apart(*found["no broadcast"]) > 0.1


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("way", ["by hand", "uneven, weighted"])
def test_shares_hold_each_example_once(way, processes):
    batch = np.arange(64) + 100
    shares = [chapter.share(batch, way, rank, processes) for rank in range(processes)]
    assert sorted(np.concatenate(shares)) == list(batch)


def test_the_same_examples_are_the_same():
    shares = [chapter.share(np.arange(8), "same examples", rank, 2).tolist() for rank in range(2)]
    assert shares[0] == shares[1] == [0, 1, 2, 3]


def test_a_failure_says_what_the_processes_wrote(monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere")
    monkeypatch.setattr(chapter, "__name__", "dlopt_helpers.chapters.no_such_script")
    with pytest.raises(RuntimeError, match="no_such_script"):
        chapter.launch(processes=1)
