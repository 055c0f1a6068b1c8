"""ultralytics' training loop with our network, data, learning rate, files and screen."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import init_seeds

from distill.errors import DistillError
from distill.machine import parallel
from distill.machine.console import Console
from distill.training.schedule import Schedule
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.evaluation.evaluate import EvalSettings, evaluate
from distill.yolo.training.learner import Learner, StudentEMA
from distill.yolo.training.state import StateFiles, TrainingState


@dataclass(frozen=True)
class Job:
    """What one training is made of, beside ultralytics' settings.

    Args:
        learner: the network and what it is taught by.
        data: images and labels.
        schedule: length, learning rate, augmentation.
        files: where the state is written after each epoch.
        progress: what is done; all that comes of the training is in here.
        states: of network, optimizer and averages where an earlier run left off; None to begin.
        console: shows a bar for each epoch.
        val_batch: images in a batch of validation.
    """

    learner: Learner
    data: DataSet
    schedule: Schedule
    files: StateFiles
    progress: TrainingState
    states: dict[str, Any] | None
    console: Console
    val_batch: int


def run_loop(job: Job, settings: dict[str, Any]) -> None:
    """Train to the end; the result is in `job.progress` and in its files.

    Args:
        job: what is trained.
        settings: ultralytics' arguments.
    """
    threads = torch.get_num_threads()
    try:
        with quiet(), ExitStack() as bars:
            trainer = _Trainer(job, settings, bars)
            torch.set_num_threads(threads)  # choosing the CPU as device has set it to ultralytics' own number
            trainer.train()
    finally:
        torch.set_num_threads(threads)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence ultralytics: the console says what there is to say."""
    level = LOGGER.level
    LOGGER.setLevel(logging.ERROR)
    try:
        yield
    finally:
        LOGGER.setLevel(level)


class _Trainer(DetectionTrainer):
    # Set by the base class as it goes, and None to a type checker.
    model: Any
    ema: Any
    optimizer: Any
    tloss: Any
    fitness: Any
    metrics: Any

    def __init__(self, job: Job, settings: dict[str, Any], bars: ExitStack) -> None:
        self.job, self.bars = job, bars
        self.batch_index, self.validated = 0, False
        super().__init__(overrides=settings)
        # A module in place of a name is trained as it is; from a name, the network would be rebuilt, uncut, from yaml.
        self.model = job.learner

    def run_callbacks(self, event: str) -> None:
        """Our own few steps. The loggers and usage statistics that ultralytics calls here are not wanted."""
        steps = {
            "on_train_epoch_start": self.begin_epoch,
            "on_train_batch_start": self.begin_batch,
            "on_train_batch_end": self.end_batch,
            "on_fit_epoch_end": self.end_epoch,
        }
        if event in steps:
            steps[event]()

    # Data.

    def get_dataset(self) -> dict[str, Any]:
        return dict(self.job.data.config)

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> Any:
        imgsz, stride = self.args.imgsz, self.stride
        return build_dataset(
            self.job.data, "train", imgsz=imgsz, batch=batch or 1, stride=stride, augment=True, hyp=self.args
        )

    def get_dataloader(self, dataset_path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        if mode == "val":
            return self.train_loader  # one must be there, but `evaluate` makes its own
        return super().get_dataloader(dataset_path, batch_size, rank, mode)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch = super().preprocess_batch(batch)
        batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        return batch if self.job.data.labelled else {"img": batch["img"]}

    def _build_train_pipeline(self) -> None:
        """Under torchrun, the trainer's own way to train in several processes, from here on.

        It would open a process group too, for GPUs alone, and wrap the network with a device that a CPU has not.
        """
        self.job.learner.refreeze()
        if parallel.world() > 1 and self.world_size <= 1:
            self.world_size = parallel.world()
            index = None if self.device.type == "cpu" else [self.device.index]
            # Each process keeps BatchNorm statistics of its own, and the leader's are saved; as in the trainer.
            known = inspect.signature(DistributedDataParallel).parameters
            apart: Any = {"forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers": False}
            self.model = DistributedDataParallel(self.model, index, find_unused_parameters=True, **apart)
        super()._build_train_pipeline()

    # The network's state.

    def set_model_attributes(self) -> None:
        student: Any = self.job.learner.student_model
        student.nc, student.names, student.args = self.data["nc"], self.data["names"], self.args

    def resume_training(self, ckpt: Any) -> None:
        """Called when network, optimizer and loaders stand: the moment to take up what an earlier run left."""
        self.ema = StudentEMA(self.model, self.job.schedule.ema_tau)
        states = self.job.states
        if states is None:
            return
        try:
            self.job.learner.student_model.load_state_dict(states["student"])
            self.ema.ema.load_state_dict(states["ema"])
            self.job.learner.learned.load_state_dict(states["learned"])
            self.optimizer.load_state_dict(states["optimizer"])
            self.stopper.__dict__.update(states["stopper"])
            self.ema.updates = states["updates"]
        except (RuntimeError, ValueError, KeyError) as error:
            what = f"{self.wdir}: the state of another network or other losses"
            raise DistillError(f"{what}; delete the folder to start anew") from error
        self.start_epoch = self.job.progress.epoch

    def save_model(self) -> bool:
        """Write the state after an epoch."""
        done = self.job.progress
        done.epoch, done.stopped = self.epoch + 1, bool(self.stop)
        better = self.validated and (done.best_map is None or self.fitness > done.best_map)
        # A penalty has done its work at the end only, and mAP is best before it does any.
        latest = not self.job.data.labelled or self.job.learner.penalty is not None
        if better or latest or not done.best_epoch:
            done.best_epoch, done.best_map = self.epoch + 1, self.fitness if self.validated else None
            done.best_weights = self.ema.weights()
        states = {
            "student": self.job.learner.student_model.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "learned": self.job.learner.learned.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stopper": {"best_fitness": self.stopper.best_fitness, "best_epoch": self.stopper.best_epoch},
            "updates": self.ema.updates,
        }
        self.job.files.write(done, states)
        return True

    def final_eval(self) -> None:
        """Nothing: ultralytics would rewrite best.pt and measure it again."""

    # Epochs and batches.

    def begin_epoch(self) -> None:
        # Each epoch draws from a seed of its own: a resumed run then sees what it would have seen unbroken.
        seed = (self.args.seed * 100_003 + self.epoch + 7919 * parallel.rank()) % 2**32
        init_seeds(seed, deterministic=self.args.deterministic)
        if not self.train_loader.num_workers:  # workers have loaded ahead, and are not stopped for this
            self.train_loader.reset()
            self.train_loader.generator.manual_seed(seed)
        self.batch_index, self.began = 0, time.monotonic()
        self.bars.close()
        label = f"epoch {self.epoch + 1}/{self.epochs}"
        self.bar = self.bars.enter_context(self.job.console.bar(label, len(self.train_loader)))

    def begin_batch(self) -> None:
        """Set the learning rate: step by step, where ultralytics would only do it epoch by epoch."""
        progress = (self.epoch + self.batch_index / len(self.train_loader)) / self.epochs
        self.job.learner.progress = progress
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.schedule.lr_at(progress) * group["initial_lr"] / self.job.schedule.lr

    def end_batch(self) -> None:
        self.batch_index += 1
        self.bar.advance(note=_words(self.tloss))
        self.seconds = time.monotonic() - self.began

    def validate(self) -> tuple[dict[str, float], float | None]:
        """mAP of the averaged weights, where there are labels and it is this epoch's turn.

        By `evaluate` and not by the loop's own validator, so that it is the number that the report will show.
        """
        due = self.stop or self.epoch + 1 >= self.epochs or (self.epoch + 1) % self.job.schedule.val_every == 0
        self.validated = self.job.data.labelled and due and parallel.leads()
        if not self.validated:
            return {}, self.fitness
        found = evaluate(self.ema.ema, self.job.data, EvalSettings(self.args.imgsz, self.job.val_batch, self.device))
        return {"map50_95": found.map50_95, "map50": found.map50}, found.map50_95

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        row = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {name: float(value) for name, value in self.tloss.items()}
        row |= {name: self.metrics.get(name) for name in ("map50_95", "map50")}
        self.job.progress.history.append(row)
        self.job.progress.seconds.append(self.seconds)

    def end_epoch(self) -> None:
        if self.validated:
            self.bar.advance(0, f"mAP50-95 {self.fitness:.3f}, {_words(self.tloss)}")
        self.bars.close()

    def _handle_nan_recovery(self, epoch: int) -> bool:
        for name, value in self.tloss.items():
            if not torch.isfinite(value):
                raise DistillError(f"loss '{name}' became {float(value)} in epoch {epoch + 1}: choose a smaller lr")
        return False


def _words(losses: dict[str, Any]) -> str:
    return " ".join(f"{name} {float(value):.3g}" for name, value in losses.items())
