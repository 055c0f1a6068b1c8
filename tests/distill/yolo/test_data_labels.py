"""Labels as people have them: elsewhere, in several forms, with names in another order; and images that go away."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader
from ultralytics.utils import DEFAULT_CFG

from distill.errors import DistillError, RunError
from distill.yolo.data import dataset as data
from distill.yolo.data import images
from tests.distill.yolo.test_data import NAMES, ROWS, describe, make_images

MODEL = dict(enumerate(NAMES))
POLYGON = "1 0.1 0.1 0.4 0.1 0.4 0.5"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data set of 6 + 3 images without a data.yaml."""
    make_images(tmp_path / "set" / "images" / "train", 6)
    make_images(tmp_path / "set" / "images" / "val", 3)
    return tmp_path / "set"


# --- where they lie --------------------------------------------------------------------------------------------------


def stray(root: Path, kind: str) -> Path:
    """Move the label of the image 0 of train to where people have it, and return the file."""
    label, image = root / "labels/train/0.txt", root / "images/train/0.jpg"
    if kind == "a.jpg.jpg":
        image.rename(image.with_name("0.jpg.jpg"))
        return label
    places = {
        "beside the image": image.with_suffix(".txt"),
        "below the images": root / "images/train/labels/0.txt",
        "one folder for all": root / "labels/0.txt",
        "another folder": root / "annotations/0.txt",
        "another case": root / "Labels/train/0.txt",
        ".TXT": label.with_suffix(".TXT"),
        "a.jpg.txt": label.with_name("0.jpg.txt"),
        "case of the name": label.with_name("0.JPG.txt"),
        "VOC": root / "Annotations/0.xml",
        "labelme": image.with_suffix(".json"),
    }
    places[kind].parent.mkdir(parents=True, exist_ok=True)
    return label.rename(places[kind])


@pytest.mark.parametrize(
    "kind",
    [
        "beside the image", "below the images", "one folder for all", "another folder", "another case", ".TXT",
        "a.jpg.txt", "a.jpg.jpg", "case of the name", "VOC", "labelme",
    ],
)  # fmt: skip
def test_a_label_that_lies_unused_is_named(root: Path, kind: str) -> None:
    file = stray(root, kind)
    loaded = data.load(describe(root))
    (warning,) = loaded.warnings
    assert warning.startswith("1 of the 6 images of 'train' have no label file: counted as empty; ")
    assert f"lies unused: {file} (" in warning
    expected = "convert" if file.suffix in (".xml", ".json") else "labels/train/0."
    assert expected in warning
    assert len(loaded.train) == 6 and not loaded.notes


def test_labels_that_all_lie_elsewhere_are_named_in_the_refusal(root: Path) -> None:
    shutil.move(root / "labels" / "train", root / "txt")
    with pytest.raises(
        DistillError, match=r"no label file for any of the 6 images.*lies unused: .*/txt/0.txt and 5 more"
    ):
        data.load(describe(root))


def test_an_image_without_objects_is_a_line_and_nothing_is_guessed(root: Path) -> None:
    (root / "labels/train/5.txt").unlink()
    (root / "labels/test").mkdir()
    (root / "images/test").mkdir()
    shutil.copy(root / "labels/train/4.txt", root / "labels/test/5.txt")  # the label of another image of that name
    shutil.copy(root / "images/train/5.jpg", root / "images/test/5.jpg")
    (root / "classes.txt").write_text("circle\n")
    loaded = data.load(describe(root))
    assert loaded.notes == ("1 of the 6 images of 'train' have no label file: counted as empty",)
    assert not loaded.warnings


@pytest.mark.parametrize(("kind", "says"), [("folder", "is a folder, not a label file"), ("link", "a link to none")])
def test_what_is_called_like_a_label_and_is_none_is_said(root: Path, kind: str, says: str) -> None:
    label = root / "labels/train/0.txt"
    label.unlink()
    label.mkdir() if kind == "folder" else label.symlink_to("gone.txt")
    loaded = data.load(describe(root))
    assert len(loaded.train) == 5
    (warning,) = loaded.warnings
    assert "1 of the 6 images of 'train' left out" in warning and "0.txt: is " in warning and says in warning


def test_a_label_file_without_end_is_not_read(root: Path) -> None:
    with (root / "labels/train/0.txt").open("wb") as file:
        file.truncate(2**40)  # holes: it takes no place
    (warning,) = data.load(describe(root)).warnings
    assert "0.txt: is larger than 16 MiB, which no label file is" in warning


def test_two_images_with_one_label_file_are_said(root: Path) -> None:
    shutil.copy(root / "images/train/0.jpg", root / "images/train/0.JPEG")
    (warning,) = data.load(describe(root)).warnings
    assert "share a label file in 1 places, first 0.JPEG, 0.jpg" in warning


# --- what they hold --------------------------------------------------------------------------------------------------


def test_polygons_beside_boxes_are_their_boxes_in_training_too(root: Path) -> None:
    for i in range(3):
        (root / "labels/train" / f"{i}.txt").write_text(POLYGON)
    (root / "labels/train/3.txt").write_text(f"{ROWS[0]}\n{POLYGON}\n")
    (root / "labels/train/4.txt").write_text("")
    loaded = data.load(describe(root))
    assert not loaded.warnings
    assert loaded.notes == (
        "'train' has label files with polygons (4) beside files with boxes (2): a polygon is replaced by its box",
    )
    box = [1, 0.25, 0.3, 0.3, 0.4]
    record = loaded.records["train"][3]
    assert torch.allclose(torch.tensor(record["bboxes"][1]), torch.tensor(box[1:])) and record["cls"][1] == 1
    dataset = images.build_dataset(loaded, "train", imgsz=64, batch=3, augment=True)
    assert len([dataset[i] for i in range(6) for _ in range(3)]) == 18  # mosaic joins images of both kinds


def test_polygons_alone_keep_their_points(root: Path) -> None:
    for i in range(6):
        (root / "labels/train" / f"{i}.txt").write_text(POLYGON)
    loaded = data.load(describe(root))
    assert not loaded.notes and len(loaded.records["train"][0]["segments"][0]) == 3


@pytest.mark.parametrize(("points", "numbers"), [(4, 3), (3, 2)])
def test_the_boxes_of_poses_are_read(root: Path, points: int, numbers: int) -> None:
    row = "0 0.5 0.5 0.2 0.4" + " 0.1 0.2 2"[: 4 * numbers] * points
    for split, count in (("train", 6), ("val", 3)):
        for i in range(count):
            (root / "labels" / split / f"{i}.txt").write_text(row)
    loaded = data.load(describe(root, kpt_shape=[points, numbers]))
    assert len(loaded.train) == 6 and not loaded.warnings
    assert loaded.records["train"][0]["bboxes"].tolist() == [pytest.approx([0.5, 0.5, 0.2, 0.4])]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("0 0.5 0.5 0.2 0.2 0.9", "line 1 has 6 numbers: the last may be a score"),
        ("0,0.5,0.5,0.2,0.2", "is not all numbers: numbers are set apart by blanks"),
        ("0 0,5 0,5 0,2 0,2", "is not all numbers: numbers are set apart by blanks, and their decimals by a point"),
        ("circle 0.5 0.5 0.2 0.2", "line 1: 'circle 0.5 0.5 0.2 0.2' is not all numbers"),
        ("-1 0.5 0.5 0.2 0.2", "line 1: '-1' is no class id"),
        ("0 120 80 40 30", "coordinates must be shares"),
        ("0 0.5 0.5 -0.005 0.2", "coordinates must be shares"),
        ("\x1b[31m", r"line 1: '\x1b[31m' is not all numbers"),
    ],
)
def test_a_row_that_is_no_label_leaves_its_image_out_and_says_why(root: Path, text: str, says: str) -> None:
    (root / "labels/train/0.txt").write_text(text)
    loaded = data.load(describe(root))
    (warning,) = loaded.warnings
    assert warning.startswith("1 of the 6 images of 'train' left out: ") and says in warning and len(loaded.train) == 5


# --- class names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ["square", "Circle", "star"],
        ["squares", "circle", "star"],
        ["Square ", "circle", "star"],
        ["round", "star", "rest"],  # star is another class of the model
        ["circle", "star", "box"],
        ["circle", "STARS", "box"],
    ],
)
def test_a_name_that_the_model_has_under_another_number_is_never_that_class(root: Path, names: list[str]) -> None:
    with pytest.raises(DistillError, match="has the model's classes in another order: class . is '"):
        data.load(describe(root, names=names), MODEL)


@pytest.mark.parametrize(
    ("names", "model"),
    [
        (["Circle", "SQUARE", "star"], NAMES),
        (["circles", "square", "stars"], NAMES),
        (["circle ", "sq_uare", "st ar"], NAMES),
        (["one", "two", "three"], NAMES),
        (["Car", "cars", "bus"], ["car", "cars", "bus"]),  # the most alike counts
        (["+", "-", "*"], ["plus", "minus", "times"]),
    ],
)
def test_other_spellings_are_taken_to_be_the_same_and_said(root: Path, names: list[str], model: list[str]) -> None:
    (warning,) = data.load(describe(root, names=names), dict(enumerate(model))).warnings
    assert warning.endswith("taken to be the same")


def test_many_names_are_compared_soon(root: Path) -> None:
    names = {i: f"thing {i}" for i in range(2000)}
    (warning,) = data.load(describe(root, names=names), {**names, 7: "other"}).warnings
    assert "class 7 is 'thing 7'" in warning


def test_names_that_yaml_reads_as_something_else_are_said(root: Path) -> None:
    path = describe(root)
    path.write_text("train: images/train\nval: images/val\nnames: [no, 1.10, 3]\n")
    loaded = data.load(path, {0: "False", 1: "1.1", 2: "3"})  # as a model has them that ultralytics trained on it
    assert not loaded.warnings and "class 0 'False', class 1 '1.1': read so by YAML" in loaded.notes[0]


def test_two_classes_of_one_name_are_said(root: Path) -> None:
    loaded = data.load(describe(root, names=["a", "b", "a"]))
    assert loaded.names == {0: "a", 1: "b", 2: "a"}
    assert loaded.notes[0].endswith("more than one class is called 'a': figures by class show one of them")


def test_nc_as_text_is_read(root: Path) -> None:
    assert data.load(describe(root, nc="3")).names == MODEL


def test_paths_with_backslashes_are_read(root: Path) -> None:
    (root / "val.txt").write_text("".join(f".\\images\\val\\{i}.jpg\r\n" for i in range(3)), encoding="utf-16")
    loaded = data.load(describe(root, train="images\\train", val="val.txt"))
    assert (len(loaded.train), len(loaded.val)) == (6, 3)


@pytest.mark.parametrize(("rows", "says"), [(ROWS, True), ([ROWS[0]], False)])
def test_a_model_that_was_trained_with_single_cls_is_said(root: Path, rows: list[str], says: bool) -> None:
    for file in (root / "labels").rglob("*.txt"):
        file.write_text("\n".join(rows))
    warnings = data.load(describe(root), MODEL, single_cls=True).warnings
    assert [("trained with single_cls" in warning, "class 0, 'circle'" in warning) for warning in warnings] == [
        (True, True)
    ] * says
    with pytest.raises(DistillError, match=r"3 classes.*the model 1 \(item\).*single_cls takes data of one class"):
        data.load(describe(root), {0: "item"})


# --- images that go away -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("by_area", [False, True])
@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda file: file.unlink(), "cannot be read; it could when the data were checked"),
        (lambda file: file.write_bytes(file.read_bytes()[:-300]), "was changed after the data were checked"),
        (lambda file: file.write_bytes(b""), "was changed after the data were checked"),
    ],
)
def test_an_image_that_goes_away_is_one_line(root: Path, harm: Any, says: str, by_area: bool, workers: int) -> None:
    loaded = data.load(describe(root))
    dataset = images.build_dataset(loaded, "train", imgsz=64, batch=2, by_area=by_area, hyp=DEFAULT_CFG)
    harm(loaded.train[4])
    with pytest.raises(RunError) as caught:
        list(DataLoader(dataset, 2, num_workers=workers, collate_fn=dataset.collate_fn))
    assert str(caught.value) == f"{loaded.train[4]}: this image {says}"


def test_a_fingerprint_is_another_one_for_other_data(root: Path) -> None:
    def now() -> str:
        return data.fingerprint(data.load(describe(root)))

    first = now()
    assert first.startswith("6 + 3 images, ") and first == now()
    label, image = root / "labels/val/0.txt", root / "images/val/0.jpg"
    for file, content in ((label, b"0 0.5 0.5 0.2 0.3"), (image, image.read_bytes() + b"more")):
        kept = file.read_bytes()
        file.write_bytes(content)
        assert now() != first
        file.write_bytes(kept)
    image.rename(image.with_name("gone.png.off"))
    assert now() != first
    image.with_name("gone.png.off").rename(image)
    shutil.move(root, root.with_name("moved"))
    assert data.fingerprint(data.load(describe(root.with_name("moved")))) == first
