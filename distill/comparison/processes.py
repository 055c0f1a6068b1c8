"""Runs side by side, each in a process of its own: for a GPU that one small network leaves idle, or a machine of many cores."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

from distill.comparison.runs import Planned, Runs
from distill.machine.console import Console
from distill.results.results import Results


def run_ahead(runs: Runs, chains: Sequence[Sequence[Planned]], jobs: int, console: Console) -> None:
    """Do runs in processes of their own; `Runs.run` finds them finished then. One that fails is left for it to do and to report.

    Args:
        runs: gives each run the stages that it shares with an earlier one.
        chains: of each the runs in order, one after the other, for a later one may take over stages of an earlier one.
        jobs: how many chains go on at a time.
        console: gets a line for each run that has ended.
    """
    children = _Children()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for chain in as_completed([pool.submit(_do, runs, chain, children, jobs) for chain in chains]):
                for line in chain.result():
                    console.line(line)
        finally:  # also after Ctrl-C: they end as it does, and can be resumed
            children.end()


class _Children:
    """The processes that are going on."""

    def __init__(self) -> None:
        self.ended = False
        self._going: set[subprocess.Popen[bytes]] = set()
        self._lock = threading.Lock()

    def run(self, words: Sequence[str], env: dict[str, str]) -> int | None:
        """Run a command to its end and return its exit status; None if no more are to be started."""
        with self._lock:
            if self.ended:
                return None
            # In a session of its own: after Ctrl-C in a terminal it is told to end once, not twice.
            child = subprocess.Popen(
                words,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._going.add(child)
        status = child.wait()
        self._going.discard(child)
        return status

    def end(self) -> None:
        """Tell all to end, and start no more."""
        with self._lock:
            self.ended = True
            for child in self._going:
                child.terminate()


def _do(runs: Runs, chain: Sequence[Planned], children: _Children, jobs: int) -> list[str]:
    """Do the runs of a chain that are not finished, and return a line for each."""
    # Each process takes its share of the cores; PyTorch would give all of them to every one.
    threads = str(max(1, (os.cpu_count() or 1) // jobs))
    env = os.environ | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", threads)}
    lines = []
    for planned in chain:
        if runs.begin(planned):
            start = time.monotonic()
            words = [sys.executable, "-m", "distill", "run", "--resume", str(planned.path), "--quiet"]
            status = children.run(words, env)
            if status is None:
                break
            lines.append(f"{planned.title}: {_outcome(planned, status)}, {time.monotonic() - start:.0f} s")
            if status:
                break
        if not planned.is_last:
            runs.offer(planned)
    return lines


def _outcome(planned: Planned, status: int) -> str:
    if status:
        return f"ended with exit status {status}, tried again below"
    trained = Results.read(planned.path).trained
    measures = trained.measures if trained else []
    return f"{measures[0][0]} {measures[0][1]:.3f}" if measures else "done"
