"""A training step of distillation for PyTorch models."""

import torch

from dlopt_helpers._require import require_kind, require_whole
from dlopt_helpers.bridges.pruning_torch import _as_batch
from dlopt_helpers.distillation import distillation_loss


@torch.no_grad()
def logits(model, x, batch_size=1000):
    """Return the logits of a model in evaluation mode, as a teacher gives them.

    Where examples are not changed at random, the logits of all of them are computed once, before the
    training. Afterwards each part of the model is in the mode it was in, also where the model raises.

    Args:
      model: any module that maps a batch to one tensor.
      x: examples along the first axis, a tensor or NumPy array of the dtype and device of the model.
      batch_size: examples that are passed through the model at a time.

    Returns:
      A tensor without gradient.

    Raises:
      ValueError: if ``model`` or ``x`` is none, or ``batch_size`` no whole number >= 1.

    Example:
      >>> logits(torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Dropout()), torch.ones(5, 3)).shape
      torch.Size([5, 2])
    """
    require_kind("model", model, torch.nn.Module, "an nn.Module")
    batch_size, x = require_whole("batch_size", batch_size, 1), _as_batch(x, empty=True)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        return torch.cat([model(batch) for batch in x.split(batch_size)])
    except RuntimeError as error:
        raise ValueError(f"x has the shape {tuple(x.shape)}: it must be what model takes: {error}") from error
    finally:
        for module, mode in modes.items():
            module.training = mode  # not by train(), which would wake a batch norm frozen by hand


def distillation_step(student, teacher, optimizer, x, labels=None, temperature=1.0, alpha=1.0):
    """Make one training step by :func:`~dlopt_helpers.distillation.distillation_loss`.

    The student is set to training mode, as ``student.train()`` does, and stays in it. A teacher that is
    a module keeps its mode, and all that it holds stays bit for bit as it is.

    Args:
      student: the module to train; it maps a batch to logits.
      teacher: a module, or its logits for ``x``, which :func:`logits` computes.
      optimizer: any ``torch.optim.Optimizer`` of the student's parameters.
      x: a batch of examples, a tensor.
      labels: their classes, a tensor of whole numbers; with ``alpha=1`` none are needed.
      temperature: as in the loss.
      alpha: the share of the teacher, as in the loss.

    Returns:
      The loss before the step, a float.

    Raises:
      ValueError: before anything is changed, if the optimizer holds a parameter of the teacher or none of
        the student, or the loss refuses an argument. (That the student's logits have another shape than
        the teacher's shows after its forward pass, which moves the statistics of a batch norm.)

    Example:
      >>> student, teacher = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
      >>> optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
      >>> loss = distillation_step(student, teacher, optimizer, torch.ones(5, 3), temperature=2.0)
    """
    require_kind("student", student, torch.nn.Module, "an nn.Module")
    require_kind(
        "teacher", teacher, torch.nn.Module | torch.Tensor, "an nn.Module, or its logits as a tensor"
    )
    require_kind("optimizer", optimizer, torch.optim.Optimizer, "a torch.optim.Optimizer")
    require_kind("x", x, torch.Tensor, "a tensor")
    if labels is not None:
        require_kind("labels", labels, torch.Tensor, "a tensor of whole numbers")
    trained = {p for group in optimizer.param_groups for p in group["params"]}
    if trained.isdisjoint(student.parameters()):
        raise ValueError("optimizer holds no parameter of the student: make it of student.parameters()")
    if isinstance(teacher, torch.nn.Module):
        if not trained.isdisjoint(teacher.parameters()):
            raise ValueError("optimizer holds a parameter of the teacher: it must hold the student's alone")
        teacher = logits(teacher, x, batch_size=len(x))
    _check(teacher, labels, temperature, alpha)
    loss = distillation_loss(student.train()(x), teacher, labels, temperature, alpha)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


def _check(teacher, labels, temperature, alpha):
    """Let the loss see the values as NumPy arrays: those of tensors it does not check."""
    teacher = teacher.double().numpy(force=True)
    labels = None if labels is None else labels.numpy(force=True)
    distillation_loss(torch.zeros(teacher.shape).numpy(), teacher, labels, temperature, alpha)
