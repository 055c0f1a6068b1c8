"""Checkpoints of the original YOLOv5 project: which names they hold, and how they become ultralytics' modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.errors import DistillError
from distill.machine.words import printable
from distill.yolo.checkpoint.checkout import GIVE_CODE
from distill.yolo.families.yolov5.head import AnchorDetect, is_portable, placed_as, restore
from distill.yolo.upstream import DetectionModel, block, conv, transformer


class OriginalHead(nn.Module):
    """The original's Detect as it was unpickled; `adopt` makes an `AnchorDetect` of it."""


_PACKAGE = "yolov5."  # on PyPI, the project's folders are inside it

# What each module of the original is here: the same forward pass on the same attributes. Most have the same name.
_SAME_NAME = {
    conv: ("Conv", "DWConv", "DWConvTranspose2d", "Focus", "GhostConv", "Concat"),
    block: ("Bottleneck", "BottleneckCSP", "C3", "C3x", "C3TR", "C3Ghost", "GhostBottleneck", "SPP", "SPPF"),
    transformer: ("TransformerLayer", "TransformerBlock"),
}
_COMMON: dict[str, type[nn.Module]] = {
    **{name: getattr(package, name) for package, names in _SAME_NAME.items() for name in names},
    "CrossConv": block.Bottleneck,
    "C3SPP": block.C3,
}
_MODULES: dict[str, type[nn.Module]] = {
    **{f"models.common.{name}": kind for name, kind in _COMMON.items()},
    **{f"models.experimental.{name}": _COMMON[name] for name in ("C3", "CrossConv", "GhostConv", "GhostBottleneck")},
    "models.yolo.Model": DetectionModel,  # v7.0 knows both names, v6.1 and older only this one
    "models.yolo.DetectionModel": DetectionModel,
    "models.yolo.Detect": OriginalHead,
    "utils.activations.SiLU": nn.SiLU,
    "utils.activations.Hardswish": nn.Hardswish,
}
MODULES = {**_MODULES, **{_PACKAGE + name: kind for name, kind in _MODULES.items()}}

_OTHER_TASKS = {
    "models.yolo.SegmentationModel": "a segmentation model",
    "models.yolo.Segment": "a segmentation model",
    "models.yolo.ClassificationModel": "a classification model",
    "models.common.Classify": "a classification model",
}
_WRAPPERS = (
    *("models.common.AutoShape", "models.common.autoShape", "models.common.DetectMultiBackend"),
    "models.experimental.Ensemble",
)

# hyp.scratch-low.yaml of v7.0, before train.py scales box, cls and obj by levels, classes and image size.
_RATES = {"lr0": 0.01, "lrf": 0.01, "momentum": 0.937, "weight_decay": 0.0005}
_WARMUP = {"warmup_epochs": 3.0, "warmup_momentum": 0.8, "warmup_bias_lr": 0.1}
_GAINS = {"box": 0.05, "cls": 0.5, "cls_pw": 1.0, "obj": 1.0, "obj_pw": 1.0}
_MATCHING = {"iou_t": 0.2, "anchor_t": 4.0, "fl_gamma": 0.0, "label_smoothing": 0.0}
HYP = {**_RATES, **_WARMUP, **_GAINS, **_MATCHING}


def is_original(names: tuple[str, ...]) -> bool:
    """Whether a checkpoint that uses these names is of the original project, or of a fork or kin of it."""
    return any(name.removeprefix(_PACKAGE).startswith("models.yolo.") for name in names)


def check_names(path: Path, names: list[str]) -> None:
    """Refuse other tasks, wrapped networks and forks by names that stand for none of the modules read here."""
    for name in (name.removeprefix(_PACKAGE) for name in names):
        if task := _OTHER_TASKS.get(name):
            raise DistillError(f"{path} is {task}, not a detector: of the original YOLOv5, detectors are read")
        if name in _WRAPPERS:
            what = f"a network wrapped for inference ({name})"
            raise DistillError(f"{path} holds {what}: give the .pt that training saved")
    for name in names:
        if name.removeprefix(_PACKAGE).startswith(("models.", "utils.")):
            raise DistillError(
                f"{path} holds '{printable(name, 100)}', which the models of the original YOLOv5 (v5.0 to v7.0) do not use: it was made by "
                f"a changed copy (a fork) of that project: {GIVE_CODE}"
            )
    if names:  # trust=true would not help: these files are never run
        raise DistillError(
            f"{path} holds '{printable(names[0], 100)}', which is not part of a YOLOv5: nothing of it was run"
        )


def served(gave: Tensor) -> Tensor:
    """What the original's network gives in eval mode, (B, A, 5 + nc), as an `AnchorDetect` does: (B, 4 + nc, A)."""
    return torch.cat((gave[..., :4], gave[..., 4:5] * gave[..., 5:]), 2).transpose(1, 2)


def adopt(path: Path, model: Any, content: dict[str, Any]) -> None:
    """Give a network an `AnchorDetect` if its last layer is the original's head, or one that `portable` made. In place.

    Args:
        path: the checkpoint, for messages.
        model: a `DetectionModel`.
        content: the checkpoint's other entries: `opt` says how it was trained.
    """
    if isinstance(model.model[-1], OriginalHead):
        _convert(path, model, content)
    elif is_portable(model.model[-1]):
        model.model[-1] = restore(model.model[-1])


def _convert(path: Path, model: Any, content: dict[str, Any]) -> None:
    old: Any = model.model[-1]
    stride = torch.as_tensor(getattr(old, "stride", model.stride)).float()
    head: Any = AnchorDetect(list(old.m), old.anchors.float(), stride, int(old.nc))
    fits = len(head.m) == len(stride) == head.nl and old.anchors.shape[2:] == (2,)
    if not fits or any(layer.out_channels != head.no * head.na for layer in head.m):
        raise DistillError(f"{path} is damaged (its anchors do not fit its head): copy or download it again")
    model.model[-1] = placed_as(old, head)
    model.stride, model.nc = stride, head.nc
    opt = content.get("opt")
    options = opt if isinstance(opt, dict) else {}
    imgsz = options.get("imgsz", options.get("img_size"))
    content["train_args"] = content.get("train_args") or {"imgsz": imgsz}
    model.hyp = _hyp(getattr(model, "hyp", None), options.get("hyp"), head, imgsz)
    for name in ("class_weights", "gr"):
        vars(model).pop(name, None)
    for module in model.modules():
        if isinstance(module, (nn.SiLU, nn.Hardswish)):
            vars(module).setdefault("inplace", True)  # the original's own have no such switch


def _hyp(of_network: Any, of_options: Any, head: AnchorDetect, imgsz: Any) -> dict[str, float]:
    """The gains that the network was trained with; if the file has none, the defaults as train.py scales them."""
    if isinstance(of_network, dict):
        return {**HYP, **_numbers(of_network)}
    hyp = {**HYP, **_numbers(of_options)}
    size = max(imgsz) if isinstance(imgsz, list) and imgsz else imgsz if isinstance(imgsz, int) else 640
    hyp["box"] *= 3 / head.nl
    hyp["cls"] *= head.nc / 80 * 3 / head.nl
    hyp["obj"] *= (size / 640) ** 2 * 3 / head.nl
    return hyp


def _numbers(values: Any) -> dict[str, float]:
    items = values.items() if isinstance(values, dict) else ()
    return {key: float(value) for key, value in items if isinstance(value, (int, float))}
