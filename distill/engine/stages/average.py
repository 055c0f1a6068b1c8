"""The mean of the weights before and after training (WiSE-FT, Wortsman et al., CVPR 2022)."""

from __future__ import annotations

import torch

from distill.engine.session import Session
from distill.engine.stage import Nothing, Stage
from distill.engine.stages.tune import TUNE
from distill.recipe.schema import Recipe
from distill.results import networks


def _work(session: Session) -> Nothing:
    # Training began from other BatchNorm statistics, and weights for them, that compute what the repaired network does.
    before, after = session.training_start()[0].model.cpu().state_dict(), session.load(networks.TRAINED)
    with torch.no_grad():
        for name, value in after.model.state_dict().items():
            if value.is_floating_point():
                value.lerp_(before[name], 0.5)
    session.save(after, networks.AVERAGED, session.plan)
    return Nothing()


def _when(recipe: Recipe) -> bool:
    return recipe.distill.epochs > 0 and recipe.repair is not None


def _applies(session: Session) -> bool:
    """If BatchNorm keeps its statistics, a high rate leaves noise in the weights, and the mean has half of it.

    With batch statistics there was nothing to gain, and the mean of two networks' statistics belongs to neither.
    """
    tuning = TUNE.recorded(session)
    return tuning is not None and tuning.freeze_bn


AVERAGE = Stage("average", Nothing, _work, reads=("distill",), makes=networks.AVERAGED, when=_when, applies=_applies)
