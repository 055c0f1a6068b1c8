"""All that is used of timm and torchvision: a port to another version of either is this file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import timm
import torch
import torchvision
from huggingface_hub import try_to_load_from_cache
from timm.data import ImageDataset, create_dataset, create_loader, create_transform, resolve_data_config
from timm.data.readers.img_extensions import get_img_extensions
from timm.models import get_pretrained_cfg
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad, random_seed
from timm.utils.misc import natural_key
from torch import nn

from distill.classifiers.files import LIBRARIES

__all__ = [
    "CosineLRScheduler",
    "ImageDataset",
    "ModelEmaV3",
    "create_dataset",
    "create_loader",
    "create_optimizer_v2",
    "create_transform",
    "dispatch_clip_grad",
    "natural_key",
    "random_seed",
    "resolve_data_config",
]

TIMM, TORCHVISION = LIBRARIES
VERSIONS = {TIMM: timm.__version__, TORCHVISION: torchvision.__version__}
# Of Hugging Face's cache, where timm keeps pretrained weights.
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_TORCHVISION_INPUT = {"interpolation": "bilinear", "crop_pct": 224 / 256}


def architectures(library: str) -> list[str]:
    """The names of a library's classifiers."""
    if library == TIMM:
        return timm.list_models()
    return torchvision.models.list_models(module=torchvision.models)


def tags(arch: str) -> list[str]:
    """The names of timm's pretrained weights of an architecture, as `resnet18.a1_in1k`."""
    return timm.list_models(f"{arch}.*", pretrained=True)


def create(library: str, name: str, **options: Any) -> nn.Module:
    """A network with random weights. `options`: as `timm.create_model` and `torchvision.models.get_model` take them.

    Its attribute `pretrained_cfg` says how images are shown to it, of either library.
    """
    if library == TIMM:
        return timm.create_model(name, pretrained=False, **options)
    extra = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    model = torchvision.models.get_model(name, weights=None, **extra, **options)
    input_config = {name: list(value) for name, value in _imagenet().items()}
    model.pretrained_cfg = {**input_config, **_TORCHVISION_INPUT, "input_size": (3, 224, 224)}
    return model


def _imagenet() -> dict[str, tuple[float, ...]]:
    return {"mean": timm.data.IMAGENET_DEFAULT_MEAN, "std": timm.data.IMAGENET_DEFAULT_STD}


def cached_weights(library: str, name: str) -> Path | None:
    """The file of a network's pretrained weights, if it is in the cache of this machine. Nothing is downloaded."""
    if library == TORCHVISION:
        return _in_torch_hub(torchvision.models.get_model_weights(name).DEFAULT.url)
    cfg = get_pretrained_cfg(name)
    if cfg is None:
        return None
    if cfg.hf_hub_id:
        for file in filter(None, (cfg.hf_hub_filename, *_WEIGHT_FILES)):
            found = try_to_load_from_cache(cfg.hf_hub_id.split("@")[0], file)
            if isinstance(found, str):
                return Path(found)
    return _in_torch_hub(cfg.url) if isinstance(cfg.url, str) else None


def _in_torch_hub(url: str) -> Path | None:
    file = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(urlparse(url).path)
    return file if file.is_file() else None


def pretrained(library: str, name: str, file: Path) -> nn.Module:
    """A network with the weights of a file from the cache."""
    if library == TIMM:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay={"file": str(file), "source": "timm"})
    model = create(library, name)
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model


def input_of(model: nn.Module, size: int | None = None) -> dict[str, Any]:
    """How images are shown to a network: `input_size`, `mean`, `std`, `interpolation`, `crop_pct`, `crop_mode`."""
    args = {} if size is None else {"input_size": (3, size, size)}
    return resolve_data_config(args, pretrained_cfg=model.pretrained_cfg)


def transform(config: Mapping[str, Any]) -> Callable[[Any], torch.Tensor]:
    """What validation does to an image. `config`: from `input_of`."""
    return create_transform(**config, is_training=False)


def image_endings() -> frozenset[str]:
    """The endings of files that timm takes for images."""
    return frozenset(get_img_extensions(as_set=True))
