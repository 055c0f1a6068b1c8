"""Data sets: what a `data.yaml` or a folder of images says, checked once, then handed to training and evaluation.

`load` opens every image and label once and keeps the labels in memory, so nothing is scanned twice and nothing is written
beside the user's images, which may be read-only. A trainer must take both halves from here and from
`distill.yolo.data.images.build_dataset`, never from ultralytics: its `check_det_dataset` downloads and runs scripts, and its
`YOLODataset` writes *.cache files and rewrites JPEGs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from distill.errors import DistillError
from distill.machine.progress import ProgressCallback
from distill.yolo.data import datafile, labels

Split = Literal["train", "val"]

FEW = 5  # objects of a class, with fewer of which its AP says little
WHOLE = 100  # objects in a val: below that every AP says little, and its owner knows
_SHOWN = 5  # damaged images or rare classes named in a warning


@dataclass(frozen=True)
class DataSet:
    """A checked data set.

    Attributes:
        path: the data.yaml, or the folder of images.
        names: its classes by id; None for a folder.
        train: image files to calibrate on and to learn from.
        val: image files to measure on: of a folder, a fifth that is held back, the same whenever it is opened. A folder
            of fewer than 10 images has all of them in both.
        labelled: False for a folder of images: there is no mAP then.
        config: what ultralytics' trainer calls `self.data`, with lists of image files for `train` and `val`.
        warnings: what the user should know though it stops nothing: images left out, classes named differently.
        records: the labels of each split, see `distill.yolo.data.labels.Labels`.
    """

    path: Path
    names: dict[int, str] | None
    train: tuple[Path, ...] = field(repr=False)
    val: tuple[Path, ...] = field(repr=False)
    labelled: bool
    config: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()
    records: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict, repr=False, compare=False)


def load(
    path: str | Path, names: Mapping[int, str] | None = None, *, progress: ProgressCallback | None = None
) -> DataSet:
    """Open a data set and check all of it, so that what is wrong shows now and not after an hour of training.

    Args:
        path: a YOLO data.yaml, with labels; or a folder of images, without. Images in its subfolders count.
        names: the model's classes, to compare with the data's.
        progress: `Console.track`, for a bar over the images.

    Raises:
        DistillError: nothing there, no images, no labels, classes that do not fit `names`, label files with unknown
            classes. A damaged image is left out and named in `warnings`.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return _load_folder(path, names, progress)
    if not path.exists():
        raise DistillError(f"{path}: no such file or folder: 'data' is a YOLO data.yaml or a folder of images")
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise DistillError(f"{path}: 'data' must be a YOLO data.yaml or a folder of images")
    file = datafile.read(path)
    warnings = _compare_names(path, file.names, names)
    records: dict[str, tuple[dict[str, Any], ...]] = {}
    for key, found in (("train", file.train), ("val", file.val)):
        read = _read(path, key, found, file.names, progress)
        if read.unlabelled == len(found):
            place = datafile.label_files(found[:1])[0]
            raise DistillError(
                f"{path}: no label file for any of the {len(found)} images of '{key}' (looked for {place} and so on): "
                "to work without labels give the folder of images as 'data'"
            )
        if 2 * read.unlabelled > len(found):
            warnings.append(
                f"{read.unlabelled} of the {len(found)} images of '{key}' have no label file: counted as empty"
            )
        warnings += _left_out(key, found, read)
        records[key] = read.records
    warnings += _rare(path, file.names, records["val"])
    warnings += _seen(records)
    if not any(len(record["cls"]) for record in records["train"]):
        warnings.append("there is not one object in the labels of 'train': they teach that there is nothing to find")
    return _assemble(path, file.root, file.names, True, records, warnings)


def _load_folder(path: Path, names: Mapping[int, str] | None, progress: ProgressCallback | None) -> DataSet:
    for file in (path / "data.yaml", path / "data.yml"):
        if file.is_file():
            raise DistillError(
                f"{path}: is a folder with a {file.name}: give that file, or a folder of nothing but images"
            )
    found = tuple(datafile.find_images(path.absolute()))
    if not found:
        raise DistillError(f"{path}: no images in this folder (looked for {', '.join(sorted(datafile.IMG_FORMATS))})")
    read = _read(path, "images", found, None, progress)
    classes = dict(names) if names else {0: "object"}
    train, val = labels.hold_back(read.records)
    warnings = _left_out("images", found, read)
    if train == val:
        warnings.append(
            f"{path}: {len(val)} images are too few to hold some back: what is measured on those that were learned from "
            f"looks too good. Give {labels.ENOUGH} or more"
        )
    return _assemble(path, path.absolute(), classes, False, {"train": train, "val": val}, warnings)


def _read(
    path: Path, key: str, found: tuple[Path, ...], names: Mapping[int, str] | None, progress: ProgressCallback | None
) -> labels.Labels:
    try:
        return labels.read(found, names, label=f"checking {key}", progress=progress)
    except DistillError as error:
        raise DistillError(f"{path}: '{key}': {error}") from error


def _left_out(key: str, found: tuple[Path, ...], read: labels.Labels) -> list[str]:
    if not read.problems:
        return []
    return [f"{len(read.problems)} of the {len(found)} images of '{key}' left out: {_first(read.problems, '; ')}"]


def _rare(path: Path, names: Mapping[int, str], records: Sequence[Mapping[str, Any]]) -> list[str]:
    """A warning of classes with next to no objects in a val that has many of others; raises where it has none at all."""
    counts = Counter(int(cls) for record in records for cls in record["cls"][:, 0])
    if not counts:
        raise DistillError(f"{path}: there is not one object in the labels of 'val', so no mAP to measure")
    few = [f"{names[cls]} {count}" for cls, count in sorted(counts.items(), key=lambda item: item[1]) if count < FEW]
    if not few or counts.total() < WHOLE:
        return []
    having = f"'val' has fewer than {FEW} objects of {len(few)} of its {len(counts)} classes ({_first(few, ', ')})"
    return [f"{having}: a box or two decide their AP, and each is 1/{len(counts)} of mAP"]


def _seen(records: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[str]:
    """A warning where what is measured on was learned from."""
    train, val = ({record["im_file"] for record in records[key]} for key in ("train", "val"))
    if not train & val:
        return []
    return [f"{len(train & val)} of the {len(val)} images of 'val' are in 'train' too: mAP looks too good"]


def _first(items: Sequence[str], separator: str) -> str:
    """As many as a warning has room for."""
    return separator.join((*items[:_SHOWN], *(["..."] if len(items) > _SHOWN else [])))


def _assemble(
    path: Path,
    root: Path,
    names: dict[int, str],
    labelled: bool,
    records: dict[str, tuple[dict[str, Any], ...]],
    warnings: Iterable[str],
) -> DataSet:
    files = {key: [record["im_file"] for record in split] for key, split in records.items()}
    config = {"path": root, **files, "names": names, "nc": len(names), "channels": 3}
    train, val = (tuple(map(Path, files[key])) for key in ("train", "val"))
    return DataSet(path, names if labelled else None, train, val, labelled, config, tuple(warnings), records)


def _compare_names(path: Path, data: Mapping[int, str], model: Mapping[int, str] | None) -> list[str]:
    """Warnings where the classes could be other ones; raises where they must be."""
    if model is None or list(data.values()) == list(model.values()):
        return []
    if len(data) != len(model):
        ours, theirs = (_first(list(names.values()), ", ") for names in (data, model))
        raise DistillError(
            f"{path} has {len(data)} classes ({ours}), the model {len(model)} ({theirs}): they must be those that it was "
            "trained on; train it on these first"
        )
    if sorted(data.values()) == sorted(model.values()):
        raise DistillError(
            f"{path} has the model's classes in another order: the model's is {', '.join(model.values())}"
        )
    other = [
        f"class {i} is '{data[i]}' there and '{model.get(i)}' in the model" for i in data if data[i] != model.get(i)
    ]
    return [f"{path}: {_first(other, '; ')}: taken to be the same"]
