"""A user's own code, named `file.py:name` or `package.module:name`: loading it, and calling it with one clear error."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from distill.errors import DistillError
from distill.machine.words import nearest

Result = TypeVar("Result")


def load(kind: str, name: str, builtin: Iterable[str] = ()) -> Callable[..., Any]:
    """The function or class behind a name.

    Args:
        kind: what it is, for messages: "loss", "importance".
        name: `file.py:name` or `package.module:name`.
        builtin: names that need no file, for messages.

    Raises:
        DistillError: one line that says what is missing, with the nearest name there is.
    """
    place, _, attribute = name.rpartition(":")
    if not place or not attribute:
        raise DistillError(
            f"no {kind} '{name}'{nearest(name, builtin)}; there are {', '.join(builtin)}, "
            "and your own as file.py:name or package.module:name"
        )
    what = f"{kind} '{name}'"
    module = _load_file(what, Path(place).expanduser()) if place.endswith(".py") else _import(what, place)
    if not hasattr(module, attribute):
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise DistillError(f"{what}: nothing named '{attribute}' in {place}{nearest(attribute, names)}")
    value = getattr(module, attribute)
    if not callable(value):
        raise DistillError(f"{what}: '{attribute}' in {place} is {type(value).__name__}, not a function or class")
    return value


def summary(function: Callable[..., Any]) -> str:
    """The first line of a function's or class's own docstring; getdoc would quote that of a base class."""
    return inspect.cleandoc(function.__doc__ or "").partition("\n")[0]


def call(
    what: str, function: Callable[..., Result], *args: Any, passing: tuple[type[Exception], ...] = (), **options: Any
) -> Result:
    """Call a user's function; if it fails, say in one line where.

    Args:
        what: subject of the error, as in "loss 'my_kd'".
        function: called with `args` and `options`.
        args: its positional arguments.
        passing: errors that are passed on beside `DistillError`, because they are not the function's fault.
        options: its keyword arguments.

    Raises:
        DistillError: any other error, with the last line outside torch that led to it.
    """
    try:
        return function(*args, **options)
    except Exception as error:
        if isinstance(error, (DistillError, *passing)):
            raise
        raise DistillError(f"{what} failed{_origin(error)}: {type(error).__name__}: {error}") from error


def _origin(error: Exception) -> str:
    """The last traceback frame outside torch, as ` at file.py:6`; nothing if there is none."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    own = [frame for frame in frames if "torch" not in Path(frame.filename).parts]
    return f" at {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""


def _import(what: str, place: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        raise DistillError(f"{what}: importing {place} failed: {_one_line(error)}") from error


def _load_file(what: str, file: Path) -> ModuleType:
    if not file.is_file():
        names = [other.name for other in file.parent.glob("*.py")] if file.parent.is_dir() else []
        raise DistillError(f"{what}: no file {file}{nearest(file.name, names)}")
    # Each path gets a name of its own: two recipes may each have a losses.py. sys.modules needs the entry because
    # dataclasses and pickle look a class's module up there.
    module_name = f"{file.stem}_{hashlib.sha1(str(file.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(module_name, file)
    assert spec is not None and spec.loader is not None  # it is a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[module_name]
        raise DistillError(f"{what}: running {file} failed: {_one_line(error)}") from error
    return module


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
