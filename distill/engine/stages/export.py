"""Export the student, and compare each export's outputs with the checkpoint's."""

from __future__ import annotations

from dataclasses import dataclass

from distill.engine.session import Session
from distill.engine.stage import Stage
from distill.results.networks import STUDENT
from distill.results.steps import Export


@dataclass(frozen=True)
class ExportRecord:
    """The exports, in the order of the recipe."""

    exports: tuple[Export, ...]


def _work(session: Session) -> ExportRecord:
    folder, size = session.folder.path, session.recipe.size
    exports = []
    for name in session.recipe.export:
        exported = session.kind.export(folder / STUDENT.file, name, folder / "exports", size, **session.opening)
        file = exported.file.relative_to(folder).as_posix()
        exports.append(Export(name, file, exported.size_mb, exported.max_abs_diff))
    return ExportRecord(tuple(exports))


EXPORT = Stage(
    "export",
    ExportRecord,
    _work,
    reads=("export",),
    says=lambda record: ", ".join(f"{export.file} of {export.size_mb:.1f} MB" for export in record.exports),
    more_files=lambda record: [export.file for export in record.exports],
)
