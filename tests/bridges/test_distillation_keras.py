"""Distillation in Keras: the Distiller takes the steps of the loop by hand, and those of PyTorch."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import torch
from keras import layers

from dlopt_helpers.bridges.distillation_keras import Distiller, logits
from dlopt_helpers.bridges.distillation_torch import distillation_step
from dlopt_helpers.bridges.distillation_torch import logits as torch_logits
from dlopt_helpers.distillation import distillation_loss
from dlopt_helpers.lab.models import mlp
from dlopt_helpers.lab.twins import keras_twin

torch.set_num_threads(1)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(40, 6)).astype("float32"), RNG.integers(3, size=40)


def net(seed=0, dropout=0.5, **options):
    """Return a network with all that a forward pass in training mode moves."""
    keras.utils.set_random_seed(seed)
    return keras.Sequential(
        [
            *[keras.Input([6]), layers.Dense(16, "relu", **options), layers.BatchNormalization()],
            *[layers.Dropout(dropout, seed=seed), layers.Dense(3)],
        ]
    )


def weights(model):
    """Return all that a model holds, the state of its dropout included."""
    return [variable.numpy() for variable in model.variables]


def assert_same(a, b):
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


def compiled(student, teacher=None, temperature=2.0, alpha=0.5, metrics=("accuracy",), **options):
    distiller = Distiller(student, teacher, temperature, alpha)
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    distiller.compile(optimizer, metrics=list(metrics) or None, **options)
    return distiller


def fit(distiller, y, epochs=3):
    return distiller.fit(X, y, batch_size=10, epochs=epochs, shuffle=False, verbose=0).history


def by_hand(student, teacher, y, temperature, alpha, epochs=3):
    """Return the mean loss of each epoch of the loop that ``fit`` should be."""
    optimizer, means = keras.optimizers.SGD(0.1, momentum=0.9), []
    for _ in range(epochs):
        losses = []
        for i in range(0, len(X), 10):
            v = teacher(X[i : i + 10], training=False)
            labels = None if y is None else tf.constant(y[i : i + 10])
            with tf.GradientTape() as tape:
                z = student(X[i : i + 10], training=True)
                loss = distillation_loss(z, v, labels, temperature, alpha) + sum(student.losses)
            optimizer.apply(tape.gradient(loss, student.trainable_variables), student.trainable_variables)
            losses.append(float(loss))
        means.append(np.mean(losses))
    return means


# --- logits --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_logits_are_those_of_inference(batch_size):
    model = net()
    before = weights(model)
    found = logits(model, X, batch_size)
    assert_same(weights(model), before)
    np.testing.assert_allclose(found, model(X, training=False), atol=1e-6)


# --- steps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("eagerly", [False, True])
@pytest.mark.parametrize("regularizer", [None, "l2"])
@pytest.mark.parametrize("alpha", [0.0, 0.4, 1.0])
def test_fit_is_the_loop_by_hand(alpha, regularizer, eagerly):
    student, teacher = net(0, kernel_regularizer=regularizer), net(1)
    history = fit(compiled(student, teacher, 3.0, alpha, run_eagerly=eagerly), Y)
    own = net(0, kernel_regularizer=regularizer)
    np.testing.assert_allclose(history["loss"], by_hand(own, teacher, Y, 3.0, alpha), rtol=1e-5)
    for one, other in zip(weights(student), weights(own), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-6)


def test_logits_computed_before_give_the_same_steps():
    one, other, teacher = net(0), net(0), net(1)
    known = np.concatenate([teacher(X[i : i + 10], training=False) for i in range(0, 40, 10)])
    first, second = fit(compiled(one, teacher), Y), fit(compiled(other), (Y, known))
    assert first == second and set(first) == {"loss", "accuracy"}
    assert_same(weights(one), weights(other))
    at_once = net(0)
    fit(compiled(at_once), (Y, logits(teacher, X)))  # rounds in another way in a batch of another size
    for a, b in zip(weights(one), weights(at_once), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_the_teacher_alone():
    one, other, own, teacher = *(net(0) for _ in range(3)), net(1)
    distiller = compiled(one, teacher, alpha=1.0, metrics=())
    first = distiller.fit(X, batch_size=10, epochs=3, shuffle=False, verbose=0).history
    second = fit(compiled(other, alpha=1.0, metrics=()), (None, logits(teacher, X)))
    np.testing.assert_allclose(first["loss"], by_hand(own, teacher, None, 2.0, 1.0), rtol=1e-5)
    np.testing.assert_allclose(first["loss"], second["loss"], rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_teacher_stays_bit_for_bit_as_it_is(training):
    student, teacher = net(0), net(1)
    teacher.trainable, teacher.layers[0].trainable = training, not training
    flags = [layer.trainable for layer in teacher.layers]
    start, before = weights(student), weights(teacher)
    distiller = compiled(student, teacher)
    fit(distiller, Y, epochs=8)
    distiller.evaluate(X, Y, verbose=0)
    assert_same(weights(teacher), before)
    assert teacher.trainable == training and [layer.trainable for layer in teacher.layers] == flags
    assert all((a != b).any() for a, b in zip(start, weights(student), strict=True))


def test_the_distiller_holds_the_student_alone():
    student, teacher = net(0), net(1)
    distiller = compiled(student, teacher)
    fit(distiller, Y, epochs=1)
    own = {id(v) for v in student.variables}
    assert {id(v) for v in distiller.trainable_variables} == {id(v) for v in student.trainable_variables}
    assert not {id(v) for v in distiller.variables} & {id(v) for v in teacher.variables}
    assert own <= {id(v) for v in distiller.variables}


def test_steps_of_torch_and_of_keras():
    student, teacher = mlp(hidden=20, seed=0), mlp(seed=1)
    with torch.no_grad():
        teacher[-1].weight.mul_(20)  # so that it knows something
    twin = compiled(keras_twin(student), keras_twin(teacher), 4.0, 0.7, metrics=())
    optimizer = torch.optim.SGD(student.parameters(), 0.1, momentum=0.9)
    rng, losses = np.random.default_rng(0), []
    for _ in range(100):
        x = rng.normal(size=(50, 40)).astype("float32")
        y = torch_logits(teacher, x).argmax(1)
        step = distillation_step(student, teacher, optimizer, torch.as_tensor(x), y, 4.0, 0.7)
        twin.reset_metrics()  # else Keras reports the mean over all steps so far
        losses.append((step, float(twin.train_on_batch(x, y.numpy()))))
    by_torch, by_keras = np.array(losses).T
    assert by_torch[-1] < 0.7 * by_torch[0]
    np.testing.assert_allclose(by_torch, by_keras, rtol=0, atol=1e-5)  # seen: 6e-7
    np.testing.assert_allclose(torch_logits(student, x), logits(twin, x), atol=1e-5)


def test_half_precision_scales_the_loss():
    """The optimizer divides the gradients by the scale: a loss without it would hardly move the student."""
    student, teacher = net(0, dropout=0.0), net(1)
    own = net(0, dropout=0.0)
    scaled = Distiller(student, teacher, 2.0, 0.5)
    scaled.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=1024.0))
    plain = Distiller(own, teacher, 2.0, 0.5)
    plain.compile(keras.optimizers.SGD(0.1))
    np.testing.assert_allclose(fit(scaled, Y)["loss"], fit(plain, Y)["loss"], rtol=1e-5)
    for one, other in zip(weights(student), weights(own), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)


# --- what Keras does around the steps ------------------------------------------------------------


def test_calling_predicting_and_evaluating():
    student, teacher = net(0), net(1)
    distiller = compiled(student, teacher)
    fit(distiller, Y)
    z = student(X, training=False)
    np.testing.assert_array_equal(distiller(X), z)
    np.testing.assert_allclose(distiller.predict(X, verbose=0), z, atol=1e-6)
    loss, accuracy = distiller.evaluate(X, Y, batch_size=16, verbose=0)  # the last batch is smaller
    expected = keras.losses.SparseCategoricalCrossentropy(from_logits=True)(Y, z)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    assert accuracy == pytest.approx((z.numpy().argmax(1) == Y).mean())


def test_the_call_passes_the_mode_on():
    distiller = Distiller(net(0))
    assert (distiller(X, training=True).numpy() != distiller(X, training=False).numpy()).any()


def test_metrics_and_validation_with_the_pair():
    distiller, v = compiled(net(0)), logits(net(1), X)
    history = distiller.fit(X, (Y, v), validation_data=(X, Y), epochs=2, verbose=0).history
    assert set(history) == {"loss", "accuracy", "val_loss", "val_accuracy"}
    assert distiller.evaluate(X, (Y, v), verbose=0) == distiller.evaluate(X, Y, verbose=0)
    history = distiller.fit(X, (Y, v), validation_split=0.25, verbose=0).history
    assert history["val_loss"][0] == pytest.approx(distiller.evaluate(X[30:], Y[30:], verbose=0)[0])


def test_a_data_set_of_tensorflow():
    one, other, teacher = net(0), net(0), net(1)
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(10)
    history = compiled(one, teacher).fit(data, epochs=3, verbose=0).history
    expected = fit(compiled(other, teacher), Y)
    assert set(history) == set(expected)
    for name, values in expected.items():  # on some processors a sum's last bit hangs on where the data lie
        assert history[name] == pytest.approx(values, rel=1e-6), name


def test_a_student_that_is_built_by_its_first_batch():
    distiller = compiled(keras.Sequential([layers.Dense(8, "relu"), layers.Dense(3)]), net(1))
    history = fit(distiller, Y, epochs=20)
    assert history["loss"][-1] < history["loss"][0]


def test_the_student_is_saved_alone(tmp_path):
    student = net(0)
    distiller = compiled(student, net(1))
    fit(distiller, Y)
    distiller.student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras")
    assert type(loaded) is keras.Sequential
    assert_same(loaded.get_weights(), student.get_weights())
    with pytest.raises(NotImplementedError):
        distiller.save(tmp_path / "distiller.keras")
    distiller.save_weights(tmp_path / "all.weights.h5")
    other = compiled(net(2))
    other.build(X.shape)
    other.load_weights(tmp_path / "all.weights.h5")
    assert_same(other.student.get_weights(), student.get_weights())


def test_xla_is_left_out():
    """It is the default of Keras on a GPU."""
    assert not Distiller(net(0)).supports_jit
    with pytest.warns(UserWarning, match="jit_compile"):
        distiller = compiled(net(0), net(1), jit_compile=True)
    fit(distiller, Y)


QUIET = """
import numpy as np, keras
from dlopt_helpers.bridges.distillation_keras import Distiller
student, teacher = (keras.Sequential([keras.Input([4]), keras.layers.Dense(3)]) for _ in "ab")
x, y = np.ones((8, 4), "float32"), np.zeros(8, int)
distiller = Distiller(student, teacher, 2.0, 0.5)
distiller.compile("sgd", metrics=["accuracy"])
distiller.fit(x, y, verbose=0)
distiller.evaluate(x, y, verbose=0)
distiller.predict(x, verbose=0)
"""


def test_fit_prints_no_warning():
    """In a new process: what TensorFlow has to say of a function, it says once."""
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert not [s for s in ("AutoGraph", "WARNING:tensorflow", "Warning") if s in done.stderr], done.stderr


# --- what is refused -----------------------------------------------------------------------------

PROBABLE = np.eye(3, dtype="float32")[Y]


@pytest.mark.parametrize(
    "options, named",
    [
        ({"temperature": 0}, "temperature=0 "),
        ({"temperature": "2"}, "temperature='2'"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"alpha": -0.1}, r"alpha=-0\.1"),
        ({"alpha": 2}, "alpha=2"),
    ],
)
def test_bad_settings_are_named_at_once(options, named):
    with pytest.raises(ValueError, match=named):
        Distiller(net(0), net(1), **options)


def test_teacher_and_student_share_nothing_that_is_trained():
    student = net(0)
    with pytest.raises(ValueError, match="teacher holds a variable that the student trains"):
        Distiller(student, student)
    with pytest.raises(ValueError, match="teacher holds a variable that the student trains"):
        Distiller(student, keras.Sequential([*student.layers[:-1], layers.Dense(3)]))
    student.layers[0].trainable = student.layers[1].trainable = False
    Distiller(student, keras.Sequential([*student.layers[:-1], layers.Dense(3)]))


@pytest.mark.parametrize(
    "teacher, y, named",
    [
        (False, Y, "y holds no teacher's logits"),
        (False, None, "y holds no teacher's logits"),
        (False, (None, PROBABLE), r"alpha=0\.5 .* 1 where there are no labels"),
        (False, (Y, PROBABLE[:, :2]), r"student has the shape .* and teacher"),
        (True, None, r"alpha=0\.5 .* 1 where there are no labels"),
        (True, (Y, PROBABLE), r"labels=\("),
        (True, Y[:, None], "labels has the shape"),
        (True, PROBABLE, "labels has the shape"),
    ],
)
def test_bad_targets_are_named_and_change_nothing(teacher, y, named):
    student = net(0)
    before = weights(student)
    with pytest.raises(ValueError, match=named):
        fit(compiled(student, net(1) if teacher else None, metrics=()), y)
    assert_same(weights(student), before)


def test_weighted_examples_are_refused():
    distiller = compiled(net(0), net(1))
    for options in ({"sample_weight": np.ones(40)}, {"class_weight": {0: 1.0, 1: 2.0, 2: 1.0}}):
        with pytest.raises(ValueError, match="sample_weight or class_weight is given"):
            distiller.fit(X, Y, verbose=0, **options)
    with pytest.raises(ValueError, match="sample_weight or class_weight is given"):
        distiller.evaluate(X, Y, verbose=0, sample_weight=np.ones(40))


def test_evaluating_needs_labels():
    with pytest.raises(ValueError, match="labels=None"):
        compiled(net(0), metrics=()).evaluate(X, verbose=0)
