"""A detection data set drawn from code, for the demo and the tests: no network, no files, the same pixels everywhere.

Six classes of flat shapes on a textured ground. What makes it a benchmark rather than a toy is what happens to them:
any rotation, squash and size (a sixth to half of the image), occlusion by each other and by clutter, half-shapes that
belong to no class, weak contrast, uneven light, blur and noise. A class has its usual colours, and they overlap: colour
is a hint that lets a small network learn in minutes, not an answer.

Every image is drawn from its own random stream (seed, split, index), so a smaller set is a prefix of a larger one.
Shapes are signed distances turned into coverage, in numpy alone: no drawing library whose versions differ in a pixel.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from distill.errors import DistillError, RunError

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross")
SPLITS = ("train", "val")
HALVED = ("disc", "ring", "star", "cross")  # half of a square or of a triangle may well be a triangle
FORMAT = 1  # raised whenever the drawing changes, so that an older set is refused instead of mixed up with a new one
MIN_VISIBLE = 0.6  # an object of which less would be seen is not placed: its label would be a guess
MIN_SIDE = 4.0  # pixels; a visible box thinner than this is not placed either

Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        image: (S, S, 3) uint8, RGB.
        classes: (N,) int, index into `CLASSES`.
        boxes: (N, 4) float, x1 y1 x2 y2 in pixels, the tight extent of what is visible of each object.
    """

    image: NDArray[np.uint8]
    classes: NDArray[np.int64]
    boxes: Array


def generate(
    folder: Path | str, *, train: int, val: int, imgsz: int, seed: int = 0, progress: Progress | None = None
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
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
            draft = Path(scratch) / "set"  # a folder of its own, since the scratch folder is private to this user
            _write(draft, wanted, progress)
            draft.rename(folder)
    except OSError as error:
        if _holds_anything(folder):  # another process was faster; its set must be the one wanted here
            return _reuse(folder, wanted)
        raise RunError(f"cannot write the data set {folder}: {error.strerror or error}") from error
    return folder / "data.yaml"


def draw(imgsz: int, stream: tuple[int, ...]) -> Sample:
    """Draw one image. `stream` seeds it: equal streams give equal samples."""
    rng = np.random.Generator(np.random.PCG64(stream))
    picture = _Picture(imgsz, _ground(imgsz, rng))
    items = [True] * int(rng.integers(2, 7)) + [False] * int(rng.integers(1, 5))  # True: an object, False: clutter
    for is_object in rng.permutation(items):
        _place(picture, bool(is_object), rng)
    classes, boxes = picture.labels()
    return Sample(_expose(picture.canvas, rng), classes, boxes)


class _Picture:
    """A canvas, and for every pixel which item is on top of it."""

    def __init__(self, size: int, ground: Array) -> None:
        self.size = size
        self.canvas = ground  # (S, S, 3) in [0, 1]
        self.owner = np.full((size, size), -1)  # index into `classes`, -1 for the ground and for clutter
        self.classes: list[int] = []
        self.areas: list[int] = []  # pixels of the whole object, hidden ones and those outside the image included

    def add(self, alpha: Array, left: int, top: int, paint: Array, class_id: int | None) -> bool:
        """Paint an item, unless too little of it or of an object below it would stay visible; say whether it was.

        Args:
            alpha: (H, W) coverage in [0, 1], not clipped to the canvas.
            left: column of the canvas under alpha[:, 0]; may be negative. `top`: the row, likewise.
            paint: (H, W, 3).
            class_id: None for clutter.
        """
        height, width = alpha.shape
        y1, y2, x1, x2 = max(top, 0), min(top + height, self.size), max(left, 0), min(left + width, self.size)
        if y1 >= y2 or x1 >= x2:
            return False
        inside = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
        there = slice(y1, y2), slice(x1, x2)
        solid = alpha[inside] > 0.5
        owner = self.owner.copy()
        owner[there][solid] = -1 if class_id is None else len(self.classes)
        classes = self.classes if class_id is None else [*self.classes, class_id]
        areas = self.areas if class_id is None else [*self.areas, int((alpha > 0.5).sum())]
        if not _all_visible(owner, areas):
            return False
        self.owner, self.classes, self.areas = owner, classes, areas
        cover = alpha[inside][..., None]
        self.canvas[there] = self.canvas[there] * (1 - cover) + paint[inside] * cover
        return True

    def labels(self) -> tuple[NDArray[np.int64], Array]:
        boxes = [_extent(self.owner == index) for index in range(len(self.classes))]
        return np.array(self.classes, dtype=np.int64), np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _all_visible(owner: NDArray[np.int64], areas: list[int]) -> bool:
    seen = np.bincount(owner[owner >= 0], minlength=len(areas))
    if any(count < MIN_VISIBLE * area or area == 0 for count, area in zip(seen, areas)):
        return False
    boxes = [_extent(owner == index) for index in range(len(areas))]
    return all(min(x2 - x1, y2 - y1) >= MIN_SIDE for x1, y1, x2, y2 in boxes)


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(picture: _Picture, is_object: bool, rng: np.random.Generator) -> None:
    """Try a few positions for one item; a crowded picture simply gets fewer."""
    size = picture.size
    for _ in range(12):
        x, y = rng.uniform(0.04, 0.96, 2) * size
        # Log-uniform: as many small objects as large ones.
        radius = size * 0.5 * math.exp(rng.uniform(math.log(0.2), math.log(0.8)))
        radius = max(radius, 4.5)
        reach = math.ceil(radius * 1.5) + 2
        left, top = math.floor(x) - reach, math.floor(y) - reach
        rows, columns = np.mgrid[0 : 2 * reach + 1, 0 : 2 * reach + 1] + 0.5
        u, v = columns + left - x, rows + top - y  # the centres of the pixels, seen from the item
        class_id = int(rng.integers(len(CLASSES)))
        if is_object:
            hue = class_id / len(CLASSES) + 0.11 * rng.normal()
            distance = _turned(CLASSES[class_id], u, v, radius, rng)
        else:
            hue = rng.random()
            distance = _clutter(u, v, radius, rng)
        alpha = np.clip(0.5 - distance, 0.0, 1.0)
        paint = _paint(picture.canvas[int(y), int(x)], hue, u / radius, v / radius, rng)
        if picture.add(alpha, left, top, paint, class_id if is_object else None):
            return


def _turned(name: str, u: Array, v: Array, radius: float, rng: np.random.Generator) -> Array:
    """Signed distance, in pixels, to a shape of any angle, slightly squashed."""
    angle, squash = rng.uniform(0, 2 * math.pi), rng.uniform(0.75, 1.0)
    a = u * math.cos(angle) + v * math.sin(angle)
    b = (v * math.cos(angle) - u * math.sin(angle)) / squash
    return _distance(name, a, b, radius) * squash


def _distance(name: str, x: Array, y: Array, r: float) -> Array:
    """Signed distance from each point to the outline of a shape of radius r; negative inside."""
    if name == "disc":
        return np.hypot(x, y) - 0.88 * r
    if name == "ring":
        return np.abs(np.hypot(x, y) - 0.72 * r) - 0.2 * r
    if name == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.78 * r
    if name == "triangle":
        return np.maximum(np.abs(x) * math.sqrt(0.75) + y / 2, -y) - 0.55 * r
    if name == "star":
        angle = np.mod(np.arctan2(x, y), 2 * math.pi / 5) - math.pi / 5  # folded onto one of five points
        length = np.hypot(x, y)
        along, across = length * np.cos(angle), np.abs(length * np.sin(angle))
        # The edge from the notch (0.45 r on the axis of the fold) to the tip (r, on its border).
        tip_x, tip_y = r * math.cos(math.pi / 5), r * math.sin(math.pi / 5)
        edge_x, edge_y = tip_x - 0.45 * r, tip_y
        return ((along - 0.45 * r) * edge_y - across * edge_x) / math.hypot(edge_x, edge_y)
    x, y = np.abs(x), np.abs(y)
    return np.maximum(np.minimum(x, y) - 0.26 * r, np.maximum(x, y) - 0.92 * r)


def _clutter(u: Array, v: Array, radius: float, rng: np.random.Generator) -> Array:
    """A bar, or half of a shape: what an object looks like in part, without being one."""
    angle = rng.uniform(0, 2 * math.pi)
    a, b = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
    if rng.random() < 0.5:
        return np.maximum(np.abs(a) - 1.4 * radius, np.abs(b) - rng.uniform(0.6, 0.14 * radius + 1.0))
    half = _distance(HALVED[int(rng.integers(len(HALVED)))], u, v, radius)
    return np.maximum(half, a + rng.uniform(0.0, 0.3) * radius)


def _paint(below: Array, hue: float, u: Array, v: Array, rng: np.random.Generator) -> Array:
    """A colour set off from what is below by a contrast that may be weak; sometimes shaded or striped."""
    wheel = 0.5 + 0.5 * np.cos(2 * math.pi * (hue + np.array([0.0, 1 / 3, 2 / 3])))
    colour = below + (wheel - below) * rng.uniform(0.3, 0.9)
    angle = rng.uniform(0, 2 * math.pi)
    along = u * math.cos(angle) + v * math.sin(angle)
    shade = rng.uniform(0, 0.12) * along
    if rng.random() < 0.2:
        shade = shade + rng.uniform(0.03, 0.1) * np.sin(along * rng.uniform(4, 12))
    return np.clip(colour + shade[..., None], 0, 1)


def _ground(size: int, rng: np.random.Generator) -> Array:
    """Uneven colour with blotches at two scales, sometimes striped. (S, S, 3) in [0, 1]"""
    ground = np.broadcast_to(rng.uniform(0.25, 0.75) + rng.uniform(-0.08, 0.08, 3), (size, size, 3)).copy()
    for cells, strength in ((3, 0.14), (10, 0.06)):
        ground += rng.uniform(0, strength) * _blotches(size, cells, rng)[..., None] * rng.uniform(0.5, 1.0, 3)
    if rng.random() < 0.3:
        angle, period = rng.uniform(0, 2 * math.pi), rng.uniform(4, 20)
        rows, columns = np.mgrid[0:size, 0:size]
        wave = np.sin((columns * math.cos(angle) + rows * math.sin(angle)) * (2 * math.pi / period))
        ground += rng.uniform(0.02, 0.07) * wave[..., None]
    return np.clip(ground, 0, 1)


def _blotches(size: int, cells: int, rng: np.random.Generator) -> Array:
    """Smooth noise in [-1, 1]: a coarse random grid, interpolated with a smooth step. (S, S)"""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
    position = (np.arange(size) + 0.5) / size * cells
    cell = position.astype(np.int64)
    part = position - cell
    part = part * part * (3 - 2 * part)
    rows = grid[cell] * (1 - part)[:, None] + grid[cell + 1] * part[:, None]
    return rows[:, cell] * (1 - part) + rows[:, cell + 1] * part


def _expose(canvas: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """What a cheap camera makes of it: uneven light, blur, noise."""
    size = len(canvas)
    light = 1 + rng.uniform(0, 0.35) * _blotches(size, 1, rng)
    image = _blurred(canvas * light[..., None], rng.uniform(0.0, 1.0))
    image += rng.normal(size=image.shape) * rng.uniform(0.005, 0.05)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _blurred(image: Array, sigma: float) -> Array:
    taps = np.exp(-0.5 * (np.arange(-3, 4) / max(sigma, 0.05)) ** 2)
    taps /= taps.sum()
    size = len(image)
    padded = np.pad(image, ((3, 3), (0, 0), (0, 0)), mode="edge")
    image = sum((tap * padded[k : k + size] for k, tap in enumerate(taps)), start=np.zeros_like(image))
    padded = np.pad(image, ((0, 0), (3, 3), (0, 0)), mode="edge")
    return sum((tap * padded[:, k : k + size] for k, tap in enumerate(taps)), start=np.zeros_like(image))


def _write(folder: Path, wanted: dict[str, int], progress: Progress | None) -> None:
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
