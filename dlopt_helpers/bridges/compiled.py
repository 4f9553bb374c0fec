"""The steps of an optimiser as loops that ``torch.compile`` builds from the rule's formula.

The rule itself runs once a step, on symbols: what it computes from plain numbers alone, such as the
bias correction of Adam, it computes there and once. What is left, the operations on weights, becomes
one loop over memory. Its numbers are an input, so another rate or another ``t`` builds nothing anew;
its length is one too, so a loop serves tensors of every shape.
"""

import functools
import operator

import torch

from dlopt_helpers._trace import Symbol, Trace

# Below this many numbers a call costs more than to copy a tensor next to others and back.
SMALL = 2**16
# Powers with an instruction of their own; other exponents stay numbers that may change.
ROOT_AND_SQUARE = (0.5, 2.0)
CONSTANT = ("constant",)


def step(groups, plans):
    """Make one step of all ``groups``; whatever may raise does so before a weight changes.

    Args:
      groups: lists of a rule, a parameter that has a gradient, and its state; one rule in each list.
      plans: a dict that is empty at first and belongs to the same groups in the next steps.

    Returns:
      The state after the step by parameter, a dict. Its tensors change in place in later steps.

    Raises:
      ValueError: if a step uses more than operators, or tensors of other shapes than the weights'.
      RuntimeError: if ``torch.compile`` does not work on this machine.
    """
    ready = []
    for i, group in enumerate(groups):
        if i not in plans or not plans[i].fits(group):
            plans[i] = _Plan(group)
        ready += [(plans[i], batch, *batch.prepare(group[0][0])) for batch in plans[i].batches]
    states = {}
    for plan, batch, loop, constants, numbers in ready:
        after = batch.run(loop, constants, numbers)
        plan.states.update((p, tuple(state.values())) for p, state in after.items())
        states |= after
    return states


class _Plan:
    """How the parameters of a group are laid out for the loops, until somebody else sets a state."""

    def __init__(self, group):
        alike = {}
        for rule, p, state in group:
            numbers = {name: x for name, x in state.items() if not isinstance(x, torch.Tensor)}
            tensors = {name: x for name, x in state.items() if name not in numbers}
            for name, x in tensors.items():
                if x.shape != p.shape:
                    raise ValueError(
                        f"{type(rule).__name__} keeps {name!r} of shape {tuple(x.shape)} for weights of "
                        f"{tuple(p.shape)}: compiled=True needs equal shapes, so use compiled=False"
                    )
            key = p.dtype, p.device, tuple(tensors), tuple(numbers.items())
            alike.setdefault(key, []).append((p, *tensors.values()))
        self.batches = [_Batch(*key, rows) for key, rows in alike.items()]
        self.states = {}

    def fits(self, group):
        """Whether these are the parameters, and the states that the last step returned."""
        known = self.states
        return len(group) == len(known) and all(
            p in known and len(state) == len(known[p]) and all(map(operator.is_, state.values(), known[p]))
            for _, p, state in group
        )


class _Batch:
    """Parameters of one dtype and device whose states hold the same numbers."""

    def __init__(self, dtype, device, names, numbers, rows):
        self.dtype, self.device, self.names, self.numbers = dtype, device, names, dict(numbers)
        small = [row for row in rows if row[0].numel() < SMALL]
        large = [[row] for row in rows if row[0].numel() >= SMALL]
        self.pieces = [_Piece(names, rows) for rows in ([small] if small else []) + large]

    def prepare(self, rule):
        """Return the loop, its constants and the numbers in the state after the step of ``rule``."""
        entries, outputs, constants, numbers = _written_down(rule, self.names, self.numbers)
        loop = _loop(entries, outputs, self.names, self.dtype, self.device)
        return loop, torch.tensor(constants, dtype=_computed_in(self.dtype), device=self.device), numbers

    def run(self, loop, constants, numbers):
        """Change the weights and return the new states."""
        self.numbers = numbers
        for piece in self.pieces:
            piece.run(loop, constants)
        return {
            p: tensors | numbers
            for piece in self.pieces
            for p, tensors in zip(piece.parameters, piece.states, strict=True)
        }


class _Piece:
    """What one call of a loop changes: one large parameter, or small ones laid next to each other.

    The tensors of the states stay next to each other, as views of one tensor for each name. Weights
    and gradients lie where the model wants them: small ones are copied there and back.
    """

    def __init__(self, names, rows):
        parameters, *columns = zip(*rows, strict=True)
        self.parameters, self.flat = parameters, [_flat(column) for column in columns]
        views = [_views(flat, parameters) for flat in self.flat]
        self.states = [
            {name: view[i] for name, view in zip(names, views, strict=True)} for i in range(len(parameters))
        ]
        self.small = len(parameters) > 1
        if self.small:
            self.w, self.gradient = _flat(parameters), _flat(parameters)
            self.back = _views(self.w, parameters)

    def run(self, loop, constants):
        """Change the weights and the tensors of the states."""
        if self.small:
            torch.cat([p.reshape(-1) for p in self.parameters], out=self.w)
            torch.cat([p.grad.reshape(-1) for p in self.parameters], out=self.gradient)
            if self.w.numel():
                loop(constants, self.w, self.gradient, *self.flat)
            for p, x in zip(self.parameters, self.back, strict=True):
                p.copy_(x)
            return
        (p,) = self.parameters
        w = p.detach().reshape(-1)
        if w.numel():
            loop(constants, w, p.grad.reshape(-1), *self.flat)
        if not p.is_contiguous():
            p.copy_(w.view(p.shape))


def _flat(tensors):
    return torch.cat([x.detach().reshape(-1) for x in tensors])


def _views(flat, parameters):
    parts = flat.split([p.numel() for p in parameters])
    return [x.view(p.shape) for x, p in zip(parts, parameters, strict=True)]


def _written_down(rule, names, numbers):
    """Run the step of ``rule`` on symbols, with what its state holds: tensors ``names``, and ``numbers``.

    Returns:
      The entries of the trace without the values of its constants, the places of the new weights
      and tensors, the constants by place, and the numbers in the state after the step.
    """
    trace = Trace()
    w, gradient, *tensors = (trace.input(name) for name in ("w", "gradient", *names))
    try:
        w, after = rule.step(w, gradient, dict(zip(names, tensors, strict=True)) | numbers)
        outputs = w.place, *(after[name].place for name in names)
        numbers = {name: value for name, value in after.items() if name not in names}
        if changed := [name for name, value in numbers.items() if isinstance(value, Symbol)]:
            raise TypeError(f"the state's {changed[0]!r} becomes a tensor")
    except Exception as error:
        raise ValueError(
            f"compiled=True cannot follow {type(rule).__name__}.step ({type(error).__name__}: {error}): "
            "it takes operators on the weights, the gradient and the state; else use compiled=False"
        ) from error
    entries, constants = trace.entries, [0.0] * len(trace.entries)
    for i, entry in enumerate(entries):
        if entry[0] == "constant":
            entries[i], constants[i] = CONSTANT, entry[1]
        elif entry[0] in ("pow", "truediv") and entries[entry[2]] is CONSTANT:
            entries[i] = _cheaper(*entry, constants)
    return tuple(entries), outputs, constants, numbers


def _cheaper(operation, a, b, constants):
    """Return the entry that computes the same as a power or a quotient with a constant, but faster."""
    if operation == "pow" and constants[b] in ROOT_AND_SQUARE:
        return ("root" if constants[b] == 0.5 else "square", a)
    if operation == "truediv" and constants[b] != 0:
        constants[b] = 1 / constants[b]
        return ("mul", a, b)
    return (operation, a, b)


_OPERATIONS = {
    **{name: getattr(operator, name) for name in ("add", "sub", "mul", "truediv", "pow", "neg", "abs")},
    "root": torch.sqrt,
    "square": torch.square,
}


def _computed_in(dtype):
    return torch.promote_types(dtype, torch.float32)


@functools.cache
def _loop(entries, outputs, names, dtype, device):
    """Compile the entries into a function of the constants, the weights, the gradient and the state."""
    graph = torch.fx.Graph()
    constants = graph.placeholder("constants")
    stored = [graph.placeholder(f"x{i}") for i in range(2 + len(names))]
    inputs = iter([graph.call_method("to", (x, _computed_in(dtype))) for x in stored])
    values = []
    for i, (operation, *operands) in enumerate(entries):
        if operation == "input":
            value = next(inputs)
        elif operation == "constant":
            value = graph.call_function(operator.getitem, (constants, i))
        else:
            value = graph.call_function(_OPERATIONS[operation], tuple(values[j] for j in operands))
        values.append(value)
    for x, place in zip([stored[0], *stored[2:]], outputs, strict=True):
        graph.call_method("copy_", (x, values[place]))
    graph.output(())
    # So many that the compiler takes the wide instructions, and threads where there are more than one.
    ones = [torch.ones(2**20, dtype=dtype, device=device) for _ in stored]
    module = torch.fx.GraphModule({}, graph)
    return _compiled(module, torch.ones(len(entries), dtype=_computed_in(dtype), device=device), *ones)


def _compiled(module, *examples):
    """Compile now, so that what can go wrong has gone wrong before a weight changes."""
    try:
        loop = torch.compile(module.forward, dynamic=True, fullgraph=True)
        loop(*examples)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise RuntimeError(
            f"compiled=True needs torch.compile, which did not work: {reason}. On a CPU it needs a C++ "
            "compiler (g++, clang++ or cl): install one, or use compiled=False"
        ) from None
    return loop
