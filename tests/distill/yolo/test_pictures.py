"""Two networks are compared box by box; images are chosen for a reason, and drawn whatever they and their classes are."""

from __future__ import annotations

import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from distill.cli.main import main
from distill.results.quality import Pictures
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation.curves import MOST_CLASSES, STEPS, compact
from distill.yolo.evaluation.difference import choose, compare, worst_class
from distill.yolo.evaluation.pictures import LARGE, SMALL, make_pictures
from tests.distill.yolo.originals import NAMES, seeing_one_object

NOTHING = np.zeros((0, 6), dtype=np.float32)


def box(x: float, score: float, kind: int = 0, size: float = 0.2) -> list[float]:
    return [x, 0.5, size, size, score, kind]


def boxes(*rows: list[float]) -> np.ndarray:
    return np.array(rows, dtype=np.float32).reshape(-1, 6)


def test_an_object_counts_with_what_its_scores_differ_by() -> None:
    same = boxes(box(0.2, 0.9), box(0.8, 0.6, 1))
    assert compare(same, same).total == 0 and not compare(same, same).first_alone.any()
    found = compare(same, boxes(box(0.21, 0.7), box(0.8, 0.6, 2)))
    assert found.by_class == pytest.approx({0: 0.2, 1: 0.6, 2: 0.6})  # another class is another object
    assert list(found.first_alone) == list(found.second_alone) == [False, True]


def test_an_object_near_the_threshold_hardly_counts() -> None:
    assert compare(boxes(box(0.5, 0.26)), boxes(box(0.5, 0.24))).total == pytest.approx(0.02, abs=1e-6)
    assert compare(boxes(box(0.5, 0.2)), NOTHING).total == 0  # nobody is sure of it


def test_a_box_has_one_partner_and_the_closest_one() -> None:
    twice = boxes(box(0.54, 0.8), box(0.5, 0.9))
    found = compare(boxes(box(0.5, 0.9)), twice)
    assert list(found.second_alone) == [True, False] and found.total == pytest.approx(0.8)
    assert compare(NOTHING, NOTHING).total == 0


def test_images_are_chosen_once_and_for_a_reason() -> None:
    teacher = {f"{number}.png": boxes(box(0.2, 0.9), box(0.8, 0.9, 1)) for number in range(9)}
    student = {file: each.copy() for file, each in teacher.items()}
    student["3.png"] = NOTHING
    student["5.png"][1, 4] = 0.3
    student["6.png"][0, 4] = 0.2
    found = {choice.kind: choice.files for choice in choose(teacher, student, 2, worst=1)}
    assert found == {"differ": ("3.png", "6.png"), "class": ("5.png",), "typical": ("0.png", "1.png")}
    assert [choice.kind for choice in choose(teacher, teacher, 2, worst=0)] == ["typical"]
    nothing = dict.fromkeys(teacher, NOTHING)
    assert choose(nothing, nothing, 2) == []


def data_set(folder: Path, sizes: list[tuple[int, int]], names: dict[int, str], labelled: bool = True) -> DataSet:
    """Grey images of these heights and widths, each with one object of class 0 in its middle."""
    records: list[dict[str, Any]] = []
    for number, (height, width) in enumerate(sizes):
        file = str(folder / f"{number}.png")
        cv2.imwrite(file, np.full((height, width, 3), 90, dtype=np.uint8))
        label = np.array([[0.5, 0.5, 0.4, 0.4]], dtype=np.float32)
        records.append({"im_file": file, "cls": np.zeros((1, 1), dtype=np.float32), "bboxes": label})
    val = tuple(Path(record["im_file"]) for record in records)
    return DataSet(folder / "data.yaml", names, (), val, labelled, {"names": names}, records={"val": tuple(records)})


def draw(data: DataSet, folder: Path, teacher: np.ndarray, student: np.ndarray, **options: Any) -> Pictures:
    def write(name: str, content: bytes) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    panels = {
        title: {str(file): each for file in data.val} for title, each in (("teacher", teacher), ("student", student))
    }
    return make_pictures(data, panels, write, **{"count": 3} | options)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """ultralytics' plotter downloads a font for names that are not ASCII."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_every_panel_is_drawn_large_and_small(tmp_path: Path) -> None:
    data = data_set(tmp_path, [(48, 64), (2000, 3000), (900, 300)], {0: "a" * 60, 1: "细胞 <b>"})
    teacher, student = boxes(box(0.2, 0.9), box(0.8, 0.8, 1)), boxes(box(0.2, 0.9), box(1.0, 0.7, 1, 0.6))
    made = draw(data, tmp_path / "out", teacher, student, worst="细胞 <b>")
    (group,) = made.groups  # all images are in it
    assert (group.kind, len(group.pictures), made.images) == ("differ", 3, 3)
    assert set(made.colours) == {"a" * 60, "细胞 <b>"} and all(len(each) == 7 for each in made.colours.values())
    for picture in group.pictures:
        assert picture.boxes == {"labels": 1, "teacher": 2, "student": 2} and picture.alone == {
            "teacher": 1,
            "student": 1,
        }
        large = cv2.imread(str(tmp_path / "out" / picture.file))
        assert large is not None and large.shape[1] > 3 * 0.3 * LARGE[0] and large.shape[0] <= LARGE[1] + 50
        small = {title: cv2.imread(str(tmp_path / "out" / file)) for title, file in picture.small.items()}
        assert all(image is not None and max(image.shape) == SMALL for image in small.values())
        panels = [image.astype(int) for image in small.values() if image is not None]
        assert all(abs(first - second).max() > 60 for first, second in pairwise(panels))


def test_what_only_one_of_them_has_is_thick(tmp_path: Path) -> None:
    data = data_set(tmp_path, [(400, 400)], {0: "a"}, labelled=False)
    widths = {}
    for student in (boxes(box(0.5, 0.9, size=0.5)), NOTHING):
        made = draw(data, tmp_path / str(len(student)), boxes(box(0.5, 0.9, size=0.5)), student)
        (picture,) = made.groups[0].pictures
        assert "labels" not in picture.small
        row = cv2.imread(str(tmp_path / str(len(student)) / picture.small["teacher"]))[200].astype(int)  # type: ignore[index]
        widths[len(student)] = int((abs(row - 90).max(-1) > 60).sum())
    assert widths[0] > 2 * widths[1] > 0


def test_without_small_panels_only_large_pictures_are_written(tmp_path: Path) -> None:
    data = data_set(tmp_path, [(64, 64)], {0: "a"})
    made = draw(data, tmp_path / "out", boxes(box(0.5, 0.9)), NOTHING, small=False)
    assert [file.name for file in (tmp_path / "out").iterdir()] == [made.groups[0].pictures[0].file] == ["differ-1.jpg"]


def test_an_image_that_is_gone_is_left_out_and_said(tmp_path: Path) -> None:
    data, said = data_set(tmp_path, [(64, 64), (64, 64)], {0: "a"}), []
    data.val[0].unlink()
    made = draw(data, tmp_path / "out", boxes(box(0.5, 0.9)), NOTHING, warn=said.append)
    assert [picture.image for group in made.groups for picture in group.pictures] == ["1.png"]
    assert len(said) == 1 and str(data.val[0]) in said[0]


def test_curves_are_thinned_out() -> None:
    precision = np.linspace([1, 0.8], [0, 0.2], 1000, axis=1)
    confusion = np.array([[5, 0, 2], [1, 7, 0], [0, 3, 0]])
    found = compact(["a", "b"], precision, confusion, {0: "a", 1: "b"})
    assert len(found.precision) == STEPS and found.precision[0] == 0.9 and found.precision[-1] == 0.1
    assert found.precision_of["b"][0] == 0.8
    assert found.confusion == (("a", "a", 5), ("a", None, 2), ("b", "a", 1), ("b", "b", 7), (None, "b", 3))
    many = [str(number) for number in range(MOST_CLASSES + 1)]
    assert compact(many, np.ones((len(many), 1000)), np.zeros((3, 3)), {}).precision_of == {}
    assert compact([], np.zeros((1, 1000)), np.zeros((3, 3)), {}).precision == ()


def test_the_worst_class_is_one_that_lost() -> None:
    assert worst_class({"a": 0.5, "b": 0.6}, {"a": 0.4, "b": 0.4}) == "b"
    assert worst_class({"a": 0.5, "b": 0.6}, {"a": 0.4}) == "b"  # never seen again
    assert worst_class({"a": 0.5, "b": 0.6}, {"a": 0.4997, "b": 0.7}) is None
    assert worst_class({"a": 0.5}, {"a": 0.4}) is worst_class({}, {}) is None


def test_eval_draws_pictures_where_it_is_told_to(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher, student = seeing_one_object(), seeing_one_object()
    for convolution in student.model[-1].m:
        convolution.bias.data.view(3, -1)[:, 4] = -20  # it sees nothing
    for name, network in (("best", teacher), ("student", student)):
        checkpoint.save(network, tmp_path / f"{name}.pt", names=NAMES, imgsz=64)
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for number in range(4):
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), np.full((64, 48, 3), 9 * number, dtype=np.uint8))
        (tmp_path / "labels" / f"{number}.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\nnames: {list(NAMES.values())}\n")
    words = ["eval", str(tmp_path / "student.pt"), f"data={tmp_path / 'data.yaml'}", "device=cpu"]
    folder, best = tmp_path / "seen" / "here", f"teacher={tmp_path / 'best.pt'}"
    before = sorted(tmp_path.rglob("*"))

    assert main([*words, best]) == 0
    assert "add pictures=DIR" in capsys.readouterr().err and sorted(tmp_path.rglob("*")) == before
    assert main([*words, f"pictures={folder}"]) == 2
    assert "give teacher= too" in capsys.readouterr().err
    assert main([*words, best, f"pictures={tmp_path / 'best.pt' / 'seen'}"]) in (1, 2)
    said = capsys.readouterr().err
    assert f"{tmp_path / 'best.pt' / 'seen'}" in said and said.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before

    assert main([*words, best, f"pictures={folder}"]) == 0
    said = capsys.readouterr().err
    files = sorted(file.name for file in folder.iterdir())
    assert files == ["differ-1.jpg", "differ-2.jpg", "differ-3.jpg", "typical-1.jpg"]
    assert all(str(folder / name) in said for name in files) and "1 box of the teacher alone" in said
