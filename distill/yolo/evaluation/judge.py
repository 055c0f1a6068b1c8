"""How good the networks of one data set are: mAP, or without labels their agreement with the teacher."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import nn

from distill.machine.console import Console
from distill.results.figures import Evaluation
from distill.yolo.data.dataset import DataSet
from distill.yolo.evaluation import agreement
from distill.yolo.evaluation.agreement import CONFIDENCE, Reference
from distill.yolo.evaluation.evaluate import KEPT, Boxes, EvalSettings, detect, evaluate


class Judge:
    """Measures networks on the val images, each as the others.

    Args:
        teacher: gives the network that others should agree with; called once, if there are no labels.
        data: the images.
        settings: how networks are shown them.
        console: shows bars and figures.
    """

    def __init__(
        self, teacher: Callable[[], nn.Module], data: DataSet, settings: EvalSettings, console: Console
    ) -> None:
        self._teacher, self.data, self.settings, self.console = teacher, data, settings, console

    def evaluate(self, network: nn.Module, seen: Boxes | None = None) -> Evaluation:
        """Measure the mAP of a network; without labels its agreement with the teacher.

        `seen` gets the boxes on each image: see `distill.yolo.evaluation.evaluate.evaluate`.
        """
        if self.data.labelled:
            with self.console.bar("evaluate", len(self.data.val), "images") as bar:
                metrics = evaluate(network, self.data, self.settings, bar=bar, seen=seen)
            return self._told(Evaluation(**vars(metrics)))
        reference, measured = self.reference, agreement.NONE
        if reference.boxes:
            with self.console.bar("evaluate", len(self.data.val), "images") as bar:
                measured = agreement.measure(network, reference, bar=bar, seen=seen)
        found = Evaluation(None, None, None, **vars(measured), teacher_boxes=reference.boxes, confidence=CONFIDENCE)
        return self._told(found)

    def look(self, network: nn.Module, title: str) -> Boxes:
        """The boxes on each image whose score is at least KEPT. `title`: of the bar."""
        with self.console.bar(title, len(self.data.val), "images") as bar:
            return detect(network, self.data, self.settings, bar=bar, least=KEPT)

    def _told(self, evaluation: Evaluation) -> Evaluation:
        if evaluation.figures:
            self.console.line(evaluation.figures)
        return evaluation

    @cached_property
    def reference(self) -> Reference:
        """The teacher's predictions on the held-back images."""
        with self.console.bar("teacher's boxes", len(self.data.val), "images") as bar:
            reference = agreement.predict_reference(self._teacher(), self.data, self.settings, bar=bar)
        if not reference.boxes:
            self.console.warn(
                f"the teacher sees nothing on the {len(self.data.val)} images of {self.data.path} that were held back, so "
                "there is no agreement to measure. Is it the right checkpoint, the right data, and imgsz the size it was "
                "trained at?"
            )
        return reference
