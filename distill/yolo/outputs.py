"""Runs a YOLO to its raw outputs, and gives losses those outputs in their own terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from distill.context import Outputs
from distill.losses import Loss
from distill.task import DistillationTask


def run(model: nn.Module, images: Tensor) -> Outputs:
    """Run a YOLO up to what its head's convolutions compute.

    A head in train mode returns its raw outputs, and its inputs beside them, so nothing need be hooked. That flag of
    the head alone is switched: every BatchNorm stays in the mode it is in.

    Args:
        model: a network that ends in ultralytics' Detect head.
        images: (B, 3, H, W) in [0, 1].
    """
    head = cast(Any, model).model[-1]
    mode, head.training = head.training, True
    try:
        everything = model(images)
    finally:
        head.training = mode
    raw = everything.get("one2many", everything)  # so called in a head with a second, one-to-one branch
    bins = head.reg_max
    cells, strides = _grid(raw["feats"], head.stride)
    sides = rearrange(raw["boxes"], "b (side bin) a -> b a side bin", bin=bins)
    return Outputs(
        neck=tuple(raw["feats"]),
        class_logits=raw["scores"].transpose(1, 2),
        side_logits=sides if bins > 1 else None,
        decode=lambda: decode(sides, cells, strides),
        strides=strides.squeeze(-1),
        raw=everything,
    )


def decode(sides: Tensor, cells: Tensor, strides: Tensor) -> Tensor:
    """Boxes in pixels from what a head predicts of their sides.

    Args:
        sides: (B, A, 4, R), logits over the distances 0, 1, …, R − 1 cells to the left, top, right and bottom side;
            with R = 1 the distance itself.
        cells: (A, 2) centre of each anchor in cells.
        strides: (A, 1) pixels to a cell.

    Returns:
        (B, A, 4) as x1 y1 x2 y2 in input pixels.
    """
    sides = sides.float()
    bins = sides.shape[-1]
    values = torch.arange(bins, device=sides.device, dtype=sides.dtype)
    distance = (sides.softmax(-1) * values).sum(-1) if bins > 1 else sides.squeeze(-1)
    return torch.cat((cells - distance[..., :2], cells + distance[..., 2:]), -1) * strides


def _grid(levels: Sequence[Tensor], strides: Tensor) -> tuple[Tensor, Tensor]:
    """Centre of every cell in cells, (A, 2) as x y, and its stride, (A, 1): in float32, for bfloat16 ends at 256."""
    cells, pixels = [], []
    for feature, stride in zip(levels, strides.tolist(), strict=True):
        rows, columns = (torch.arange(n, device=feature.device) + 0.5 for n in feature.shape[-2:])
        y, x = torch.meshgrid(rows, columns, indexing="ij")
        cells.append(torch.stack((x, y), -1).flatten(0, 1))
        pixels.append(torch.full_like(cells[-1][:, :1], stride))
    return torch.cat(cells), torch.cat(pixels)


def label_terms(model: nn.Module, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """ultralytics' own detection loss on the labels of a batch, as terms by name: a mean per image, gains included.

    Args:
        model: the network, with `args` that hold the gains box, cls and dfl, as the trainer sets them.
        outputs: what `run` gave for `batch["img"]`.
        batch: the loader's `img`, `batch_idx`, `cls` and `bboxes`.
    """
    terms, parts = cast(Any, model).loss(batch, outputs.raw)  # summed over the batch; and detached, by name
    return dict(zip(parts, terms / len(batch["img"]), strict=True))


def neck_keep(model: nn.Module, keep_inputs: Mapping[str, Sequence[int]]) -> list[Sequence[int]]:
    """Per pyramid level the teacher's channels that a cut student still has where its head begins.

    Args:
        model: student or teacher.
        keep_inputs: `PrunePlan.keep_inputs`, the kept input channels by module path.
    """
    levels = range(cast(Any, model).model[-1].nl)
    return [keep_inputs[f"model.{len(cast(Any, model).model) - 1}.cv2.{level}.0.conv"] for level in levels]


def distillation(
    student: nn.Module,
    teacher: nn.Module,
    losses: Sequence[Loss],
    *,
    keep_inputs: Mapping[str, Sequence[int]] | None = None,
    labels: float = 1.0,
) -> DistillationTask:
    """The task that trains a YOLO from another of the same grid.

    Args:
        student: the network to train, an ultralytics DetectionModel, as the teacher is.
        teacher: the original, best fused (`checkpoint.fused`).
        losses: as `distill.losses.build` makes them.
        keep_inputs: of the plan that cut the student; None where it has all of its teacher's channels.
        labels: weight of ultralytics' detection loss on the labels.
    """
    keep = None if keep_inputs is None else neck_keep(student, keep_inputs)
    return DistillationTask(student, teacher, losses, run=run, keep=keep, labelled=label_terms, labels=labels)
