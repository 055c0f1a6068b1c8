"""A user's own code: loaded by name, called, and answered for in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from distill.errors import DistillError
from distill.machine import plugins


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def spread(graph, context):\n    return graph.groops\n\nlevel = 3\n")
    return tmp_path


@pytest.mark.parametrize("name", ["mine.py:spread", "{here}/mine.py:spread"])
def test_a_function_is_loaded_from_a_file_or_a_package(here: Path, name: str) -> None:
    assert plugins.load("importance", name.format(here=here)).__name__ == "spread"
    assert plugins.load("importance", "distill.machine.plugins:load") is plugins.load


def test_files_of_one_name_in_two_folders_are_two_modules(here: Path) -> None:
    (here / "sub").mkdir()
    (here / "sub" / "mine.py").write_text("def spread(graph, context):\n    return 1\n")
    first, second = (plugins.load("importance", name) for name in ("mine.py:spread", "sub/mine.py:spread"))
    assert first.__module__ != second.__module__ and second(None, None) == 1


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ob", "no importance 'ob', did you mean 'obs'.; there are obs, fisher, and your own as file.py:name"),
        ("mine.py:spraed", "importance 'mine.py:spraed': nothing named 'spraed' in mine.py, did you mean 'spread'"),
        ("mine.py:level", "importance 'mine.py:level': 'level' in mine.py is int, not a function or class"),
        ("mime.py:spread", "importance 'mime.py:spread': no file mime.py, did you mean 'mine.py'"),
    ],
)
def test_what_is_missing_is_named_by_its_kind(name: str, message: str) -> None:
    with pytest.raises(DistillError, match=message):
        plugins.load("importance", name, ("obs", "fisher"))


def test_an_error_in_a_users_function_is_one_line_with_its_place() -> None:
    spread = plugins.load("importance", "mine.py:spread")
    with pytest.raises(DistillError, match=r"^importance 'spread' failed at mine.py:2: AttributeError: .*'groops'"):
        plugins.call("importance 'spread'", spread, "graph", "context")
    with pytest.raises(AttributeError):
        plugins.call("importance 'spread'", spread, "graph", "context", passing=(AttributeError,))
