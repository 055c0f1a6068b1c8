"""Kinds of data from public issue threads: each is tried, and is a line of docs/compatibility.md."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from distill.errors import DistillError
from distill.yolo.data import dataset as data
from distill.yolo.data import images
from distill.yolo.data.dataset import DataSet
from tests.distill.yolo.test_data import NAMES, ROWS, describe, make_images, snapshot

PAGE = Path(__file__).resolve().parents[3] / "docs" / "compatibility.md"
BOXES = len(ROWS)


@dataclass(frozen=True)
class Kind:
    """What somebody has, and what comes of it; `set` has 6 images in images/train and 3 in images/val, with labels."""

    make: Callable[[Path], Any]  # changes the set; may return keys of its data.yaml, or the text of one
    says: str = ""  # what must be in the error, a warning or a note; nothing of these if empty
    how: str = "notes"  # "refused", "warnings" or "notes": where it is said
    train: int = 6  # images that are used
    right: Callable[[DataSet], bool] = lambda loaded: True


def label(text: str, name: str = "train/0.txt", encoding: str = "utf-8") -> Callable[[Path], None]:
    """Another label file for one image."""

    def write(root: Path) -> None:
        (root / "labels" / name).write_bytes(text.encode(encoding))

    return write


def every_label(text: str) -> Callable[[Path], None]:
    """Another label file for every image."""

    def write(root: Path) -> None:
        for file in (root / "labels").rglob("*.txt"):
            file.write_text(text)

    return write


def picture(array: np.ndarray, name: str = "0.png") -> Callable[[Path], None]:
    """Another picture for the image 0 of train."""

    def write(root: Path) -> None:
        (root / "images/train/0.jpg").unlink()
        cv2.imwrite(str(root / "images/train" / name), array)

    return write


def pixels(loaded: DataSet, file: str = "0.png") -> np.ndarray:
    """An image of train as training sees it, in its own size."""
    index = [path.name for path in loaded.train].index(file)
    return images.build_dataset(loaded, "train", imgsz=64, batch=1, rect=False).load_image(index)[0]


def first(loaded: DataSet) -> dict[str, Any]:
    return loaded.records["train"][0]


def boxes_of(loaded: DataSet) -> list[list[float]]:
    return [[round(float(value), 3) for value in row] for row in first(loaded)["bboxes"]]


def rotated(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter
    Image.new("RGB", (64, 30)).save(root / "images/train/0.jpg", exif=exif)


def move(source: str, target: str) -> Callable[[Path], None]:
    def go(root: Path) -> None:
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / source, root / target)

    return go


def linked(root: Path) -> None:
    shutil.move(root / "images", root.parent / "store")
    (root / "images").symlink_to(root.parent / "store")


def same_names(root: Path) -> dict[str, Any]:
    for number, row in enumerate(ROWS[:2]):
        folder = root / f"rec{number}"
        folder.mkdir()
        shutil.copy(root / "images/val/0.jpg", folder / "frame1.jpg")
        (folder / "frame1.txt").write_text(row)
    return {"train": ["rec0", "rec1"]}


def cut_short(root: Path) -> None:
    file = root / "images/train/0.jpg"
    file.write_bytes(file.read_bytes()[:-400])


def no_end_mark(root: Path) -> None:
    file = root / "images/train/0.jpg"
    file.write_bytes(file.read_bytes() + b"\0\0made by a camera")


def all_of_another_format(root: Path) -> None:
    shutil.rmtree(root / "labels")
    (root / "annotations").mkdir()
    for file in (root / "images/train").iterdir():
        (root / "annotations" / f"{file.stem}.xml").write_text("<annotation/>")


def coco_json(root: Path) -> None:
    shutil.rmtree(root / "labels")
    (root / "instances_train.json").write_text(json.dumps({"images": [], "annotations": []}))


def listed(lines: str, encoding: str = "utf-8") -> Callable[[Path], dict[str, Any]]:
    def write(root: Path) -> dict[str, Any]:
        (root / "train.txt").write_bytes("".join(lines.format(i=i, root=root) for i in range(6)).encode(encoding))
        return {"train": "train.txt"}

    return write


def roboflow(root: Path) -> dict[str, Any]:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            move(f"{kind}/{split}", f"{split}/{kind}")(root)
    return {"train": "../train/images", "val": "../val/images"}


def read_only(root: Path) -> None:
    for folder in (root / "images/train", root / "labels/train"):
        folder.chmod(0o555)


def heic(root: Path) -> None:
    (root / "images/train/0.jpg").rename(root / "images/train/0.heic")
    (root / "images/train/0.heic").write_bytes(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200))


GREY16 = np.full((48, 64), 0x80FF, np.uint16)
RGBA = np.dstack([np.full((48, 64, 3), 200, np.uint8), np.zeros((48, 64), np.uint8)])

KINDS = {
    # labels
    "numbers set apart by commas": Kind(
        label("0,0.5,0.5,0.2,0.2"), "numbers are set apart by blanks", "warnings", 5
    ),
    "a score as sixth number": Kind(label("0 0.5 0.5 0.2 0.2 0.9"), "the last may be a score", "warnings", 5),
    "the name of a class in place of its number": Kind(label("circle 0.5 0.5 0.2 0.2"), "not all numbers", "warnings", 5),
    "boxes in pixels": Kind(label("0 120 80 40 30"), "coordinates must be shares", "warnings", 5),
    "coordinates a little outside": Kind(
        label("0 1.005 0.5 0.2 0.2"), right=lambda loaded: boxes_of(loaded) == [[1.005, 0.5, 0.2, 0.2]]
    ),
    "coordinates far outside": Kind(label("0 1.0371 0.5 0.2 0.2"), "coordinates must be shares", "warnings", 5),
    "negative coordinates": Kind(label("0 -0.04 0.5 0.2 0.2"), "coordinates must be shares", "warnings", 5),
    "rows twice": Kind(label("\n".join([ROWS[0]] * 3)), right=lambda loaded: len(first(loaded)["cls"]) == 1),
    "turned boxes (four corners)": Kind(
        every_label("0 0.1 0.2 0.5 0.2 0.5 0.4 0.1 0.4"), right=lambda loaded: boxes_of(loaded) == [[0.3, 0.3, 0.4, 0.2]]
    ),
    "poses": Kind(
        lambda root: every_label("0 0.5 0.5 0.2 0.4 0.1 0.2 2 0.3 0.4 1")(root) or {"kpt_shape": [2, 3]},
        right=lambda loaded: boxes_of(loaded) == [[0.5, 0.5, 0.2, 0.4]],
    ),
    "polygons and boxes in one file": Kind(
        label(f"{ROWS[0]}\n1 0.1 0.1 0.4 0.1 0.4 0.5"),
        "a polygon is replaced by its box",
        right=lambda loaded: boxes_of(loaded)[1] == [0.25, 0.3, 0.3, 0.4],
    ),
    "class numbers from 1": Kind(label("3 0.5 0.5 0.2 0.2"), r"0\.txt:1: class 3, but the data set has 3", "refused"),
    "class numbers with a point": Kind(label("1.0 0.5 0.5 0.2 0.2"), right=lambda loaded: first(loaded)["cls"][0, 0] == 1),
    "a byte-order mark": Kind(label(ROWS[0], encoding="utf-8-sig"), right=lambda loaded: len(first(loaded)["cls"]) == 1),
    "UTF-16 from PowerShell": Kind(label(ROWS[0], encoding="utf-16"), right=lambda loaded: len(first(loaded)["cls"]) == 1),
    "empty label files": Kind(label(""), right=lambda loaded: len(first(loaded)["cls"]) == 0),
    "images without label files": Kind(
        lambda root: (root / "labels/train/0.txt").unlink(), "1 of the 6 images of 'train' have no label file"
    ),
    "labels beside the images": Kind(move("labels/train/0.txt", "images/train/0.txt"), "lies unused", "warnings"),
    "Pascal VOC or labelme files": Kind(all_of_another_format, "no label file for any.*xml is not read: convert", "refused"),
    "one COCO .json": Kind(coco_json, "no label file for any of the 6 images", "refused"),
    "classes.txt among the labels": Kind(lambda root: (root / "labels/train/classes.txt").write_text("\n".join(NAMES))),
    "a stale labels.cache": Kind(lambda root: (root / "labels/train.cache").write_bytes(b"\x93NUMPY old")),
    "all labels unusable": Kind(every_label("0 2 2 2 2"), "none of the 6 images can be used, first", "refused"),
    # images
    "equal file names in several folders": Kind(
        same_names, train=2, right=lambda loaded: [int(record["cls"][0, 0]) for record in loaded.records["train"]] == [0, 2]
    ),
    "a .jpg and a .png of one name": Kind(
        lambda root: shutil.copy(root / "images/train/0.jpg", root / "images/train/0.jpeg"), "share a label file", "warnings", 7
    ),
    "extensions in capitals": Kind(move("images/train/0.jpg", "images/train/0.JPG")),
    "photos turned by EXIF": Kind(rotated, right=lambda loaded: first(loaded)["shape"] == (64, 30) == pixels(loaded, "0.jpg").shape[:2]),
    "a JPEG with more behind its end": Kind(no_end_mark),
    "a JPEG that was cut short": Kind(cut_short, "0.jpg: image file is truncated", "warnings", 5),
    "16 bits a channel": Kind(picture(GREY16), right=lambda loaded: (pixels(loaded) == 0x80).all()),
    "16 bits in a TIFF": Kind(
        picture(GREY16, "0.tif"),
        right=lambda loaded: (pixels(loaded, "0.tif") == 0x80).all() and pixels(loaded, "0.tif").shape[2] == 3,
    ),
    "an alpha channel": Kind(picture(RGBA), right=lambda loaded: pixels(loaded).shape == (48, 64, 3)),
    "grey images": Kind(picture(RGBA[..., 0]), right=lambda loaded: (pixels(loaded) == 200).all()),
    "`channels: 1` or more than 3": Kind(lambda root: {"channels": 1}, "'channels: 1': only images of 3", "refused"),
    "HEIC photos": Kind(heic, "0.heic: is no image that can be read", "warnings", 5),
    "more than 179 million pixels": Kind(
        picture(np.zeros((13500, 13500), np.uint8), "0.jpg"), "0.jpg: has too many pixels", "warnings", 5
    ),
    "a data set that is read-only": Kind(read_only),
    # paths
    "`images` is a link": Kind(linked),
    "`../train/images` of Roboflow": Kind(roboflow),
    "a list relative to the data folder": Kind(listed("images/train/{i}.jpg\n")),
    "a list with Windows line ends, backslashes, quotes": Kind(listed('"images\\train\\{i}.jpg"\r\n')),
    "a list in UTF-16": Kind(listed("./images/train/{i}.jpg\n", "utf-16")),
    "a list in GBK": Kind(listed("训练/{i}.jpg\n", "gbk"), "train.txt is not in UTF-8", "refused"),
    "a list of files that are gone": Kind(listed("images/old/{i}.jpg\n"), "6 of the 6 images .* are not there", "refused"),
    "a path of another machine": Kind(lambda root: {"path": "C:/Users/me/data"}, "a path of Windows", "refused"),
    "a folder in another case": Kind(lambda root: {"val": "Images/Val"}, "did you mean 'images/val'", "refused"),
    # class names
    "`nc` and `names` of different lengths": Kind(lambda root: {"nc": 80}, "'nc: 80', but 'names' has 3", "refused"),
    "names with their numbers behind": Kind(
        lambda root: {"names": {name: i for i, name in enumerate(NAMES)}}, "a mapping from id to name: 'circle: 0'", "refused"
    ),
    "no blank behind a colon": Kind(
        lambda root: "train:images/train\nval:images/val\nnames:[a, b, c]\n", "write 'train: ' with a blank", "refused"
    ),
    "an empty `names`": Kind(lambda root: {"names": {}}, "must be 0, 1, 2", "refused"),
    "a .names file": Kind(lambda root: {"names": "obj.names"}, "'names' must be a list of class names", "refused"),
    "names in other scripts": Kind(lambda root: {"names": ["Société", "圆", "ستارة"]}, right=lambda loaded: loaded.names[1] == "圆"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_kind_of_data_that_was_reported(tmp_path: Path, kind: Kind, capfd: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "set"
    make_images(root / "images" / "train", 6)
    make_images(root / "images" / "val", 3)
    content = kind.make(root)
    path = describe(root, **(content if isinstance(content, dict) else {}))
    if isinstance(content, str):
        path.write_text(content)
    if kind.how == "refused":
        with pytest.raises(DistillError, match=kind.says) as caught:
            data.load(path)
        assert "\n" not in str(caught.value)
        return
    before = snapshot(root)
    loaded = data.load(path)
    said = {"warnings": loaded.warnings, "notes": loaded.notes}
    assert len(loaded.train) == kind.train and len(loaded.val) == 3
    assert any(kind.says in text for text in said.pop(kind.how)) or not kind.says
    assert not [text for texts in said.values() for text in texts]
    assert kind.says or not (loaded.warnings or loaded.notes)
    assert kind.right(loaded)
    assert snapshot(root) == before and capfd.readouterr() == ("", "")


def test_every_kind_is_a_line_of_the_page_with_the_thread_that_reports_it() -> None:
    section = PAGE.read_text(encoding="utf-8").partition("## Data\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| ")
    ]
    assert [row[0] for row in rows[2:]] == list(KINDS)
    assert all(re.fullmatch(r"[\w.-]+(/[\w.-]+)? #\d+", thread) for row in rows[2:] for thread in row[1].split(", "))
    assert all(len(row) == 3 and row[2] for row in rows)
