"""Recipes, overrides and data.yaml mutated in thousands of ways: none may end in a traceback, hang, or steer the terminal.

    python -m tests.bench.fuzz                        # 2,000 ways, seed 0; about ten minutes on one core
    python -m tests.bench.fuzz 200 7 fuzz.json        # how many, seed, where the counts are written

Each is a call of the command line's `main` in this process: `check` or `eval` of a tiny checkpoint and its images. It must
come back with status 0, 1 or 2 within half a minute, and what it printed must be lines of text that a terminal only shows.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from distill.cli.main import main as command
from distill.recipe.load import keys, shipped
from distill.yolo.checkpoint import detector as checkpoint
from tests.distill.yolo.test_trainer import tiny, write_images

SECONDS = 30  # a call may take
LONGEST = 4000  # characters of a line
STEERS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
WORDS = [
    "", "~", "null", "true", "no", "on", "0", "-1", "1", "2", "0.5", "1e-3", "1e400", "-0", "012", "0x10", "1_000", "1:30", ".inf", "-.inf",
    ".nan", "9" * 30, "9" * 5000, "40000000", "2024-13-45", "2024-01-01", "'3'", '"', "'", "[]", "{}", "[1, [2]]", "{a: {b: 1}}", "[[[[", "}}",
    "&a [*a]", "&a {b: *a}", "*nowhere", "!!bool foo", "!!int ''", "!!float x", "!!timestamp x", "!!binary '%'", "!!set {a}", "!!null x",
    "!!python/object/apply:os.system ['true']", "!mine x", "<<: {a: 1}", "? a", "- a", "a: b: c", "# x", "|", ">-", "%YAML 9", "---", "...", "\t",
    "\\", "\x00", "\x1b[31mred", "\x07", "\u202egnp", "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"), "猫", "é", "\u2028", "\ufeff",
    "a" * 5000, "a/" * 2000, "../" * 200 + "x", "~nobody/x", "~", "/dev/null", "/dev/zero", "/proc/self/mem", "images", "images/train",
    "images/val/0.png", "data.yaml", "tiny.pt", "list.txt", "pipe", "pipe.txt", "pipe.pt", "http://example.org/x.yaml", "C:\\x", "x.py:f", "os:system",
    "builtins:eval", "half", "cpu", "cuda:9", "onnx", "[onnx, onnx]", "auto", "obs", "l1", "[square, disc]", "[disc, square]", "{0: square, 1: disc}",
    "[square]", "{square: 0}", "???", "score_bce", "{score_bce: 1}", "{score_bce: {weight: .nan}}", "$HOME", "%s", "{0}", "{x!r}",
]  # fmt: skip

Case = tuple[list[str], dict[str, bytes]]  # the words of a command, and the files that it is to find


def mutate_text(text: str, draw: random.Random) -> bytes:
    """A document with one to three lines changed, in some encoding, perhaps with a few bytes changed."""
    for _ in range(draw.randint(1, 3)):
        lines = text.splitlines() or [""]
        at = draw.randrange(len(lines))
        name, colon, value = lines[at].partition(":")
        word, other, cut = draw.choice(WORDS), draw.choice(lines), draw.randint(0, len(lines[at]))
        instead = [
            [],
            [lines[at], other],
            [lines[at], word],
            [f"{name}: {word}"],
            [f"{name}: {word}"],
            [f"{word}{colon}{value}"],
            [f"{name[:-1]}{colon}{value}"],
            ["  " * draw.randint(0, 3) + lines[at].strip()],
            [lines[at][:cut] + word],
            [f"{name}: {'[' * 1500}{']' * 1500}"],
        ]
        lines[at : at + 1] = draw.choice(instead)
        text = "\n".join(lines) + "\n"
    raw = bytearray(text.encode(draw.choice(["utf-8"] * 8 + ["utf-8-sig", "utf-16", "gbk", "cp1252"]), "replace"))
    for _ in range(draw.choice([0] * 8 + [1, 5])):
        raw[draw.randrange(len(raw))] = draw.randrange(256)
    return bytes(raw)


def mutate_content(content: dict[str, Any], draw: random.Random) -> bytes:
    """A data.yaml of which keys have other values of any type."""
    values = [
        None, True, 0, -1, 3, 10**40, 1.5, float("inf"), "", "x", "images/train", "list.txt", "a" * 3000, [], {}, [[]], [None], ["images/val"] * 2,
        {0: "a", 2: "b"}, {1.5: "a"}, {None: "a"}, {"0": "a", "1": "b"}, {True: "a"}, [["a"]], ["a", "a"], ["\x1b[2J", "b"], [1, 2], [None, False],
        [17, 3], [2, 3], "pipe.txt", "images", ["images", "images/train"], {"a": {"b": "c"}}, b"\xff", "a.zip",
    ]  # fmt: skip
    for _ in range(draw.randint(1, 3)):
        content[draw.choice([*content, "path", "nc", "channels", "kpt_shape", "validation", "test", "download"])] = (
            draw.choice(values)
        )
    return yaml.safe_dump(content, allow_unicode=True).encode()


def mutated_words(words: list[str], draw: random.Random) -> list[str]:
    """Overrides, some with other values, some with other keys, some that are none; and options."""
    known = [row[0] for row in keys()]
    for _ in range(draw.randint(1, 4)):
        key = draw.choice(known)
        if draw.random() < 0.15:
            key = key[:-1] + draw.choice(["", "x", ".x", "\x1b", "é"])
        words.insert(
            draw.randint(0, len(words)),
            draw.choice([f"{key}={draw.choice(WORDS)}"] * 8 + [key, f"={key}", draw.choice(WORDS), f"--{key}"]),
        )
    if draw.random() < 0.1:
        words.insert(draw.randint(0, len(words)), draw.choice(["--quiet", "--quite", "--", "-x", "--out", "--resume"]))
    return [word.replace("\0", "") for word in words]  # no process can be given one


def cases(count: int, draw: random.Random, data: str) -> Iterator[Case]:
    """What is called: `count` of each kind in turn."""
    recipes = [path.read_text(encoding="utf-8") for path in shipped().values()]
    given = ["model=tiny.pt", "data=data.yaml", "imgsz=64", "device=cpu"]
    for index in range(count):
        kind = index % 3
        if kind == 0:
            yield ["check", "r.yaml", *given], {"r.yaml": mutate_text(draw.choice(recipes), draw)}
        elif kind == 1:
            yield ["check", *mutated_words([draw.choice([*shipped(), "r.yaml"]), *given], draw)], {}
        else:
            raw = mutate_text(data, draw) if draw.random() < 0.5 else mutate_content(yaml.safe_load(data), draw)
            look = ["eval", "tiny.pt", "data=bad.yaml", "imgsz=64", "device=cpu"]
            recipe = ["check", "finetune", "model=tiny.pt", "data=bad.yaml", "imgsz=64", "device=cpu", "prune=null"]
            yield draw.choice([look, recipe]), {"bad.yaml": raw}


class Late(BaseException):
    """A call took too long."""


def outcome(words: list[str]) -> tuple[str, str]:
    """(in a word how a call ended, what to look at if that is wrong)."""

    def late(*_: Any) -> None:
        raise Late

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = command(words)
    except Late:
        return "hang", ""
    except BaseException:  # noqa: BLE001  whatever it is, a user would have seen it
        return "traceback", traceback.format_exc()
    finally:
        signal.alarm(0)
    text = said.getvalue()
    if status not in (0, 1, 2):
        return f"status {status}", text
    if status and not text.strip():
        return "silent", ""
    if STEERS.search(text) or max(map(len, text.splitlines()), default=0) > LONGEST:
        return "unfit to show", text
    return {0: "in order", 1: "machine's fault, one line", 2: "refused in lines"}[status], text


def main(count: str = "2000", seed: str = "0", out: str = "") -> int:
    """Call it `count` times; returns 1 if any ended badly."""
    draw, counts, bad, start = random.Random(int(seed)), Counter(), [], time.monotonic()
    before = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        data = write_images(root)
        checkpoint.save(tiny(), root / "tiny.pt", names={0: "square", 1: "disc"}, imgsz=64)
        (root / "list.txt").write_text("".join(f"images/train/{i}.png\n" for i in range(6)))
        (root / "r.yaml").write_text(shipped()["finetune"].read_text(encoding="utf-8"))
        for name in ("pipe", "pipe.txt", "pipe.pt"):
            os.mkfifo(root / name)
        os.chdir(root)
        try:
            for words, files in cases(int(count), draw, data.read_text()):
                for name, raw in files.items():
                    (root / name).write_bytes(raw)
                kind, text = outcome(words)
                counts[kind] += 1
                if kind not in ("in order", "machine's fault, one line", "refused in lines"):
                    bad.append(
                        {"words": words, "files": {name: repr(raw) for name, raw in files.items()}, "text": text}
                    )
                    print(f"{kind}: {words} {files}\n{text}", file=sys.stderr)
        finally:
            os.chdir(before)
    result = {
        "calls": sum(counts.values()),
        "seed": int(seed),
        "outcomes": dict(counts.most_common()),
        "ended badly": len(bad),
        "seconds": round(time.monotonic() - start),
        "peak memory in MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    print(json.dumps(result, indent=2))
    if out:
        Path(out).write_text(json.dumps({**result, "bad": bad}, indent=2) + "\n", encoding="utf-8")
    print(
        f"none of {result['calls']} ended in a traceback" if not bad else f"{len(bad)} of {result['calls']} ended badly"
    )
    return int(bool(bad))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
