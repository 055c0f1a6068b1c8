"""Data sets: what a `data.yaml` or a folder of images says, checked once, then handed to training and evaluation.

    data = load("data.yaml", names=detector.names)         # every error here, in one clear line; warnings in data.warnings
    calibration = images(data.train, 96, imgsz=320)        # (96, 3, 320, 320), no labels needed
    dataset = build_dataset(data, "train", imgsz=320, batch=16, augment=True, hyp=trainer.args)

`load` opens every image and label once and keeps the labels in memory, so nothing is scanned twice and nothing is written
beside the user's images, which may be read-only. A trainer must take both halves from here, never from ultralytics:

    def get_dataset(self): return dict(data.config)        # not check_det_dataset: it downloads, and runs scripts
    def build_dataset(self, img_path, mode="train", batch=None):
        return build_dataset(data, mode, imgsz=self.args.imgsz, batch=batch, stride=..., augment=mode == "train",
                             hyp=self.args)                # not YOLODataset: it writes *.cache, and rewrites JPEGs

The result of `build_dataset` is a `YOLODataset`: `.labels`, `.collate_fn`, `.close_mosaic(hyp)`, ... work as ever.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import cv2
import numpy as np
import torch
from torch import Tensor
from ultralytics.data.augment import LetterBox
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import DEFAULT_CFG
from ultralytics.utils.patches import imread

from distill.errors import DistillError
from distill.yolo import datafile, labels
from distill.yolo.labels import Progress

Split = Literal["train", "val"]

_SHOWN = 5  # damaged images named in a warning


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
        records: the labels of each split, see `distill.yolo.labels.Labels`.
    """

    path: Path
    names: dict[int, str] | None
    train: tuple[Path, ...] = field(repr=False)
    val: tuple[Path, ...] = field(repr=False)
    labelled: bool
    config: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...] = ()
    records: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict, repr=False, compare=False)


def load(path: str | Path, names: Mapping[int, str] | None = None, *, progress: Progress | None = None) -> DataSet:
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
    return _assemble(path, file.root, file.names, True, records, warnings)


def images(
    paths: Sequence[Path], n: int, imgsz: int, *, seed: int = 0, by_area: bool = False, frame: int = 0
) -> Tensor:
    """Images to calibrate on, exactly as the validator would show them to the network at a square `imgsz`.

    Args:
        paths: image files.
        n: how many, drawn without replacement; all of them if there are not as many.
        imgsz: side in pixels; longer side scaled to it, the rest padded with grey (114).
        seed: of the draw. The same seed gives the same images in the same order.
        by_area: shrink by averaging areas, as the original YOLOv5 does, and not by interpolating.
        frame: width of the grey around them in pixels.

    Returns:
        `(N, 3, side, side)` float32, RGB in [0, 1]; side is imgsz + 2 * frame.
    """
    chosen = np.random.default_rng(seed).permutation(len(paths))[:n]
    letterbox = LetterBox((imgsz, imgsz), scaleup=False)

    def prepare(index: int) -> np.ndarray:
        image = imread(str(paths[index]), cv2.IMREAD_COLOR)
        if image is None:
            raise DistillError(f"{paths[index]}: this image cannot be read")
        # Declared as an image or a dict; an image where an image came.
        padded: Any = letterbox(image=_fit(image, imgsz, by_area))
        return padded[..., ::-1].transpose(2, 0, 1)  # (H, W, BGR) -> (RGB, H, W)

    batch = torch.full((len(chosen), 3, imgsz + 2 * frame, imgsz + 2 * frame), 114.0)
    inside = batch[:, :, frame : frame + imgsz, frame : frame + imgsz]
    with ThreadPoolExecutor(4) as pool:  # OpenCV decodes without holding Python's lock
        for row, image in zip(inside, pool.map(prepare, chosen), strict=True):
            row.copy_(torch.from_numpy(np.ascontiguousarray(image)))
    return batch.div_(255)


def _fit(image: np.ndarray, imgsz: int, by_area: bool) -> np.ndarray:
    """An image (H, W, BGR) whose longer side is `imgsz`: sizes rounded up, as YOLODataset.load_image does."""
    height, width = image.shape[:2]
    ratio = imgsz / max(height, width)
    if ratio == 1:
        return image
    size = (min(int(np.ceil(width * ratio)), imgsz), min(int(np.ceil(height * ratio)), imgsz))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if by_area and ratio < 1 else cv2.INTER_LINEAR)


class LabelledImages(YOLODataset):
    """A `YOLODataset` on labels that are read already: it scans nothing and writes nothing."""

    def __init__(self, records: Sequence[Mapping[str, Any]], by_area: bool = False, **options: Any) -> None:
        self._records, self._by_area = records, by_area  # before the base class, which asks for files and labels
        super().__init__(img_path="", **options)
        # Decoded copies (`x.npy`) beside the images would be trusted, and replaced or deleted where they are stale.
        self.npy_files = [Path(file) / "none" for file in self.im_files]

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        return [record["im_file"] for record in self._records]

    def get_labels(self) -> list[dict[str, Any]]:
        return [{**record, "cls": record["cls"].copy()} for record in self._records]  # the base class edits them

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        if not self._by_area:
            return super().load_image(i, rect_mode, resize_short)
        image = imread(self.im_files[i], cv2.IMREAD_COLOR)
        if image is None:
            raise FileNotFoundError(self.im_files[i])
        fitted = _fit(image, cast(int, self.imgsz), by_area=True)
        return fitted, image.shape[:2], fitted.shape[:2]


def build_dataset(
    data: DataSet,
    split: Split,
    *,
    imgsz: int,
    batch: int,
    stride: int = 32,
    augment: bool = False,
    rect: bool | None = None,
    hyp: SimpleNamespace | None = None,
    cache: Literal["ram"] | None = None,
    by_area: bool = False,
) -> YOLODataset:
    """One split as the dataset that ultralytics' loaders, trainer and validator take.

    Args:
        imgsz: longer side in pixels.
        batch: images a batch; with `rect`, neighbours of one shape share a batch.
        stride: the model's largest, which the sides of a batch are multiples of.
        augment: for training: mosaic, flips and so on as `hyp` says.
        rect: batches padded only as far as their images need; by default wherever nothing is augmented, as `yolo val` does.
        hyp: ultralytics' arguments, for the augmentation; its defaults if not given.
        cache: "ram" keeps decoded images. There is no "disk": it would write beside the images.
        by_area: shrink by averaging areas, as the original YOLOv5 does when it validates; without augmentation and cache.
    """
    return LabelledImages(
        data.records[split],
        by_area,
        data=data.config,
        task="detect",
        imgsz=imgsz,
        batch_size=batch,
        augment=augment,
        hyp=hyp or DEFAULT_CFG,
        rect=not augment if rect is None else rect,
        cache=cache,
        stride=stride,
        pad=0.0 if augment else 0.5,
        prefix=f"{split}: ",
    )


def _load_folder(path: Path, names: Mapping[int, str] | None, progress: Progress | None) -> DataSet:
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
    path: Path, key: str, found: tuple[Path, ...], names: Mapping[int, str] | None, progress: Progress | None
) -> labels.Labels:
    try:
        return labels.read(found, names, label=f"checking {key}", progress=progress)
    except DistillError as error:
        raise DistillError(f"{path}: '{key}': {error}") from error


def _left_out(key: str, found: tuple[Path, ...], read: labels.Labels) -> list[str]:
    if not read.problems:
        return []
    shown = "; ".join(read.problems[:_SHOWN]) + ("; ..." if len(read.problems) > _SHOWN else "")
    return [f"{len(read.problems)} of the {len(found)} images of '{key}' left out: {shown}"]


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
        ours, theirs = (", ".join(names.values()) for names in (data, model))
        raise DistillError(f"{path} has {len(data)} classes ({ours}), the model {len(model)} ({theirs})")
    if sorted(data.values()) == sorted(model.values()):
        raise DistillError(
            f"{path} has the model's classes in another order: the model's is {', '.join(model.values())}"
        )
    index = next(i for i in data if data[i] != model.get(i))
    return [f"class {index} is '{data[index]}' in {path} and '{model.get(index)}' in the model: taken to be the same"]
