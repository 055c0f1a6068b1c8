"""Images of turned bars, with labels for each task: the corners as a mask, an oriented box, or keypoints in a box."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

SIDE = 64
LINES = {  # of the labels of each task, from the corners of a bar as shares of the image
    "detect": lambda corners: box_of(corners),
    "segment": lambda corners: np.stack([corners, (corners + np.roll(corners, -1, 0)) / 2], 1).ravel(),
    "obb": lambda corners: corners.ravel(),
    "pose": lambda corners: [*box_of(corners), *np.c_[corners, np.full(4, 2)].ravel()],
}
YAMLS = {"detect": "yolo11n", "segment": "yolo11n-seg", "obb": "yolo11n-obb", "pose": "yolo11n-pose"}


def box_of(corners: np.ndarray) -> list[float]:
    """Centre and size of the upright box around corners (4, 2)."""
    low, high = corners.min(0), corners.max(0)
    return [*(low + high) / 2, *(high - low)]


def write_bars(folder: Path, task: str, train: int = 8, val: int = 4, seed: int = 0) -> Path:
    """Write images and labels. One class, a bar to an image near its centre: a network learns it in seconds.

    Returns:
        The data.yaml.
    """
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        for index in range(count):
            image, corners = draw_bar(rng)
            cv2.imwrite(str(folder / "images" / split / f"{index}.png"), image)
            write_label(folder / "labels" / split / f"{index}.txt", LINES[task](corners))
    keypoints = "kpt_shape: [4, 3]\nflip_idx: [1, 0, 3, 2]\n" if task == "pose" else ""
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: [bar]\n{keypoints}")
    return folder / "data.yaml"


def write_label(file: Path, numbers: Iterable[float]) -> None:
    """One object, of class 0."""
    file.write_text(" ".join(["0", *(f"{number:.5f}" for number in numbers)]) + "\n")


def draw_bar(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (SIDE, SIDE, 3), and the corners of the bar in it (4, 2) as shares of the image."""
    image = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
    centre = SIDE / 2 + rng.uniform(-4, 4, 2)
    corners = cv2.boxPoints((tuple(centre), (44, 20), float(rng.uniform(15, 30))))
    cv2.fillPoly(image, [corners.round().astype(np.int32)], (240, 200, 60))
    return image, corners / SIDE
