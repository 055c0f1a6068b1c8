"""How trials draw batches and train a YOLO: see `distill.training.tuning`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from distill.training.schedule import Schedule
from distill.training.task import DistillationTask
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.training.batches import mixed_loader
from distill.yolo.training.learner import Learner
from distill.yolo.upstream import build_dataloader, get_cfg, init_seeds


@dataclass(frozen=True)
class YoloBench:
    """Training images of a data set at a size in pixels."""

    data: DataSet
    imgsz: int

    def batches(self, schedule: Schedule, *, augment: bool) -> Iterator[dict[str, Any]]:
        """Endless batches of training images in random order."""
        data, imgsz = self.data, self.imgsz
        hyp = get_cfg(overrides={"imgsz": imgsz, **schedule.augmentation})
        if schedule.labelled is not None:
            seed, device = torch.initial_seed(), torch.device("cpu")  # a batch is moved when it is used
            loader = mixed_loader(data, schedule, imgsz=imgsz, hyp=hyp, device=device, augment=augment, seed=seed)
        else:
            dataset = build_dataset(
                data, "train", imgsz=imgsz, batch=schedule.batch, augment=augment, rect=False, hyp=hyp
            )
            loader = build_dataloader(dataset, min(schedule.batch, len(dataset)), workers=0, shuffle=True)
        while True:
            for batch in loader:
                yield batch if data.labelled else {"img": batch["img"]}

    def prepare(self, batch: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
        """A batch on the device, its images in [0, 1]."""
        moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
        return moved | {"img": (moved["img"].float() / 255).contiguous(memory_format=torch.channels_last)}

    def learner(self, task: DistillationTask, schedule: Schedule) -> Learner:
        """What ultralytics' loop would train."""
        learner = Learner(task.student, task, None, schedule)
        student: Any = learner.student_model
        student.args = get_cfg(overrides={"imgsz": self.imgsz})
        return learner

    def draw(self, seed: int) -> None:
        """Seed everything that batches are drawn by."""
        init_seeds(seed)
