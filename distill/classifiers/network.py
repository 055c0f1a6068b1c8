"""Runs a classifier, and gives losses its outputs in their own terms: logits, and the features before the last layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses.context import NECK, Outputs
from distill.training.points import capturing

GIVES = frozenset({"softmax"})  # what a classifier has of what a loss may need
_LAST = (nn.Linear, nn.Conv2d)


def head_of(model: nn.Module) -> str:
    """The path of the layer that gives the logits.

    Raises:
        DistillError: there is no single one.
    """
    named = model.pretrained_cfg.get("classifier")  # type: ignore[union-attr, operator]
    if isinstance(named, str):
        for path in (named, f"{named}.fc"):
            if isinstance(_module(model, path), _LAST):
                return path
    if isinstance(named, (tuple, list)):
        raise DistillError(f"the network has {len(named)} classifiers ({', '.join(named)}): only one is supported")
    layers = [path for path, module in model.named_modules() if isinstance(module, _LAST)]
    if not layers:
        raise DistillError("the network has no layer that gives logits: it is no classifier")
    return layers[-1]


def _module(model: nn.Module, path: str) -> nn.Module | None:
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def logits_of(output: Any) -> Tensor:
    """The logits (B, nc) of what a network returned: in training some give those of other heads beside them."""
    while not isinstance(output, Tensor):
        output = output[0]
    return output


def run(model: nn.Module, images: Tensor, points: Sequence[str] = ()) -> Outputs:
    """Run a classifier on images (B, 3, H, W), normalised as it takes them; `points` are captured beside the features."""
    entering: list[Tensor] = []
    hook = model.get_submodule(head_of(model)).register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    try:
        with capturing(model, [point for point in points if point != NECK]) as captured:
            logits = logits_of(model(images))
    finally:
        hook.remove()
    if len(entering) != 1:
        raise DistillError(
            f"the last layer '{head_of(model)}' runs {len(entering)} times in one pass: it must run once"
        )
    return Outputs((as_map(entering[0]),), logits[:, None], raw=logits, at=captured)


def as_map(feature: Tensor) -> Tensor:
    """Features before the last layer as (B, C, H, W): pooled ones have one position."""
    if feature.dim() == 3:  # tokens (B, N, C)
        return feature.transpose(1, 2)[..., None]
    return feature[..., None, None] if feature.dim() == 2 else feature


def run_as(own: Mapping[str, Any], student: Mapping[str, Any]) -> Callable[..., Outputs]:
    """`run`, for a teacher that takes images normalised otherwise than the student does. Both: from `upstream.input_of`."""
    mean, std, theirs, spread = (
        torch.tensor(config[name])[:, None, None] for config in (student, own) for name in ("mean", "std")
    )
    if torch.equal(mean, theirs) and torch.equal(std, spread):
        return run
    return partial(_renormalised, factor=std / spread, shift=(mean - theirs) / spread)


def _renormalised(
    model: nn.Module, images: Tensor, points: Sequence[str] = (), *, factor: Tensor, shift: Tensor
) -> Outputs:
    return run(model, images * factor.to(images.device) + shift.to(images.device), points)


def label_terms(model: nn.Module, outputs: Outputs, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """Cross-entropy of the labels, a mean per image."""
    return {"cls": F.cross_entropy(outputs.scores.flatten(0, 1), batch["cls"])}


def sensitivity(returned: Any) -> Tensor:
    """Noise on the logits, shaped by the metric of a softmax: a square root of diag(p) - p p^T.

    Its squared gradient is, in expectation, the Gauss-Newton diagonal of KL(original probabilities || changed).
    """
    logits = logits_of(returned).float()
    root = logits.detach().softmax(-1).sqrt()
    noise = torch.randn_like(logits)
    return (logits * root * (noise - root * (root * noise).sum(-1, keepdim=True))).sum()
