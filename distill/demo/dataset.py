"""The demo's data set: drawn from code, with labels, as a folder that ultralytics reads. See `distill.demo.drawing`."""

from __future__ import annotations

import json
from pathlib import Path

from PIL import Image

from distill.demo.drawing import CLASSES, Sample, draw
from distill.errors import DistillError, RunError
from distill.machine.files import write_atomically
from distill.machine.progress import ProgressCallback

SPLITS = ("train", "val")
FORMAT = 1  # raised whenever the drawing changes, so that an older set is refused instead of mixed up with a new one


def generate(
    folder: Path | str, *, train: int, val: int, imgsz: int, seed: int = 0, progress: ProgressCallback | None = None
) -> Path:
    """Write the data set, or reuse the one that is there if it was made with the same values.

    Args:
        folder: where it goes; it appears complete or not at all.
        train: number of training images.
        val: number of validation images.
        imgsz: side of the square images, in pixels.
        seed: another seed, another data set.
        progress: called as `progress(iterable, label, total)`, yields the same items.

    Returns:
        The path of its data.yaml, in the layout ultralytics reads. It names no absolute path: the folder can be moved.

    Raises:
        DistillError: a value out of range, or a folder that holds something else.
        RunError: the folder could not be written.
    """
    folder = Path(folder)
    wanted = {"format": FORMAT, "train": train, "val": val, "imgsz": imgsz, "seed": seed}
    for name, least in (("train", 1), ("val", 1), ("imgsz", 32), ("seed", 0)):
        if wanted[name] < least:
            raise DistillError(f"shapes.{name} is {wanted[name]}: it must be at least {least}")
    if _holds_anything(folder):
        return _reuse(folder, wanted)

    try:
        write_atomically(folder, lambda draft: _write(draft, wanted, progress), overwrite=False)
    except RunError:
        if _holds_anything(folder):  # another process was faster; its set must be the one wanted here
            return _reuse(folder, wanted)
        raise
    return folder / "data.yaml"


def _write(folder: Path, wanted: dict[str, int], progress: ProgressCallback | None) -> None:
    size = wanted["imgsz"]
    jobs = [(split, index) for split in SPLITS for index in range(wanted[split])]
    for split in SPLITS:
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
    for split, index in progress(jobs, "drawing shapes", len(jobs)) if progress else jobs:
        sample = draw(size, (wanted["seed"], SPLITS.index(split), index))
        Image.fromarray(sample.image).save(folder / "images" / split / f"{index:05d}.png", compress_level=1)
        (folder / "labels" / split / f"{index:05d}.txt").write_text(_label_text(sample, size), encoding="utf-8")
    names = "".join(f"  {index}: {name}\n" for index, name in enumerate(CLASSES))
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}", encoding="utf-8")
    (folder / "shapes.json").write_text(json.dumps(wanted) + "\n", encoding="utf-8")


def _label_text(sample: Sample, size: int) -> str:
    """One line an object: class, then centre and size as fractions of the image."""
    lines = []
    for class_id, (x1, y1, x2, y2) in zip(sample.classes, sample.boxes / size):
        lines.append(f"{class_id} {(x1 + x2) / 2:.6f} {(y1 + y2) / 2:.6f} {x2 - x1:.6f} {y2 - y1:.6f}\n")
    return "".join(lines)


def _holds_anything(folder: Path) -> bool:
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))


def _reuse(folder: Path, wanted: dict[str, int]) -> Path:
    record = folder / "shapes.json"
    try:
        found = dict(json.loads(record.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DistillError(f"{folder} exists and is no data set of shapes: choose another folder") from None
    differing = [
        f"{name} {found.get(name)} (wanted {value})" for name, value in wanted.items() if found.get(name) != value
    ]
    if differing:
        raise DistillError(f"{folder} holds another set of shapes: {', '.join(differing)}; delete it or choose another")
    for split in SPLITS:
        for kind, ending in (("images", "png"), ("labels", "txt")):
            if len(list((folder / kind / split).glob(f"*.{ending}"))) != wanted[split]:
                raise DistillError(
                    f"{folder}/{kind}/{split} has not the {wanted[split]} files it was made with: delete it"
                )
    return folder / "data.yaml"
