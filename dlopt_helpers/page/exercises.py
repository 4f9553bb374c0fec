"""Exercises that check themselves: fresh inputs, and a hint for each usual mistake."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from dlopt_helpers._require import refuse, require_function, require_kind, require_one

NOT_ANSWERED = "○ Not answered yet: replace the `...` and run this cell again."
DRAWS = 5


@dataclass(frozen=True)
class Check:
    """Compare a learner's function with the solution on inputs drawn anew at each call.

    Calling the check prints one line: a tick, the hint that belongs to the mistake, or
    that there is no answer yet. It never raises on account of the answer.

    Args:
      solution: the right function.
      inputs: ``inputs(rng)`` returns a dict of keyword arguments for it.
      mistakes: the usual wrong functions, each with the hint it earns. The hint is given
        when the answer agrees with that function on every draw.
      praise: what the learner may note after a right answer.
      tolerance: relative, with respect to the largest entry of the solution.

    Raises:
      ValueError: if an argument is not allowed.

    Example:
      >>> check_double = Check(lambda x: 2 * x, lambda rng: {"x": rng.normal(size=3)},
      ...                      {"That is the square.": lambda x: x**2}, praise="Twice as much.")
      >>> check_double(...)
      ○ Not answered yet: replace the `...` and run this cell again.
      >>> check_double(lambda x: x * x)
      ✗ That is the square.
      >>> check_double(lambda x: x + x)
      ✓ Correct. Twice as much.
    """

    solution: Callable
    inputs: Callable
    mistakes: dict = field(default_factory=dict)
    praise: str = ""
    tolerance: float = 1e-6

    def __post_init__(self):
        require_function("solution", self.solution)
        require_function("inputs", self.inputs)
        require_kind("mistakes", self.mistakes, dict, "a dict from hints to functions")
        if not all(isinstance(hint, str) and callable(f) for hint, f in self.mistakes.items()):
            refuse("mistakes", self.mistakes, "a dict from hints to functions")
        require_kind("praise", self.praise, str, "a sentence")
        require_one("tolerance", self.tolerance, "a finite number >= 0", lambda t: t >= 0)

    def __call__(self, answer):
        print(self.judge(answer)[1])

    @np.errstate(all="ignore")  # an answer that overflows earns a hint, and no warning
    def judge(self, answer):
        """Return ``(verdict, line)``; the verdict is True, False, or None without an answer."""
        if answer is ...:
            return None, NOT_ANSWERED
        if not callable(answer):
            return False, f"✗ The answer is a {type(answer).__name__}; a function is asked for."
        rng = np.random.default_rng()
        draws = [self.inputs(rng) for _ in range(DRAWS)]
        given = []
        for draw in draws:
            arguments = copy.deepcopy(draw)
            try:
                given.append(answer(**arguments))
            except NotImplementedError:
                return None, NOT_ANSWERED
            except Exception as error:
                return False, f"✗ The function stopped with {type(error).__name__}: {error}"
            if _unanswered(given[-1]):
                return None, NOT_ANSWERED
            if not _agree(list(arguments.values()), list(draw.values()), 0):
                return False, "✗ The function changes its arguments in place; return new arrays instead."
        return self._verdict(draws, given)

    def _verdict(self, draws, given):
        flaw = self._flaw(draws, given)
        if not flaw:
            return True, f"✓ Correct. {self.praise}".rstrip()
        if given[0] is None:
            return False, "✗ The function returns None: is a `return` missing?"
        for hint, function in self.mistakes.items():
            if self._matches(function, draws, given):
                return False, f"✗ {hint}"
        return False, f"✗ {flaw}"

    def _flaw(self, draws, given):
        """Return the hint for a mistake that is not among the usual ones, or "" for a right answer."""
        for draw, result in zip(draws, given, strict=True):
            right = self.solution(**copy.deepcopy(draw))
            if not _agree(result, right, self.tolerance):
                example = ", ".join(f"{name}={_short(value)}" for name, value in draw.items())
                expected, found = _told_apart(right, result)
                return f"Not yet. For {example} the result is {expected}, not {found}."
        return ""

    def _matches(self, function, draws, given):
        return all(
            _agree(g, function(**copy.deepcopy(d)), self.tolerance) for g, d in zip(given, draws, strict=True)
        )


@dataclass(frozen=True, kw_only=True)
class Goal(Check):
    """Check a learner's function where many answers are right: by what its results achieve.

    It takes the arguments of :class:`Check`, too. ``solution`` is one right function among others.

    Args:
      reached: ``reached(result, **inputs)`` returns "" where the goal is reached, else the hint. It is
        given whatever the learner's function returns.

    Example:
      >>> def reached(result, x):
      ...     return "" if result > x else f"{result} is not above {x}."
      >>> check_above = Goal(lambda x: x + 1, lambda rng: {"x": 3}, reached=reached)
      >>> check_above(lambda x: 2 * x)
      ✓ Correct.
      >>> check_above(lambda x: x - 1)
      ✗ 2 is not above 3.
    """

    reached: Callable

    def __post_init__(self):
        super().__post_init__()
        require_function("reached", self.reached)

    def _flaw(self, draws, given):
        return next(filter(None, (self.reached(g, **d) for g, d in zip(given, draws, strict=True))), "")


def _unanswered(value):
    return value is ... or (isinstance(value, tuple | list) and any(part is ... for part in value))


def _agree(a, b, tolerance):
    if isinstance(b, tuple | list):
        return (
            isinstance(a, tuple | list)
            and len(a) == len(b)
            and all(_agree(x, y, tolerance) for x, y in zip(a, b, strict=True))
        )
    if isinstance(a, str) or isinstance(b, str):
        return isinstance(a, str) and isinstance(b, str) and a == b
    try:
        a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    except (TypeError, ValueError):
        return False
    scale = np.abs(b).max(initial=0)
    return a.shape == b.shape and bool(np.all(np.abs(a - b) <= tolerance * scale))


def _told_apart(*values):
    """Return the values in words, with as many digits as it takes to see that they differ."""
    for digits in (3, 6, 17):
        words = [_short(value, digits) for value in values]
        if len(set(words)) == len(words):
            break
    return words


def _short(value, digits=3):
    if isinstance(value, str):
        return repr(value)
    if isinstance(value, tuple | list):
        return "(" + ", ".join(_short(part, digits) for part in value) + ")"
    try:
        return np.array2string(np.asarray(value, dtype=float), precision=digits, separator=", ")
    except (TypeError, ValueError):
        return repr(value)
