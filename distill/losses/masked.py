"""A loss on features that learns: the student's feature, partly masked, must suffice to make the teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from distill.errors import DistillError
from distill.losses.base import LossModule, Networks
from distill.losses.context import LossContext


def feature_mgd(student: Tensor, teacher: Tensor, generate: nn.Module, *, mask: float = 0.65) -> Tensor:
    """Squared error of the teacher's feature as `generate` makes it from a part of the student's.

        L = mean (generate(s · m) − t)²,   m = 0 with probability `mask`, else 1, for all channels of a position at once

    The mask comes from torch's global generator, so each batch has another.

    Args:
        student: features.
        teacher: the features to make.
        generate: layers that train beside the student, (B, C, H, W) to the teacher's shape.
        mask: probability that a position is masked, at least 0 and below 1.

    Shape: (B, C, H, W), (B, D, H, W) -> scalar.
    """
    visible = torch.rand_like(student[:, :1]) >= mask  # (B, 1, H, W)
    return F.mse_loss(generate(student * visible), teacher)


class FeatureMGD(LossModule):
    """Squared error of the teacher's feature as made from a part of the student's (masked generative distillation).

    `feature_mgd` with conv(relu(conv(s · m))) in place of `generate`, and the mean over levels and modules. It asks for
    what the feature says rather than for the feature itself, so it is not 0 for a student that equals its teacher. The
    value is as large as the teacher's features are: mind the weight.

    The convolutions, 3x3 with C channels in and out, start the same in every run. They are 18 · C² parameters to a
    feature, and stay behind with the optimizer when the student is taken out.

    Args:
        mask: probability that a position is masked; 0.65 is the paper's for detectors of one stage.

    Raises:
        DistillError: a mask out of range; other features than those it was set up for.

    Reference: Yang et al., Masked Generative Distillation, ECCV 2022.
    """

    reads = ("features",)

    def __init__(self, mask: float = 0.65) -> None:
        super().__init__()
        if not 0 <= mask < 1:
            raise DistillError(f"loss 'feature_mgd': mask is at least 0 and below 1, not {mask}")
        self.mask = mask
        self.generators = nn.ModuleList()

    def setup(self, networks: Networks) -> None:
        """Make the convolutions of each feature."""
        # A generator of its own: the start must not depend on what a run drew before, which a resumed run did not.
        random = torch.Generator().manual_seed(0)
        self.generators = nn.ModuleList(
            nn.Sequential(_convolution(count, random), nn.ReLU(), _convolution(count, random))
            for count in networks.channels
        )

    def forward(self, ctx: LossContext) -> Tensor:
        """The loss of a batch; reads `features()`, pairs of (B, C, H, W)."""
        pairs = ctx.features()
        if len(self.generators) != len(pairs):
            raise DistillError(
                f"loss 'feature_mgd' is set up for {len(self.generators)} features, not {len(pairs)}: call setup(networks)"
            )
        levels = zip(pairs, self.generators, strict=True)
        return torch.stack([feature_mgd(*pair, generate, mask=self.mask) for pair, generate in levels]).mean()


def _convolution(channels: int, random: torch.Generator) -> nn.Module:
    """A 3x3 convolution with the weights that torch would give it, but drawn from `random`."""
    convolution = skip_init(nn.Conv2d, channels, channels, 3, padding=1)
    bound = (9 * channels) ** -0.5
    for parameter in convolution.parameters():
        nn.init.uniform_(parameter, -bound, bound, random)
    return convolution


LOSSES = {"feature_mgd": FeatureMGD}
