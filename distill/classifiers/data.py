"""Images by class, as timm reads them: root/train/CLASS and root/val/CLASS, a set of torchvision's, or images alone."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from distill.classifiers import upstream
from distill.classifiers.checkpoint import numbered
from distill.errors import DistillError
from distill.machine.progress import ProgressCallback
from distill.machine.words import abridge, brief
from distill.results.records import Brief

TORCH = "torch/"  # a set of torchvision's, on disk: torch/cifar10:FOLDER, by timm's name for it
TRAIN, VAL = "train", "validation"
_FOLDERS = {TRAIN: ("train", "training"), VAL: ("val", "valid", "validation", "eval", "test")}
_HELD_BACK = 5  # one in so many images of a folder without classes is measured on
_FEWEST = 10  # images of such a folder, of which some can be held back
_NAMED = 5  # of what is wrong, so many are named


@dataclass(frozen=True, repr=False)
class ImageSet(Brief):
    """A checked data set. `files` and `classes` are of each split, in the order in which timm's dataset has them."""

    path: Path  # what the recipe names as `data`
    names: dict[int, str] | None  # class names by id; None without labels
    files: Mapping[str, tuple[Path, ...]] = field(repr=False)
    classes: Mapping[str, tuple[int, ...]] = field(repr=False)  # -1 without labels
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    unlabelled: tuple[Path, ...] = ()
    videos: tuple[Path, ...] = ()

    @property
    def train(self) -> tuple[Path, ...]:
        """The training images."""
        return self.files[TRAIN]

    @property
    def val(self) -> tuple[Path, ...]:
        """The images to measure on."""
        return self.files[VAL]

    @property
    def labelled(self) -> bool:
        """Whether the images lie in folders of their classes."""
        return self.names is not None

    def dataset(self, split: str) -> Any:
        """A split as timm's loader takes it, without a transform."""
        if (name := _torch_name(self.path)) is not None:
            return _torch_dataset(*name, split)
        return upstream.ImageDataset(str(self.path), reader=_Listed(self.files[split], self.classes[split]))


class _Coloured:
    """A set of torchvision's with images of three channels, as networks take them, whatever it holds."""

    def __init__(self, images: Any) -> None:
        self.images, self.targets, self.classes = images, images.targets, getattr(images, "classes", None)
        self.transform: Any = None

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, target = self.images[index]
        image = image.convert("RGB")
        return image if self.transform is None else self.transform(image), target

    def __len__(self) -> int:
        return len(self.images)


class _Listed:
    """A reader, as timm calls what finds images: of files that were found and checked before."""

    def __init__(self, files: Sequence[Path], classes: Sequence[int]) -> None:
        self.files, self.classes = files, classes

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return open(self.files[index], "rb"), self.classes[index]

    def __len__(self) -> int:
        return len(self.files)


def load(
    path: str | Path, known: Mapping[int, str] | None = None, *, progress: ProgressCallback | None = None
) -> ImageSet:
    """Open a data set and check it.

    Args:
        path: a folder with `train` and `val`, and in each a folder for each class; a folder of images without classes,
            of which a fifth is held back to measure on; or `torch/cifar10:FOLDER`.
        known: the network's classes, to compare with the data's.
        progress: shows a bar over the images.

    Raises:
        DistillError: nothing there, no images, classes that differ between the splits or from the network's.
    """
    if (name := _torch_name(path)) is not None:
        return _checked(_torch_set(Path(path), *name), known)
    root, shown = Path(os.path.expanduser(path)), brief(path, 200)
    if not root.is_dir():
        raise DistillError(
            f"{shown}: no such folder: 'data' of a classifier is a folder with train/CLASS and val/CLASS"
        )
    places = {split: _folder(root, split) for split in (TRAIN, VAL)}
    if places[TRAIN] is None and places[VAL] is None:
        return _without_labels(root, known, progress)
    found: dict[str, dict[Path, str]] = {}
    warnings: list[str] = []
    for split, place in places.items():
        if place is None:
            raise DistillError(f"{shown}: there is no folder '{_FOLDERS[split][0]}' beside the other: make one")
        found[split] = _by_class(place, warnings, progress)
    names = _classes(shown, found, warnings)
    ids = {name: number for number, name in names.items()}
    files = {split: tuple(each) for split, each in found.items()}
    classes = {split: tuple(ids[name] for name in each.values()) for split, each in found.items()}
    return _checked(ImageSet(root, names, files, classes, warnings=tuple(warnings)), known)


def names_in(path: str | Path) -> dict[int, str] | None:
    """The class names by id; None of images without classes. Raises `DistillError`: it cannot be read."""
    return load(path).names


def fingerprint(data: ImageSet) -> str:
    """Images and classes in a word, which is another one if any was added, removed or changed; folders may be moved."""
    digest = hashlib.sha256()
    for split, files in sorted(data.files.items()):
        for file, number in zip(files, data.classes[split], strict=True):
            size = file.stat().st_size if file.is_file() else 0
            digest.update(f"{split} {file.name} {number} {size} ".encode(errors="replace"))
    counts = " + ".join(str(len(files)) for files in data.files.values())
    return f"{counts} images, {digest.hexdigest()[:12]}"


def calibration(network: nn.Module, data: ImageSet, count: int, size: int, seed: int = 0) -> Tensor:
    """Training images exactly as validation would show them to the network, (count, 3, size, size), normalised.

    Args:
        network: whose mean, deviation and crop count.
        data: the images.
        count: how many, drawn without replacement; all of them if there are fewer.
        size: side in pixels.
        seed: of the draw. The same seed gives the same images in the same order.
    """
    dataset = data.dataset(TRAIN)
    dataset.transform = upstream.transform(upstream.input_of(network, size))
    chosen = np.random.default_rng(seed).permutation(len(dataset))[:count]
    return torch.stack([dataset[int(index)][0] for index in chosen])


def _folder(root: Path, split: str) -> Path | None:
    return next((root / name for name in _FOLDERS[split] if (root / name).is_dir()), None)


def _by_class(place: Path, warnings: list[str], progress: ProgressCallback | None) -> dict[Path, str]:
    """The readable images of a split with the folder of each, as `find_images_and_targets` of timm orders them."""
    reader = upstream.ImageDataset(str(place)).reader if _has_images(place) else None
    if reader is None:
        raise DistillError(f"{place}: no images in the folders of classes: put them into {place}/CLASS")
    folders = {number: name for name, number in reader.class_to_idx.items()}
    if "" in folders.values():
        raise DistillError(f"{place}: there are images beside the folders of classes: put each into {place}/CLASS")
    samples = {Path(file): folders[number] for file, number in reader.samples}
    kept = _readable(samples, place.name, warnings, progress)
    return {file: samples[file] for file in kept}


def _has_images(place: Path) -> bool:
    known = upstream.image_endings()
    return any(Path(name).suffix.lower() in known for _, _, names in os.walk(place, followlinks=True) for name in names)


def _readable(
    files: Sequence[Path] | Mapping[Path, Any], what: str, warnings: list[str], progress: ProgressCallback | None
) -> list[Path]:
    """The images whose headers are in order; others are named in a warning."""
    kept, damaged = [], []
    for file in progress(list(files), what, len(files), "images") if progress else files:
        try:
            with Image.open(file) as image:
                image.verify()
            kept.append(file)
        except (
            OSError,
            ImportError,
            SyntaxError,
            ValueError,
        ):  # ultralytics has Pillow ask for a package for what is none
            damaged.append(file)
    if not kept:
        raise DistillError(f"{damaged[0]}: this and the other {len(damaged) - 1} images of '{what}' cannot be read")
    if damaged:
        told = abridge([str(file) for file in damaged[:_NAMED]], ", ")
        warnings.append(f"{len(damaged)} images of '{what}' cannot be read and are left out: {told}")
    return kept


def _classes(shown: str, found: Mapping[str, Mapping[Path, str]], warnings: list[str]) -> dict[int, str]:
    """The classes by id, in timm's order of the training folders."""
    train, val = ({*found[split].values()} for split in (TRAIN, VAL))
    if extra := sorted(val - train):
        told = abridge(extra[:_NAMED], ", ")
        raise DistillError(f"{shown}: val has classes that train has not ({told}): nobody can learn them")
    if missing := sorted(train - val):
        warnings.append(f"val has no image of {len(missing)} classes ({abridge(missing[:_NAMED], ', ')})")
    if len(train) < 2:
        raise DistillError(f"{shown}: there is one class, '{next(iter(train))}': a classifier tells two or more apart")
    return dict(enumerate(sorted(train, key=upstream.natural_key)))


def _checked(data: ImageSet, known: Mapping[int, str] | None) -> ImageSet:
    """Refuse data of other classes than the network's."""
    if known is None or data.names is None:
        return data
    shown = brief(data.path, 200)
    if len(data.names) != len(known):
        raise DistillError(
            f"{shown}: has {len(data.names)} classes ({abridge(list(data.names.values()), ', ')}) and the network "
            f"{len(known)}: give the data that it was trained on"
        )
    if dict(known) != numbered(len(known)) and dict(known) != data.names:
        number = next(number for number, name in known.items() if name != data.names[number])
        raise DistillError(
            f"{shown}: class {number} is '{data.names[number]}', and of the network '{known[number]}': give the data that "
            "it was trained on"
        )
    return data


def _without_labels(root: Path, known: Mapping[int, str] | None, progress: ProgressCallback | None) -> ImageSet:
    """Images without classes: a fifth is held back, the same whenever the folder is opened."""
    if not _has_images(root):
        raise DistillError(f"{root}: no images: give a folder with train/CLASS and val/CLASS, or a folder of images")
    warnings: list[str] = []
    files = _readable(sorted(_images_in(root)), root.name, warnings, progress)
    held = [file for file in files if _draw(file.relative_to(root)) % _HELD_BACK == 0]
    train = [file for file in files if file not in set(held)]
    if len(files) < _FEWEST or not held or not train:
        train = held = files
        warnings.append(
            f"{root}: {len(files)} images are too few to hold some back: the student is measured on the images that it "
            f"learns from, which looks too good. Give {_FEWEST} or more"
        )
    split = {TRAIN: tuple(train), VAL: tuple(held)}
    classes = {name: (-1,) * len(each) for name, each in split.items()}
    note = f"{root}: has no folders train and val, so its images count without classes"
    return ImageSet(root, None, split, classes, (note,), tuple(warnings))


def _images_in(root: Path) -> list[Path]:
    known = upstream.image_endings()
    walked = ((place, names) for place, _, names in os.walk(root, followlinks=True))
    return [Path(place) / name for place, names in walked for name in names if Path(name).suffix.lower() in known]


def _draw(file: Path) -> int:
    return int.from_bytes(hashlib.sha256(os.fsencode(file)).digest()[:4], "big")


def _torch_name(path: str | Path) -> tuple[str, Path] | None:
    """Name and folder of `torch/NAME:FOLDER`; None of another path."""
    text = str(path)
    if not text.startswith(TORCH) or os.path.exists(text):
        return None
    name, separator, folder = text.removeprefix(TORCH).partition(":")
    if not separator or not Path(folder).expanduser().is_dir():
        raise DistillError(f"{text}: give torch/NAME:FOLDER, as torch/cifar10:/data, with the folder that it lies in")
    return name, Path(folder).expanduser()


def _torch_dataset(name: str, folder: Path, split: str) -> Any:
    try:
        return _Coloured(upstream.create_dataset(f"{TORCH}{name}", root=str(folder), split=split, download=False))
    except (AssertionError, RuntimeError, OSError, ValueError) as error:
        raise DistillError(f"{TORCH}{name}:{folder}: {str(error).splitlines()[0]} (nothing is downloaded)") from error


def _torch_set(path: Path, name: str, folder: Path) -> ImageSet:
    """A set of torchvision's: its images have no files, so their numbers stand for them."""
    sets = {split: _torch_dataset(name, folder, split) for split in (TRAIN, VAL)}
    targets = {split: tuple(int(target) for target in dataset.targets) for split, dataset in sets.items()}
    count = max(targets[TRAIN]) + 1
    listed = sets[TRAIN].classes
    names = dict(enumerate(map(str, listed))) if listed and len(listed) == count else numbered(count)
    files = {split: tuple(path / split / str(number) for number in range(len(each))) for split, each in targets.items()}
    return ImageSet(path, names, files, targets)
