"""Kill a whole run with SIGKILL at moments spread over it, resume each, and compare with the run that was not killed.

    python -m tests.bench.kill                    # 30 moments, in the folder kill/
    python -m tests.bench.kill /data/kill 10      # elsewhere, at 10 moments

A resumed run must end with the same files, metrics.csv, weights and results (without times), and leave nothing unfinished
and nothing outside its folder. Moments are counted in seconds of the processor, which a busy machine does not move. What was
found goes to kill.json after each; started again, it goes on after the last. A quarter of an hour on one core.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import onnx
import psutil

from distill.machine.console import Console
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as datasets
from distill.yolo.training.train import train
from tests.distill.yolo.test_trainer import LONGER, tiny, write_images

ROOT = Path(__file__).parents[2]
RECIPE = """
model: {root}/best.pt
data: {root}/data/data.yaml
imgsz: 64
batch: 4
device: cpu
sparsify: {sparsify}
prune: {flops: 0.7, images: 4, round_to: 1}
repair: {images: 4, steps: 4}
distill: {distill}
latency: {runs: 2}
export: [onnx]
"""
GOLDEN = 0.618034  # its multiples, less whole parts, are spread over 0 to 1 however many there are
TIMES = ("seconds", "epoch_seconds", "latency_ms")  # in results.json
SAME = ("metrics.csv", "plan.json", "recipe.yaml")  # byte by byte; networks hold the date


def main(folder: str = "kill", moments: str = "30") -> int:
    root, count = Path(folder).absolute(), int(moments)
    file, whole = root / "kill.json", root / "whole"
    record = json.loads(file.read_text()) if file.is_file() else prepare(root)
    if "status" not in record:
        shutil.rmtree(whole, ignore_errors=True)
        child = psutil.Popen(**command(root, whole))
        while child.poll() is None:
            record["seconds"] = processor(child) or record["seconds"]
            if "start" not in record and (whole / "recipe.yaml").is_file():
                record["start"] = record["seconds"]
            time.sleep(0.02)
        record |= {"status": child.returncode, "outside": list(outside(root))}
        file.write_text(json.dumps(record, indent=1) + "\n")
    seconds, left = record["seconds"], record["outside"] or "nothing"
    print(f"a whole run: {seconds} s, status {record['status']}; outside its folder: {left}")
    for number in range(len(record["moments"]), count):
        at = record["start"] + (seconds - record["start"]) * (number * GOLDEN % 1)
        record["moments"].append(one(root, whole, round(at, 2)))
        file.write_text(json.dumps(record, indent=1) + "\n")
        print(*(f"{key} {value}" for key, value in record["moments"][-1].items()), sep=", ", flush=True)
    wrong = sum(bool(moment["wrong"]) for moment in record["moments"])
    print(f"{len(record['moments'])} kills, {len(record['moments']) - wrong} ended as the run that was not killed")
    return 1 if wrong or record["outside"] or record["status"] else 0


def prepare(
    root: Path,
    *,
    sparsify: str = "{epochs: 2}",
    distill: str = "{epochs: 3, losses: {score_bce: 2.0, box_iou: 1.0}}",
) -> dict[str, Any]:
    """Images, a teacher that has learned from them, and the recipe. Returns the record of what is found, still empty."""
    shutil.rmtree(root, ignore_errors=True)
    data = write_images(root / "data")
    options: dict[str, Any] = {"console": Console(quiet=True), "imgsz": 64, "device": "cpu"}
    taught = train(tiny(), datasets.load(data), LONGER, folder=root / "taught", **options)
    checkpoint.save(taught.model, root / "best.pt", names={0: "square", 1: "disc"}, imgsz=64)
    recipe = RECIPE.replace("{root}", str(root)).replace("{sparsify}", sparsify).replace("{distill}", distill)
    (root / "tiny.yaml").write_text(recipe)
    return {"moments": [], "seconds": 0.0}


def processor(child: psutil.Popen) -> float:
    """Seconds of the processor that a process has had; 0 if it has ended."""
    try:
        return sum(child.cpu_times()[:2])
    except psutil.Error:
        return 0.0


def one(root: Path, whole: Path, at: float) -> dict[str, Any]:
    """Kill a run after `at` seconds of the processor, resume it, and say what is not as in `whole`."""
    out = root / "killed"
    shutil.rmtree(out, ignore_errors=True)
    child = psutil.Popen(**command(root, out), stderr=subprocess.DEVNULL)
    while child.poll() is None and processor(child) < at:
        time.sleep(0.005)
    with suppress(psutil.NoSuchProcess):  # it was faster this time
        child.kill()
    killed = child.wait() != 0
    stages = list(json.loads((out / "stages.json").read_text())["stages"]) if (out / "stages.json").is_file() else []
    found: dict[str, Any] = {"at": at, "killed": killed, "after": (stages or [None])[-1]}
    found |= {"unfinished": len(list(out.rglob(".unfinished-*"))), "outside": list(outside(root))}
    begun = (out / "recipe.yaml").is_file()
    again = subprocess.run(**command(root, out, resume=begun), stderr=subprocess.PIPE, text=True, check=False)
    wrong = [again.stderr[-2000:]] if again.returncode else list(differences(whole, out))
    return {**found, "wrong": wrong + [f"outside: {name}" for name in outside(root)]}


def command(root: Path, out: Path, *, resume: bool = False) -> dict[str, Any]:
    """Arguments of `subprocess.run`: a run whose home and temporary folder are empty ones of its own in `root`/outside."""
    words = [str(out), "--resume"] if resume else [str(root / "tiny.yaml"), "--out", str(out)]
    places = {"HOME": "home", "TMPDIR": "tmp", "XDG_CACHE_HOME": "cache", "XDG_CONFIG_HOME": "config"}
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(("YOLO", "MPL", "TORCH", "ORT", "XDG"))
    }
    for name in places.values():
        (root / "outside" / name).mkdir(parents=True, exist_ok=True)
    env = kept | {key: str(root / "outside" / name) for key, name in places.items()}
    env |= {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [sys.executable, "-m", "distill", "run", *words, "--quiet"]
    return {"args": words, "env": env, "cwd": root / "outside", "stdout": subprocess.DEVNULL}


def outside(root: Path) -> Iterator[str]:
    """What lies in the home, the temporary folder and the working folder of `command`."""
    places = ("home", "tmp", "cache", "config")
    for file in sorted((root / "outside").rglob("*")):
        name = file.relative_to(root / "outside").as_posix()
        if name not in places:
            yield name


def differences(whole: Path, other: Path) -> Iterator[str]:
    """What two finished runs of one recipe do not have in common and should."""
    first, second = ({file.relative_to(out).as_posix() for file in out.rglob("*")} for out in (whole, other))
    yield from (f"missing: {name}" for name in sorted(first - second))
    yield from (f"too much: {name}" for name in sorted(second - first))
    for name in sorted(first & second):
        if content(whole / name) != content(other / name):
            yield f"differs: {name}"
    if "results.json" in first & second:
        results = [without_times(json.loads((out / "results.json").read_text())) for out in (whole, other)]
        for key in results[0]:
            if results[0][key] != results[1].get(key):
                yield f"results.json: {key}: {results[0][key]!r:.200} and {results[1].get(key)!r:.200}"


def content(file: Path) -> Any:
    """What has to be the same in a file of two runs."""
    if file.suffix == ".pt" and file.parent.name != "weights":  # a state holds times
        return [value.numpy().tobytes() for value in checkpoint.load(file).model.state_dict().values()]
    if file.suffix == ".onnx":
        network = onnx.load(file)
        del network.metadata_props[:]  # the date among them
        return network.SerializeToString()
    return file.read_bytes() if file.name in SAME else None


def without_times(data: Any) -> Any:
    """Plain data without what no two runs have in common."""
    if isinstance(data, dict):
        return {key: without_times(value) for key, value in data.items() if key not in (*TIMES, "path")}
    return (
        [without_times(value) for value in data] if isinstance(data, Sequence) and not isinstance(data, str) else data
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
