"""Distillation's losses against the frameworks' own, and the bugs that they are famous for."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch.nn import functional

from dlopt_helpers.distillation import (
    cross_entropy,
    distillation_loss,
    hint_loss,
    kl,
    log_soften,
    soften,
)

CLOSE = {"float32": 1e-6, "float64": 2e-15}  # seen in the loss: 2e-7 and 3e-16
SETTINGS = list(itertools.product([0.5, 1.0, 4.0], [0.0, 0.3, 1.0]))
SOFTENERS = [soften, log_soften]

temperatures = st.floats(0.05, 1000)
some_logits = arrays("float64", array_shapes(min_dims=1, max_dims=3), elements=st.floats(-1e4, 1e4))
two_logits = array_shapes(min_dims=1, max_dims=3).flatmap(
    lambda shape: st.tuples(*[arrays("float64", shape, elements=st.floats(-50, 50))] * 2)
)


def plain(f, *inputs):
    return f(*inputs)


def torches(f, *inputs):
    return f(*map(torch.as_tensor, inputs)).numpy()


def eager(f, *inputs):
    return f(*map(tf.constant, inputs)).numpy()


def graph(f, *inputs):
    return tf.function(f, autograph=False)(*map(tf.constant, inputs)).numpy()


every_kind = pytest.mark.parametrize("run", [plain, torches, eager, graph])
every_dtype = pytest.mark.parametrize("dtype", CLOSE)


def example(dtype="float64", shape=(7, 5), seed=0):
    """Return logits of a student and of a teacher, and labels; no two rows or columns are alike."""
    rng = np.random.default_rng(seed)
    z, v = (3 * rng.normal(size=(2, *shape))).astype(dtype)
    return z, v, rng.integers(shape[-1], size=shape[:-1])


def torch_loss(z, v, y, temperature, alpha):
    """Return the loss by PyTorch's own functions, in float64, of flat batches."""
    z, v = (torch.as_tensor(a, dtype=torch.float64).reshape(-1, a.shape[-1]) for a in (z, v))
    log_q, log_p = (functional.log_softmax(a / temperature, dim=-1) for a in (z, v))
    soft = functional.kl_div(log_q, log_p, log_target=True, reduction="batchmean")
    hard = functional.cross_entropy(z, torch.as_tensor(y).flatten())
    return (alpha * temperature**2 * soft + (1 - alpha) * hard).numpy()


def gradient(z, v, y, temperature, alpha):
    """Return the gradient with respect to the student's logits, by the formula."""
    p_z, p_v = (np.asarray(tf.nn.softmax(a / temperature)) for a in (z, v))
    hard = np.asarray(tf.nn.softmax(z)) - np.eye(z.shape[-1])[y]
    return (alpha * temperature * (p_z - p_v) + (1 - alpha) * hard) / len(z)


def torch_gradient(f, z, *rest):
    z = torch.tensor(z, requires_grad=True)
    f(z, *map(torch.as_tensor, rest)).backward()
    return z.grad.numpy()


def tf_gradient(f, z, *rest):
    z, rest = tf.constant(z), [tf.constant(a) for a in rest]
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = f(z, *rest)
    return tape.gradient(loss, z).numpy()


def loss_at(temperature, alpha):
    return lambda z, v, y: distillation_loss(z, v, y, temperature, alpha)


# --- softmax with a temperature ------------------------------------------------------------------


@every_kind
@every_dtype
@pytest.mark.parametrize("temperature", [0.5, 1, 4.0])
def test_soften_is_the_frameworks_softmax(run, dtype, temperature):
    z = example(dtype, shape=(2, 7, 5))[0]
    p, log_p = (run(lambda z, f=f: f(z, temperature), z) for f in SOFTENERS)
    assert p.dtype == log_p.dtype == dtype and p.shape == log_p.shape == z.shape
    close = {"rtol": 10 * CLOSE[dtype], "atol": CLOSE[dtype]}
    np.testing.assert_allclose(p, functional.softmax(torch.tensor(z) / temperature, -1), **close)
    np.testing.assert_allclose(p, tf.nn.softmax(z / np.array(temperature, dtype)), **close)
    np.testing.assert_allclose(log_p, functional.log_softmax(torch.tensor(z) / temperature, -1), **close)


@every_kind
@pytest.mark.parametrize("temperature", [1.0, 1e-3, 1e-30, 1e30])
def test_huge_logits_and_extreme_temperatures(run, temperature):
    z = np.array([[1e4, -1e4, 9e3], [-1e4, -1e4, -1e4], [0, 0, -1e4]], "float32")  # rows of unlike size
    expected = np.array([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0.5, 0]])
    p = run(lambda z: soften(z, temperature), z)
    np.testing.assert_allclose(p, expected if temperature <= 1 else np.full((3, 3), 1 / 3), rtol=1e-6)


@every_kind
def test_logarithms_of_what_no_float_holds(run):
    np.testing.assert_array_equal(run(log_soften, np.array([1e4, 0], "float32")), [0, -1e4])


@given(z=some_logits, temperature=temperatures)
def test_soften_sums_to_one_and_keeps_the_ranking(z, temperature):
    p = soften(z, temperature)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-12)
    assert (np.diff(np.take_along_axis(p, z.argsort(-1), -1)) >= 0).all()


@given(z=some_logits, temperature=temperatures, shift=st.floats(-1e4, 1e4))
def test_only_differences_of_logits_count(z, temperature, shift):
    np.testing.assert_allclose(soften(z + shift, temperature), soften(z, temperature), atol=1e-9)


@given(z=some_logits, temperature=temperatures)
def test_a_temperature_divides_the_logits(z, temperature):
    np.testing.assert_allclose(soften(z, temperature), soften(z / temperature), atol=1e-9)


def test_a_higher_temperature_is_softer():
    z = example()[0]
    entropies = [-(p * np.log(p)).sum(-1) for p in (soften(z, t) for t in (0.2, 1, 5, 50))]
    assert (np.diff(entropies, axis=0) > 0).all()
    np.testing.assert_allclose(soften(z, 1e9), 1 / 5, rtol=1e-7)


# --- values --------------------------------------------------------------------------------------


@every_kind
@every_dtype
@pytest.mark.parametrize("temperature, alpha", SETTINGS)
@pytest.mark.parametrize("shape", [(7, 5), (2, 3, 4)])
def test_the_loss_is_that_of_torch(run, dtype, temperature, alpha, shape):
    z, v, y = example(dtype, shape)
    loss = run(loss_at(temperature, alpha), z, v, y)
    assert loss.shape == () and loss.dtype == dtype
    np.testing.assert_allclose(loss, torch_loss(z, v, y, temperature, alpha), rtol=CLOSE[dtype])


@every_kind
def test_parts_of_the_loss_are_those_of_tensorflow(run):
    z, v, y = example()
    hard = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, z))
    np.testing.assert_allclose(run(cross_entropy, z, y), hard, rtol=1e-14)
    p = tf.nn.softmax(v)
    with_student, with_itself = (tf.nn.softmax_cross_entropy_with_logits(p, a) for a in (z, v))
    divergence = run(lambda v, z: kl(log_soften(v), log_soften(z)), v, z)
    np.testing.assert_allclose(divergence, with_student - with_itself, rtol=1e-13)
    loss = run(distillation_loss, z, v)
    np.testing.assert_allclose(loss, tf.reduce_mean(with_student - with_itself), rtol=1e-13)


def test_the_loss_by_hand():
    z, v = np.log([[0.5, 0.5]]), np.log([[0.8, 0.2]])
    soft = 0.8 * math.log(0.8 / 0.5) + 0.2 * math.log(0.2 / 0.5)
    assert distillation_loss(z, v) == pytest.approx(soft)
    assert distillation_loss(z, v, np.array([1]), alpha=0.3) == pytest.approx(0.3 * soft + 0.7 * math.log(2))


@every_kind
def test_without_labels(run):
    z, v, y = example()
    expected = run(loss_at(3.0, 1.0), z, v, y)
    assert run(lambda z, v: distillation_loss(z, v, temperature=3.0), z, v) == expected > 0


def test_labels_of_any_whole_type():
    z, _, y = example()
    for dtype in ("int8", "int32", "uint8"):
        assert cross_entropy(z, y.astype(dtype)) == cross_entropy(z, y)
    assert eager(cross_entropy, z, y.astype("int32")) == eager(cross_entropy, z, y)


@given(pair=two_logits, temperature=temperatures)
def test_a_divergence_is_not_negative(pair, temperature):
    p, q = (log_soften(z, temperature) for z in pair)
    assert kl(p, q).shape == p.shape[:-1]
    assert (kl(p, q) >= -1e-12).all() and (kl(p, p) == 0).all()


@given(pair=two_logits, temperature=temperatures, alpha=st.floats(0, 1), data=st.data())
def test_alpha_mixes_the_two_terms(pair, temperature, alpha, data):
    z, v = pair
    y = data.draw(arrays("int64", z.shape[:-1], elements=st.integers(0, z.shape[-1] - 1)))
    mixed = alpha * distillation_loss(z, v, y, temperature) + (1 - alpha) * cross_entropy(z, y)
    np.testing.assert_allclose(distillation_loss(z, v, y, temperature, alpha), mixed, rtol=1e-12)


def test_repeating_the_examples_changes_nothing():
    z, v, y = example()
    twice = (np.concatenate([a, a]) for a in (z, v, y))
    assert distillation_loss(*twice, 2.0, 0.5) == pytest.approx(distillation_loss(z, v, y, 2.0, 0.5))


# --- gradients -----------------------------------------------------------------------------------


@every_dtype
@pytest.mark.parametrize("temperature, alpha", SETTINGS)
def test_gradients_are_the_formulas_and_equal(dtype, temperature, alpha):
    z, v, y = example(dtype)
    f = loss_at(temperature, alpha)
    by_torch, by_tf = torch_gradient(f, z, v, y), tf_gradient(f, z, v, y)
    in_graph = graph(lambda z, v, y: tf.gradients(f(z, v, y), z)[0], z, v, y)
    close = {"float32": 2e-7, "float64": 5e-16}[dtype]  # seen: 7e-8 and 8e-17
    expected = gradient(z.astype("float64"), v.astype("float64"), y, temperature, alpha)
    for found in (by_tf, in_graph, expected):
        np.testing.assert_allclose(by_torch, found, rtol=0, atol=close)


@pytest.mark.parametrize("temperature, alpha", SETTINGS)
def test_gradients_are_finite_differences(temperature, alpha):
    z, v, y = example()
    f, h, slopes = loss_at(temperature, alpha), 1e-6, np.empty_like(z)
    for i in np.ndindex(z.shape):
        step = np.zeros_like(z)
        step[i] = h
        slopes[i] = (f(z + step, v, y) - f(z - step, v, y)) / (2 * h)
    np.testing.assert_allclose(torch_gradient(f, z, v, y), slopes, atol=5e-9)  # seen: 9e-10


def test_no_gradient_reaches_the_teacher():
    z, v, y = example()
    student, teacher = (torch.tensor(a, requires_grad=True) for a in (z, v))
    distillation_loss(student, teacher, torch.tensor(y), 2.0, 0.5).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None
    student, teacher = tf.Variable(z), tf.Variable(v)
    with tf.GradientTape() as tape:
        loss = distillation_loss(student + 0, teacher + 0, tf.constant(y), 2.0, 0.5)
    assert tape.gradient(loss, [student, teacher])[1] is None


def test_at_high_temperature_the_gradient_is_the_difference_of_centred_logits():
    z, v, _ = example()
    zc, vc = (a - a.mean(-1, keepdims=True) for a in (z, v))
    found = len(z) * torch_gradient(lambda z, v: distillation_loss(z, v, temperature=1e5), z, v)
    np.testing.assert_allclose(found, (zc - vc) / z.shape[-1], atol=1e-4)


def test_t_squared_keeps_the_gradient_in_proportion():
    z, v, _ = example()

    def ratio(f):
        """Return by how much the gradient falls when the temperature rises from 50 to 200."""
        cold, hot = (torch_gradient(lambda z, v, t=t: f(z, v, t), z, v) for t in (50.0, 200.0))
        return np.linalg.norm(cold) / np.linalg.norm(hot)

    bare = ratio(lambda z, v, t: kl(log_soften(v, t), log_soften(z, t)).mean())
    assert bare == pytest.approx(16, rel=0.1)
    assert ratio(lambda z, v, t: distillation_loss(z, v, temperature=t)) == pytest.approx(1, rel=0.1)


def test_without_labels_at_temperature_one_it_is_cross_entropy_with_soft_targets():
    z, v, _ = example()
    own = torch_gradient(distillation_loss, z, v)
    soft = torch_gradient(lambda z, v: functional.cross_entropy(z, v.softmax(-1)), z, v)
    np.testing.assert_allclose(own, soft, atol=1e-15)


@pytest.mark.parametrize("of_each_student", [None, 0])
def test_vmap_over_temperature_and_alpha(of_each_student):
    v, y = (torch.as_tensor(a) for a in example()[1:])
    students = torch.stack([torch.as_tensor(example(seed=k)[0]) for k in range(3)])
    z = students[0] if of_each_student is None else students
    t, a = torch.tensor([0.5, 2.0, 8.0], dtype=z.dtype), torch.tensor([0.0, 0.4, 1.0], dtype=z.dtype)

    def grad(z, t, a):
        return torch.func.grad_and_value(lambda z: distillation_loss(z, v, y, t, a))(z)

    found = torch.func.vmap(grad, in_dims=(of_each_student, 0, 0))(z, t, a)
    loop = [grad(z if of_each_student is None else z[k], t[k].item(), a[k].item()) for k in range(3)]
    for one, other in zip(found, zip(*loop, strict=True), strict=True):
        torch.testing.assert_close(one, torch.stack(other), rtol=1e-13, atol=1e-15)


# --- hints ---------------------------------------------------------------------------------------


@every_kind
def test_hints_by_hand(run):
    h, g = np.array([[1.0, 2.0], [0.0, 1.0]]), np.array([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    r = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]])
    assert run(hint_loss, h, g, r) == (0.5 * (0 + 4 + 1) + 0.5 * (0 + 1 + 1)) / 2
    assert run(hint_loss, h, h + 1) == 1


def test_hints_move_the_student_and_the_projection_alone():
    shapes, generator = ((5, 3), (5, 4), (3, 4)), torch.Generator().manual_seed(0)
    h, g, r = (torch.randn(shape, requires_grad=True, generator=generator) for shape in shapes)
    hint_loss(h, g, r).backward()
    error = (h @ r - g).detach() / 5
    torch.testing.assert_close(h.grad, error @ r.detach().T)
    torch.testing.assert_close(r.grad, h.detach().T @ error)
    assert g.grad is None


# --- bad input -----------------------------------------------------------------------------------

Z, V, Y = example(shape=(4, 3))
BAD = np.where(Z > 2, np.nan, Z)


@pytest.mark.parametrize(
    "call, named",
    [
        *((lambda f=f: f(BAD), r"logits=array(.|\n)* an array of finite numbers") for f in SOFTENERS),
        *((lambda f=f: f([1.0, 2.0]), r"logits=\[1\.0, 2\.0\]") for f in SOFTENERS),
        *((lambda f=f: f(2.0), r"logits=2\.0") for f in SOFTENERS),
        *(
            (lambda f=f, t=t: f(Z, t), f"temperature={t!r} .* a finite number > 0")
            for f in SOFTENERS
            for t in (0, -1.0, math.nan, math.inf, "2", None, True)
        ),
        (lambda: distillation_loss(Z, V, temperature=0), "temperature=0 "),
        (lambda: distillation_loss(BAD, V), "student=array"),
        (lambda: distillation_loss(Z, BAD), "teacher=array"),
        (lambda: distillation_loss(Z.tolist(), V), r"student=\[\["),
        (lambda: distillation_loss(Z, V[:, :2]), r"student has the shape \(4, 3\) and teacher \(4, 2\)"),
        (lambda: distillation_loss(Z, V[0]), r"student has the shape \(4, 3\) and teacher \(3,\)"),
        (lambda: distillation_loss(torch.tensor(Z), torch.tensor(V[:1])), "teacher"),
        *(
            (lambda a=a: distillation_loss(Z, V, Y, alpha=a), rf"alpha={a!r} .* a number in \[0, 1\]")
            for a in (-0.1, 1.1, math.nan, math.inf, "1", None)
        ),
        (lambda: distillation_loss(Z, V, alpha=0.9), r"alpha=0\.9 .* 1 where there are no labels"),
        (lambda: distillation_loss(Z, V, Y + 1, alpha=0.5), r"labels=array.* whole numbers in \[0, 3\)"),
        (lambda: cross_entropy(BAD, Y), "logits=array"),
        (lambda: cross_entropy(Z.tolist(), Y), r"logits=\[\["),
        *(
            (lambda y=y: cross_entropy(Z, y), "labels=")
            for y in (Y - 1, Y + 3, Y.astype(float), Y > 0, Y.astype(str), Y.tolist(), 1, None, np.eye(3)[Y])
        ),
        *(
            (lambda y=y: cross_entropy(Z, y), r"labels(=.* in \[0, 3\)| has the shape .* must be \(4,\))")
            for y in (Y[:3], Y[:, None], np.eye(3, dtype=int)[Y], Y[0])
        ),
        *(
            (lambda f=f: cross_entropy(f(Z), f(np.eye(3, dtype=int)[Y])), r"labels has the shape \(4, 3\)")
            for f in (torch.tensor, tf.constant)
        ),
        (lambda: kl(Z, V[:1]), r"log_p has the shape \(4, 3\) and log_q \(1, 3\)"),
        (lambda: kl(BAD, V), "log_p=array"),
        (lambda: hint_loss(Z, V[:, :2]), r"student has the shape \(4, 3\) and teacher \(4, 2\)"),
        (lambda: hint_loss(Z, V, np.ones((2, 3))), "projection has 2 rows: it must have 3"),
        (lambda: hint_loss(Z, V, np.ones((3, 2))), "student has the shape"),
        (lambda: hint_loss(Z, BAD), "teacher=array"),
    ],
)
def test_bad_input_is_named(call, named):
    with pytest.raises(ValueError, match=named):
        call()


@pytest.mark.parametrize("label", [-1, 3])
def test_a_tensors_label_that_is_no_class_is_not_taken_for_another(label):
    y = np.where(np.arange(4) == 2, label, Y)
    assert np.isnan(torches(cross_entropy, Z, y))
    for run in (eager, graph):
        try:
            assert np.isnan(run(cross_entropy, Z, y))
        except tf.errors.InvalidArgumentError:
            assert label == 3
