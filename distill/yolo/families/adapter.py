"""What `prune` has to know about a YOLO: pass `YOLO_ADAPTER` as `adapter=`. It changes nothing for other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prune import Adapter


def expose(model: nn.Module) -> None:
    """Let detection heads return what their convolutions compute, as they do in train mode.

    That flag of the head alone is switched: its children, and every BatchNorm, stay in eval mode.
    """
    for module in model.modules():
        if all(hasattr(module, name) for name in ("nc", "nl", "stride")):  # classes, levels and strides
            module.training = True


def outputs(returned: Any) -> Any:
    """All that a detector returns but `feats`: those are a head's inputs, handed through."""
    if isinstance(returned, Mapping):
        handed_through = "maps" in returned or {"boxes", "scores"} <= returned.keys()
        return {k: outputs(v) for k, v in returned.items() if not (handed_through and k == "feats")}
    return returned


def shares(model: nn.Module) -> dict[str, float]:
    """Half of the FLOPs of a head with two branches: only one of them is deployed, and which one is not known."""
    named = model.named_modules()
    return {name: 0.5 for name, module in named if getattr(module, "one2one_cv2", None) is not None}


YOLO_ADAPTER = Adapter(expose=expose, outputs=outputs, widths=("c",), shares=shares)
