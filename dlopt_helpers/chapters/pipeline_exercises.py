"""The checks of chapter 4.2's exercises, and the mistakes they know."""

from dlopt_helpers.page.exercises import Check


def _without_ties(inputs, *functions):
    """Return a function for inputs for which no two of the functions give one number."""

    def draw(rng):
        while True:
            drawn = inputs(rng)
            if len({function(**drawn) for function in functions}) == len(functions):
                return drawn

    return draw


# --- Exercise 1: the bytes of a file --------------------------------------------------------------


def _a_network(rng):
    """Layers of 4, 8 and 32 bits, so that each mistake shows in each network."""
    sizes = 2 * rng.choice(range(5, 65), size=6, replace=False)
    bits = rng.permutation([4, 8, 32, 4, 8])
    layers = [tuple(map(int, layer)) for layer in zip(sizes[:-1], sizes[1:], bits, strict=True)]
    return {"layers": layers, "rest": int(rng.integers(200, 500))}


def _weights(inputs, outputs, bits):
    return inputs * outputs * bits / 8


def _biases(inputs, outputs, bits):
    return 4 * outputs


def _scales(inputs, outputs, bits):
    return 4 * outputs if bits < 32 else 0


def _file(weights=_weights, biases=_biases, scales=_scales, times=lambda layers: 1):
    """Return a function for the bytes of a file, any part of which may be counted wrongly."""

    def file_bytes(layers, rest):
        numbers = sum(part(*layer) for layer in layers for part in (weights, biases, scales))
        return numbers + times(layers) * rest

    return file_bytes


_MISCOUNTED = {
    "The scales are missing: a float for each output of a layer of 4 or 8 bits.": (
        _file(scales=lambda inputs, outputs, bits: 0)
    ),
    "That is one scale for each layer: each output has its own.": (
        _file(scales=lambda inputs, outputs, bits: 4 if bits < 32 else 0)
    ),
    "Layers of 32 bits hold floats: they need no scales.": (
        _file(scales=lambda inputs, outputs, bits: 4 * outputs)
    ),
    "A scale belongs to an output, not to an input.": (
        _file(scales=lambda inputs, outputs, bits: 4 * inputs if bits < 32 else 0)
    ),
    "A scale is a float: it takes 4 bytes.": (
        _file(scales=lambda inputs, outputs, bits: outputs if bits < 32 else 0)
    ),
    "The biases are missing: a float for each output of each layer.": (
        _file(biases=lambda inputs, outputs, bits: 0)
    ),
    "The biases stay floats, 4 bytes each: only weights lose bits.": (
        _file(biases=lambda inputs, outputs, bits: outputs * bits / 8)
    ),
    "A bias belongs to an output, not to an input.": (_file(biases=lambda inputs, outputs, bits: 4 * inputs)),
    "A bias and a scale are floats: they take 4 bytes each.": (
        _file(
            biases=lambda inputs, outputs, bits: outputs,
            scales=lambda inputs, outputs, bits: outputs if bits < 32 else 0,
        )
    ),
    "The weights are counted in bits: a byte has eight.": (
        _file(weights=lambda inputs, outputs, bits: inputs * outputs * bits)
    ),
    "Two weights of 4 bits share a byte.": (
        _file(weights=lambda inputs, outputs, bits: inputs * outputs * max(1, bits // 8))
    ),
    "The bytes that hold no numbers are missing: add `rest`.": _file(times=lambda layers: 0),
    "`rest` is that of the whole file: add it once, not for each layer.": (_file(times=len)),
}

check_file_bytes = Check(
    solution=_file(),
    inputs=_without_ties(_a_network, _file(), *_MISCOUNTED.values()),
    mistakes=_MISCOUNTED,
    praise="The fewer the bits, the more of the file is biases, scales and the rest.",
)

# --- Exercise 2: what a stage must achieve --------------------------------------------------------


def _a_wish(rng):
    """A share that leaves room, and a wish between half of the limit and all of it."""
    share = float(rng.uniform(0.6, 0.95))
    return {"share": share, "wanted": 1 + float(rng.uniform(0.5, 0.95)) * (1 / (1 - share) - 1)}


def _needed(share, wanted):
    return share / (1 / wanted - (1 - share)), 1 / (1 - share)


def _wished(factor=None, limit=None):
    """Return a function that gets one of the two numbers wrong."""

    def needed(share, wanted):
        right = _needed(share, wanted)
        return factor(share, wanted) if factor else right[0], limit(share) if limit else right[1]

    return needed


check_needed = Check(
    solution=_needed,
    inputs=_a_wish,
    mistakes={
        "Then the file shrinks less than `wanted` times: the rest keeps its bytes, and the share must make "
        "up for it.": _wished(factor=lambda share, wanted: wanted),
        "That divides by the share: add up bytes instead. Of each byte of the file 1 - share stays, and "
        "share / factor.": _wished(factor=lambda share, wanted: wanted / share),
        "That multiplies by the share: add up bytes instead. Of each byte of the file 1 - share stays, and "
        "share / factor.": _wished(factor=lambda share, wanted: wanted * share),
        "That is a mean of factors: add up bytes instead. Of each byte of the file 1 - share stays, and "
        "share / factor.": _wished(factor=lambda share, wanted: 1 + (wanted - 1) / share),
        "That is how much the file shrinks when the share shrinks `wanted` times: the question is the other "
        "way round.": _wished(factor=lambda share, wanted: 1 / (1 - share + share / wanted)),
        "That is the part of the share that may stay: the factor is its inverse.": (
            _wished(factor=lambda share, wanted: 1 / _needed(share, wanted)[0])
        ),
        "That is by how much the whole file would have to lose its share: divide the share by what may be "
        "left of it.": _wished(factor=lambda share, wanted: 1 / (1 / wanted - (1 - share))),
        "`share` is the part that shrinks; 1 - share is the part that stays.": (
            lambda share, wanted: _needed(1 - share, wanted)
        ),
        "The limit: when nothing is left of the share, 1 - share is left of the file, not share.": (
            _wished(limit=lambda share: 1 / share)
        ),
        "The limit: 1 - share is what is left of the file; how many times smaller is that?": (
            _wished(limit=lambda share: 1 - share)
        ),
        "The two numbers are in the other order: the factor first, then the limit.": (
            lambda share, wanted: _needed(share, wanted)[::-1]
        ),
    },
    praise="Near the limit the factor grows without end: then look at the rest of the file.",
)

# --- Exercise 3: what has to be computed ----------------------------------------------------------

STRENGTHS = {
    "distil": [32, 48, 100],
    "prune": [0.5, 0.8, 0.9],
    "factorise": [0.2, 0.4, 0.6],
    "quantize": [4, 6, 8],
    "share": [2, 3, 5],
}
STAGES = [f"{name}({strength})" for name, strengths in STRENGTHS.items() for strength in strengths]


def _name(stage):
    return stage.partition("(")[0]


def _beginning(run, wanted, same=lambda a, b: a == b):
    """Return with how many stages of ``wanted`` the run begins."""
    both = [same(a, b) for a, b in zip(run, wanted, strict=False)]
    return (*both, False).index(False)


def _to_compute(finished, wanted):
    return len(wanted) - max(_beginning(run, wanted) for run in finished)


def _left(found):
    """Return a function that takes ``found(finished, wanted)`` for the number of stages that are there."""
    return lambda finished, wanted: len(wanted) - found(finished, wanted)


_CONFUSED = {
    "The same stage after another beginning is another network: only a common beginning counts.": (
        _left(lambda finished, wanted: len({stage for run in finished for stage in run} & set(wanted)))
    ),
    "Stop at the first stage that differs: what comes after it started from another network.": (
        _left(
            lambda finished, wanted: max(
                sum(a == b for a, b in zip(run, wanted, strict=False)) for run in finished
            )
        )
    ),
    "A stage is its name and its settings: with another setting it makes another network.": (
        _left(
            lambda finished, wanted: max(
                _beginning(run, wanted, lambda a, b: _name(a) == _name(b)) for run in finished
            )
        )
    ),
    "That looks at the last run alone: any of the finished ones may have the longest common beginning.": (
        _left(lambda finished, wanted: _beginning(finished[-1], wanted))
    ),
    "That looks at the first run alone: any of the finished ones may have the longest common beginning.": (
        _left(lambda finished, wanted: _beginning(finished[0], wanted))
    ),
    "A run need not be the beginning as a whole: its first stages can be used, whatever follows them.": (
        _left(
            lambda finished, wanted: max(
                (len(run) for run in finished if run == wanted[: len(run)]), default=0
            )
        )
    ),
    "That is how many stages are there already: how many are left?": (
        lambda finished, wanted: max(_beginning(run, wanted) for run in finished)
    ),
}


def _some_runs(rng):
    """A wanted run, and finished ones with a trap for each wrong way to count."""
    stages = list(map(str, rng.permutation(STAGES)))
    wanted, other = stages[: rng.integers(7, 10)], stages[-1]
    shared, setting = rng.integers(3, 5), _alike(wanted[2])
    late = [other, *wanted[1 : rng.integers(5, 10)]]  # as wanted, but for its first stage
    resembling = [*wanted[:2], setting, *wanted[3 : rng.integers(4, 8)]]
    begun = [wanted[:1], [*wanted[:shared], other]]
    outer, inner = rng.permutation(2), rng.permutation(2)
    first, last = ([late, resembling][i] for i in outer)
    return {"finished": [first, *(begun[i] for i in inner), last], "wanted": wanted}


def _alike(stage):
    """Return a stage of the same name with another setting."""
    return next(other for other in STAGES if _name(other) == _name(stage) and other != stage)


check_to_compute = Check(
    solution=_to_compute,
    inputs=_without_ties(_some_runs, _to_compute, *_CONFUSED.values()),
    mistakes=_CONFUSED,
    praise="A search in which many pipelines begin alike pays for the beginning once.",
)
