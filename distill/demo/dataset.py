"""The demo's data set: images drawn by `distill.demo.drawing` and their labels, in a folder that ultralytics reads."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from distill.demo.drawing import CLASSES, Sample, draw
from distill.demo.folder import SPLITS, draw_once
from distill.machine.progress import ProgressCallback

_FILES = {"images": "png", "labels": "txt"}  # of a split: folder -> ending
FORMAT = 2  # raised whenever the drawing changes, so that older sets are refused


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
        The path of its data.yaml, in ultralytics' layout. It has no absolute path in it: the folder can be moved.

    Raises:
        DistillError: a value out of range, or a folder that holds something else.
        RunError: the folder could not be written.
    """
    folder = Path(folder)
    settings = {"format": FORMAT, "train": train, "val": val, "imgsz": imgsz, "seed": seed}
    files = {f"{kind}/{split}/*.{ending}": settings[split] for split in SPLITS for kind, ending in _FILES.items()}
    draw_once(folder, settings, lambda draft: _write(draft, settings, progress), files)
    return folder / "data.yaml"


def _write(folder: Path, settings: dict[str, int], progress: ProgressCallback | None) -> None:
    size = settings["imgsz"]
    jobs = [(split, index) for split in SPLITS for index in range(settings[split])]
    for split in SPLITS:
        for kind in _FILES:
            (folder / kind / split).mkdir(parents=True)
    for split, index in progress(jobs, "drawing shapes", len(jobs), "images") if progress else jobs:
        sample = draw(size, (settings["seed"], SPLITS.index(split), index))
        Image.fromarray(sample.image).save(folder / "images" / split / f"{index:05d}.png", compress_level=1)
        (folder / "labels" / split / f"{index:05d}.txt").write_text(_label_text(sample, size), encoding="utf-8")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8")


def _label_text(sample: Sample, size: int) -> str:
    """One line per object: class, then centre and size as fractions of the image."""
    lines = []
    for class_id, (x1, y1, x2, y2) in zip(sample.classes, sample.boxes / size, strict=True):
        lines.append(f"{class_id} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
    return "".join(lines)
