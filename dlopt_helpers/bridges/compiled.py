"""The steps of an optimiser as loops that ``torch.compile`` builds from the rule's formula.

The rule itself runs once a step, on symbols: what it computes from plain numbers alone, such as the
bias correction of Adam, it computes there and once. What is left, the operations on weights, becomes
loops that read and write each array once. Their numbers are an input, so another rate or another ``t``
builds nothing anew; their lengths are one too, so they serve tensors of every shape.
"""

import functools
import operator

import torch

from dlopt_helpers._trace import Symbol, Trace

AT_ONCE = 8  # parameters in one call: more of them save calls, and cost time to compile
# Powers with an instruction of their own; other exponents stay numbers that may change.
ROOT_AND_SQUARE = (0.5, 2.0)
CONSTANT = ("constant",)


def step(groups, layouts):
    """Make one step of all ``groups``; whatever may raise does so before a weight changes.

    The caller switches the recording of gradients off.

    Args:
      groups: lists of a rule, a parameter that has a gradient, and its state; one rule in each list.
      layouts: a dict that is empty at first and belongs to the same groups in the next steps.

    Returns:
      The state after the step by parameter, a dict. Its tensors change in place in later steps.

    Raises:
      ValueError: if a step uses more than operators, or tensors of other shapes than the weights'.
      RuntimeError: if ``torch.compile`` does not work on this machine.
    """
    for i, group in enumerate(groups):
        if i not in layouts or not layouts[i].fits(group):
            layouts[i] = _Layout(group)
    due = [(layouts[i], group[0][0]) for i, group in enumerate(groups) if group]
    ready = [(layout, [batch.prepare(rule) for batch in layout.batches]) for layout, rule in due]
    return {p: state for layout, prepared in ready for p, state in layout.run(prepared)}


class _Layout:
    """The tensors of a group as vectors; it holds as long as nobody puts others in their place."""

    def __init__(self, group):
        alike = {}
        for rule, p, state in group:
            tensors = {name: _own(rule, p, state, name) for name in state if torch.is_tensor(state[name])}
            numbers = {name: x for name, x in state.items() if name not in tensors}
            key = p.dtype, p.device, tuple(tensors), tuple(numbers.items())
            alike.setdefault(key, []).append((p, {**tensors, **numbers}))
        self.batches = [_Batch(*key, rows) for key, rows in alike.items()]
        self.seen = {}

    def fits(self, group):
        """Whether these are the parameters and the states that the last step left."""
        return len(group) == len(self.seen) and all(self._seen_before(p, state) for _, p, state in group)

    def _seen_before(self, p, state):
        place, values = self.seen.get(p, (None, ()))
        return p.data_ptr() == place and all(map(operator.is_, state.values(), values))

    def run(self, prepared):
        """Change weights and states; yield each parameter and its state."""
        for batch, ready in zip(self.batches, prepared, strict=True):
            for p, state in batch.run(*ready):
                self.seen[p] = p.data_ptr(), tuple(state.values())
                yield p, state


def _own(rule, p, state, name):
    """Return a tensor of the state that lies in memory like a vector, and nowhere else."""
    x = state[name]
    if x.shape != p.shape:
        raise ValueError(
            f"{type(rule).__name__} keeps {name!r} of shape {tuple(x.shape)} for weights of shape "
            f"{tuple(p.shape)}: compiled=True needs equal shapes, so use compiled=False"
        )
    return x.detach().clone(memory_format=torch.contiguous_format)


class _Batch:
    """Parameters of one dtype and device whose states hold the same numbers."""

    def __init__(self, dtype, device, names, numbers, rows):
        self.kind, self.names, self.numbers = (dtype, device), names, dict(numbers)
        # For lengths 0 and 1 the compiler would build loops of their own.
        self.single = [row for row in rows if row[0].numel() < 2]
        self.rows = [row for row in rows if row[0].numel() >= 2]
        self.vectors = [
            (p.detach().reshape(-1), [state[name].view(-1) for name in names]) for p, state in self.rows
        ]

    def prepare(self, rule):
        """Return all that may raise: the loops, their constants, the numbers after the step, single steps."""
        (dtype, device), count = self.kind, len(self.rows)
        entries, outputs, constants, numbers = _written_down(rule, self.names, self.numbers)
        constants = torch.tensor(constants, dtype=_computed_in(dtype), device=device)
        loops = [
            _loop(entries, outputs, self.names, dtype, device, min(AT_ONCE, count - i))
            for i in range(0, count, AT_ONCE)
        ]
        return loops, constants, numbers, [rule.step(p, p.grad, state) for p, state in self.single]

    def run(self, loops, constants, numbers, single):
        """Change weights and states; return each parameter and its state."""
        self.numbers = numbers
        for i, loop in enumerate(loops):
            some = slice(AT_ONCE * i, AT_ONCE * (i + 1))
            tensors = []
            for (p, state), (w, vectors) in zip(self.rows[some], self.vectors[some], strict=True):
                if not p.is_contiguous():
                    w.copy_(p.reshape(-1))
                tensors += [w, p.grad.reshape(-1), *vectors]
                state.update(numbers)
            loop(constants, *tensors)
        for (p, _), (w, _) in zip(self.rows, self.vectors, strict=True):
            if not p.is_contiguous():
                p.copy_(w.view(p.shape))
        for (p, state), (w, after) in zip(self.single, single, strict=True):
            p.copy_(w)
            state.update(after)
        return self.rows + self.single


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
def _loop(entries, outputs, names, dtype, device, count):
    """Compile the entries into a function of the constants and of the tensors of ``count`` parameters.

    These are, for each parameter, the weights, the gradient and the tensors of the state.
    """
    graph, exact = torch.fx.Graph(), _computed_in(dtype)
    constants = graph.placeholder("constants")
    stored = [[graph.placeholder(f"x{i}_{j}") for j in range(2 + len(names))] for i in range(count)]
    numbers = {
        i: graph.call_function(operator.getitem, (constants, i))
        for i, entry in enumerate(entries)
        if entry is CONSTANT
    }
    for tensors in stored:
        inputs, values = iter([graph.call_method("to", (x, exact)) for x in tensors]), []
        for i, (operation, *operands) in enumerate(entries):
            if operation == "input":
                values.append(next(inputs))
            elif operation == "constant":
                values.append(numbers[i])
            else:
                values.append(graph.call_function(_OPERATIONS[operation], tuple(values[j] for j in operands)))
        for x, place in zip([tensors[0], *tensors[2:]], outputs, strict=True):
            graph.call_method("copy_", (x, values[place]))
    graph.output(())
    # Two parameters of one length would make the compiler expect that of all to come.
    ones = [torch.ones(2**16 + i, dtype=dtype, device=device) for i in range(count) for _ in stored[0]]
    module = torch.fx.GraphModule({}, graph)
    return _compiled(module, torch.ones(len(entries), dtype=exact, device=device), *ones)


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
