"""Tables, formulas and explorers of chapter 5's trend 4: number formats, compilers, layouts, processes."""

import functools
import itertools
import platform
import time
from pathlib import Path
from typing import NamedTuple

import altair as alt
import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from dlopt_helpers._require import require
from dlopt_helpers.lab.measure import device, finished, ratios
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.training import one_thread
from dlopt_helpers.page.explorer import BLUE, GREEN, INK, MUTED, RED, Choice, Explorer, Slider

STORED = Path(__file__).with_suffix(".csv")
WITHOUT_UNITS = STORED.with_stem("trends_hardware_without_units")
BATCHES = [64, 1_024]
VARIANTS = ["autocast", "all bfloat16", "channels last", "compiled"]


# --- formats -------------------------------------------------------------------------------------


class Format(NamedTuple):
    """A floating-point format: bits of the fraction, smallest normal exponent, largest number."""

    fraction: int
    lowest: int
    largest: float


FORMATS = {
    "float32": Format(23, -126, 3.4028234663852886e38),
    "bfloat16": Format(7, -126, 3.3895313892515355e38),
    "float16": Format(10, -14, 65_504.0),
    "float8 e4m3": Format(3, -6, 448.0),
}


def _format(name):
    if name not in FORMATS:
        raise ValueError(f"name={name!r} is not allowed: it must be one of {', '.join(FORMATS)}")
    return FORMATS[name]


def spacing(x, name):
    r"""Return the distance from :math:`|x|` to the next larger number of a format.

    .. math:: q(x) = 2^{\max(\lfloor \log_2 |x| \rfloor,\ e) - f}

    for :math:`f` bits of the fraction and the smallest normal exponent :math:`e`.

    Args:
      x: a number or an array.
      name: one of ``FORMATS``.

    Raises:
      ValueError: if ``x`` is not finite or the format is unknown.

    Example:
      >>> float(spacing(1.0, "bfloat16")), float(spacing(1.0, "float16"))
      (0.0078125, 0.0009765625)
    """
    require("x", x, "finite", lambda x: x == x)
    f = _format(name)
    exponent = np.frexp(x)[1] - 1  # exact, where log2 rounds
    exponent = np.where(np.equal(x, 0), f.lowest, np.maximum(exponent, f.lowest))
    return 2.0 ** (exponent - f.fraction)


def rounded(x, name):
    """Return the nearest number of a format; a tie goes to the even one, and too large becomes infinite.

    Args:
      x: a number or an array.
      name: one of ``FORMATS``. The 8-bit format has no infinity: frameworks give NaN or its largest number.

    Raises:
      ValueError: if ``x`` is not finite or the format is unknown.

    Example:
      >>> float(rounded(1.003, "bfloat16")), float(rounded(1.004, "bfloat16"))
      (1.0, 1.0078125)
    """
    q = spacing(x, name)
    near = np.round(x / q) * q  # NumPy's round, too, takes ties to even
    return np.where(abs(near) > FORMATS[name].largest, np.copysign(np.inf, x), near)


def sparse_share(bits, n=2, m=4):
    r"""Return the bytes of an n:m sparse array as a share of the dense one's.

    .. math:: \frac{n\,b + n \lceil \log_2 m \rceil}{m\,b}

    for :math:`b` bits a value: of each :math:`m` neighbours :math:`n` are stored, each with its place.

    Args:
      bits: of a value, >= 1.
      n: values stored, in [1, m].
      m: the size of a group, >= 2.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> sparse_share(16), sparse_share(8)
      (0.5625, 0.625)

    References:
      Mishra et al. 2021, "Accelerating sparse deep neural networks", arXiv 2104.08378.
    """
    require("bits", bits, "a number >= 1", lambda b: b >= 1)
    require("m", m, "a whole number >= 2", lambda m: (m >= 2) & (m % 1 == 0))
    require("n", n, f"a whole number in [1, {m}]", lambda n: (n >= 1) & (n <= m) & (n % 1 == 0))
    return n * (bits + (int(m) - 1).bit_length()) / (m * bits)


def all_reduce_bytes(size, processes):
    r"""Return the bytes that each process sends in a ring all-reduce.

    .. math:: 2\, \frac{p - 1}{p}\, n

    for :math:`n` bytes of gradients in :math:`p` processes: each of the :math:`p` parts goes round the ring
    once to be summed and once to be handed out.

    Args:
      size: bytes of the gradients, >= 0.
      processes: a number >= 1.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> all_reduce_bytes(100, 1), all_reduce_bytes(100, 2), all_reduce_bytes(100, 4)
      (0.0, 100.0, 150.0)
    """
    require("size", size, "a number >= 0", lambda n: n >= 0)
    require("processes", processes, "a number >= 1", lambda p: p >= 1)
    return 2 * (processes - 1) / processes * size


def parallel_time(compute, size, bandwidth, processes):
    r"""Return the seconds of a data-parallel step whose batch is divided among the processes.

    .. math:: \frac{T}{p} + 2\, \frac{p - 1}{p}\, \frac{n}{B}

    The second term does not fall with :math:`p`: it is what Amdahl calls the serial part. Latency is left
    out, and so is sending while the backward pass still computes.

    Args:
      compute: :math:`T`, seconds of one process with the whole batch, > 0.
      size: :math:`n`, bytes of the gradients.
      bandwidth: :math:`B`, bytes a second that each process can send, > 0.
      processes: :math:`p \ge 1`.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> parallel_time(compute=1.0, size=1e9, bandwidth=1e10, processes=2)
      0.6
    """
    require("compute", compute, "a number > 0", lambda t: t > 0)
    require("bandwidth", bandwidth, "a number > 0", lambda b: b > 0)
    return compute / processes + all_reduce_bytes(size, processes) / bandwidth


def break_even(first, time):
    r"""Return after how many calls compiling has paid: :math:`f / (1 - t)`.

    Args:
      first: :math:`f`, the time of the first call, in which the compiler works, in plain calls.
      time: :math:`t > 0`, the time of each later call, in plain calls. From 1 on it never pays.

    Raises:
      ValueError: if an argument is out of range.

    Example:
      >>> break_even(first=1000, time=0.5), break_even(first=1000, time=1.1)
      (2000.0, inf)
    """
    require("first", first, "a number >= 0", lambda f: f >= 0)
    require("time", time, "a number > 0", lambda t: t > 0)
    return first / (1 - time) if time < 1 else float("inf")


# --- measured ------------------------------------------------------------------------------------


def image_cnn(seed=0):
    """Return a small network of 2-D convolutions for images of 3 x 16 x 16."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = []
        for inputs, outputs, stride in ((3, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


# What makes each network, and the shape of an example.
NETWORKS = {
    "MLP, width 100": (mlp, (40,)),
    "MLP, width 1,024": (functools.partial(mlp, hidden=1_024), (40,)),
    "CNN, 2-D": (image_cnn, (3, 16, 16)),
}


def units():
    """Return which instructions for bfloat16 the processor has, of those that Linux on x86 reports.

    Example:
      >>> isinstance(units(), str)
      True
    """
    info = Path("/proc/cpuinfo")
    flags = set(info.read_text().split()) if info.exists() else set()
    return " ".join(sorted(flags & {"amx_bf16", "avx512_bf16"})) or f"none reported ({platform.machine()})"


def stored_speeds():
    """Return the times that were measured for the book, with ``date``, ``device`` and ``units``.

    ``python benchmarks/trends_hardware.py --store`` measures them anew.
    """
    return pd.read_csv(STORED)


def stored_without_units():
    """Return the times of bfloat16 on the same processor with its units for bfloat16 switched off.

    ``ONEDNN_MAX_CPU_ISA=AVX512_CORE`` in the environment does that on an x86 processor.
    """
    return pd.read_csv(WITHOUT_UNITS)


@one_thread()
def speeds(networks=tuple(NETWORKS), batches=tuple(BATCHES), variants=tuple(VARIANTS), repeats=9):
    """Measure each variant beside the plain float32 network, on the GPU or on one thread.

    Returns:
      A data frame with one row per ``network``, ``batch``, ``work`` (``training``: a step of SGD;
      ``inference``) and ``variant``: ``time``, a multiple of the plain network's, with ``low`` and ``high``,
      between which 90 % of the repeats lie; and ``first``, the time of the first call, in plain calls.
    """
    where, rows = device(), []
    for network, batch, work in itertools.product(networks, batches, ["training", "inference"]):
        shape = NETWORKS[network][1]
        plain = finished(_call(network, batch, work, "plain", where), where)
        plain()
        usual = min(_seconds(plain) for _ in range(3))
        for variant in variants:
            if variant == "channels last" and len(shape) < 3:
                continue
            call = finished(_call(network, batch, work, variant, where), where)
            first = _seconds(call) / usual
            ratio = ratios(call, plain, repeats, calls=max(1, round(0.02 / usual)))
            setting = {"network": network, "batch": batch, "work": work, "variant": variant}
            rows.append(setting | dict(zip(["time", "low", "high"], ratio, strict=True)) | {"first": first})
    return pd.DataFrame(rows)


def _call(network, batch, work, variant, where):
    """Return a function that makes one call of the network, on random inputs."""
    make, shape = NETWORKS[network]
    model, draw = make().to(where), torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=draw).to(where)
    y = torch.randint(10, (batch,), generator=draw).to(where)
    if variant == "all bfloat16":
        model, x = model.bfloat16(), x.bfloat16()
    if variant == "channels last":
        model, x = (thing.to(memory_format=torch.channels_last) for thing in (model, x))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    if variant == "compiled":
        torch._dynamo.reset()  # or a shape seen before would pay for this one
        model = torch.compile(model, dynamic=False)

    def call():
        with (
            torch.autocast(where, torch.bfloat16, enabled=variant == "autocast"),
            torch.set_grad_enabled(work == "training"),
        ):
            out = model(x)
        if work == "training":
            optimizer.zero_grad()
            cross_entropy(out.float(), y).backward()
            optimizer.step()

    return call


def _seconds(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def sparse_speed(size=4_096, repeats=20):
    """Return the time of a product with a 2:4 matrix over that of the dense one, or why there is none.

    It needs NVIDIA's units since Ampere (compute capability 8.0); float16, square matrices.

    Returns:
      A :class:`~dlopt_helpers.lab.measure.Ratio`, or a sentence.
    """
    if not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0):
        return "Not measured: 2:4 products need an NVIDIA GPU of compute capability 8.0 or newer."
    w, x = (torch.randn(size, size, device="cuda", dtype=torch.float16) for _ in range(2))
    w *= torch.tensor([0, 0, 1, 1], device="cuda", dtype=w.dtype).repeat(size // 4)
    sparse = torch.sparse.to_sparse_semi_structured(w)
    one, other = (finished(functools.partial(torch.mm, a, x), "cuda") for a in (sparse, w))
    one(), other()
    return ratios(one, other, repeats, calls=10)


def table(speeds):
    """Return the times as the chapter shows them: a row per network and batch, a column per variant."""
    text = [f"{t:.2g}\xa0({a:.2g}–{b:.2g})" for t, a, b in speeds[["time", "low", "high"]].to_numpy()]
    wide = speeds.assign(text=text).set_index(["work", "network", "batch", "variant"])
    wide = wide.text.unstack(sort=False).fillna("")
    return wide[[variant for variant in VARIANTS if variant in wide]]


# --- explorers -----------------------------------------------------------------------------------

FORMAT_COLOURS = alt.Scale(domain=list(FORMATS), range=[MUTED, BLUE, GREEN, RED])


def format_explorer():
    """Return the explorer of formats: does an update survive?"""
    runs = pd.DataFrame(
        [{"format": n, "fraction": f.fraction, "lowest": f.lowest} for n, f in FORMATS.items()]
    )
    steps = [
        {"name": name, "size": size, "half": float(spacing(size, name) / 2)}
        for name in FORMATS
        for size in 2.0 ** np.arange(-13, 4)
    ]
    q = "pow(2, max(floor(log(weight) / LN2), datum.lowest) - datum.fraction)"
    y = alt.Y("half:Q", title="update", scale=alt.Scale(type="log", domain=[1e-12, 1]))
    x = alt.X("size:Q", title="weight", scale=alt.Scale(type="log", domain=[1e-4, 10], nice=False))

    legend = alt.Legend(orient="bottom", columns=2)

    def draw(runs, chosen):
        lines = (
            alt.Chart(pd.DataFrame(steps))
            .mark_line(interpolate="step-after", clip=True)
            .encode(
                x=x,
                y=y,
                color=alt.Color("name:N", title=None, scale=FORMAT_COLOURS, legend=legend),
                opacity=alt.condition("datum.name == format", alt.value(1), alt.value(0.3)),
            )
        )
        here = chosen.transform_calculate(size="weight", half="update")
        dot = here.mark_point(size=180, opacity=1, color=INK).encode(x=x, y=y)
        grid = alt.Chart(pd.DataFrame({"k": range(-3, 4)})).mark_tick(color=MUTED, thickness=2, size=40)
        at = alt.X("k:Q", title="distance from the weight, in spacings", scale=alt.Scale(domain=[-3.3, 3.3]))
        moved = chosen.transform_calculate(spaces=f"min(update / ({q}), 3.2)")
        moved = moved.transform_calculate(
            exact="datum.spaces",
            kept="datum.spaces <= 0.5 ? 0 : round(datum.spaces)",
            says="datum.spaces <= 0.5 ? 'lost' : 'survives'",
        )
        line = alt.value(140)
        return (
            lines + dot,
            grid.encode(x=at, y=line)
            + moved.mark_point(shape="cross", size=200, color=RED, filled=True, opacity=1).encode(
                x=alt.X("exact:Q"), y=line
            )
            + moved.mark_point(size=320, color=BLUE, filled=False, strokeWidth=3, opacity=1).encode(
                x=alt.X("kept:Q"), y=line
            )
            + moved.mark_text(dy=-50, fontSize=15, fontWeight=600).encode(
                x=alt.value(60), y=line, text="says:N"
            ),
        )

    return Explorer(
        runs,
        draw,
        [
            Choice("format", "Format", list(FORMATS)),
            Slider("weight", "Weight", "log", minimum=1e-3, maximum=8),
            Slider("update", "Update", "log", minimum=1e-10, maximum=0.5),
        ],
        initial={"format": "bfloat16", "weight": 0.1, "update": 1e-4},
        title="Does the update survive?",
        caption=(
            "The panel with lines shows half a spacing: an update below the line of its format is lost. The "
            "panel with ticks shows the numbers of the format beside the weight: the red cross is the exact "
            "sum (it stops at the edge), the blue ring what is kept."
        ),
    )


def speed_explorer():
    """Return the explorer of the stored times."""
    runs = stored_speeds()[["network", "work", "batch", "variant", "time", "low", "high"]].round(3)

    def draw(runs, chosen):
        x = alt.X("time:Q", title="time, plain float32 = 1", scale=alt.Scale(type="log", domain=[0.1, 5]))
        y = alt.Y("variant:N", title=None, sort=VARIANTS)
        bars = chosen.mark_rule(strokeWidth=8, opacity=0.35, color=BLUE, clip=True).encode(
            x=alt.X("low:Q"), x2="high:Q", y=y
        )
        one = alt.Chart(pd.DataFrame({"time": [1]})).mark_rule(strokeDash=[5, 4]).encode(x=x)
        return one + bars + chosen.mark_point(filled=True, size=130, opacity=1, clip=True).encode(x=x, y=y)

    return Explorer(
        runs,
        draw,
        [Choice("network", "Network"), Choice("work", "Work"), Slider("batch", "Batch")],
        initial={"network": "MLP, width 1,024", "work": "training", "batch": 1_024},
        title="What the hardware gives",
        caption=(
            "Stored times as multiples of plain float32's: the dot is the median, the bar holds 90 % of the "
            "repeats. What gains depends on the network, on the batch and on the machine."
        ),
    )


def scaling_explorer():
    """Return the explorer of data-parallel scaling: the formula, and no measurement."""
    many = sorted({*range(1, 17), *(round(2 ** (k / 4)) for k in range(16, 41))})
    runs = pd.DataFrame({"p": many})
    of = "100 / {p} + 2 * ({p} - 1) / {p} * megabytes / bandwidth"  # milliseconds: MB by GB/s

    def draw(runs, chosen):
        p = alt.X("p:Q", title="processes", scale=alt.Scale(type="log", domain=[1, 1_024]))
        log = functools.partial(alt.Scale, type="log", clamp=True)
        t = alt.Y("ms:Q", title="milliseconds a step", scale=log(domain=[0.1, 10_000]))
        e = alt.Y("gain:Q", title="times as fast", scale=log(domain=[0.01, 1_024]))
        line = runs.transform_calculate(ms=of.format(p="datum.p"), compute="100 / datum.p")
        line = line.transform_calculate(gain="100 / datum.ms")
        dot = alt.Chart(pd.DataFrame({"one": [1]})).transform_calculate(
            p="processes", ms=of.format(p="processes")
        )
        dot = dot.transform_calculate(gain="100 / datum.ms").mark_circle(size=160, opacity=1)
        return (
            line.mark_line(strokeDash=[5, 4], color=MUTED).encode(
                x=p, y=alt.Y("compute:Q", scale=log(domain=[0.1, 10_000]))
            )
            + line.mark_line().encode(x=p, y=t)
            + dot.encode(x=p, y=t),
            line.mark_line(strokeDash=[5, 4], color=MUTED).encode(x=p, y=alt.Y("p:Q"))
            + line.mark_line(color=GREEN).encode(x=p, y=e)
            + dot.encode(x=p, y=e, color=alt.value(GREEN)),
        )

    return Explorer(
        runs,
        draw,
        [
            Slider("processes", "Processes", "log", minimum=1, maximum=1_024),
            Slider("megabytes", "Gradients, MB", "log", minimum=1, maximum=10_000),
            Slider("bandwidth", "Link, GB/s", "log", minimum=0.1, maximum=1_000),
        ],
        initial={"processes": 8, "megabytes": 100, "bandwidth": 10},
        title="How far does data-parallel training scale?",
        caption=(
            "By formula, for a step that takes 100 ms on one process. Dashed: if sending cost nothing. With "
            "more and more processes the time tends to twice the gradients' bytes over the link's bandwidth."
        ),
    )
