"""YOLO checkpoints: read without running what is pickled in them, written so that stock ultralytics reads them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.errors import DistillError, first_line
from distill.kinds.opened import Opened
from distill.machine.files import write_bytes
from distill.machine.words import printable
from distill.yolo.checkpoint import fork
from distill.yolo.checkpoint.allowed import check_description, check_task, fused_network, own_project, unpickle
from distill.yolo.checkpoint.archive import Archive, again, damaged
from distill.yolo.checkpoint.checkout import Checkout, owner_of
from distill.yolo.checkpoint.saving import bare_copy, half, stripped, written
from distill.yolo.checkpoint.trial import check_runs, check_weights
from distill.yolo.checkpoint.wrapped import check_wrapped
from distill.yolo.families.table import FAMILIES, family_of, supported
from distill.yolo.upstream import DEFAULT_CFG_DICT, __version__, torch_safe_load

_LOG = logging.getLogger(__name__)

_LONGEST_NAME = 200  # characters
ASIDE = "aside"  # where parts of a head wait
_LARGEST_SIZE = 8192  # pixels; a file that says more is not believed
NETWORKS = frozenset(family.task.network for family in FAMILIES)  # classes of what can be opened


@dataclass(frozen=True)
class Detector(Opened):
    """A network from a checkpoint: `model` is ultralytics' DetectionModel, or that of another task."""

    def __repr__(self) -> str:
        params = sum(p.numel() for p in self.model.parameters())
        return f"Detector({str(self.source)!r}, {len(self.names)} classes, {params / 1e6:.2f} M parameters)"


def load(path: str | Path, *, trust: bool = False, code: Sequence[str | Path] = ()) -> Detector:
    """Open a checkpoint that ultralytics saved, in training or after.

    Args:
        path: the file.
        trust: Python unpickles it, as `YOLO(path)` does. It may then hold classes of its own, as long as they can be
            imported, and run any code it likes. Only for files from hands you trust.
        code: folders with the code of forks, for the checkpoints that they saved; run as well.

    Raises:
        DistillError: no checkpoint, no detector, a kind of detector that is not supported, or a file that holds anything
            but parts of a YOLO. The message says which.
    """
    path = Path(path).expanduser()
    archive = Archive(path)
    check_wrapped(path, archive.names)
    opened = fork.open_with(path, archive.names, code, trust)
    trust = trust and own_project(archive.names) is None  # those are read without their project, so never run
    if opened is not None:
        content = opened.content
    elif trust:
        try:
            content = torch_safe_load(str(path))[0]
        except Exception as error:  # the file's own code may raise anything
            raise DistillError(f"{path} cannot be unpickled: {printable(first_line(error), 200)}") from error
    else:
        content = unpickle(archive)
    try:
        return _detector(path, content, trust, opened.code if opened else None)
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise damaged(path, error) from error


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
    family = family_of(network)
    network.model[-1] = family.checkpoints.portable(network.model[-1])
    network.args = args = {**_plain(getattr(network, "args", None)), "task": family.task.name, "imgsz": imgsz}
    if family.native is None and (own := vars(network).pop("own_project", None)) is not None:
        network.__class__, network.model[-1].__class__ = own["class"], type(own["head"])
    checkpoint = {
        **stripped(half(network)),
        "train_args": args,
        "version": __version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
        "distill": {"plan": json.loads(json.dumps(plan))},
    }
    buffer = io.BytesIO()
    with written(network):
        torch.save(checkpoint, buffer)
    _check_own(buffer, network)
    write_bytes(Path(path), buffer.getbuffer())


def fused(model: nn.Module) -> nn.Module:
    """A copy in eval mode, every BatchNorm folded into its convolution, with all branches of the head. `model` is not changed."""
    network: Any = bare_copy(model).eval()
    head, names = network.model[-1], family_of(network).second
    # ultralytics drops the branch that it will not deploy: what lies outside the head is folded all the same.
    network.model.add_module(ASIDE, nn.ModuleDict({name: getattr(head, name) for name in names}))
    for name in names:
        delattr(head, name)
    _fuse(network)
    for name, part in getattr(network.model, ASIDE).items():
        setattr(head, name, part)
    delattr(network.model, ASIDE)
    return network


def deployed(model: nn.Module) -> nn.Module:
    """A copy as ultralytics runs it to predict: `fused`, and of a head with two branches the one that NMS follows."""
    return _fuse(bare_copy(model).eval())


def _fuse(network: Any) -> nn.Module:
    fork.with_known_convolutions(network)
    try:
        return network.fuse(verbose=False)
    except Exception as error:  # whatever a changed part of it leads to
        raise DistillError(
            f"the network cannot be fused for inference ({printable(first_line(error), 200)})"
        ) from error


def _detector(path: Path, content: Any, trust: bool, code: Checkout | None) -> Detector:
    """The detector in a checkpoint's content, which is changed."""
    if isinstance(content, nn.Module):
        content = {"model": content}
    if not isinstance(content, dict):
        raise DistillError(f"{path} holds {type(content).__name__}, not a checkpoint: give the .pt that training saved")
    if content.get("modelopt"):
        raise DistillError(f"{path} was trained for quantization (QAT): prune the float checkpoint it came from")
    model = _network(path, content)
    gave = fork.adopt(path, model, code) if code is not None else None
    if type(model) not in NETWORKS or not isinstance(getattr(model, "model", None), nn.Sequential):
        check_task(path, type(model).__name__)
        raise DistillError(f"{path} is a {type(model).__name__}, not a detector: {supported()}")
    for family in FAMILIES:
        family.checkpoints.adopt(path, model, content)
    check_network(path, model)
    if not trust and code is None:
        check_description(path, getattr(model, "yaml", None))
    args = _plain(content.get("train_args"))
    _renew(model, args)
    model.pt_path = str(path)  # type: ignore[assignment]
    check_weights(path, model)
    check_runs(path, model)
    if gave is not None and code is not None:
        fork.check_same(path, model, gave, code)
    ours = content.get("distill")
    plan = ours.get("plan") if isinstance(ours, dict) else None
    found = Detector(model, _names(path, model), _imgsz(args.get("imgsz")), path, plan)
    saved = {key: content[key] for key in ("version", "date", "epoch") if isinstance(content.get(key), (str, int))}
    _LOG.debug("%s: %d classes, imgsz %s, saved with %s", path, len(found.names), found.imgsz, printable(saved, 200))
    return found


def _network(path: Path, content: dict[str, Any]) -> nn.Module:
    """The average of the weights over the training, if the file has it."""
    model, average = content.get("model"), content.get("ema")
    if isinstance(average, (list, tuple)) and average:  # the original YOLOv5 before v5.0: with its number of updates
        average = average[0]
    if isinstance(average, nn.Module):
        return average
    if not isinstance(model, nn.Module):
        raise DistillError(f"{path} holds weights but no network (a state dict): give the .pt that training saved")
    if isinstance(average, dict):
        try:
            model.load_state_dict(average)
        except RuntimeError as error:
            change = "c['ema'] = None"
            raise DistillError(
                f"{path}: the weights in its 'ema' are not those of its 'model': to go on without them, if you trust the "
                f"file, {again(path, change)}"
            ) from error
    return model


def check_network(path: Path, model: Any) -> None:
    """Refuse a DetectionModel of no family, a fused one, and one for images of other than 3 channels.

    Raises:
        DistillError: the message begins with `path`.
    """
    if model.is_fused() and not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        raise fused_network(path)
    family = family_of(model, path)
    if type(model) not in (family.task.network,):
        head = type(model.model[-1]).__name__
        raise DistillError(
            f"{path} is a {type(model).__name__} that ends in the head {head}: give the .pt that training saved"
        )
    channels = next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)
    if type(model.model[0]).__name__ == "Focus":  # YOLOv5 v5.0: it lays four pixels into the channels of one
        channels //= 4
    if channels != 3:
        raise DistillError(f"{path} takes images of {channels} channels: only 3 are supported")


def _renew(model: Any, args: Mapping[str, Any]) -> None:
    """Do what `ultralytics.nn.tasks.load_checkpoint` does to a network from an older version; and turn gradients on."""
    model.float().eval()
    model.args = {**DEFAULT_CFG_DICT, **args}
    model.task = family_of(model).task.name
    if not hasattr(model, "stride"):
        model.stride = model.model[-1].stride
    vars(model.model[-1]).pop("_end2end", None)  # which branch was used last: ultralytics chooses anew each time
    for module in model.modules():
        if hasattr(module, "inplace"):
            module.inplace = True
        if type(module) is nn.SyncBatchNorm:  # from training on several devices: on one it computes the same
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
        if isinstance(module, nn.Upsample):
            module.recompute_scale_factor = None  # saved before torch 1.11, unpickling sets it to True
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".dfl." not in name)  # the DFL's weights are the numbers 0 to 15


def _names(path: Path, model: Any) -> dict[int, str]:
    names, count = getattr(model, "names", None), int(model.model[-1].nc)
    if isinstance(names, (list, tuple)):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or len(names) != count or set(names) != set(range(count)):
        change = "c['model'].names = ['name of class 0', ...]"
        raise DistillError(
            f"{path} has {count} classes, but not a name for each of them: if you trust the file, {again(path, change)}"
        )
    if not all(isinstance(name, (str, int, float)) and len(str(name)) <= _LONGEST_NAME for name in names.values()):
        raise DistillError(f"{path} has class names that are not text of at most {_LONGEST_NAME} characters")
    model.names = {int(key): str(value) for key, value in sorted(names.items())}
    return dict(model.names)


def _imgsz(value: Any) -> int | None:
    sizes = value if isinstance(value, (list, tuple)) else [value]
    return max((size for size in sizes if type(size) is int and 0 < size <= _LARGEST_SIZE), default=None)


def _plain(args: Any) -> dict[str, Any]:
    """What can be kept of arguments, or of something else in their place."""
    kinds = (str, int, float, list, type(None))
    return {key: value for key, value in args.items() if isinstance(value, kinds)} if isinstance(args, dict) else {}


def _check_own(buffer: io.BytesIO, network: nn.Module) -> None:
    """Refuse classes that a user of the file may lack: all but torch's, ultralytics', and those of a trusted file or its fork."""
    buffer.seek(0)
    roots = {"torch", "ultralytics", "collections", "builtins", "__builtin__"}
    roots |= {type(module).__module__.split(".")[0] for module in network.modules()}
    roots |= code.roots if (code := owner_of(network)) is not None else set()
    roots -= {"distill", "prune", "__main__"}
    for name in torch.serialization.get_unsafe_globals_in_checkpoint(buffer):
        if name.split(".")[0] not in roots:
            raise TypeError(f"the network holds {name}, which a user of the file may not have")
