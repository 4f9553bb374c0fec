"""The checks of chapter 1's exercises, and the mistakes they know."""

import numpy as np

from dlopt_helpers.footprint import block_cost, moved_bytes, roofline, training_bytes
from dlopt_helpers.page.exercises import Check

# --- Exercise 1: a language model ------------------------------------------------------------------


def _a_model(rng):
    return {
        "width": 64 * int(rng.integers(6, 20)),
        "blocks": int(rng.integers(4, 25)),
        "tokens": 64 * int(rng.integers(9, 30)),
    }


def _matrices(width, blocks, tokens):
    return 12 * width**2 * blocks, 12 * width**2 * blocks + 2 * tokens * width * blocks


check_blocks = Check(
    solution=_matrices,
    inputs=_a_model,
    mistakes={
        "Those are the matrices of attention alone: the feed-forward layer has two more, to 4 d and back.": (
            lambda width, blocks, tokens: (
                4 * width**2 * blocks,
                4 * width**2 * blocks + 2 * tokens * width * blocks,
            )
        ),
        "That is one block: multiply by their number.": (
            lambda width, blocks, tokens: (12 * width**2, 12 * width**2 + 2 * tokens * width)
        ),
        "The scores are missing: each token meets each, 2 T d MACs a token and block.": (
            lambda width, blocks, tokens: (12 * width**2 * blocks, 12 * width**2 * blocks)
        ),
        "Those are the MACs of the whole text: for one token divide by T.": (
            lambda width, blocks, tokens: (
                12 * width**2 * blocks,
                tokens * (12 * width**2 + 2 * tokens * width) * blocks,
            )
        ),
        "Those are operations, two for each multiply-accumulate: halve the second number.": (
            lambda width, blocks, tokens: (
                12 * width**2 * blocks,
                2 * (12 * width**2 + 2 * tokens * width) * blocks,
            )
        ),
        "Attention multiplies twice: scores, and then weighted sums.": (
            lambda width, blocks, tokens: (
                12 * width**2 * blocks,
                (12 * width**2 + tokens * width) * blocks,
            )
        ),
        "Biases and norms are in there: leave them out, as the exercise says.": (
            lambda width, blocks, tokens: (
                block_cost(width, tokens).parameters * blocks,
                block_cost(width, tokens).macs // tokens * blocks,
            )
        ),
        "The two numbers are in the other order: parameters first.": (
            lambda width, blocks, tokens: _matrices(width, blocks, tokens)[::-1]
        ),
    },
    praise="With a short text the two are nearly equal: a MAC a parameter and token.",
)

# --- Exercise 2: the largest batch ------------------------------------------------------------------


def _a_budget(rng):
    parameters = int(rng.integers(10_000, 50_000))
    kept = int(rng.integers(200, 500))
    rest = int(rng.integers(50, 100)) * 4 * kept + int(rng.integers(kept, 2 * kept))
    return {"parameters": parameters, "kept": kept, "budget": 16 * parameters + rest}


def _largest(parameters, kept, budget):
    return (budget - training_bytes(parameters).total) // (4 * kept)


def _with(a_parameter, a_number=4):
    return lambda parameters, kept, budget: (budget - a_parameter * parameters) // (a_number * kept)


check_batch = Check(
    solution=_largest,
    inputs=_a_budget,
    mistakes={
        "That counts the weights alone: gradients and Adam's two numbers stay there, too.": _with(4),
        "Adam's state is missing: two numbers for each parameter.": _with(8),
        "12 bytes a parameter: one number is missing, the gradient or one of Adam's two.": _with(12),
        "The weights are missing: they stay there while you train.": _with(0),
        "A number has 4 bytes, also an activation.": _with(16, 1),
        "A number has 4 bytes, also a parameter.": _with(4, 1),
        "Those are activations in 16 bits: here all is float32.": _with(16, 2),
        "The next whole number no longer fits: round down.": (
            lambda parameters, kept, budget: -((16 * parameters - budget) // (4 * kept))
        ),
        "Half an example is none: round down.": (
            lambda parameters, kept, budget: (budget - 16 * parameters) / (4 * kept)
        ),
    },
    praise="What is left over the 16 bytes a parameter is the room for activations.",
)

# --- Exercise 3: under the roof ---------------------------------------------------------------------


def _a_layer(rng):
    """A layer at a small and at a large batch, and a machine on which each of the two times decides once."""
    inputs, outputs = (int(n) for n in rng.choice(range(200, 1000), size=2, replace=False))
    batches = np.array([int(rng.integers(2, 5)), int(rng.integers(300, 500))])
    bandwidth = float(rng.uniform(1e10, 2e10))
    intensity = inputs * outputs * batches / (4 * (inputs * outputs + batches * (inputs + outputs)))
    peak = bandwidth * float(np.sqrt(intensity.prod()))
    return {"inputs": inputs, "outputs": outputs, "batch": batches, "peak": peak, "bandwidth": bandwidth}


def _mistaken(
    combine=np.maximum, macs=lambda n, m, b: n * m * b, moved=lambda n, m, b: 4 * (n * m + b * (n + m))
):
    def time(inputs, outputs, batch, peak, bandwidth):
        sizes = inputs, outputs, batch
        return combine(macs(*sizes) / peak, moved(*sizes) / bandwidth)

    return time


def _at_least(inputs, outputs, batch, peak, bandwidth):
    times = [
        roofline(inputs * outputs * int(b), moved_bytes(inputs, outputs, int(b)), peak, bandwidth)
        for b in batch
    ]
    return np.array(times)


check_roof = Check(
    solution=_at_least,
    inputs=_a_layer,
    mistakes={
        "The machine computes and moves at the same time: take the larger time, not the sum.": _mistaken(
            lambda a, b: a + b
        ),
        "Both have to be done: take the larger time, not the smaller.": _mistaken(np.minimum),
        "That is the time to compute: moving may take longer.": _mistaken(lambda a, b: a),
        "That is the time to move: at the large batch, computing takes longer.": _mistaken(lambda a, b: b),
        "The weights are moved once for the whole batch.": _mistaken(
            moved=lambda n, m, b: 4 * b * (n * m + n + m)
        ),
        "A float32 has 4 bytes.": _mistaken(moved=lambda n, m, b: n * m + b * (n + m)),
        "Inputs and outputs move, too: n + m numbers for each example.": _mistaken(
            moved=lambda n, m, b: 4 * n * m + 0 * b
        ),
        "Inputs and outputs move for each example of the batch.": _mistaken(
            moved=lambda n, m, b: 4 * (n * m + n + m) + 0 * b
        ),
        "Those are operations, two for each multiply-accumulate.": _mistaken(
            macs=lambda n, m, b: 2 * n * m * b
        ),
    },
    praise="It is a bound: no implementation is faster on that machine, and many are slower.",
)
