"""One life of one worker: a process, and the socket that it inherits. No file is left behind, however either end ends."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self, cast

from service.worker.messages import FromWorker, Message, Unframer, frame, from_worker

ROOT = Path(__file__).resolve().parents[2]
WORKER = "service.worker"
"""What is run; a benchmark of the API process runs something else."""
POLL_S = 0.25
REAP_S = 0.002
EXIT_S = 0.2

NEEDED_VARIABLES = frozenset({"HOME", "LANG", "LANGUAGE", "PATH", "TMPDIR", "TZ", "USER", "VIRTUAL_ENV", "XDG_CACHE_HOME"})
NEEDED_PREFIXES = (
    *("LC_", "LD_", "MALLOC_", "PYTHON"),
    *("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "PYTORCH_", "TORCH", "TRITON_"),
    *("GOMP_", "KMP_", "MKL_", "OMP_", "OPENBLAS_"),
)


def worker_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that a worker needs: the system's, Python's, and those of the arithmetic's libraries. No key is among them.

    numpy computes with one thread unless told otherwise: the products of one token are too small to share.
    """
    return {"OPENBLAS_NUM_THREADS": "1"} | {k: v for k, v in environment.items() if k in NEEDED_VARIABLES or k.startswith(NEEDED_PREFIXES)}


def spawn(environment: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A worker, and our end of its socket. Raises OSError (no file descriptor, process or memory to be had), and then leaves nothing.

    Called by the main thread: the kernel kills a worker when the thread that started it ends.
    """
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    command = [sys.executable, "-m", WORKER, str(theirs.fileno())]
    try:
        with theirs:
            inherited, needed = [theirs.fileno()], worker_environment(environment)
            return subprocess.Popen(command, pass_fds=inherited, cwd=ROOT, stdin=subprocess.DEVNULL, env=needed), ours
    except BaseException:
        ours.close()
        raise


class WorkerProcess(asyncio.Protocol):
    """``start`` it; its messages go to ``receive`` until `wait` returns; then ``kill`` it."""

    def __init__(self, process: subprocess.Popen[bytes], receive: Callable[[FromWorker], None]) -> None:
        self.process = process
        self.receive = receive
        self.unframer = Unframer()
        self.transport: asyncio.WriteTransport | None = None
        self.lost = asyncio.Event()
        self.heard = time.monotonic()

    # ---- asyncio.Protocol --------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)

    def data_received(self, data: bytes) -> None:
        self.heard = time.monotonic()
        for message in self.unframer.feed(data):
            self.receive(from_worker.decode(message))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    # ---- its life ----------------------------------------------------------------------------------------------------------

    @classmethod
    async def start(cls, receive: Callable[[FromWorker], None], environment: Mapping[str, str]) -> Self:
        """A worker whose socket is read. Raises OSError, and then nothing is left behind."""
        process, ours = spawn(environment)
        worker = cls(process, receive)
        try:
            await asyncio.get_running_loop().create_connection(lambda: worker, sock=ours)
        except BaseException:
            ours.close()
            process.kill()
            process.wait()
            raise
        return worker

    def send(self, message: Message) -> None:
        """Write a message; to a worker that is just dying, nothing: its successor is sent everything again."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame(message))

    async def wait(self, patience_s: Callable[[], float]) -> str:
        """Return how it ended: it is gone, or it has been silent for longer than ``patience_s()``."""
        while True:
            asked = time.monotonic()
            try:
                await asyncio.wait_for(self.lost.wait(), POLL_S)
                return await self.ending()
            except TimeoutError:
                now = time.monotonic()
                if now - asked > 2 * POLL_S:  # this process was held up itself: what it has not read is no silence
                    self.heard = max(self.heard, asked)
                elif now - self.heard > (limit := patience_s()):
                    return f"the worker was silent for {limit:.0f} s"

    async def ending(self) -> str:
        """What became of a process that has closed its socket; a moment later its exit status is known too."""
        deadline = time.monotonic() + EXIT_S
        while (status := self.process.poll()) is None and time.monotonic() < deadline:
            await asyncio.sleep(REAP_S)
        if status is None:
            return "the worker closed its connection"
        return f"the worker was killed by {signal.Signals(-status).name}" if status < 0 else f"the worker ended with status {status}"

    def hang_up(self) -> None:
        """Close the socket: the worker leaves, and `wait` returns."""
        if self.transport is not None:
            self.transport.abort()

    async def kill(self) -> None:
        """Close the socket, kill the process, and wait until it is gone."""
        self.hang_up()
        self.process.kill()
        while self.process.poll() is None:
            await asyncio.sleep(REAP_S)
