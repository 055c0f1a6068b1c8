"""The networks of tests/bench/coverage.py, by name, with random weights, and what each takes.

Names: `ultralytics/yolo11n-seg.yaml`, `torchvision/resnet18`, `timm/resnet18`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import prune
from distill.yolo.families.adapter import YOLO_ADAPTER
from tests.prune.networks import randomize

SIDE = 64  # of images of networks that take any size
TASKS = ("cls", "seg", "pose", "obb")
OTHER_TASKS = ("depth", "sem", "yoloe", "world", "rtdetr")  # not among the five tasks; RT-DETR is there by itself
SIDES = {"ultralytics/rtdetr": 128, "ultralytics/yolov8-rtdetr": 128, "-p6": 128}
# The torchvision detectors that give their images to a transform, which no trace can follow: what it can is inside.
DETECTORS = ("retinanet", "fcos", "ssd", "fasterrcnn", "maskrcnn", "keypointrcnn")


class Inside(nn.Module):
    """What a detector of torchvision computes for a batch of images before it looks for boxes: features, and its head's maps."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.rpn.head if hasattr(detector, "rpn") else detector.head

    def forward(self, images: Tensor) -> Any:
        """(N, 3, H, W) -> maps of every level, or what the head makes of them."""
        features = self.backbone(images)
        levels = list(features.values()) if isinstance(features, dict) else [features]
        return levels, self.head(levels)


LARGE = ("128gf", "vit_h", "vit_l", "regnet_y_32gf", "_x_32gf", "convnext_large", "rtdetr", "nasnetalarge", "senet154")


def names() -> list[str]:
    """Every network of the table, from all three in turns; the large ones last."""
    turns = zip_longest(_ultralytics("n"), _timm(), sorted(_torchvision(), key=_size))
    found = [name for turn in turns for name in turn if name] + list(_ultralytics("x"))
    return sorted(found, key=lambda name: any(word in name for word in LARGE))


def _ultralytics(size: str) -> Iterator[str]:
    """Every yaml of the five tasks at one size; one without sizes, as it is, with the small ones."""
    from ultralytics.utils import ROOT, YAML

    for path in sorted((ROOT / "cfg" / "models").rglob("*.yaml")):
        if any(word in path.stem for word in OTHER_TASKS) and not path.stem.startswith("rtdetr"):
            continue
        sizes = YAML.load(path).get("scales", {})
        if len(sizes) > 1 and size in sizes:
            stem, dash, rest = path.stem.partition("-")
            yield f"ultralytics/{stem}{size}{dash}{rest}.yaml"
        elif size == "n":
            yield f"ultralytics/{path.name}"


def _torchvision() -> list[str]:
    import torchvision

    models = torchvision.models
    kinds = (models, models.segmentation, models.detection)
    return [f"torchvision/{name}" for module in kinds for name in models.list_models(module=module)]


def _timm() -> list[str]:
    """The architecture of each family (a file of timm's) with the shortest name among those that are smallest by name."""
    import timm

    families = [timm.list_models(module=module) for module in timm.list_modules()]
    return [f"timm/{min(family, key=_size)}" for family in families if family]


def _size(name: str) -> tuple[int, int, str]:
    small = ("atto", "femto", "pico", "nano", "xxs", "xs", "tiny", "small", "_s", "18", "lite")
    return next((i for i, word in enumerate(small) if word in name), len(small)), len(name), name


def build(name: str) -> tuple[nn.Module, Tensor, prune.Adapter | None]:
    """A network in eval mode, an image for it, and its adapter."""
    source, _, rest = name.partition("/")
    torch.manual_seed(0)
    model, shape = {"ultralytics": _yolo, "torchvision": _of_torchvision, "timm": _of_timm}[source](rest)
    side = next((side for part, side in SIDES.items() if part in name), SIDE)
    image = torch.rand(1, *(shape or (3, side, side)))
    first = copy.deepcopy(model)  # buffers that no state dict has, too
    awake(randomize(model)).eval()
    with torch.no_grad():
        if not all(each.isfinite().all() for each in tree_leaves(model(image)) if isinstance(each, Tensor)):
            model = awake(first).eval()  # one with a logarithm, say, is nothing with any weights
    return model, image, YOLO_ADAPTER if source == "ultralytics" else None


def awake(model: nn.Module) -> nn.Module:
    """Scales of branches that start at nothing are drawn: behind a zero, a proof would say nothing."""
    for parameter in model.parameters():
        if parameter.numel() > 1 and parameter.abs().max() < 1e-2:
            nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def _yolo(file: str) -> tuple[nn.Module, None]:
    from ultralytics.nn import tasks

    kinds = {
        "cls": tasks.ClassificationModel,
        "seg": tasks.SegmentationModel,
        "pose": tasks.PoseModel,
        "obb": tasks.OBBModel,
    }
    task = next((task for task in TASKS if f"-{task}" in Path(file).stem), None)
    detector = tasks.RTDETRDetectionModel if file.startswith("rtdetr") else tasks.DetectionModel
    description = tasks.yaml_model_load(file)
    for layer in description["backbone"]:  # a backbone of torchvision, whose weights would be downloaded
        layer[-1] = [None if each == "DEFAULT" else each for each in layer[-1]]
    return (kinds[task] if task else detector)(description, verbose=False), None


def _of_torchvision(name: str) -> tuple[nn.Module, tuple[int, ...] | None]:
    import torchvision

    options: dict[str, Any] = {"weights": None}
    if name.startswith(DETECTORS) or name in torchvision.models.list_models(module=torchvision.models.segmentation):
        options["weights_backbone"] = None
    if name in ("googlenet", "inception_v3"):
        options["init_weights"] = False
    model = torchvision.models.get_model(name, **options)
    side = 224 if name.startswith(("vit", "maxvit", "inception")) else 128
    return (Inside(model) if name.startswith(DETECTORS) else model), (3, side, side)


def _of_timm(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    import timm

    model = timm.create_model(name, pretrained=False)
    config = model.default_cfg
    channels, height, width = config.get("input_size", (3, 224, 224))
    own = config.get("fixed_input_size") or "min_input_size" in config
    return model, (channels, height, width) if own else (channels, 128, 128)
