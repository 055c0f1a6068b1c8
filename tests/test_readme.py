"""What README.md shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch

from distill import losses
from distill.cli import main as cli
from distill.losses.context import LossContext, Outputs
from distill.losses.spec import LossSpec
from distill.recipe import load as recipe

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def test_the_loss_of_the_readme(tmp_path: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", section("Your own loss"), re.DOTALL)[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "my_losses.py").write_text(code)
    (loss,) = losses.build([LossSpec(f"{tmp_path}/my_losses.py:my_kd", 0.5, {"temperature": 2})])
    logits = torch.randn(2, 21, 3, requires_grad=True)
    teacher = Outputs(neck=(), class_logits=torch.randn(2, 21, 3))
    images = torch.rand(2, 3, 32, 32)
    value = loss.call(LossContext(images, Outputs(neck=(), class_logits=logits), teacher))
    value.backward()
    assert value > 0 and logits.grad is not None and logits.grad.any()
    assert loss.call(LossContext(images, teacher, teacher)) == 0


def test_the_recipe_of_the_readme(tmp_path: Path) -> None:
    lines = [
        line[4:] for line in section("Recipes").splitlines() if line.startswith("    ") and "distill run" not in line
    ]
    (tmp_path / "mine.yaml").write_text("\n".join(lines))
    assert recipe.load(tmp_path / "mine.yaml").prune.flops == 0.5


def test_every_recipe_and_every_command_is_named() -> None:
    for name in recipe.shipped():
        assert f"`{name}`" in section("Recipes"), name
    for name in cli.COMMANDS:
        assert f"    distill {name}" in section("Commands"), name


@pytest.mark.parametrize(
    "line", re.findall(r"^    (distill run .*|distill plan .*|distill eval .*)$", README, re.MULTILINE)
)
def test_commands_have_words_that_are_understood(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line.partition("  ")[0])
    if words[2] == "RECIPE" or words[1] == "eval":
        return
    overrides = [word for word in words[3:] if "=" in word]
    assert recipe.load(words[2], overrides).imgsz in (96, 320, 416, 640)


def test_words_in_backticks_are_keys() -> None:
    known = {name for name, *_ in recipe.keys()}  # noqa: SIM118
    for word in re.findall(r"`((?:prune|distill|teacher|sparsify|repair|accept)\.[\w.]+)=", README):
        assert word in known, word
