"""What counts as a difference between two builds."""

import pytest
from reproduce import differences

PAGE = "<p>accuracy 0.81</p>\n<p>{'ms': 0.06, 'bytes': 7}</p>\n<table id=\"T_a1b2c\">\n"


@pytest.fixture
def builds(tmp_path):
    for name in ("one", "other"):
        (tmp_path / name / "chapters").mkdir(parents=True)
        (tmp_path / name / "chapters" / "page.html").write_text(PAGE)
    return tmp_path / "one", tmp_path / "other"


def test_times_and_random_marks_are_none(builds):
    assert differences(*builds) == []
    again = PAGE.replace("0.06", "0.11").replace("a1b2c", "0f0f0").replace("\n", "\n\n")
    (builds[1] / "chapters/page.html").write_text(again)
    assert differences(*builds) == []


@pytest.mark.parametrize(
    "old, new", [("0.81", "0.82"), ("'bytes': 7", "'bytes': 8"), ("<p>acc", "<p>\n<p>acc")]
)
def test_a_result_is_one(builds, old, new):
    (builds[1] / "chapters/page.html").write_text(PAGE.replace(old, new))
    assert len(differences(*builds)) == 1


def test_so_is_a_page_that_one_lacks(builds):
    (builds[0] / "chapters/more.html").write_text(PAGE)
    assert differences(*builds) == ["chapters/more.html is in one build only"]


def test_no_pages_are_no_proof(builds, tmp_path):
    with pytest.raises(ValueError, match="holds no page"):
        differences(builds[0], tmp_path / "nothing")
