"""The whole table of docs/results.md for data on which much is left to win: how far a cut network comes, in several ways.

    python -m tests.bench.ground ../shared/data                          # every row, into the folder ground/
    python -m tests.bench.ground ../shared/data --only crops6-50 --processes 9
    python -m tests.bench.ground ../shared/data --limit 60 --epochs 1 --seeds 1 repair.images=16    # does it run here?

Each row is a `distill compare` in a folder of its own. A row that is finished is not done again, and one that was stopped goes
on. Of each finished row a small JSON lies in ground/results: copy it to docs/results, and `make results` writes the page.
The checkpoints are looked for in `weights` beside the data folder.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml

from distill.machine.signals import interrupted_by_signals
from distill.report.summary import collect
from distill.yolo.data import dataset as datasets

ARMS = "ours,finetune,ours-unlabelled"
# Both have as many steps as training with the rest of the images has, and repair sees the rest too.
TENTH = (
    "alone=unlabelled.ratio=0",  # the same labels and teacher
    "labels-alone=unlabelled.ratio=0 distill.losses={}",
)
TOLD = re.compile(r"seed \d+")  # lines of a comparison that are about one of its runs


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    data: str
    model: str
    imgsz: int
    flops: float
    part: float = 1.0  # of the training images that have labels; the others are given without
    arms: str = ARMS
    own: tuple[str, ...] = ()


CROPS, BCCD, CORN = "crops6-yolov5n-320.pt", "bccd-yolov5nu-320.pt", "cornpest-yolov5n-416.pt"
ROWS = (
    Row("crops6-50", "crops6", CROPS, 320, 0.5),
    Row("crops6-70", "crops6", CROPS, 320, 0.7),
    Row("crops6-30", "crops6", CROPS, 320, 0.3),
    Row("crops6-tenth", "crops6", CROPS, 320, 0.5, part=0.1, arms="ours,alone,labels-alone", own=TENTH),
    Row("bccd-50", "bccd", BCCD, 320, 0.5),
    Row("cornpest-50", "cornpest", CORN, 416, 0.5),
)


def main(words: Sequence[str] | None = None) -> int:
    """Do the rows that are not finished. Returns the exit status: 1 if one has failed."""
    args = arguments(words)
    results = args.out / "results"
    rows = [row for row in ROWS if row.name in args.only and not (results / f"{row.name}.json").is_file()]
    at_once = max(1, min(len(rows), args.processes // 6))
    jobs = max(1, args.processes // at_once)
    print(f"{len(rows)} rows to do, {at_once} at a time with {jobs} trainings each", flush=True)
    children: list[subprocess.Popen[str]] = []
    failed = 0
    with interrupted_by_signals(), ThreadPoolExecutor(at_once) as pool:
        try:
            for done in as_completed([pool.submit(do, row, args, jobs, children) for row in rows]):
                failed += bool(done.result())
        finally:  # after Ctrl-C or `kill` too
            pool.shutdown(wait=False, cancel_futures=True)
            for child in children:
                child.terminate()
    return int(failed > 0)


def arguments(words: Sequence[str] | None) -> argparse.Namespace:
    """The command line, read."""
    on_gpu, cores = torch.cuda.is_available(), os.cpu_count() or 1
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the folder that holds crops6, bccd and cornpest")
    parser.add_argument("override", nargs="*", metavar="key=value", help="more keys of the recipe, for every row")
    parser.add_argument("--out", type=Path, default=Path("ground"))
    parser.add_argument("--weights", type=Path, help="the folder of the checkpoints")
    names = [row.name for row in ROWS]
    parser.add_argument("--only", default=names, type=lambda text: text.split(","), help=f"rows, of {','.join(names)}")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--recipe", default="half")
    parser.add_argument("--limit", type=int, help="take so many training images only, and as many of val")
    parser.add_argument(
        "--processes", type=int, default=cores if on_gpu else 1, help="trainings at a time, of all rows together"
    )
    args = parser.parse_intermixed_args(words)
    if unknown := set(args.only) - set(names):
        parser.error(f"no row {', '.join(sorted(unknown))}")
    args.out.mkdir(parents=True, exist_ok=True)
    return args


def do(row: Row, args: argparse.Namespace, jobs: int, children: list[subprocess.Popen[str]]) -> int:
    """One comparison, from the start or from where it was. Returns its exit status."""
    start, folder = time.monotonic(), args.out / row.name
    begun = (folder / "recipe.yaml").is_file()
    words = [*command(row, args), *(["--resume"] if begun else ["--out", str(folder)]), "--jobs", str(jobs)]
    words = [sys.executable, "-m", "distill", "compare", str(folder) if begun else args.recipe, *words]
    threads = max(1, (os.cpu_count() or 1) // args.processes)
    env = {"OMP_NUM_THREADS": str(threads), **os.environ}
    with (args.out / f"{row.name}.log").open("a", encoding="utf-8") as log:
        child = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        children.append(child)
        assert child.stdout is not None
        line = ""
        for line in child.stdout:
            log.write(line)
            log.flush()
            if TOLD.search(line) and (jobs == 1 or not line.startswith("==")):  # with one, these are all that there is
                say(row, start, line)
    status = child.wait()
    if status == 0:
        collect([folder], args.out / "results")
    say(row, start, "finished" if status == 0 else f"ended with exit status {status}: {line}")
    return status


def command(row: Row, args: argparse.Namespace) -> list[str]:
    """The words of `distill compare` behind the recipe."""
    weights = args.weights or args.data / ".." / "weights"
    data, rest = images(row, args)
    words = [f"model={(weights / row.model).resolve()}", f"data={data}", f"imgsz={row.imgsz}"]
    words += [f"prune.flops={row.flops}", f"distill.epochs={args.epochs}", *args.override]
    words += [f"unlabelled.images=[{rest}]"] if rest else []
    for way in row.own:
        words += ["--arm", way]
    return [*words, "--arms", row.arms, "--seeds", str(args.seeds)]


def images(row: Row, args: argparse.Namespace) -> tuple[Path, Path | None]:
    """The data.yaml of a row, and the list of its training images without labels, if it has some."""
    file = (args.data / row.data / "data.yaml").resolve()
    if row.part == 1 and args.limit is None:
        return file, None
    folder = (args.out / "data" / row.name).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    data = datasets.load(file)
    train = [data.train[each] for each in np.random.default_rng(0).permutation(len(data.train))[: args.limit]]
    count = round(len(train) * row.part)
    lists = {"train": train[:count], "rest": train[count:], "val": data.val[: args.limit]}
    for name, files in lists.items():
        (folder / f"{name}.txt").write_text("".join(f"{image}\n" for image in files))
    content = {"path": str(folder), "train": "train.txt", "val": "val.txt", "names": data.names}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return folder / "data.yaml", folder / "rest.txt" if lists["rest"] else None


_SAYING = threading.Lock()


def say(row: Row, start: float, text: str) -> None:
    """A line with the time since the row was begun."""
    with _SAYING:
        print(f"{time.monotonic() - start:6.0f} s  {row.name}: {text.strip()}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
