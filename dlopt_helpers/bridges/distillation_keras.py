"""A Keras model that trains a student by distillation."""

import keras
import numpy as np
import tensorflow as tf

from dlopt_helpers._require import require_array, require_kind, require_whole
from dlopt_helpers.distillation import cross_entropy, distillation_loss


def logits(model, x, batch_size=1000):
    """Return the logits of a model in inference mode, as a teacher gives them.

    Where examples are not changed at random, the logits of all of them are computed once, before the
    training.

    Args:
      model: a ``keras.Model`` with one output.
      x: examples along the first axis, as for ``model.predict``.
      batch_size: examples that are passed through the model at a time.

    Returns:
      A NumPy array.

    Raises:
      ValueError: if ``model`` or ``x`` is none, or ``batch_size`` no whole number >= 1.

    Example:
      >>> model = keras.Sequential([keras.Input([3]), keras.layers.Dense(2), keras.layers.Dropout(0.5)])
      >>> logits(model, np.ones((5, 3))).shape
      (5, 2)
    """
    require_kind("model", model, keras.Model, "a keras.Model")
    batch_size = require_whole("batch_size", batch_size, 1)
    require_array("x", x)
    if not len(x.shape) or not x.shape[0]:
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must hold at least one example")
    try:
        return model.predict(x, batch_size=batch_size, verbose=0)
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must be what model takes: {error}") from error


class Distiller(keras.Model):
    """Train a student by :func:`~dlopt_helpers.distillation.distillation_loss` with ``fit``.

    ``compile`` takes the optimizer and the metrics, no loss. Called, it answers as the student does;
    ``evaluate`` gives the student's cross-entropy with the labels, and the metrics. The teacher answers
    in inference mode and is no part of the model: all that it holds stays bit for bit as it is. Save
    ``distiller.student``: a Distiller itself cannot be saved whole.

    Args:
      student: a ``keras.Model`` that maps examples to logits. Its regularisers add to the loss.
      teacher: another, for ``fit(x, labels)``, or ``fit(x)`` with ``alpha=1`` and no metrics. Without it,
        ``fit(x, (labels, v))`` takes its logits ``v`` from :func:`logits`, and ``fit(x, (None, v))``
        those alone.
      temperature: as in the loss.
      alpha: the share of the teacher, as in the loss.

    Raises:
      ValueError: if ``temperature`` or ``alpha`` is not allowed, or the teacher holds a variable that the
        student trains; in ``fit``, before the first step, if labels or the teacher's logits are missing
        or of a wrong shape, or examples are weighted.

    Example:
      >>> student, teacher = (keras.Sequential([keras.Input([3]), keras.layers.Dense(2)]) for _ in "st")
      >>> distiller = Distiller(student, teacher, temperature=2.0, alpha=0.9)
      >>> distiller.compile(keras.optimizers.SGD(0.1), metrics=["accuracy"])
      >>> history = distiller.fit(np.ones((4, 3)), np.zeros(4, int), verbose=0)
    """

    def __init__(self, student, teacher=None, temperature=1.0, alpha=1.0):
        super().__init__()
        require_kind("student", student, keras.Model, "a keras.Model")
        if teacher is not None:
            require_kind("teacher", teacher, keras.Model, "a keras.Model or None")
        self.supports_jit = False  # XLA cannot pick the labels' terms from a batch of any size
        distillation_loss(*np.zeros((2, 1, 2)), np.zeros(1, int), temperature, alpha)  # refuses bad ones now
        own = {id(v) for v in student.trainable_variables}
        if teacher and any(id(v) in own for v in teacher.variables):
            raise ValueError("teacher holds a variable that the student trains: give it a copy")
        self.student, self.temperature, self.alpha = student, temperature, alpha
        # In a function, so that Keras does not take the teacher's variables for the Distiller's.
        self._teach = (lambda x: teacher(x, training=False)) if teacher else None

    def call(self, x, training=None):
        """Return the student's logits."""
        return self.student(x, training=training)

    def train_step(self, data):
        """Make one training step; ``fit`` calls this."""
        x, y = _unpack(data)
        labels, v = (y, self._teach(x)) if self._teach else _pair(y)
        with tf.GradientTape() as tape:
            z = self(x, training=True)
            loss = distillation_loss(z, v, labels, self.temperature, self.alpha) + sum(self.losses)
            scaled = self.optimizer.scale_loss(loss)  # as half precision needs it
        self.optimizer.apply(tape.gradient(scaled, self.trainable_variables), self.trainable_variables)
        return self._report(x, y, z, loss)

    def test_step(self, data):
        """Compare the student with the labels; ``evaluate`` calls this."""
        x, y = _unpack(data)
        z = self(x, training=False)
        return self._report(x, y, z, cross_entropy(z, _labels(y)))

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Compare ``y_pred`` with the labels alone; Keras calls this, too."""
        return super().compute_metrics(x, _labels(y), y_pred)

    def _report(self, x, y, z, loss):
        mean = next(metric for metric in self.metrics if metric.name == "loss")
        mean.update_state(loss, sample_weight=keras.ops.shape(z)[0])
        return self.compute_metrics(x, y, z)


def _unpack(data):
    x, y, weights = keras.utils.unpack_x_y_sample_weight(data)
    if weights is not None:
        raise ValueError("sample_weight or class_weight is given: the loss weights all examples alike")
    return x, y


def _pair(y):
    if not isinstance(y, tuple):
        raise ValueError("y holds no teacher's logits: give a pair (labels, logits), or a teacher")
    return y


def _labels(y):
    return y[0] if isinstance(y, tuple) else y
