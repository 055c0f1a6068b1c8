"""The device that a run computes on."""

from __future__ import annotations

import torch

from distill.errors import DistillError
from distill.machine import parallel


def pick_device(name: str | torch.device) -> torch.device:
    """A device as users write it: "" (the first GPU, or the CPU), "cpu", "0", "cuda" or "cuda:1".

    Under torchrun, "" is a different GPU in each process. `ultralytics.utils.torch_utils.select_device` is not used
    because it changes the number of threads of the whole process.

    Raises:
        DistillError: this machine does not have the device, or another process of torchrun uses it.
    """
    text = str(name).strip().lower()
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if text in ("", "cuda"):
        text = f"cuda:{parallel.local_rank()}" if count or text else "cpu"
    kind, _, index = (f"cuda:{text}" if text.isdigit() else text).partition(":")
    if kind == "cpu":
        return torch.device(kind)
    if kind == "mps":
        raise DistillError("device 'mps' has no float64, in which the cut is verified and repaired: use device=cpu")
    if kind != "cuda" or not index.isdigit():
        several = "; several GPUs train together under torchrun" if "," in text else ""
        raise DistillError(f"device '{name}' does not exist: use cpu, a GPU's number such as 0, or nothing{several}")
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
    """Whether training uses bfloat16 there. It has float32's range, so losses need no scaling."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def loaders() -> int:
    """How many processes load images for a GPU: as many as PyTorch takes threads, which OMP_NUM_THREADS sets; 8 at most."""
    return min(8, torch.get_num_threads())
