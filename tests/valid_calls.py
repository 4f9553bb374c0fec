"""A valid call of every public function: the kind of each argument. What is not in it has a reason."""

import functools
import math
import tempfile
from types import SimpleNamespace

import joblib
import keras
import numpy as np
import pandas as pd
import torch
from hypothesis import strategies as st
from kinds import (
    ODD,
    Kind,
    array,
    choice,
    flag,
    function,
    function_of,
    made,
    number,
    optional,
    other,
    rate,
    seed,
    several,
    values,
    whole,
)
from torch import nn

from dlopt_helpers import pipeline, recipes
from dlopt_helpers.adam import Adam
from dlopt_helpers.bridges.torch import RuleOptimizer as TorchOptimizer
from dlopt_helpers.code_example import Alternating
from dlopt_helpers.lab import litert, onnxrt, surfaces
from dlopt_helpers.lab.data import Data
from dlopt_helpers.page.explorer import Choice, Explorer, Slider
from dlopt_helpers.page.recurrence import Recurrence
from dlopt_helpers.quantization import affine, symmetric
from dlopt_helpers.sgd import SGD
from dlopt_helpers.structure import Cost

# --- kinds of this book ------------------------------------------------------------------------------

count = whole(1)
positive = number(0.01)._replace(bad=number(0, without=[0]).bad)
rates = number(0, arrays=True)
memory = Kind(number(0, 0.9, arrays=True).good, number(0, 1, without=[1], arrays=True).bad)  # in [0, 1)
inner = Kind(number(0.1, 0.9, arrays=True).good, number(0, 1, without=[0, 1], arrays=True).bad)  # in (0, 1)
part = number(0, 1, without=[0])  # in (0, 1]
share = number(0, 1)
shares = number(0, 1, arrays=True)
anything = Kind(values(None, 3, "a", [0.5]).good, st.nothing())

rule = values(SGD(0.1), Adam(0.1), bad=[SGD, lambda w: w])
subject_rule = values(SGD(0.1), Adam(0.1), bad=[SGD, Alternating(SGD(), SGD())])
convention = choice("torch", "keras")
FIELDS = {
    "lr": rates,
    "eps": rates,
    "weight_decay": rates,
    "momentum_decay": rates,
    "momentum": Kind(inner.good, memory.bad),
    "beta1": memory,
    "beta2": memory,
    "nesterov": flag,
    "amsgrad": flag,
}
SCHEDULE_FREE = {"lr": rates, "weight_decay": rates}


def fields(*names):
    return {name: FIELDS[name] for name in names}


def torch_net(outputs=2):
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, outputs))


def keras_net(outputs=2):
    sizes = [keras.layers.Dense(4, "relu", name="hidden"), keras.layers.Dense(outputs, name="logits")]
    return keras.Sequential([keras.Input([3]), *sizes])


A_TORCH, A_KERAS = functools.cache(torch_net), functools.cache(keras_net)


def torch_optimizer():
    return TorchOptimizer(A_TORCH().parameters(), SGD(0.1))


def group(**options):
    return {"params": [nn.Parameter(torch.ones(2))], **options}


an_optimizer = made(torch_optimizer)
NO_MODELS = [lambda: nn.Linear, lambda: torch.ones(3), lambda: {"0.weight": torch.ones(2, 3)}]
torch_model = made(A_TORCH, bad=[*NO_MODELS, A_KERAS])
own_torch = Kind(made(torch_net).good, torch_model.bad)  # for those that change it
keras_model = made(A_KERAS, bad=[*NO_MODELS, A_TORCH])
own_keras = Kind(made(keras_net).good, keras_model.bad)
examples = array(5, 3, dtype="float32", shapes=[(0, 3), (5, 7)])
to_batch = Kind(examples.good | examples.good.map(torch.from_numpy), examples.bad)
batch = Kind(examples.good.map(torch.from_numpy), examples.bad)


def named(name, good, *bad):
    """A dict from a layer's name to one of its settings; others name no layer or hold what is wrong."""
    wrong = [{"nowhere": good}, *({name: one} for one in (*bad, None, "a", math.nan, {}, 1j))]
    return made(lambda: {name: good}, bad=[lambda w=w: w for w in wrong], odd=[None, "a", 3, [], [name], 0.5])


KEEP = ([0, 9], [-1], [1, 1], [], [0.5], [True], "01", [None], 1)
MASKS = (np.ones(3), np.full((4, 3), 0.5), np.full((3, 4), 0.5), np.array([[None] * 4] * 3), [])
RANKS = (0, -1, 9, 1.5, True, "1", [1])
weight_rule = made(
    lambda: np.round,
    bad=[lambda: {"nowhere": np.round}, lambda: {"0": 3}, lambda: lambda w: w[:1], lambda: lambda w: None],
    odd=[None, "a", 3, [], 0.5, 1j, ()],
)
torch_rule = Kind(made(lambda: torch.round).good, weight_rule.bad)
keras_rule = Kind(made(lambda: keras.ops.round).good, weight_rule.bad)


@functools.cache
def onnx():
    return onnxrt.export(nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 10)))


@functools.cache
def four_bits():
    model = nn.Sequential(nn.Linear(40, 8))
    nn.init.ones_(model[0].weight)
    return onnxrt.export(model)


@functools.cache
def tflite():
    return litert.convert(A_KERAS())


NO_FILES = [lambda: b"", lambda: b"not a file", lambda: "model.onnx", lambda: bytearray(3)]
onnx_bytes = made(onnx, bad=[*NO_FILES, tflite])
calibration = array(9, 40, dtype="float32", shapes=[(9, 7), (0, 40), (40,), (9, 40)], lists=True)


def rows():
    run = {"rate": 0.1, "seed": 0, "step": [0, 1], "loss": 1.0, "accuracy": 0.5, "diverged": False}
    return pd.DataFrame({**run, "validation": 0.5})


frame = made(rows, bad=[lambda: pd.DataFrame(), lambda: pd.DataFrame({"a": [1]}), lambda: {"rate": [0.1]}])
columns = made(lambda: ["rate"], bad=[lambda: ["nowhere"], lambda: [3], lambda: "rate"])
surface = values(surfaces.quadratic(), surfaces.saddle(), bad=[surfaces.quadratic])
FLAT = ((-1.5, 1.5), (-5.0, 5.0))
window = values(
    FLAT, bad=[(1, 2), ((1, 1), (2, 3)), ((0, 1),), ((0, math.nan), (0, 1)), (("a", "b"), (0, 1))]
)


def data():
    x = np.zeros((20, 3), "float32")
    return Data(x, np.zeros(20, "int64"), x, np.zeros(20, "int64"))


a_data = made(
    data,
    bad=[
        lambda: data()._replace(y_train=np.zeros(3, "int64")),
        lambda: data()._replace(x_test=np.zeros((20, 7), "float32")),
        lambda: data()._replace(y_test=np.zeros(20)),
        lambda: data()._replace(x_train=None),
        lambda: data()._replace(x_train=np.full((20, 3), np.nan, "float32")),
    ],
)


def task():
    x = np.random.RandomState(0).normal(size=(128, 40)).astype("float32")
    return pipeline.Task(x, np.full((128, 10), 0.1, "float32"), (x, np.zeros(128, int)))


def start():
    return pipeline.Made(nn.Sequential(nn.Linear(40, 8), nn.ReLU(), nn.Linear(8, 10)))


@functools.cache
def finished():
    folder = tempfile.mkdtemp()
    return folder, pipeline.run(start(), [], task(), folder, size).key[0]


def size(onnx, reference, x, y):
    return {"bytes": len(onnx)}


optimizer = made(lambda: ..., bad=[lambda: torch.optim.SGD, lambda: "SGD"])  # ... is one of the model
training = {"steps": whole(0), "rate": positive}


def draw(runs, chosen):
    return (chosen if runs is None else runs).mark_line().encode(x="step:Q", y="w:Q")


def runs():
    return pd.DataFrame([{"lr": lr, "step": t, "w": lr**t} for lr in (0.1, 0.5) for t in range(3)])


def compute(lr):
    return pd.DataFrame({"step": [0, 1], "w": [1.0, lr]})


def explorer():
    words = {"title": "Decay", "caption": "Larger is faster."}
    return Explorer(runs(), draw, [Slider("lr", "Rate")], compute=compute, **words)


def walk():
    return Recurrence(lambda: {"w": 1.0}, lambda w, lr: {"w": lr * w}, lambda w: {"x": w}, steps=2)


words = made(lambda: "A sentence.", bad=[lambda: "", lambda: "  "], odd=[None, 3, [], {}, 1j, b"1", math.nan])
setting = made(
    lambda: {"lr": 0.1}, bad=[lambda: {}, lambda: {"a": 0.1}, lambda: {"lr": "a"}, lambda: {"lr": None}]
)
held = made(runs, bad=[lambda: pd.DataFrame(), lambda: runs().replace(0.1, np.nan)])
an_explorer = made(explorer)

# --- the calls ---------------------------------------------------------------------------------------

weights = array(4, 6, shapes=[(4, 0)])
floats = {"low": -1.0, "high": 1.0}
some_axes = Kind(st.sampled_from([None, 0, -1, (0, 1)]), other(2, (0, 5), (0.5,), right=[None, ()]))
no_whole = st.sampled_from([0.5, math.inf, None, "a", 1j, {}, [1], True, math.nan, np.array([])])
no_end = st.sampled_from([*ODD, True, math.inf, np.array([1.0, math.nan])])
quantizer = made(lambda: symmetric(-1.0, 1.0, 4), lambda: affine(-1.0, 1.0, 8))
logits = array(4, 3, shapes=[(4, 2), (3, 3), (4,), (0, 3)])
labels = array(4, low=0, high=2, dtype=int, shapes=[(3,), (4, 1)], beyond=[-1, 3, 0.5])
counts = array(
    5, low=1, high=9, dtype=int, beyond=[-1], bad=[np.zeros(3, int), np.ones((2, 2), int)], lists=True
)
game = array(2, 2, low=0.5, high=2, shapes=[(2, 3), (1,)], lists=True)
sizes = made(
    lambda: (40, 100, 10),
    lambda: [40, 10.0],
    bad=[
        lambda: (40,),
        lambda: (40, 0),
        lambda: (40, 1.5),
        lambda: (40, -1),
        lambda: (40, None),
        lambda: "40",
    ],
)
layer = {"kernel": count, "length": count, "bias": flag}
w_bits = array(3, low=-7, high=7, dtype="int8", shapes=[(4,)])
stage_name = choice(*recipes.UNDOES)
matrix = array(4, 6, shapes=[(6,), (0, 3), (2, 4, 6)])
situation = made(lambda: recipes.Situation("file"), bad=[lambda: recipes.Situation])

CALLS = {
    "adam.Adagrad": fields("lr", "eps", "weight_decay"),
    "adam.RMSprop": fields("lr", "beta2", "eps", "weight_decay"),
    "adam.Adam": fields("lr", "beta1", "beta2", "eps", "amsgrad", "weight_decay"),
    "adam.AdamW": fields("lr", "beta1", "beta2", "eps", "amsgrad", "weight_decay"),
    "adam.NAdam": fields("lr", "beta1", "beta2", "eps", "weight_decay", "momentum_decay"),
    "sgd.SGD": fields("lr", "momentum", "nesterov", "weight_decay"),
    "bridges.conventions.KerasSGD": fields("lr", "momentum", "nesterov", "weight_decay"),
    "bridges.conventions.KerasAdagrad": fields("lr", "eps", "weight_decay"),
    "bridges.conventions.KerasRMSprop": fields("lr", "beta2", "eps", "weight_decay"),
    "bridges.conventions.KerasAdam": fields("lr", "beta1", "beta2", "eps", "amsgrad", "weight_decay"),
    "bridges.conventions.KerasAdamW": fields("lr", "beta1", "beta2", "eps", "amsgrad", "weight_decay"),
    "bridges.conventions.KerasNAdam": fields("lr", "beta1", "beta2", "eps", "weight_decay", "momentum_decay"),
    "trends.Lion": fields("lr", "beta1", "beta2", "weight_decay"),
    "trends.Muon": fields("lr", "momentum", "nesterov", "weight_decay", "eps")
    | {"scale": choice("original", "moonshot"), "steps": whole(0)},
    "trends.ScheduleFreeSGD": fields("lr", "weight_decay") | {"beta": inner},
    "trends.ScheduleFreeAdamW": fields("lr", "beta2", "eps", "weight_decay") | {"beta1": inner},
    "trends.newton_schulz": {
        "x": array(3, 2, shapes=[(3,), (), (0, 2)], finite=False),
        "steps": whole(0),
        "coefficients": values((3.4, -4.7, 2.0), bad=[(1, 2), (1, 2, None), (1, 2, math.nan), "abc"]),
        "eps": rate,
    },
    "trends.newton_schulz_macs": {"rows": count, "columns": count, "steps": whole(0)},
    # --- code_example, distillation ---
    "code_example.forward": {
        "x": array(5, 3, shapes=[(5, 2), (3, 1, 1)], finite=False),
        "w1": array(3, 4, shapes=[(2, 4)], finite=False),
        "b1": array(4, shapes=[(3,)], finite=False),
        "w2": array(4, 1, shapes=[(3, 1)], finite=False),
        "b2": array(1, shapes=[(7,)], finite=False),
    },
    "code_example.binary_cross_entropy": {
        "p": array(3, low=0, beyond=[-0.1, 1.1], shapes=[(3, 1), (4,)]),
        "y": array(3, low=0, beyond=[-0.1, 1.1], shapes=[(3, 1), (4,)]),
    },
    "code_example.Alternating": {"first": rule, "second": rule, "every": count},
    "distillation.soften": {"logits": array(4, 3, shapes=[(4, 0), ()]), "temperature": positive},
    "distillation.log_soften": {"logits": array(4, 3, shapes=[(4, 0), ()]), "temperature": positive},
    "distillation.kl": {"log_p": logits, "log_q": logits},
    "distillation.cross_entropy": {"logits": array(4, 3, shapes=[(3, 3), (4,), (0, 3)]), "labels": labels},
    "distillation.distillation_loss": {
        "student": logits,
        "teacher": logits,
        "labels": labels._replace(bad=labels.bad.filter(lambda x: x is not None)),
        "temperature": positive,
        "alpha": share,
    },
    "distillation.hint_loss": {
        "student": array(4, 3, shapes=[(4, 2), (3, 3), (0, 3)]),
        "teacher": array(4, 5, shapes=[(4, 2), (3, 5)]),
        "projection": array(3, 5, shapes=[(2, 5), (5,)]),
    },
    # --- footprint, structure, levers ---
    "footprint.weight_bytes": {"parameters": count, "bits": positive},
    "footprint.kept_numbers": {"sizes": sizes, "twice": flag},
    "footprint.training_bytes": {
        "parameters": count,
        "kept": whole(0),
        "batch": count,
        "optimiser": choice("SGD", "momentum", "Adam"),
        "mixed": flag,
    },
    "footprint.mlp_cost": {"sizes": sizes},
    "footprint.block_cost": {"width": count, "tokens": count, "inner": optional(count)},
    "footprint.moved_bytes": {"inputs": count, "outputs": count, "batch": count, "bits": positive},
    "footprint.roofline": {
        "macs": rate,
        "moved": rate,
        "peak": number(1)._replace(bad=positive.bad),
        "bandwidth": positive,
    },
    "structure.linear_cost": {"inputs": count, "outputs": count, "bias": flag},
    "structure.conv_cost": {
        "inputs": values(8, np.int64(4))._replace(bad=count.bad),
        "outputs": values(8, 4.0)._replace(bad=count.bad),
        "groups": values(1, 4, bad=[3]),
        **layer,
    },
    "structure.separable_cost": {"inputs": count, "outputs": count, **layer},
    "structure.bottleneck_cost": {"channels": count, "inner": count, **layer},
    "structure.singular_values": {"w": matrix},
    "structure.low_rank": {"w": matrix, "rank": whole(1, 4)},
    "structure.low_rank_error": {
        "singular_values": array(4, low=1, high=2, bad=[np.zeros(4)], shapes=[(4, 4), (4, 1)]),
        "rank": whole(1, 4),
    },
    "structure.rank_for": {"outputs": count, "inputs": count, "share": part},
    "structure.front": {
        "costs": array(5, shapes=[(4,), (5, 1)]),
        "scores": array(5, shapes=[(4,), (5, 1)]),
    },
    "levers.effect": {"values": game, "lever": whole(0, 1), "multiply": flag},
    "levers.interaction": {
        "values": game,
        "a": values(0, bad=[2, 0.5]),
        "b": values(1, np.int64(1), bad=[2, 0.5]),
        "multiply": flag,
    },
    "levers.shapley": {"values": game, "multiply": flag},
    # --- pruning, quantization ---
    "pruning.magnitude_mask": {
        "w": weights,
        "threshold": Kind(
            rate.good, rate.bad.filter(lambda t: t != np.inf if isinstance(t, float) else True)
        ),
    },
    "pruning.threshold_for": {"sparsity": share, "weights": several(array(4, 6))},
    "pruning.n_of_m_mask": {
        "w": array(3, 8, shapes=[(3, 7), ()]),
        "n": whole(1, 4),
        "m": values(4, 4.0, bad=[5]),
    },
    "pruning.sparsity": {"weights": several(array(4, 6, finite=False, bools=True))},
    "pruning.unit_scores": {
        "x": array(4, 3, shapes=[(3,), (0, 3)]),
        "axis": values(0, 1, -1, -2, bad=[2, -3]),
        "p": values(1, 2, bad=[3]),
    },
    "pruning.best_units": {"scores": array(6, shapes=[(2, 3), ()]), "keep": whole(1, 6)},
    "pruning.one_shot": {"progress": shares, "final": shares},
    "pruning.iterative": {"progress": shares, "final": shares},
    "pruning.cubic": {"progress": shares, "final": shares},
    "quantization.Quantizer": {
        "scale": number(0.1)._replace(bad=number(0, without=[0], arrays=True).bad),
        "zero_point": Kind(st.sampled_from([2, -3.0, np.array([1, 2])]), no_whole),
        "q_min": Kind(st.integers(-8, 0), no_whole | st.integers(min_value=9)),
        "q_max": Kind(st.integers(1, 8), no_whole | st.integers(max_value=-9)),
    },
    "quantization.Quantizer.quantize": {"self": quantizer, "x": array(4, 6, numbers=True)},
    "quantization.Quantizer.dequantize": {"self": quantizer, "q": array(4, 6, numbers=True)},
    "quantization.symmetric": {
        "low": number(-2, 1, arrays=True)._replace(bad=no_end | st.just(9.0)),
        "high": number(1, 2, arrays=True)._replace(bad=no_end | st.just(-9.0)),
        "bits": whole(2, 16),
    },
    "quantization.fake_quantize": {"x": array(4, 6, numbers=True), "quantizer": quantizer},
    "quantization.in_groups": {
        "w": array(4, 6, shapes=[(4, 0)], finite=False),
        "size": values(2, 3.0, bad=[4, 0])._replace(bad=st.sampled_from([*ODD, True, 4, 0, -1, 0.5])),
    },
    "quantization.min_max": {"x": weights, "axis": some_axes},
    "quantization.percentile": {"x": weights, "share": part},
    "quantization.least_squares": {
        "x": weights,
        "bits": whole(2, 16),
        "scheme": values(symmetric, affine),
        "axis": some_axes,
    },
    "quantization.kullback_leibler": {
        "x": weights,
        "bits": whole(2, 8),
        "bins": Kind(st.sampled_from([512, 600.0]), other(1, 0, 16.5)),
    },
    "quantization.bias_correction": {"y": logits, "y_hat": logits, "axis": values(1, -1, 0, bad=[2, (0, 5)])},
    "quantization.equalising_factors": {
        "w1": array(3, 4, low=0.5, shapes=[(2, 4), ()], bad=[np.zeros((3, 4))]),
        "w2": array(2, 3, low=0.5, shapes=[(2, 2), (3,)], bad=[np.zeros((2, 3))]),
    },
    "quantization.share_weights": {"w": array(9, bad=[np.ones(9)]), "bits": whole(2, 8)},
    "quantization.entropy": {"counts": counts},
    "quantization.huffman_lengths": {"counts": counts},
    "quantization.integer_linear": {
        "q_x": array(2, 3, low=-7, high=7, dtype="int8", shapes=[(2, 4), (3,)]),
        "q_w": array(4, 3, low=-7, high=7, dtype="int8", shapes=[(4, 4), (3,)]),
        "bias": array(4, shapes=[(3,), (4, 4)]),
        "x": made(lambda: affine(0.0, 1.0, 8)),
        "w": made(lambda: symmetric(-1.0, 1.0, 8), bad=[lambda: affine(0.0, 1.0, 8)]),
        "y": made(lambda: affine(-1.0, 1.0, 8)),
    },
    "quantization.fixed_point": {"factor": number(2**-32, 2.0**30, without=[2.0**30], arrays=True)},
    "quantization.rescale": {
        "a": array(4, low=-99, high=99, dtype=int, beyond=[0.5], numbers=True),
        "m": whole(2**30, 2**31 - 1)._replace(bad=no_whole | st.integers(max_value=-1)),
        "n": whole(1, 62),
    },
    # --- recipes ---
    "recipes.Situation": {"scarce": choice(*recipes.SCARCE)}
    | dict.fromkeys(["training", "examples", "integers", "sparsity", "oversized"], flag),
    "recipes.conditions": {"s": situation},
    "recipes.choose": {"situation": situation},
    "recipes.against": {"situation": situation},
    "recipes.lasting": {
        "stages": made(
            lambda: ["quantize", "distil"],
            lambda: [],
            bad=[lambda: ["a"], lambda: "quantize", lambda: [None], lambda: [[]]],
            odd=[None, 3, "a", 1j, math.nan, True],
        )
    },
    # --- bridges ---
    "bridges.conventions.as_convention": {"rule": subject_rule, "convention": convention},
    "bridges.conventions.require_rule": {"rule": rule},
    "bridges.conventions.rule_named": {
        "name": choice("SGD", "KerasSGD"),
        "fields": made(
            lambda: {"lr": 0.1}, bad=[lambda: {"rate": 0.1}, lambda: {"lr": -1}], odd=[None, 3, "a", [1], 1j]
        ),
    },
    "bridges.torch.RuleOptimizer": {
        "params": made(lambda: A_TORCH().parameters(), bad=[A_TORCH, lambda: [np.ones(3)], lambda: iter([])]),
        "rule": rule,
        "convention": optional(convention),
        "compiled": flag,
    },
    "bridges.torch.RuleOptimizer.add_param_group": {
        "self": an_optimizer,
        "param_group": made(group, bad=[dict, lambda: group(speed=3), lambda: group(lr=-1)]),
    },
    "bridges.torch.RuleOptimizer.load_state_dict": {
        "self": an_optimizer,
        "state_dict": made(lambda: torch_optimizer().state_dict(), bad=[lambda: {"rule": "Adam"}]),
    },
    "bridges.keras.RuleOptimizer": {
        "rule": rule,
        "convention": optional(convention),
        "options": made(
            lambda: {"clipnorm": 1.0}, bad=[lambda: {"weight_decay": 0.1}, lambda: {"speed": 3}], odd=[]
        ),
    },
    "bridges.distillation_torch.logits": {
        "model": torch_model,
        "x": to_batch._replace(bad=array(5, 3, dtype="float32", shapes=[(5, 7)]).bad),
        "batch_size": count,
    },
    "bridges.distillation_torch.distillation_step": {
        "student": own_torch,
        "teacher": Kind(
            made(torch_net, lambda: torch.ones(5, 2)).good,
            made(A_TORCH, bad=[lambda: nn.Linear, lambda: torch.ones(5, 3), A_KERAS]).bad,
        ),
        "optimizer": optimizer,
        "x": batch,
        "labels": made(
            lambda: torch.zeros(5, dtype=int),
            bad=[lambda: torch.full((5,), 9), lambda: torch.zeros(5), lambda: torch.zeros(4, dtype=int)],
            odd=ODD[1:],
        ),
        "temperature": positive,
        "alpha": share,
    },
    "bridges.distillation_keras.logits": {"model": keras_model, "x": examples, "batch_size": count},
    "bridges.distillation_keras.Distiller": {
        "student": own_keras,
        "teacher": optional(Kind(made(keras_net).good, keras_model.bad)),
        "temperature": positive,
        "alpha": share,
    },
    "bridges.pruning_torch.prunable": {"model": torch_model},
    "bridges.pruning_torch.prune": {"model": own_torch, "masks": named("0", np.ones((4, 3)), *MASKS)},
    "bridges.pruning_torch.make_permanent": {"model": own_torch},
    "bridges.pruning_torch.mask_units": {"model": torch_model, "keep": named("0", [0, 2], *KEEP)},
    "bridges.pruning_torch.remove_units": {"model": torch_model, "keep": named("0", [0, 2], *KEEP)},
    "bridges.pruning_torch.CSRLinear": {"linear": made(lambda: nn.Linear(3, 2), bad=[*NO_MODELS, A_TORCH])},
    "bridges.pruning_torch.to_csr": {"model": torch_model},
    "bridges.pruning_keras.Mask": {
        "keep": array(4, low=0, dtype=int, beyond=[0.5], bools=True),
        "before": optional(function),
    },
    "bridges.pruning_keras.prunable": {"model": keras_model},
    "bridges.pruning_keras.prune": {"model": own_keras, "masks": named("hidden", np.ones((3, 4)), *MASKS)},
    "bridges.pruning_keras.mask_units": {"model": keras_model, "keep": named("hidden", [0, 2], *KEEP)},
    "bridges.pruning_keras.remove_units": {"model": keras_model, "keep": named("hidden", [0, 2], *KEEP)},
    "bridges.pruning_keras.to_csr": {"model": keras_model},
    "bridges.quantization_torch.quantize_weights": {"model": torch_model, "rule": torch_rule},
    "bridges.quantization_torch.quantize_in_training": {"model": own_torch, "rule": torch_rule},
    "bridges.quantization_torch.make_permanent": {"model": own_torch},
    "bridges.quantization_torch.layer_inputs": {"model": torch_model, "x": to_batch},
    "bridges.quantization_torch.quantize_inputs": {
        "model": torch_model,
        "quantizers": named("0", affine(-1.0, 1.0, 8), 3, [], affine),
    },
    "bridges.quantization_torch.correct_biases": {
        "model": torch_model,
        "quantized": Kind(
            torch_model.good, made(A_TORCH, bad=[*NO_MODELS, lambda: nn.Sequential(nn.Linear(3, 2))]).bad
        ),
        "x": to_batch,
    },
    "bridges.quantization_torch.equalise": {"model": torch_model},
    "bridges.quantization_keras.quantize_weights": {"model": keras_model, "rule": weight_rule},
    "bridges.quantization_keras.quantize_in_training": {"model": own_keras, "rule": keras_rule},
    "bridges.quantization_keras.make_permanent": {"model": own_keras},
    "bridges.structure_torch.costs": {"model": torch_model, "x": batch},
    "bridges.structure_torch.factorise": {"model": torch_model, "ranks": named("0", 1, *RANKS)},
    "bridges.structure_keras.costs": {"model": keras_model},
    "bridges.structure_keras.factorise": {"model": keras_model, "ranks": named("hidden", 1, *RANKS)},
    # --- lab ---
    "lab.blocks.block_layers": {
        "kind": choice("plain", "separable", "grouped", "bottleneck"),
        "channels": values(4, 8.0, bad=[6]),
        "stride": count,
    },
    "lab.blocks.Block": {
        "kind": choice("plain", "separable", "grouped", "bottleneck"),
        "channels": values(4, 8.0, bad=[6]),
        "stride": count,
    },
    "lab.blocks.block_net": {
        "kind": choice("plain", "separable", "grouped", "bottleneck"),
        "width": values(4, 8.0, bad=[6]),
        "depth": values(2, 4.0, bad=[5]),
        "seed": seed,
    },
    "lab.data.fresh_test": {
        "n": values(10, 20.0, bad=[15]),
        "seed": Kind(seed.good.filter(lambda s: s != 42), seed.bad),
    },
    "lab.deployed.measured": {
        "onnx": onnx_bytes,
        "reference": onnx_bytes,
        "x": array(64, 40, dtype="float32", shapes=[(3, 40), (64, 7), (64,)]),
        "y": array(64, low=0, high=9, dtype=int, shapes=[(3,), (64, 1)], beyond=[-1, 10, 0.5]),
        "repeats": whole(1, 2)._replace(bad=count.bad),
    },
    "lab.deployed.memory": {"onnx": onnx_bytes, "inputs": values(40, bad=[7, 0.5])},
    "lab.litert.convert": {"model": keras_model},
    "lab.litert.quantize_static": {
        "model": keras_model,
        "calibration": array(9, 3, dtype="float32", shapes=[(9, 7), (0, 3), (3,), (9, 3)], lists=True),
    },
    "lab.litert.quantize_dynamic": {"model": keras_model},
    "lab.litert.load": {"litert": made(tflite, bad=[*NO_FILES, onnx])},
    "lab.measure.ratios": {
        "a": function_of(lambda: list),
        "b": function_of(lambda: list),
        "repeats": count,
        "calls": count,
    },
    "lab.measure.finished": {"function": function, "device": choice("cpu")},
    "lab.measure.device_name": {"device": choice("cpu")},
    "lab.measure.file_bytes": {"model": torch_model},
    "lab.memo.source_digest": {
        "files": several(
            values(__file__, bad=["/nowhere.py"])._replace(bad=st.sampled_from([None, 3, "a", ()])), [(1,)]
        )
    },
    "lab.memo.code_digest": {
        "files": several(
            values(__file__, bad=["/nowhere.py"])._replace(bad=st.sampled_from([None, 3, "a", ()])), [(1,)]
        )
    },
    "lab.published.published": {"function": made(lambda: draw)},
    "lab.memo.memoise": {"function": made(lambda: draw)},
    "lab.models.mlp": {
        "inputs": count,
        "hidden": made(
            lambda: (4, 3.0),
            lambda: 5,
            lambda: [2],
            lambda: (),
            bad=[lambda: (4, 0), lambda: (1.5,), lambda: -1],
            odd=[None, "a", b"1", 1j, 0.5, {}, ["a"], True],
        ),
        "classes": count,
        "seed": seed,
    },
    "lab.models.cnn": {"channels": count, "seed": seed},
    "lab.onnx_weights.int4_weights": {"onnx": made(four_bits, bad=[*NO_FILES, tflite])},
    "lab.onnx_weights.shared_weights": {"onnx": made(four_bits, bad=[*NO_FILES, tflite])},
    "lab.onnxrt.export": {"model": torch_model, "inputs": values(3, bad=[4, 0.5])},
    "lab.onnxrt.quantize_static": {"onnx": onnx_bytes, "calibration": calibration, "per_channel": flag},
    "lab.onnxrt.quantize_dynamic": {"onnx": onnx_bytes},
    "lab.onnxrt.read": {"onnx": onnx_bytes, "name": Kind(st.just("onnx"), st.nothing())},
    "lab.onnxrt.load": {"onnx": onnx_bytes},
    "lab.onnxrt.optimised_ops": {"onnx": onnx_bytes},
    "lab.runtimes.checked_calibration": {
        "calibration": calibration,
        "inputs": values(40)._replace(bad=no_whole),
    },
    "lab.spread.spread": {
        "jobs": made(
            lambda: [joblib.delayed(abs)(-1)],
            lambda: [],
            bad=[lambda: [abs]],
            odd=[None, 3, "a", ["a"], 1j, [3]],
        ),
        "what": words,
    },
    "lab.summary.over_seeds": {"runs": frame, "by": columns},
    "lab.summary.final_accuracy": {"runs": frame, "by": columns},
    "lab.summary.at_best_rate": {
        "runs": frame,
        "by": made(lambda: ["step"], bad=[lambda: ["nowhere"], lambda: [3], lambda: "step"]),
        "among": made(lambda: ("rate",), bad=[lambda: ["nowhere"], lambda: [3], lambda: "rate"]),
    },
    "lab.surfaces.quadratic": {"kappa": number(1)},
    "lab.surfaces.turned": {"surface": surface, "degrees": number(), "window": window},
    "lab.surfaces.descend": {
        "rule": rule,
        "surface": surface,
        "steps": whole(0),
        "noise": rate,
        "seed": whole(0),
    },
    "lab.surfaces.contours": {"surface": surface, "levels": whole(1)},
    "lab.sweep.cosine": {"step": whole(0), "steps": whole(5)},
    "lab.sweep.sweep": {
        "grid": made(
            lambda: {"lr": [0.1, 0.2], "batch_size": 10},
            bad=[
                lambda: {},
                lambda: {"speed": 3},
                lambda: {"lr": []},
                lambda: {"lr": -1},
                lambda: {"batch_size": 0},
            ],
        ),
        "rule": values(SGD, Adam, bad=[SGD(), "SGD"]),
        "model": made(lambda: three_inputs, bad=[A_TORCH, lambda: abs]),
        "data": a_data._replace(bad=a_data.bad.filter(lambda x: x is not None)),
        "steps": whole(0),
        "every": count,
        "schedule": function_of(lambda: lambda step, steps: 1.0),
        "seeds": values([0], range(2), bad=[[0.5], [-1], range(0)]),
        "dtype": choice("float32", "float64"),
    },
    "lab.training.progress": {
        "items": made(lambda: [1, 2], odd=[None, 3, 1j, True, math.nan]),
        "what": words,
    },
    "lab.training.batches": {
        "n": whole(4)._replace(bad=count.bad),
        "batch_size": whole(1, 4),
        "steps": whole(0),
        "seed": whole(0),
    },
    "lab.training.recorded": {"steps": whole(0), "every": count},
    "lab.training.tensors": {"data": a_data, "dtype": made(lambda: torch.float64, bad=[lambda: "float32"])},
    "lab.training.require_data": {"data": a_data},
    "lab.training.measure": {"model": torch_model, "data": made(lambda: tuple(map(torch.as_tensor, data())))},
    "lab.training.train": {
        "model": own_torch,
        "optimizer": optimizer,
        "data": a_data,
        "steps": whole(0),
        "batch_size": whole(1, 20),
        "seed": whole(0),
        "schedule": optional(made(lambda: SimpleNamespace(step=list))),
        "every": count,
    },
    "lab.twins.keras_twin": {"model": torch_model},
    # --- the pipeline ---
    "pipeline.stage": {"allowed": made(lambda: {"bits": abs}, bad=[lambda: {"bits": 3}], odd=[])},
    "pipeline.distil": {"network": choice("mlp", "cnn"), "width": count, **training},
    "pipeline.prune_neurons": {
        "keep": made(
            lambda: 0.5,
            lambda: [3, 2],
            bad=[lambda: 0, lambda: 1.5, lambda: [0]],
            odd=[None, "a", {}, ["a"], True, 1j],
        ),
        **training,
    },
    "pipeline.prune_weights": {
        "share": Kind(number(0.1, 0.9).good, number(0, 1, without=[0, 1]).bad),
        **training,
    },
    "pipeline.factorise": {
        "share": Kind(number(0.1, 0.9).good, number(0, 1, without=[0, 1]).bad),
        **training,
    },
    "pipeline.quantize": {"bits": values(4, 8, bad=[5]), **training},
    "pipeline.share_weights": {"bits": whole(2, 8)},
    "pipeline.export": {"form": choice(*pipeline.FORMS)},
    "pipeline.run": {
        "start": made(
            start,
            bad=[
                lambda: start().model,
                lambda: pipeline.Made(None),
                lambda: start()._replace(form="a"),
                lambda: pipeline.Made(nn.Sequential(nn.Tanh())),
            ],
        ),
        "stages": made(
            lambda: [pipeline.share_weights(4)],
            bad=[lambda: [pipeline.quantize], lambda: pipeline.quantize(8)],
            odd=[None, 3, "a", ["a"], 1j],
        ),
        "task": made(
            task,
            bad=[
                lambda: task()._replace(x=None),
                lambda: task()._replace(seed=0.5),
                lambda: task()._replace(test=None),
                lambda: task()._replace(targets=np.ones(3)),
            ],
        ),
        "folder": made(lambda: finished()[0], odd=[None, 3, 1j, [], {}]),
        "measure": function_of(lambda: size),
    },
    "pipeline.load": {
        "folder": made(lambda: finished()[0], bad=[lambda: "/nowhere"]),
        "key": made(lambda: finished()[1], bad=[lambda: "0"]),
    },
    "pipeline.onnx_file": {
        "folder": made(lambda: finished()[0], bad=[lambda: "/nowhere"]),
        "key": made(lambda: finished()[1], bad=[lambda: "0"]),
    },
    # --- the page ---
    "page.claims.claim": {
        "sentence": words,
        "condition": Kind(st.sampled_from([True, np.array([True]), [True]]), st.sampled_from([*ODD, 3, 0.5])),
    },
    "page.exercises.Check": {
        "solution": function,
        "inputs": function,
        "mistakes": Kind(
            st.sampled_from([{}, {"Wrong.": abs}]), st.sampled_from([None, 3, [], {"Wrong.": 3}, {3: abs}])
        ),
        "praise": Kind(st.sampled_from(["Good.", ""]), other(3, right=["a"])),
        "tolerance": rate,
    },
    "page.exercises.Goal": {"solution": function, "inputs": function, "reached": function},
    "page.explorer.Slider": {
        "name": Kind(st.just("lr"), other("", "_a", "width", "a b", 3, right=["a"])),
        "label": words,
        "scale": choice("linear", "log"),
        "minimum": Kind(st.sampled_from([1, 0.5]), other(3, -math.nan, right=[None])),
        "maximum": Kind(st.sampled_from([2, 2.5]), other(0.1, math.inf, right=[None])),
        "step": optional(positive),
    },
    "page.explorer.Slider.stops": {"self": made(lambda: Slider("lr", "Rate")), "runs": held},
    "page.explorer.Choice": {
        "name": Kind(st.just("lr"), other("", "_a", "width", "a b", 3, right=["a"])),
        "label": words,
        "options": Kind(
            st.sampled_from([["a", "b"], (1, 2), None]), st.sampled_from(["a", 3, {}, (), [], math.nan, 1j])
        ),
    },
    "page.explorer.Choice.stops": {"self": made(lambda: Choice("lr", "Rate")), "runs": held},
    "page.explorer.Explorer": {
        "runs": held,
        "draw": function_of(lambda: draw),
        "controls": made(lambda: [Slider("lr", "Rate")], bad=[lambda: ["lr"], lambda: [3]]),
        "caption": words,
        "title": words,
        "compute": optional(function_of(lambda: compute)),
        "initial": optional(
            made(
                lambda: {"lr": 0.1},
                bad=[lambda: {"lr": 9}, lambda: {"a": 0.1}, lambda: {"lr": "a"}],
                odd=[None, 3, "a", [1]],
            )
        ),
    },
    "page.explorer.Explorer.find": {"self": an_explorer, "setting": setting},
    "page.explorer.Explorer.add": {"self": an_explorer, "setting": setting},
    "page.explorer.Explorer.filled": {"self": an_explorer, "width": optional(positive)},
    "page.explorer.write_assets": {"folder": made(tempfile.mkdtemp, odd=[None, 3, 1j, [], {}])},
    "page.live.Live": {"explorer": an_explorer},
    "page.notebooks.setup_cell": {"repository": words, "version": words},
    "page.recurrence.Recurrence": {
        "start": function_of(lambda: lambda: {"w": 1.0}),
        "step": function_of(lambda: lambda w: {"w": w}),
        "row": function_of(lambda: lambda w: {"w": w}),
        "steps": Kind(st.integers(1, 3), count.bad),
        "series": Kind(
            st.sampled_from([{"rule": ["a"]}, {}, None]),
            st.sampled_from([3, "a", [], {"rule": 3}, {"rule": []}, {3: [1]}]),
        ),
        "inputs": optional(function),
        "while_positive": optional(function),
    },
    "page.recurrence.Recurrence.program": {
        "self": made(walk),
        "sliders": Kind(
            st.sampled_from([["lr"], {"lr"}]), st.sampled_from([None, 3, "lr", [3], b"1", 1j, True])
        ),
        "choices": Kind(
            st.sampled_from([{}, {"rule": ["a"]}]), st.sampled_from([None, 3, [], {"rule": 3}, {"rule": []}])
        ),
    },
    "page.source.source": {"thing": values(draw, Slider, Cost.__add__, bad=[abs]), "docstring": flag},
}
CALLS["quantization.affine"] = CALLS["quantization.symmetric"]


def three_inputs(seed):
    torch.manual_seed(seed)
    return torch_net()


WITHOUT = {
    "A rule's steps are the hot path, and run on symbols and tensors: what goes in is not looked at.": """
        sgd.SGD.init sgd.SGD.step adam.Adagrad.init adam.Adagrad.step adam.RMSprop.init adam.RMSprop.step
        adam.Adam.init adam.Adam.step adam.AdamW.step adam.NAdam.init adam.NAdam.step
        bridges.conventions.KerasSGD.step bridges.conventions.KerasAdagrad.init
        bridges.conventions.KerasAdagrad.step bridges.conventions.KerasRMSprop.step
        bridges.conventions.KerasAdam.step bridges.conventions.KerasAdamW.step
        bridges.conventions.KerasNAdam.step code_example.Alternating.init code_example.Alternating.turn
        code_example.Alternating.step trends.Lion.init trends.Lion.step trends.Muon.init trends.Muon.step
        trends.ScheduleFreeSGD.init trends.ScheduleFreeSGD.average trends.ScheduleFreeSGD.step
        trends.ScheduleFreeAdamW.init trends.ScheduleFreeAdamW.average trends.ScheduleFreeAdamW.step
        bridges.compiled.step""",
    "A record holds what it is given: who takes it looks at it.": """
        footprint.Memory structure.Cost recipes.Step lab.data.Data lab.measure.Ratio lab.surfaces.Surface
        pipeline.Task pipeline.Made pipeline.Stage pipeline.StageFailed""",
    "A framework or Sphinx calls it, with arguments of its own.": """
        bridges.keras.RuleOptimizer.build bridges.keras.RuleOptimizer.update_step
        bridges.keras.RuleOptimizer.from_config bridges.distillation_keras.Distiller.call
        bridges.distillation_keras.Distiller.train_step bridges.distillation_keras.Distiller.test_step
        bridges.distillation_keras.Distiller.compute_metrics bridges.pruning_keras.Mask.__call__
        bridges.pruning_torch.Mask.forward bridges.pruning_torch.CSRLinear.forward
        bridges.quantization_keras.QuantizedCall.__call__ bridges.quantization_torch.Quantized.forward
        bridges.quantization_torch.QuantizedInput.__call__ bridges.torch.RuleOptimizer.step
        lab.blocks.Block.forward page.book.setup page.book.code_digest page.book.choose_cache
        page.book.write_static page.book.complete_page page.book.drop_icon_script page.book.make_slides""",
    "A part that the functions of its module put in place, after they have looked.": """
        bridges.pruning_torch.Mask bridges.quantization_keras.QuantizedCall
        bridges.quantization_torch.Quantized bridges.quantization_torch.QuantizedInput
        page.explorer.Slider.to_scale page.explorer.Slider.from_scale page.notebooks.keep_claims
        lab.memo.in_pieces lab.memo.sources""",
    "A tool that make calls works on files: its own tests give it wrong ones.": """
        page.fork.fork page.fork.forked page.fork.main page.handouts.handouts page.handouts.main
        page.notebooks.linked page.notebooks.main page.slides.tagged page.slides.to_html
        page.slides.write_slides lab.published.publish""",
    "Whatever it is given is right, or is for the functions that it was made of.": """
        lab.sweep.constant page.recurrence.Recurrence.__call__
        page.explorer.shown page.exercises.Check.__call__ page.exercises.Check.judge""",
}
