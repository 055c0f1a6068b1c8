"""YOLO checkpoints: read without running what is pickled in them, written so that stock ultralytics reads them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.errors import DistillError, first_line
from distill.machine.files import write_bytes
from distill.machine.words import printable
from distill.yolo.checkpoint.allowed import check_description, check_task, fused_network, own_project, unpickle
from distill.yolo.checkpoint.archive import Archive
from distill.yolo.checkpoint.saving import bare_copy, half, stripped
from distill.yolo.families.table import FAMILIES, family_of, supported
from distill.yolo.upstream import DEFAULT_CFG_DICT, DetectionModel, Focus, __version__, torch_safe_load

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Detector:
    """A detector from a checkpoint."""

    model: nn.Module  # ultralytics' DetectionModel: float32, on the CPU, in eval mode, not fused, with gradients on
    names: dict[int, str]  # class names by id
    imgsz: int | None  # image size in pixels that it was trained at; None if the file does not say
    source: Path
    plan: dict[str, Any] | None  # how this tool pruned it, as plain data; None if it did not

    def __repr__(self) -> str:
        params = sum(p.numel() for p in self.model.parameters())
        return f"Detector({str(self.source)!r}, {len(self.names)} classes, {params / 1e6:.2f} M parameters)"


def load(path: str | Path, *, trust: bool = False) -> Detector:
    """Open a checkpoint that ultralytics saved, in training or after.

    With `trust`, Python unpickles it, as `YOLO(path)` does. It may then hold classes of its own, as long as they can be
    imported, and run any code it likes. Only for files from hands you trust.

    Raises:
        DistillError: no checkpoint, no detector, a kind of detector that is not supported, or a file that holds anything
            but parts of a YOLO. The message says which.
    """
    path = Path(path).expanduser()
    archive = Archive(path)
    trust = trust and own_project(archive.names) is None  # those are read without their project, so never run
    if trust:
        try:
            content = torch_safe_load(str(path))[0]
        except Exception as error:  # the file's own code may raise anything
            raise DistillError(f"{path} cannot be unpickled: {first_line(error)}") from error
    else:
        content = unpickle(archive)
    try:
        return _detector(path, content, trust)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise DistillError(f"{path} is damaged ({first_line(error)}): copy or download it again") from error


def save(
    model: nn.Module, path: str | Path, *, names: Mapping[int, str], imgsz: int, plan: dict[str, Any] | None = None
) -> None:
    """Write a checkpoint as ultralytics does when training has ended: float16, without optimizer, hooks or loss.

    `model` is not changed. The file appears complete or not at all.

    Args:
        model: ultralytics' DetectionModel. Nothing in it may be of a class of this project's.
        path: the file to write; its folder must be there.
        names: class names by id.
        imgsz: what predict, val and export will use unless they are told otherwise.
        plan: kept under "distill", as plain JSON data.

    Raises:
        RunError: the disk is full or not writable.
    """
    network: Any = bare_copy(model).cpu().eval().requires_grad_(False)
    network.names = dict(names)
    network.model[-1] = family_of(network).checkpoints.portable(network.model[-1])
    network.args = {**_plain(getattr(network, "args", None)), "task": "detect", "imgsz": imgsz}
    checkpoint = {
        **stripped(half(network)),
        "train_args": dict(network.args),
        "version": __version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "distill": {"plan": json.loads(json.dumps(plan))},
    }
    buffer = io.BytesIO()
    torch.save(checkpoint, buffer)
    _check_own(buffer, network)
    write_bytes(Path(path), buffer.getbuffer())


def fused(model: nn.Module) -> nn.Module:
    """A copy for inference: eval mode, every BatchNorm folded into its convolution. `model` is not changed."""
    network: Any = bare_copy(model).eval()
    return network.fuse(verbose=False)


def _detector(path: Path, content: Any, trust: bool) -> Detector:
    """The detector in a checkpoint's content, which is changed."""
    if isinstance(content, nn.Module):
        content = {"model": content}
    if not isinstance(content, dict):
        raise DistillError(f"{path} holds {type(content).__name__}, not a checkpoint: give the .pt that training saved")
    if content.get("modelopt"):
        raise DistillError(f"{path} was trained for quantization (QAT): prune the float checkpoint it came from")
    model = content.get("model") if content.get("ema") is None else content["ema"]
    if not isinstance(model, nn.Module):
        raise DistillError(f"{path} holds weights but no network (a state dict): give the .pt that training saved")
    if type(model) is not DetectionModel or not isinstance(getattr(model, "model", None), nn.Sequential):
        check_task(path, type(model).__name__)
        raise DistillError(f"{path} is a {type(model).__name__}, not a detector: {supported()}")
    for family in FAMILIES:
        family.checkpoints.adopt(path, model, content)
    check_network(path, model)
    if not trust:
        check_description(path, getattr(model, "yaml", None))
    args = _plain(content.get("train_args"))
    _renew(model, args)
    model.pt_path = str(path)  # type: ignore[assignment]
    _check_runs(path, model)
    ours = content.get("distill")
    plan = ours.get("plan") if isinstance(ours, dict) else None
    found = Detector(model, _names(path, model), _imgsz(args.get("imgsz")), path, plan)
    saved = {key: content[key] for key in ("version", "date", "epoch") if isinstance(content.get(key), (str, int))}
    _LOG.debug("%s: %d classes, imgsz %s, saved with %s", path, len(found.names), found.imgsz, printable(saved, 200))
    return found


def check_network(path: Path, model: Any) -> None:
    """Refuse a DetectionModel of no family, a fused one, and one for images of other than 3 channels.

    Raises:
        DistillError: the message begins with `path`.
    """
    family_of(model, path)
    if model.is_fused():
        raise fused_network(path)
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    if isinstance(model.model[0], Focus):  # YOLOv5 v5.0: it lays four pixels into the channels of one
        channels //= 4
    if channels != 3:
        raise DistillError(f"{path} takes images of {channels} channels: only 3 are supported")


def _renew(model: Any, args: Mapping[str, Any]) -> None:
    """Do what `ultralytics.nn.tasks.load_checkpoint` does to a network from an older version; and turn gradients on."""
    model.float().eval()
    model.args = {**DEFAULT_CFG_DICT, **args}
    model.task = "detect"
    if not hasattr(model, "stride"):
        model.stride = torch.tensor([32.0])
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
        if isinstance(module, nn.Upsample):
            module.recompute_scale_factor = None  # saved before torch 1.11, unpickling sets it to True
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".dfl." not in name)  # the DFL's weights are the numbers 0 to 15


def _check_runs(path: Path, model: Any) -> None:
    """Run a network once: one that a changed ultralytics saved is restored without an error, and fails only here."""
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, 64, 64))
    except Exception as error:  # whatever the missing or changed part leads to
        raise DistillError(
            f"{path} does not run with ultralytics {__version__} ({first_line(error)}): it was made by a changed "
            "version of it; to use it here, train on your data with an unchanged one"
        ) from error
    if hasattr(model.model[-1], "shape"):
        model.model[-1].shape = None  # forget the anchors of that size


def _names(path: Path, model: Any) -> dict[int, str]:
    names, count = getattr(model, "names", None), int(model.model[-1].nc)
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or set(names) != set(range(count)):
        raise DistillError(f"{path} has {count} classes, but not a name for each of them")
    model.names = {int(key): str(value) for key, value in sorted(names.items())}
    return dict(model.names)


def _imgsz(value: Any) -> int | None:
    sizes = value if isinstance(value, (list, tuple)) else [value]
    return max((size for size in sizes if isinstance(size, int) and size > 0), default=None)


def _plain(args: Any) -> dict[str, Any]:
    """What can be kept of arguments, or of something else in their place."""
    kinds = (str, int, float, list, type(None))
    return {key: value for key, value in args.items() if isinstance(value, kinds)} if isinstance(args, dict) else {}


def _check_own(buffer: io.BytesIO, network: nn.Module) -> None:
    """Refuse classes that a user of the file may lack: all but torch's, ultralytics' and a trusted file's own."""
    buffer.seek(0)
    roots = {"torch", "ultralytics", "collections", "builtins", "__builtin__"}
    roots |= {type(module).__module__.split(".")[0] for module in network.modules()}
    roots -= {"distill", "prune", "__main__"}
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(buffer):
        if name.split(".")[0] not in roots:
            raise TypeError(f"the network holds {name}, which a user of the file may not have")
