"""Several processes that train one network together, as `torchrun` starts them. With one process, nothing here acts.

The first process is the leader: it does the whole run, and only it writes. The others go through the same code, train
with it, and wait for its other results to appear in the run folder.
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
    """The number of this process, from 0."""
    return int(os.environ.get("RANK") or 0) if world() > 1 else 0


def local_rank() -> int:
    """The number of this process on this machine, from 0."""
    return int(os.environ.get("LOCAL_RANK") or 0) if world() > 1 else 0


def is_leader() -> bool:
    """Whether this process is the leader, the one that writes."""
    return rank() == 0


def require_single(what: str) -> None:
    """Refuse several processes: each would take the run folder of another for a different run's.

    Raises:
        DistillError: there are several; the message names `what`.
    """
    if world() > 1:
        raise DistillError(f"{what} runs in one process: start it without torchrun (WORLD_SIZE is above 1)")


def check_divisible(batches: Mapping[str, int | None]) -> None:
    """Check that the processes can share each batch evenly: key of the recipe -> images, None if it is not set.

    Raises:
        DistillError: the first batch that they cannot.
    """
    for name, batch in batches.items():
        if batch is not None and batch % world():
            least = -(-batch // world()) * world()
            raise DistillError(f"{name}={batch} cannot be shared by {world()} processes: give {name}={least}")


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes into one group while the body runs."""
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


def broadcast(value: Any = None) -> Any:
    """The leader's value, in every process; each waits for it.

    Raises:
        DistillError: another process has ended.
    """
    if world() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    try:
        dist.broadcast_object_list(values, 0)
        # A broadcast returns before the others have received it.
        dist.monitored_barrier() if dist.get_backend() == "gloo" else dist.barrier()
    except RuntimeError:
        raise DistillError(f"process {rank()} of {world()} was left alone: another one has ended") from None
    return values[0]
