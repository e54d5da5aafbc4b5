"""Training as its users run it: real processes, killed and resumed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support.wait import wait_for
from training.config import TrainConfig

ROOT = Path(__file__).parent.parent.parent
TINY = TrainConfig(
    n_layer=1,
    n_head=3,
    n_embd=16,
    block_size=16,
    batch_size=8,
    max_iters=150,
    warmup_iters=5,
    learning_rate=1e-2,
    eval_interval=25,
    save_interval=5,
    log_interval=5,
    sample_chars=20,
)
TIMEOUT = 200

minutes_long = pytest.mark.skipif(
    "FOLIO_SLOW" not in os.environ, reason="takes minutes: FOLIO_SLOW=1 python -m pytest -m slow tests/training"
)
"""For tests that are run before a release, not at every change."""


def flags(config: TrainConfig) -> list[str]:
    """The flags that make ``config`` from the preset default."""
    standard = TrainConfig().to_json()
    changed = {name: value for name, value in config.to_json().items() if value != standard[name]}
    names = {name: name.replace("_", "-") for name in changed}
    return [
        f"--{names[n]}" if value is True else f"--no-{names[n]}" if value is False else f"--{names[n]}={value}"
        for n, value in changed.items()
    ]


LIMITED = (
    "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({0}, {0})); from training.__main__ import main; sys.exit(main())"
)


def launch(arguments: Sequence[str], *, file_limit: int | None = None, **environment: str) -> subprocess.Popen[str]:
    """``python -m training …`` with one thread: tests share their machine. ``file_limit``: bytes that a file may have."""
    command = ["-m", "training"] if file_limit is None else ["-c", LIMITED.format(file_limit)]
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """(status, standard output, standard error); a hang is an error."""
    try:
        out, err = process.communicate(timeout=TIMEOUT)
    finally:
        process.kill()
    return process.returncode, out, err


class Run:
    """One run directory and the processes that work on it."""

    def __init__(self, path: Path, text: Path, config: TrainConfig = TINY) -> None:
        self.path, self.text, self.config = path, text, config
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Run:
        """Begin it."""
        self.process = launch(["--data", str(self.text), "--out", str(self.path), *flags(self.config)])
        return self

    def resume(self) -> Run:
        """Go on with it, or begin it if it was killed before its first save."""
        if not (self.path / "last").exists():
            return self.start()
        self.process = launch(["resume", str(self.path)])
        return self

    def wait(self) -> int:
        """Its exit status when it is done."""
        assert self.process
        self.status, self.out, self.err = finish(self.process)
        return self.status

    def wait_until(self, condition: Callable[[], bool]) -> bool:
        """Whether ``condition`` came true before the process ended."""
        assert self.process
        process = self.process
        held = False

        def is_over() -> bool:
            nonlocal held
            held = condition()
            return held or process.poll() is not None

        wait_for(is_over, limit_s=TIMEOUT, pause_s=0.0005)
        return held

    def send(self, number: int) -> int:
        """Send a signal and wait for the end; the exit status."""
        assert self.process
        self.process.send_signal(number)
        return self.wait()

    def kill(self) -> None:
        self.send(signal.SIGKILL)

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is half-written right now."""
        return any(self.path.glob(".step-*.writing-*"))

    @property
    def saved_step(self) -> int:
        """The step that ``last`` points at, 0 before the first save."""
        try:
            return int(os.readlink(self.path / "last").removeprefix("step-"))
        except FileNotFoundError:
            return 0

    def result(self) -> dict[str, bytes]:
        """Every byte that must not depend on interruptions: weights, optimizer, logged losses, samples."""
        names = [f"{link}/{file}.safetensors" for link in ("best", "last") for file in ("model", "optimizer")]
        names += ["metrics.jsonl", *sorted(str(p.relative_to(self.path)) for p in self.path.glob("samples/*"))]
        return {name: (self.path / name).read_bytes() for name in names}
