"""From a situation to a recipe: the rules, their order, and what undoes what."""

import itertools
import subprocess
import sys

import pytest

from dlopt_helpers.recipes import (
    PHASES,
    SCARCE,
    STEPS,
    UNDOES,
    Situation,
    against,
    choose,
    conditions,
    lasting,
)

ANSWERS = list(itertools.product([True, False], repeat=5))
SITUATIONS = [Situation(scarce, *answers) for scarce in SCARCE for answers in ANSWERS]


def names(scarce, **answers):
    return [step.name for step in choose(Situation(scarce, **answers))]


# --- the recipes that the book stands for, written out -----------------------------------------------


@pytest.mark.parametrize(
    ("scarce", "answers", "recipe"),
    [
        ("file", {}, ["more examples", "new student", "4 bits"]),
        ("file", {"oversized": False}, ["more examples", "new student", "4 bits"]),
        ("file", {"examples": False}, ["fewer units", "4 bits"]),
        ("file", {"examples": False, "oversized": False}, ["fewer units", "4 bits"]),
        (
            "file",
            {"examples": False, "oversized": False, "sparsity": True},
            ["weights to zero", "shared numbers"],
        ),
        ("file", {"sparsity": True}, ["more examples", "new student", "4 bits"]),
        ("file", {"sparsity": True, "oversized": False}, ["more examples", "new student", "4 bits"]),
        ("file", {"sparsity": True, "examples": False}, ["fewer units", "4 bits"]),
        ("file", {"training": False}, ["shared numbers"]),
        ("batch", {}, ["more examples", "fewer units"]),
        ("batch", {"oversized": False}, ["more examples", "fewer units", "8 bits"]),
        ("batch", {"oversized": False, "integers": False}, ["more examples", "fewer units"]),
        ("batch", {"training": False}, ["8 bits"]),
        ("batch", {"training": False, "integers": False}, []),
        ("one answer", {"oversized": False}, ["more examples", "fewer units"]),
        ("one answer", {"training": False}, ["8 bits"]),
        ("training", {}, ["small from the start", "cheaper steps"]),
        ("training", {"oversized": False}, ["cheaper steps"]),
        ("labels", {}, ["more examples"]),
        ("labels", {"examples": False}, ["soft answers"]),
        ("labels", {"training": False}, []),
    ],
)
def test_recipes(scarce, answers, recipe):
    assert names(scarce, **answers) == ["measure", *recipe]


@pytest.mark.parametrize("situation", SITUATIONS, ids=repr)
def test_every_situation(situation):
    steps = choose(situation)
    phases = [PHASES.index(step.phase) for step in steps]
    assert phases == sorted(phases) and steps[0].name == "measure"
    taken, left = {step.name for step in steps}, against(situation)
    assert taken | set(left) == set(STEPS) and not taken & set(left)
    assert sum(step.phase == "bits" for step in steps) <= 1, "two kinds of bits save the same bytes once"
    if not situation.training:
        assert not taken & {"new student", "fewer units", "weights to zero", "4 bits", "more examples"}
    if situation.scarce in ("labels", "training"):
        assert not taken & {"8 bits", "4 bits", "shared numbers", "fewer units", "new student"}


def test_reasons_are_the_first_that_stand():
    for situation in SITUATIONS:
        for name, reason in against(situation).items():
            asked = conditions(situation)[name]
            before = list(asked)[: list(asked).index(reason)]
            assert asked[reason] is False and all(asked[other] for other in before)


def test_every_step_belongs_to_some_recipe_and_every_answer_matters():
    assert {step.name for situation in SITUATIONS for step in choose(situation)} == set(STEPS)
    for place in range(5):
        flipped = [
            Situation(s, *(not a if i == place else a for i, a in enumerate(answers)))
            for s in SCARCE
            for answers in ANSWERS
        ]
        assert any(choose(a) != choose(b) for a, b in zip(SITUATIONS, flipped, strict=True))


def test_a_recipe_undoes_nothing_of_its_own():
    stage = {"new student": "distil", "fewer units": "prune_neurons", "weights to zero": "prune_weights"}
    stage |= {"4 bits": "quantize", "shared numbers": "share_weights"}
    for situation in SITUATIONS:
        stages = [stage[step.name] for step in choose(situation) if step.name in stage]
        assert lasting(stages) == stages


@pytest.mark.parametrize("scarce", ["bytes", "", None, "File"])
def test_scarce_must_be_known(scarce):
    with pytest.raises(ValueError, match=r"scarce=.* must be one of \['file'"):
        Situation(scarce)


@pytest.mark.parametrize("name", ["training", "examples", "integers", "sparsity", "oversized"])
@pytest.mark.parametrize("value", ["no", 0, 1, None])
def test_answers_are_true_or_false(name, value):
    with pytest.raises(ValueError, match=f"{name}=.* must be True or False"):
        Situation("file", **{name: value})


# --- what lasts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "left"),
    [
        ([], []),
        (["quantize"], ["quantize"]),
        (["quantize", "quantize"], ["quantize"]),
        (["prune_neurons", "quantize"], ["prune_neurons", "quantize"]),
        (["quantize", "prune_neurons"], ["prune_neurons"]),
        (["share_weights", "factorise"], ["factorise"]),
        (["quantize", "share_weights"], ["share_weights"]),
        (["prune_weights", "factorise"], ["factorise"]),
        (["prune_weights", "prune_neurons"], ["prune_weights", "prune_neurons"]),
        (["factorise", "prune_weights"], ["factorise", "prune_weights"]),
        (["prune_neurons", "factorise", "distil"], ["distil"]),
        (["distil", "distil", "prune_neurons", "quantize"], ["distil", "prune_neurons", "quantize"]),
    ],
)
def test_lasting(stages, left):
    given = list(stages)
    assert lasting(stages) == left and stages == given


@pytest.mark.parametrize("bits", ["quantize", "share_weights"])
@pytest.mark.parametrize("later", UNDOES)
def test_no_bits_survive_another_stage(bits, later):
    assert lasting([bits, later]) == [later]


def test_the_last_stage_lasts_and_what_lasts_lasts_again():
    for length in (1, 2, 3):
        for stages in itertools.product(UNDOES, repeat=length):
            left = lasting(list(stages))
            assert left[-1] == stages[-1] and lasting(left) == left


def test_an_unknown_stage_is_refused():
    with pytest.raises(ValueError, match=r"stages\[1\]='prune' is not allowed: it must be one of \['distil'"):
        lasting(["distil", "prune"])


def test_the_rules_load_no_framework():
    code = "import sys, dlopt_helpers.recipes; sys.exit(bool({'torch', 'tensorflow'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
