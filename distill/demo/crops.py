"""The demo's data set for classifiers: shapes cut out of its images, in folders of their classes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

from PIL import Image

from distill.demo.drawing import CLASSES, draw
from distill.demo.folder import SPLITS, draw_once
from distill.machine.progress import ProgressCallback

FORMAT = 1  # raised whenever the drawing changes, so that older sets are refused
NAMES = tuple(sorted(CLASSES))  # in the order of their folders, which is that of their numbers
SCENE = 160  # pixels of the images that shapes are cut out of
MARGIN = 1.3  # a crop's side, in that of the shape


def generate(
    folder: Path | str, *, train: int, val: int, imgsz: int, seed: int = 0, progress: ProgressCallback | None = None
) -> Path:
    """Write the data set, or reuse an existing one that was made with the same values.

    Args:
        folder: where it goes; it appears complete or not at all.
        train: number of training images.
        val: number of validation images.
        imgsz: side of the square images, in pixels.
        seed: of the drawing.
        progress: called as `progress(iterable, label, total, unit)`, yields the same items; None for none.

    Returns:
        The folder, with `train` and `val`, and in each a folder for each class.

    Raises:
        DistillError: a value out of range, or a folder that holds something else.
        RunError: the folder could not be written.
    """
    folder = Path(folder)
    settings = {"format": FORMAT, "train": train, "val": val, "imgsz": imgsz, "seed": seed, "crops": 1}
    files = {f"{split}/*/*.png": settings[split] for split in SPLITS}
    draw_once(folder, settings, lambda draft: _write(draft, settings, progress), files)
    return folder


def _write(folder: Path, settings: dict[str, int], progress: ProgressCallback | None) -> None:
    for split in SPLITS:
        for name in NAMES:
            (folder / split / name).mkdir(parents=True)
        wanted = settings[split]
        crops = islice(_crops(settings["imgsz"], settings["seed"], SPLITS.index(split)), wanted)
        drawn = progress(crops, f"drawing {split}", wanted, "images") if progress else crops
        for number, (name, image) in enumerate(drawn):
            image.save(folder / split / name / f"{number:05d}.png", compress_level=1)


def _crops(size: int, seed: int, split: int) -> Iterator[tuple[str, Image.Image]]:
    """The shapes of one image after the other, each with its class."""
    for index in count():
        sample = draw(SCENE, (seed, split, index))
        scene = Image.fromarray(sample.image)
        for number, (left, top, right, bottom) in zip(sample.classes, sample.boxes, strict=True):
            half = MARGIN * max(right - left, bottom - top) / 2
            x, y = (left + right) / 2, (top + bottom) / 2
            box = tuple(round(value) for value in (x - half, y - half, x + half, y + half))
            yield CLASSES[number], scene.crop(box).resize((size, size), Image.Resampling.BILINEAR)
