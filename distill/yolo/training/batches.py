"""Batches of images with labels and images without, as a schedule makes them."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import DataLoader

from distill.machine import parallel
from distill.training.schedule import Schedule
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.training.mixing import MixedImages, MixedSampler
from distill.yolo.upstream import sampled_loader


def mixed_loader(
    data: DataSet,
    schedule: Schedule,
    *,
    imgsz: int,
    hyp: Any,
    device: torch.device,
    batch: int | None = None,
    stride: int = 32,
    augment: bool = True,
    seed: int = 0,
    workers: int = 0,
    shared: bool = False,
) -> DataLoader:
    """A loader of one epoch after the other; each batch begins with its labelled images, whose number is its `labelled`.

    Args:
        data: with images without labels beside the labelled ones.
        schedule: its `labelled` says how many images of a batch have labels.
        imgsz: longer side in pixels.
        hyp: ultralytics' arguments, for the augmentation.
        device: where the batches go.
        batch: images in a batch of this process; by default the schedule's.
        stride: the model's largest.
        augment: vary the images, those without labels like the others.
        seed: of the draw.
        workers: processes that load images, at most.
        shared: whether the processes of `torchrun` share each epoch.
    """
    assert schedule.labelled is not None
    batch = batch or schedule.batch
    options: dict[str, Any] = {"imgsz": imgsz, "batch": batch, "stride": stride, "augment": augment, "hyp": hyp}
    images = MixedImages(
        build_dataset(data, "train", rect=False, **options), build_dataset(data, "unlabelled", rect=False, **options)
    )
    labelled = max(1, schedule.labelled * batch // schedule.batch)
    sampler = MixedSampler(
        (len(data.train), len(data.unlabelled)),
        (labelled, batch - labelled),
        max(1, schedule.steps // schedule.epochs),
        seed=seed,
        rank=parallel.rank() if shared else 0,
        world=parallel.world() if shared else 1,
    )
    return sampled_loader(images, batch, sampler, workers=workers, device=device)
