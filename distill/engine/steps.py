"""Steps that more than one command takes: planning a cut, measuring mAP or agreement."""

from __future__ import annotations

import torch
from torch import Tensor

import prune
from distill.engine.preflight import budget
from distill.machine.console import Console
from distill.recipe.schema import Recipe
from distill.yolo.checkpoint.detector import Detector
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import calibration
from distill.yolo.evaluation import agreement
from distill.yolo.evaluation.agreement import Agreement, Reference
from distill.yolo.evaluation.evaluate import EvalSettings, Metrics, evaluate
from distill.yolo.families.outputs import sensitivity_of
from distill.yolo.families.table import family_of, stride_of


def calibration_images(recipe: Recipe, teacher: Detector, data: DataSet, count: int) -> Tensor:
    """Training images as the network sees them in validation, framed in grey; the same ones whenever asked for.

    Validators pad even a square image by half a stride. A network that was mended without that border sees things in it.
    """
    by_area = family_of(teacher.model).area_resize
    frame = stride_of(teacher.model) // 2
    return calibration(data.train, count, recipe.imgsz, seed=recipe.seed, by_area=by_area, frame=frame)


def make_plan(
    recipe: Recipe, teacher: Detector, data: DataSet, device: torch.device, console: Console
) -> prune.PrunePlan:
    """Decide what to cut, from the weights or from what the outputs feel on training images. No labels are used.

    Raises:
        PruneError: the budget cannot be met.
    """
    wanted = recipe.prune
    model = teacher.model.to(device)
    images = calibration_images(recipe, teacher, data, wanted.images if wanted else 1)
    graph = prune.trace(model, torch.zeros(1, 3, recipe.imgsz, recipe.imgsz, device=device))
    if wanted is None:
        return prune.keep_all(graph)
    plan = prune.plan_in_rounds(
        graph,
        wanted.importance,
        images=images,
        rounds=wanted.rounds,
        sensitivity=sensitivity_of(model),
        seed=recipe.seed,
        progress=console.track,
        **budget(wanted),
    )
    model.cpu()
    console.line(describe(plan))
    return plan


def describe(plan: prune.PrunePlan) -> str:
    """A plan in one line."""
    flops, params = plan.flops_after / plan.flops_before, plan.params_after / plan.params_before
    before, after = (sum(getattr(group, side) for group in plan.groups) for side in ("before", "after"))
    return (
        f"{plan.flops_after / 1e9:.2f} of {plan.flops_before / 1e9:.2f} GFLOPs ({flops:.1%}), "
        f"{plan.params_after / 1e6:.2f} of {plan.params_before / 1e6:.2f} M parameters ({params:.1%}), "
        f"{after} of {before} channels"
    )


def evaluate_detector(detector: Detector, data: DataSet, settings: EvalSettings, console: Console) -> Metrics:
    """mAP on the val images, with a bar and the result on a line."""
    with console.bar("evaluate", len(data.val)) as bar:
        metrics = evaluate(detector.model, data, settings, bar=bar)
    console.line(f"mAP50-95 {metrics.map50_95:.3f}, mAP50 {metrics.map50:.3f}")
    return metrics


def predict_reference(teacher: Detector, data: DataSet, settings: EvalSettings, console: Console) -> Reference:
    """What the teacher sees on the held-back images, with a bar; a warning where that is nothing."""
    with console.bar("teacher's boxes", len(data.val)) as bar:
        seen = agreement.predict_reference(teacher.model, data, settings, bar=bar)
    if not seen.boxes:
        console.warn(
            f"the teacher sees nothing on the {len(data.val)} images of {data.path} that were held back, so there is no "
            "agreement to measure. Is it the right checkpoint, the right data, and imgsz the size it was trained at?"
        )
    return seen


def evaluate_agreement(detector: Detector, reference: Reference, console: Console) -> Agreement:
    """Agreement with the teacher on the held-back images, with a bar and the result on a line."""
    if not reference.boxes:
        return agreement.NONE
    with console.bar("evaluate", len(reference.data.val)) as bar:
        found = agreement.measure(detector.model, reference, bar=bar)
    console.line(f"agreement with the teacher 50-95 {found.agreement50_95:.3f}, 50 {found.agreement50:.3f}")
    return found
