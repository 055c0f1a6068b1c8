"""Losses on the class scores of a classifier: softmax, for one class excludes the others.

A classifier gives one row of scores to an image, (B, 1, nc). All are means over the rows.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import DistillError
from distill.losses.context import LossContext


def kl(ctx: LossContext, temperature: float = 4.0) -> Tensor:
    """Divergence of the student's softened class probabilities from the teacher's (softmax heads).

        L = T² · mean over images of KL(softmax(t / T) ‖ softmax(s / T))

    T² keeps the gradient as large as it is, about, at T = 1.

    Args:
        ctx: reads `scores`, logits (B, 1, nc).
        temperature: T; above 1 the unlikely classes count more. 4 is what most of the literature compares at; the
            paper tries 1 to 20 and finds that a small student wants a lower one.

    Reference: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """
    student, teacher = _rows(ctx)
    return temperature**2 * _divergence(
        F.log_softmax(student / temperature, 1), F.log_softmax(teacher / temperature, 1)
    )


def dkd(ctx: LossContext, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0) -> Tensor:
    """Divergence of class probabilities in two parts, the target against the others and the others among themselves (softmax heads).

    With p = softmax(logits / T), y the target, and p̂ the softmax over all classes but y,

        L = T² · mean over images of [alpha · KL((t_y, 1 − t_y) ‖ (s_y, 1 − s_y)) + beta · KL(t̂ ‖ ŝ)]

    In `kl` the second part weighs 1 − t_y: least where the teacher is sure, and says most about the others.

    Args:
        ctx: reads `scores`, logits (B, 1, nc), and `targets["cls"]`, (B,), for y. Without labels y is the class that
            the teacher finds likeliest.
        alpha: weight of the target's part.
        beta: weight of the others' part; 8 is the paper's for most pairs of networks, and 0.5 its on ImageNet.
        temperature: T.

    Raises:
        DistillError: a single class, or targets that are not one class to an image.

    Reference: Zhao et al., Decoupled Knowledge Distillation, CVPR 2022.
    """
    student, teacher = _rows(ctx)
    target = _target(ctx)
    student_own, student_others = _parts(student / temperature, target)
    teacher_own, teacher_others = _parts(teacher / temperature, target)
    own, others = _divergence(student_own, teacher_own), _divergence(student_others, teacher_others)
    return temperature**2 * (alpha * own + beta * others)


def nkd(ctx: LossContext, gamma: float = 1.5, temperature: float = 1.0) -> Tensor:
    """Cross-entropy of the target's probability to the teacher's, and divergence of the normalised others (softmax heads).

    With s and t the probabilities, y the target, and p̂ the softmax of logits / T over all classes but y,

        L = mean over images of [t_y · (log t_y − log s_y) + gamma · T² · KL(t̂ ‖ ŝ)]

    This is the paper's loss less the teacher's entropy, so that 0 is what the teacher itself would get. The first term
    goes on below that: it draws s_y to 1, as strongly as the teacher believes in y.

    Args:
        ctx: reads `scores`, logits (B, 1, nc), and `targets["cls"]`, (B,), for y. Without labels y is the class that
            the teacher finds likeliest.
        gamma: weight of the others' part.
        temperature: T, of the others' part alone.

    Raises:
        DistillError: a single class, or targets that are not one class to an image.

    Reference: Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with
    Normalized Loss and Customized Soft Labels, ICCV 2023.
    """
    student, teacher = _rows(ctx)
    target = _target(ctx)
    student_log, teacher_log = (F.log_softmax(logits, 1).gather(1, target) for logits in (student, teacher))
    own = (teacher_log.exp() * (teacher_log - student_log)).mean()
    _, student_others = _parts(student / temperature, target)
    _, teacher_others = _parts(teacher / temperature, target)
    return own + gamma * temperature**2 * _divergence(student_others, teacher_others)


def _rows(ctx: LossContext) -> tuple[Tensor, Tensor]:
    """Logits of student and teacher, (rows, nc) each."""
    return ctx.student.scores.flatten(0, 1), ctx.teacher.scores.flatten(0, 1)


def _divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean over rows of KL(teacher ‖ student), of log-probabilities (rows, classes)."""
    return F.kl_div(student, teacher, reduction="batchmean", log_target=True)


def _target(ctx: LossContext) -> Tensor:
    """The class of each row, (rows, 1): its label where there are labels, else the teacher's likeliest."""
    teacher = ctx.teacher.scores.flatten(0, 1)
    if teacher.shape[1] < 2:
        raise DistillError("losses 'dkd' and 'nkd' part one class from the others: there is only one; use 'kl' instead")
    if ctx.targets is None:
        return teacher.argmax(1, keepdim=True)
    labels = torch.as_tensor(ctx.targets["cls"], device=teacher.device)
    if labels.numel() != len(teacher):
        raise DistillError(
            f"losses 'dkd' and 'nkd' want one class to an image: {len(teacher)} rows of scores, but targets of shape "
            f"{tuple(labels.shape)}"
        )
    return labels.long().view(-1, 1)


def _parts(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, any other), (rows, 2), and of the others among themselves, (rows, nc − 1)."""
    is_other = torch.ones_like(logits, dtype=torch.bool).scatter(1, target, False)
    others = logits[is_other].view(len(logits), -1)
    # From logits, for 1 − t_y would round to 0 where the network is sure.
    own = torch.cat((logits.gather(1, target), others.logsumexp(1, keepdim=True)), 1)
    return F.log_softmax(own, 1), F.log_softmax(others, 1)
