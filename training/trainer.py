"""The training loop. A step is a function of (seed, step) and the state before it: there is no cursor and no generator to save."""

from __future__ import annotations

import contextlib
import ctypes
import json
import platform
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch.nn import functional as F
from tqdm import tqdm

from model.checkpoint import dump_json
from model.gpt import GPT
from model.loading import checkpoint_files, load_checkpoint
from model.sampling import mix64
from model.tokenizer import CharTokenizer
from training.config import TrainConfig, TrainingError
from training.data import Dataset, Text
from training.evaluate import full_loss
from training.optim import build_optimizer, learning_rate, load_named_state, named_state
from training.report import draw_loss, overfitting, sample_text
from training.run_directory import RunDirectory

OPTIMIZER, STATE = "optimizer.safetensors", "state.json"


class Interrupted(Exception):
    """A signal asked the run to save and stop."""


class Trainer:
    """One run from its first step to its last: ``Trainer.start(…).run()`` or ``Trainer.resume(…).run()``."""

    def __init__(self, config: TrainConfig, text: Text, run: RunDirectory) -> None:
        self.config, self.text, self.directory = config, text, run
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.tokenizer = CharTokenizer.from_text(text.text)
        self.data = Dataset(text.text, self.tokenizer, config.block_size, self.device)
        torch.manual_seed(config.seed)
        self.model = GPT(config.model_config(self.tokenizer.vocab_size)).to(self.device)
        self.optimizer = build_optimizer(self.model, config)
        self.step = 0
        self.best_loss, self.best_step = float("inf"), 0
        self.curve: list[dict[str, Any]] = []
        self.losses: list[float] = []  # of the steps since the last validation
        self.wall_time = 0.0
        self.stop_signal: int | None = None

    @classmethod
    def start(cls, config: TrainConfig, text: Text, out: Path) -> Trainer:
        """A new run in the directory ``out``. Raises TrainingError."""
        document = {"train": config.to_json(), "data": {"name": text.name, "sha256": text.sha256}}
        check_data(config, text)
        return cls(config, text, RunDirectory.create(out, document))

    @classmethod
    def resume(cls, out: Path, load_text: Any, data: str | None) -> Trainer:
        """The run in ``out`` as it was at its last save. Raises TrainingError and CheckpointError."""
        directory, document = RunDirectory.open(out)
        text = load_text(data or document.get("data", {}).get("path"))
        if text.sha256 != document["data"]["sha256"]:
            raise TrainingError(f"the text differs from the one that {out} was trained on ({document['data']['name']}): pass it with --data")
        trainer = cls(TrainConfig.from_json(document["train"]), text, directory)
        trainer.restore()
        return trainer

    def restore(self) -> None:
        """Take everything from ``last/``, which is verified first."""
        path = (self.directory.path / "last").resolve()
        loaded = load_checkpoint(path)
        self.model.load_state_dict(loaded.model.state_dict())
        load_named_state(self.model, self.optimizer, safetensors.torch.load_file(path / OPTIMIZER))
        state = json.loads((path / STATE).read_bytes())
        self.step, self.best_loss, self.best_step = state["step"], state["best_loss"], state["best_step"]
        self.losses, self.wall_time = state["losses"], state["wall_time"]
        self.curve = self.directory.cut_metrics(self.step)

    def run(self) -> None:
        """Train to the end, or until a signal or early stopping. Raises TrainingError when the loss is not finite."""
        with self.signals(), self.progress() as bar:
            began, before = time.monotonic(), self.wall_time
            while self.step < self.config.max_iters:
                loss = self.train_step()
                self.wall_time = before + time.monotonic() - began
                self.after_step(loss, bar)
                if self.stop_signal is not None:
                    self.save(best=False)
                    raise Interrupted(signal.Signals(self.stop_signal).name)
                if self.should_stop_early():
                    bar.write(f"no better loss for {self.config.patience} validations: stopping at step {self.step}")
                    break

    def train_step(self) -> float:
        """One optimizer step; the loss before it, in nats per token."""
        torch.manual_seed(mix64(self.config.seed * 1_000_003 + self.step) >> 1)  # dropout
        self.model.train()
        rate = learning_rate(self.config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        x, y = self.data.batch(self.config.seed, torch.tensor(self.step, device=self.device), self.config.batch_size)
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        self.optimizer.zero_grad()
        loss.backward()
        if self.config.grad_clip:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        value = loss.item()
        if not np.isfinite(value):
            raise TrainingError(
                f"the loss is {value} at step {self.step}: lower --learning-rate or use --dtype float32; the last good checkpoint is "
                f"{self.directory.path}/last"
            )
        self.optimizer.step()
        self.step += 1
        return value

    def after_step(self, loss: float, bar: tqdm[Any]) -> None:
        """Progress, validations and saves that are due."""
        self.losses.append(loss)
        bar.update()
        bar.set_postfix_str(f"loss {loss:.3f} best {self.best_loss:.4f} {self.tokens_per_second(bar):,.0f} tokens/s", refresh=False)
        last = self.step == self.config.max_iters
        better = False
        if last or self.step % self.config.eval_interval == 0:
            better = self.evaluate(bar)
        if last or better or self.step % self.config.save_interval == 0:
            self.save(best=better)

    def evaluate(self, bar: tqdm[Any]) -> bool:
        """Full validation, a sample and the picture; whether the loss is the best so far."""
        val_loss = full_loss(self.model, self.data.val)
        point = {"step": self.step, "train_loss": sum(self.losses) / len(self.losses), "val_loss": val_loss}
        self.losses = []
        self.curve.append(point)
        self.directory.append_metrics({**point, "lr": learning_rate(self.config, self.step - 1)})
        better = val_loss < self.best_loss
        if better:
            self.best_loss, self.best_step = val_loss, self.step
        bar.write(f"step {self.step:>6}  training {point['train_loss']:.4f}  validation {val_loss:.4f}{'  best' if better else ''}")
        if word := overfitting(self.curve):
            bar.write(word)
        sample = sample_text(self.model, self.tokenizer, self.config.seed, self.config.sample_chars, self.start_token)
        (self.directory.path / "samples" / f"step-{self.step:06d}.txt").write_text(sample, encoding="utf-8")
        draw_loss(self.curve, self.directory.path / "loss.png", f"{self.text.name}, {self.model.num_parameters:,} parameters")
        return better

    def save(self, *, best: bool) -> None:
        """A complete checkpoint with what resuming needs, as ``last`` (and ``best``)."""
        files = checkpoint_files(self.model, self.tokenizer, self.data.val[:256].tolist())
        files[OPTIMIZER] = safetensors.torch.save(named_state(self.model, self.optimizer))
        state = {
            "step": self.step,
            "best_loss": self.best_loss if self.best_step else 1e9,
            "best_step": self.best_step,
            "losses": self.losses,
            "wall_time": self.wall_time,
        }
        files[STATE] = dump_json(state)
        self.directory.save(self.step, files, self.manifest(), best=best)

    def manifest(self) -> dict[str, Any]:
        """Where these weights come from."""
        last = self.curve[-1] if self.curve else {"train_loss": None, "val_loss": None}
        return {
            "start": "\n",
            "train_loss": last["train_loss"],
            "val_loss": last["val_loss"],
            "val_loss_protocol": f"exact mean over the last 10 %, windows of {self.config.block_size}",
            "steps": self.step,
            "seed": self.config.seed,
            "data": {"name": self.text.name, "sha256": self.text.sha256, "characters": len(self.text.text)},
            "train": self.config.to_json(),
            "curve": self.curve,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "device": device_name(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "wall_time_s": round(self.wall_time, 1),
            "git_commit": git_commit(),
        }

    def should_stop_early(self) -> bool:
        """Whether ``patience`` validations have gone by without a better loss."""
        since = [point for point in self.curve if point["step"] > self.best_step]
        return 0 < self.config.patience <= len(since)

    @property
    def start_token(self) -> int:
        """What a sample without a prompt starts from."""
        return self.tokenizer.ids.get("\n", 0)

    def tokens_per_second(self, bar: tqdm[Any]) -> float:
        """Throughput so far."""
        rate = bar.format_dict["rate"] or 0.0
        return float(rate) * self.config.batch_size * self.config.block_size

    def progress(self) -> tqdm[Any]:
        """The progress bar; a plain line every few seconds where there is no terminal."""
        return tqdm(total=self.config.max_iters, initial=self.step, unit="step", dynamic_ncols=True, smoothing=0.05)

    @contextlib.contextmanager
    def signals(self) -> Any:
        """SIGINT and SIGTERM ask for a save after the present step; a second one ends at once."""

        def handler(number: int, frame: FrameType | None) -> None:
            if self.stop_signal is not None:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.stop_signal = number

        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, old in previous.items():
                signal.signal(number, old)


def check_data(config: TrainConfig, text: Text) -> None:
    """Refuse a text before a directory is made for it. Raises TrainingError."""
    if len(text.text) < 2 * config.block_size:
        raise TrainingError(f"{text.name} has {len(text.text)} characters: too few for a context of {config.block_size}")


def choose_device(name: str) -> torch.device:
    """auto → cuda where there is one. Raises TrainingError for cuda without a GPU."""
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainingError("--device cuda: torch sees no CUDA GPU here; use --device cpu, or check `nvidia-smi` and the driver")
    return torch.device("cuda" if name == "cuda" or (name == "auto" and torch.cuda.is_available()) else "cpu")


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """auto → bfloat16 where the hardware multiplies it."""
    if name == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def keep_freed_memory() -> None:
    """Tell glibc to recycle large buffers instead of returning them: page faults cost a third of a CPU step otherwise."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        m_trim_threshold, m_mmap_max = -1, -4  # <malloc.h>
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)


def device_name(device: torch.device) -> str:
    """What the run ran on, as a person would say it."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, IndexError):
        model = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
        return f"CPU, {torch.get_num_threads()} threads, {model.split(':')[1].strip()}"
    return f"CPU, {torch.get_num_threads()} threads, {platform.machine()}"


def git_commit() -> str | None:
    """The commit of the code that trains, if it is a checkout."""
    try:
        command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
