"""mAP of a detector, by the arithmetic of ultralytics' own validator, without its prints, plots and files.

With the teacher's boxes or scores in place of a student's, it says what the student has lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from distill.errors import DistillError
from distill.machine.device import loaders, pick_device
from distill.machine.progress import Bar
from distill.results.quality import Beside, Curves, score_of
from distill.results.records import Brief
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.evaluation.curves import compact
from distill.yolo.families.table import family_of, stride_of
from distill.yolo.tasks.task import Task
from distill.yolo.upstream import Validator, make_validator

CONFIDENCE = 0.001  # every box above it counts
SURE = 0.25  # the default threshold of `yolo predict` and of the original's detect.py: what a user sees
KEPT = 0.1  # a box that another network is sure of may be one of these
# Image file -> (n, 6), the highest score first: x, y of the centre, width, height as shares of the image, score, class.
Boxes = dict[str, NDArray[np.float32]]
# What a network predicts: (B, 4 + nc + ..., A), or that and the prototypes of its masks.
Predicted = Tensor | tuple[Tensor, Tensor]
Known = Mapping[str, Mapping[str, Tensor]]  # image file -> its objects, as the validator predicts them
# (images (B, 3, H, W), what the network predicts of them) -> what is measured in its place.
Swap = Callable[[Tensor, Predicted], Predicted]
PARTS = ("boxes", "scores")  # of a prediction (B, 4 + nc + ..., A): its first rows


@dataclass(frozen=True)
class EvalSettings:
    """How a network is shown the images that it is measured on. Figures compare only if these are the same."""

    imgsz: int  # longer side of an image in pixels; rounded up to a multiple of the network's largest stride
    batch: int = 16  # it decides which images share a shape, and so moves the result a little
    device: str | torch.device = "cpu"  # see `distill.machine.device.pick_device`


@dataclass(frozen=True, repr=False)
class Metrics(Brief):
    """Detection quality on one split. Averages are over the classes that occur in it; all values are 0 to 1."""

    map50_95: float  # mean average precision, mean over the IoU thresholds 0.50, 0.55, ..., 0.95
    map50: float  # the same at IoU 0.5
    precision: float  # at the confidence with the largest F1, IoU 0.5
    recall: float  # at the same confidence
    per_class: dict[str, float]  # class name -> its AP50-95
    images: int
    instances: int  # labelled objects on the images
    curves: Curves  # the confusion matrix is of boxes with a score above SURE
    # mAP50-95 of the head's branch that works without NMS, as by `yolo val nms=False`; None if it has none.
    map50_95_without_nms: float | None = field(default=None, kw_only=True)
    beside: Beside | None = field(default=None, kw_only=True)  # of what the task has beside boxes

    @property
    def score(self) -> float:
        """By what the network is judged."""
        return score_of(self.map50_95, self.beside)


def evaluate(
    model: nn.Module,
    data: DataSet,
    settings: EvalSettings,
    *,
    bar: Bar | None = None,
    swap: Swap | None = None,
    seen: Boxes | None = None,
    known: Known | None = None,
) -> Metrics:
    """Measure a network on the val images: rectangular batches, convolutions fused, float32.

    The rules are those of the project that its family comes from, such as ultralytics' `yolo val`: see
    `distill.yolo.families.family.Evaluation`.

    Args:
        model: an ultralytics DetectionModel with its `names`; it is copied, not touched.
        data: labelled, with as many classes as the model. Its task decides what is measured: of a segmentation model the boxes
            alone, if the data were opened for detectors.
        settings: image size, batch and device.
        bar: told after each batch how many images it held; its total is `len(data.val)`.
        swap: replaces predictions before they are measured: see `swap_with_teacher`.
        seen: gets the boxes on each image whose score is at least KEPT.
        known: what is on each image, in place of its labels.

    Raises:
        DistillError: no labels, a device that this machine lacks, or a network of no supported family.
    """
    if not data.labelled:
        raise DistillError(f"{data.path}: has no labels, so there is no mAP to measure: give a data.yaml as 'data'")
    validator, network = _validator(model, data, settings, known or {})
    rules = family_of(network).evaluation
    without = rules.without_nms is not None and swap is None
    other = _rules(validator.dataloader, network, data, validator.device, known or {}) if without else None
    with torch.inference_mode():
        for images, boxes, raw in _predictions(validator, network, bar, swap):
            validator.update_metrics(boxes, images)
            if other is not None and rules.without_nms is not None:
                other.update_metrics(other.postprocess(rules.without_nms(network.model[-1], raw)), images)
            if seen is not None:
                seen.update(_by_file(images, boxes, KEPT, data.task))
        found = validator.results(rules.average_precision)
        precision, confusion = found.pop("precision_curves"), found.pop("confusion")
        classes: Mapping[int, str] = network.names  # type: ignore[assignment]
        curves = compact(list(found["per_class"]), precision, confusion, classes)
        if data.task.beside is not None:
            found["beside"] = Beside(data.task.beside, **found["beside"])
        without_nms = None if other is None else other.results()["map50_95"]
        return Metrics(**found, curves=curves, map50_95_without_nms=without_nms)


def detect(
    model: nn.Module, data: DataSet, settings: EvalSettings, *, bar: Bar | None = None, least: float = CONFIDENCE
) -> Boxes:
    """The boxes on the val images that `evaluate` would count with the same arguments. No labels are needed.

    Args: as for `evaluate`; `least` is the lowest score of a box.
    """
    result: Boxes = {}
    for images, objects in predict(model, data, settings, bar=bar):
        result.update(_by_file(images, objects, least, data.task))
    return result


def predict(
    model: nn.Module, data: DataSet, settings: EvalSettings, *, bar: Bar | None = None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Tensor]]]]:
    """Each batch of val images with the objects on each of its images that `evaluate` would count. No labels are needed.

    Args: as for `evaluate`.
    """
    validator, network = _validator(model, data, settings, {})
    with torch.inference_mode():
        yield from ((images, objects) for images, objects, _ in _predictions(validator, network, bar))


def swap_with_teacher(teacher: nn.Module, part: str, device: torch.device) -> Swap:
    """For `evaluate`: replaces the boxes, or the scores, of a student's predictions by the teacher's.

    Args:
        teacher: an ultralytics DetectionModel that predicts at the same places, as the student's own teacher does; copied.
        part: of `PARTS`.
        device: where the student is measured.

    Returns:
        A function that raises `DistillError` if the two do not predict at the same places.
    """
    network: Any = checkpoint.fused(teacher).to(device)
    rows = {"boxes": slice(0, 4), "scores": slice(4, 4 + network.model[-1].nc)}[part]

    def swap(images: Tensor, predicted: Predicted) -> Predicted:
        ours, theirs = _rows(predicted), _rows(_predict(network, images)[0])
        if theirs.shape != ours.shape:
            sizes = f"{tuple(theirs.shape[1:])} and {tuple(ours.shape[1:])} values an image"
            raise DistillError(f"teacher and student do not predict at the same places ({sizes}): is it its teacher?")
        mixed = ours.clone()
        mixed[:, rows] = theirs[:, rows]
        return mixed if isinstance(predicted, Tensor) else (mixed, predicted[1])

    return swap


def _validator(model: nn.Module, data: DataSet, settings: EvalSettings, known: Known) -> tuple[Validator, Any]:
    """The validator, ready for the val images, and a fused copy of the network on its device."""
    device, family = pick_device(settings.device), family_of(model)
    network: Any = checkpoint.fused(model).to(device)
    stride = max(stride_of(network), 32)
    size = -(-settings.imgsz // stride) * stride
    dataset = build_dataset(data, "val", imgsz=size, batch=settings.batch, stride=stride, by_area=family.area_resize)
    # On a CPU the network takes the time, and loader processes would only take it away from it.
    on_gpu = device.type == "cuda"
    workers = loaders() if on_gpu else 0
    loader = DataLoader(dataset, settings.batch, num_workers=workers, collate_fn=dataset.collate_fn, pin_memory=on_gpu)
    return _rules(loader, network, data, device, known), network


def _rules(loader: Any, network: nn.Module, data: DataSet, device: torch.device, known: Known) -> Validator:
    limits = {"confidence": CONFIDENCE, "nms_iou": family_of(network).evaluation.nms_iou, "sure": SURE}
    kind = data.task.validator
    return make_validator(kind, loader, network, data.config, device=device, known=known, **limits)


def _predictions(
    validator: Validator, network: nn.Module, bar: Bar | None, swap: Swap | None = None
) -> Iterator[tuple[dict[str, Any], list[dict[str, Tensor]], Any]]:
    """Each batch with the boxes on each of its images, in pixels of the padded image, and the raw outputs."""
    clip = family_of(network).evaluation.clip_boxes
    loader: Any = validator.dataloader
    for images in loader:
        images = validator.preprocess(images)
        predicted, raw = _predict(network, images["img"])
        if swap is not None:
            predicted = swap(images["img"], predicted)
        boxes = validator.postprocess(predicted)
        yield images, _clipped(boxes, images) if clip else boxes, raw
        if bar is not None:
            bar.advance(len(images["img"]))


def _predict(network: nn.Module, images: Tensor) -> tuple[Predicted, Any]:
    """What it predicts, and the raw outputs if the network gives them beside."""
    output = network(images)
    return output if isinstance(output, tuple) else (output, None)


def _rows(predicted: Predicted) -> Tensor:
    return predicted if isinstance(predicted, Tensor) else predicted[0]


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


def _by_file(images: dict[str, Any], boxes: list[dict[str, Tensor]], least: float, task: Task) -> Boxes:
    """The boxes of a batch whose score is at least `least`."""
    return {file: shares[shares[:, 4] >= least] for file, shares in in_shares(images, boxes, task)}


def in_shares(
    images: dict[str, Any], boxes: list[dict[str, Tensor]], task: Task
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """Each image file of a batch with the boxes on it, (n, 6) as in `Boxes`, from pixels of the padded image."""
    for file, found, area in zip(images["im_file"], boxes, _image_areas(images), strict=True):
        yield file, _as_shares(found, task.corners(found).cpu(), area)


def _as_shares(
    boxes: dict[str, Tensor], corners: Tensor, area: tuple[float, float, float, float]
) -> NDArray[np.float32]:
    x, y, w, h = area
    low, high = ((corners[:, side] - Tensor([x, y])) / Tensor([w, h]) for side in (slice(2), slice(2, 4)))
    columns = ((low + high) / 2, high - low, boxes["conf"][:, None].cpu(), boxes["cls"][:, None].cpu())
    return torch.cat(columns, 1).numpy()
