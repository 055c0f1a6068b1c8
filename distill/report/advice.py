"""What to do about a result that was not accepted, from what its run knows: each line names a key and a value to give it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from distill.report.curve_facts import command as curve_command
from distill.report.facts import SEED_SPREAD
from distill.report.format import apart
from distill.results.curve import CurveResults
from distill.results.figures import epoch_score
from distill.results.results import Results

EPOCHS = 50  # of distill.epochs by default
RISING = 0.002  # of mAP50-95 in the last quarter of the epochs: more than they move once training has ended
FEW_IMAGES = 128  # for repair; with fewer its equations fit these images rather than all


def advice(results: Results, run_dir: Path, curve: CurveResults | None = None) -> list[str]:
    """What would bring the student within `accept`, the cheapest first. Empty if it was accepted, or not judged.

    Args:
        results: of the run.
        run_dir: its folder, as the user would type it.
        curve: of the same network, that tells which budget would be accepted; None if it was not measured.
    """
    if results.accepted is not False or results.chosen == "teacher":
        return []
    lines = [_near_miss(results), *(rule(results) for rule in _RULES), _budget(results, run_dir, curve)]
    return [line for line in lines if line]


def _lost(results: Results) -> float:
    """How much lower than the teacher's the student's mAP50-95 is."""
    before, after = results.teacher.score, results.student.score
    assert before is not None and after is not None  # it was judged
    return before - after


def _near_miss(results: Results) -> str:
    short = _lost(results) - results.accept.map_drop
    if short > SEED_SPREAD:
        return ""
    return (
        f"The limit is missed by {apart(short, 0.0)[0]}. Two seeds of one training differ by about {SEED_SPREAD:g}, so another "
        "`seed=` may end on either side."
    )


def _epochs(results: Results) -> str:
    epochs = results.recipe["distill"]["epochs"]
    if not epochs:
        return f"Nothing was trained: `distill.epochs={EPOCHS}`."
    if risen := _risen(results.history):
        return f"Training was not over, {results.measure} rose by {risen:.3f} in the last quarter: `distill.epochs={2 * epochs}`."
    return f"Training was short, {epochs} epochs: `distill.epochs={EPOCHS}`." if epochs < EPOCHS // 2 else ""


def _risen(history: Sequence[Mapping[str, Any]]) -> float:
    """By how much mAP50-95 rose in the last quarter of the epochs; 0 if that is nothing worth a word."""
    scores = [score for row in history if (score := epoch_score(row)) is not None]
    if len(scores) < 4:
        return 0.0
    middle = 3 * len(scores) // 4
    risen = max(scores[middle:]) - max(scores[:middle])
    return risen if risen > RISING else 0.0


def _repair(results: Results) -> str:
    options, images = results.recipe["repair"], results.data.train_images + results.data.unlabelled_images
    if results.recipe["prune"] is None:
        return ""
    if options is None:
        return "The network was not repaired after the cut: `repair.images=256`."
    used = results.repair.images if results.repair else 0
    if used < images and used <= options["images"]:
        return f"Repair saw {used} of {images} training images: `repair.images={min(images, 4 * used)}`."
    if used < FEW_IMAGES:
        return f"Repair saw {used} images, which is few. Images without labels help it too: `unlabelled=FOLDER`."
    return ""


def _weakest(results: Results) -> str:
    """The class that accounts for most of what was lost."""
    before, after = results.teacher.per_class or {}, results.student.per_class or {}
    losses = {name: before[name] - after[name] for name in before if name in after}
    if len(losses) < 2:
        return ""
    name = max(losses, key=losses.__getitem__)
    if losses[name] * 2 <= sum(max(loss, 0.0) for loss in losses.values()):
        return ""
    return f"More than half of the loss is in one class, {name} (−{losses[name]:.3f}): more images of it help most."


_RULES: tuple[Callable[[Results], str], ...] = (_epochs, _repair, _weakest)


def _budget(results: Results, run_dir: Path, curve: CurveResults | None) -> str:
    """The budget that would be accepted, or the command that finds it."""
    options = results.recipe["prune"]
    if options is None:
        return ""
    if curve is None:
        return f"How much can be cut? `{curve_command(run_dir, results)}` measures it."
    if curve.kept is None:
        return "No budget of the curve below is accepted before training: keep more, or train longer."
    share = curve.share(curve.kept)
    if share <= results.student.gflops / results.teacher.gflops:
        return ""
    return (
        f"{share:.0%} of the FLOPs would be accepted before any training, by the curve below: "
        f"`prune.{curve.key}={curve.kept.budget:g}`."
    )
