"""Stages declare themselves: what they read is in the recipe, what runs share follows from it."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from distill.engine.folder import RunFolder
from distill.engine.pipeline import STAGES
from distill.engine.stage import Stage, key_of, run_stage, shared_stages, with_evaluations
from distill.engine.stages.cut import CutRecord
from distill.engine.stages.export import ExportRecord
from distill.engine.stages.measure import MeasureRecord
from distill.engine.stages.teacher import check_data
from distill.errors import DistillError
from distill.recipe import load as recipes
from distill.recipe.schema import Recipe
from distill.results.figures import Cost, Evaluation, Latency
from distill.results.networks import NETWORKS
from distill.results.records import from_plain
from distill.results.steps import Export, Repair, Repaired, Search, Tuning
from distill.yolo.data import dataset as datasets
from distill.yolo.kind import YOLO
from tests.distill.test_compare import Told
from tests.distill.yolo.test_data import make_images

# Keys that change no stage's outcome: a name, and the limit of the verdict.
UNREAD = {"name", "accept", "loggers"}


def recipe(*words: str) -> Recipe:
    return recipes.load("half", ["model=best.pt", "data=data.yaml", *words])


def names(stages: list[Stage]) -> list[str]:
    return [stage.name for stage in stages]


def test_every_key_of_a_recipe_is_read_by_a_stage_and_every_key_that_is_read_exists() -> None:
    keys = {key for stage in STAGES for key in stage.reads}
    assert {key.split(".")[0] for key in keys} | UNREAD == {field.name for field in fields(Recipe)}
    for key in keys:
        key_of(recipe(), key)
    assert key_of(recipe("prune=null"), "prune.flops") is None
    with pytest.raises(AttributeError):
        key_of(recipe(), "prune.flosp")


def test_a_run_does_not_go_on_with_other_data_than_it_began_with(tmp_path: Path) -> None:
    make_images(tmp_path / "images" / "some", 12, rows=None)

    def session(record: dict[str, Any] | None) -> SimpleNamespace:
        folder = SimpleNamespace(path=tmp_path / "run", stages={} if record is None else {"teacher": record})
        return SimpleNamespace(kind=YOLO, folder=folder, data=datasets.load(tmp_path / "images"))

    outcome = {"seconds": 0.0, "warnings": []}
    began = datasets.fingerprint(datasets.load(tmp_path / "images"))
    for record in (None, outcome, outcome | {"data": began}):
        check_data(session(record))
    (tmp_path / "images" / "some" / "3.jpg").unlink()
    with pytest.raises(
        DistillError, match=r"others than when the run in .*run began \(10 \+ 2 images, .* 9 \+ 2 images"
    ):
        check_data(session(outcome | {"data": began}))


def test_names_and_networks_are_told_apart() -> None:
    everything = [stage.name for stage in with_evaluations(STAGES)]
    assert len(set(everything)) == len(everything)
    made = [stage.makes for stage in STAGES if stage.makes]
    assert len(set(made)) == len(made) and set(made) <= set(NETWORKS)
    assert everything.index("evaluate pruned") == everything.index("cut") + 1
    assert all(is_dataclass(stage.record) and stage.record.__dataclass_params__.frozen for stage in STAGES)


def test_runs_share_stages_up_to_the_first_that_reads_differing_keys() -> None:
    base = recipe("distill.epochs=0")
    assert names(shared_stages(STAGES, base, recipe("distill.epochs=5"))) == ["teacher", "cut", "repair"]
    assert names(shared_stages(STAGES, base, recipe("repair=null"))) == ["teacher", "cut"]
    assert names(shared_stages(STAGES, base, recipe("repair.images=8"))) == ["teacher", "cut"]
    assert names(shared_stages(STAGES, base, recipe("seed=1"))) == ["teacher"]
    assert names(shared_stages(STAGES, base, recipe("prune.flops=0.3", "export=[]"))) == ["teacher"]
    assert names(shared_stages(STAGES, base, recipe("sparsify={epochs: 1}"))) == ["teacher"]
    assert names(shared_stages(STAGES, base, recipe("imgsz=320"))) == []
    assert names(shared_stages(STAGES, base, replace(base, name="other"))) == names(
        [stage for stage in STAGES if stage.when(base)]
    )


def test_records_come_back_from_plain_data() -> None:
    tuning = Tuning(True, {"box_iou": 1.5}, 1e-3, Search(2.0, 2.1, ((1e-3, 2.05), (1e-2, None))))
    repair = Repair(96, (Repaired("model.0.conv", 0.5, None, False),), ())
    assert from_plain(Tuning, asdict(tuning)) == tuning and from_plain(Repair, asdict(repair)) == repair


def test_a_run_that_goes_on_shows_the_figures_of_what_is_finished(tmp_path: Path) -> None:
    def cost(milliseconds: float) -> Cost:
        return Cost(1000, 1.0, 4.0, Latency(milliseconds, 1.0, 30.0, 3))

    folder = RunFolder(tmp_path, "", resumed=True)
    about = {"seconds": 3.0, "warnings": []}
    repair = Repair(96, (Repaired("model.0.conv", 0.5, None, False),), ())
    folder.stages = {
        "cut": {**asdict(CutRecord(1e-15)), **about},
        "repair": {**asdict(repair), **about},
        "evaluate repaired": {**asdict(Evaluation(0.6264, 0.9, {})), **about},
        "tune": {**asdict(Tuning(True, {}, 3e-4, None)), **about},
        "export": {**asdict(ExportRecord((Export("onnx", "exports/student.onnx", 4.25, None),))), **about},
        "measure": {**asdict(MeasureRecord(cost(20.0), cost(10.25))), **about},
    }
    session: Any = SimpleNamespace(folder=folder, console=Told())
    done = [stage for stage in with_evaluations(STAGES) if stage.name in folder.stages]
    for stage in done:
        run_stage(replace(stage, passes=lambda session: 1.0), session, 1, 1, 0.0)
    assert session.console.lines == [
        "cut: done before, exact to 1.0e-15",
        "repair: done before, mAP50-95 0.626, mAP50 0.900, 1 layers and 0 blocks on 96 images",
        "tune: done before, lr 3.0e-04",
        "export: done before, exports/student.onnx of 4.2 MB",
        "measure: done before, 20 ms for the teacher, 10.2 ms now",
    ]
