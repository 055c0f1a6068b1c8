"""What a shell is told when TAB is pressed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill.cli import completion
from distill.cli.main import main

BREAKS = " \t\n\"'><=;|&(:"  # of words, as bash has them


def completed(line: str, folder: Path) -> list[str]:
    """The words that bash would offer; argcomplete writes them to file descriptor 8."""
    asked = {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line)), "COMP_TYPE": "9"}
    asked |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_COMP_WORDBREAKS": BREAKS}
    command = f'exec "{sys.executable}" -m distill 8>answer'
    done = subprocess.run(["bash", "-c", command], env=os.environ | asked, cwd=folder, capture_output=True, check=False)
    assert (done.stdout, done.stderr) == (b"", b"")
    return [word.strip() for word in (folder / "answer").read_text().splitlines()]


@pytest.mark.skipif(os.name != "posix", reason="bash is not there")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("distill ru", {"run"}),
        ("distill run ha", {"half"}),
        ("distill run half prune.imp", {"prune.importance="}),
        ("distill run half prune.importance=o", {"obs"}),
        ("distill check half model=be", {"best.pt"}),
        ("distill run --re", {"--resume"}),
        ("distill compare half --arms ours,finetune-b", {"ours,finetune-bn"}),
        ("distill ls losses box_", {"box_iou", "box_giou", "box_l1", "box_bckd"}),
        ("distill ls features pl", {"plan="}),
        ("distill ls features model=be", {"best.pt"}),
        ("distill eval best.pt te", {"teacher="}),
        ("distill export best.pt on", {"onnx"}),
    ],
)
def test_a_shell_completes(line: str, words: set[str], tmp_path: Path) -> None:
    (tmp_path / "best.pt").touch()
    assert set(completed(line, tmp_path)) == words


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_the_code_for_a_shell(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "_ARGCOMPLETE" in capsys.readouterr().out


def test_without_argcomplete_the_command_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "argcomplete", None)
    assert main(["completion", "bash"]) == 2
    assert capsys.readouterr().err == "completion needs argcomplete: pip install argcomplete\n"
