"""What a rule of quantization is in each framework: a function of a weight, or a dict of them."""

import contextlib

from dlopt_helpers._require import require_kind


@contextlib.contextmanager
def naming(where):
    """Let an error of the subject say which layer it is about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def rules_of(rule, names):
    """Return the rule of each layer by its name; layers that a dict leaves out are not in it.

    Raises:
      ValueError: if ``rule`` is neither a function nor a dict of functions, or names an unknown layer.
    """
    if not callable(rule):
        require_kind("rule", rule, dict, "a function of a weight, or a dict of them")
    rules = rule if isinstance(rule, dict) else dict.fromkeys(names, rule)
    for name, one in rules.items():
        if name not in names:
            raise ValueError(f"rule names {name!r}: it must be one of {', '.join(names)}")
        if not callable(one):
            where = f"rule[{name!r}]" if isinstance(rule, dict) else "rule"
            raise ValueError(f"{where}={one!r} is not allowed: it must be a function of a weight")
    return rules


def apply_rule(name, rule, w):
    """Return ``rule(w)``.

    Raises:
      ValueError: naming the layer, if the rule refuses the weight or returns another shape.
    """
    with naming(f"layer {name!r}"):
        left = rule(w)
    shape = tuple(getattr(left, "shape", ()))
    if shape != tuple(w.shape):
        raise ValueError(
            f"layer {name!r}: the rule returns the shape {shape}, not {tuple(w.shape)}: "
            "it must be that of the weight"
        )
    return left
