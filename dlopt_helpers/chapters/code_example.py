"""What chapter 4.1 shows: the article's program in three versions, and its explorers."""

import altair as alt
import numpy as np
import pandas as pd
import torch

from dlopt_helpers.adam import Adam
from dlopt_helpers.bridges.conventions import as_convention
from dlopt_helpers.chapters.code_example_runs import IN_TURN, LONG, RATE, SHARES, STEPS, network
from dlopt_helpers.code_example import Alternating, binary_cross_entropy, forward
from dlopt_helpers.page.explorer import BLUE, GOLD, GREEN, MUTED, PURPLE, RED, Choice, Explorer, Slider
from dlopt_helpers.sgd import SGD

LN2 = float(np.log(2))
PERCENT = alt.Axis(format="%")

# --- The article's program, three times -------------------------------------------------------------


def article_data():
    """Return the article's X, of shape (1000, 10), and y, of shape (1000,)."""
    rng = np.random.RandomState(0)  # what np.random.seed(0) starts
    return rng.randn(1000, 10), rng.randint(0, 2, 1000)


def in_keras(X, y, weights):
    """Run the article's program from these weights and return the losses and the weights it ends with."""
    import keras
    import tensorflow as tf

    class MLP(keras.Model):
        def __init__(self):
            super().__init__()
            self.d1 = keras.layers.Dense(16, activation="relu")
            self.d2 = keras.layers.Dense(1, activation="sigmoid")

        def call(self, x):
            return self.d2(self.d1(x))

    model = MLP()
    model(X)  # makes the weights
    model.set_weights(weights)
    loss = keras.losses.BinaryCrossentropy()
    sgd = keras.optimizers.SGD(learning_rate=0.01)
    adam = keras.optimizers.Adam(learning_rate=0.01)
    losses = []
    for epoch in range(100):
        with tf.GradientTape() as tape:
            loss_value = loss(y, model(X))
        gradients = tape.gradient(loss_value, model.trainable_variables)
        optimizer = sgd if epoch % 2 == 0 else adam
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        losses.append(float(loss_value))
    return losses, model.get_weights()


def in_torch(X, y, weights):
    """Do what :func:`in_keras` does, in PyTorch, in the precision of X."""
    w1, b1, w2, b2 = map(torch.from_numpy, weights)
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 16), torch.nn.ReLU(), torch.nn.Linear(16, 1), torch.nn.Sigmoid()
    )
    model.load_state_dict({"0.weight": w1.T, "0.bias": b1, "2.weight": w2.T, "2.bias": b2})
    x = torch.from_numpy(X)
    target = torch.from_numpy(y)[:, None].to(x.dtype)
    model.to(x.dtype)
    loss = torch.nn.BCELoss()
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for epoch in range(100):
        model.zero_grad()
        loss_value = loss(model(x), target)
        loss_value.backward()
        optimizer = sgd if epoch % 2 == 0 else adam
        optimizer.step()
        losses.append(loss_value.item())
    return losses, [p.detach().numpy().T for p in model.parameters()]


def ours(X, y, weights, rule):
    """Do what :func:`in_keras` does with our formulas, in the precision of X."""
    x = torch.from_numpy(X)
    target = torch.from_numpy(y)[:, None].to(x.dtype)
    weights = [torch.from_numpy(w).to(x.dtype) for w in weights]
    states, losses = [rule.init(w) for w in weights], []
    for _ in range(100):
        weights = [w.detach().requires_grad_() for w in weights]
        loss_value = binary_cross_entropy(forward(x, *weights), target)
        gradients = torch.autograd.grad(loss_value, weights)
        made = zip(weights, gradients, states, strict=True)
        weights, states = zip(*(rule.step(w.detach(), g, state) for w, g, state in made), strict=True)
        losses.append(loss_value.item())
    return losses, [w.numpy() for w in weights]


def rule_of(framework):
    """Return the article's rule with the formulas and the epsilon of Adam that a framework has."""
    eps = {"torch": 1e-8, "keras": 1e-7}[framework]
    return Alternating(as_convention(SGD(RATE), framework), as_convention(Adam(RATE, eps=eps), framework))


def program_differences(seed=0):
    """Return the largest differences of our formulas from the article's program in each framework.

    All start from the same weights. One row per comparison: ``loss``, of any of the 100 losses, and
    ``weights``, of any weight at the end. ``formula`` says whose Adam ours was.
    """
    X, y = article_data()
    weights, rows = network(seed), []
    for framework, precision, formula in (
        ("torch", "float64", "torch"),
        ("torch", "float32", "torch"),
        ("keras", "float32", "keras"),
        ("keras", "float32", "torch"),
    ):
        run = {"torch": in_torch, "keras": in_keras}[framework]
        theirs = run(X.astype(precision), y, weights)
        mine = ours(X.astype(precision), y, weights, rule_of(formula))
        loss = np.abs(np.subtract(theirs[0], mine[0])).max()
        weight = max(np.abs(a - b).max() for a, b in zip(theirs[1], mine[1], strict=True))
        rows.append((framework, precision, formula, loss, weight))
    return pd.DataFrame(rows, columns=["framework", "precision", "formula", "loss", "weights"])


# --- Learning rates, turns, labels -------------------------------------------------------------------

TURN_COLORS = [RED, BLUE, GREEN, PURPLE, GOLD]
SETTING = ["turns", "lr_sgd", "lr_adam", "share"]


def _training_and_fresh(of, measure, step, scale, **options):
    """Return the lines of a measure on the training examples and on fresh ones."""
    names = [measure, f"fresh_{measure}"]
    color = alt.Color(
        "what:N",
        title=None,
        scale=alt.Scale(domain=names, range=[BLUE, RED]),
        legend=alt.Legend(
            orient="bottom",
            symbolType="stroke",
            labelExpr=f"datum.label == '{measure}' ? 'training examples' : 'fresh examples'",
        ),
    )
    height = alt.Y("value:Q", title=measure, scale=scale, **options)
    both = of.transform_fold(names, as_=["what", "value"]).mark_line(clip=True)
    return both.encode(x=step, y=height, color=color)


def _two_accuracies(step, of):
    """Return lines of the accuracy on training and on fresh examples, and the best that fresh ones allow."""
    scale = alt.Scale(domain=[0.4, 1], nice=False)
    best = alt.Chart(alt.Data(values=[{}])).transform_calculate(best="1 - share / 2")
    best = best.mark_rule(strokeDash=[5, 4]).encode(y=alt.Y("best:Q", scale=scale))
    return best + _training_and_fresh(of, "accuracy", step, scale, axis=PERCENT)


def _coin(scale):
    """Return the line of the loss of a coin."""
    line = alt.Chart(pd.DataFrame({"ln2": [round(LN2, 4)]}))
    return line.mark_rule(strokeDash=[5, 4]).encode(y=alt.Y("ln2:Q", scale=scale))


def turns_explorer(runs):
    """Return the explorer of the article's program: two rates, whose turn it is, and random labels.

    Args:
      runs: of :func:`~dlopt_helpers.chapters.code_example_runs.grid`.
    """
    columns = ["step", "loss", "accuracy", "fresh_accuracy"]
    rows = runs[[*SETTING, *columns]].round({"loss": 4, "accuracy": 3, "fresh_accuracy": 3})

    def draw(runs, chosen):
        step = alt.X("step:Q", title="step", scale=alt.Scale(domain=[0, STEPS], nice=False))
        scale = alt.Scale(domain=[0, 1], nice=False)
        height = alt.Y("loss:Q", title="training loss", scale=scale)
        color = alt.Color(
            "turns:N",
            title=None,
            scale=alt.Scale(domain=list(IN_TURN), range=TURN_COLORS),
            legend=alt.Legend(orient="bottom", symbolType="stroke", symbolOpacity=1, columns=3),
        )
        same = "datum.share == share && datum.lr_sgd == lr_sgd && datum.lr_adam == lr_adam"
        others = runs.transform_filter(same).mark_line(clip=True, strokeWidth=1.5, opacity=0.6)
        mine = chosen.mark_line(clip=True, strokeWidth=4)
        losses = others.encode(x=step, y=height, color=color) + mine.encode(x=step, y=height, color=color)
        return _coin(scale) + losses, _two_accuracies(step, chosen)

    return Explorer(
        rows,
        draw,
        controls=[
            Choice("turns", "Who steps", options=list(IN_TURN)),
            Slider("lr_sgd", "Learning rate of SGD", scale="log"),
            Slider("lr_adam", "Learning rate of Adam", scale="log"),
            Slider("share", "Share of random labels"),
        ],
        initial={"turns": "every step", "lr_sgd": RATE, "lr_adam": RATE, "share": 1.0},
        title="The article's program",
        caption=(
            "100 steps on 1,000 examples, means of three seeds. Loss: the thick line is the chosen one, the "
            "thin ones are the other orders of turns at the same rates; dashed, ln 2, the loss of a coin. "
            "Accuracy: on the training examples and on 5,000 fresh ones with the same share of random "
            "labels; dashed, the best that fresh ones allow."
        ),
    )


# --- Learning and memorising ---------------------------------------------------------------------------


def memory_rows(runs):
    """Return the long runs of the article's network, the means over seeds by share and step."""
    ours = runs[(runs.units == 16) & (runs.step > 0)]
    columns = ["loss", "fresh_loss", "accuracy", "fresh_accuracy"]
    return ours.groupby(["share", "step"], as_index=False)[columns].mean().round(4)


def memory_explorer(runs):
    """Return the explorer of the share of random labels over 3,000 steps.

    Args:
      runs: of :func:`~dlopt_helpers.chapters.code_example_runs.memorised`.
    """

    def draw(runs, chosen):
        scale = alt.Scale(type="log", domain=[50, LONG], nice=False)
        axis = alt.Axis(values=[50, 100, 300, 1000, 3000], format=",d")
        step = alt.X("step:Q", title="step", scale=scale, axis=axis)
        scale = alt.Scale(domain=[0, 1.1], nice=False)
        faint = runs.mark_line(clip=True, color=MUTED, strokeWidth=1, opacity=0.4)
        faint = faint.encode(x=step, y=alt.Y("fresh_loss:Q", scale=scale), detail="share:N")
        mine = _training_and_fresh(chosen, "loss", step, scale)
        return _coin(scale) + faint + mine, _two_accuracies(step, chosen)

    return Explorer(
        memory_rows(runs),
        draw,
        controls=[Slider("share", "Share of random labels")],
        initial={"share": SHARES[1]},
        title="First it learns, then it memorises",
        caption=(
            "The article's network and its two optimisers for 3,000 steps, means of five seeds (of ten at "
            "share 1). Dashed: ln 2, and the best accuracy that fresh examples allow. Faint: the fresh loss "
            "at the other shares. See where the fresh curve turns."
        ),
    )
