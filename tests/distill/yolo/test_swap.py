"""What a student has lost, told apart into boxes and scores."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path

import pytest
import torch

from distill.cli.main import main
from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as data
from distill.yolo.evaluation.evaluate import EvalSettings, evaluate, swap_with_teacher
from tests.distill.yolo.test_trainer import tiny
from tests.prune.networks import randomize

CPU = torch.device("cpu")


def test_rows_are_swapped_and_nothing_else() -> None:
    teacher, images = randomize(tiny()).eval(), torch.rand(2, 3, 64, 64)
    theirs = checkpoint.fused(teacher)(images)[0]
    ours = torch.rand_like(theirs)
    with torch.inference_mode():
        boxes, scores = (swap_with_teacher(teacher, part, CPU)(images, ours) for part in ("boxes", "scores"))
    assert torch.equal(boxes[:, :4], theirs[:, :4]) and torch.equal(boxes[:, 4:], ours[:, 4:])
    assert torch.equal(scores[:, :4], ours[:, :4]) and torch.equal(scores[:, 4:], theirs[:, 4:])
    with pytest.raises(DistillError, match=r"not predict at the same places .* is it its teacher\?"):
        swap_with_teacher(teacher, "boxes", CPU)(images, ours[:, :, :-1])


def few(folder: Path, names: dict[int, str], into: Path) -> Path:
    """A dozen of a data set's val images as one of their own."""
    for kind in ("images", "labels"):
        (into / kind / "val").mkdir(parents=True)
    for label in sorted((folder / "labels" / "val").iterdir())[:12]:
        shutil.copyfile(label, into / "labels" / "val" / label.name)
        (image,) = (folder / "images" / "val").glob(f"{label.stem}.*")
        shutil.copyfile(image, into / "images" / "val" / image.name)
    (into / "data.yaml").write_text(f"train: images/val\nval: images/val\nnames: {list(names.values())}\n")
    return into / "data.yaml"


@pytest.mark.parametrize(
    ("name", "folder", "imgsz"), [("bccd-yolov5nu-320.pt", "bccd", 320), ("cornpest-yolov5n-416.pt", "cornpest", 416)]
)
def test_a_student_with_bad_boxes_has_lost_its_boxes(
    shared: Path, name: str, folder: str, imgsz: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = checkpoint.load(shared / "weights" / name)
    student = copy.deepcopy(teacher.model)
    head = student.model[-1]
    # The last bias of each level that is of a box: of an anchor head its width, of a DFL head a bin of its sides.
    for layer in head.m if hasattr(head, "m") else [branch[-1] for branch in head.cv2]:
        layer.bias.data[2] += 1.0
    yaml = few(shared / "data" / folder, teacher.names, tmp_path)
    val = data.load(yaml, teacher.names)
    whole, lost, with_boxes, with_scores = (
        evaluate(model, val, EvalSettings(imgsz), swap=swap).map50_95
        for model, swap in (
            (teacher.model, None),
            (student, None),
            (student, swap_with_teacher(teacher.model, "boxes", CPU)),
            (student, swap_with_teacher(teacher.model, "scores", CPU)),
        )
    )
    assert with_boxes == whole and with_scores == lost < whole

    checkpoint.save(student, tmp_path / "student.pt", names=teacher.names, imgsz=imgsz)
    words = [str(tmp_path / "student.pt"), f"data={yaml}", f"teacher={shared / 'weights' / name}", "device=cpu"]
    assert main(["eval", *words]) == 0
    said = capsys.readouterr().out
    assert (
        f"mAP50-95 with the teacher's boxes   {whole:.3f}" in said
        and f"mAP50-95 of the teacher             {whole:.3f}" in said
    )
