"""Loggers by ultralytics' own integrations: real ones of it, with stand-ins for the services' packages."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import pytest
import ultralytics.utils
from ultralytics.engine.trainer import BaseTrainer

from distill.errors import DistillError
from distill.machine.console import Console
from distill.recipe import load as recipes
from distill.recipe.schema import LOGGERS
from distill.yolo import upstream
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data import dataset as datasets
from distill.yolo.training.loggers import PACKAGES, Loggers, check_loggers
from distill.yolo.training.train import train
from tests.distill.yolo.test_trainer import SHORT, tiny, write_images

GIVEN = ["model=best.pt", "data=data.yaml"]


class Packages:
    """What a test installs: stand-ins that remember their calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch

    def install(self, name: str) -> Any:
        package = MagicMock(name=name)
        package.__version__ = "9.9.9"
        package.__spec__ = ModuleSpec(name, None)
        self.monkeypatch.setitem(sys.modules, name, package)
        return package


@pytest.fixture
def packages(monkeypatch: pytest.MonkeyPatch) -> Iterator[Packages]:
    """ultralytics' integrations are imported anew, as outside of a test, in which they do nothing."""
    integrations = [f"ultralytics.utils.callbacks.{'wb' if name == 'wandb' else name}" for name in PACKAGES]
    monkeypatch.setattr(ultralytics.utils, "TESTS_RUNNING", False)
    monkeypatch.setattr("ultralytics.utils.checks.check_version", lambda *_, **__: True)
    for name in integrations:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield Packages(monkeypatch)
    for name in integrations:
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> datasets.DataSet:
    return datasets.load(write_images(tmp_path_factory.mktemp("data")))


def follow(data: datasets.DataSet, folder: Path, name: str, **options: Any) -> Console:
    console = Console(quiet=True)
    schedule = replace(SHORT, epochs=1, steps=3)
    loggers = Loggers([name], "half", "half-1", console.warn)
    where = {"folder": folder / "train", "console": console, "imgsz": 64, "device": "cpu"}
    train(tiny(), data, schedule, **where, loggers=loggers, **options)
    return console


def tensorboard(packages: Packages) -> Callable[[], dict[str, float]]:
    packages.install("tensorboard")
    module = packages.install("torch.utils.tensorboard")
    packages.monkeypatch.setattr("torch.jit.trace", MagicMock())  # it takes seconds
    writer = module.SummaryWriter.return_value

    def figures() -> dict[str, float]:
        assert writer.add_graph.called and writer.close.called
        return {call.args[0]: call.args[1] for call in writer.add_scalar.call_args_list}

    return figures


def mlflow(packages: Packages) -> Callable[[], dict[str, float]]:
    package = packages.install("mlflow")
    package.active_run.return_value = None

    def figures() -> dict[str, float]:
        package.set_experiment.assert_called_once_with("half")
        package.start_run.assert_called_once_with(run_name="half-1")
        package.end_run.assert_called_once_with(status="FINISHED")
        return merged(call.kwargs["metrics"] for call in package.log_metrics.call_args_list)

    return figures


def wandb(packages: Packages) -> Callable[[], dict[str, float]]:
    package = packages.install("wandb")
    package.run, run = None, MagicMock(name="run")
    package.init.side_effect = lambda **_: setattr(package, "run", run)

    def figures() -> dict[str, float]:
        options = package.init.call_args.kwargs
        assert (options["project"], options["name"], options["config"]["epochs"]) == ("half", "half-1", 1)
        assert package.finish.called  # by a callback that it has added itself
        (best,) = package.Artifact.return_value.add_file.call_args.args
        assert checkpoint.load(best).names == {0: "square", 1: "disc"}
        return merged(call.args[0] for call in run.log.call_args_list)

    return figures


def clearml(packages: Packages) -> Callable[[], dict[str, float]]:
    package = packages.install("clearml")
    task, running = MagicMock(name="task"), []
    package.Task.current_task.side_effect = lambda: running[-1] if running else None
    package.Task.init.side_effect = lambda **_: running.append(task) or task

    def figures() -> dict[str, float]:
        assert package.Task.init.call_args.kwargs["project_name"] == "half"
        assert task.update_output_model.called
        calls = task.get_logger.return_value.report_scalar.call_args_list
        return {call.args[1]: call.args[2] for call in calls if len(call.args) == 3} | {
            call.args[1]: call.kwargs.get("v", 1.0) for call in calls if len(call.args) == 2
        }

    return figures


def comet(packages: Packages) -> Callable[[], dict[str, float]]:
    package = packages.install("comet_ml")
    experiment = package.get_running_experiment.return_value

    def figures() -> dict[str, float]:
        package.start.assert_called_once_with(project_name="half")
        assert Path(experiment.log_model.call_args.kwargs["file_or_folder"]).is_file() and experiment.end.called
        return merged(call.args[0] for call in experiment.log_metrics.call_args_list)

    return figures


def dvc(packages: Packages) -> Callable[[], dict[str, float]]:
    live = packages.install("dvclive").Live.return_value

    def figures() -> dict[str, float]:
        assert live.log_params.called and live.next_step.called and live.end.called
        return {call.args[0]: call.args[1] for call in live.log_metric.call_args_list}

    return figures


def merged(rows: Any) -> dict[str, float]:
    return {name: value for row in rows for name, value in row.items()}


@pytest.mark.parametrize("prepare", [tensorboard, mlflow, wandb, clearml, comet, dvc])
def test_each_gets_losses_metrics_and_rates_of_the_student(
    prepare: Any, packages: Packages, data: datasets.DataSet, tmp_path: Path
) -> None:
    name = prepare.__name__
    figures = prepare(packages)
    check_loggers([name])
    settings = dict(ultralytics.utils.SETTINGS)
    console = follow(data, tmp_path, name)
    assert console.warnings == []
    seen = {key.replace("(B)", "").replace("B", ""): value for key, value in figures().items()}
    assert "lr/pg0" in seen and any(key.startswith("train/") for key in seen), seen
    assert "metrics/mAP50-95" in seen
    assert dict(ultralytics.utils.SETTINGS) == settings


def test_one_that_fails_is_left_out_and_the_training_goes_on(
    packages: Packages, data: datasets.DataSet, tmp_path: Path
) -> None:
    package = packages.install("wandb")
    package.run = None
    package.init.side_effect = ValueError("not logged in\nrun wandb login")
    console = follow(data, tmp_path, "wandb")
    assert console.warnings == ["logger wandb failed and is left out from here on: not logged in"]
    assert package.init.call_count == 1 and (tmp_path / "train" / "weights").is_dir()


def test_what_the_user_has_switched_on_in_ultralytics_stays_out(
    packages: Packages, data: datasets.DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = packages.install("wandb")
    monkeypatch.setattr(upstream, "integration", pytest.fail)
    train(tiny(), data, replace(SHORT, epochs=1, steps=3), folder=tmp_path / "t", console=Console(quiet=True), imgsz=64)
    assert not package.init.called


def test_a_missing_package_is_a_line_with_its_mend() -> None:
    assert tuple(PACKAGES) == LOGGERS
    for name, (package, to_install) in PACKAGES.items():
        if package in sys.modules:
            continue
        with pytest.raises(DistillError, match=rf"^loggers: {name} needs {package}.*pip install {to_install}$"):
            check_loggers([name])


def test_a_package_that_ultralytics_does_not_take_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)  # without __version__, as a folder of that name
    with pytest.raises(DistillError, match="cannot use the installed wandb: pip install -U wandb"):
        check_loggers(["wandb"])


def test_their_events_are_those_of_the_training_loop(packages: Packages) -> None:
    for package in ("tensorboard", "torch.utils.tensorboard", *(package for package, _ in PACKAGES.values())):
        packages.install(package)
    called = set(re.findall(r'run_callbacks\("(\w+)"\)', inspect.getsource(BaseTrainer)))
    for name in PACKAGES:
        events = upstream.integration(name).keys() - {"on_val_end"}  # of a validator that is not used here
        assert events and events <= called, name


def test_a_recipe_names_them() -> None:
    read = recipes.load("half", [*GIVEN, "loggers=[tensorboard, mlflow]"])
    assert read.loggers == ("tensorboard", "mlflow") and recipes.load("half", GIVEN).loggers == ()
    with pytest.raises(DistillError, match="did you mean 'tensorboard'"):
        recipes.load("half", [*GIVEN, "loggers=[tensorbord]"])
