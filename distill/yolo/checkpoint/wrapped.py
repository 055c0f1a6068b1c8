"""Networks that were saved inside of something else: what it is, and the line of Python that takes it off."""

from __future__ import annotations

from pathlib import Path

from distill.errors import DistillError
from distill.machine.words import printable
from distill.yolo.checkpoint.archive import again

_NETWORK = "c = c if isinstance(c, dict) else {'model': c}; m = c.get('ema') or c['model']"
_SAME = "c.update(ema=None, model=m)"
_MASKS = (
    "[torch.nn.utils.prune.remove(x, n[:-5]) for x in m.modules() for n, _ in list(x.named_parameters(recurse=False)) "
    "if n.endswith('_orig')]"
)
_NORMS = "[torch.nn.utils.remove_weight_norm(x) for x in m.modules() if hasattr(x, 'weight_g')]"

# The start of a name in the pickle -> what the file holds, and what mends it between torch.load and torch.save.
_WRAPPERS: dict[str, tuple[str, str]] = {
    "torch.nn.parallel.": (
        "a network inside DataParallel or DistributedDataParallel",
        f"{_NETWORK}; c.update(ema=None, model=m.module)",
    ),
    "torch._dynamo.": (
        "a network inside torch.compile (OptimizedModule)",
        f"{_NETWORK}; c.update(ema=None, model=m._orig_mod)",
    ),
    "torch.nn.utils.prune.": (
        "a network with the masks of torch.nn.utils.prune, which has cut nothing yet",
        f"{_NETWORK}; {_MASKS}; {_SAME}",
    ),
    "torch.nn.utils.weight_norm.": (
        "a network with weight norm",
        f"{_NETWORK}; {_NORMS}; {_SAME}",
    ),
    "ultralytics.models.yolo.model.": (
        "ultralytics' YOLO object instead of a checkpoint (YOLO.save writes one)",
        "m = c.get('model') if isinstance(c, dict) else c; c = {'model': m.model}",
    ),
}
_QUANTIZED = (
    *("torch.qint", "torch.quint", "torch._utils._rebuild_qtensor"),
    *("torch.ao.", "torch.quantization.", "torch.nn.quantized.", "torch.nn.qat.", "torch.nn.intrinsic."),
)


def check_wrapped(path: Path, names: tuple[str, ...]) -> None:
    """Refuse a file by the names in its pickle if its network is inside of something, or is a quantized one.

    Raises:
        DistillError: it says what mends the file.
    """
    for start, (what, change) in _WRAPPERS.items():
        if any(name.startswith(start) for name in names):
            # torch.load imports the classes of the original YOLOv5, and of forks of it, from the folder where it runs.
            where = "in the folder of its project, " if any(name.startswith("models.") for name in names) else ""
            raise DistillError(f"{path} holds {what}: if you trust the file, {where}{again(path, change)}")
    if quantized := next((name for name in names if name.startswith(_QUANTIZED)), None):
        raise DistillError(
            f"{path} is quantized (it holds '{printable(quantized, 100)}'): prune the float checkpoint it came from"
        )
