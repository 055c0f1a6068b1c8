"""Checkpoints of the original YOLOv5 project: which names they hold, and how they become ultralytics' modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.nn.modules import block, conv, transformer
from ultralytics.nn.tasks import DetectionModel

from distill.errors import DistillError
from distill.yolo.families.yolov5.head import AnchorDetect, is_portable, restore


class OriginalHead(nn.Module):
    """The original's Detect as it was unpickled; `convert` makes an `AnchorDetect` of it."""


# The project's own folders, and the same inside its package on PyPI.
_ROOTS = ("", "yolov5.")

# What each module of the original is here: the same forward pass on the same attributes.
_COMMON: dict[str, type[nn.Module]] = {
    "Conv": conv.Conv,
    "DWConv": conv.DWConv,
    "DWConvTranspose2d": conv.DWConvTranspose2d,
    "Focus": conv.Focus,
    "GhostConv": conv.GhostConv,
    "Concat": conv.Concat,
    "Bottleneck": block.Bottleneck,
    "BottleneckCSP": block.BottleneckCSP,
    "CrossConv": block.Bottleneck,
    "C3": block.C3,
    "C3x": block.C3x,
    "C3TR": block.C3TR,
    "C3SPP": block.C3,
    "C3Ghost": block.C3Ghost,
    "GhostBottleneck": block.GhostBottleneck,
    "SPP": block.SPP,
    "SPPF": block.SPPF,
    "TransformerLayer": transformer.TransformerLayer,
    "TransformerBlock": transformer.TransformerBlock,
}
_MODULES: dict[str, type[nn.Module]] = {
    **{f"models.common.{name}": found for name, found in _COMMON.items()},
    **{f"models.experimental.{name}": _COMMON[name] for name in ("C3", "CrossConv", "GhostConv", "GhostBottleneck")},
    "models.yolo.Model": DetectionModel,  # v7.0 knows both names, v6.1 and older only this one
    "models.yolo.DetectionModel": DetectionModel,
    "models.yolo.Detect": OriginalHead,
    "utils.activations.SiLU": nn.SiLU,
    "utils.activations.Hardswish": nn.Hardswish,
}
MODULES: dict[str, type[nn.Module]] = {f"{root}{name}": found for root in _ROOTS for name, found in _MODULES.items()}

_OTHER = {
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
HYP = {
    "lr0": 0.01,
    "lrf": 0.01,
    "momentum": 0.937,
    "weight_decay": 0.0005,
    "warmup_epochs": 3.0,
    "warmup_momentum": 0.8,
    "warmup_bias_lr": 0.1,
    "box": 0.05,
    "cls": 0.5,
    "cls_pw": 1.0,
    "obj": 1.0,
    "obj_pw": 1.0,
    "iou_t": 0.2,
    "anchor_t": 4.0,
    "fl_gamma": 0.0,
    "label_smoothing": 0.0,
}


def is_original(names: tuple[str, ...]) -> bool:
    """Whether a checkpoint that uses these names is of the original project, or of a fork or kin of it."""
    return any(name.startswith(tuple(f"{root}models.yolo." for root in _ROOTS)) for name in names)


def check_names(path: Path, names: list[str]) -> None:
    """Refuse other tasks, wrapped networks and forks, each in a line of its own.

    Args:
        path: the checkpoint.
        names: those names in it that stand for none of the modules read here.
    """
    bare = [name.removeprefix("yolov5.") for name in names]
    for name in bare:
        if name in _OTHER:
            raise DistillError(f"{path} is {_OTHER[name]}, not a detector: of the original YOLOv5, detectors are read")
        if name in _WRAPPERS:
            raise DistillError(
                f"{path} holds a network wrapped for inference ({name}): give the .pt that training saved"
            )
    own = [name for name in names if name.startswith(tuple(f"{r}{p}" for r in _ROOTS for p in ("models.", "utils.")))]
    if own:
        raise DistillError(
            f"{path} holds '{own[0]}', which the models of the original YOLOv5 (v5.0 to v7.0) do not use: it was made by "
            "a changed copy (a fork) of that project, or from a description of its owner's: to use it here, train on your "
            "data with the original or with ultralytics"
        )
    if names == ["builtins.getattr"]:  # how a method put in place of forward() is pickled
        raise DistillError(f"{path} holds a fused network: give the .pt that training saved, with its BatchNorm layers")
    if names:  # trust=true would not help: these files are never run
        raise DistillError(f"{path} holds '{names[0]}', which is not part of a YOLOv5: nothing of it was run")


def adopt(path: Path, model: Any, content: dict[str, Any]) -> None:
    """Give a network an `AnchorDetect` if its last layer is the original's head, or one that `portable` made. In place."""
    if isinstance(model.model[-1], OriginalHead):
        convert(path, model, content)
    elif is_portable(model.model[-1]):
        model.model[-1] = restore(model.model[-1])


def convert(path: Path, model: Any, content: dict[str, Any]) -> None:
    """Make a network as it was unpickled one that ultralytics' code runs. In place.

    Args:
        path: the checkpoint, for messages.
        model: a `DetectionModel` whose last layer is an `OriginalHead`.
        content: the checkpoint's other entries: `opt` says how it was trained.
    """
    old: Any = model.model[-1]
    stride = torch.as_tensor(getattr(old, "stride", model.stride)).float()
    head: Any = AnchorDetect(list(old.m), old.anchors.float(), stride, int(old.nc))
    fits = len(head.m) == len(stride) == head.nl and old.anchors.shape[2:] == (2,)
    if not fits or any(conv.out_channels != head.no * head.na for conv in head.m):
        raise DistillError(f"{path} is damaged (its anchors do not fit its head): copy or download it again")
    head.i, head.f, head.type, head.np = old.i, old.f, old.type, old.np
    model.model[-1] = head
    model.stride = stride
    model.nc = head.nc
    options = _options(content)
    model.hyp = _hyp(getattr(model, "hyp", None), options.get("hyp"), head, _trained_at(options))
    for name in ("class_weights", "gr"):
        vars(model).pop(name, None)
    for module in model.modules():
        if isinstance(module, (nn.SiLU, nn.Hardswish)):
            vars(module).setdefault("inplace", True)  # the original's own have no such switch


def train_args(content: dict[str, Any]) -> Any:
    """How a checkpoint was trained: its `train_args`, which the original calls `opt`."""
    return content.get("train_args") or {"imgsz": _trained_at(_options(content))}


def _options(content: dict[str, Any]) -> dict[str, Any]:
    options = content.get("opt")
    return options if isinstance(options, dict) else {}


def _trained_at(options: dict[str, Any]) -> Any:
    """The image size in `opt`, under either of its names."""
    return options.get("imgsz", options.get("img_size"))


def _hyp(own: Any, given: Any, head: AnchorDetect, imgsz: Any) -> dict[str, float]:
    """The gains that the network was trained with; where the file has none, the defaults as train.py scales them."""
    if isinstance(own, dict):
        return {**HYP, **_numbers(own)}
    made = {**HYP, **(_numbers(given) if isinstance(given, dict) else {})}
    size = max(imgsz) if isinstance(imgsz, list) and imgsz else imgsz if isinstance(imgsz, int) else 640
    made["box"] *= 3 / head.nl
    made["cls"] *= head.nc / 80 * 3 / head.nl
    made["obj"] *= (size / 640) ** 2 * 3 / head.nl
    return made


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    return {key: float(value) for key, value in values.items() if isinstance(value, (int, float))}
