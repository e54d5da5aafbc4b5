"""The worker process: receive, step, publish. The API process starts it with one end of a socket pair; it leaves when that closes.

It holds nothing that cannot be rebuilt and saves nothing: its successor is sent every unfinished sequence.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
import time
import traceback

from model.checkpoint.manifest import CheckpointError
from service.worker.core import EngineCore
from service.worker.messages import VERSION, Broken, Cancel, Heartbeat, Loading, Message, Start, Step, Submit, Unframer, frame, to_worker
from service.worker.runners.interface import RunnerLost
from service.worker.selftest import SelfTestError
from service.worker.startup import UnusableError, load

HEARTBEAT_S = 0.25
REPORT_S = 0.05
PR_SET_PDEATHSIG = 1  # <sys/prctl.h>


class SocketClosedError(Exception):
    """The API process has closed its end: time to leave."""


EXPECTED = (CheckpointError, UnusableError, SelfTestError, RunnerLost)
"""What a checkpoint, a setting or a machine is at fault for, in words for people."""


def explain(error: Exception) -> str:
    """One line on why this worker cannot serve and what would help; empty if only a programmer can tell. Asks for no torch."""
    kind, text = type(error).__name__, " ".join(str(error).split())[:1000]
    if isinstance(error, EXPECTED):
        return text
    if kind == "OutOfMemoryError":
        return f"the GPU has too little free memory: lower --max-batch, end what else uses it, or choose --device cpu ({text})"
    if kind == "AcceleratorError" or text.startswith("CUDA error"):
        return f"the GPU cannot be used: it may be busy, or too old for this PyTorch; choose --device cpu ({text})"
    if isinstance(error, MemoryError):
        return f"there is too little memory: lower --max-batch ({text or 'out of memory'})"
    return ""


class Worker:
    """``serve`` is the whole life: load, then loop."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.unframer = Unframer()
        self.reported = 0.0
        self.arrived: dict[int, float] = {}  # sequence → time, until it gets a row

    def serve(self) -> None:
        """Load what the first message names, then step until the socket closes."""
        start = to_worker.decode(self.first_message())
        assert isinstance(start, Start)
        if start.version != VERSION:
            self.send(Broken(f"worker speaks version {VERSION} of the messages, the API {start.version}: restart the service"))
            return
        try:
            self.core, ready = load(start, self.report)
        except SocketClosedError:
            raise
        except Exception as error:
            if not (reason := explain(error)):
                traceback.print_exc()
                reason = f"an unexpected error, whose traceback is in the log: {error!r:.300}"
            self.send(Broken(reason))
            return
        self.send(ready)
        try:
            self.main_loop(self.core)
        except RunnerLost as error:
            self.send(Broken(f"{ready.kernels}: {error}", ready.device))
            os._exit(1)  # a card that does not answer would hold up an orderly end too

    def report(self, phase: str) -> None:
        """Say what loading is at; not more often than anybody could read it, since a self-test of a small model has quick steps."""
        now = time.monotonic()
        if now - self.reported >= REPORT_S:
            self.reported = now
            self.send(Loading(phase))

    def main_loop(self, core: EngineCore) -> None:
        """Receive without waiting while there is work; a heartbeat while there is none."""
        while True:
            self.receive(wait=not core.has_work)
            if core.has_work:
                self.publish(core)
            else:
                self.send(Heartbeat(core.steps))

    def first_message(self) -> bytes:
        """Block for one message."""
        while True:
            data = self.connection.recv(1 << 16)
            if not data:
                raise SocketClosedError
            if messages := self.unframer.feed(data):
                return messages[0]

    def receive(self, *, wait: bool) -> None:
        """Take what has arrived; with ``wait``, up to a heartbeat for something to arrive."""
        timeout = HEARTBEAT_S if wait else 0.0
        while select.select([self.connection], [], [], timeout)[0]:
            data = self.connection.recv(1 << 20)
            if not data:
                raise SocketClosedError
            for message in self.unframer.feed(data):
                self.handle(to_worker.decode(message))
            timeout = 0.0

    def handle(self, message: Start | Submit | Cancel) -> None:
        """One message."""
        match message:
            case Submit():
                self.arrived[message.sequence] = time.monotonic()
                self.core.submit(message)
            case Cancel():
                for sequence in message.sequences:
                    self.core.cancel(sequence)
                    self.arrived.pop(sequence, None)
            case Start():
                raise AssertionError("Start comes once")

    def publish(self, core: EngineCore) -> None:
        """One step, one message."""
        now = time.monotonic()  # rows are given at the start of a step
        result = core.step()
        scheduler = core.scheduler
        admitted = [(sequence, now - self.arrived.pop(sequence, now)) for sequence in result.admitted]
        self.send(Step(admitted, result.outputs, core.steps, len(scheduler.running), len(scheduler.waiting), core.runner.speculation))

    def send(self, message: Message) -> None:
        """Blocks while the API process does not read: the worker never runs ahead of it."""
        try:
            self.connection.sendall(frame(message))
        except (BrokenPipeError, ConnectionResetError):
            raise SocketClosedError from None


def main() -> None:
    """``python -m service.worker FD``."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # Ctrl-C signals the whole group, but the API process decides when to leave
    if sys.platform == "linux":  # a worker that is stopped (SIGSTOP) cannot notice a closed socket
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with contextlib.suppress(SocketClosedError):
        Worker(socket.socket(fileno=int(sys.argv[1]))).serve()


if __name__ == "__main__":
    main()
