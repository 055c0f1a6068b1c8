"""A data.yaml that was made to hurt: one line each, soon, and no more memory than it is worth."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from distill.errors import DistillError
from distill.yolo.data import dataset as data
from tests.distill.yolo.test_data import NAMES, describe, make_images

SPLITS = "train: images/train\nval: images/val\n"
# Ten names for one list of lists of ..., each nine times as long as the one before: nobody could print the last.
NESTED = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of 3 + 3 images without a data.yaml; no test changes it."""
    root = tmp_path_factory.mktemp("hostile")
    for split in ("train", "val"):
        make_images(root / "images" / split, 3)
    return root


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("names: {.inf: a}", "'inf: a' does not fit"),
        ("names: {.nan: a}", "'nan: a' does not fit"),
        ("names: {person: 0}", "'person: 0' does not fit"),
        ("names: [a, [b], c]", "'1: a list' does not fit"),
        ("names: &a [*a]", "'0: a list' does not fit"),
        ("names: " + "[" * 3000 + "]" * 3000, "nested too deeply"),
        ("names: !!bool foo", "not of the type that its tag names"),
        ("names: !!timestamp foo", "not of the type that its tag names"),
        ("nc: !!int ''", "not of the type that its tag names"),
        ("names: [a, 2024-13-45]", "no valid YAML: month must be in 1..12"),
        ("names: !!python/object/apply:os.system ['true']", "could not determine a constructor"),
        ("nc: 40000000", "'nc: 40000000' is more than 100,000 classes"),
        ("nc: " + "9" * 5000, "no valid YAML"),
        ("nc: true", "'nc: True' must be the number"),
        ("path: " + "a" * 5000, "'path: a+…' is not there"),
        ("path: ~nobody-of-this-name/x", "'path: ~nobody-of-this-name/x' is not there"),
        ('path: "a\\0b"', r"'path: a\\x00b' is not there"),
        (NESTED + "names: *j", "'0: a list' does not fit"),
        (NESTED + "path: *j", "'path: a list' must be a folder"),
        (NESTED + "channels: *j", "'channels: a list': only"),
        (NESTED + "nc: *j", "'nc: a list' must be"),
        ("x: {<<: [{a: 1}]}", "merge keys"),
        ("names: [a]\nnames: [b]", "data.yaml:4:1: key 'names' is there twice"),
        ("names: {0: a, 0: b}", "key '0' is there twice"),
        ('names: ["a\\e[31m", "b\\nc"]\nnc: 3', r"'names' has 2: a\\x1b\[31m, b\\nc"),
    ],
)
def test_a_hostile_data_yaml_is_one_line(root: Path, text: str, says: str) -> None:
    path = root / "data.yaml"
    path.write_text(SPLITS + text + "\n")
    start = time.process_time()
    with pytest.raises(DistillError, match=says) as caught:
        data.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and "\n" not in message and len(message) < 1000
    assert time.process_time() - start < 10  # without bounds, hours


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (f"train: {'a/' * 3000}", "is not there"),
        ("train: C:\\data\\images", "a path of Windows"),
        ('train: "images\\train"', "write /"),
        ('train: "images\\data"', "unknown escape character 'd': write / in paths"),
        ("train: images/train/*.jpg", "wildcards are not read"),
        ("train: https://example.org/images.zip", "nothing is downloaded"),
        ("train: [[images/train]]", "'train: a list' must be a folder of images"),
    ],
)
def test_a_path_that_leads_nowhere_says_why(root: Path, line: str, says: str) -> None:
    (root / "data.yaml").write_text(f"{line}\nval: images/val\nnames: [a, b, c]\n")
    with pytest.raises(DistillError, match=says) as caught:
        data.load(root / "data.yaml")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


@pytest.mark.parametrize(("encoding", "names"), [("gbk", "[猫, 狗, 鸟]"), ("cp1252", "[café, b, c]")])
def test_another_encoding_than_utf_8_is_said_with_its_line(root: Path, encoding: str, names: str) -> None:
    (root / "data.yaml").write_bytes(f"{SPLITS}names: {names}\n".encode(encoding))
    with pytest.raises(DistillError, match=r"not in UTF-8 \(line 3 holds the byte 0x..\): save it in UTF-8"):
        data.load(root / "data.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_unicode_with_and_without_a_mark_is_read(root: Path, encoding: str) -> None:
    (root / "data.yaml").write_bytes(f"{SPLITS}names: [café, 猫, c]\n".encode(encoding))
    assert data.load(root / "data.yaml").names == {0: "café", 1: "猫", 2: "c"}


@pytest.mark.parametrize("kind", ["data.yaml", "0.jpg", "0.txt"])
def test_a_pipe_is_not_waited_for(tmp_path: Path, kind: str) -> None:
    for split in ("train", "val"):
        make_images(tmp_path / "images" / split, 3)
    path = describe(tmp_path)
    place = {"data.yaml": path, "0.jpg": tmp_path / "images/train/0.jpg", "0.txt": tmp_path / "labels/train/0.txt"}[
        kind
    ]
    place.unlink()
    os.mkfifo(place)
    if kind == "data.yaml":
        with pytest.raises(DistillError, match="is no regular file"):
            data.load(path)
    else:
        (warning,) = data.load(path).warnings
        assert "1 of the 3 images of 'train' left out" in warning and f"{kind}: is no file" in warning


def test_a_loop_of_links_gives_each_image_once(tmp_path: Path) -> None:
    make_images(tmp_path / "images" / "train", 6)
    make_images(tmp_path / "images" / "val", 3)
    (tmp_path / "images" / "train" / "up").symlink_to("..")
    (tmp_path / "images" / "again").symlink_to("train")
    assert len(data.load(describe(tmp_path)).train) == 6 + 3  # `up` leads to val too
    assert len(data.load(tmp_path / "images").records["train"]) == 9
    assert {file.parent.name for file in data.load(tmp_path / "images").train} == {"train", "val"}


@pytest.mark.parametrize(
    "content",
    [
        {"train": ["images/train", "images/train/0.jpg", "./images/../images/train"]},
        {"train": "twice.txt"},
        {"train": ["images/train", "images/link"]},
    ],
)
def test_an_image_that_is_listed_twice_counts_once(tmp_path: Path, content: dict[str, Any]) -> None:
    for split in ("train", "val"):
        make_images(tmp_path / "images" / split, 3)
    (tmp_path / "images" / "link").symlink_to("train")
    (tmp_path / "twice.txt").write_text("".join(f"./images/train/{i}.jpg\n" for i in (0, 1, 2, 1, 0)))
    loaded = data.load(describe(tmp_path, **content))
    assert [str(file) for file in loaded.train] == [str(tmp_path / f"images/train/{i}.jpg") for i in range(3)]
    (note,) = loaded.notes
    assert note.startswith("'train' lists ") and note.endswith(" images more than once: each counts once")


def test_odd_numbers_and_huge_images_leave_no_warning_of_numpy_or_pillow(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, capfd: pytest.CaptureFixture[str]
) -> None:
    for split in ("train", "val"):
        make_images(tmp_path / "images" / split, 6)
    labels, pictures = tmp_path / "labels" / "train", tmp_path / "images" / "train"
    (labels / "0.txt").write_text("0 1e400 0.5 0.1 0.1")
    (labels / "1.txt").write_text("0 nan 0.5 0.1 0.1")
    (labels / "2.txt").write_text("1e-46 0.5 0.5 0.1 0.1")
    for name, size in (("3.jpg", (1, 1)), ("4.jpg", (9500, 9500)), ("5.jpg", (13500, 13500))):
        # A picture of one colour; Pillow warns of more than 89 million pixels and opens at most twice as many.
        cv2.imwrite(str(pictures / name), np.zeros((*size, 1), np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 1])
    loaded = data.load(describe(tmp_path))
    assert [file.name for file in loaded.train] == ["4.jpg"]
    (warning,) = loaded.warnings
    for text in (
        "0.txt: coordinates",
        "1.txt: coordinates",
        "2.txt: line 1: '1e-46' is no class",
        "5.jpg: has too many",
    ):
        assert text in warning
    assert not recwarn.list and capfd.readouterr() == ("", "")


def test_names_that_steer_a_terminal_are_kept_and_shown_escaped(root: Path) -> None:
    names = ["a\x1b[31m", "b\nc", "c\u202e"]
    path = describe(root, names=names)
    assert data.load(path).names == dict(enumerate(names))
    (warning,) = data.load(path, dict(enumerate(NAMES))).warnings
    assert r"class 0 is 'a\x1b[31m' there" in warning and r"'b\nc'" in warning and r"'c\u202e'" in warning
