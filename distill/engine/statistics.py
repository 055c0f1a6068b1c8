"""What all budgets of a curve share: the trace, the importance and the images of the uncut network, each made once."""

from __future__ import annotations

import time
from functools import cached_property

from torch import Tensor

import prune
from distill.engine.kinds import kind_of
from distill.engine.planning import calibration_images, importance_of, trace
from distill.engine.preflight import Preflight
from distill.machine.console import Console


class Statistics:
    """Statistics of a checked recipe's network, made when they are asked for.

    Args:
        checked: a recipe with a checkpoint, images and a section `prune`.
        console: shows progress.

    Attributes:
        model: the uncut network, on its device.
        seconds: that the statistics took.
    """

    def __init__(self, checked: Preflight, console: Console) -> None:
        assert checked.teacher is not None and checked.data is not None and checked.recipe.prune is not None
        self._recipe, self._cut, self._data = checked.recipe, checked.recipe.prune, checked.data
        self._kind = kind_of(checked.recipe)
        self._teacher, self._console = checked.teacher, console
        self.model = checked.teacher.model.to(checked.device)
        self.seconds = 0.0

    @cached_property
    def graph(self) -> prune.ChannelGraph:
        """The trace."""
        return trace(self._kind, self.model, self._recipe.size)

    @cached_property
    def scores(self) -> prune.Importance:
        """What each channel costs."""
        start = time.monotonic()
        scores = prune.score(
            self.graph,
            importance_of(self._cut.importance),
            batches=self._images(self._cut.images),
            sensitivity=self._kind.sensitivity(self.model),
            seed=self._recipe.seed,
            progress=self._console.track,
        )
        self.seconds += time.monotonic() - start
        return scores

    @cached_property
    def images(self) -> Tensor | None:
        """What repair sees; None without repair."""
        return self._images(self._recipe.repair.images) if self._recipe.repair is not None else None

    @cached_property
    def weights(self) -> prune.Weights | None:
        """What repair weighs positions by, for every plan of the network; None without repair."""
        if self.images is None:
            return None
        start = time.monotonic()
        weights = prune.repair_weights(
            self.model,
            prune.keep_all(self.graph),
            self.images,
            sensitivity=self._kind.sensitivity(self.model),
            seed=self._recipe.seed,
            progress=self._console.track,
            adapter=self._kind.adapter,
        )
        self.seconds += time.monotonic() - start
        return weights

    def _images(self, count: int) -> Tensor:
        return calibration_images(self._recipe, self._teacher, self._data, count)
