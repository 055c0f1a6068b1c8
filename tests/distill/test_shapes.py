"""The generated data set: the same bytes for the same seed, honest labels, and never another set in its place."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from distill.demo import dataset as shapes
from distill.demo import drawing
from distill.errors import DistillError, RunError

SIZE = 96
TINY: dict[str, int] = {"train": 12, "val": 6, "imgsz": SIZE, "seed": 3}


@pytest.fixture(scope="module")
def tiny_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny set, for the tests that only read."""
    return shapes.generate(tmp_path_factory.mktemp("tiny_set") / "set", **TINY).parent


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes(tiny_set: Path, tmp_path: Path) -> None:
    again = shapes.generate(tmp_path / "again", **TINY).parent
    assert contents(again) == contents(tiny_set)


def test_another_seed_changes_every_image(tiny_set: Path, tmp_path: Path) -> None:
    other = contents(shapes.generate(tmp_path / "other", **{**TINY, "seed": 4}).parent)
    first = contents(tiny_set)
    images = [name for name in first if name.endswith(".png")]
    assert len(images) == 18
    assert all(first[name] != other[name] for name in images)


def test_a_smaller_set_is_a_prefix(tiny_set: Path, tmp_path: Path) -> None:
    small = contents(shapes.generate(tmp_path / "small", **{**TINY, "train": 5}).parent)
    del small["shapes.json"]
    assert small.items() <= contents(tiny_set).items()


def test_train_and_val_share_no_image(tiny_set: Path) -> None:
    everything = contents(tiny_set)
    images = [data for name, data in everything.items() if name.endswith(".png")]
    assert len(set(images)) == len(images)


def test_layout(tiny_set: Path) -> None:
    text = (tiny_set / "data.yaml").read_text(encoding="utf-8")
    assert "train: images/train" in text and "val: images/val" in text
    assert str(tiny_set) not in text  # a set can be moved
    for split in shapes.SPLITS:
        images = sorted((tiny_set / "images" / split).iterdir())
        labels = sorted((tiny_set / "labels" / split).iterdir())
        assert [path.stem for path in images] == [path.stem for path in labels]
        assert len(images) == TINY[split]
        with Image.open(images[0]) as image:
            assert image.size == (SIZE, SIZE) and image.mode == "RGB"


def test_label_files_say_what_was_drawn(tiny_set: Path) -> None:
    for index in range(TINY["val"]):
        sample = drawing.draw(SIZE, (TINY["seed"], 1, index))
        rows = np.loadtxt(tiny_set / "labels" / "val" / f"{index:05d}.txt", ndmin=2)
        assert np.array_equal(rows[:, 0], sample.classes)
        low, high = rows[:, 1:3] - rows[:, 3:5] / 2, rows[:, 1:3] + rows[:, 3:5] / 2
        np.testing.assert_allclose(np.hstack([low, high]) * SIZE, sample.boxes, atol=1e-3)
        with Image.open(tiny_set / "images" / "val" / f"{index:05d}.png") as image:
            assert np.array_equal(np.asarray(image), sample.image)


def test_boxes_are_inside_and_large_enough() -> None:
    for index in range(40):
        sample = drawing.draw(SIZE, (0, 0, index))
        assert len(sample.classes) == len(sample.boxes) >= 1
        assert ((sample.classes >= 0) & (sample.classes < len(drawing.CLASSES))).all()
        assert (sample.boxes >= 0).all() and (sample.boxes <= SIZE).all()
        assert (sample.boxes[:, 2:] - sample.boxes[:, :2] >= drawing.MIN_SIDE).all()


def test_a_large_image_holds_more_shapes_not_larger_ones() -> None:
    small, large = ([drawing.draw(size, (0, 0, index)).boxes for index in range(8)] for size in (SIZE, 3 * SIZE))
    counts = [np.mean([len(boxes) for boxes in images]) for images in (small, large)]
    assert 5 < counts[1] / counts[0] < 11  # nine times the area, in which some find no place
    sides = [np.median((boxes[:, 2:] - boxes[:, :2]).max(axis=1)) for boxes in map(np.concatenate, (small, large))]
    assert 0.7 < sides[1] / sides[0] < 1.4


def test_boxes_are_tight_and_objects_visible() -> None:
    """Against the picture's own record of which object is on top, with an occluder whose place is known."""
    picture = drawing._Picture(40, np.zeros((40, 40, 3)))
    square, paint = np.ones((10, 10)), np.ones((10, 10, 3))
    assert picture.add(square, 5, 8, paint, class_id=2)
    assert picture.add(np.ones((30, 3)), 5, 0, np.zeros((30, 3, 3)), class_id=None)  # a bar over its left 3 columns
    classes, boxes = picture.labels()
    assert classes.tolist() == [2]
    assert boxes.tolist() == [[8, 8, 15, 18]]
    before = picture.canvas.copy()
    assert not picture.add(np.ones((30, 4)), 8, 0, np.ones((30, 4, 3)), class_id=None)  # would leave less than 60%
    assert not picture.add(square, -7, 20, paint, class_id=0)  # mostly outside of the canvas
    assert np.array_equal(picture.canvas, before) and picture.labels()[0].tolist() == [2]


@pytest.mark.parametrize("name", drawing.CLASSES)
def test_outline(name: str) -> None:
    """A shape of radius r fills a fair part of its circle and never leaves it by more than its corners."""
    y, x = np.mgrid[-60:61, -60:61].astype(float)
    inside = drawing._distance(name, x, y, 40.0) < 0
    assert 0.25 < inside.sum() / (np.pi * 40.0**2) < 0.85
    assert np.hypot(x, y)[inside].max() <= 40.0 * 1.12
    assert inside[60, 60] == (name != "ring")


def test_every_class_occurs_about_equally() -> None:
    drawn = np.concatenate([drawing.draw(SIZE, (0, 1, index)).classes for index in range(60)])
    counts = np.bincount(drawn, minlength=len(drawing.CLASSES))
    assert counts.min() > 0.5 * counts.mean()


def test_a_matching_set_is_reused(tiny_set: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tiny_set.rglob("*")}
    assert shapes.generate(tiny_set, **TINY) == tiny_set / "data.yaml"
    assert {path: path.stat().st_mtime_ns for path in tiny_set.rglob("*")} == before


@pytest.mark.parametrize("key", ["train", "val", "imgsz", "seed"])
def test_another_set_is_refused_and_kept(tiny_set: Path, key: str) -> None:
    before = contents(tiny_set)
    with pytest.raises(DistillError, match=rf"{key} {TINY[key]} \(wanted {TINY[key] + 32}\)"):
        shapes.generate(tiny_set, **{**TINY, key: TINY[key] + 32})
    assert contents(tiny_set) == before


def test_an_older_format_is_refused(tiny_set: Path, tmp_path: Path) -> None:
    record = json.loads((tiny_set / "shapes.json").read_text(encoding="utf-8"))
    (tmp_path / "shapes.json").write_text(json.dumps({**record, "format": 0}), encoding="utf-8")
    with pytest.raises(DistillError, match="format 0"):
        shapes.generate(tmp_path, **TINY)


@pytest.mark.parametrize("record", [None, "[]", "not json", "3"])
def test_a_foreign_folder_is_refused_and_kept(tmp_path: Path, record: str | None) -> None:
    (tmp_path / "mine.txt").write_text("precious", encoding="utf-8")
    if record is not None:
        (tmp_path / "shapes.json").write_text(record, encoding="utf-8")
    before = contents(tmp_path)
    with pytest.raises(DistillError):
        shapes.generate(tmp_path, **TINY)
    assert contents(tmp_path) == before


def test_a_set_with_a_missing_file_is_refused(tmp_path: Path) -> None:
    folder = shapes.generate(tmp_path / "set", **{**TINY, "train": 2, "val": 1}).parent
    (folder / "images" / "train" / "00001.png").unlink()
    with pytest.raises(DistillError, match="images/train"):
        shapes.generate(folder, **{**TINY, "train": 2, "val": 1})


@pytest.mark.parametrize(("key", "value"), [("train", 0), ("val", 0), ("imgsz", 16), ("seed", -1)])
def test_values_out_of_range(tmp_path: Path, key: str, value: int) -> None:
    with pytest.raises(DistillError, match=f"shapes.{key}"):
        shapes.generate(tmp_path / "set", **{**TINY, key: value})
    assert not list(tmp_path.iterdir())


def test_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def stop_midway(items: Iterable[Any], label: str, total: int, unit: str) -> Iterator[Any]:
        for count, item in enumerate(items):
            if count == total // 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        shapes.generate(tmp_path / "set", **TINY, progress=stop_midway)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Image.Image, *args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match="No space left on device") as caught:
        shapes.generate(tmp_path / "set", **TINY)
    assert caught.value.exit_status == 1 and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_progress_sees_every_image(tmp_path: Path) -> None:
    seen: list[Any] = []

    def watch(items: Iterable[Any], label: str, total: int, unit: str) -> Iterator[Any]:
        assert label and (total, unit) == (3, "images")
        for item in items:
            seen.append(item)
            yield item

    shapes.generate(tmp_path / "set", **{**TINY, "train": 2, "val": 1}, progress=watch)
    assert len(seen) == 3
