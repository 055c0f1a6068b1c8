"""What an export of every kind of network goes through: the packages of a format, the comparison, the place of the result."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from distill.errors import DistillError, first_line
from distill.kinds.opened import Exported
from distill.machine.faults import machine_fault
from distill.machine.files import UNFINISHED, scratch_folder, write_atomically
from distill.machine.measure import file_size_mb
from distill.machine.runtimes.parity import check_parity


def check_packages(format: str, packages: Iterable[str]) -> None:
    """Raise `DistillError` if a package is missing, each by the name that pip knows it by; the message has the command."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        raise DistillError(f"export: format '{format}' needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def export_checked(
    path: Path, format: str, out_dir: Path, make: Callable[[Path], Path], reference: nn.Module, image: Tensor
) -> Exported:
    """Export a checkpoint in a scratch folder, compare the result with PyTorch, and move it into place.

    Args:
        path: the checkpoint, for messages.
        format: what is made.
        out_dir: where the result goes; made if missing.
        make: (folder) -> what it has exported into it.
        reference: the network, in evaluation mode, on the CPU, in float32.
        image: (1, 3, H, W), of the size that is exported.

    Raises:
        DistillError: missing package, a format that this machine cannot make, or outputs that differ.
        RunError: the disk is full, or not writable.
    """
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        with scratch_folder(out_dir, UNFINISHED) as folder:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the tracer's
                draft = make(folder)
            difference = check_parity(draft, format, reference, image)
            result = out_dir / draft.name
            write_atomically(result, draft.rename)
    except DistillError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or format).split(".")[0]
        raise DistillError(f"export: format '{format}' needs {package}: pip install {package}") from error
    except Exception as error:  # asserts and errors of many packages: this export cannot be made here
        fault = machine_fault(error, out_dir)
        raise fault or DistillError(f"export: {path.name} to '{format}' failed: {first_line(error)}") from error
    return Exported(result, file_size_mb(result), difference)
