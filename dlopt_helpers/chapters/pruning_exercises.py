"""The checks of chapter 3.3's exercises, and the mistakes they know."""

import functools

import numpy as np

from dlopt_helpers import pruning
from dlopt_helpers.lab.data import mnist1d
from dlopt_helpers.page.exercises import Check, Goal
from dlopt_helpers.pruning import magnitude_mask, threshold_for

# --- Exercise 1: the mask -------------------------------------------------------------------------


def _a_matrix(rng):
    """Rows of unequal scale, small beside the sparsity, which is a whole number of weights, not near half."""
    w = rng.normal(size=(4, 5)) * rng.permutation([0.1, 0.2, 0.4, 0.6])[:, None]
    return {"w": w, "sparsity": rng.choice([4, 5, 6, 7, 13, 14, 15, 16]) / w.size}


def _prune(w, sparsity, more=0):
    """Remove the smallest, or with ``more`` other than 0 so many more of them than asked for."""
    return np.where(magnitude_mask(w, threshold_for(sparsity + more / w.size, w)), w, 0)


check_mask = Check(
    solution=_prune,
    inputs=_a_matrix,
    mistakes={
        "All negative weights went: compare their magnitudes with the threshold.": (
            lambda w, sparsity: w * (w >= threshold_for(sparsity, w))
        ),
        "The weights are ranked with their signs, and the most negative went: rank the magnitudes.": (
            lambda w, sparsity: w * (w >= np.sort(w, axis=None)[round(sparsity * w.size)])
        ),
        "The largest weights went: the smallest are to go.": (
            lambda w, sparsity: w - _prune(w, 1 - sparsity)
        ),
        "The mask is the wrong way round: it keeps what should go.": (
            lambda w, sparsity: w - _prune(w, sparsity)
        ),
        "The sparsity is the share that goes, not the share that stays.": (
            lambda w, sparsity: _prune(w, 1 - sparsity)
        ),
        "The sparsity is a share, not a threshold: find the magnitude below which that share lies.": (
            lambda w, sparsity: w * magnitude_mask(w, sparsity)
        ),
        "Each row has its own threshold: one is asked for, for the whole matrix.": (
            lambda w, sparsity: np.stack([_prune(row, sparsity) for row in w])
        ),
        "That is the mask: multiply the weights by it.": (
            lambda w, sparsity: magnitude_mask(w, threshold_for(sparsity, w))
        ),
        "One weight too few goes: with k to go, the threshold is the magnitude after the first k.": (
            lambda w, sparsity: _prune(w, sparsity, more=-1)
        ),
        "One weight too many goes: a weight whose magnitude is the threshold stays.": (
            lambda w, sparsity: _prune(w, sparsity, more=1)
        ),
    },
    praise="A mask and a product: that is all there is to pruning weights.",
)

# --- Exercise 2: a threshold for each layer -------------------------------------------------------


@functools.cache
def _rescaled():
    """Return weights and biases of a trained network: its first layer small, its second one large."""
    from dlopt_helpers.chapters.pruning import rescaled  # imports torch, as the next
    from dlopt_helpers.chapters.pruning_runs import dense

    arrays = [p.numpy() for p in rescaled(dense("mlp512", seed=0)).state_dict().values()]
    return arrays[::2], arrays[1::2]


def _accuracy(weights):
    """Return the share of MNIST-1D's test set that the network gets right with other weights."""
    x, y = mnist1d()[2:]
    for i, (w, b) in enumerate(zip(weights, _rescaled()[1], strict=True)):
        x = (np.maximum(x, 0) if i else x) @ w.T + b
    return np.mean(x.argmax(axis=1) == y)


def _cut(weights, thresholds):
    return [w * magnitude_mask(w, t) for w, t in zip(weights, thresholds, strict=True)]


def _one_for_all(weights, sparsity):
    return np.full(len(weights), threshold_for(sparsity, *weights))


def _one_each(weights, sparsity):
    return np.array([threshold_for(sparsity, w) for w in weights])


def _unusable(thresholds, weights):
    """Return why ``thresholds`` cannot be applied, or ""."""
    try:
        thresholds = np.asarray(thresholds)
    except (TypeError, ValueError):  # of lists of unequal lengths
        thresholds = np.empty(0)
    if thresholds.shape != (len(weights),):
        return f"Return a list of {len(weights)} thresholds, one number for each layer."
    if thresholds.dtype.kind not in "iuf":
        return "A threshold is not a number: return one for each layer."
    if np.isnan(thresholds).any():
        return "A threshold is NaN: nothing can be compared with it."
    if (thresholds < 0).any():
        return "A threshold is negative: rank the magnitudes, which are not."
    return ""


def _beats_one_for_all(thresholds, weights, sparsity):
    if flaw := _unusable(thresholds, weights):
        return flaw
    cut = _cut(weights, thresholds)
    pruned = pruning.sparsity(*cut)
    if round(pruned, 3) < sparsity:  # each layer rounds to whole weights
        asked = f"{100 * sparsity:.0f} % are asked for."
        return f"These thresholds prune {100 * pruned:.1f} % of the weights: {asked}"
    own, other = _accuracy(cut), _accuracy(_cut(weights, _one_for_all(weights, sparsity)))
    if own < other + 0.2:
        rest = f"with one threshold for all layers {100 * other:.1f} %: 20 points more are asked for."
        return f"The network gets {100 * own:.1f} % of the test set right, {rest}"
    return ""


check_thresholds = Goal(
    solution=_one_each,
    inputs=lambda rng: {"weights": _rescaled()[0], "sparsity": 0.8},
    reached=_beats_one_for_all,
    mistakes={
        "That is one threshold for all layers: it removes the whole first layer. Choose one for each.": (
            _one_for_all
        ),
        "The thresholds are in another order than the layers.": (
            lambda weights, sparsity: _one_each(weights[::-1], sparsity)
        ),
        "The sparsity is a share, not a threshold: find the magnitude below which that share lies.": (
            lambda weights, sparsity: np.full(len(weights), sparsity)
        ),
        "The sparsity is the share that goes, not the share that stays.": (
            lambda weights, sparsity: _one_each(weights, 1 - sparsity)
        ),
    },
    praise="A threshold changes when a layer is rescaled, a share does not.",
)

# --- Exercise 3: removal --------------------------------------------------------------------------


def _two_layers(rng):
    """Sizes at which an index of a unit is one of an input and of an output, too."""
    inputs, hidden, outputs = 5, 4, 6
    arrays = {"w1": rng.normal(size=(hidden, inputs)), "b1": rng.normal(size=hidden)}
    keep = sorted(rng.choice(hidden, size=2, replace=False).tolist())
    return arrays | {"w2": rng.normal(size=(outputs, hidden)), "keep": keep}


def _silenced(w1, b1, w2, keep):
    mask = np.isin(np.arange(len(b1)), keep)
    return w1 * mask[:, None], b1 * mask, w2


check_removal = Check(
    solution=lambda w1, b1, w2, keep: (w1[keep], b1[keep], w2[:, keep]),
    inputs=_two_layers,
    mistakes={
        "Rows of w2 are outputs: the units are its columns.": (
            lambda w1, b1, w2, keep: (w1[keep], b1[keep], w2[keep])
        ),
        "Columns of w1 are inputs: the units are its rows.": (
            lambda w1, b1, w2, keep: (w1[:, keep], b1[keep], w2[:, keep])
        ),
        "That fits Keras's layout. In PyTorch's the units are rows of w1 and columns of w2.": (
            lambda w1, b1, w2, keep: (w1[:, keep], b1[keep], w2[keep])
        ),
        "b1 is still whole: a unit goes with its bias.": lambda w1, b1, w2, keep: (
            w1[keep],
            b1,
            w2[:, keep],
        ),
        "w2 is still whole: it has a column for each unit that is gone.": (
            lambda w1, b1, w2, keep: (w1[keep], b1[keep], w2)
        ),
        "The units in keep are gone: they are the ones to stay.": (
            lambda w1, b1, w2, keep: (np.delete(w1, keep, 0), np.delete(b1, keep), np.delete(w2, keep, 1))
        ),
        "The units are silent but still there: leave their rows, biases and columns out.": _silenced,
        "Zeros take as much room as other numbers: leave rows, biases and columns out.": (
            lambda w1, b1, w2, keep: (*_silenced(w1, b1, w2, keep)[:2], _silenced(w2.T, b1, w2, keep)[0].T)
        ),
    },
    praise="The small network's outputs are those of the masked one.",
)
