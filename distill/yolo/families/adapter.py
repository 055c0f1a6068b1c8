"""What `prune` has to know about a YOLO: pass `YOLO_ADAPTER` as `adapter=`. It changes nothing for other models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from prune import Adapter

IN_TRAINING = ("proto.semseg", "cv4_sigma", "one2one_cv4_sigma")  # parts of heads that are not deployed
UNUSED = 1e-3  # of their FLOPs: not 0, for a cost is told by the FLOPs that it saves


def expose(model: nn.Module) -> None:
    """Let detection heads return what their convolutions compute, as they do in train mode.

    That flag of the head alone is switched, and of what has a part that only training uses: every BatchNorm stays in eval
    mode.
    """
    for module in model.modules():
        # A head has classes, levels and strides.
        if all(hasattr(module, name) for name in ("nc", "nl", "stride")) or hasattr(module, "semseg"):
            module.training = True


def outputs(returned: Any) -> Any:
    """All that a detector returns but `feats`: those are a head's inputs, handed through."""
    if isinstance(returned, Mapping):
        handed_through = "maps" in returned or {"boxes", "scores"} <= returned.keys()
        return {k: outputs(v) for k, v in returned.items() if not (handed_through and k == "feats")}
    return returned


def shares(model: nn.Module) -> dict[str, float]:
    """Half of the FLOPs of a head with two branches: only one of them is deployed, and which one is not known.

    Prototypes of masks are made once for both, and what only training uses is not deployed.
    """
    found: dict[str, float] = {}
    for name, module in model.named_modules():
        if getattr(module, "one2one_cv2", None) is None:
            continue
        inside = dict(module.named_modules())
        found |= {f"{name}.{part}": UNUSED for part in IN_TRAINING if part in inside}
        found |= {f"{name}.proto": 1.0} if "proto" in inside else {}
        found[name] = 0.5
    return found


YOLO_ADAPTER = Adapter(expose=expose, outputs=outputs, widths=("c",), shares=shares)
