"""Fixtures shared by every test."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from distill.machine import private

# Before anything imports ultralytics: no look-ups on the network, no installs, nothing in the user's home, no chatter.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_VERBOSE", "false")
private.settle()

if "PYTEST_XDIST_WORKER" in os.environ:  # one core for each process, before torch is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch  # noqa: E402  after the lines above

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first: begun last, it would keep one of several processes busy when the others are done."""
    items.sort(key=lambda item: item.path.name != "test_run.py")


@pytest.fixture(scope="module", params=["cpu", "0"][: 1 + torch.cuda.is_available()])
def device(request: pytest.FixtureRequest) -> str:
    """Where a whole run computes: on the CPU, and where there is a GPU, on that too."""
    return request.param


@pytest.fixture
def shared() -> Path:
    """The folder of real checkpoints and images beside the checkout; the test skips where it is missing."""
    if not (SHARED / "weights").is_dir():
        pytest.skip(f"needs the real checkpoints and images in {SHARED.name}/ beside the checkout")
    return SHARED
