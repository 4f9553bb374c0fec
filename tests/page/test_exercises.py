import itertools
import re
import zlib

import numpy as np
import pytest

from dlopt_helpers.page.exercises import NOT_ANSWERED, Check, Goal


def mean_and_spread(x):
    return x.mean(), x.std()


check = Check(
    mean_and_spread,
    lambda rng: {"x": rng.normal(size=4)},
    {"The two are swapped.": lambda x: (x.std(), x.mean())},
    praise="Both moments.",
)


def no_return(x):
    mean_and_spread(x)


def in_place(x):
    x -= x.mean()
    return 0.0, x.std()


def raises(x):
    raise NotImplementedError


@pytest.mark.parametrize("answer", [..., lambda x: ..., lambda x: (x.mean(), ...), raises])
def test_a_stub_is_not_answered_and_not_wrong(answer):
    assert check.judge(answer) == (None, NOT_ANSWERED)


def test_the_solution_passes(capsys):
    check(mean_and_spread)
    assert capsys.readouterr().out == "✓ Correct. Both moments.\n"


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x: (x.std(), x.mean()), "The two are swapped."),
        (no_return, "is a `return` missing"),
        (in_place, "in place"),
        (lambda y: y, "stopped with TypeError"),
        (3.0, "a function is asked for"),
        (lambda x: (0.0, 0.0), "Not yet. For x="),
        (lambda x: x.mean(), "Not yet"),
        (lambda x: (np.ones(2), np.ones(2)), "Not yet"),
        (lambda x: (float("nan"), x.std()), "Not yet"),
        (lambda x: ("a", "b"), "Not yet"),
    ],
)
def test_a_wrong_answer_gets_its_hint(answer, hint):
    verdict, line = check.judge(answer)
    assert verdict is False
    assert line.startswith("✗")
    assert hint in line


def swap(x):
    return mean_and_spread(x)[::-1]


@pytest.mark.parametrize("first, later", [(mean_and_spread, swap), (swap, mean_and_spread)])
def test_an_answer_has_to_agree_on_every_draw(first, later):
    calls = itertools.count()
    verdict, line = check.judge(lambda x: (later if next(calls) else first)(x))
    assert verdict is False and line.startswith("✗ Not yet")  # and not the hint of the swapped


@pytest.mark.parametrize("first, later", [(mean_and_spread, swap), (swap, mean_and_spread)])
def test_the_hint_shows_a_draw_on_which_the_answer_is_wrong(first, later):
    calls = itertools.count()
    line = check.judge(lambda x: (later if next(calls) else first)(x))[1]
    right, found = re.search(r"the result is (.*), not (.*)\.$", line).groups()
    assert right != found


@pytest.mark.parametrize("factor", [1 + 1e-4, 1 + 1e-7, 1 + 1e-12])
def test_the_hint_shows_as_many_digits_as_it_takes(factor):
    third = Check(lambda: 1 / 3, lambda rng: {}, tolerance=0)
    line = third.judge(lambda: factor / 3)[1]
    right, found = re.search(r"the result is (.*), not (.*)\.$", line).groups()
    assert right != found and right.startswith("0.333") and found.startswith("0.333")


def test_inputs_are_fresh():
    seen = []
    check.judge(lambda x: seen.append(x.copy()) or mean_and_spread(x))
    check.judge(lambda x: seen.append(x.copy()) or mean_and_spread(x))
    assert len({x.tobytes() for x in seen}) == len(seen)


words = Check(
    lambda names: (names[-1], [f"{names[0]}!"]),
    lambda rng: {"names": [f"stage{n}" for n in rng.permutation(9)]},
    {"That is the first.": lambda names: (names[0], [f"{names[0]}!"])},
)


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda names: (names[-1], [names[0] + "!"]), "✓ Correct."),
        (lambda names: (names[0], [names[0] + "!"]), "That is the first."),
        (lambda names: (names[1], [names[0] + "!"]), "Not yet. For names=('stage"),
        (lambda names: (3.0, [names[0] + "!"]), "Not yet"),
        (lambda names: (names[-1], f"{names[0]}!"), "Not yet"),
        (lambda names: names.sort(), "in place"),
        (lambda names: names.append("more"), "in place"),
        (lambda names: names.__setitem__(0, "7"), "in place"),
    ],
)
def test_words_are_compared_as_they_are(answer, hint):
    assert hint in words.judge(answer)[1]


def test_words_that_look_like_numbers_stay_words():
    same = Check(lambda word: word, lambda rng: {"word": "4"})
    assert same.judge(lambda word: "4")[0] is True
    assert same.judge(lambda word: "4.0")[0] is same.judge(lambda word: 4)[0] is False
    assert Check(lambda n: n, lambda rng: {"n": 4}).judge(lambda n: "4")[0] is False


goal = Goal(
    lambda x: x + 1,
    lambda rng: {"x": rng.normal(size=3)},
    {"That is below.": lambda x: x - 1},
    praise="Above.",
    reached=lambda result, x: "" if np.shape(result) == (3,) and all(result > x) else "Not above.",
)


@pytest.mark.parametrize("above", [0.1, 1.0, np.arange(1, 4)])
def test_a_goal_has_many_right_answers(above):
    assert goal.judge(lambda x: x + above) == (True, "✓ Correct. Above.")


@pytest.mark.parametrize(
    ("answer", "hint"),
    [
        (lambda x: x - 1, "That is below."),
        (lambda x: x - 2, "Not above."),
        (lambda x: "a", "Not above."),
        (lambda x: None, "is a `return` missing"),
        (lambda x: x.sort() or x + 1, "in place"),
        (lambda: 0, "stopped with TypeError"),
        (3.0, "a function is asked for"),
    ],
)
def test_a_goal_missed_gets_its_hint(answer, hint):
    verdict, line = goal.judge(answer)
    assert verdict is False
    assert line.startswith("✗")
    assert hint in line


def test_a_goal_has_to_be_reached_on_every_draw():
    calls = iter(range(99))
    assert goal.judge(lambda x: x + (1 if next(calls) < 4 else -2)) == (False, "✗ Not above.")


@pytest.mark.parametrize("answer", [..., lambda x: ..., raises])
def test_a_goals_stub_is_not_answered(answer):
    assert goal.judge(answer) == (None, NOT_ANSWERED)


def test_draws_are_fresh_at_each_call_and_the_same_in_each_run_of_this_test(request):
    seen = []
    for _ in range(2):
        check.judge(lambda x: seen.append(x[0]))
    assert len(set(seen)) == len(seen) == 10
    assert seen[0] == np.random.default_rng(zlib.crc32(request.node.nodeid.encode())).normal()
