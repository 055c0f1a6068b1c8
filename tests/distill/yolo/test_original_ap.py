"""mAP as the original YOLOv5's val.py measures it: the area under the curve, by hand, and what is done to the boxes."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as data
from distill.yolo.evaluation.evaluate import EvalSettings, evaluate
from distill.yolo.families import table
from distill.yolo.families.family import Evaluation
from distill.yolo.families.yolov5.average_precision import average_precision
from tests.distill.yolo.originals import seeing_one_object

# At recall 1 precision falls to 0, and the trapezoid over the last hundredth with it. So it is at every step down.
PERFECT = 1 - 0.005


def one_class(hits: list[int], labels: int) -> float:
    """AP of detections that are sorted by confidence, at one threshold."""
    count = len(hits)
    confidence = np.linspace(0.9, 0.1, count)
    found = average_precision(np.array(hits, bool)[:, None], confidence, np.zeros(count), np.zeros(labels))
    assert found.shape == (1, 1)
    return float(found[0, 0])


@pytest.mark.parametrize(
    ("hits", "labels", "expected"),
    [
        ([1] * 7, 7, PERFECT),
        ([1], 1, PERFECT),
        ([0, 0], 2, 0),
        # Recall ends at 1/2: precision 1 up to there, then a straight line to 0 at recall 1.
        ([1], 2, 1 / 2 + 1 / 2 * 1 / 2),
        # Two false alarms after that: the line starts at the precision of the last of them, 1/3.
        ([1, 0, 0], 2, 1 / 2 + 1 / 2 * 1 / 3 / 2 - 0.005 * 2 / 3),
        # Precision 1/2 at recall 1/4 and, by the envelope, before; a line from there.
        ([0, 1], 4, 1 / 4 * 1 / 2 + 3 / 4 * 1 / 2 / 2),
        # Precision 1, 1/2, 2/3 at recall 1/2, 1/2, 1: by the envelope 1 up to 1/2, then 2/3 up to 1.
        ([1, 0, 1], 2, 1 / 2 + 1 / 2 * 2 / 3 - 0.005 * (1 / 3 + 2 / 3)),
    ],
)
def test_areas_worked_out_by_hand(hits: list[int], labels: int, expected: float) -> None:
    assert one_class(hits, labels) == pytest.approx(expected, abs=1e-9)


def test_classes_and_thresholds_are_told_apart() -> None:
    """Rows are the classes that have labels, in order; columns the thresholds; detections come in any order."""
    hits = np.array([[1, 0], [1, 1], [0, 0], [1, 1], [1, 1]], bool)
    confidence = np.array([0.2, 0.9, 0.8, 0.7, 0.6])
    predicted = np.array([2, 2, 5, 5, 7])  # nothing is labelled 7
    labelled = np.array([5, 2, 2, 9])  # nothing is found of 9
    found = average_precision(hits, confidence, predicted, labelled)
    assert found.shape == (3, 2)
    assert found[0].tolist() == pytest.approx([PERFECT, 1 / 2 + 1 / 4 * 1 / 2 - 0.005 * 1 / 2])
    assert found[1].tolist() == pytest.approx([1 / 2 - 0.005 * 1 / 2] * 2)  # wrong, then right
    assert found[2].tolist() == [0, 0]
    nothing = average_precision(np.zeros((0, 10), bool), np.zeros(0), np.zeros(0), labelled)
    assert nothing.shape == (3, 10) and not nothing.any()


def test_boxes_end_where_their_image_ends(tmp_path: Path) -> None:
    """The network sees one object over the whole of every image, and far beyond it: cut off, it is what is labelled."""
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for index, (height, width) in enumerate([(40, 40), (64, 32), (300, 200)]):  # with padding, and one made smaller
        cv2.imwrite(str(tmp_path / "images" / f"{index}.png"), np.full((height, width, 3), 90, np.uint8))
        (tmp_path / "labels" / f"{index}.txt").write_text("1 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text("train: images\nval: images\nnames: [circle, square, star]\n")
    model = seeing_one_object()
    found = evaluate(model, data.load(tmp_path / "data.yaml"), EvalSettings(64))
    assert found.map50_95 == pytest.approx(PERFECT, abs=1e-6) and found.instances == 3


@pytest.fixture
def few(shared: Path, tmp_path: Path) -> Path:
    """A dozen of the val images that the original's checkpoint was not trained on."""
    source = shared / "data" / "cornpest"
    for kind, suffix in (("images", ".jpg"), ("labels", ".txt")):
        (tmp_path / kind).mkdir()
        for file in sorted((source / kind / "val").glob(f"*{suffix}"))[::9][:12]:
            shutil.copyfile(file, tmp_path / kind / file.name)
    text = (source / "data.yaml").read_text()
    names = text[text.index("names:") :]
    (tmp_path / "data.yaml").write_text(f"train: images\nval: images\n{names}")
    return tmp_path / "data.yaml"


def test_a_real_checkpoint_finds_what_it_was_trained_on(
    shared: Path, few: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = checkpoint.load(shared / "weights" / "cornpest-yolov5n-416.pt")
    val = data.load(few, teacher.names)
    found = evaluate(teacher.model, val, EvalSettings(416))
    assert found.images == 12 and 0.6 < found.map50_95 < found.map50
    assert found.map50_95 == pytest.approx(np.mean(list(found.per_class.values())))
    as_ultralytics = replace(table.ANCHOR, area_resize=False, evaluation=Evaluation())
    monkeypatch.setattr(table, "FAMILIES", (as_ultralytics,))
    stock = evaluate(teacher.model, val, EvalSettings(416))
    assert stock != found and abs(stock.map50_95 - found.map50_95) < 0.05
