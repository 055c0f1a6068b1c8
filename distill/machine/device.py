"""Where a run computes."""

from __future__ import annotations

import torch

from distill.errors import DistillError
from distill.machine import parallel


def pick_device(name: str | torch.device) -> torch.device:
    """A device as users write it: "" (the first GPU, or the CPU), "cpu", "0", "cuda" or "cuda:1".

    Under torchrun, "" is another GPU for each process; no two share one.

    `ultralytics.utils.torch_utils.select_device` would also change the number of threads of the whole process.

    Raises:
        DistillError: this machine does not have it, or another process of torchrun has it.
    """
    text = str(name).strip().lower()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text in ("", "cuda"):
        text = f"cuda:{parallel.local_rank()}" if count or text else "cpu"
    kind, _, index = (f"cuda:{text}" if text.isdigit() else text).partition(":")
    if kind == "cpu":
        return torch.device(kind)
    if kind == "mps":
        raise DistillError(
            "device 'mps': the proof and repair compute in float64, which it does not have: use device=cpu"
        )
    if kind != "cuda" or not index.isdigit():
        several = "; several GPUs train together under torchrun" if "," in text else ""
        raise DistillError(f"device '{name}' is not known here: use cpu, a GPU's number such as 0, or nothing{several}")
    if parallel.world() > 1 and (int(index) != parallel.local_rank() or int(index) >= count):
        raise DistillError(
            f"device '{name}': each process needs a GPU of its own, and this machine has {count or 'none'}: leave device "
            "empty and start as many processes as there are GPUs, or use device=cpu"
        )
    if int(index) >= count:
        has = f"{count or 'no'} CUDA devices that PyTorch can use"
        raise DistillError(f"device '{name}': this machine has {has}: leave device empty, or use device=cpu")
    return torch.device(kind, int(index))


def in_bfloat16(device: torch.device) -> bool:
    """Whether training there is in bfloat16. It has float32's range: no scaled losses, and no model downloaded to try."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
