"""Several processes that train one network together, as `torchrun` starts them. In one process nothing here does anything.

The first process leads: it does the whole run, and it alone writes. The others follow through the same code, take part in
what is trained, and wait for the rest to be in the run folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from distill.errors import DistillError


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def rank() -> int:
    """Which of them this one is, from 0."""
    return int(os.environ.get("RANK") or 0) if world() > 1 else 0


def local_rank() -> int:
    """Which of those on this machine this one is, from 0."""
    return int(os.environ.get("LOCAL_RANK") or 0) if world() > 1 else 0


def leads() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def refuse(what: str) -> None:
    """Raise where there are several processes: each would take the other's run folder for another run's.

    Raises:
        DistillError: with `what`, the thing that one process does.
    """
    if world() > 1:
        raise DistillError(f"{what} runs in one process: start it without torchrun (WORLD_SIZE is above 1)")


def share(batches: Mapping[str, int | None]) -> None:
    """See that the processes can share each batch evenly.

    Args:
        batches: key of the recipe -> images; None where it is not given.

    Raises:
        DistillError: the first that cannot be shared.
    """
    for name, batch in batches.items():
        if batch is not None and batch % world():
            least = -(-batch // world()) * world()
            raise DistillError(f"{name}={batch} cannot be shared by {world()} processes: give {name}={least}")


@contextmanager
def joined() -> Iterator[None]:
    """The process group, for as long as a run takes."""
    if world() == 1:
        yield
        return
    import torch
    import torch.distributed as dist

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, timeout=timedelta(days=7))  # the leader prunes and repairs while others wait
    try:
        yield
    finally:
        dist.destroy_process_group()


def agree(value: Any = None) -> Any:
    """The leader's value, in every process; each waits for it.

    Raises:
        DistillError: the leader has ended.
    """
    if world() == 1:
        return value
    import torch.distributed as dist

    held = [value]
    try:
        dist.broadcast_object_list(held, 0)
        # A broadcast does not wait for those that it is for.
        dist.monitored_barrier() if dist.get_backend() == "gloo" else dist.barrier()
    except RuntimeError:
        raise DistillError(f"process {rank()} of {world()} was left alone: another one has ended") from None
    return held[0]
