"""The main flow, top to bottom: teacher -> plan -> pruned -> repaired -> student -> measured, exported, reported.

Every stage ends in a file of the run folder and the next one starts from that file, so that a run that was killed goes
on as if nothing had happened.
"""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import prune
from distill import env, losses, measure, report, schedule, shapes, steps
from distill.console import Console
from distill.errors import DistillError
from distill.folder import RunFolder
from distill.recipe import SHAPES, Recipe
from distill.results import assemble
from distill.yolo import checkpoint, outputs
from distill.yolo import data as datasets
from distill.yolo.build import build
from distill.yolo.checkpoint import Detector
from distill.yolo.data import DataSet
from distill.yolo.evaluate import pick_device
from distill.yolo.export import check_exports, export_checkpoint
from distill.yolo.sensitivity import sensitivity_of
from distill.yolo.trainer import train

TEACHER, SPARSE, PRUNED, REPAIRED, STUDENT = "teacher.pt", "sparse.pt", "pruned.pt", "repaired.pt", "student.pt"
HOPELESS = 0.01  # mAP50-95 of a teacher that has nothing to teach
EXACT = 1e-6  # largest difference between masked and pruned outputs in float64 that is rounding


def run(recipe: Recipe, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Run a recipe from its checkpoint and images to a smaller checkpoint and a report.

    Args:
        recipe: what to do.
        folder: where everything goes; a resumed one goes on after its last finished stage.
        console: what the user watches.

    Returns:
        What results.json holds.

    Raises:
        DistillError: bad input, before anything is written; or a step that cannot be done.
    """
    return _Run(recipe, folder, console).all()


class _Run:
    """One run: the recipe and what every stage needs of it."""

    def __init__(self, recipe: Recipe, folder: RunFolder, console: Console) -> None:
        self.recipe, self.folder, self.console = recipe, folder, console
        self.device = pick_device(recipe.device)
        check_exports(recipe.export)
        self.losses = losses.build(recipe.distill.losses) if recipe.distill.epochs else []
        self.given = steps.open_teacher(recipe) if recipe.model else None
        if self.given is not None:
            steps.check_budget(recipe, self.given.model)
        self.data = self._open_data()

    def all(self) -> dict[str, Any]:
        teacher = self._teacher()
        self._stage("evaluate teacher", lambda: self._evaluate(teacher), self._refuse_hopeless)
        base = self._sparsify(teacher)
        plan = self._prune(base)
        self._stage("evaluate pruned", lambda: self._evaluate(self._load(PRUNED)))
        result = PRUNED
        if self.recipe.repair is not None:
            self._stage("repair", lambda: self._repair(base, plan))
            self._stage("evaluate repaired", lambda: self._evaluate(self._load(REPAIRED)))
            result = REPAIRED
        if self.recipe.distill.epochs:
            self._stage("distill", lambda: self._distill(teacher, self._load(result), plan))
            self._stage("evaluate trained", lambda: self._evaluate(self._load("trained.pt")))
        self._stage("choose", lambda: self._choose(result))
        self._stage("measure", self._measure)
        self._stage("export", self._export)
        return self._report(plan)

    # ---- stages ------------------------------------------------------------------------------------------------

    def _open_data(self) -> DataSet:
        recipe, path = self.recipe, Path(self.recipe.data)
        if recipe.data == SHAPES:
            self.folder.open()
            given = recipe.shapes
            path = shapes.generate(
                self.folder.path / "data",
                train=given.train,
                val=given.val,
                imgsz=given.imgsz,
                seed=given.seed,
                progress=self.console.track,
            )
        data = datasets.load(path, self.given.names if self.given else None, progress=self.console.track)
        if not data.labelled and (recipe.sparsify or recipe.teacher.train):
            raise DistillError(f"{data.path}: no labels, and sparsify and teacher.train need them: give a data.yaml")
        return data

    def _teacher(self) -> Detector:
        """The original, in the run folder: as it was given, or trained from the data."""

        def make() -> dict[str, Any]:
            if self.given is not None:
                self._save(self.given, TEACHER)
                return {}
            wanted = self.recipe.teacher.train
            assert wanted is not None and self.data.names is not None  # the recipe has one or the other
            course = schedule.teacher(
                len(self.data.train),
                wanted.batch or self.recipe.batch,
                wanted.epochs,
                lr=wanted.lr,
                mosaic=wanted.mosaic,
            )
            self.console.line(course.describe())
            network = build(wanted.model, self.data.names, seed=self.recipe.seed)
            steps.check_budget(self.recipe, network)
            trained = self._train(network, course, "train teacher", patience=wanted.patience)
            detector = Detector(trained.model, self.data.names, self.recipe.imgsz, self.folder.path / TEACHER, None)
            self._save(detector, TEACHER)
            return {"best_epoch": trained.best_epoch, "epochs": len(trained.history)}

        self.folder.open()
        for warning in self.data.warnings:
            self.console.warn(warning)
        self._stage("teacher", make)
        return self._load(TEACHER)

    def _sparsify(self, teacher: Detector) -> Detector:
        """The network that is cut: the teacher, or what it became under an L1 penalty on its BatchNorm scales."""
        wanted = self.recipe.sparsify
        if wanted is None:
            return teacher

        def make() -> dict[str, Any]:
            graph = prune.trace(teacher.model, self._images(1))
            penalty = prune.sparsity.Penalty(graph, wanted.strength)
            course = schedule.sparsify(len(self.data.train), self.recipe.batch, wanted.epochs, lr=wanted.lr)
            self.console.line(course.describe())
            trained = self._train(teacher.model, course, "sparsify", penalty=penalty)
            self._save(replace(teacher, model=trained.model), SPARSE)
            return prune.sparsity.near_zero(graph, trained.model)

        found = self._stage("sparsify", make)
        metrics = self._stage("evaluate sparse", lambda: self._evaluate(self._load(SPARSE)))
        before = self._done("evaluate teacher")["map50_95"]
        if not found["near_zero"]:
            self.console.warn(
                f"sparsify: none of the {found['channels']} scales came near zero: raise sparsify.strength or epochs"
            )
        if metrics["map50_95"] < before - self.recipe.accept.map_drop:
            self.console.warn(
                f"sparsify took mAP50-95 from {before:.3f} to {metrics['map50_95']:.3f}: lower sparsify.strength"
            )
        return self._load(SPARSE)

    def _prune(self, base: Detector) -> prune.PrunePlan:
        def make() -> dict[str, Any]:
            plan = steps.make_plan(self.recipe, base, self.data, self.device, self.console)
            student = prune.apply(base.model, plan)
            difference = prune.verify(base.model, student, plan, self._images(1))
            if not difference < EXACT:
                raise DistillError(
                    f"the cut is not exact: outputs differ by {difference:.2g} from the masked original; please report it"
                )
            self.console.line(f"exact: {difference:.1e} from the masked original, in float64")
            self.folder.write_text("plan.json", plan.to_json())
            self._save(replace(base, model=student), PRUNED, plan)
            return {"verify": difference}

        self._stage("prune", make)
        return prune.PrunePlan.from_json((self.folder.path / "plan.json").read_text(encoding="utf-8"))

    def _repair(self, base: Detector, plan: prune.PrunePlan) -> dict[str, Any]:
        assert self.recipe.repair is not None
        student = self._load(PRUNED)
        network, original = student.model.to(self.device), base.model.to(self.device)
        images = self._images(self.recipe.repair.images)
        layers = prune.repair(
            network,
            original,
            plan,
            images,
            sensitivity=sensitivity_of(original),
            seed=self.recipe.seed,
            progress=self.console.track,
        )
        self._save(replace(student, model=network.cpu()), REPAIRED, plan)
        original.cpu()
        return {"images": len(images), "layers": [asdict(layer) for layer in layers]}

    def _distill(self, teacher: Detector, student: Detector, plan: prune.PrunePlan) -> dict[str, Any]:
        wanted = self.recipe.distill
        course = schedule.recovery(
            len(self.data.train),
            wanted.batch or self.recipe.batch,
            wanted.epochs,
            lr=wanted.lr,
            keep_batch=wanted.batch is not None,
            start_map=(self._done("evaluate repaired") or self._done("evaluate pruned")).get("map50_95"),
            teacher_map=self._done("evaluate teacher").get("map50_95"),
        )
        self.console.line(course.describe())
        task = outputs.distillation(
            student.model,  # type: ignore[arg-type]
            checkpoint.fused(teacher.model),  # type: ignore[arg-type]
            self.losses,
            keep_inputs=plan.keep_inputs,
            labels=wanted.labels if self.data.labelled else 0.0,
        )
        trained = self._train(student.model, course, "distill", task=task)
        self._save(replace(student, model=trained.model), "trained.pt", plan)
        self.folder.write_text("metrics.csv", _csv(trained.history))
        return {"schedule": asdict(course), "best_epoch": trained.best_epoch, "history": trained.history}

    def _choose(self, before_training: str) -> dict[str, Any]:
        """The student is the trained network, unless it ended below where it started."""
        trained, start = self._done("evaluate trained"), self._done(f"evaluate {before_training.removesuffix('.pt')}")
        chosen = before_training
        if trained is not None:
            chosen = "trained.pt"
            if trained["map50_95"] is not None and trained["map50_95"] < start["map50_95"]:
                chosen = before_training
                self.console.warn(
                    f"training ended at mAP50-95 {trained['map50_95']:.3f}, below the {start['map50_95']:.3f} it started "
                    f"from: {STUDENT} is the network before training"
                )
        content = (self.folder.path / chosen).read_bytes()
        self.folder.write_with(STUDENT, lambda path: path.write_bytes(content))
        return {"chosen": chosen}

    def _measure(self) -> dict[str, Any]:
        """What the teacher and the student cost. Pruned, repaired and trained networks have one structure, so one cost."""
        networks = {name: checkpoint.fused(self._load(f"{name}.pt").model) for name in ("teacher", "student")}
        size, runs = self.recipe.imgsz, self.recipe.latency.runs
        latency = measure.measure_latency(networks, size, self.device, runs, progress=self.console.track)
        return {
            name: {
                "params": measure.count_params(network),
                "gflops": measure.count_gflops(network, size),
                "size_mb": measure.file_size_mb(self.folder.path / f"{name}.pt"),
                "latency_ms": latency[name].as_dict(),
            }
            for name, network in networks.items()
        }

    def _export(self) -> dict[str, Any]:
        exported = [
            export_checkpoint(self.folder.path / STUDENT, name, self.folder.path / "exports", self.recipe.imgsz)
            for name in self.recipe.export
        ]
        return {"exports": [one.as_dict(self.folder.path) for one in exported]}

    def _report(self, plan: prune.PrunePlan) -> dict[str, Any]:
        device = env.device_name(str(self.device))
        results = assemble(self.recipe, self.data, plan, self.folder.stages, device)
        self.folder.write_json("results.json", results)
        report.write(self.folder.path)
        self.console.result("\n" + report.summary_table(results, self.folder.path))
        return results

    # ---- what the stages share ----------------------------------------------------------------------------------

    def _stage(
        self, name: str, work: Callable[[], Mapping[str, Any]], check: Callable[[dict[str, Any]], None] | None = None
    ) -> dict[str, Any]:
        """Do a stage once: a resumed run takes what it left, its warnings with it."""
        done = self.folder.done(name)
        if done is None:
            self.console.header(name)
            start, warned = time.monotonic(), len(self.console.warnings)
            payload = dict(work())
            if check is not None:
                check(payload)
            warnings = self.console.warnings[warned:]
            self.folder.finish(name, {**payload, "seconds": time.monotonic() - start, "warnings": warnings})
        else:
            self.console.line(f"{name}: done before")
        return self.folder.done(name) or {}

    def _done(self, name: str) -> Any:
        return self.folder.done(name)

    def _evaluate(self, detector: Detector) -> dict[str, Any]:
        if not self.data.labelled:
            return {"map50_95": None, "map50": None, "per_class": None}
        recipe = self.recipe
        return asdict(
            steps.evaluate_detector(detector, self.data, recipe.imgsz, recipe.batch, self.device, self.console)
        )

    def _refuse_hopeless(self, metrics: dict[str, Any]) -> None:
        if metrics["map50_95"] is not None and metrics["map50_95"] < HOPELESS:
            raise DistillError(
                f"the teacher's mAP50-95 on {self.data.path} is {metrics['map50_95']:.3f}: it has nothing to teach. Is it "
                "the right checkpoint, the right data, and imgsz the size it was trained at?"
            )

    def _train(self, model: Any, course: schedule.Schedule, name: str, **options: Any) -> Any:
        self.folder.open()
        return train(
            model,
            self.data,
            course,
            folder=self.folder.path / "training" / name.replace(" ", "-"),
            console=self.console,
            imgsz=self.recipe.imgsz,
            device=self.recipe.device,
            seed=self.recipe.seed,
            workers=self.recipe.workers,
            resume=self.folder.resumed,
            **options,
        )

    def _images(self, count: int) -> Any:
        return datasets.images(self.data.train, count, self.recipe.imgsz, seed=self.recipe.seed)

    def _load(self, name: str) -> Detector:
        return checkpoint.load(self.folder.path / name)

    def _save(self, detector: Detector, name: str, plan: prune.PrunePlan | None = None) -> None:
        checkpoint.save(
            detector.model,
            self.folder.path / name,
            names=detector.names,
            imgsz=self.recipe.imgsz,
            plan=plan.to_dict() if plan else None,
        )


def _csv(history: list[dict[str, Any]]) -> str:
    columns = list(dict.fromkeys(key for row in history for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()
