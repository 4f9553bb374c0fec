import numpy as np
import pytest

from dlopt_helpers.page.claims import claim


def test_a_true_claim_prints_its_sentence(capsys):
    claim("The sky is blue.", True)
    claim("Each seed agrees.", np.array([True, True]))
    assert capsys.readouterr().out == "✓ The sky is blue.\n✓ Each seed agrees.\n"


def test_a_false_claim_raises_and_names_its_sentence(capsys):
    with pytest.raises(AssertionError, match=r"true in 1 of 2.*Each seed agrees"):
        claim("Each seed agrees.", [True, False])
    with pytest.raises(AssertionError, match="The sky is green"):
        claim("The sky is green.", False)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("condition", [0.93, 1, "yes", None, np.array([0.1, 0.2])])
def test_a_measured_number_is_no_verdict(condition):
    with pytest.raises(TypeError, match="condition"):
        claim("Accuracy is above 90 %.", condition)


@pytest.mark.parametrize(
    ("sentence", "condition", "message"),
    [
        ("", True, "sentence='' is not allowed: it must be a sentence"),
        (
            "Nothing was tried.",
            np.array([], bool),
            "condition=.* is not allowed: it must be at least one verdict",
        ),
    ],
)
def test_nothing_to_judge(sentence, condition, message):
    with pytest.raises(ValueError, match=message):
        claim(sentence, condition)
