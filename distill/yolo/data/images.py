"""Images as a network gets them: a tensor to calibrate on, and the dataset that ultralytics' loaders take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from distill.yolo.data.dataset import DataSet, Split


def calibration(
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


def _fit(image: np.ndarray, imgsz: int, by_area: bool) -> np.ndarray:
    """An image (H, W, BGR) whose longer side is `imgsz`: sizes rounded up, as YOLODataset.load_image does."""
    height, width = image.shape[:2]
    ratio = imgsz / max(height, width)
    if ratio == 1:
        return image
    size = (min(int(np.ceil(width * ratio)), imgsz), min(int(np.ceil(height * ratio)), imgsz))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if by_area and ratio < 1 else cv2.INTER_LINEAR)
