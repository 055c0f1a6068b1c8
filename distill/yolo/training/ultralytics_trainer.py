"""ultralytics' training loop with our network, data, learning rate, files and screen."""

from __future__ import annotations

import copy
import inspect
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from distill.errors import DistillError
from distill.machine import parallel
from distill.machine.console import Console
from distill.machine.progress import Bar, EpochCallback
from distill.training.schedule import Schedule
from distill.training.state import TrainingState
from distill.yolo.checkpoint import detector as checkpoint
from distill.yolo.data.dataset import DataSet
from distill.yolo.data.images import build_dataset
from distill.yolo.evaluation.evaluate import EvalSettings, evaluate
from distill.yolo.training.batches import mixed_loader
from distill.yolo.training.learner import Learner
from distill.yolo.training.loggers import Loggers
from distill.yolo.training.mixing import MixedSampler
from distill.yolo.upstream import RecordsDataset, StudentAverage, TrainingLoop, init_seeds, quiet


@dataclass(frozen=True)
class Job:
    """What `run_loop` trains; see `train` for what is not described."""

    learner: Learner
    data: DataSet
    schedule: Schedule
    folder: Path  # the state is written here after each epoch
    state: TrainingState  # the finished part of the training, updated after each epoch
    state_dicts: dict[str, Any] | None  # of network, optimizer and averages, from an earlier run; None to begin
    console: Console
    val_batch: int
    on_epoch: EpochCallback | None
    loggers: Loggers | None


def run_loop(job: Job, settings: dict[str, Any]) -> None:
    """Train to the end, with ultralytics' arguments; the result is in `job.state` and in its files."""
    threads = torch.get_num_threads()
    epochs = job.schedule.epochs - job.state.epoch
    with quiet(), job.console.bar("training", epochs, "epochs") as whole, ExitStack() as bars:
        trainer = _Trainer(job, settings, whole, bars)
        torch.set_num_threads(threads)  # ultralytics has set its own number, if the device is the CPU
        trainer.train()


class _Trainer(TrainingLoop):
    def __init__(self, job: Job, settings: dict[str, Any], whole: Bar, bars: ExitStack) -> None:
        self.job, self.whole, self.bars = job, whole, bars
        self.batch_index, self.validated = 0, False
        super().__init__(job.learner, job.data.config, settings)

    def run_callbacks(self, event: str) -> None:
        super().run_callbacks(event)
        loggers = self.job.loggers
        if loggers is None or not loggers.names or not parallel.is_leader():
            return
        if event == "on_train_end":
            self._write_best()
        loggers.call(event, self, resumed=self.job.state_dicts is not None)

    def _write_best(self) -> None:
        """The file that loggers keep: the result, as `YOLO(...)` opens it."""
        best: Any = copy.deepcopy(self.job.learner.student_model).cpu().float().eval()
        best.load_state_dict(self.job.state.best_weights)
        checkpoint.save(best, self.best, names=self.job.data.names or best.names, imgsz=self.args.imgsz, plan=None)

    def before_loaders(self) -> None:
        self.job.learner.refreeze()
        # Under torchrun, train in the processes that there are. ultralytics would open a process group of its own, for
        # GPUs only, and pass a device index to the wrapper, which a CPU does not have.
        if parallel.world() > 1 and self.world_size <= 1:
            self.world_size = parallel.world()
            device_ids = None if self.device.type == "cpu" else [self.device.index]
            # Each process keeps BatchNorm statistics of its own and the leader's are saved, as in ultralytics' trainer.
            parameters = inspect.signature(DistributedDataParallel).parameters
            sync = "forward_sync_buffers" if "forward_sync_buffers" in parameters else "broadcast_buffers"
            options: dict[str, Any] = {sync: False}
            self.model = DistributedDataParallel(self.model, device_ids, find_unused_parameters=True, **options)

    def make_loader(self, batch: int) -> DataLoader | None:
        if self.job.schedule.labelled is None:
            return None
        return mixed_loader(
            self.job.data,
            self.job.schedule,
            imgsz=self.args.imgsz,
            hyp=self.args,
            device=self.device,
            batch=batch,
            stride=self.stride,
            seed=self.args.seed,
            workers=self.args.workers,
            shared=True,
        )

    def make_dataset(self, batch: int) -> RecordsDataset:
        sizes = {"imgsz": self.args.imgsz, "batch": batch, "stride": self.stride}
        return build_dataset(self.job.data, "train", **sizes, augment=True, hyp=self.args)

    def before_training(self) -> None:
        self.ema = StudentAverage(self.model, self.job.schedule.averaged)
        states = self.job.state_dicts
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
        self.start_epoch = self.job.state.epoch
        self.resume_loss(self.start_epoch)

    def begin_epoch(self) -> None:
        # A seed for each epoch: a resumed run draws what an unbroken one would have drawn.
        seed = (self.args.seed * 100_003 + self.epoch + 7919 * parallel.rank()) % 2**32
        init_seeds(seed, deterministic=self.args.deterministic)
        ahead = self.train_loader.num_workers > 0  # workers load ahead, and are not stopped for this
        if isinstance(self.train_loader.sampler, MixedSampler) and not (ahead and self.epoch > self.start_epoch):
            self.train_loader.sampler.set_epoch(self.epoch)
        if not ahead:
            self.train_loader.reset()
            self.train_loader.generator.manual_seed(seed)
        self.batch_index, self.start_time = 0, time.monotonic()
        self.bars.close()
        label = f"epoch {self.epoch + 1}/{self.epochs}"
        self.bar = self.bars.enter_context(self.job.console.bar(label, len(self.train_loader), "batches"))

    def begin_batch(self) -> None:
        """Set the learning rate for each step; ultralytics would only do it for each epoch."""
        progress = (self.epoch + self.batch_index / len(self.train_loader)) / self.epochs
        self.job.learner.progress = progress
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.schedule.lr_at(progress) * group["initial_lr"] / self.job.schedule.lr

    def prepare_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["img"] = batch["img"].contiguous(memory_format=torch.channels_last)
        return batch if self.job.data.labelled else {"img": batch["img"]}

    def end_batch(self) -> None:
        self.batch_index += 1
        self.bar.advance(note=_format(self.tloss))
        self.seconds = time.monotonic() - self.start_time

    def validate(self) -> tuple[dict[str, float], float | None]:
        """Measure the averaged weights as `evaluate` does, not the loop's own validator: figures are those of the report."""
        due = self.stop or self.epoch + 1 >= self.epochs or (self.epoch + 1) % self.job.schedule.val_every == 0
        self.validated = self.job.data.labelled and due and parallel.is_leader()
        if not self.validated:
            return {}, self.fitness
        settings = EvalSettings(self.args.imgsz, self.job.val_batch, self.device)
        metrics = evaluate(self.ema.ema, self.job.data, settings)
        figures = {"map50_95": metrics.map50_95, "map50": metrics.map50}
        if metrics.beside is not None:
            figures |= {"beside_map50_95": metrics.beside.map50_95, "beside_map50": metrics.beside.map50}
        return figures, metrics.score

    def check_losses(self) -> None:
        for name, value in self.tloss.items():
            if not torch.isfinite(value):
                epoch = self.epoch + 1
                raise DistillError(f"loss '{name}' became {float(value)} in epoch {epoch}: choose a smaller lr")

    def save_metrics(self, metrics: dict[str, Any]) -> None:
        row = {"epoch": self.epoch + 1, "lr": self.optimizer.param_groups[0]["lr"]}
        row |= {name: float(value) for name, value in self.tloss.items()}
        names = ["map50_95", "map50"]
        names += ["beside_map50_95", "beside_map50"] if self.job.data.task.beside and self.job.data.labelled else []
        row |= {name: self.metrics.get(name) for name in names}
        self.job.state.history.append(row)
        self.job.state.seconds.append(self.seconds)

    def save_model(self) -> bool:
        state, learner = self.job.state, self.job.learner
        state.epoch, state.stopped = self.epoch + 1, bool(self.stop)
        better = self.validated and (state.best_score is None or self.fitness > state.best_score)
        # A penalty has its effect at the end only, and mAP is best before.
        take_last = not self.job.data.labelled or learner.penalty is not None
        if better or take_last or not state.best_epoch:
            state.best_epoch, state.best_score = self.epoch + 1, self.fitness if self.validated else None
            averaged = self.ema.ema.state_dict()
            state.best_weights = {name: value.detach().to("cpu", copy=True) for name, value in averaged.items()}
        state_dicts = {
            "student": learner.student_model.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "learned": learner.learned.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "stopper": {"best_fitness": self.stopper.best_fitness, "best_epoch": self.stopper.best_epoch},
            "updates": self.ema.updates,
        }
        state.write(self.job.folder, state_dicts)
        return True

    def end_epoch(self) -> None:
        if self.validated:
            self.bar.advance(0, f"mAP50-95 {self.fitness:.3f}, {_format(self.tloss)}")
        self.bars.close()
        self.whole.advance()
        if self.job.on_epoch is not None and parallel.is_leader():
            self.job.on_epoch(dict(self.job.state.history[-1]))


def _format(losses: dict[str, Any]) -> str:
    return " ".join(f"{name} {float(value):.3g}" for name, value in losses.items())
