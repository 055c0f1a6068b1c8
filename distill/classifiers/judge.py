"""How good classifiers are: top-1, top-5, and how often they agree with the teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from distill.classifiers import upstream
from distill.classifiers.data import VAL, ImageSet
from distill.classifiers.network import logits_of
from distill.machine.console import Console
from distill.machine.device import loaders
from distill.results.figures import Evaluation

_TOP = 5


class Judge:
    """Measures networks on the val images, each with the mean, deviation and crop that it was trained with.

    Args:
        teacher: gives the network that others should agree with; called once.
        data: the images.
        console: shows bars and figures.
        imgsz: side in pixels.
        batch: images in a batch; it does not move the result.
        device: where networks run.
    """

    def __init__(
        self,
        teacher: Callable[[], nn.Module],
        data: ImageSet,
        console: Console,
        *,
        imgsz: int,
        batch: int,
        device: torch.device,
    ) -> None:
        self._teacher, self.data, self.console = teacher, data, console
        self.imgsz, self.batch, self.device = imgsz, batch, device

    def evaluate(self, network: nn.Module, seen: dict[str, Any] | None = None) -> Evaluation:
        """Top-1 and top-5, if there are labels; and the share of images on which it agrees with the teacher."""
        top = self._predict(network, "evaluate")
        if seen is not None:
            seen |= {str(file): int(first) for file, first in zip(self.data.val, top[:, 0], strict=True)}
        agreement = float((top[:, 0] == self._reference).float().mean())
        evaluation = Evaluation(None, None, None, images=len(top), agreement=agreement)
        if self.data.names is not None:
            targets = torch.tensor(self.data.classes[VAL])
            evaluation = measured(top, targets, list(self.data.names.values()), agreement)
        self.console.line(evaluation.figures)
        return evaluation

    def look(self, network: nn.Module, title: str) -> dict[str, Any]:
        """The class of each image."""
        top = self._predict(network, title)
        return {str(file): int(first) for file, first in zip(self.data.val, top[:, 0], strict=True)}

    @cached_property
    def _reference(self) -> Tensor:
        return self._predict(self._teacher(), "teacher's classes")[:, 0]

    def _predict(self, network: nn.Module, label: str) -> Tensor:
        with self.console.bar(label, len(self.data.val), "images") as bar:
            return predict(network, self.data, self.imgsz, self.batch, self.device, bar.advance)


def predict(
    network: nn.Module,
    data: ImageSet,
    imgsz: int,
    batch: int,
    device: torch.device,
    advance: Callable[[int], object] = lambda count: None,
) -> Tensor:
    """The classes of the val images by their logits, the likeliest first, (N, up to 5). The network's mode is kept."""
    loader = upstream.create_loader(
        data.dataset(VAL),
        batch_size=batch,
        is_training=False,
        use_prefetcher=False,
        num_workers=loaders() if device.type == "cuda" else 0,
        **upstream.input_of(network, imgsz),
    )
    mode, tops = network.training, []
    network.to(device).eval()
    with torch.inference_mode():
        for images, _ in loader:
            logits = logits_of(network(images.to(device)))
            tops.append(logits.float().topk(min(_TOP, logits.shape[1])).indices.cpu())
            advance(len(images))
    network.train(mode)
    return torch.cat(tops)


def measured(top: Tensor, targets: Tensor, names: list[str], agreement: float | None = None) -> Evaluation:
    """Figures of predictions.

    Args:
        top: (N, k) classes, the likeliest first.
        targets: (N,) classes of the labels.
        names: of the classes.
        agreement: with the teacher.
    """
    hits = top == targets[:, None]
    per_class = {
        name: float(hits[targets == number, 0].float().mean())
        for number, name in enumerate(names)
        if (targets == number).any()
    }
    return Evaluation(
        None,
        None,
        per_class,
        images=len(top),
        top1=float(hits[:, 0].float().mean()),
        top5=float(hits.any(1).float().mean()) if len(names) > _TOP else None,
        agreement=agreement,
    )
