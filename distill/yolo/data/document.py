"""Text files of a data set, decoded; and YAML that is read as ultralytics reads it, in a time and a size that are bounded."""

from __future__ import annotations

import codecs
import re
from pathlib import Path
from typing import Any

import yaml

from distill.errors import DistillError, first_line

MAX_BYTES = 4 * 2**20  # 20,000 class names take less than a fourth of it
MAX_DEPTH = 50  # of lists in lists

_MERGE = "tag:yaml.org,2002:merge"


def read_text(path: Path) -> str:
    """A text file in UTF-8, or in UTF-16 with its mark, as PowerShell writes it.

    Raises:
        ValueError: another encoding; says where.
        OSError: the file cannot be read.
    """
    raw = path.read_bytes()
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return raw.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        if wide or b"\0" in raw:
            raise ValueError("is no text") from error
        place = f"line {raw.count(bytes([10]), 0, error.start) + 1} holds the byte 0x{raw[error.start]:02x}"
        raise ValueError(f"is not in UTF-8 ({place}): save it in UTF-8, not in GBK, cp1252 or the like") from error


def parse(path: Path) -> dict[str, Any]:
    """The content of a data.yaml. Raises `DistillError` if it is none, in one line."""
    try:
        if not path.is_file():  # reading a pipe or a device might never end
            raise DistillError(f"{path}: is no regular file: a data.yaml is expected here")
        if path.stat().st_size > MAX_BYTES:
            raise DistillError(f"{path}: is larger than {MAX_BYTES >> 20} MiB: a data.yaml is expected here")
        content = yaml.load(read_text(path), _Loader)
    except OSError as error:
        raise DistillError(f"{path}: cannot be read: {error.strerror or error}") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or "is no valid YAML"
        mend = ": write / in paths, or single quotes" if "escape character" in problem else ""
        raise DistillError(f"{place}: {problem}{mend}") from error
    except DistillError:
        raise
    except ValueError as error:
        text = first_line(error)
        kind = text if text.startswith("is ") else f"is no valid YAML: {text}"  # 2024-13-45, which looks like a date
        raise DistillError(
            f"{path}: {kind}" + (": a data.yaml is expected here" if kind == "is no text" else "")
        ) from error
    except Exception as error:
        raise DistillError(f"{path}: is no valid YAML: a value is not of the type that its tag names") from error
    if isinstance(content, str) and (word := re.match(r"(train|val|names|nc|path):(?=\S)", content)):
        raise DistillError(f"{path}:1: write '{word[1]}: ' with a blank behind the colon, and each key so")
    if not isinstance(content, dict):
        raise DistillError(f"{path}: must hold 'train', 'val' and 'names' keys, as a YOLO data.yaml does")
    return content


class _Loader(yaml.SafeLoader):
    """PyYAML's, which ultralytics uses; deep nesting, merges, which may grow without bound, and equal keys are refused."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise yaml.composer.ComposerError(problem="nested too deeply", problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if key.tag == _MERGE:
                raise _problem("merge keys (<<) are not read here: write the values out", key)
            if name in seen:
                raise _problem(f"key '{key.value}' is there twice", key)
            seen.add(name)
        super().flatten_mapping(node)


def _problem(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(problem=text, problem_mark=node.start_mark)
