"""Opens every hostile checkpoint, and thousands of damaged ones, each in a process with a limit of memory and of time.

python -m tests.bench.hostile [hostile.json] [number of damaged ones]

It prints and writes how many executed something, hung, died, opened, or were refused by other than one line, with the
largest memory and the longest time. A Linux machine is needed.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from tests.distill.yolo.hostile import MARKER, hostile_files
from tests.distill.yolo.originals import Original, network, tiny

SECONDS, MEMORY = 60, 2 * 2**30  # bytes, on top of what Python and torch take


def main(out: str = "hostile.json", damaged: str = "2000") -> None:
    torch.set_num_threads(1)
    checkpoint.load(_valid(Path(tempfile.mkdtemp()))[0])  # what is imported late is imported now
    files = hostile_files() | _damaged(int(damaged))
    results = {}
    for name, make in files.items():
        results[name] = _opened(make)
        if results[name]["end"] in ("hung", "died", "traceback") or results[name]["executed"]:
            print(name, results[name], flush=True)
    counts = Counter(result["end"] for result in results.values())
    slowest = max(results, key=lambda name: results[name]["seconds"])
    largest = max(results, key=lambda name: results[name]["memory_mb"])
    summary = {
        "files": len(files),
        "made by hand": len(hostile_files()),
        "executed": sum(result["executed"] for result in results.values()),
        **{end: counts[end] for end in ("hung", "died", "traceback", "refused", "opened")},
        "largest_memory_mb": results[largest]["memory_mb"],
        "largest": largest,
        "longest_seconds": results[slowest]["seconds"],
        "longest": slowest,
        "wrong": {n: r for n, r in results.items() if r["executed"] or r["end"] in ("hung", "died", "traceback")},
    }
    Path(out).write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1, ensure_ascii=False))


def _valid(folder: Path) -> list[Path]:
    """A checkpoint of ultralytics, and one of the original YOLOv5."""
    torch.save({"model": tiny(), "train_args": {"imgsz": 64}}, folder / "best.pt")
    writer = Original()
    return [folder / "best.pt", writer.save(writer.model(network()), folder / "original.pt")]


def _damaged(count: int) -> dict[str, Callable[[Path], object]]:
    """Valid checkpoints of which some bytes, of the pickle or of the whole file, are others."""
    sources = _valid(Path(tempfile.mkdtemp()))
    return {
        f"damaged {i}": lambda path, i=i: _damage(sources[i % len(sources)], path, random.Random(i))
        for i in range(count)
    }


def _damage(source: Path, path: Path, rng: random.Random) -> None:
    if rng.random() < 0.3:
        data = bytearray(source.read_bytes())
        _scatter(data, rng)
        path.write_bytes(data)
        return
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = bytearray(old.read(name))
            if name.endswith("data.pkl"):
                _scatter(data, rng)
            new.writestr(name, bytes(data))


def _scatter(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.randint(1, 8)):
        place = rng.randrange(len(data))
        kind = rng.random()
        if kind < 0.6:
            data[place] = rng.randrange(256)
        elif kind < 0.8:
            other, length = rng.randrange(len(data)), rng.randint(1, 40)
            data[place : place + length] = data[other : other + length]
        else:
            del data[place : place + rng.randint(1, 20)]


def _opened(make: Callable[[Path], object]) -> dict[str, Any]:
    """How a process ends that opens the file: its end, whether something was executed, memory and time."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "best.pt"
        make(path)
        (read, write), start = os.pipe(), time.perf_counter()
        child = os.fork()
        if not child:
            os.close(read)
            _child(path, write)
        os.close(write)
        signal.signal(signal.SIGALRM, lambda *_: os.kill(child, signal.SIGKILL))
        signal.alarm(SECONDS)
        with os.fdopen(read, "rb") as pipe:
            said = pipe.read()
        _, status = os.waitpid(child, 0)
        signal.alarm(0)
        result = json.loads(said) if said else {"end": "died", "text": f"status {status}", "memory_mb": 0}
        seconds = round(time.perf_counter() - start, 2)
        if not said and seconds >= SECONDS:
            result["end"] = "hung"
        return {**result, "executed": (Path(folder) / MARKER).exists(), "seconds": seconds}


def _child(path: Path, write: int) -> None:
    before = _memory("VmRSS")
    limit = _memory("VmSize") + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    try:
        checkpoint.load(path)
        end, text = "opened", ""
    except DistillError as error:
        text = str(error)
        plain = text.isprintable() and len(text) < 2000 and text.startswith(str(path))
        end = "refused" if plain else "traceback"
    except BaseException as error:  # noqa: BLE001  each is a finding
        end, text = "traceback", f"{type(error).__name__}: {error}"[:300]
    peak = (_memory("VmHWM") - before) // 2**20
    os.write(write, json.dumps({"end": end, "text": text[:400], "memory_mb": peak}).encode())
    os._exit(0)


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


if __name__ == "__main__":
    main(*sys.argv[1:])
