"""Batches of images with labels and images without: the first of each have labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Sampler

from distill.training.task import LABELLED
from distill.yolo.data.images import CheckedImages


class MixedImages(ConcatDataset[dict[str, Any]]):
    """Images with labels, then images without, as one dataset.

    Mosaic joins images of the same kind: objects without labels beside some that have them would be taught as background.
    """

    def __init__(self, labelled: CheckedImages, unlabelled: CheckedImages) -> None:
        super().__init__([labelled, unlabelled])
        self.parts = (labelled, unlabelled)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {**super().__getitem__(index), LABELLED: index < len(self.parts[0])}

    def collate_fn(self, samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """A batch as ultralytics makes it, and how many of its images have labels."""
        plain = [{key: value for key, value in sample.items() if key != LABELLED} for sample in samples]
        return {**CheckedImages.collate_fn(plain), LABELLED: sum(sample[LABELLED] for sample in samples)}

    def close_mosaic(self, hyp: Any) -> None:
        """Join no more images."""
        for part in self.parts:
            part.close_mosaic(hyp)


class MixedSampler(Sampler[int]):
    """Draws the images of an epoch's batches. In each, images with labels come first.

    Each kind is drawn without replacement until all were drawn, then again. Several processes share an epoch: together
    they draw what one would.

    Args:
        images: with labels, and without.
        batch: images of either kind in a batch of this process.
        steps: batches in an epoch.
        seed: of the draw. Each epoch has one of its own.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        images: tuple[int, int],
        batch: tuple[int, int],
        steps: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.images, self.batch, self.steps, self.seed = images, batch, steps, seed
        self.rank, self.world, self.epoch = rank, world, 0

    def __len__(self) -> int:
        return self.steps * sum(self.batch)

    def set_epoch(self, epoch: int) -> None:
        """Draw this epoch next, from 0."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        random = torch.Generator().manual_seed((self.seed * 100_003 + self.epoch) % 2**63)
        self.epoch += 1
        first, second = self.images
        with_labels = self._draw(first, self.batch[0], random)
        without = self._draw(second, self.batch[1], random)
        for step in range(self.steps):
            yield from with_labels[step].tolist()
            yield from (without[step] + first).tolist()

    def _draw(self, images: int, batch: int, random: torch.Generator) -> torch.Tensor:
        """Images of one kind for this process, (steps, batch)."""
        total = self.steps * batch * self.world
        times = math.ceil(total / images) if total else 0
        drawn = [torch.randperm(images, generator=random) for _ in range(times)]
        whole = torch.cat([torch.zeros(0, dtype=torch.long), *drawn])[:total]
        return whole.view(self.steps, self.world, batch)[:, self.rank]
