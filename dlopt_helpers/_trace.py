"""A formula written down while it runs, so that a compiler or a browser can run it again."""

import numbers


class Trace:
    """The operations of a formula in order.

    An entry is ``("input", name)``, ``("constant", number)`` or an operation and the places of its
    operands in the list: ``add``, ``sub``, ``mul``, ``truediv``, ``pow``, ``neg`` or ``abs``.

    Example:
      >>> trace = Trace()
      >>> w = trace.input("w")
      >>> end = w - 0.5 * w
      >>> trace.entries
      [('input', 'w'), ('constant', 0.5), ('mul', 1, 0), ('sub', 0, 2)]
      >>> end.place
      3
    """

    def __init__(self):
        self.entries = []

    def input(self, name):
        """Return a symbol for a value that is known later."""
        return self._symbol("input", name)

    def place(self, value):
        """Return the place of a symbol, or of a number after writing it down."""
        return value.place if isinstance(value, Symbol) else self._symbol("constant", float(value)).place

    def _symbol(self, *entry):
        self.entries.append(entry)
        return Symbol(self, len(self.entries) - 1)


class Symbol:
    """A value of a trace. Operators on it write down what they would do.

    Arrays of symbols (NumPy's dtype ``object``) go through a formula as arrays of numbers do.
    """

    __slots__ = ("place", "trace")
    dtype = object  # lets it pass as a hyper-parameter whose value is not known yet

    def __init__(self, trace, place):
        self.trace, self.place = trace, place

    def __neg__(self):
        return self.trace._symbol("neg", self.place)

    def __abs__(self):
        return self.trace._symbol("abs", self.place)

    def _refuse(self, *_):
        raise TypeError("a symbol has no value to compare or to branch on")

    __bool__ = __eq__ = __ne__ = _refuse
    __hash__ = object.__hash__


_NUMBERS = (float, int, numbers.Real)  # the last is the general answer, and ten times as slow
_OPERANDS = (Symbol, *_NUMBERS)


def _operator(name):
    def forward(self, other):
        if not isinstance(other, _OPERANDS):
            return NotImplemented  # an array takes the operation over, element by element
        return self.trace._symbol(name, self.place, self.trace.place(other))

    def backward(self, other):
        if not isinstance(other, _NUMBERS):
            return NotImplemented
        return self.trace._symbol(name, self.trace.place(other), self.place)

    return forward, backward


for _name in ("add", "sub", "mul", "truediv", "pow"):
    _forward, _backward = _operator(_name)
    setattr(Symbol, f"__{_name}__", _forward)
    setattr(Symbol, f"__r{_name}__", _backward)
