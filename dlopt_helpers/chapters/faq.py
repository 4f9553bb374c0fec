"""What chapter 6 shows: the chooser, why a network is not faster, and rules of thumb on the stored runs."""

import functools
import itertools
import math

import altair as alt
import pandas as pd

from dlopt_helpers.chapters import pipeline, pipeline_peers, pruning_speed, quantization_speed, step_costs
from dlopt_helpers.page.explorer import BLUE, GOLD, MUTED, RED, Choice, Explorer, Slider
from dlopt_helpers.recipes import SCARCE, STEPS, Situation, against, choose, lasting

# --- What the steps were measured to be worth ---------------------------------------------------------

NOTHING = {"smaller": None, "faster": None, "points": None}
# Of (group, recipe, number of the stage), by the step and whether the network was too large. The stage
# before is what it is compared with, or another run's end, where the examples have changed as well.
STAGES = {
    ("more examples", True): (("data", "dense, strict", 1), ("data", "dense, labels", 1)),
    ("more examples", False): (("hard", "strict", 1), ("hard", "labels", 1)),
    ("new student", True): (("corners", "most accurate", 1), ("data", "dense, strict", 1)),
    ("new student", False): (("hard", "strict", 1), ("hard", "strict", 0)),
    ("fewer units", True): (("order", "prune, quantize", 1), ("data", "dense, strict", 1)),
    ("fewer units", False): (("pairs", "prune neurons", 1), ("pairs", "prune neurons", 0)),
    ("small from the start", True): (("data", "small, strict", 1), ("data", "dense, strict", 1)),
    ("4 bits", True): (("bar", "strict", 3), ("bar", "strict", 2)),
    ("4 bits", False): (("hard", "strict", 2), ("hard", "strict", 1)),
    ("weights to zero", False): (("pairs", "prune weights", 1), ("pairs", "prune weights", 0)),
    ("shared numbers", True): (("search", "8", 1), ("search", "8", 0)),
    ("shared numbers", False): (("pairs", "share weights", 1), ("pairs", "share weights", 0)),
}


@functools.cache
def _means():
    rows = pipeline.stored_runs()
    columns = ["accuracy", "bytes", "zipped", "faster 1", "faster 64"]
    return rows.groupby(["group", "recipe", "number"])[columns].mean()


def gain(step, situation):
    """Return what the step was worth where it was measured: times smaller, times as fast, points.

    Args:
      step: one of the names in ``STEPS``.
      situation: tells which network stands for it, and whether one answer counts or a batch of 64.

    Returns:
      A dict with ``smaller``, ``faster`` and ``points``, each None where no stored table has it.
    """
    batch = 1 if situation.scarce == "one answer" else 64
    if step == "8 bits":
        return _eight_bits(situation.oversized, batch)
    if step == "cheaper steps":
        costs = step_costs.stored_step_costs().query("rule == 'Adam' and variant == 'default'")
        return NOTHING | {"faster": costs.fused.min()}
    if (step, situation.oversized) not in STAGES:
        return NOTHING
    after, before = (_means().loc[key] for key in STAGES[step, situation.oversized])
    # Zeros are only worth something in an archive.
    size = "zipped" if step == "weights to zero" else "bytes"
    return {
        "smaller": before[size] / after[size],
        "faster": after[f"faster {batch}"] / before[f"faster {batch}"],
        # What is trained there learns from a teacher on altered examples: points are worth nothing without.
        "points": 100 * (after.accuracy - before.accuracy)
        if situation.examples or not situation.training
        else None,
    }


def _eight_bits(oversized, batch):
    if oversized:
        rows = pipeline_peers.stored_peers().groupby(["tool", "what"]).mean(numeric_only=True)
        after, before = (rows.loc["ONNX Runtime", what] for what in ("int8 static", "float"))
        faster = after[f"faster {batch}"] / before[f"faster {batch}"]
        points = 100 * (after.accuracy - before.accuracy)
        return {"smaller": before.bytes / after.bytes, "faster": faster, "points": points}
    rows = quantization_speed.stored_speeds().query("network == 'cnn64' and runtime == 'ONNX Runtime'")
    rows = rows.set_index(["variant", "batch"])
    smaller = rows.bytes["float", batch] / rows.bytes["int8 static", batch]
    return {"smaller": smaller, "faster": rows.faster["int8 static", batch], "points": None}


# --- The chooser --------------------------------------------------------------------------------------

IN_WORDS = dict(
    zip(
        SCARCE,
        ["bytes of the file", "time of one answer", "time of a batch", "time of training", "labels"],
        strict=True,
    )
)
QUESTIONS = {
    "training": "May you train?",
    "examples": "More examples, unlabelled or altered?",
    "integers": "Integer kernels in the runtime?",
    "sparsity": "Is the file packed, or are zeros skipped?",
    "oversized": "Far larger than needed?",
}
YES = {"yes": True, "no": False}


def situations():
    """Return each situation as the controls of the explorer name it, and as a :class:`Situation`."""
    for scarce, *answers in itertools.product(SCARCE, *[YES] * len(QUESTIONS)):
        named = dict(zip(QUESTIONS, answers, strict=True))
        yield {"scarce": IN_WORDS[scarce], **named}, Situation(scarce, *(YES[a] for a in answers))


def chooser_rows():
    """Return a row for each step of each situation, those that are taken first and in order.

    ``number`` is 0 for a step that is left out; ``text`` then holds the reason. A factor that was not
    measured is 0, and so is ``judged`` where no points were.
    """
    rows = []
    for setting, situation in situations():
        taken = [(step.name, step.why) for step in choose(situation)]
        lines = [(number, *step) for number, step in enumerate(taken, 1)]
        lines += [(0, name, reason) for name, reason in against(situation).items()]
        for place, (number, name, text) in enumerate(lines):
            worth = gain(name, situation) if number else NOTHING
            line = f"{number}. {name}" if number else name
            rows.append(setting | {"place": place, "number": number, "step": line, "text": text} | worth)
    table = pd.DataFrame(rows).astype({"smaller": float, "faster": float, "points": float})
    return table.assign(judged=table.points.notna().astype(int)).fillna(0).round(3)


def _recipe(chosen):
    """Return two lines for each step: its name, and what it does or why it is left out."""
    y = alt.Y("place:O", axis=None, scale=alt.Scale(domain=list(range(len(STEPS)))))
    shade = alt.condition("datum.number > 0", alt.value(1), alt.value(0.62))
    name = chosen.mark_text(align="left", dy=-9, fontWeight=600).encode(
        x=alt.value(0), y=y, text="step:N", opacity=shade
    )
    why = chosen.transform_calculate(line="datum.number > 0 ? datum.text : 'no: ' + datum.text")
    return name + why.mark_text(align="left", dy=8).encode(x=alt.value(14), y=y, text="line:N", opacity=shade)


def _bars(chosen):
    """Return how many times smaller and as fast each step that was measured makes it."""
    taken = chosen.transform_filter("datum.number > 0")
    long = taken.transform_fold(["smaller", "faster"], as_=["measure", "factor"])
    names = ["smaller", "faster"]
    y = alt.Y("step:N", title=None, sort=alt.EncodingSortField("place"), scale=alt.Scale(paddingInner=0.35))
    offset = alt.YOffset("measure:N", sort=names)
    scale = alt.Scale(type="log", domain=[0.7, 400], nice=False)
    x = alt.X("factor:Q", title="times", scale=scale, axis=alt.Axis(values=[1, 10, 100]))
    color = alt.Color(
        "measure:N",
        title=None,
        scale=alt.Scale(domain=names, range=[BLUE, GOLD]),
        legend=alt.Legend(orient="bottom", symbolType="square", symbolOpacity=1),
    )
    measured = long.transform_filter("datum.factor > 0")
    label = measured.transform_calculate(
        shown="format(datum.factor, datum.factor < 10 ? '.1f' : '.0f')"
    ).mark_text(align="left", dx=4, fontSize=12)
    whole = taken.mark_rule(opacity=0).encode(y=y)  # a step that was not measured has its line, too
    return (
        whole
        + measured.mark_bar().encode(x=x, x2=alt.X2Datum(1), y=y, yOffset=offset, color=color)
        + label.encode(x=x, y=y, yOffset=offset, text="shown:N")
    ).properties(height=300)


def _points(chosen):
    """Return how many points of accuracy each step that was measured adds or costs."""
    taken = chosen.transform_filter("datum.number > 0")
    y = alt.Y("step:N", title=None, sort=alt.EncodingSortField("place"))
    scale = alt.Scale(domain=[-20, 20], nice=False)
    x = alt.X("points:Q", title="points of accuracy", scale=scale)
    measured = taken.transform_filter("datum.judged")
    zero = alt.Chart(pd.DataFrame({"zero": [0]})).mark_rule().encode(x=alt.X("zero:Q", scale=scale))
    bars = measured.mark_bar(size=14).encode(
        x=x,
        x2=alt.X2Datum(0),
        y=y,
        color=alt.condition("datum.points < 0", alt.value(RED), alt.value(BLUE)),
    )
    label = measured.transform_calculate(shown="format(datum.points, '+.1f')").mark_text(fontSize=12, dy=-15)
    whole = taken.mark_rule(opacity=0).encode(y=y)
    return (zero + whole + bars + label.encode(x=x, y=y, text="shown:N")).properties(height=300)


def chooser_explorer():
    """Return the explorer of all situations: the recipe, why other steps are left out, what was measured."""
    return Explorer(
        chooser_rows(),
        lambda runs, chosen: (
            _recipe(chosen).properties(height=40 * len(STEPS)),
            _bars(chosen),
            _points(chosen),
        ),
        controls=[
            Choice("scarce", "What is scarce?", list(IN_WORDS.values())),
            *(Choice(name, question, list(YES)) for name, question in QUESTIONS.items()),
        ],
        initial={"scarce": IN_WORDS["file"], **dict.fromkeys(QUESTIONS, "yes"), "sparsity": "no"},
        title="What do I do, and in which order?",
        caption=(
            "The numbered steps are the recipe, the others say why they are not in it. The bars show what a "
            "step was worth where it was measured, each against the network before it: times smaller, times "
            "as fast (one example where one answer is scarce, else 64; a step of training where training "
            "is), and points of accuracy. A network far too large is the MLP of 4.4 MB, another one the CNN "
            "of 114 kB. Zeros count in the packed file. For a step without bars see its section."
        ),
    )


# --- Why is it not faster? ----------------------------------------------------------------------------

WAYS = {
    "masked 90 %": "90 % zeros, masked",
    "CSR 90 %": "90 % zeros, sparse format",
    "CSR 98 %": "98 % zeros, sparse format",
    "units 50 %": "half of the units",
    "units 25 %": "a quarter of the units",
    "int8 dynamic": "8 bits, dynamic",
    "int8 static": "8 bits, static",
}


def speed_rows():
    """Return how much smaller and faster each way made each network, in PyTorch or ONNX Runtime."""
    pruned = pruning_speed.stored_speeds()
    rounded = quantization_speed.stored_speeds().query("runtime == 'ONNX Runtime'")
    found = []
    for rows, dense in ((pruned, "dense"), (rounded, "float")):
        whole = rows[rows.variant == dense].set_index(["network", "batch"]).bytes
        before = [whole[key] for key in zip(rows.network, rows.batch, strict=True)]
        found.append(rows.assign(smaller=before / rows.bytes)[rows.variant.isin(WAYS)])
    rows = pd.concat(found, ignore_index=True)
    rows = rows[rows.network.isin(pruned.network) & rows.network.isin(rounded.network)]
    rows = rows.assign(way=rows.variant.map(WAYS))
    return rows[["network", "batch", "way", "faster", "low", "high", "smaller"]].round(3)


def speed_explorer():
    """Return the explorer of what made a file smaller, and whether it made the answer faster."""

    def draw(runs, chosen):
        y = alt.Y("way:N", title=None, sort=list(WAYS.values()))
        scale = alt.Scale(type="log", domain=[0.25, 40], nice=False)
        axis = alt.Axis(values=[0.5, 1, 2, 5, 10, 20])
        one = alt.Chart(pd.DataFrame({"one": [1]})).mark_rule(strokeDash=[5, 4])
        panels = []
        for column, title in (("smaller", "times smaller"), ("faster", "times as fast")):
            x = alt.X(f"{column}:Q", title=title, scale=scale, axis=axis)
            color = alt.condition(f"datum.{column} < 1.1", alt.value(RED), alt.value(BLUE))
            label = chosen.transform_calculate(shown=f"format(datum.{column}, '.2~r')")
            panels.append(
                one.encode(x=alt.X("one:Q", scale=scale))
                + chosen.mark_point(filled=True, size=110, opacity=1).encode(x=x, y=y, color=color)
                + label.mark_text(align="left", dx=9, fontSize=12).encode(x=x, y=y, text="shown:N")
            )
        return tuple(panels)

    return Explorer(
        speed_rows(),
        draw,
        controls=[Choice("network", "Network"), Slider("batch", "Examples at once", scale="log")],
        initial={"network": "mlp512", "batch": 1},
        title="Smaller is one thing, faster another",
        caption=(
            "The same network made cheaper in several ways: how many times smaller its file is, and how many "
            "times as fast it answers. Dashed: as before. Red: less than a tenth is gained. Zeros and units "
            "were timed in PyTorch against its dense network, 8 bits in ONNX Runtime against its float file."
        ),
    )


# --- Rules of thumb on the stored runs ----------------------------------------------------------------

RULES = {
    "the last stage is few bits": lambda stages: stages[-1] == "quantize",
    "a new student somewhere": lambda stages: "distil" in stages,
    "no stage is undone later": lambda stages: lasting(stages) == stages,
    "zeros somewhere": lambda stages: "prune_weights" in stages,
    "what lasts is the recipe for bytes": lambda stages: lasting(stages) == ["distil", "quantize"],
    "what lasts begins with fewer units": lambda stages: lasting(stages)[0] == "prune_neurons",
}


def tried():
    """Return a row for each pipeline of chapter 4.2's search: what it reached, its stages, and what lasts.

    ``network`` is the kind of its last network, which was an MLP at the start. ``good`` is true where it is
    right at least as often as the start was.
    """
    rows = pipeline.stored_runs().query("group == 'search'")
    begin = rows.accuracy.iloc[0]
    found = []
    for recipe, of in rows.groupby("recipe", sort=False):
        stages, last = list(of.stage.iloc[1:]), of.iloc[-1]
        reached = {"accuracy": last.accuracy, "kB": last.bytes / 1e3}
        reached |= {"faster": last["faster 64"], "faster 1": last["faster 1"]}
        student = of.settings[of.stage == "distil"].iloc[-1:].str.contains("cnn").any()
        names = {"stages": stages, "lasts": lasting(stages), "form": last.form}
        names |= {"network": "cnn" if student else "mlp"}
        found.append({"recipe": int(recipe), **names, **reached, "good": bool(last.accuracy >= begin)})
    return pd.DataFrame(found)


def thumb_rows():
    """Return a row for each rule and pipeline: whether it follows the rule, and what it reached."""
    table = tried()
    few = table[["accuracy", "kB", "faster", "good"]].assign(good=table.good.astype(int)).round(4)
    rows = [
        few.assign(rule=rule, follows=[int(holds(stages)) for stages in table.stages])
        for rule, holds in RULES.items()
    ]
    return pd.concat(rows, ignore_index=True)


def thumb_explorer():
    """Return the explorer of rules of thumb: how many pipelines inside a budget follow them."""
    inside = "datum.good && datum.kB <= budget && datum.faster >= speed"

    def draw(runs, chosen):
        scale = alt.Scale(type="log", domain=[0.7, 6_000], nice=False)
        x = alt.X(
            "kB:Q", title="file, kB", scale=scale, axis=alt.Axis(values=[1, 10, 100, 1_000], format=",d")
        )
        domain = alt.Scale(domain=[0, 1], nice=False)
        y = alt.Y("accuracy:Q", title="accuracy", axis=alt.Axis(format="%"), scale=domain)
        marked = chosen.transform_calculate(inside=inside)
        points = marked.mark_circle(size=60).encode(
            x=x,
            y=y,
            color=alt.condition("datum.follows", alt.value(BLUE), alt.value(MUTED)),
            opacity=alt.condition("datum.inside", alt.value(0.95), alt.value(0.2)),
        )
        counted = (
            marked.transform_calculate(hit="datum.inside ? 1 : 0")
            .transform_aggregate(hits="sum(hit)", all="count()", groupby=["follows"])
            .transform_calculate(
                share="datum.hits / datum.all",
                who="datum.follows ? 'follow the rule' : 'do not'",
                shown="datum.hits + ' of ' + datum.all",
            )
        )
        who = alt.Y("who:N", title=None, sort=["follow the rule", "do not"])
        share = alt.X("share:Q", title="share within the budget", axis=alt.Axis(format="%"), scale=domain)
        bars = counted.mark_bar(size=26).encode(
            x=share, y=who, color=alt.condition("datum.follows", alt.value(BLUE), alt.value(MUTED))
        )
        numbers = counted.mark_text(align="left", dx=6).encode(x=share, y=who, text="shown:N")
        return points, (bars + numbers).properties(height=120)

    return Explorer(
        thumb_rows(),
        draw,
        controls=[
            Choice("rule", "Rule", list(RULES)),
            Slider("budget", "At most … kB", scale="log", minimum=1, maximum=5_000),
            Slider("speed", "At least … times as fast", scale="log", minimum=0.5, maximum=150),
        ],
        initial={"rule": "what lasts is the recipe for bytes", "budget": 6, "speed": 1},
        title="What would a rule of thumb have been worth?",
        caption=(
            "Each point is one of the 154 pipelines that chapter 4.2 has tried, blue where it follows the "
            "rule, strong where it is within the budget and right at least as often as the start. The bars "
            "show which share of those that follow the rule, and of the others, is within the budget."
        ),
    )


def best_of(table, tries):
    """Return how small, in kB, the smallest good file of pipelines drawn by lot is, half of the time.

    Of n pipelines the m smallest are all missed with the chance C(n - m, tries) / C(n, tries).

    Args:
      table: of :func:`tried`, or a part of it.
      tries: pipelines in a draw, none of them twice.

    Returns:
      The median over all draws, infinite where half of them hold no good one.
    """
    n = len(table)
    if tries not in range(1, n + 1):
        raise ValueError(f"tries={tries!r} is not allowed: it must be a whole number in [1, {n}]")
    kB = table.kB.where(table.good, float("inf")).sort_values()
    missed = (math.comb(n - m, tries) / math.comb(n, tries) for m in range(1, n + 1))
    return next(size for size, chance in zip(kB, missed, strict=True) if chance <= 0.5)
