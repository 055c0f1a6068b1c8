"""Losses on features without parameters: each compares one pyramid level, or the output of one module.

The student's channel i was cut from one channel of the teacher and is compared with that one, so no layer must be
learned to make the two alike. A run takes the mean over levels and modules. `feature_pkd` forgives a channel's scale and
shift, `feature_cwd` its shift, `feature_at` all but where the channels together are strong, `feature_fgd` nothing.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from distill.errors import DistillError
from distill.losses.base import FromContext
from distill.losses.context import LossContext


def feature_pkd(student: Tensor, teacher: Tensor) -> Tensor:
    """How badly each kept channel correlates with the teacher's channel that it was cut from.

    Every channel is brought to zero mean and unit variance over batch and space, s' and t'. Then

        L = 1/2 · mean (s' − t')² = 1 − mean over channels of Pearson's r(s, t)

    0 for channels equal up to scale and shift, 1 for unrelated ones, 2 for opposite ones. Scale and shift are free
    because the next convolution may undo them.

    Shape: (B, C, H, W), (B, C, H, W) -> scalar.

    Reference: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient, NeurIPS 2022.
    """
    return 0.5 * F.mse_loss(_standardise(student), _standardise(teacher))


def feature_cwd(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Divergence of where each channel is strong from where the teacher's channel is (channel-wise distillation).

    A channel becomes a distribution over its H · W positions, softmax(f / T). Then

        L = T² · mean over images and channels of KL(softmax(t / T) ‖ softmax(s / T))

    A shift of a whole channel changes nothing; its strongest positions count most.

    Args:
        student: features.
        teacher: the features to reach.
        temperature: T; above 1 weak positions count more.

    Shape: (B, C, H, W), (B, C, H, W) -> scalar.

    Reference: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021.
    """
    log_student, log_teacher = (F.log_softmax(f.flatten(2) / temperature, dim=-1) for f in (student, teacher))
    return temperature**2 * F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1).mean()


def feature_at(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared distance between the maps of where student and teacher are strong, channels summed (attention transfer).

    The attention of a feature is a(f) = v / ‖v‖, v the sum over channels of f² at each of the H · W positions. Then

        L = mean over images of ‖a(s) − a(t)‖²

    0 for maps equal up to scale, 2 for maps that nowhere overlap. A pruned student is compared with the channels that
    it kept, so the teacher's other channels ask nothing of it.

    Shape: (B, C, H, W), (B, C, H, W) -> scalar.

    Reference: Zagoruyko & Komodakis, Paying More Attention to Attention, ICLR 2017.
    """
    attention = [F.normalize(f.square().sum(1).flatten(1), dim=1, eps=1e-6) for f in (student, teacher)]
    return (attention[0] - attention[1]).square().sum(1).mean()


def feature_fgd(
    student: Tensor,
    teacher: Tensor,
    quality: Tensor,
    *,
    temperature: float = 0.5,
    background: float = 0.5,
    attention: float = 0.5,
) -> Tensor:
    """Squared difference of features where the teacher looks, objects and background apart (focal distillation).

    A teacher's attention is, at a position, P = H · W · softmax(mean over channels of |t| / T), and for a channel,
    K = C · softmax(mean over positions of |t| / T): both are 1 on average. With its quality q at each position,

        D = P · 1/C Σ_c K · (s − t)²
        L = Σ q · D / max(1, Σ q) + background · Σ (1 − q) · D / max(1, Σ (1 − q))
            + attention · (mean |P(s) − P(t)| + mean |K(s) − K(t)|)

    for each image, sums over positions; then the mean over images. This is the paper's focal part with two changes:
    q replaces labels, so an object counts as much as the teacher sees of it and unlabelled images teach too; and the
    sums are means, so a weight means the same at any size of image or feature. The paper's global part, a context
    block with parameters of its own, is left out.

    Args:
        student: features.
        teacher: the features to reach.
        quality: how sure the teacher is that a position holds an object, 0 to 1.
        temperature: T; lower sharpens the attention.
        background: weight of the background beside the objects; the paper's ratio.
        attention: weight of the attention's own difference; the paper has it between half and all of the objects'.

    Shape: (B, C, H, W), (B, C, H, W), (B, H, W) -> scalar.

    Reference: Yang et al., Focal and Global Knowledge Distillation for Detectors, CVPR 2022.
    """
    place, channel = _attention(teacher, temperature)
    own_place, own_channel = _attention(student, temperature)
    difference = place * (channel[..., None, None] * (student - teacher).square()).mean(1)  # (B, H, W)
    objects, rest = ((q * difference).sum((1, 2)) / q.sum((1, 2)).clamp(min=1) for q in (quality, 1 - quality))
    gaze = (own_place - place).abs().mean((1, 2)) + (own_channel - channel).abs().mean(1)
    return (objects + background * rest + attention * gaze).mean()


def _standardise(feature: Tensor) -> Tensor:
    """Zero mean and unit variance of each channel. Shape: (B, C, H, W) -> (B * H * W, C)."""
    # What BatchNorm computes in training. On rows of channels it takes a tenth of the time that its formula takes in
    # single steps. The floor keeps the gradient of a channel that is constant in this batch bounded.
    rows = rearrange(feature, "b c h w -> (b h w) c")
    return torch.native_batch_norm(rows, None, None, None, None, True, 0.0, 1e-6)[0]


def _attention(feature: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Attention to positions, (B, H, W), and to channels, (B, C); both 1 on average."""
    strength = feature.abs() / temperature
    place = strength.mean(1).flatten(1).softmax(1).view_as(feature[:, 0])
    channel = strength.mean((2, 3)).softmax(1)
    return place * place[0].numel(), channel * channel.shape[1]


def _pairs_with_quality(ctx: LossContext) -> Iterator[tuple[Tensor, ...]]:
    """Adds the teacher's quality on the grid of each feature, which is that of one of the head's levels."""
    known = _quality_by_grid(ctx)
    for point in ctx.points:
        for student, teacher in ctx.features(point):
            grid = tuple(teacher.shape[-2:])
            if grid not in known:
                sizes = ", ".join(f"{rows}x{columns}" for rows, columns in known)
                raise DistillError(
                    f"loss 'feature_fgd': '{point}' has a grid of {grid[0]}x{grid[1]}, and the teacher's quality is known on "
                    f"those of the head's levels ({sizes}): choose another module"
                )
            yield student, teacher, known[grid]


def _quality_by_grid(ctx: LossContext) -> dict[tuple[int, ...], Tensor]:
    """The teacher's quality on the grid of each level, (B, H, W): that of the best of a cell's anchors."""
    grids = [feature.shape[-2:] for feature in ctx.teacher.features]
    cells, anchors = sum(grid.numel() for grid in grids), ctx.quality.shape[1]
    if anchors % cells:
        raise DistillError(
            f"loss 'feature_fgd': {anchors} anchors on {cells} cells: it needs a detector, whose anchors lie on the "
            "grid of its features"
        )
    boxes = anchors // cells  # to a cell; anchors lie as (box, row, column) on each level
    parts = ctx.quality.split([boxes * grid.numel() for grid in grids], dim=1)
    return {tuple(grid): part.unflatten(1, (boxes, *grid)).amax(1) for part, grid in zip(parts, grids, strict=True)}


_READS = ("features",)
LOSSES = {
    "feature_pkd": FromContext(feature_pkd, LossContext.features, _READS),
    "feature_cwd": FromContext(feature_cwd, LossContext.features, _READS),
    "feature_at": FromContext(feature_at, LossContext.features, _READS),
    "feature_fgd": FromContext(feature_fgd, _pairs_with_quality, ("features", "quality")),
}
