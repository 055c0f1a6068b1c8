"""What results.json holds, put together from what every stage of a run left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import yaml

from distill.machine import env
from distill.recipe.load import to_yaml
from distill.recipe.schema import Recipe
from distill.results.results import FORMAT

QUALITY = ("map50_95", "map50", "per_class", "agreement50_95", "agreement50", "agreement_per_class")


def assemble(
    recipe: Recipe,
    data: Any,
    plan: Any,
    stages: Mapping[str, Mapping[str, Any]],
    device: str,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The results of a finished run, as plain data.

    Args:
        recipe: of the run.
        data: its `distill.yolo.data.DataSet`.
        plan: its `prune.PrunePlan`.
        stages: what each stage left, by name.
        device: name of the device that latency was measured on.
        warnings: of what was given; those of the stages are with them.
    """
    chosen = stages["choose"]["chosen"].removesuffix(".pt")
    models = _models(stages, chosen, trained="distill" in stages)
    before, after = models["teacher"]["map50_95"], list(models.values())[-1]["map50_95"]
    training = stages.get("distill", {})
    return {
        "format": FORMAT,
        "recipe": yaml.safe_load(to_yaml(recipe)),
        "recipe_name": recipe.name,
        "model": recipe.model,
        "imgsz": recipe.imgsz,
        "seed": recipe.seed,
        "data": {
            "path": str(data.path),
            "train_images": len(data.train),
            "val_images": len(data.val),
            "classes": list((data.names or {}).values()),
            "labelled": data.labelled,
        },
        "agreement": None if data.labelled else _agreement(data, stages["evaluate teacher"]),
        "device": device,
        "versions": env.versions(),
        "models": models,
        "chosen": list(models)[-1],
        "student_is": chosen,
        "native": stages["choose"].get("original"),
        "accept": asdict(recipe.accept),
        "accepted": None if before is None else after >= before - recipe.accept.map_drop,
        "trained": stages.get("evaluate trained"),
        "average": _average(stages, chosen),
        "schedule": training.get("schedule"),
        "history": training.get("history", []),
        "epoch_seconds": training.get("epoch_seconds", []),
        "plan": {
            "flops_before": plan.flops_before,
            "flops_after": plan.flops_after,
            "params_before": plan.params_before,
            "params_after": plan.params_after,
            "verify": stages["prune"]["verify"],
            "groups": [asdict(width) for width in plan.groups],
        },
        "repair": _part(stages.get("repair"), "images", "layers", "blocks"),
        "tuning": _part(stages.get("rehearse"), "freeze_bn", "factors", "lr", "search"),
        "exports": stages["export"]["exports"],
        "warnings": [*warnings, *(warning for stage in stages.values() for warning in stage["warnings"])],
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
    }


def _part(stage: Mapping[str, Any] | None, *keys: str) -> dict[str, Any] | None:
    """Some of what a stage left; None where it did not run."""
    return None if stage is None else {key: stage[key] for key in keys}


def _agreement(data: Any, evaluated: Mapping[str, Any]) -> dict[str, Any]:
    """What agreement was measured on and against."""
    return {
        "images": len(data.val),
        "held_back": not set(data.train) & set(data.val),
        "confidence": evaluated.get("confidence"),
        "teacher_boxes": evaluated.get("teacher_boxes", {}),
    }


def _average(stages: Mapping[str, Mapping[str, Any]], chosen: str) -> dict[str, Any] | None:
    """The mean of the weights before and after training, beside what it is the mean of; None where there is no figure."""
    measured = stages.get("evaluate averaged", {})
    name, found = yardstick(measured)
    if found is None:
        return None
    return {
        "judged_by": name,
        "averaged": found,
        "map50": measured["map50"],
        "trained": yardstick(stages["evaluate trained"])[1],
        "taken": chosen == "averaged",
    }


def yardstick(evaluated: Mapping[str, Any]) -> tuple[str, float | None]:
    """What a network is judged by, given what its evaluation left: mAP50-95, or without labels agreement; and its figure.

    That is None where there is neither: nothing was evaluated, or the teacher sees nothing.
    """
    if evaluated.get("map50_95") is not None:
        return "mAP50-95", evaluated["map50_95"]
    return "agreement with the teacher", evaluated.get("agreement50_95")


def _models(stages: Mapping[str, Mapping[str, Any]], chosen: str, trained: bool) -> dict[str, dict[str, Any]]:
    """A row per network. The student's is that of student.pt, whichever network that is."""
    cost = stages["measure"]
    models = {}
    for name in ("teacher", "pruned", "repaired"):
        quality = stages.get(f"evaluate {name}")
        if quality is not None:
            models[name] = _row(quality, cost["teacher" if name == "teacher" else "student"], f"{name}.pt")
    if trained:
        models["student"] = _row(stages[f"evaluate {chosen}"], cost["student"], "student.pt")
    return models


def _row(quality: Mapping[str, Any], cost: Mapping[str, Any], file: str) -> dict[str, Any]:
    return {**{key: quality.get(key) for key in QUALITY}, **cost, "file": file}


def figures(results: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison keeps of a run: what training came to, also where the run has chosen the network before it."""
    models, trained, schedule = results["models"], results["trained"], results["schedule"]
    mean = results.get("average")  # also absent where an earlier version made the run
    if mean is not None and mean["averaged"] > trained["map50_95"]:
        trained = {"map50_95": mean["averaged"], "map50": mean["map50"]}
    start = models.get("repaired") or models["pruned"]
    per_epoch = schedule["steps"] / schedule["epochs"]
    return {
        "lr": schedule["lr"],
        "start": start["map50_95"],
        "map50_95": trained["map50_95"],
        "map50": trained["map50"],
        "labels": results["recipe"]["distill"]["labels"] > 0,
        "history": [row.get("map50_95") for row in results["history"]],
        "seconds_per_step": median(results["epoch_seconds"]) / per_epoch,
        "schedule": {key: schedule[key] for key in ("epochs", "steps", "batch")},
    }


def about(results: Mapping[str, Any]) -> dict[str, Any]:
    """What the runs have in common."""
    keys = ("model", "data", "imgsz", "device", "versions")
    models = results["models"]
    cost = {
        name: {key: models[name][key] for key in ("map50_95", "gflops", "params")} for name in ("teacher", "pruned")
    }
    return {**{key: results[key] for key in keys}, **cost}
