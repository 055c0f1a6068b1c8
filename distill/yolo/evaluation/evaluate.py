"""mAP of a detector, by the arithmetic of ultralytics' own validator, without its prints, plots and files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.utils import nms

from distill.errors import DistillError
from distill.machine.device import pick_device
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.families.table import family_of

CONFIDENCE = 0.001  # every box above it counts
# (images (B, 3, H, W), what the network predicts of them (B, 4 + nc, A)) -> what is measured in its place.
Swap = Callable[[Tensor, Tensor], Tensor]


class Bar(Protocol):
    """What shows progress: `distill.machine.console.Bar`."""

    def advance(self, n: int = 1) -> None:
        """Say that `n` more images are done."""


@dataclass(frozen=True)
class EvalSettings:
    """How a network is shown the images that it is measured on. Figures compare only if these are the same.

    Attributes:
        imgsz: longer side of an image in pixels; rounded up to a multiple of the network's largest stride.
        batch: images in a batch. It decides which images share a shape, and moves the result a little with that.
        device: see `distill.machine.device.pick_device`.
    """

    imgsz: int
    batch: int = 16
    device: str | torch.device = "cpu"


@dataclass(frozen=True)
class Metrics:
    """Detection quality on one split. Averages are over the classes that occur in it; all values are 0 to 1.

    Attributes:
        map50_95: mean average precision, mean over the IoU thresholds 0.50, 0.55, ..., 0.95.
        map50: mean average precision at IoU 0.5.
        precision: at the confidence with the largest F1, IoU 0.5.
        recall: at the same confidence.
        per_class: class name -> its AP50-95.
        images: number of images.
        instances: number of labelled objects on them.
    """

    map50_95: float
    map50: float
    precision: float
    recall: float
    per_class: dict[str, float]
    images: int
    instances: int


def evaluate(
    model: nn.Module, data: DataSet, settings: EvalSettings, *, bar: Bar | None = None, swap: Swap | None = None
) -> Metrics:
    """Measure a network on the val images: rectangular batches, convolutions fused, float32.

    The rules are those of the project that its family comes from, such as ultralytics' `yolo val`: see
    `distill.yolo.families.family.Evaluation`.

    Args:
        model: an ultralytics DetectionModel with its `names`; it is copied, not touched.
        data: labelled, with as many classes as the model.
        settings: image size, batch and device.
        bar: told after each batch how many images it held; its total is `len(data.val)`.
        swap: replaces predictions before they are measured: see `distill.yolo.evaluation.swap`.

    Raises:
        DistillError: no labels, a device that this machine lacks, or a network of no supported family.
    """
    if not data.labelled:
        raise DistillError(f"{data.path}: has no labels, so there is no mAP to measure: give a data.yaml as 'data'")
    with _validator(model, data, settings) as validator:
        for images, boxes in validator.predictions(bar, swap):
            validator.update_metrics(boxes, images)
        stats: Any = validator.metrics.stats
        columns = ("tp", "conf", "pred_cls", "target_cls")
        own_ap = validator.rules.average_precision
        # Computed before get_stats() empties the columns, and set after it.
        ap = own_ap(*(np.concatenate(stats[name]) for name in columns)) if own_ap is not None else None
        validator.get_stats()
        if ap is not None:
            box: Any = validator.metrics.box
            box.all_ap = ap
    return _metrics(validator)


def detect(
    model: nn.Module, data: DataSet, settings: EvalSettings, *, bar: Bar | None = None
) -> dict[str, NDArray[np.float32]]:
    """The boxes on the val images that `evaluate` would count with the same arguments. No labels are needed.

    Args:
        model: an ultralytics DetectionModel with its `names`; it is copied, not touched.
        data: its labels are not read.
        settings: image size, batch and device.
        bar: told after each batch how many images it held.

    Returns:
        Image file -> (n, 6) float32, the highest score first: x, y of the centre, width, height as shares of the image,
        score, class.
    """
    result = {}
    with _validator(model, data, settings) as validator:
        for images, boxes in validator.predictions(bar):
            for file, one, area in zip(images["im_file"], boxes, _image_areas(images), strict=True):
                result[file] = _as_shares(one, area)
    return result


@contextmanager
def _validator(model: nn.Module, data: DataSet, settings: EvalSettings) -> Iterator[_Validator]:
    device = pick_device(settings.device)
    network: Any = checkpoint.fused(model).to(device)
    stride = max(int(network.stride.max()), 32)
    dataset = build_dataset(
        data,
        "val",
        imgsz=-(-settings.imgsz // stride) * stride,
        batch=settings.batch,
        stride=stride,
        by_area=family_of(network).area_resize,
    )
    # On a CPU the network takes the time, and loader processes would only take it away from it.
    on_gpu = device.type == "cuda"
    workers = min(8, os.cpu_count() or 1) if on_gpu else 0
    loader = DataLoader(dataset, settings.batch, num_workers=workers, collate_fn=dataset.collate_fn, pin_memory=on_gpu)
    with tempfile.TemporaryDirectory(prefix="distill-val-") as folder, torch.inference_mode():
        yield _Validator(loader, network, data, device, Path(folder))


class _Validator(DetectionValidator):
    """ultralytics' validator as a bag of parts.

    Its `__call__` would read the data set again, with all that comes with that (a font check on the network, a
    `download:` script run), select a device and print. The parts that make the result are used as they are.
    """

    data: Any  # None in the base class, until its __call__ has run
    device: Any
    names: Any
    seen: Any

    def __init__(self, loader: DataLoader, network: Any, data: DataSet, device: torch.device, folder: Path) -> None:
        self.network, self.rules = network, family_of(network).evaluation
        options = {"conf": CONFIDENCE, "iou": self.rules.nms_iou, "plots": False, "save_json": False, "verbose": False}
        super().__init__(loader, folder, {**options, "task": "detect", "mode": "val"})
        self.training = False
        self.data = data.config
        self.device = device
        self.init_metrics(network)

    def predictions(
        self, bar: Bar | None, swap: Swap | None = None
    ) -> Iterator[tuple[dict[str, Any], list[dict[str, Tensor]]]]:
        """Each batch with the boxes on each of its images, in pixels of the padded image."""
        loader: Any = self.dataloader
        for images in loader:
            images = self.preprocess(images)
            predicted = self.network(images["img"])
            if swap is not None:
                predicted = swap(images["img"], predicted[0] if isinstance(predicted, tuple) else predicted)
            boxes = self.postprocess(predicted)
            yield images, _clipped(boxes, images) if self.rules.clip_boxes else boxes
            if bar is not None:
                bar.advance(len(images["img"]))

    def postprocess(self, preds: Any) -> list[dict[str, Tensor]]:
        """The base class's, but without its time limit, which drops the rest of a batch on a slow or busy machine."""
        boxes: Any = nms.non_max_suppression(
            preds, self.args.conf, self.args.iou, multi_label=True, max_det=self.args.max_det, max_time_img=float("inf")
        )
        return [{"bboxes": x[:, :4], "conf": x[:, 4], "cls": x[:, 5], "extra": x[:, 6:]} for x in boxes]


def _image_areas(batch: dict[str, Any]) -> Iterator[tuple[float, float, float, float]]:
    """The area of each image of a batch inside its padding: left, top, width, height in pixels."""
    for (height, width), (ratio, (left, top)) in zip(batch["ori_shape"], batch["ratio_pad"], strict=True):
        yield left, top, width * ratio[1], height * ratio[0]


def _clipped(predicted: list[dict[str, Tensor]], batch: dict[str, Any]) -> list[dict[str, Tensor]]:
    """Boxes cut off where their image ends; around it is padding."""
    clipped = []
    for boxes, (x, y, w, h) in zip(predicted, _image_areas(batch), strict=True):
        low, high = boxes["bboxes"].new_tensor([[x, y, x, y], [x + w, y + h, x + w, y + h]])
        clipped.append({**boxes, "bboxes": boxes["bboxes"].clamp(low, high)})
    return clipped


def _as_shares(boxes: dict[str, Tensor], area: tuple[float, float, float, float]) -> NDArray[np.float32]:
    """Boxes as `detect` returns them, from pixels of the padded image."""
    (x, y, w, h), corners = area, boxes["bboxes"].cpu()
    low, high = ((corners[:, side] - Tensor([x, y])) / Tensor([w, h]) for side in (slice(2), slice(2, 4)))
    columns = ((low + high) / 2, high - low, boxes["conf"][:, None].cpu(), boxes["cls"][:, None].cpu())
    return torch.cat(columns, 1).numpy()


def _metrics(validator: _Validator) -> Metrics:
    box, names = validator.metrics.box, validator.names
    per_class = {names[int(c)]: float(box.class_result(i)[3]) for i, c in enumerate(box.ap_class_index)}
    counts: Any = validator.metrics.nt_per_class
    return Metrics(
        map50_95=float(box.map),
        map50=float(box.map50),
        precision=float(box.mp),
        recall=float(box.mr),
        per_class=per_class,
        images=int(validator.seen),
        instances=int(counts.sum()),
    )
