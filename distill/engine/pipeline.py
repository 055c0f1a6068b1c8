"""The main flow, top to bottom: teacher -> plan -> pruned -> repaired -> student -> measured, exported, reported.

Every stage ends in a file of the run folder and the next one starts from that file, so that a run that was killed goes
on as if nothing had happened.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import prune
from distill import report
from distill.engine import recovery, steps
from distill.engine.folder import RunFolder
from distill.engine.results import assemble, yardstick
from distill.engine.session import AVERAGED, PRUNED, REPAIRED, SPARSE, STUDENT, TEACHER, TRAINED, Session
from distill.errors import DistillError
from distill.machine import env, measure, parallel
from distill.machine.console import Console
from distill.recipe.schema import Recipe
from distill.results.results import Results
from distill.training import schedule
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.export import export_checkpoint
from distill.yolo.families.table import family_of

# What each stage leaves in the folder beside its record, for a run that begins with the stages of another.
FILES = {"teacher": (TEACHER,), "sparsify": (SPARSE,), "prune": (PRUNED, "plan.json"), "repair": (REPAIRED,)}
HOPELESS = 0.01  # mAP50-95 of a teacher that has nothing to teach
EXACT = 1e-6  # a difference between masked and pruned outputs, in float64, that is rounding


def run(recipe: Recipe, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Run a recipe, from its checkpoint and images to a smaller checkpoint and a report.

    Args:
        recipe: what to do.
        folder: where everything goes; a resumed one goes on after its last finished stage or epoch.
        console: what the user watches.

    Returns:
        What results.json holds.

    Raises:
        DistillError, PruneError: bad input, before anything is written; or a step that cannot be done.
    """
    session = Session(recipe, folder, console)
    session.stage("teacher", _teacher)
    session.stage("evaluate teacher", _evaluate_teacher)
    base = TEACHER
    if recipe.sparsify is not None:
        session.stage("sparsify", _sparsify)
        session.stage("evaluate sparse", _evaluate_sparse)
        base = SPARSE
    session.stage("prune", _prune, base)
    plan = prune.PrunePlan.from_json((folder.path / "plan.json").read_text(encoding="utf-8"))
    session.stage("evaluate pruned", Session.evaluate, PRUNED)
    start = PRUNED
    if recipe.repair is not None:
        session.stage("repair", recovery.repair, base, plan)
        session.stage("evaluate repaired", Session.evaluate, REPAIRED)
        start = REPAIRED
    if recipe.distill.epochs:
        rehearsed = session.stage("rehearse", recovery.rehearse, start, plan)
        session.stage("distill", recovery.distill, start, plan)
        session.stage("evaluate trained", Session.evaluate, TRAINED)
        if rehearsed["freeze_bn"] and recipe.repair is not None:
            session.stage("average", recovery.average, start, plan)
            session.stage("evaluate averaged", Session.evaluate, AVERAGED)
    session.stage("choose", _choose, start)
    session.stage("measure", _measure)
    session.stage("export", _export)
    return _report(session, plan) if parallel.is_leader() else {}


def _teacher(session: Session) -> dict[str, Any]:
    """The original, in the run folder: as it was given, or trained from the data."""
    if session.given is not None:
        session.save(session.given, TEACHER)
        return {}
    wanted, names, images = session.recipe.teacher.train, session.data.names, len(session.data.train)
    assert wanted is not None and names is not None  # a recipe without a model has it, and it needs labels
    network = build(wanted.model, names, width=wanted.width, seed=session.recipe.seed)
    batch = wanted.batch or session.recipe.batch
    course = schedule.teacher(images, batch, wanted.epochs, lr=wanted.lr, mosaic=wanted.mosaic)
    trained = session.train(network, course, "teacher", patience=wanted.patience)
    session.save(Detector(trained.model, names, session.recipe.imgsz, session.folder.path / TEACHER, None), TEACHER)
    return {"best_epoch": trained.best_epoch, "epochs": len(trained.history)}


def _evaluate_teacher(session: Session) -> dict[str, Any]:
    metrics = session.evaluate(TEACHER)
    taught = session.losses or session.recipe.prune  # otherwise labels alone train it on, whatever it is
    if taught and metrics["map50_95"] is not None and metrics["map50_95"] < HOPELESS:
        raise DistillError(
            f"the teacher's mAP50-95 on {session.data.path} is {metrics['map50_95']:.3f}: it has nothing to teach. Is it "
            "the right checkpoint, the right data, and imgsz the size it was trained at?"
        )
    return metrics


def _sparsify(session: Session) -> dict[str, Any]:
    """What the teacher becomes under an L1 penalty on its BatchNorm scales: the network that is cut."""
    wanted, teacher = session.recipe.sparsify, session.load(TEACHER)
    assert wanted is not None
    graph = prune.trace(teacher.model, session.images(teacher, 1))
    course = schedule.sparsify(len(session.data.train), session.recipe.batch, wanted.epochs, lr=wanted.lr)
    penalty = prune.sparsity.Penalty(graph, wanted.strength)
    task = session.task(teacher) if wanted.distill else None
    trained = session.train(teacher.model, course, "sparsify", task=task, penalty=penalty)
    session.save(replace(teacher, model=trained.model), SPARSE)
    found = prune.sparsity.near_zero(graph, trained.model)
    session.console.line(f"{found['near_zero']} of {found['channels']} scales came near zero")
    if not found["near_zero"]:
        session.console.warn("sparsify: no scale came near zero: raise sparsify.strength or sparsify.epochs")
    return found


def _evaluate_sparse(session: Session) -> dict[str, Any]:
    found = session.evaluate(SPARSE)
    (name, before), (_, after) = yardstick(session.done("evaluate teacher")), yardstick(found)
    if before is not None and after is not None and after < before - session.recipe.accept.map_drop:
        session.console.warn(f"sparsify took {name} from {before:.3f} to {after:.3f}: lower sparsify.strength")
    return found


def _prune(session: Session, base: str) -> dict[str, Any]:
    """Decide what to cut, cut it, and prove that the cut is exact."""
    original = session.load(base)
    plan = steps.make_plan(session.recipe, original, session.data, session.device, session.console)
    student = prune.apply(original.model, plan)
    difference = prune.verify(original.model, student, plan, session.images(original, 1))
    if not difference < EXACT:  # written so that NaN fails
        raise DistillError(
            f"the cut is not exact, outputs differ by {difference:.2g} from the masked original: report it"
        )
    session.console.line(f"exact: {difference:.1e} from the masked original, in float64")
    session.folder.write_text("plan.json", plan.to_json())
    session.save(replace(original, model=student), PRUNED, plan)
    return {"verify": difference}


def _choose(session: Session, start: str) -> dict[str, Any]:
    """The student is the best of what there is: the trained network, its average with the start, or the start itself."""
    files = (TRAINED, AVERAGED, start) if session.recipe.distill.epochs else (start,)
    found = {file: yardstick(session.done(f"evaluate {file.removesuffix('.pt')}")) for file in files}
    name = found[start][0]
    figures = {file: figure for file, (_, figure) in found.items() if figure is not None}
    chosen = max(figures, key=figures.__getitem__, default=files[0])  # the first of equals
    if chosen == start and TRAINED in figures:
        session.console.warn(
            f"training ended at {name} {figures[TRAINED]:.3f}, below the {figures[start]:.3f} it started from: {STUDENT} is "
            "the network before training"
        )
    if chosen == AVERAGED:
        session.console.line(
            f"{STUDENT} is the mean of the weights before and after training: {name} {figures[AVERAGED]:.3f}, after it "
            f"{figures[TRAINED]:.3f}"
        )
    content = (session.folder.path / chosen).read_bytes()
    session.folder.write_with(STUDENT, lambda path: path.write_bytes(content))
    student = session.load(STUDENT)
    native = family_of(student.model).native
    if native is not None:  # and once more in the format of the project that it came from
        place = session.folder.path / native.file
        native.save(student.model, place, names=student.names, imgsz=session.recipe.imgsz)
    return {"chosen": chosen, "original": native.file if native is not None else None}


def _measure(session: Session) -> dict[str, Any]:
    """What the teacher and the student cost. Pruned, repaired and trained networks are one structure, so one cost."""
    size, runs = session.recipe.imgsz, session.recipe.latency.runs
    networks = {name: checkpoint.fused(session.load(f"{name}.pt").model) for name in ("teacher", "student")}
    latency = measure.measure_latency(networks, size, session.device, runs, progress=session.console.track)
    return {
        name: {
            "params": measure.count_params(network),
            "gflops": measure.count_gflops(network, size),
            "size_mb": measure.file_size_mb(session.folder.path / f"{name}.pt"),
            "latency_ms": latency[name].as_dict(),
        }
        for name, network in networks.items()
    }


def _export(session: Session) -> dict[str, Any]:
    student, place = session.folder.path / STUDENT, session.folder.path / "exports"
    made = [export_checkpoint(student, name, place, session.recipe.imgsz) for name in session.recipe.export]
    return {"exports": [one.as_dict(session.folder.path) for one in made]}


def _report(session: Session, plan: prune.PrunePlan) -> dict[str, Any]:
    folder, device = session.folder, env.device_name(str(session.device))
    results = assemble(session.recipe, session.data, plan, folder.stages, device, session.warnings)
    folder.write_json("results.json", results)
    report.write(folder.path)
    session.console.result("\n" + report.summary_table(Results.read(folder.path), folder.path))
    return results
