r"""Knowledge distillation, as in chapter 3.4: what a student learns from its teacher's logits.

Arrays may be of NumPy, PyTorch or TensorFlow. The modules ``distillation_torch`` and
``distillation_keras`` of :mod:`dlopt_helpers.bridges` train with these losses.
"""

import numpy as np
from autoray import numpy as anp

from dlopt_helpers._require import refuse, require_array, require_one


def soften(logits, temperature=1.0):
    r"""Return the probabilities that logits stand for at a temperature.

    .. math:: p_i = \frac{e^{z_i/T}}{\sum_j e^{z_j/T}}

    A high temperature shows how the classes that lost compare with each other. The ranking stays.

    Args:
      logits: :math:`z`, an array whose last axis is that of the classes.
      temperature: :math:`T > 0`; 1 is the usual softmax.

    Returns:
      An array of the shape and dtype of ``logits``; along the last axis it sums to 1.

    Raises:
      ValueError: if ``logits`` is no array of finite numbers or ``temperature`` is not above 0.

    Example:
      >>> import numpy as np
      >>> soften(np.array([2000.0, 1000.0, 0.0]), temperature=1000).round(3)
      array([0.665, 0.245, 0.09 ])

    References:
      Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".
    """
    return anp.exp(log_soften(logits, temperature))


def log_soften(logits, temperature=1.0):
    r"""Return the logarithms of :func:`soften`, exact also where a probability is too small for a float.

    .. math:: \log p_i = z_i/T - \log \textstyle\sum_j e^{z_j/T}

    Args, shapes and errors are those of :func:`soften`.

    Example:
      >>> import numpy as np
      >>> log_soften(np.array([2000.0, 0.0]))
      array([    0., -2000.])
    """
    _require_logits("logits", logits)
    require_one("temperature", temperature, "a finite number > 0", lambda t: t > 0)
    # Less the maximum p stays the same, and no quotient or exponential overflows.
    z = (logits - anp.max(logits, axis=-1, keepdims=True)) / temperature
    return z - anp.log(anp.sum(anp.exp(z), axis=-1, keepdims=True))


def kl(log_p, log_q):
    r"""Return the Kullback-Leibler divergence of ``q`` from ``p``: what it costs to take ``q`` for ``p``.

    .. math:: \mathrm{KL}(p\,\|\,q) = \sum_i p_i\,(\log p_i - \log q_i)

    Args:
      log_p: logarithms of the true probabilities, an array whose last axis is that of the classes.
      log_q: logarithms of those that stand for them, of the same shape.

    Returns:
      An array without the last axis, in nats, never below 0 but for rounding.

    Raises:
      ValueError: if an argument is no array of finite numbers, or the shapes differ.

    Example:
      >>> import numpy as np
      >>> print(kl(np.log([0.5, 0.5]), np.log([0.8, 0.2])).round(3))
      0.223
    """
    _require_same_shape(log_p=log_p, log_q=log_q)
    return anp.sum(anp.exp(log_p) * (log_p - log_q), axis=-1)


def cross_entropy(logits, labels):
    r"""Return the mean cost of the labels, in nats.

    .. math:: -\tfrac1n \textstyle\sum_k \log p_{k,y_k}

    Args:
      logits: of shape ``(..., classes)``.
      labels: :math:`y`, whole numbers of shape ``(...)``.

    Raises:
      ValueError: if a label is no class, or the shapes do not fit. (In a tensor such a label makes the
        loss nan, where the framework does not refuse it.)

    Example:
      >>> import numpy as np
      >>> print(cross_entropy(np.zeros((2, 4)), np.array([0, 3])).round(3))
      1.386
    """
    _require_logits("logits", logits)
    classes = logits.shape[-1]

    def is_class(y):
        return (y >= 0) & (y < classes)

    allowed = f"an array of whole numbers in [0, {classes}), the classes of logits"
    require_array("labels", labels, allowed)
    if isinstance(labels, np.ndarray) and not (labels.dtype.kind in "iu" and is_class(labels).all()):
        refuse("labels", labels, allowed)
    if tuple(labels.shape) != tuple(logits.shape[:-1]):
        raise ValueError(
            f"labels has the shape {tuple(labels.shape)}: for logits of shape {tuple(logits.shape)} "
            f"it must be {tuple(logits.shape[:-1])}"
        )
    labels = labels[..., None]
    log_p = anp.take_along_axis(log_soften(logits), labels, -1)
    # Without this a tensor's label -1 would be taken for the last class.
    return -anp.mean(anp.where(is_class(labels), log_p, float("nan")))


def distillation_loss(student, teacher, labels=None, temperature=1.0, alpha=1.0):
    r"""Return the loss of a student that learns from its teacher's logits and from labels.

    .. math::
      L = \alpha\,T^2\,\overline{\mathrm{KL}(p_T(v)\,\|\,p_T(z))} + (1-\alpha)\,\overline{-\log p_1(z)_y}

    with the means over all examples. :math:`T^2` keeps the two terms in proportion: the gradient of the
    divergence falls as :math:`1/T^2`,

    .. math::
      \frac{\partial\,\mathrm{KL}}{\partial z_i} = \tfrac1T\bigl(p_T(z)_i - p_T(v)_i\bigr)
      \approx \tfrac{1}{C\,T^2}\,(z_i - v_i) \quad\text{for large } T

    and centred logits of :math:`C` classes. No gradient reaches the teacher.

    Args:
      student: its logits :math:`z`, of shape ``(..., classes)``.
      teacher: its teacher's logits :math:`v`, of the same shape.
      labels: the classes :math:`y`, whole numbers of shape ``(...)``; with ``alpha=1`` none are needed.
      temperature: :math:`T > 0`.
      alpha: :math:`\alpha` in [0, 1], the share of the teacher.

    Returns:
      A number.

    Raises:
      ValueError: if an argument is not allowed or the shapes do not fit.

    Example:
      >>> import numpy as np
      >>> z, v = np.array([[1.0, 0.0]]), np.array([[3.0, 0.0]])
      >>> print(distillation_loss(z, v, np.array([0]), temperature=2, alpha=0.9).round(3))
      0.356

    Note:
      Without labels and at ``temperature=1`` this is the cross-entropy with the teacher's probabilities,
      but for a constant, its entropy.

    References:
      Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network".
    """
    _require_same_shape(student=student, teacher=teacher)
    require_one("alpha", alpha, "a number in [0, 1]", lambda a: (a >= 0) & (a <= 1))
    require_one("temperature", temperature, "a finite number > 0", lambda t: t > 0)
    log_p = log_soften(anp.stop_gradient(teacher), temperature)
    soft = temperature**2 * anp.mean(kl(log_p, log_soften(student, temperature)))
    if labels is None:
        require_one("alpha", alpha, "1 where there are no labels", lambda a: a == 1)
        return soft
    return alpha * soft + (1 - alpha) * cross_entropy(student, labels)


def hint_loss(student, teacher, projection=None):
    r"""Return how far a student's features are from its teacher's.

    .. math:: L = \tfrac12\,\overline{\lVert h_\text{teacher} - h_\text{student} R \rVert^2}

    with the mean over all examples. No gradient reaches the teacher.

    Args:
      student: the output of a hidden layer, of shape ``(..., units)``.
      teacher: that of a hidden layer of the teacher, of shape ``(..., teacher's units)``.
      projection: :math:`R`, of shape ``(units, teacher's units)``, trained with the student. Needed
        where the two have different numbers of units.

    Raises:
      ValueError: if an argument is no array of finite numbers, or the shapes do not fit.

    Example:
      >>> import numpy as np
      >>> print(hint_loss(np.array([[1.0, 2.0]]), np.array([[0.0, 0.0, 3.0]]), projection=np.ones((2, 3))))
      9.0

    References:
      Romero et al. 2015, "FitNets: hints for thin deep nets".
    """
    _require_logits("student", student)
    _require_logits("teacher", teacher)
    if projection is not None:
        require_array("projection", projection, axes=2)
        if student.shape[-1] != projection.shape[0]:
            raise ValueError(
                f"projection has {projection.shape[0]} rows: it must have {student.shape[-1]}, one for each "
                "unit of the student"
            )
        student = student @ projection
    elif student.shape[-1] != teacher.shape[-1]:
        shapes = f"student has the shape {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
        raise ValueError(f"{shapes}: they must be equal, or projection must be given")
    _require_same_shape(student=student, teacher=teacher)
    return anp.mean(anp.sum((anp.stop_gradient(teacher) - student) ** 2, axis=-1)) / 2


def _require_logits(name, x):
    require_array(name, x)
    if not len(x.shape):
        raise ValueError(f"{name} has no axis: it must have one or more, the last that of classes or units")


def _require_same_shape(**arrays):
    for name, x in arrays.items():
        _require_logits(name, x)
    (name_a, a), (name_b, b) = ((name, tuple(x.shape)) for name, x in arrays.items())
    if a != b:
        raise ValueError(f"{name_a} has the shape {a} and {name_b} {b}: they must be equal")
