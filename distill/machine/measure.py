"""The costs of a network: parameters, floating-point operations, milliseconds, megabytes."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from distill.machine.progress import ProgressCallback


def count_params(model: nn.Module) -> int:
    """Number of parameters, including frozen ones; BatchNorm statistics are buffers and do not count."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_gflops(model: nn.Module, imgsz: int) -> float:
    """Floating-point operations of one forward pass in evaluation mode, in billions.

    One multiply-add is **two** operations. Convolutions and matrix products (linear layers, attention) count; BatchNorm,
    activations, pooling and the decoding of boxes do not. So fused and unfused networks cost the same, and the figure
    equals the one that ultralytics prints for a fused model.

    The model takes a batch of one RGB image of `imgsz` pixels a side; a copy of it runs.
    """
    parameter = next(model.parameters())
    image = torch.zeros(1, 3, imgsz, imgsz, device=parameter.device, dtype=parameter.dtype)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        copy.deepcopy(model).eval()(image)
    return counter.get_total_flops() / 1e9


def measure_latency(
    models: Mapping[str, nn.Module],
    imgsz: int,
    device: str | torch.device = "cpu",
    runs: int = 50,
    warmup: int = 5,
    progress: ProgressCallback | None = None,
) -> dict[str, tuple[float, float, float]]:
    """Time the forward pass of several networks at batch 1, side by side.

    The networks take turns, in another order each round, so a machine that grows hot or busy slows all of them alike.
    Compare only figures of one call. Pass networks with BatchNorm fused into the convolutions, as they are deployed. The
    time does not include copying to the device and box suppression. Each network runs in the memory format, contiguous
    or channels last, that is faster for it in the warm-up.

    Args:
        models: networks by name; copies are timed, so they are not moved or changed.
        imgsz: side of the square RGB input in pixels.
        device: the device to run on; CUDA is synchronised around each pass.
        runs: timed passes per network.
        warmup: passes per network before the clock counts.
        progress: called as `progress(iterable, label, total, unit)`; returns the items.

    Returns:
        The median, 10th and 90th percentile per name, in milliseconds.
    """
    device = torch.device(device)
    image = torch.rand(1, 3, imgsz, imgsz, generator=torch.Generator().manual_seed(0)).to(device)
    ready = {
        name: _faster_format(copy.deepcopy(model).to(device).float().eval(), image, warmup)
        for name, model in models.items()
    }
    with torch.inference_mode():
        passes = {name: partial(_forward, model, image) for name, model in ready.items()}
        return time_in_turns(passes, runs, warmup, "latency", progress)


def time_in_turns(
    passes: Mapping[str, Callable[[], object]],
    runs: int,
    warmup: int,
    label: str,
    progress: ProgressCallback | None = None,
) -> dict[str, tuple[float, float, float]]:
    """Time several functions side by side, in another order each round.

    Args:
        passes: functions by name; each returns when its work is done.
        runs: timed calls of each.
        warmup: calls of each before the clock counts.
        label: what is timed, for `progress`.
        progress: called as `progress(iterable, label, total, unit)`; returns the items.

    Returns:
        The median, 10th and 90th percentile per name, in milliseconds.
    """
    names = list(passes)
    times: dict[str, list[float]] = {name: [] for name in names}
    rounds = range(warmup + runs)
    for number in progress(rounds, label, len(rounds), "rounds") if progress else rounds:
        first = number % len(names)
        for name in names[first:] + names[:first]:
            elapsed_ms = _time(passes[name])
            if number >= warmup:
                times[name].append(elapsed_ms)
    shares = torch.tensor([0.5, 0.1, 0.9])
    quantiles = {name: torch.tensor(values).quantile(shares).tolist() for name, values in times.items()}
    return {name: tuple(values) for name, values in quantiles.items()}


def _faster_format(model: nn.Module, image: torch.Tensor, runs: int) -> nn.Module:
    """`model` in the memory format in which its median pass is shorter."""
    median_ms = {}
    with torch.inference_mode():
        for layout in (torch.contiguous_format, torch.channels_last):
            model.to(memory_format=layout)
            median_ms[layout] = statistics.median(_time(partial(_forward, model, image)) for _ in range(max(runs, 1)))
    return model.to(memory_format=min(median_ms, key=lambda layout: median_ms[layout]))


def file_size_mb(path: str | Path) -> float:
    """Size of a file, or of everything in a folder, in megabytes of 10^6 bytes."""
    path = Path(path)
    files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
    if not files:
        raise FileNotFoundError(f"{path}: nothing there to measure")
    return sum(file.stat().st_size for file in files) / 1e6


def _forward(model: nn.Module, image: torch.Tensor) -> None:
    """One whole pass: on a GPU nothing is left of it in the queue, so the next one starts from an empty one."""
    model(image)
    if image.is_cuda:
        torch.cuda.synchronize(image.device)


def _time(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3
