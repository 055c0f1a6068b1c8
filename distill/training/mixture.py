"""Images with labels and images without, and how many of each make a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

MAX_RATIO = 3.0  # images without labels to each labelled one in a batch, unless a ratio is given


@dataclass(frozen=True)
class Mixture:
    """Images of both kinds.

    An epoch has as many batches as it takes to see every image of both kinds at least once. The kind that is through first
    begins anew.
    """

    with_labels: int
    without: int
    # Images without labels to each labelled one; None: as there are, at most MAX_RATIO. With 0, batches are of labelled
    # images alone, and as many as with None: so the same training is compared with and without the others.
    ratio: float | None = None

    def split(self, batch: int, processes: int = 1) -> tuple[int, int]:
        """How many images of a batch have labels, and how many have none; the same in each process, which has two or more."""
        if self.ratio == 0:
            return batch, 0
        share = batch // processes
        ratio = min(MAX_RATIO, self.without / self.with_labels) if self.ratio is None else self.ratio
        labelled = processes * min(share - 1, max(1, round(share / (1 + ratio))))
        return labelled, batch - labelled

    def steps(self, batch: int, processes: int = 1) -> int:
        """Batches in an epoch."""
        if self.ratio == 0:
            return replace(self, ratio=None).steps(batch, processes)
        labelled, rest = self.split(batch, processes)
        return max(math.ceil(self.with_labels / labelled), math.ceil(self.without / rest))
