"""Hostile checkpoints: none executes anything, each is refused in one line. `tests/bench/hostile.py` limits memory and time."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from distill.errors import DistillError
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.checkpoint.build import build
from tests.distill.yolo.hostile import MARKER, hostile_files
from tests.distill.yolo.originals import tiny

FILES = hostile_files()
# Large, and opened by the benchmark alone.
LARGE = (
    "a million empty",
    "a million stand",
    "a million tens",
    "a million sets",
    "names without end",
    "a bomb",
    "100,000",
    "a pickle of",
    "200,000",
    "without end",
    ", deep",
    "endless",
)
FAST = [name for name in FILES if not any(word in name for word in LARGE)]


def refused(name: str, path: Path) -> str:
    """The line with which a file is refused."""
    FILES[name](path)
    with pytest.raises(DistillError) as caught:
        checkpoint.load(path)
    assert not (path.parent / MARKER).exists(), name
    text = str(caught.value)
    assert text.startswith(str(path)) and text.isprintable() and len(text) < 1500, name
    return text


@pytest.mark.parametrize("place", ["model", "value", "state"])
def test_calls_are_not_made(tmp_path: Path, place: str) -> None:
    calls = [name for name in FAST if name.startswith("call") and name.endswith(place)]
    assert len(calls) > 50
    for number, name in enumerate(calls):
        refused(name, tmp_path / f"{number}.pt")


@pytest.mark.parametrize("name", [name for name in FAST if not name.startswith("call")])
def test_is_refused(tmp_path: Path, name: str) -> None:
    refused(name, tmp_path / "best.pt")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("file: a pipe", "is a pipe, not a file"),
        ("file: a link to a device without end", "is a device, not a file"),
        ("file: a socket", "is a socket, not a file"),
        ("file: a directory that gives 4 GB unpacked", "compressed inside|would unpack"),
        ("file: a zip file behind 6 GB of nothing", "as no YOLO has"),
        ("pickle: state for a tensor, as its __setstate__ reads it", "state for something that has none"),
        ("pickle: key that is a tuple that holds itself twice, 64 times", "a key that is neither text nor a number"),
        ("pickle: member of a set that is a tensor", "a key that is neither text nor a number"),
        ("pickle: lists without end as names", "nested or shared further"),
        ("pickle: itself without end as model", "a value holds itself"),
        ("pickle: tensor as a set", "a set of something that is no list"),
        ("pickle: tensor of one storage as many types", "has two types"),
        ("pickle: control characters in a name", r"os\\x1b\]0;owned\\x07"),
        ("network: forward is a module", "'forward' of a Conv is not its own"),
        ("network: stride is NaN", "strides that are none or disagree"),
        ("network: stride is another's", "says that its strides are .*16.* and they are .*32|disagree"),
        ("network: padding of a petabyte", "takes more memory or time than any YOLO"),
        ("network: weights that overflow", "gives values that are NaN or infinite"),
        ("network: a name of a million characters", "class names that are not text"),
    ],
)
def test_says_what_it_is(tmp_path: Path, name: str, says: str) -> None:
    assert re.search(says, refused(name, tmp_path / "best.pt"))


def test_a_description_of_a_huge_network_is_not_built(tmp_path: Path) -> None:
    model = tiny()
    model.yaml["scales"] = {"n": [1, 8, 8192]}
    torch.save({"model": model}, tmp_path / "best.pt")
    with pytest.raises(DistillError, match="describes a network of"):
        build(str(tmp_path / "best.pt"), {0: "a"})
