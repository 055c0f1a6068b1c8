"""The public functions of `distill`: their arguments, what they print (nothing), and how what they return prints."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import distill
from distill.api.arguments import overrides_of, public
from distill.errors import DistillError, Interrupted
from distill.machine.program import ProgramConsole
from distill.recipe import load as recipes
from distill.recipe.schema import Recipe
from distill.results.comparison import Arm, ArmRun, ComparisonResults, TrainingSize

FUNCTIONS = [name for name in distill.__all__ if not name.endswith("Error")]


def refused(call: Any) -> str:
    with pytest.raises(DistillError) as error:
        call()
    return str(error.value)


def test_a_slip_names_the_function_and_the_nearest_word() -> None:
    assert refused(lambda: distill.run("half", modle="best.pt")) == "distill.run: no key modle, did you mean model?"
    assert refused(lambda: distill.compare("half", seed_s=3)) == "distill.compare: no key seed_s, did you mean seeds?"
    call: Any = distill.evaluate
    assert refused(lambda: call("best.pt", dta="d.yaml")) == "distill.evaluate: no key dta, did you mean data?"
    assert refused(lambda: distill.plan("half", xyzzy=1)).startswith("distill.plan: no key xyzzy: there are recipe, ")
    assert "'distill.epochs'" in refused(lambda: distill.run("half", **{"distill.epoch": 3}))


@pytest.mark.parametrize("name", FUNCTIONS)
def test_signature_and_help_are_those_of_the_function(name: str) -> None:
    function = getattr(distill, name)
    assert function.__doc__ and "Args:" in function.__doc__ and "Raises:" in function.__doc__
    parameters = inspect.signature(function).parameters
    for each in parameters:
        assert f"{each}:" in function.__doc__, each
    assert f"distill.{name}(" in (distill.__doc__ or "")


def test_keywords_are_keys_and_mappings_are_parts_of_sections(tmp_path: Path) -> None:
    given = overrides_of(
        {"distill.epochs": 5},
        {"model": tmp_path / "best.pt", "prune": {"flops": 0.3}, "teacher": {"train": {}}, "export": ("onnx",)},
    )
    assert given == {
        "distill.epochs": 5,
        "model": str(tmp_path / "best.pt"),
        "prune.flops": 0.3,
        "teacher.train": {},
        "export": ["onnx"],
    }
    read = recipes.load("half", overrides_of(None, {"model": "a.pt", "data": "d", "prune": {"rounds": 2}}))
    assert read.prune is not None and (read.prune.flops, read.prune.rounds) == (0.5, 2)  # the rest of the section stays


def test_losses_in_a_mapping_take_the_place_of_the_recipes() -> None:
    keys = {"model": "a.pt", "data": "d", "distill": {"losses": {"box_iou": 3.0}, "epochs": 2}}
    read = recipes.load("half", overrides_of(None, keys))
    assert [loss.name for loss in read.distill.losses] == ["box_iou"] and read.distill.epochs == 2


def test_every_key_of_a_recipe_can_be_a_keyword() -> None:
    own = {name: set(inspect.signature(getattr(distill, name)).parameters) for name in FUNCTIONS}
    takers = {name: words for name, words in own.items() if "keys" in words}
    assert {"check", "compare", "plan", "run"} <= set(takers)
    for words in takers.values():
        assert not words & set(Recipe.__dataclass_fields__)


def test_ctrl_c_stays_ctrl_c_and_says_how_to_go_on() -> None:
    @public
    def run() -> None:
        raise Interrupted("interrupted; to resume: distill run --resume runs/half-1")

    with pytest.raises(KeyboardInterrupt, match="--resume runs/half-1"):
        run()


def test_a_program_is_told_by_logging_and_by_its_own_progress(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def progress(items: Iterable[Any], label: str, total: int, unit: str) -> Iterator[Any]:
        seen.append((label, total, unit))
        for item in items:
            yield item
            seen.append(item)
        seen.append("end")

    with caplog.at_level(logging.INFO, logger="distill"):
        console = ProgramConsole(progress)
        console.header("cut")
        console.warn("few images")
        console.result("a table")
        assert list(console.track("abc", "score", 3, "images")) == ["a", "b", "c"]
        with console.bar("epoch", 4, "batches") as bar:
            bar.advance(2, "loss 1")
        console.close()
    assert seen == [("score", 3, "images"), 0, 1, 2, "end", ("epoch", 4, "batches"), 0, 1]
    levels = [(record.levelname, record.message) for record in caplog.records if "in 0.0 s" not in record.message]
    assert levels == [("INFO", "== cut =="), ("WARNING", "few images")]
    assert console.warnings == ["few images"]
    assert capsys.readouterr() == ("", "")


def test_a_comparison_prints_as_a_table() -> None:
    def run(arm: str, seed: int, end: float) -> ArmRun:
        return ArmRun(arm, seed, None, 1e-3, 0.4, end, end, True, (end,), 1.0, TrainingSize(1, 4, 8), f"{arm}/{seed}")

    runs = (run("ours", 0, 0.5), run("ours", 1, 0.6), run("finetune", 0, 0.45))
    arms = (Arm("ours", "x" * 5000), Arm("finetune", ""), Arm("failed", ""))
    results = ComparisonResults("half", arms, (0, 1), (), None, {"ours": None, "finetune": None}, runs, ())
    assert str(results).splitlines()[1].split() == ["ours", "2", "0.400", "0.550", "0.500", "0.600"]
    assert repr(results) == "ComparisonResults(half: ours, finetune, failed; 3 runs, 0 failed)"
    assert "<td>finetune</td><td>1</td>" in results._repr_html_()
