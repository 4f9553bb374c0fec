import pytest

from dlopt_helpers.page.source import source
from dlopt_helpers.sgd import SGD


def test_the_page_shows_the_code_without_its_docstring():
    shown = source(SGD).data
    assert shown.startswith("```python\n@dataclass(frozen=True)\nclass SGD:\n    lr: float")
    assert "Robbins" not in shown
    assert "Return the weights" not in shown
    body = shown.removeprefix("```python\n").removesuffix("\n```")
    compile(body, "shown", "exec")


def test_a_method_is_shown_from_the_left_margin():
    assert source(SGD.step).data.startswith("```python\ndef step(self, w, gradient, state):\n    gradient = ")


def test_the_docstring_can_stay():
    assert "Robbins" in source(SGD, docstring=True).data


@pytest.mark.parametrize("thing", [3, len])
def test_what_has_no_source_is_refused(thing):
    with pytest.raises(TypeError):
        source(thing)
