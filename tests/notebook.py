"""Runs the code of a notebook from top to bottom and stores what its cells show: `python -m tests.notebook FILE`.

A notebook is JSON, and the cells of ours are plain Python, so this needs neither Jupyter nor a kernel.
"""

from __future__ import annotations

import ast
import base64
import io
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

Cell = dict[str, Any]


def source(cell: Cell) -> str:
    """The text of a cell."""
    return "".join(cell["source"])


def run(cells: list[Cell]) -> Iterator[list[dict[str, Any]]]:
    """The outputs of each code cell, all of which share their names. An error in one ends it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    codes = [cell for cell in cells if cell["cell_type"] == "code"]
    for number, cell in enumerate(codes, 1):
        tree = ast.parse(source(cell), f"cell {number}")
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        text = io.StringIO()
        with redirect_stdout(text):
            exec(compile(tree, f"cell {number}", "exec"), names)  # noqa: S102 - our own document
            value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names) if last else None  # type: ignore[attr-defined]
        outputs = (
            [{"output_type": "stream", "name": "stdout", "text": lines(text.getvalue())}] if text.getvalue() else []
        )
        if value is not None:
            outputs.append(
                {"output_type": "execute_result", "metadata": {}, "execution_count": number, "data": shown(value)}
            )
        yield outputs


def shown(value: Any) -> dict[str, Any]:
    """What a notebook shows of a value."""
    data: dict[str, Any] = {"text/plain": lines(repr(value))}
    if hasattr(value, "_repr_html_"):
        data["text/html"] = lines(value._repr_html_())
    if hasattr(value, "_repr_png_"):
        data = {"text/plain": ["a picture"], "image/png": base64.b64encode(value._repr_png_()).decode()}
    return data


def lines(text: str) -> list[str]:
    """Text as notebooks hold it."""
    return text.splitlines(keepends=True)


def main(file: Path) -> None:
    """Run the notebook in an empty folder, and write it with its outputs."""
    notebook = json.loads(file.read_text(encoding="utf-8"))
    codes = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    file = file.absolute()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        before = Path.cwd()
        os.chdir(folder)
        for number, (cell, outputs) in enumerate(zip(codes, run(notebook["cells"]), strict=True), 1):
            cell["outputs"], cell["execution_count"] = outputs, number
        os.chdir(before)
    file.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
