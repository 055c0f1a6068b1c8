"""Images as a network gets them: a tensor to calibrate on, and the dataset that ultralytics' loaders take."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from distill.errors import RunError
from distill.machine.words import brief
from distill.yolo.data.dataset import DataSet, Split
from distill.yolo.upstream import DEFAULT_CFG, LetterBox, RecordsDataset, imread


class ImageError(RunError):
    """An image that was in order when the data were checked, and cannot be read now."""

    def __init__(self, message: str) -> None:
        # A process that loads images hands its errors on as a traceback, of which the last line is ours.
        super().__init__(message.splitlines()[-1].removeprefix(f"{__name__}.{type(self).__name__}: "))


class CheckedImages(RecordsDataset):
    """Images that were checked before: one that has gone or changed since is an error that names it."""

    def get_labels(self) -> list[dict[str, Any]]:
        """Copies of the records, in the form that the base class takes."""
        labels = super().get_labels()
        self._sizes = {label["im_file"]: label.pop("bytes", None) for label in labels}
        return labels

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[np.ndarray, tuple[int, int], tuple[int, int]]:
        """(image, its size in the file, its size now)."""
        file = self.im_files[i]
        size = self._sizes[file]
        try:
            if (
                size is not None and os.path.getsize(file) != size
            ):  # a JPEG that was cut short would be read with grey in it
                raise ImageError(f"{brief(file, 500)}: this image was changed after the data were checked")
            return super().load_image(i, rect_mode, resize_short)
        except (OSError, cv2.error) as error:
            raise _unreadable(file) from error


def calibration(
    paths: Sequence[Path], n: int, imgsz: int, *, seed: int = 0, by_area: bool = False, frame: int = 0
) -> Tensor:
    """Images to calibrate on, exactly as the validator would show them to the network at a square `imgsz`.

    Args:
        paths: image files.
        n: how many, drawn without replacement; all of them if there are fewer.
        imgsz: side in pixels; longer side scaled to it, the rest padded with grey (114).
        seed: of the draw. The same seed gives the same images in the same order.
        by_area: shrink by averaging areas, as the original YOLOv5 does, and not by interpolating.
        frame: width of an additional grey frame in pixels.

    Returns:
        `(N, 3, side, side)` float32, RGB in [0, 1]; side is imgsz + 2 * frame.

    Raises:
        ImageError: an image cannot be read.
    """
    chosen = np.random.default_rng(seed).permutation(len(paths))[:n]
    letterbox = LetterBox((imgsz, imgsz), scaleup=False)

    def prepare(index: int) -> np.ndarray:
        image = imread(str(paths[index]), cv2.IMREAD_COLOR)
        if image is None:
            raise _unreadable(paths[index])
        padded: Any = letterbox(image=_resize(image, imgsz, by_area))  # declared as an image or a dict
        return padded[..., ::-1].transpose(2, 0, 1)  # (H, W, BGR) -> (RGB, H, W)

    batch = torch.full((len(chosen), 3, imgsz + 2 * frame, imgsz + 2 * frame), 114.0)
    inside = batch[:, :, frame : frame + imgsz, frame : frame + imgsz]
    with ThreadPoolExecutor(4) as pool:  # OpenCV decodes without holding Python's lock
        for row, image in zip(inside, pool.map(prepare, chosen), strict=True):
            row.copy_(torch.from_numpy(np.ascontiguousarray(image)))
    return batch.div_(255)


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
    by_area: bool = False,
) -> CheckedImages:
    """One split as the dataset that ultralytics' loaders, trainer and validator take.

    Args:
        data: the data set.
        split: "train" or "val".
        imgsz: longer side in pixels.
        batch: images a batch; with `rect`, neighbours of one shape share a batch.
        stride: the model's largest; the sides of a batch are multiples of it.
        augment: for training: mosaic, flips and so on as `hyp` says.
        rect: pad batches only as far as their images need; by default unless augmented, as `yolo val` does.
        hyp: ultralytics' arguments, for the augmentation; its defaults if None.
        by_area: shrink by averaging areas, as the original YOLOv5 does when it validates; only without augmentation.
    """
    return CheckedImages(
        [_complete(record, data.config) for record in data.records[split]],
        partial(_resize, by_area=True) if by_area else None,
        data=data.config,
        task=data.task.name,
        imgsz=imgsz,
        batch_size=batch,
        augment=augment,
        hyp=hyp or DEFAULT_CFG,
        rect=not augment if rect is None else rect,
        stride=stride,
        pad=0.0 if augment else 0.5,
        prefix=f"{split}: ",
    )


def _complete(record: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """A record of data with keypoints has an array of them, if only of none: ultralytics joins those of several images."""
    if record["keypoints"] is not None or "kpt_shape" not in config:
        return dict(record)
    return {**record, "keypoints": np.zeros((len(record["cls"]), config["kpt_shape"][0], 3), np.float32)}


def _unreadable(file: str | Path) -> ImageError:
    return ImageError(f"{brief(file, 500)}: this image cannot be read; it could when the data were checked")


def _resize(image: np.ndarray, imgsz: int, by_area: bool) -> np.ndarray:
    """An image (H, W, BGR) with longer side `imgsz`; sizes are rounded up, as in `YOLODataset.load_image`."""
    height, width = image.shape[:2]
    ratio = imgsz / max(height, width)
    if ratio == 1:
        return image
    size = (min(int(np.ceil(width * ratio)), imgsz), min(int(np.ceil(height * ratio)), imgsz))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if by_area and ratio < 1 else cv2.INTER_LINEAR)
