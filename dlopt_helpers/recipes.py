"""From a situation to a recipe, as in chapter 6: which steps, in which order, and why not the others.

The rules are those that the measurements of the book support, and no more. What they say holds where it was
measured: small networks, one thread of a processor, no graphics card.
"""

from dataclasses import dataclass
from typing import NamedTuple

from dlopt_helpers._require import require_bool, require_kind, require_option

SCARCE = ["file", "one answer", "batch", "training", "labels"]


@dataclass(frozen=True)
class Situation:
    """What is scarce, and what may be done about it.

    Args:
      scarce: ``"file"`` for its bytes, ``"one answer"`` or ``"batch"`` for the time of one example or of
        many at once, ``"training"`` for the time of training, or ``"labels"``.
      training: whether the network may be trained.
      examples: whether there are examples without labels, or ways to alter those with labels.
      integers: whether the runtime multiplies 8-bit integers.
      sparsity: whether zeros count: the file is packed, or the runtime skips them.
      oversized: whether the network is far larger than its task needs.

    Raises:
      ValueError: if ``scarce`` is none of ``SCARCE``, or another argument is neither True nor False.

    Example:
      >>> Situation("batch", training=False).integers
      True
    """

    scarce: str
    training: bool = True
    examples: bool = True
    integers: bool = True
    sparsity: bool = False
    oversized: bool = True

    def __post_init__(self):
        require_option("scarce", self.scarce, SCARCE)
        for name in ("training", "examples", "integers", "sparsity", "oversized"):
            require_bool(**{name: getattr(self, name)})


class Step(NamedTuple):
    """A step of a recipe: its name, what it does to the network, and the section that has measured it."""

    name: str
    phase: str
    why: str
    section: str


# The order of the phases is the order of a recipe.
PHASES = ["look", "examples", "throw away", "train with floats", "bits"]
_STEPS = [
    Step("measure", "look", "bytes, time, and a control", "04_2_combined_pipeline.ipynb#whose-merit-is-it"),
    Step(
        "more examples",
        "examples",
        "a teacher labels what nobody has",
        "03_4_distillation.ipynb#examples-that-nobody-labelled",
    ),
    Step(
        "new student",
        "throw away",
        "small, of a kind that fits the data",
        "04_2_combined_pipeline.ipynb#a-start-that-is-not-too-big",
    ),
    Step("fewer units", "throw away", "smaller shapes, fewer products", "03_3_pruning.ipynb#units"),
    Step(
        "small from the start", "throw away", "within 3.5 points of a pruned one", "03_3_pruning.ipynb#units"
    ),
    Step(
        "weights to zero",
        "train with floats",
        "one by one, gradually, zeros held",
        "03_3_pruning.ipynb#experiment",
    ),
    Step(
        "soft answers",
        "train with floats",
        "a teacher on the same examples",
        "03_4_distillation.ipynb#experiment",
    ),
    Step(
        "cheaper steps",
        "train with floats",
        "fused Adam, cosine, tuned rate",
        "03_2_adam.ipynb#what-a-step-costs",
    ),
    Step("4 bits", "bits", "trained with rounded weights", "03_5_quantization.ipynb#bits-in-numbers"),
    Step(
        "shared numbers",
        "bits",
        "16 or so in each layer, nothing trained",
        "03_5_quantization.ipynb#fewer-bits-in-the-file",
    ),
    Step(
        "8 bits",
        "bits",
        "weights and activations, calibrated",
        "03_5_quantization.ipynb#smaller-faster-as-good-three-claims",
    ),
]
STEPS = {step.name: step for step in _STEPS}


def conditions(s):
    """Return what each step asks for: the reason against it, and whether that reason is out of the way.

    Args:
      s: a :class:`Situation`.

    Example:
      >>> conditions(Situation("file"))["cheaper steps"]
      {'nothing may be trained': True, 'training is not scarce': False}
    """
    require_kind("s", s, Situation, "a Situation")
    file, time = s.scarce == "file", s.scarce in ("one answer", "batch")
    trained = {"nothing may be trained": s.training}
    deployed = {"it saves neither labels nor training": file or time}
    zeros = file and s.sparsity and s.training and not (s.examples or s.oversized)
    small = s.training and (s.oversized or s.scarce == "one answer")  # once its units are cut
    return {
        "measure": {},
        "more examples": trained
        | {"there are none": s.examples, "they lengthen the training": s.scarce != "training"},
        "new student": trained
        | deployed
        | {"without examples it learns less": s.examples, "units cut off are faster": file},
        "fewer units": trained
        | deployed
        | {"the student is small already": time or not s.examples, "zeros save more here": not zeros},
        "small from the start": trained
        | {"it saves training alone": s.scarce == "training", "the network is not too large": s.oversized},
        "weights to zero": trained
        | {"nothing packs or skips zeros": s.sparsity}
        | deployed
        | {"units cut off are faster": file, "a smaller network saves more": zeros},
        "soft answers": trained
        | {"labels are not scarce": s.scarce == "labels", "more examples say more": not s.examples},
        "cheaper steps": trained | {"training is not scarce": s.scarce == "training"},
        "4 bits": trained
        | deployed
        | {"they make no answer faster": file, "zeros go with shared numbers": not zeros},
        "shared numbers": deployed
        | {"they make no answer faster": file, "4 bits, trained, are better": zeros or not s.training},
        "8 bits": {"the runtime has no integer kernels": s.integers}
        | deployed
        | {
            "fewer bits are smaller": time,
            "so small a network is not faster": not small,
        },
    }


def choose(situation):
    """Return the steps for a situation, in order: all that no reason stands against.

    First look, then throw away, then train with floats, and bits last.

    Args:
      situation: a :class:`Situation`.

    Returns:
      A list of :class:`Step`.

    Example:
      >>> [step.name for step in choose(Situation("file"))]
      ['measure', 'more examples', 'new student', '4 bits']
    """
    require_kind("situation", situation, Situation, "a Situation")
    asked = conditions(situation)
    steps = [step for name, step in STEPS.items() if all(asked[name].values())]
    return sorted(steps, key=lambda step: PHASES.index(step.phase))


def against(situation):
    """Return why the other steps are left out: the first reason against each, by its name.

    Example:
      >>> against(Situation("batch"))["4 bits"]
      'they make no answer faster'
    """
    require_kind("situation", situation, Situation, "a Situation")
    asked = conditions(situation)
    return {
        name: next(reason for reason, out_of_the_way in reasons.items() if not out_of_the_way)
        for name, reasons in asked.items()
        if not all(reasons.values())
    }


# What a stage of chapter 4.2 undoes of the stages before it. All but shared weights train with floats.
_BITS = {"quantize", "share_weights"}
UNDOES = {
    "distil": {"distil", "prune_neurons", "prune_weights", "factorise", *_BITS},
    "prune_neurons": _BITS,
    "prune_weights": _BITS,
    "factorise": {"prune_weights", *_BITS},
    "quantize": _BITS,
    "share_weights": _BITS,
}


def lasting(stages):
    """Return the stages of a pipeline that no later stage has undone.

    A new student owes nothing to the network before it; training leaves no grid of few bits; factors have
    no zeros.

    Args:
      stages: names of stages of chapter 4.2, in order.

    Raises:
      ValueError: if a name is no stage.

    Example:
      >>> lasting(["quantize", "prune_neurons", "distil", "share_weights", "quantize"])
      ['distil', 'quantize']
    """
    require_kind("stages", stages, tuple | list, "a list of names of stages")
    for number, name in enumerate(stages):
        require_option(f"stages[{number}]", name, UNDOES)
    return [
        name
        for place, name in enumerate(stages)
        if not any(name in UNDOES[later] for later in stages[place + 1 :])
    ]
