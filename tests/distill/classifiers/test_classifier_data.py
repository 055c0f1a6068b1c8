"""Data of classifiers: read as timm reads them, and refused in one line if they do not fit."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_dataset
from torchvision.datasets import ImageFolder

from distill.classifiers import data as datasets
from distill.classifiers.data import TRAIN, VAL
from distill.demo import crops
from distill.errors import DistillError
from tests.distill.classifiers.colours import NAMES, SIZE, build, write


def image(path: Path, colour: tuple[int, int, int] = (9, 9, 9)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 20), colour).save(path)


def test_a_folder_is_read_as_timm_and_torchvision_read_it(tmp_path: Path) -> None:
    for name in ("10", "9", "b"):  # timm sorts numbers as numbers
        for split in ("train", "val"):
            image(tmp_path / split / name / "x.png")
    found = datasets.load(tmp_path)
    theirs = create_dataset("", root=str(tmp_path), split="train")
    assert found.names == {number: name for name, number in theirs.reader.class_to_idx.items()}
    assert [str(file) for file in found.train] == theirs.filenames(absolute=True)
    assert [target for _, target in found.dataset(TRAIN)] == [target for _, target in theirs]
    folder = write(tmp_path / "colours")
    assert list(datasets.load(folder).names.values()) == ImageFolder(folder / "train").classes


def test_calibration_is_what_validation_shows(tmp_path: Path) -> None:
    data, model = datasets.load(write(tmp_path)), build()
    images = datasets.calibration(model, data, 3, SIZE, seed=1)
    assert images.shape == (3, 3, SIZE, SIZE) and torch.equal(
        images, datasets.calibration(model, data, 3, SIZE, seed=1)
    )
    mean = torch.tensor(model.pretrained_cfg["mean"])
    black = (torch.zeros(3) - mean) / torch.tensor(model.pretrained_cfg["std"])
    assert (images.amin((0, 2, 3)) >= black - 1e-5).all() and not torch.equal(
        images, datasets.calibration(model, data, 3, SIZE, seed=2)
    )


@pytest.mark.parametrize(
    ("files", "known", "message"),
    [
        ((), None, "no images: give a folder with train/CLASS and val/CLASS"),
        (("train/a/x.png", "train/b/x.png"), None, "there is no folder 'val' beside the other"),
        (("train/a/x.png", "val/a/x.png"), None, "there is one class, 'a': a classifier tells two or more apart"),
        (("train/a/x.png", "train/b/x.png", "val/c/x.png"), None, "val has classes that train has not (c)"),
        (("train/a/x.png", "train/x.png", "val/a/x.png"), None, "there are images beside the folders of classes"),
        (
            ("train/a/x.png", "train/b/x.png", "val/a/x.png"),
            {0: "0", 1: "1", 2: "2"},
            "has 2 classes (a, b) and the network 3",
        ),
        (
            ("train/a/x.png", "train/b/x.png", "val/a/x.png"),
            {0: "a", 1: "c"},
            "class 1 is 'b', and of the network 'c'",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(
    files: tuple[str, ...], known: dict[int, str] | None, message: str, tmp_path: Path
) -> None:
    for file in files:
        image(tmp_path / file)
    with pytest.raises(DistillError) as caught:
        datasets.load(tmp_path, known)
    assert message in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_damaged_image_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write(tmp_path)
    (folder / "train" / "red" / "0.png").write_bytes(b"no image")
    found = datasets.load(folder, NAMES)
    assert len(found.train) == 15 and len(found.warnings) == 1 and "red/0.png" in found.warnings[0]
    assert datasets.fingerprint(found) != datasets.fingerprint(datasets.load(write(tmp_path / "again")))


def test_images_without_classes_are_held_back_alike(tmp_path: Path) -> None:
    for index in range(40):
        image(tmp_path / f"{index}.png")
    found = datasets.load(tmp_path, NAMES)
    assert not found.labelled and found.names is None and len(found.train) + len(found.val) == 40
    assert 3 <= len(found.val) <= 15 and not set(found.train) & set(found.val)
    assert found.val == datasets.load(tmp_path).val


def test_a_set_of_torchvisions_is_read_from_disk_in_three_channels(tmp_path: Path) -> None:
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for stem, count in (("train", 20), ("t10k", 10)):
        digits = np.arange(count, dtype=np.uint8) % 10
        pixels = np.full((count, 28, 28), 7, dtype=np.uint8)
        (raw / f"{stem}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes())
        (raw / f"{stem}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + digits.tobytes())
    found = datasets.load(f"torch/mnist:{tmp_path}")
    assert len(found.names) == 10 and (len(found.train), len(found.val)) == (20, 10)
    assert found.classes[VAL] == tuple(range(10))
    assert datasets.calibration(build(), found, 2, SIZE).shape == (2, 3, SIZE, SIZE)
    with pytest.raises(DistillError, match="torch/cifar10:.*nothing is downloaded"):
        datasets.load(f"torch/cifar10:{tmp_path}")
    with pytest.raises(DistillError, match="give torch/NAME:FOLDER"):
        datasets.load("torch/cifar10")


def test_shapes_are_drawn_once_and_in_the_order_of_their_classes(tmp_path: Path) -> None:
    folder = crops.generate(tmp_path / "shapes", train=12, val=6, imgsz=32)
    assert len(list(folder.glob("train/*/*.png"))) == 12 and crops.generate(folder, train=12, val=6, imgsz=32) == folder
    names = sorted(path.name for path in (folder / "train").iterdir())
    assert tuple(names) == crops.NAMES
    with pytest.raises(DistillError, match="holds another set of shapes"):
        crops.generate(folder, train=13, val=6, imgsz=32)
