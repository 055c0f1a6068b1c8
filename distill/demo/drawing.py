"""Images of shapes and their boxes, drawn by numpy alone: no download, and the same pixels everywhere.

Six classes of flat shapes lie on a textured ground. Detecting them is not trivial: they are rotated, squashed, 15 to 50
pixels in size, and occluded by each other and by clutter; half-shapes belong to no class; contrast may be weak and light
uneven; blur and noise are added. Each class prefers some colours, and the colours of the classes overlap: they let a
small network learn in minutes, but do not decide the class. A large image holds more shapes, not larger ones.

Every image has its own random stream (seed, split, index), so a smaller set is a prefix of a larger one. Shapes are
signed distances turned into coverage: drawing libraries may differ in a pixel from version to version.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

CLASSES = ("disc", "ring", "square", "triangle", "star", "cross")
HALVED = ("disc", "ring", "star", "cross")  # half of a square or of a triangle can be a triangle itself
MIN_VISIBLE = 0.6  # share of an object; an object that would show less is not placed: its label would be a guess
MIN_SIDE = 4.0  # pixels; objects with a thinner visible box are not placed
TILE = 96  # pixels; a larger image holds more objects, not larger ones

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Sample:
    """One image and its labels.

    Attributes:
        image: (S, S, 3) uint8, RGB.
        classes: (N,) int, index into `CLASSES`.
        boxes: (N, 4) float, x1 y1 x2 y2 in pixels: the tight extent of the visible part of each object.
    """

    image: NDArray[np.uint8]
    classes: NDArray[np.int64]
    boxes: Array


def draw(imgsz: int, stream: tuple[int, ...]) -> Sample:
    """Draw one image of `imgsz` pixels a side. `stream` seeds it: equal streams give equal samples."""
    rng = np.random.Generator(np.random.PCG64(stream))
    picture = _Picture(imgsz, _ground(imgsz, rng))
    crowd = max(1.0, (imgsz / TILE) ** 2)
    # True: an object, False: clutter
    items = [True] * round(crowd * rng.integers(2, 7)) + [False] * round(crowd * rng.integers(1, 5))
    for is_object in rng.permutation(items):
        _place(picture, bool(is_object), rng)
    classes, boxes = picture.labels()
    return Sample(_expose(picture.canvas, rng), classes, boxes)


@dataclass(frozen=True)
class _Object:
    class_id: int
    area: int  # pixels of the whole object, including hidden ones and those outside the image
    place: tuple[slice, slice]  # the part of the image that it may cover


class _Picture:
    """A canvas, and for every pixel the item on top of it."""

    def __init__(self, size: int, ground: Array) -> None:
        self.size = size
        self.canvas = ground  # (S, S, 3) in [0, 1]
        self.owner = np.full((size, size), -1)  # index into `objects`; -1: the ground or clutter
        self.objects: list[_Object] = []

    def add(self, alpha: Array, left: int, top: int, paint: Array, class_id: int | None) -> bool:
        """Paint an item, and return True, unless too little of it or of an object below it would stay visible.

        `alpha` (H, W) is its coverage in [0, 1], whose first pixel lies at (left, top), which may be outside of the canvas;
        `paint` (H, W, 3) its colours in [0, 1]; `class_id` is None for clutter.
        """
        height, width = alpha.shape
        y1, y2, x1, x2 = max(top, 0), min(top + height, self.size), max(left, 0), min(left + width, self.size)
        if y1 >= y2 or x1 >= x2:
            return False
        source = slice(y1 - top, y2 - top), slice(x1 - left, x2 - left)
        target = slice(y1, y2), slice(x1, x2)
        solid, before = alpha > 0.5, self.owner[target].copy()
        touched = {*before[solid[source]].tolist()} - {-1}
        self.owner[target][solid[source]] = -1 if class_id is None else len(self.objects)
        objects = self.objects
        if class_id is not None:
            touched.add(len(objects))
            objects = [*objects, _Object(class_id, int(solid.sum()), target)]
        if not all(_visible(self.owner[objects[index].place] == index, objects[index].area) for index in touched):
            self.owner[target] = before
            return False
        self.objects = objects
        cover = alpha[source][..., None]
        self.canvas[target] = self.canvas[target] * (1 - cover) + paint[source] * cover
        return True

    def labels(self) -> tuple[NDArray[np.int64], Array]:
        boxes = [_extent(self.owner == index) for index in range(len(self.objects))]
        classes = [each.class_id for each in self.objects]
        return np.array(classes, dtype=np.int64), np.array(boxes, dtype=np.float64).reshape(-1, 4)


def _visible(mask: NDArray[np.bool_], area: int) -> bool:
    """Whether enough of an object of `area` pixels is to be seen in `mask`."""
    if area == 0 or mask.sum() < MIN_VISIBLE * area:
        return False
    x1, y1, x2, y2 = _extent(mask)
    return min(x2 - x1, y2 - y1) >= MIN_SIDE


def _extent(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _place(picture: _Picture, is_object: bool, rng: np.random.Generator) -> None:
    """Try a few positions for one item; a crowded picture gets fewer items."""
    size = picture.size
    for _ in range(12):
        x, y = rng.uniform(0.04, 0.96, 2) * size
        # Log-uniform: as many small objects as large ones.
        radius = max(min(size, TILE) * 0.5 * math.exp(rng.uniform(math.log(0.18), math.log(0.55))), 4.5)
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
    """Signed distance to a bar, or to half of a shape: it resembles a part of an object."""
    angle = rng.uniform(0, 2 * math.pi)
    a, b = u * math.cos(angle) + v * math.sin(angle), v * math.cos(angle) - u * math.sin(angle)
    if rng.random() < 0.5:
        return np.maximum(np.abs(a) - 1.4 * radius, np.abs(b) - rng.uniform(0.6, 0.14 * radius + 1.0))
    half = _distance(HALVED[int(rng.integers(len(HALVED)))], u, v, radius)
    return np.maximum(half, a + rng.uniform(0.0, 0.3) * radius)


def _paint(ground: Array, hue: float, u: Array, v: Array, rng: np.random.Generator) -> Array:
    """A colour that differs from the ground, perhaps weakly; shaded and sometimes striped."""
    wheel = 0.5 + 0.5 * np.cos(2 * math.pi * (hue + np.array([0.0, 1 / 3, 2 / 3])))
    colour = ground + (wheel - ground) * rng.uniform(0.3, 0.9)
    angle = rng.uniform(0, 2 * math.pi)
    along = u * math.cos(angle) + v * math.sin(angle)
    shade = rng.uniform(0, 0.12) * along
    if rng.random() < 0.2:
        shade = shade + rng.uniform(0.03, 0.1) * np.sin(along * rng.uniform(4, 12))
    return np.clip(colour + shade[..., None], 0, 1)


def _ground(size: int, rng: np.random.Generator) -> Array:
    """Uneven colour with blotches at two scales, sometimes striped: (S, S, 3) in [0, 1]."""
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
    """Smooth noise, (S, S) in [-1, 1]: a coarse random grid, interpolated with a smooth step."""
    grid = rng.uniform(-1, 1, (cells + 1, cells + 1))
    position = (np.arange(size) + 0.5) / size * cells
    cell = position.astype(np.int64)
    part = position - cell
    part = part * part * (3 - 2 * part)
    rows = grid[cell] * (1 - part)[:, None] + grid[cell + 1] * part[:, None]
    return rows[:, cell] * (1 - part) + rows[:, cell + 1] * part


def _expose(canvas: Array, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Photograph it with a cheap camera: uneven light, blur, noise."""
    size = len(canvas)
    light = 1 + rng.uniform(0, 0.35) * _blotches(size, 1, rng)
    image = _blurred(canvas * light[..., None], rng.uniform(0.0, 1.0))
    image += rng.normal(size=image.shape) * rng.uniform(0.005, 0.05)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _blurred(image: Array, sigma: float) -> Array:
    """Gaussian blur, `sigma` in pixels."""
    taps = np.exp(-0.5 * (np.arange(-3, 4) / max(sigma, 0.05)) ** 2)
    taps /= taps.sum()
    for _ in range(2):  # along the rows, then along the columns
        padded = np.pad(image, ((3, 3), (0, 0), (0, 0)), mode="edge")
        rows = (tap * padded[k : k + len(image)] for k, tap in enumerate(taps))
        image = sum(rows, start=np.zeros_like(image)).swapaxes(0, 1)
    return image
