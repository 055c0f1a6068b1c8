"""Losses on the class scores of a classifier, with a softmax because one class excludes the others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.base import FromContext
from distill.losses.context import LossContext

_FLAT = 1e-6  # of a row's size: deviations of less are rounding


def kl(student: Tensor, teacher: Tensor, *, temperature: float = 4.0) -> Tensor:
    """Divergence of the student's softened class probabilities from the teacher's (softmax heads).

        L = T² · mean over images of KL(softmax(t / T) ‖ softmax(s / T))

    T² keeps the gradient about as large as at T = 1.

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.

    Args:
        student: logits of each class.
        teacher: the logits to reach.
        temperature: T; above 1 the unlikely classes count more. 4 is what most of the literature compares at; the
            paper tries 1 to 20 and finds that a small student needs a lower one.

    Shape: (B, nc), (B, nc) -> scalar.
    """
    log_student, log_teacher = (F.log_softmax(logits / temperature, 1) for logits in (student, teacher))
    return temperature**2 * _divergence(log_student, log_teacher)


def dkd(
    student: Tensor,
    teacher: Tensor,
    target: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 8.0,
    temperature: float = 4.0,
) -> Tensor:
    """Divergence of class probabilities in two parts: target against others, and others among themselves (softmax heads).

    With p = softmax(logits / T), y the target, and p̂ the softmax over all classes but y,

        L = T² · mean over images of [alpha · KL((t_y, 1 − t_y) ‖ (s_y, 1 − s_y)) + beta · KL(t̂ ‖ ŝ)]

    In `kl` the second part weighs 1 − t_y: least when the teacher is sure, and says most about the others.

    Reference: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022.

    Args:
        student: logits of each class.
        teacher: the logits to reach.
        target: the class of each image; the teacher's likeliest if None.
        alpha: weight of the target's part.
        beta: weight of the others' part; 8 is the paper's for most pairs of networks, and 0.5 its on ImageNet.
        temperature: T.

    Shape: (B, nc), (B, nc), (B,) -> scalar.

    Raises:
        DistillError: a single class, or targets that are not one class to an image.
    """
    target = _target(teacher, target)
    student_own, student_others = _parts(student / temperature, target)
    teacher_own, teacher_others = _parts(teacher / temperature, target)
    own, others = _divergence(student_own, teacher_own), _divergence(student_others, teacher_others)
    return temperature**2 * (alpha * own + beta * others)


def nkd(
    student: Tensor, teacher: Tensor, target: Tensor | None = None, *, gamma: float = 1.5, temperature: float = 1.0
) -> Tensor:
    """Cross-entropy of the target's probability to the teacher's, and divergence of the normalised others (softmax heads).

    With s and t the probabilities, y the target, and p̂ the softmax of logits / T over all classes but y,

        L = mean over images of [t_y · (log t_y − log s_y) + gamma · T² · KL(t̂ ‖ ŝ)]

    This is the paper's loss minus the teacher's entropy, so the teacher itself would get 0. The first term goes on
    below that: it draws s_y to 1, as strongly as the teacher believes in y.

    Reference: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels, ICCV 2023.

    `gamma` is the weight of the others' part, and `temperature` T, of that part alone.

    Other Args, Shape, Raises: as for `dkd`.
    """
    target = _target(teacher, target)
    student_log, teacher_log = (F.log_softmax(logits, 1).gather(1, target) for logits in (student, teacher))
    own = (teacher_log.exp() * (teacher_log - student_log)).mean()
    _, student_others = _parts(student / temperature, target)
    _, teacher_others = _parts(teacher / temperature, target)
    return own + gamma * temperature**2 * _divergence(student_others, teacher_others)


def dist(
    student: Tensor, teacher: Tensor, *, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """How badly probabilities correlate with the teacher's, over classes and over the images of a batch (softmax heads).

    With s and t the softmax of logits / T, and r Pearson's correlation,

        L = T² · [beta · mean over images of (1 − r(s_i, t_i)) + gamma · mean over classes of (1 − r(s_c, t_c))]

    0 for a student that ranks classes within an image, and images within a class, in the teacher's proportions.

    Reference: Huang et al., Knowledge Distillation from a Stronger Teacher, NeurIPS 2022.

    Args:
        student: logits of each class.
        teacher: the logits to reach.
        beta: weight of the relation between the classes of an image.
        gamma: weight of the relation between the images of a batch.
        temperature: T; the paper's is 1 on ImageNet and 4 on CIFAR-100.

    Shape: (B, nc), (B, nc) -> scalar.
    """
    student, teacher = (F.softmax(logits / temperature, 1) for logits in (student, teacher))
    between_classes = 1 - _pearson(student, teacher).mean()
    between_images = 1 - _pearson(student.T, teacher.T).mean()
    return temperature**2 * (beta * between_classes + gamma * between_images)


def _pearson(first: Tensor, second: Tensor) -> Tensor:
    """Pearson's correlation of each pair of rows; 1 if one of the two is constant but for rounding."""
    # In float64, because the squares of small deviations round to 0 in float32, and the gradient with them.
    first, second = first.double(), second.double()
    deviations = [row - row.mean(1, keepdim=True) for row in (first, second)]
    norms = [deviation.norm(dim=1) for deviation in deviations]
    flat = (norms[0] <= _FLAT * first.norm(dim=1)) | (norms[1] <= _FLAT * second.norm(dim=1))
    scale = (norms[0] * norms[1]).masked_fill(flat, 1.0)
    return torch.where(flat, 1.0, (deviations[0] * deviations[1]).sum(1) / scale).to(torch.float32)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of KL(teacher ‖ student), of log-probabilities (rows, classes)."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _target(teacher: Tensor, target: Tensor | None) -> Tensor:
    """The class of each row, (rows, 1)."""
    if teacher.shape[1] < 2:
        raise DistillError("losses 'dkd' and 'nkd' part one class from the others: there is only one; use 'kl' instead")
    if target is None:
        return teacher.argmax(1, keepdim=True)
    target = torch.as_tensor(target, device=teacher.device)
    if target.numel() != len(teacher):
        raise DistillError(
            f"losses 'dkd' and 'nkd' need one class to an image: {len(teacher)} rows of scores, but targets of shape "
            f"{tuple(target.shape)}"
        )
    return target.long().view(-1, 1)


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, any other), (rows, 2), and of the others among themselves, (rows, nc − 1)."""
    is_other = torch.ones_like(logits, dtype=torch.bool).scatter(1, target, False)
    others = logits[is_other].view(len(logits), -1)
    # From logits, because 1 − t_y would round to 0 if the network is sure.
    own = torch.cat((logits.gather(1, target), others.logsumexp(1, keepdim=True)), 1)
    return F.log_softmax(own, 1), F.log_softmax(others, 1)


def _rows(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    """A classifier gives one row of scores to an image, (B, 1, nc)."""
    yield ctx.student.scores.flatten(0, 1), ctx.teacher.scores.flatten(0, 1)


def _rows_and_target(ctx: LossContext) -> Iterator[tuple[Tensor | None, ...]]:
    for rows in _rows(ctx):
        yield *rows, None if ctx.targets is None else ctx.targets["cls"]


LOSSES = {
    "kl": FromContext(kl, _rows, ("scores",), needs="softmax"),
    "dkd": FromContext(dkd, _rows_and_target, ("scores", "targets"), needs="softmax"),
    "dist": FromContext(dist, _rows, ("scores",), needs="softmax"),
    "nkd": FromContext(nkd, _rows_and_target, ("scores", "targets"), needs="softmax"),
}
