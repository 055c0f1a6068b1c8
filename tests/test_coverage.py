"""The table of what can be cut: its page is what the kept file says."""

from __future__ import annotations

import json

from tests.bench import coverage


def test_the_page_is_written_from_the_kept_file() -> None:
    kept = json.loads((coverage.DOCS / "bench" / "coverage.json").read_text())
    assert (coverage.DOCS / "coverage.md").read_text() == coverage.render(kept)


def test_every_outcome_has_a_row_and_is_counted() -> None:
    exact = {"result": "exact", "seconds": 1.5, "flops": 0.5, "stays": 0.1, "why": [["an output | of it", 0.1]]}
    rows = [
        {"name": "timm/a", "ours": exact, "theirs": {"result": "too slow", "seconds": 180}},
        {"name": "timm/b", "ours": {"result": "error", "error": "no channel can be cut"}},
    ]
    page = coverage.render({"limit": 180, "listed": 3, "versions": {"torch": "2"}, "networks": rows})
    assert "| a | exact | 1.5 | 0.5 | 0.1 | an output / of it | too slow | 180 |" in page
    assert "Tried so far: 2 of the 3 networks" in page
    assert "| b | error |  |  |  | no channel can be cut |  |  |" in page
    assert "| timm, 2 | ours | 1 | 0 | 1 | 0 |" in page and "| timm, 1 | torch-pruning | 0 | 0 | 0 | 1 |" in page
