"""Loggers that a recipe names: ultralytics' own integrations with TensorBoard, MLflow and others, for one training.

The user's settings of ultralytics are neither read nor changed: only what the recipe names is called.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from distill.errors import DistillError, first_line
from distill.yolo import upstream

# Of each logger the package to import, and its name for pip.
PACKAGES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
    "wandb": ("wandb", "wandb"),
    "clearml": ("clearml", "clearml"),
    "comet": ("comet_ml", "comet_ml"),
    "dvc": ("dvclive", "dvclive"),
}
METRICS = {"map50_95": "metrics/mAP50-95(B)", "map50": "metrics/mAP50(B)"}  # by the names that their charts know

Hook = Callable[[Any], Any]


def check_loggers(names: Iterable[str]) -> None:
    """Refuse a logger that cannot be used here, before hours of work.

    Raises:
        DistillError: its package is missing, or ultralytics does not take the version that is there.
    """
    for name in names:
        package, to_install = PACKAGES[name]
        if find_spec(package) is None:
            raise DistillError(f"loggers: {name} needs {package}, which is not installed: pip install {to_install}")
        if not upstream.integration(name):
            raise DistillError(
                f"loggers: ultralytics cannot use the installed {package}: pip install -U {to_install}, or leave "
                f"{name} out (it logs nothing in tests and on GitHub's runners)"
            )


class Loggers:
    """The integrations of one training. One that fails is left out from then on, with a warning: the training goes on.

    Args:
        names: keys of `PACKAGES`.
        project: what is shown together, such as the recipe's name.
        run: the name of this training.
        warn: takes the warning.
    """

    def __init__(self, names: Iterable[str], project: str, run: str, warn: Callable[[str], object]) -> None:
        self.names, self.project, self.run, self.warn = tuple(names), project, run, warn
        self.hooks: dict[str, list[tuple[str, Hook]]] = defaultdict(list)
        for name in self.names:
            for event, hook in upstream.integration(name).items():
                self.hooks[event].append((name, hook))
        self._shown: Shown | None = None
        self._failed: set[str] = set()

    def call(self, event: str, trainer: Any, *, resumed: bool = False) -> None:
        """Tell every integration of an event of the training loop.

        Args:
            event: by ultralytics' name, such as `on_fit_epoch_end`.
            trainer: the loop.
            resumed: the training began in an earlier process.
        """
        for name, hook in list(self.hooks[event]):
            if name in self._failed:
                continue
            self._shown = self._shown or Shown(trainer, self, resumed)
            self._shown.logger = name
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the tracer that draws the network
                    hook(self._shown)
            except Exception as error:  # noqa: BLE001 - of a package that is not ours, and perhaps of a network
                self._failed.add(name)
                self.warn(f"logger {name} failed and is left out from here on: {first_line(error)}")


class Shown:
    """The training loop as integrations see it: the student for a model, names of the run, metrics by common names."""

    def __init__(self, trainer: Any, loggers: Loggers, resumed: bool) -> None:
        self.trainer, self.loggers, self.resumed = trainer, loggers, resumed
        self.logger = ""  # that is being called

    def __getattr__(self, name: str) -> Any:
        return getattr(self.trainer, name)

    @cached_property
    def args(self) -> Any:
        """The arguments of the training, with project and name of the run in place of folders."""
        args = copy.copy(self.trainer.args)
        args.project, args.name, args.resume = self.loggers.project, self.loggers.run, self.resumed
        return args

    @property
    def model(self) -> Any:
        """The student, without its teacher."""
        return self.trainer.job.learner.student_model

    @property
    def metrics(self) -> dict[str, float]:
        """What was measured after this epoch; empty if nothing was."""
        return {METRICS.get(name, name): value for name, value in (self.trainer.metrics or {}).items()}

    def add_callback(self, event: str, hook: Hook) -> None:
        """Call something more at an event, for the integration that asks for it."""
        self.loggers.hooks[event].append((self.logger, hook))
