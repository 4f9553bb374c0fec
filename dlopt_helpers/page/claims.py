"""A sentence of the book that code has to back."""

import numpy as np

from dlopt_helpers._require import refuse


def claim(sentence, condition):
    """Print ``sentence`` with a tick if ``condition`` is true, else raise.

    A claim is a statement of the text and its test in one. Put bands, not measured
    values, in the sentence: it is stored with the notebook and has to read the same
    on another machine.

    Args:
      sentence: what the reader may take away, in one sentence.
      condition: a bool, or an array of them that must all be true, for example one per seed.

    Raises:
      AssertionError: if the condition does not hold; the message names the sentence.
      TypeError: if the condition is no truth value, for example a measured number.
      ValueError: if there is nothing to judge: an empty array or an empty sentence.

    Example:
      >>> claim("Two and two make four.", 2 + 2 == 4)
      ✓ Two and two make four.
    """
    if not (isinstance(sentence, str) and sentence.strip()):
        refuse("sentence", sentence, "a sentence")
    try:
        verdicts = np.asarray(condition)
    except ValueError:  # lists of several lengths
        verdicts = np.array(None)
    if verdicts.dtype != bool:
        raise TypeError(f"condition={condition!r} is not allowed: it must be a bool or an array of bools")
    if not verdicts.size:
        refuse("condition", condition, "at least one verdict")
    if not verdicts.all():
        share = f" (true in {verdicts.sum()} of {verdicts.size})" if verdicts.size > 1 else ""
        raise AssertionError(f"the claim does not hold{share}: {sentence}")
    print(f"✓ {sentence}")
