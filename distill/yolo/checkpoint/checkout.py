"""The code of a project that lies in a folder, imported beside installed packages of the same names.

A fork of ultralytics is called `ultralytics` too, and those of YOLOv5 have `models` and `utils`. So the modules of a folder
are in `sys.modules` only while something is done with them, and what was there before is put back.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from distill.errors import DistillError, first_line
from distill.machine.words import printable

GIVE_CODE = "give its code: code=path/to/its/checkout trust=true, only if you trust both"  # the end of a refusal

_CHECKOUTS: dict[Path, Checkout] = {}


class Checkout:
    """The packages and modules in a folder. Use `checkout`: the classes of a folder are the same for all checkpoints.

    Attributes:
        folder: the folder, absolute.
        roots: the names at the top, such as `models`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.roots = folder, frozenset(_roots(folder))
        self._modules: dict[str, ModuleType] = {}

    @contextlib.contextmanager
    def imported(self) -> Iterator[None]:
        """While this lasts, `import` finds the folder first, and its modules hide others of the same names."""
        with _unchanged():
            hidden = self._taken()
            sys.modules.update(self._modules)
            sys.path.insert(0, str(self.folder))
            importlib.invalidate_caches()
            try:
                yield
            finally:
                self._modules = self._taken()
                sys.modules.update(hidden)

    def _taken(self) -> dict[str, ModuleType]:
        """The modules of these names, taken out of `sys.modules`."""
        names = [name for name in sys.modules if name.partition(".")[0] in self.roots]
        return {name: sys.modules.pop(name) for name in names}

    def check(self, names: Iterable[str]) -> None:
        """Import the modules of dotted names, as far as they are here.

        Raises:
            DistillError: one is not here, or has no such class.
        """
        with self.imported():
            for name in names:
                if name.partition(".")[0] in self.roots:
                    _check(name, self.roots)

    def owns(self, kind: type) -> bool:
        """Whether a class is one of these."""
        return getattr(self._modules.get(kind.__module__), kind.__name__, None) is kind


def _check(name: str, roots: Collection[str]) -> None:
    """Import the module of a dotted name. Raises `DistillError`: it cannot be, or does not have that name."""
    module, _, attribute = name.rpartition(".")
    what = printable(module, 100)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacking = str(error.name)
        mend = f"its '{what}' needs the package {lacking}: pip install {lacking.partition('.')[0]}"
        here = lacking.partition(".")[0] in roots
        raise DistillError(f"it has no module '{printable(lacking, 100)}'" if here else mend) from error
    except (Exception, SystemExit) as error:  # the code of the folder may do anything
        why = f"{type(error).__name__}: {printable(first_line(error), 200)}"
        raise DistillError(f"its '{what}' cannot be imported ({why})") from error
    if not hasattr(found, attribute):
        raise DistillError(f"its '{what}' has no '{printable(attribute, 100)}'")


def checkout(folder: str | Path) -> Checkout:
    """The code in a folder.

    Raises:
        DistillError: there is no such folder, or no code in it.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        what = "is a file: give the folder that it is in" if path.exists() else "there is no such folder"
        raise DistillError(f"code={folder}: {what}")
    return _CHECKOUTS.setdefault(path.resolve(), Checkout(path.resolve()))


def owner_of(model: nn.Module) -> Checkout | None:
    """The folder that the first class of a network that is of any is of."""
    kinds = {type(module) for module in model.modules()}
    return next((each for each in _CHECKOUTS.values() if any(map(each.owns, kinds))), None)


def _roots(folder: Path) -> Iterator[str]:
    """The names that can be imported from a folder: modules, packages, and folders with modules in them."""
    for path in folder.iterdir():
        name = path.stem if path.suffix == ".py" else path.name
        code = path.is_file() and path.suffix == ".py" or path.is_dir() and any(path.glob("*.py"))
        if code and name.isidentifier() and name not in sys.stdlib_module_names:
            yield name


@contextlib.contextmanager
def _unchanged() -> Iterator[None]:
    """Undo what the modules of a project do to the process when they are imported, and keep what they print."""
    path, variables, threads = sys.path[:], dict(os.environ), torch.get_num_threads()
    patched: list[tuple[Any, str, Any]] = [(torch, name, getattr(torch, name)) for name in ("load", "save")]
    loggers = [logging.getLogger(name) for name in (None, "ultralytics", "yolov5")]
    states = [(logger.level, logger.handlers[:], logger.filters[:], logger.propagate) for logger in loggers]
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        sys.path[:] = path
        os.environ.clear()
        os.environ.update(variables)
        torch.set_num_threads(threads)
        for owner, name, value in patched:
            setattr(owner, name, value)
        for logger, (level, handlers, filters, propagate) in zip(loggers, states, strict=True):
            logger.setLevel(level)
            logger.handlers[:], logger.filters[:], logger.propagate = handlers, filters, propagate
