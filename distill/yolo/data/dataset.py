"""Data sets: what a `data.yaml` or a folder of images says, checked once, then handed to training and evaluation.

`load` opens every image and label once and keeps the labels in memory. So nothing is scanned twice, and nothing is written
beside the user's images, which may be read-only. ultralytics' own readers download, run scripts and leave files.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from distill.errors import DistillError
from distill.machine.progress import ProgressCallback
from distill.machine.words import abridge, brief
from distill.results.records import Brief
from distill.yolo.data import classes, datafile, keypoints, labels
from distill.yolo.data.files import FORMATS, find_images, identities
from distill.yolo.data.labels import Records
from distill.yolo.data.rows import Content
from distill.yolo.tasks.detect import DETECT
from distill.yolo.tasks.task import Task

Split = Literal["train", "val", "unlabelled"]

UNLABELLED = "unlabelled"  # the split of images without labels beside labelled ones, and their key in a recipe
MIN_CLASS_OBJECTS = 5  # AP of a class with fewer objects says little
MIN_VAL_OBJECTS = 100  # with fewer objects in val every AP says little, and the owner of the data knows


@dataclass(frozen=True, repr=False)
class DataSet(Brief):
    """A checked data set."""

    path: Path  # the data.yaml, or the folder of images
    names: dict[int, str] | None  # class names by id; None for a folder
    train: tuple[Path, ...] = field(repr=False)  # image files to calibrate on and to learn from
    # Image files to measure on. Of a folder, a fifth that is held back, the same whenever it is opened; all images, as in
    # `train`, if there are fewer than 10.
    val: tuple[Path, ...] = field(repr=False)
    labelled: bool  # False for a folder of images: there is no mAP then
    config: dict[str, Any] = field(repr=False)  # what ultralytics' trainer calls `self.data`
    notes: tuple[str, ...] = ()  # how the data were read, where that is not obvious
    warnings: tuple[str, ...] = ()  # what the user should know although it stops nothing
    records: dict[str, Records] = field(default_factory=dict, repr=False, compare=False)  # of each split
    videos: tuple[Path, ...] = ()  # images to come: see `distill.yolo.data.unlabelled`
    task: Task = DETECT  # what the labels are for

    @property
    def unlabelled(self) -> tuple[Path, ...]:
        """Image files without labels beside the labelled ones of `train`; none if those have no labels either."""
        return tuple(Path(record["im_file"]) for record in self.records.get(UNLABELLED, ()))


def load(
    path: str | Path,
    names: Mapping[int, str] | None = None,
    *,
    single_cls: bool = False,
    progress: ProgressCallback | None = None,
    task: Task = DETECT,
    keys: Mapping[str, Any] | None = None,
) -> DataSet:
    """Open a data set and check all of it.

    Args:
        path: a YOLO data.yaml, with labels; or a folder of images, without. Images in its subfolders count.
        names: the model's classes, to compare with the data's.
        single_cls: the model was trained with ultralytics' `single_cls`: to it every object is of class 0.
        progress: shows a bar over the images.
        task: what the labels are for.
        keys: what a data.yaml must say for the model, or lacks if the data are a folder: `kpt_shape`.

    Raises:
        DistillError: nothing there, no images, no labels, classes that do not fit `names`, label files with unknown
            classes, labels for another task. A damaged image is left out and named in `warnings`.
    """
    path = Path(os.path.expanduser(path))
    if os.path.isdir(path):
        return replace(_load_folder(path, names, progress, keys or {}), task=task)
    shown = brief(path, 200)
    if not os.path.exists(path):
        raise DistillError(f"{shown}: no such file or folder: 'data' is a YOLO data.yaml or a folder of images")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise DistillError(f"{shown}: 'data' must be a YOLO data.yaml or a folder of images")
    file = datafile.read(path)
    warnings = classes.compare(path, file.names, names)
    own = _keys(path, file.keypoints, keys or {}, task)
    known = Content(file.names, keypoints.shape_of(file.keypoints), task.rows)
    train, val = (labels.read(path, key, getattr(file, key), known, progress) for key in ("train", "val"))
    warnings += [*train.warnings, *val.warnings, *_rare_classes(path, file.names, val.records)]
    seen = set(identities(record["im_file"] for record in train.records))
    if shared := len(seen & set(identities(record["im_file"] for record in val.records))):
        warnings.append(f"{shared} of the {len(val.records)} images of 'val' are in 'train' too: mAP looks too good")
    if not any(len(record["cls"]) for record in train.records):
        warnings.append("there is not one object in the labels of 'train': training teaches to find nothing")
    if single_cls and len({int(cls) for record in val.records for cls in record["cls"][:, 0]} | {0}) > 1:
        warnings.append(
            f"the model was trained with single_cls: it takes every object for class 0, '{brief(file.names[0])}', and the "
            "labels have more classes, so mAP says nothing: give labels in which every class is 0"
        )
    notes = (*file.notes, *train.notes, *val.notes)
    records = {"train": train.records, "val": val.records}
    return replace(_assemble(path, file.root, file.names, True, records, notes, warnings, own), task=task)


def names_in(path: str | Path) -> dict[int, str] | None:
    """The class names of a data.yaml by id; None of a folder of images. Raises `DistillError`: it cannot be read."""
    path = Path(os.path.expanduser(path))
    return None if path.is_dir() else datafile.names_in(path)


def keypoints_in(path: str | Path) -> tuple[int, int] | None:
    """Points of an object and numbers of each in a data.yaml; None if it has none, and of a folder. Raises `DistillError`."""
    path = Path(os.path.expanduser(path))
    return None if path.is_dir() else datafile.keypoints_in(path)


def fingerprint(data: DataSet) -> str:
    """Images and labels in a word, which is another one if any was added, removed or changed; folders may be moved."""
    digest = hashlib.sha256()
    for split, records in sorted(data.records.items()):
        for record in records:
            digest.update(f"{split} {os.path.basename(record['im_file'])} {record['bytes']} ".encode(errors="replace"))
            digest.update(record["cls"].tobytes() + record["bboxes"].tobytes())
            if data.task.rows.strict:  # boxes are all that a detector learns from
                points = record["keypoints"]
                parts = record["segments"] if points is None else [points]
                digest.update(b"".join(np.ascontiguousarray(part).tobytes() for part in parts))
    counts = " + ".join(str(len(images)) for images in (data.train, data.val, data.unlabelled) if images)
    return f"{counts} images, {digest.hexdigest()[:12]}"


def _keys(path: Path, given: Mapping[str, Any], wanted: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """What a data.yaml says for its task beside classes. Raises `DistillError`: it is wrong, or not what the model has."""
    if not task.rows.keypoints:
        return {}
    keypoints.check(path, given, wanted)
    return dict(given)


def _load_folder(
    path: Path, names: Mapping[int, str] | None, progress: ProgressCallback | None, keys: Mapping[str, Any]
) -> DataSet:
    for file in (path / "data.yaml", path / "data.yml"):
        if file.is_file():
            raise DistillError(f"{path}: is a folder with a {file.name}: give that file, or a folder of images only")
    images = find_images(path.absolute())
    if not images:
        raise DistillError(f"{path}: no images in this folder (looked for {FORMATS})")
    split = labels.read(path, "images", images, None, progress)
    warnings = list(split.warnings)
    train, val = labels.hold_back(split.records)
    if train == val:
        warnings.append(
            f"{path}: {len(val)} images are too few to hold some back: the student is measured on the images that it "
            f"learns from, which looks too good. Give {labels.MIN_TO_SPLIT} or more"
        )
    known = dict(names) if names else {0: "object"}
    return _assemble(path, path.absolute(), known, False, {"train": train, "val": val}, split.notes, warnings, keys)


def _rare_classes(path: Path, names: Mapping[int, str], records: Records) -> list[str]:
    """A warning of classes with hardly any objects in a val that has many of others; an error if it has none at all."""
    counts = Counter(int(cls) for record in records for cls in record["cls"][:, 0])
    if not counts:
        raise DistillError(f"{path}: there is not one object in the labels of 'val', so no mAP to measure")
    ascending = sorted(counts.items(), key=lambda item: item[1])
    rare = [f"{names[cls]} {count}" for cls, count in ascending if count < MIN_CLASS_OBJECTS]
    if not rare or counts.total() < MIN_VAL_OBJECTS:
        return []
    few = f"fewer than {MIN_CLASS_OBJECTS} objects of {len(rare)} of its {len(counts)} classes ({abridge(rare, ', ')})"
    return [f"'val' has {few}: a box or two decide their AP, and each is 1/{len(counts)} of mAP"]


def _assemble(
    path: Path,
    root: Path,
    names: dict[int, str],
    labelled: bool,
    records: dict[str, Records],
    notes: Sequence[str],
    warnings: Sequence[str],
    keys: Mapping[str, Any],
) -> DataSet:
    files = {split: [record["im_file"] for record in records[split]] for split in records}
    config = {"path": root, **files, "names": names, "nc": len(names), "channels": 3, **keys}
    train, val = (tuple(map(Path, files[split])) for split in ("train", "val"))
    own = names if labelled else None
    return DataSet(path, own, train, val, labelled, config, tuple(notes), tuple(warnings), records)
