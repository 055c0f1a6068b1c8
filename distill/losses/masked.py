"""A loss on features that learns: the student's feature, half blotted out, must suffice to make the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from distill.errors import DistillError
from distill.losses.base import LossModule, Networks
from distill.losses.context import LossContext


class FeatureMGD(LossModule):
    """Squared error of the teacher's feature as made from a part of the student's (masked generative distillation).

    Positions of the student's feature s are blotted out at random, all channels of one together, and two convolutions
    that train beside the student make the teacher's feature t from the rest. Per level,

        L = mean (conv(relu(conv(s · m))) − t)²,   m = 0 with probability `mask`, else 1

    and the mean over levels. It asks for what the feature says rather than for the feature itself, so it is not 0 for a
    student that equals its teacher. As the teacher's features are, so large is the value: mind the weight.

    The mask is drawn from torch's global generator, so that it is another in each batch; the convolutions, 3x3 with
    C channels in and out, begin the same in every run. They are 18 · C² parameters to a level that stay behind with the
    optimizer when the student is taken out.

    Args:
        mask: probability that a position is blotted out, at least 0 and below 1; 0.65 is the paper's for detectors of
            one stage.

    Raises:
        DistillError: a mask out of range; features of other levels than it was prepared for.

    Reference: Yang et al., Masked Generative Distillation, ECCV 2022.
    """

    def __init__(self, mask: float = 0.65) -> None:
        super().__init__()
        if not 0 <= mask < 1:
            raise DistillError(f"loss 'feature_mgd': mask is at least 0 and below 1, not {mask}")
        self.mask = mask
        self.generators = nn.ModuleList()

    def setup(self, networks: Networks) -> None:
        """Make the convolutions of each level."""
        # From a generator of its own: what a run drew before, which a resumed run did not, changes nothing here.
        random = torch.Generator().manual_seed(0)
        self.generators = nn.ModuleList(
            nn.Sequential(_convolution(count, random), nn.ReLU(), _convolution(count, random))
            for count in networks.channels
        )

    def forward(self, ctx: LossContext) -> Tensor:
        """The loss of a batch; reads `features("neck")`, pairs of (B, C, H, W)."""
        pairs = ctx.features()
        if len(self.generators) != len(pairs):
            raise DistillError(
                f"loss 'feature_mgd' is set up for {len(self.generators)} levels, not {len(pairs)}: call setup(networks)"
            )
        levels = []
        for generate, (student, teacher) in zip(self.generators, pairs, strict=True):
            seen = torch.rand_like(student[:, :1]) >= self.mask  # (B, 1, H, W)
            levels.append(F.mse_loss(generate(student * seen), teacher))
        return torch.stack(levels).mean()


def _convolution(channels: int, random: torch.Generator) -> nn.Module:
    """A 3x3 convolution with the weights that torch would give it, but drawn from `random`."""
    made = skip_init(nn.Conv2d, channels, channels, 3, padding=1)
    bound = (9 * channels) ** -0.5
    for parameter in made.parameters():
        nn.init.uniform_(parameter, -bound, bound, random)
    return made
