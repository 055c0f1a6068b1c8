"""Images without labels beside labelled ones: found, checked against train and val, mixed into batches."""

from __future__ import annotations

import copy
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from distill.errors import DistillError
from distill.losses import WeightedLoss, resolve
from distill.training.mixture import Mixture
from distill.training.schedule import Schedule, recovery
from distill.yolo.data import dataset as datasets
from distill.yolo.data import unlabelled, videos
from distill.yolo.families.outputs import distillation, teacher_of
from distill.yolo.training.batches import mixed_loader
from distill.yolo.training.mixing import MixedSampler
from distill.yolo.training.train import Trained
from distill.yolo.training.tuning import YoloBench
from distill.yolo.upstream import get_cfg, init_seeds
from tests.distill.yolo.test_trainer import SHORT, Interrupted, Interrupting, go, tiny, weights, write_images

CPU = torch.device("cpu")


@pytest.fixture
def data(tmp_path: Path) -> datasets.DataSet:
    return datasets.load(write_images(tmp_path / "set"))


def noise(folder: Path, count: int, seed: int = 1) -> Path:
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), random.integers(0, 255, (64, 64, 3), dtype=np.uint8))
    return folder


def film(file: Path, frames: int) -> Path:
    """A video whose frames brighten from one to the next."""
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for index in range(frames):
        writer.write(np.full((48, 64, 3), 2 * index, np.uint8))
    writer.release()
    return file


def join(data: datasets.DataSet, *places: Path) -> datasets.DataSet:
    return unlabelled.beside(data, unlabelled.find([str(place) for place in places], data.config["path"]))


def test_folders_lists_and_single_images_lie_beside_the_data(data: datasets.DataSet, tmp_path: Path) -> None:
    more, one = noise(tmp_path / "more", 3), noise(tmp_path / "one", 2, seed=2)
    (tmp_path / "list.txt").write_text("one/0.png\n\n")
    both = join(data, more, tmp_path / "list.txt", one / "1.png", more / "0.png")
    assert [file.relative_to(tmp_path).as_posix() for file in both.unlabelled] == [
        *(f"more/{index}.png" for index in range(3)),
        "one/0.png",
        "one/1.png",
    ]
    assert (both.train, both.val) == (data.train, data.val) and all(
        len(r["cls"]) == 0 for r in both.records["unlabelled"]
    )
    assert datasets.fingerprint(both) != datasets.fingerprint(data)
    assert datasets.fingerprint(data).startswith("12 + 6 images") and datasets.fingerprint(both).startswith(
        "12 + 6 + 5 "
    )


def test_a_part_of_the_labels_and_the_folder_of_all_images(data: datasets.DataSet, tmp_path: Path) -> None:
    root = data.path.parent
    (root / "tenth.txt").write_text("./images/train/3.png\n./images/train/7.png\n")
    (root / "tenth.yaml").write_text("train: tenth.txt\nval: images/val\nnames: [square, disc]\n")
    both = join(datasets.load(root / "tenth.yaml"), root / "images" / "train")
    assert (len(both.train), len(both.unlabelled), len(both.val)) == (2, 10, 6)
    assert not set(both.train) & set(both.unlabelled)
    assert "2 of the 12 images of 'unlabelled' are in " in both.notes[-1]
    (root / "rest.txt").write_text("".join(f"./images/train/{index}.png\n" for index in range(12)))
    assert join(datasets.load(root / "tenth.yaml"), root / "rest.txt").unlabelled == both.unlabelled


def test_an_image_of_val_is_an_error_by_name_and_by_content(data: datasets.DataSet, tmp_path: Path) -> None:
    with pytest.raises(DistillError, match="6 of the 18 images are images of 'val' in .*data.yaml, first .*val/0.png"):
        join(data, data.path.parent / "images")
    more = noise(tmp_path / "more", 2)
    shutil.copy(data.val[4], more / "renamed.png")
    shutil.copy(data.train[4], more / "again.png")
    with pytest.raises(DistillError, match="1 of the 4 images are images of 'val' .*renamed.png") as caught:
        join(data, more)
    assert "\n" not in str(caught.value)
    (more / "renamed.png").unlink()
    assert len(join(data, more).unlabelled) == 2


def test_beside_a_folder_they_are_more_of_its_images(data: datasets.DataSet, tmp_path: Path) -> None:
    folder = datasets.load(data.path.parent / "images" / "train")
    more = noise(tmp_path / "more", 3)
    shutil.copy(folder.val[0], more / "held-back.png")
    both = join(folder, more)
    assert both.unlabelled == () and len(both.train) == len(folder.train) + 3 and both.val == folder.val
    assert both.config["train"] == [str(file) for file in both.train] == [r["im_file"] for r in both.records["train"]]
    assert "has no labels, so the images of 'unlabelled' join it" in both.notes[-1]
    assert "1 of the 4 images" in both.notes[-2]
    filmed = unlabelled.decoded(join(folder, film(tmp_path / "a.avi", 9)), tmp_path / "frames", 3)
    assert filmed.unlabelled == () and len(filmed.train) == len(folder.train) + 3 and filmed.val == folder.val


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty", None, "no images and no videos in this folder"),
        ("gone", "", "is not there: give a folder of images"),
        ("a.csv", "a,b", "is neither a folder of images, nor a .txt list of them, nor a video"),
        ("a.txt", "no.jpg\n", "1 of the 1 images that .*a.txt lists are not there"),
        ("a.txt", "\n", "lists no images"),
        ("a.mp4", "no video", "a.mp4: this video cannot be decoded: convert it to MP4"),
        ("a.jpg", "no image", "none of the 1 images can be used, first .*a.jpg"),
    ],
)
def test_what_is_none_is_refused_in_one_line(
    name: str, content: str | None, says: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if content is None:
        (tmp_path / name).mkdir()
    elif content:
        (tmp_path / name).write_text(content)
    with pytest.raises(DistillError, match=says) as caught:
        unlabelled.find([str(tmp_path / name)])
    assert "\n" not in str(caught.value) and capfd.readouterr().err == ""


def test_damaged_images_are_left_out_and_named(data: datasets.DataSet, tmp_path: Path) -> None:
    more = noise(tmp_path / "more", 2)
    (more / "broken.jpg").write_bytes(b"\xff\xd8 nothing")
    both = join(data, more)
    assert len(both.unlabelled) == 2 and "1 of the 3 images of 'unlabelled' left out: " in both.warnings[-1]


def test_a_damaged_video_is_left_out_of_a_folder_that_has_more(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = noise(tmp_path / "more", 2)
    (more / "cut.mp4").write_bytes(b"nothing")
    os.mkfifo(more / "pipe.mp4")
    found = unlabelled.find([str(more)])
    assert len(found.records) == 2 and not found.videos and capfd.readouterr().err == ""
    assert [line.partition("more/")[2].partition(":")[0] for line in found.warnings] == ["cut.mp4", "pipe.mp4"]
    assert all(line.endswith("as images: left out") for line in found.warnings)
    alone = noise(tmp_path / "alone", 0)
    (alone / "cut.mp4").write_bytes(b"nothing")
    with pytest.raises(DistillError, match="cut.mp4: this video cannot be decoded"):
        unlabelled.find([str(alone)])


def test_images_that_are_all_in_train_are_refused(data: datasets.DataSet) -> None:
    with pytest.raises(DistillError, match="each of the 12 images is in .* already"):
        join(data, data.path.parent / "images" / "train")


def test_frames_of_a_video_are_spread_and_written_once(data: datasets.DataSet, tmp_path: Path) -> None:
    clips = tmp_path / "clips"
    clips.mkdir()
    film(clips / "a.avi", 40)
    waiting = join(data, clips)
    assert waiting.unlabelled == () and waiting.videos == (clips / "a.avi",)
    assert sorted(clips.iterdir()) == [clips / "a.avi"]
    both = unlabelled.decoded(waiting, tmp_path / "frames", 4)
    assert [file.name for file in both.unlabelled] == [f"a-{number:07}.jpg" for number in (5, 15, 25, 35)]
    levels = [cv2.imread(str(file)).mean() for file in both.unlabelled]
    assert levels == pytest.approx([10, 30, 50, 70], abs=3)
    first = {file: file.stat().st_mtime_ns for file in both.unlabelled}
    again = unlabelled.decoded(waiting, tmp_path / "frames", 4)
    assert {file: file.stat().st_mtime_ns for file in again.unlabelled} == first and again.videos == ()
    assert len(unlabelled.decoded(waiting, tmp_path / "frames", 100).unlabelled) == 40
    assert datasets.fingerprint(again) == datasets.fingerprint(both)


def test_a_video_without_a_length_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = film(tmp_path / "a.avi", 10)
    monkeypatch.setattr(videos.cv2, "CAP_PROP_FRAME_COUNT", cv2.CAP_PROP_GAMMA)  # which no video has
    assert len(videos.frames_of(video, tmp_path / "frames", 5, None)) == 5


@pytest.mark.parametrize(
    ("images", "batch", "ratio", "split", "steps"),
    [
        ((248, 2230), 16, None, (4, 12), 186),
        ((100, 100), 16, None, (8, 8), 13),
        ((100, 10), 16, None, (15, 1), 10),
        ((100, 100), 16, 7.0, (2, 14), 50),
        ((100, 100), 4, 100.0, (1, 3), 100),
        ((100, 100), 2, 0.01, (1, 1), 100),
        ((248, 2230), 16, 0, (16, 0), 186),
    ],
)
def test_batches_keep_their_size_and_an_epoch_shows_all(
    images: tuple[int, int], batch: int, ratio: float | None, split: tuple[int, int], steps: int
) -> None:
    mixture = Mixture(*images, ratio)
    assert (mixture.split(batch), mixture.steps(batch)) == (split, steps)
    drawn = list(MixedSampler(images, split, steps, seed=3))
    assert len(drawn) == batch * steps and set(drawn) == set(range(sum(images) if split[1] else images[0]))
    for start in range(0, len(drawn), batch):
        kinds = [index < images[0] for index in drawn[start : start + batch]]
        assert kinds == [True] * split[0] + [False] * split[1]


def test_processes_share_what_one_would_draw() -> None:
    mixture = Mixture(10, 30)
    assert (mixture.split(8, 2), mixture.steps(8, 2)) == ((2, 6), 5)
    alone = list(MixedSampler((10, 30), (2, 6), 5))
    shared = [list(MixedSampler((10, 30), (1, 3), 5, rank=rank, world=2)) for rank in range(2)]
    assert sorted(alone) == sorted(shared[0] + shared[1]) and set(alone) == set(range(40))


def test_each_epoch_draws_anew_and_can_be_drawn_again() -> None:
    sampler = MixedSampler((10, 30), (2, 6), 5, seed=1)
    first, second = list(sampler), list(sampler)
    sampler.set_epoch(1)
    assert first != second and list(sampler) == second


def test_a_schedule_counts_the_steps_of_both_kinds() -> None:
    plain = recovery(248, 16, 10)
    assert (plain.batch, plain.steps, plain.labelled) == (8, 310, None)
    mixed = recovery(248, 16, 10, mixture=Mixture(248, 2230))
    assert (mixed.batch, mixed.steps, mixed.labelled) == (16, 1860, 4)
    assert "1860 steps of 16 images, 4 of them with labels" in mixed.describe()
    alone = recovery(248, 16, 10, mixture=Mixture(248, 2230, 0))  # as long, for a fair comparison
    assert (alone.batch, alone.steps, alone.labelled) == (16, 1860, 16)


SCHEDULE = Schedule(epochs=2, batch=4, steps=10, labelled=1, mosaic=1.0, scale=0.0, translate=0.0)


def test_a_batch_begins_with_its_labelled_images_and_mosaic_keeps_to_a_kind(
    data: datasets.DataSet, tmp_path: Path
) -> None:
    both = join(data, noise(tmp_path / "more", 5))
    loader = mixed_loader(both, SCHEDULE, imgsz=64, hyp=get_cfg(overrides=SCHEDULE.augmentation), device=CPU)
    init_seeds(0)
    batches = list(loader)
    assert len(batches) == len(loader) == 5
    batches += [*loader, *loader]
    for batch in batches:
        assert batch["labelled"] == 1 and batch["img"].shape == (4, 3, 64, 64)
        assert set(batch["batch_idx"].tolist()) <= {0.0} and "more" not in batch["im_file"][0]
        assert all("more" in file for file in batch["im_file"][1:])
    assert max(len(batch["cls"]) for batch in batches) > 1  # four images are joined, each with an object
    loader.dataset.close_mosaic(get_cfg(overrides=SCHEDULE.augmentation))
    loader.reset()
    assert max(len(batch["cls"]) for batch in loader) == 1


def test_trials_see_what_training_sees(data: datasets.DataSet, tmp_path: Path) -> None:
    both = join(data, noise(tmp_path / "more", 5))
    seen = []
    for _ in range(2):
        init_seeds(3)
        batches = YoloBench(both, 64).batches(SCHEDULE, augment=True)
        seen.append([next(batches) for _ in range(7)])  # more than an epoch
    for first, second in zip(*seen, strict=True):
        assert first["labelled"] == 1 and torch.equal(first["img"], second["img"])
    assert not torch.equal(seen[0][0]["img"], seen[0][5]["img"])


def test_a_training_that_was_interrupted_goes_on_as_if_nothing_had_been(data: datasets.DataSet, tmp_path: Path) -> None:
    both, schedule = join(data, noise(tmp_path / "more", 5)), replace(SHORT, labelled=1)
    networks = tiny(), tiny(1)

    def trained(folder: str, **options: Any) -> Trained:
        student = copy.deepcopy(networks[0])
        loss = WeightedLoss("score_bce", 1.0, resolve("score_bce"))
        task = distillation(student, [teacher_of(networks[1], [loss])], unlabelled=2.0)
        return go(student, both, tmp_path / folder, schedule, task=task, **options)

    with pytest.raises(Interrupted):
        trained("broken", console=Interrupting())
    resumed, whole = trained("broken", resume=True), trained("whole")
    assert resumed.history == whole.history and torch.equal(weights(resumed), weights(whole))
    assert {"score_bce", "cls_loss"} <= set(whole.history[0])
