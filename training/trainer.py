"""The training loop. A step is a function of (seed, step) and the state before it: there is no cursor and no generator to save.

Trainer.start(config, text, out).run()
Trainer.resume(out).run()           # goes on as if nothing had happened
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from model.checkpoint.loading import LoadedCheckpoint, checkpoint_files, load_checkpoint
from model.checkpoint.manifest import read_manifest
from model.gpt import GPT
from model.tokenizer.base import Tokenizer
from training.checkpoint import TrainState, all_finite, build_manifest, load_state, state_files
from training.config import TrainConfig
from training.data import Text, load_run_text
from training.dataset import Dataset, build_tokenizer
from training.device import choose_device, choose_dtype, prepare
from training.distributed import ONE_PROCESS, World
from training.evaluate import mean_losses, measure
from training.flops import flops_per_token, measure_peak
from training.interrupt import InterruptedRunError, StopSignals
from training.optim import MovingAverage, build_optimizers, plateau_end, schedule
from training.progress import LossLog, Progress, diverged, first_not_finite
from training.report import Reporter
from training.run_directory import Point, RunDirectory, RunDocument, read_metrics
from training.step import build_step, compile_step
from training.transfer import CARRIED, extend_vocabulary, origin_of, transfer


class Trainer:
    """One run. Building it touches no disk; :meth:`start` and :meth:`resume` do."""

    def __init__(
        self,
        config: TrainConfig,
        text: Text,
        directory: RunDirectory,
        world: World = ONE_PROCESS,
        tokenizer: Tokenizer | None = None,
        init: LoadedCheckpoint | None = None,
    ) -> None:
        self.config, self.text, self.directory, self.world = config, text, directory, world
        self.device = world.device(choose_device(config.device))
        self.dtype = choose_dtype(config.dtype, self.device)
        prepare(config, self.device)
        self.tokenizer = tokenizer or build_tokenizer(config, text)
        self.data = Dataset(text, self.tokenizer, config.block_size, self.device, config.calibration_fraction)
        torch.manual_seed(config.seed)
        self.model = GPT(config.model_config(self.tokenizer.vocab_size)).to(self.device)
        self.ancestors: dict[str, dict[str, Any]] = {}
        if init:
            transfer(init, self.model, self.tokenizer)
            self.ancestors["init_from"] = origin_of(init)
        self.average = MovingAverage(self.model, config.ema) if config.ema else None
        self.optimizers = build_optimizers(self.model, config, self.dtype)
        self.losses = LossLog(self.device)
        self.state = TrainState()
        self.curve: list[Point] = []
        self.reporter = Reporter(directory, config, text, self.tokenizer, self.data, self.ancestors)
        forward = world.wrap(self.model, self.device)
        rows = world.rows(config.batch_size)
        self.step = build_step(self.model, forward, self.optimizers, self.data, config, self.dtype, rows)
        if config.compile:
            compile_step(self.step)

    @classmethod
    def start(cls, config: TrainConfig, text: Text, out: Path, world: World = ONE_PROCESS, init: LoadedCheckpoint | None = None) -> Trainer:
        """A new run in the directory ``out``, from the weights of ``init`` (whose shape ``config`` has) if given. Raises TrainingError."""
        tokenizer = extend_vocabulary(config, init, text) if init else None
        trainer = cls(config, text, RunDirectory(out), world, tokenizer, init)
        if world.is_main:
            trainer.directory.create(trainer.document())
        return trainer

    @classmethod
    def resume(cls, run: Path, data: Sequence[str] | None = None, world: World = ONE_PROCESS) -> Trainer:
        """The run as it was at its last save. Raises TrainingError and CheckpointError."""
        directory, document = RunDirectory.open(run)
        trainer = cls.restore(document, document.train, directory, directory.last(), data, world)
        trainer.curve = [point for point in read_metrics(run) if point.step <= trainer.state.step]
        if world.is_main:
            directory.replace_metrics(trainer.curve)
            directory.repair(directory.last(), is_best=trainer.state.best_step == trainer.state.step)
        return trainer

    @classmethod
    def extend(cls, run: Path, max_iters: int, out: Path, data: Sequence[str] | None = None, world: World = ONE_PROCESS) -> Trainer:
        """A new run in ``out`` that goes on from ``run`` to ``max_iters`` steps. Raises TrainingError and CheckpointError.

        WSD goes back to its plateau, so that the new run is what the old one would have been with so many steps from its beginning; a
        run that is past the plateau of fewer steps joins their descent where it is.
        """
        directory, document = RunDirectory.open(run)
        config = replace(document.train, max_iters=max_iters)
        path, step = directory.branch_point(max_iters, plateau_end(config) if config.schedule == "wsd" else max_iters - 1)
        trainer = cls.restore(document, config, RunDirectory(out), path, data, world)
        trainer.curve = [point for point in read_metrics(run) if point.step <= step]
        trainer.state.best_loss, trainer.state.best_step = None, 0  # the old run's best checkpoint is not in this one
        trainer.ancestors["extends"] = {"id": read_manifest(path).id, "steps": step}
        if world.is_main:
            trainer.directory.create(trainer.document())
            trainer.directory.replace_metrics(trainer.curve)
        trainer.save(["last"])
        return trainer

    @classmethod
    def restore(
        cls, document: RunDocument, config: TrainConfig, directory: RunDirectory, path: Path, data: Sequence[str] | None, world: World
    ) -> Trainer:
        """A trainer with the weights, the optimizer and the losses that lie in the checkpoint ``path`` of a run."""
        saved = load_checkpoint(path)
        trainer = cls(config, load_run_text(document, data), directory, world, saved.tokenizer)
        trainer.ancestors |= {name: value for name, value in (("init_from", document.init_from), ("extends", document.extends)) if value}
        trainer.served.load_state_dict(saved.model.state_dict())
        trainer.state, losses = load_state(path, trainer.model, trainer.optimizers)
        trainer.losses.restore(losses)
        return trainer

    def document(self) -> RunDocument:
        """What ``config.json`` of the run holds."""
        text, validation = self.text, self.text.validation
        return RunDocument(
            train=self.config,
            data_name=text.name,
            data_sha256=text.sha256,
            data_paths=list(text.paths) if text.paths else None,
            validation={"paths": list(validation.paths or ()), "sha256": validation.sha256} if validation else None,
            init_from=self.ancestors.get("init_from"),
            extends=self.ancestors.get("extends"),
        )

    @property
    def served(self) -> GPT:
        """The model that is validated, sampled and saved: the moving average where there is one."""
        return self.average.model if self.average else self.model

    def run(self) -> None:
        """Train to the end, to early stopping or to a signal (InterruptedRunError). Raises TrainingError when the loss is not finite."""
        with StopSignals() as signals, contextlib.closing(self.progress()) as progress:
            while self.state.step < self.config.max_iters and not self.stopped_early:
                self.advance(progress)
                if number := self.stop_requested(signals):
                    self.save(["last"])
                    raise InterruptedRunError(signal.Signals(number))
            if self.stopped_early:
                progress.say(f"no better loss for {self.config.patience} validations: stopped at step {self.state.step}")
        self.reporter.tracking.close()

    def advance(self, progress: Progress) -> None:
        """One step, and the look at the loss, the validation and the save that are due after it."""
        began = time.monotonic()
        self.losses.append(self.step(self.state.step))
        self.state.step += 1
        if self.average:
            self.average.update(self.state.step)
        step, last = self.state.step, self.state.step == self.config.max_iters
        if self.is_log_step:
            progress.update(step, self.checked_losses()[-1], self.state.best_loss)
        better = self.validate(progress) if last or step % self.config.eval_interval == 0 else False
        plateau = step == plateau_end(self.config)
        if better or plateau or last or step % self.config.save_interval == 0:
            self.save(["last", *(["best"] if better else []), *(["plateau"] if plateau else [])])
            progress.resume_clock()
        self.state.wall_time += time.monotonic() - began

    @property
    def is_log_step(self) -> bool:
        """Whether to look at the loss now. A CPU has it anyway."""
        return self.state.step % self.config.log_interval == 0 or (self.device.type == "cpu" and self.world.size == 1)

    def checked_losses(self) -> list[float]:
        """The losses since the last validation. Raises TrainingError at the first that is not finite."""
        losses = self.losses.values(self.world.dist_mean)
        if (bad := first_not_finite(losses)) is not None:
            diverged(f"the loss is {losses[bad]} at step {self.state.step - len(losses) + bad + 1}", self.directory.path)
        return losses

    def validate(self, progress: Progress) -> bool:
        """Full validation, a sample and the picture; whether the loss is the best so far."""
        train_loss = fmean(self.checked_losses())
        losses = measure(self.served, self.data, num_tokens=self.config.eval_tokens, world=self.world)
        val_loss, step = losses.val_loss, self.state.step
        if not math.isfinite(val_loss):
            diverged(f"the validation loss is {val_loss} at step {step}", self.directory.path)
        sampled = 0 < self.config.eval_tokens < self.data.num_targets
        whole = mean_losses(self.served, self.data.val, [1.0], world=self.world)[0] if sampled and step == self.config.max_iters else None
        point = Point(step, train_loss, lr=schedule(self.config, step - 1), val_loss_whole=whole, **asdict(losses))
        self.losses.clear()
        self.curve.append(point)
        better = self.state.best_loss is None or val_loss < self.state.best_loss
        if better:
            self.state.best_loss, self.state.best_step = val_loss, self.state.step
        if self.world.is_main:
            self.reporter.report(self.served, self.curve, progress.say)
        return better

    def save(self, names: Sequence[str]) -> None:
        """A complete checkpoint with what resuming needs, under some of the names last, best and plateau."""
        losses = self.checked_losses()
        if not all_finite(list(self.model.state_dict().values())):
            diverged(f"a weight is not finite after step {self.state.step}", self.directory.path)
        if self.world.is_main:
            files = checkpoint_files(self.served, self.tokenizer, self.data.val[:256].tolist())
            files |= state_files(self.state, losses, self.model, self.optimizers, averaged=self.average is not None)
            manifest = build_manifest(self.state, self.curve, losses, self.config, self.text, self.data, self.dtype)
            origin = self.ancestors.get("init_from", {})
            manifest |= {"start": "\n"} | {name: origin[name] for name in CARRIED if name in origin} | self.ancestors
            self.directory.save(self.state.step, files, manifest, names)

    @property
    def stopped_early(self) -> bool:
        """Whether ``patience`` validations have gone by without a better loss."""
        since = [point for point in self.curve if point.step > self.state.best_step]
        return 0 < self.config.patience <= len(since)

    def stop_requested(self, signals: StopSignals) -> int:
        """The signal that asks for an end, or 0; several processes agree on it at log steps."""
        if self.world.size > 1 and self.state.step % self.config.log_interval:
            return 0
        return self.world.dist_max(signals.received or 0, self.device)

    def progress(self) -> Progress:
        """A bar, or lines, or silence for all processes but the first."""
        return Progress(
            total=self.config.max_iters,
            step=self.state.step,
            tokens_per_step=self.config.tokens_per_step,
            flops_per_step=flops_per_token(self.model.config) * self.config.tokens_per_step,
            peak_flops=measure_peak(self.device, self.dtype) * self.world.size,
            quiet=not self.world.is_main,
        )
