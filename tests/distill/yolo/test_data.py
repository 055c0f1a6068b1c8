"""Data sets: every way to write them, every mistake in one line, and nothing written beside the user's files."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from ultralytics.data.dataset import YOLODataset
from ultralytics.utils import DEFAULT_CFG

from distill.errors import DistillError
from distill.yolo.data import dataset as data
from distill.yolo.data import images, labels

NAMES = ["circle", "square", "star"]
ROWS = ["0 0.5 0.5 0.2 0.4", "2 0.25 0.75 0.1 0.1", "1 0.6 0.4 0.3 0.3"]


def make_images(folder: Path, count: int, rows: list[str] | None = ROWS) -> list[Path]:
    """JPEGs of several shapes, with labels beside them."""
    folder.mkdir(parents=True)
    labels = folder.parents[1] / "labels" / folder.name
    if rows is not None:
        labels.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for i in range(count):
        files.append(folder / f"{i}.jpg")
        height, width = [(48, 64), (64, 40), (30, 64)][i % 3]
        cv2.imwrite(str(files[-1]), rng.integers(0, 255, (height, width, 3), np.uint8))
        if rows is not None:
            (labels / f"{i}.txt").write_text("\n".join(rows))
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of 6 + 3 images without a data.yaml."""
    make_images(tmp_path / "set" / "images" / "train", 6)
    make_images(tmp_path / "set" / "images" / "val", 3)
    return tmp_path / "set"


def describe(root: Path, **content: Any) -> Path:
    """A data.yaml for `root`; a value of None leaves its key out."""
    content = {"train": "images/train", "val": "images/val", "names": NAMES, **content}
    path = root / "data.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not None}))
    return path


def snapshot(root: Path) -> dict[str, Any]:
    return {str(p): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in sorted(root.rglob("*"))}


# --- ways to write one -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"names": dict(enumerate(NAMES))},
        {"names": {str(i): name for i, name in enumerate(NAMES)}, "nc": 3},
        {"path": "."},
        {"path": "../set"},
        {"path": "{root}"},
        {"train": "{root}/images/train", "val": "{root}/images/val"},
        {"train": ["images/train"], "val": ["./images/val"]},
        {"train": "../images/train", "val": "../images/val"},  # as Roboflow writes it
        {"val": None, "validation": "images/val"},
        {"train": "train.txt", "val": "lists/val.txt"},
    ],
)
def test_each_way_to_write_a_data_yaml(root: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "lists").mkdir()
    (root / "train.txt").write_text("\n".join(f"./images/train/{i}.jpg" for i in range(6)) + "\n\n")
    (root / "lists" / "val.txt").write_text("\n".join(f"{root}/images/val/{i}.jpg" for i in range(3)))

    def fill(value: Any) -> Any:
        return value.format(root=root) if isinstance(value, str) else value

    path = describe(root, **{key: fill(value) for key, value in content.items()})
    (root.parent / "elsewhere").mkdir()
    monkeypatch.chdir(root.parent / "elsewhere")
    loaded = data.load(Path("../set/data.yaml"), dict(enumerate(NAMES)))
    assert [file.samefile(root / "images" / "train" / f"{i}.jpg") for i, file in enumerate(loaded.train)] == [True] * 6
    assert [file.name for file in loaded.val] == ["0.jpg", "1.jpg", "2.jpg"]
    assert loaded.names == dict(enumerate(NAMES))
    assert loaded.labelled and not loaded.warnings
    assert loaded.config["nc"] == 3 and loaded.config["train"] == [str(file) for file in loaded.train]
    assert path.is_file()


def test_nc_alone_numbers_the_classes(root: Path) -> None:
    loaded = data.load(describe(root, names=None, nc=3))
    assert loaded.names == {0: "class_0", 1: "class_1", 2: "class_2"}


def test_a_folder_of_images_has_no_labels(root: Path) -> None:
    loaded = data.load(root / "images", dict(enumerate(NAMES)))
    assert not loaded.labelled
    assert loaded.names is None
    assert len(loaded.train) == len(loaded.val) == 9 and loaded.train == loaded.val  # too few to hold some back
    assert len(loaded.warnings) == 1 and "9 images are too few" in loaded.warnings[0]
    assert len(images.build_dataset(loaded, "train", imgsz=64, batch=2, augment=True)[0]["bboxes"]) == 0


def test_a_fifth_of_a_folder_is_held_back_and_always_the_same(tmp_path: Path) -> None:
    make_images(tmp_path / "some" / "pictures", 23, rows=None)
    shutil.copytree(tmp_path / "some", tmp_path / "copy")
    first, again, copied = (data.load(tmp_path / name / "pictures") for name in ("some", "some", "copy"))
    assert (len(first.train), len(first.val)) == (18, 5) and not first.warnings
    assert not set(first.train) & set(first.val)
    assert list(first.train) == sorted(first.train) and list(first.val) == sorted(first.val)
    assert (first.train, first.val) == (again.train, again.val)
    assert [file.name for file in copied.val] == [file.name for file in first.val]
    assert first.config["val"] == [record["im_file"] for record in first.records["val"]] == list(map(str, first.val))


@pytest.mark.parametrize(
    ("images", "trained", "measured"), [(1, 1, 1), (9, 9, 9), (10, 8, 2), (1000, 800, 200), (5000, 4800, 200)]
)
def test_how_many_are_held_back(images: int, trained: int, measured: int) -> None:
    records = tuple({"im_file": str(index)} for index in range(images))
    train, val = labels.hold_back(records)
    assert (len(train), len(val)) == (trained, measured)
    seen = {record["im_file"] for record in (*train, *val)}
    assert len(seen) == images


@pytest.mark.parametrize("labels_at", ["link", "target"])
def test_labels_are_found_beside_a_link_and_behind_it(root: Path, labels_at: str) -> None:
    """ultralytics resolves the link first, and finds no labels where they lie beside it."""
    if labels_at == "link":  # set/images -> store/pictures, set/labels
        shutil.move(root / "images", root.parent / "pictures")
        (root / "images").symlink_to(root.parent / "pictures")
    else:  # set/images -> store/images, store/labels
        (root.parent / "store").mkdir()
        for folder in ("images", "labels"):
            shutil.move(root / folder, root.parent / "store" / folder)
        (root / "images").symlink_to(root.parent / "store" / "images")
    assert len(data.load(describe(root)).records["train"][0]["cls"]) == 3


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"val": None}, "has no 'val'"),
        ({"train": None}, "has no 'train'"),
        ({"names": None}, "has no 'names'"),
        ({"names": []}, "without a gap"),
        ({"names": {0: "a", 2: "b"}}, "without a gap"),
        ({"names": "circle"}, "'names' must be a list"),
        ({"nc": 4}, "'nc: 4', but 'names' has 3: circle, square, star"),
        ({"nc": "three"}, "must be the number of classes"),
        ({"channels": 4}, "only images of 3 channels"),
        ({"path": "nowhere"}, "'path: nowhere' is not there"),
        ({"path": 3}, "must be a folder"),
        ({"val": "images/test"}, "'val: images/test' is not there"),
        ({"val": 3}, "'val: 3' must be a folder of images"),
        ({"val": "labels"}, "holds no images"),
        ({"val": "data.yaml"}, "neither a folder of images nor a .txt"),
        ({"val": "missing.txt"}, "1 of the 2 images .* are not there, first images/val/99.jpg"),
        ({"val": "images/unlabelled"}, "no label file for any of the 2 images of 'val'"),
        ({"names": ["circle", "square"]}, r"train/0.txt:2: class 2, but the data set has 2 classes.*and 5 more files"),
    ],
)
def test_a_mistake_is_one_clear_line(root: Path, content: dict[str, Any], says: str) -> None:
    make_images(root / "images" / "unlabelled", 2, rows=None)
    (root / "missing.txt").write_text("images/val/0.jpg\nimages/val/99.jpg\n")
    path = describe(root, **content)
    with pytest.raises(DistillError, match=says) as caught:
        data.load(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "no such file or folder"),
        (lambda path: path.mkdir(), "no images in this folder"),
        (lambda path: path.write_text("train: [a\nval: b"), r"data.yaml:2:4: expected"),
        (lambda path: path.write_text("hello"), "must hold 'train'"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "is no text"),
    ],
)
def test_what_is_no_data_set_is_refused(tmp_path: Path, make: Any, says: str) -> None:
    make(tmp_path / "data.yaml")
    with pytest.raises(DistillError, match=says) as caught:
        data.load(tmp_path / "data.yaml")
    assert "\n" not in str(caught.value)


def test_a_folder_with_a_data_yaml_is_not_guessed_at(root: Path) -> None:
    describe(root)
    with pytest.raises(DistillError, match="is a folder with a data.yaml: give that file"):
        data.load(root)


def test_classes_are_compared_with_the_models(root: Path) -> None:
    path = describe(root)
    with pytest.raises(DistillError, match=r"has 3 classes \(circle, square, star\), the model 2 \(cat, dog\)"):
        data.load(path, {0: "cat", 1: "dog"})
    with pytest.raises(DistillError, match="in another order: the model's is star, square, circle"):
        data.load(path, {0: "star", 1: "square", 2: "circle"})
    (warning,) = data.load(path, {0: "circle", 1: "box", 2: "star"}).warnings
    assert "class 1 is 'square'" in warning and "'box' in the model" in warning


def test_damaged_files_are_left_out_and_named(root: Path) -> None:
    images, labels = root / "images" / "train", root / "labels" / "train"
    (images / "0.jpg").write_bytes(b"no image at all")
    (images / "1.jpg").write_bytes((images / "1.jpg").read_bytes()[:-200])
    (labels / "2.txt").write_text("0 0.5 0.5 1.2 0.5")
    (labels / "3.txt").write_text("0 0.5 0.5 0.2")
    (labels / "4.txt").write_text("one 0.5 0.5 0.2 0.2")
    loaded = data.load(describe(root))
    assert [file.name for file in loaded.train] == ["5.jpg"]
    (warning,) = loaded.warnings
    assert warning.startswith("5 of the 6 images of 'train' left out: ")
    for name in ("0.jpg: is no image", "1.jpg: ", "2.txt: coordinates", "3.txt: each line", "4.txt: "):
        assert name in warning
    (images / "5.jpg").write_bytes(b"")
    with pytest.raises(DistillError, match="none of the 6 images can be used, first .*0.jpg: is no image"):
        data.load(describe(root))


@pytest.mark.parametrize("kind", ["tif", "bmp"])
def test_an_image_that_cannot_be_decoded_is_left_out(root: Path, kind: str) -> None:
    place = root / "images" / "train" / f"half.{kind}"
    cv2.imwrite(str(place), np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    assert not data.load(root / "images" / "train").warnings[1:]
    place.write_bytes(place.read_bytes()[: place.stat().st_size // 2])
    left_out, _ = data.load(root / "images" / "train").warnings
    assert left_out.startswith("1 of the 7 images of 'images' left out: ") and f"half.{kind}: " in left_out


def test_many_images_without_labels_are_a_warning(root: Path) -> None:
    for i in range(4):
        (root / "labels" / "train" / f"{i}.txt").unlink()
    loaded = data.load(describe(root))
    assert loaded.warnings == ("4 of the 6 images of 'train' have no label file: counted as empty",)
    assert len(loaded.train) == 6


@pytest.mark.parametrize(("rare", "says"), [(4, True), (5, False)])
def test_a_class_of_a_few_objects_is_a_warning_where_val_has_many(root: Path, rare: int, says: bool) -> None:
    val = root / "labels" / "val"
    for file in val.glob("*.txt"):
        file.unlink()
    (val / "0.txt").write_text("\n".join(f"0 0.5 0.5 0.{i:03} 0.2" for i in range(100, 200)))
    (val / "1.txt").write_text("\n".join(f"2 0.5 0.5 0.{i} 0.2" for i in range(1, 1 + rare)))
    expected = "'val' has fewer than 5 objects of 1 of its 2 classes (star 4): a box or two decide their AP, and each is 1/2 of mAP"
    assert (expected in data.load(describe(root)).warnings) == says


def test_a_val_without_objects_is_refused_and_one_that_was_learned_from_is_a_warning(root: Path) -> None:
    (warning,) = data.load(describe(root, val="images/train")).warnings
    assert warning == "6 of the 6 images of 'val' are in 'train' too: mAP looks too good"
    for file in (root / "labels" / "val").glob("*.txt"):
        file.write_text("")
    with pytest.raises(DistillError, match="not one object in the labels of 'val', so no mAP to measure"):
        data.load(describe(root))


# --- what it leaves alone --------------------------------------------------------------------------------------------


def test_nothing_is_written_beside_the_images(root: Path) -> None:
    """ultralytics leaves *.cache files, rewrites JPEGs that do not end with an end mark, replaces stale *.npy copies."""
    train = root / "images" / "train"
    (train / "0.jpg").write_bytes((train / "0.jpg").read_bytes() + b"more")
    (train / "1.npy").write_bytes(b"not an array")
    os.utime(train / "1.npy", (2**31, 2**31))
    path = describe(root)
    before = snapshot(root)
    loaded = data.load(path)
    assert len(loaded.train) == 6
    for split, augment in (("train", True), ("val", False)):
        dataset = images.build_dataset(loaded, split, imgsz=64, batch=2, augment=augment)
        assert len([dataset[i] for i in range(len(dataset))]) == len(dataset)
    images.calibration(loaded.train, 6, 64)
    assert snapshot(root) == before


def test_a_download_script_is_not_run_and_nothing_goes_out(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    marker = root / "marker"
    script = f"open({str(marker)!r}, 'w')"
    with pytest.raises(DistillError, match="is not there"):
        data.load(describe(root, val="images/test", download=script))
    data.load(describe(root, names=["圆", "方", "星"], download=script))  # would fetch another font
    assert not marker.exists()


# --- what comes out --------------------------------------------------------------------------------------------------


def test_labels_equal_what_ultralytics_reads(root: Path) -> None:
    labels = root / "labels" / "val"
    (labels / "0.txt").write_text("1 0.1 0.1 0.4 0.1 0.4 0.5\n\n2 0.5 0.5 0.9 0.5 0.7 0.9 0.6 0.8\n")  # polygons
    (labels / "1.txt").write_text("\n".join([ROWS[0], ROWS[1], ROWS[0], "0 0.5 0.5 0 0.1"]))  # a row twice, a flat box
    (labels / "2.txt").unlink()
    loaded = data.load(describe(root))
    ours = images.build_dataset(loaded, "val", imgsz=64, batch=2)
    stock = YOLODataset(
        str(root / "images" / "val"),
        data=loaded.config,
        imgsz=64,
        batch_size=2,
        augment=False,
        hyp=DEFAULT_CFG,
        rect=True,
    )
    assert len(ours) == len(stock) == 3
    for one, other in zip(ours, stock, strict=True):
        assert one["im_file"] == other["im_file"]
        assert torch.equal(one["img"], other["img"])
        rows, expected = (torch.cat([item["cls"], item["bboxes"]], 1) for item in (one, other))
        assert torch.equal(*(x[np.lexsort(x.T.numpy())] for x in (rows, expected)))


def test_a_training_batch_collates_and_can_be_repeated(root: Path) -> None:
    loaded = data.load(describe(root))
    dataset = images.build_dataset(loaded, "train", imgsz=64, batch=3, augment=True)
    batch = dataset.collate_fn([dataset[i] for i in range(3)])
    assert batch["img"].shape == (3, 3, 64, 64)
    assert len(batch["bboxes"]) == len(batch["cls"]) == len(batch["batch_idx"]) > 0
    dataset.close_mosaic(DEFAULT_CFG)
    assert dataset[0]["img"].shape == (3, 64, 64)
    again = images.build_dataset(loaded, "train", imgsz=64, batch=3)  # a dataset edits its records, not the data set's
    assert all(len(label["cls"]) == 3 for label in again.labels)
    assert all("shape" in record for record in loaded.records["train"])


@pytest.mark.parametrize("by_area", [False, True])
def test_calibration_images_are_what_the_validator_shows(root: Path, by_area: bool) -> None:
    loaded = data.load(describe(root))
    for imgsz in (32, 64, 96):
        dataset = images.build_dataset(loaded, "train", imgsz=imgsz, batch=1, rect=False, by_area=by_area)
        expected = {item["im_file"]: item["img"].float() / 255 for item in dataset}
        batch = images.calibration(loaded.train, 100, imgsz, seed=3, by_area=by_area)
        assert batch.shape == (6, 3, imgsz, imgsz)
        assert batch.dtype == torch.float32
        assert all(any(torch.equal(image, other) for image in batch) for other in expected.values())


def test_the_original_averages_areas_where_it_shrinks(root: Path) -> None:
    """Each pixel of a quarter of the image is the mean of sixteen; nothing is different where it grows."""
    loaded = data.load(describe(root))
    (square,) = [file for file in loaded.val if cv2.imread(str(file)).shape[:2] == (48, 64)]
    (small,) = images.calibration([square], 1, 16, by_area=True)
    (whole,) = images.calibration([square], 1, 64)
    expected = whole[:, 8:56].unflatten(1, (12, 4)).unflatten(-1, (16, 4)).mean((2, 4))
    assert (small[:, 2:14] - expected).abs().max() <= 0.51 / 255
    assert not torch.equal(small, images.calibration([square], 1, 16)[0])
    assert torch.equal(images.calibration([square], 1, 96, by_area=True), images.calibration([square], 1, 96))


def test_calibration_images_are_rgb_and_follow_the_seed(tmp_path: Path) -> None:
    red = np.zeros((8, 16, 3), np.uint8)
    red[..., 2] = 255  # OpenCV writes BGR
    cv2.imwrite(str(tmp_path / "red.png"), red)
    (image,) = images.calibration([tmp_path / "red.png"], 1, 32)
    assert image[:, 16, 16].tolist() == [1, 0, 0]
    assert torch.allclose(image[:, 0, 0], torch.tensor(114 / 255))
    files = make_images(tmp_path / "images" / "some", 6, rows=None)
    assert torch.equal(images.calibration(files, 3, 32, seed=1), images.calibration(files, 3, 32, seed=1))
    assert not torch.equal(images.calibration(files, 3, 32, seed=1), images.calibration(files, 3, 32, seed=2))
    (tmp_path / "gone.jpg").write_bytes(b"no image")
    with pytest.raises(DistillError, match="gone.jpg: this image cannot be read"):
        images.calibration([tmp_path / "gone.jpg"], 1, 32)
