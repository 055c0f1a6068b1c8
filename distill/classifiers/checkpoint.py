"""Classifiers from names and files: opened without executing what is pickled, built, and saved as plain data."""

from __future__ import annotations

import argparse
import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from distill.classifiers import files, names, upstream
from distill.classifiers.names import Architecture
from distill.classifiers.network import head_of
from distill.classifiers.upstream import TORCHVISION
from distill.classifiers.widths import attributes_of, resize, shapes_of
from distill.errors import DistillError, first_line
from distill.kinds.opened import Opened
from distill.machine.files import write_bytes
from distill.machine.words import printable

_INPUT = ("mean", "std", "interpolation", "crop_pct", "crop_mode")  # of a trainer's arguments: how images are shown
_WEIGHTS = ("state_dict_ema", "model_ema", "state_dict", "model")  # the average over the training first
_TRAINERS = "what timm's trainer saved, the student of a run, or weights with model=timm/... or model=torchvision/..."


@dataclass(frozen=True)
class Content:
    """What a file says of its network."""

    architecture: Architecture | None  # None if it holds weights alone
    state: dict[str, Tensor]
    options: dict[str, Any] = field(default_factory=dict)  # that the architecture is made with, beside its classes
    attributes: dict[str, dict[str, Any]] = field(default_factory=dict)  # see `distill.classifiers.widths`
    input: dict[str, Any] = field(default_factory=dict)  # how images are shown, as far as it says
    names: dict[int, str] | None = None
    imgsz: int | None = None
    plan: dict[str, Any] | None = None


def read(path: Path) -> Content:
    """What a file of weights holds.

    Raises:
        DistillError: it cannot be read, or holds something else.
    """
    try:
        content = files.read(path)
    except FileNotFoundError:
        raise DistillError(f"{path}: no such file") from None
    except files.UNREADABLE as error:
        raise DistillError(
            f"{path} holds no plain weights ({printable(first_line(error), 160)}): give {_TRAINERS}"
        ) from None
    return _content(path, content)


def _content(path: Path, content: Any) -> Content:
    if not isinstance(content, dict):
        raise DistillError(f"{path} holds {type(content).__name__}, no weights: give {_TRAINERS}")
    key = next((key for key in _WEIGHTS if isinstance(content.get(key), dict)), None)
    state = {
        str(name).removeprefix("module.").removeprefix("_orig_mod."): value
        for name, value in (content if key is None else content[key]).items()
        if isinstance(value, Tensor) and name != "n_averaged"  # the number beside torchvision's average
    }
    if not state:
        raise DistillError(f"{path} holds no weights: give {_TRAINERS}")
    if isinstance(ours := content.get("distill"), dict) and "library" in ours:
        return _ours(path, ours, state)
    args = content.get("args")
    given = vars(args) if isinstance(args, argparse.Namespace) else args if isinstance(args, dict) else {}
    says = files.architecture_in(content)
    architecture = Architecture(*says) if says else None
    options = dict(given.get("model_kwargs") or {}) if architecture else {}
    shown = {name: given[name] for name in _INPUT if given.get(name) is not None}
    size = given.get("img_size") or (given.get("input_size") or [None])[-1] or given.get("train_crop_size")
    if architecture and architecture.library == TORCHVISION:
        shown = {"interpolation": given["interpolation"]} if isinstance(given.get("interpolation"), str) else {}
    return Content(architecture, state, options, input=shown, imgsz=size if isinstance(size, int) else None)


def _ours(path: Path, ours: dict[str, Any], state: dict[str, Tensor]) -> Content:
    """What `save` wrote."""
    try:
        return Content(
            Architecture(ours["library"], ours["arch"]),
            state,
            dict(ours["options"]),
            dict(ours["attributes"]),
            dict(ours["input"]),
            {int(key): str(name) for key, name in ours["names"].items()},
            ours["imgsz"],
            ours["plan"],
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DistillError(f"{path} is damaged: {first_line(error)}") from error


def load(model: str | Path, weights: str | None = None) -> Opened:
    """Open a classifier.

    Args:
        model: `timm/...` or `torchvision/...`, whose pretrained weights must be in the cache of this machine; or a file.
        weights: a file with the weights for a name.

    Raises:
        DistillError: no such name or file, no weights on this machine, or weights of another network.
    """
    text = str(model)
    if not names.named(text) or Path(text).is_file():
        return _opened(Path(text), read(Path(text)))
    architecture = names.find(text)
    if weights is not None:
        content = read(Path(weights))
        return _opened(Path(weights), Content(architecture, content.state, content.options, input=content.input))
    file = upstream.cached_weights(architecture.library, architecture.name)
    if file is None:
        raise DistillError(
            f"model: the pretrained weights of {architecture} are not on this machine, and nothing is downloaded: give "
            "weights=FILE, the checkpoint that your training saved, or teacher.train to train one"
        )
    try:
        network = upstream.pretrained(architecture.library, architecture.name, file)
    except files.UNREADABLE as error:
        raise DistillError(f"{file} is damaged: {first_line(error)}: remove it, and fetch it again") from error
    return _finished(network, architecture, {}, None, None, Path(text), None)


def _opened(path: Path, content: Content) -> Opened:
    """The network of a file."""
    architecture = content.architecture
    if architecture is None:
        mend = "give model=timm/NAME (or torchvision/NAME) and weights= this file"
        raise DistillError(f"{path} holds weights and does not say of which network: {mend}")
    if architecture.library not in files.LIBRARIES:
        raise DistillError(f"{path} is of {printable(architecture.library, 60)}: only timm and torchvision are known")
    names.find(str(architecture), str(path))
    options = {**content.options, **_classes(path, architecture, content)}
    try:
        network = upstream.create(architecture.library, architecture.arch, **options)
        resize(network, content.attributes, content.state)
    except Exception as error:  # whatever options and tensors of another network lead to
        what = _mismatch(architecture, options, content) or first_line(error)
        raise DistillError(f"{path} holds no weights of {architecture}: {printable(what, 200)}") from error
    _show_as(network, content.input)
    return _finished(network, architecture, options, content.names, content.imgsz, path, content.plan)


def _classes(path: Path, architecture: Architecture, content: Content) -> dict[str, int]:
    """The number of classes, as the last layer of the weights has it."""
    if "num_classes" in content.options:
        return {}
    with torch.device("meta"):
        whole = upstream.create(architecture.library, architecture.arch)
    weight = content.state.get(f"{head_of(whole)}.weight")
    if weight is None:
        raise DistillError(f"{path} holds no weights of {architecture}: it has no '{head_of(whole)}.weight'")
    return {"num_classes": len(weight)}


def _mismatch(architecture: Architecture, options: Mapping[str, Any], content: Content) -> str:
    """The first tensor in which the weights are of another network; empty if that is not what is wrong."""
    try:
        with torch.device("meta"):
            whole = upstream.create(architecture.library, architecture.arch, **options).state_dict()
    except Exception:  # noqa: BLE001 - the options are wrong: its message says that
        return ""
    for name, value in whole.items():
        if name not in content.state:
            return f"it has no '{name}'"
        if not content.attributes and content.state[name].shape != value.shape:
            return f"'{name}' is {tuple(content.state[name].shape)}, and there {tuple(value.shape)}"
    return next((f"it has '{name}' besides" for name in content.state if name not in whole), "")


def build(model: str, classes: Mapping[int, str], *, seed: int = 0, key: str = "teacher.train.model") -> nn.Module:
    """A new network of an architecture, on the CPU; or one with the weights of a checkpoint, all that fit.

    Args:
        model: `timm/...` or `torchvision/...`, or a file.
        classes: their names by id.
        seed: of the random weights.
        key: of the recipe, that messages name.

    Raises:
        DistillError: there is no such architecture, or no such file.
    """
    content = None if names.named(model) else read(Path(model))
    architecture = names.find(model, key) if content is None else content.architecture
    if architecture is None:
        raise DistillError(f"{key}: {model} holds weights and does not say of which network: give timm/NAME")
    options = {**(content.options if content else {}), "num_classes": len(classes)}
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        network = upstream.create(architecture.library, architecture.arch, **options)
    if content is not None:
        own = network.state_dict()
        fits = {name: value for name, value in content.state.items() if name in own and own[name].shape == value.shape}
        network.load_state_dict(fits, strict=False)
    return _noted(network, architecture, options)


def _show_as(network: Any, shown: Mapping[str, Any]) -> None:
    """Have images shown to a network as its file says."""
    network.pretrained_cfg = {**network.pretrained_cfg, **shown}


def _finished(
    network: nn.Module,
    architecture: Architecture,
    options: Mapping[str, Any],
    classes: dict[int, str] | None,
    imgsz: int | None,
    source: Path,
    plan: dict[str, Any] | None,
) -> Opened:
    count = _outputs(network)
    known = classes if classes is not None and len(classes) == count else numbered(count)
    size = imgsz or upstream.input_of(network)["input_size"][-1]
    options = {**options, "num_classes": count}
    return Opened(_noted(network, architecture, options).float().eval(), known, size, source, plan)


def numbered(count: int) -> dict[int, str]:
    """The names of classes that nobody has named."""
    return {number: str(number) for number in range(count)}


def _outputs(network: nn.Module) -> int:
    last: Any = network.get_submodule(head_of(network))
    return last.out_features if isinstance(last, nn.Linear) else last.out_channels


def _noted(network: nn.Module, architecture: Architecture, options: Mapping[str, Any]) -> nn.Module:
    """The network, with what it was made of: a copy and a student have it too."""
    network.made_of = {"library": architecture.library, "arch": architecture.arch, "options": dict(options)}  # type: ignore[assignment]
    return network


def about(model: nn.Module, classes: Mapping[int, str], imgsz: int) -> dict[str, Any]:
    """All of a network but its weights, as plain data: what student.json holds."""
    made: Any = model.made_of
    with torch.device("meta"):
        whole = upstream.create(made["library"], made["arch"], **made["options"])
    shown = {name: value for name, value in upstream.input_of(model).items() if name != "input_size"}
    return {
        **made,
        "attributes": attributes_of(model, whole),
        "input": json.loads(json.dumps(shown)),
        "imgsz": imgsz,
        "names": dict(classes),
        "shapes": shapes_of(model),
    }


def save(
    model: nn.Module, path: Path, *, classes: Mapping[int, str], imgsz: int, plan: dict[str, Any] | None = None
) -> None:
    """Write the weights, and as plain data what they are of. `torch.load(path, weights_only=True)` reads all of it.

    Args:
        model: the network; it is not changed.
        path: the file to write; its folder must be there.
        classes: their names by id.
        imgsz: side in pixels of the images that it is used on.
        plan: what cut it.

    Raises:
        RunError: the disk is full or not writable.
    """
    state = {name: value.detach().cpu() for name, value in copy.deepcopy(model).float().state_dict().items()}
    ours = about(model, classes, imgsz) | {"plan": json.loads(json.dumps(plan))}
    del ours["shapes"]  # the weights have them
    buffer = io.BytesIO()
    torch.save({"arch": ours["arch"], "state_dict": state, "distill": ours}, buffer)
    write_bytes(path, buffer.getbuffer())
