"""Keeps one checkpoint's worker alive: starts it, hears it, replaces it when it dies or hangs, and gives its successor every
unfinished stream, which then goes on byte for byte, because a sequence's cache is a function of its tokens.
"""

from __future__ import annotations

import asyncio
import math
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from model.tokenizer.load import tokenizer_from_json
from service.engine.interface import EngineFailed, QueueTimeout, ServedCheckpoint, State
from service.engine.stream import EngineStream
from service.worker.messages import Broken, Cancel, Heartbeat, Loading, Message, Ready, Start, Step, Submit, Unframer, frame, from_worker

HANG_SECONDS = 3.0
LOAD_SECONDS = 180.0
WATCH_SECONDS = 0.25
MAX_DEATHS = 8
MAX_BACKOFF = 1.0


class Connection(asyncio.Protocol):
    """The API's end of the socket: frames in, messages out."""

    def __init__(self, receive: Callable[[Message], None], lost: asyncio.Event) -> None:
        self.receive, self.lost = receive, lost
        self.unframer = Unframer()

    def data_received(self, data: bytes) -> None:
        for message in self.unframer.feed(data):
            self.receive(from_worker.decode(message))

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()


class Supervisor:
    """One checkpoint and whoever serves it. ``run`` is its life; ``submit``, ``withdraw`` and ``release`` are for streams."""

    def __init__(self, start: Start, queue_timeout_s: float, on_finished: Callable[[], None]) -> None:
        self.start_message, self.queue_timeout_s, self.on_finished = start, queue_timeout_s, on_finished
        self.cancelled: dict[str, int] = {}  # how many generations were ended early, by where
        self.state: State = "loading"
        self.message = "starting"
        self.checkpoint: ServedCheckpoint | None = None
        self.settled = asyncio.Event()  # ready once, or failed
        self.streams: set[EngineStream] = set()  # every unfinished one, suspended ones included
        self.keys: dict[EngineStream, int] = {}  # what the present worker knows, by the names it has there
        self.by_key: dict[int, EngineStream] = {}
        self.next_key = 0
        self.queue_timers: dict[EngineStream, asyncio.TimerHandle] = {}
        self.process: subprocess.Popen[bytes] | None = None
        self.transport: asyncio.WriteTransport | None = None
        self.closing = False
        self.deaths = self.restarts = 0
        self.steps = self.running = self.waiting = self.batch_size = 0
        self.heard, self.stepped = -math.inf, -math.inf
        self.task: asyncio.Task[None] | None = None

    # ---- life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until closed or given up."""
        while not self.is_over():
            await self.serve_once()
            if self.is_over():
                break
            self.deaths += 1
            if self.deaths >= MAX_DEATHS:
                self.give_up(f"the worker died {self.deaths} times in a row without generating anything; the last word: {self.message}")
                break
            self.restarts += 1
            await asyncio.sleep(min(MAX_BACKOFF, 0.05 * 2 ** (self.deaths - 1)) if self.deaths > 1 else 0)

    def is_over(self) -> bool:
        """Whether no further worker is wanted."""
        return self.closing or self.state == "failed"

    async def serve_once(self) -> None:
        """One worker process, from its start to its end, however it ends."""
        ours, lost = self.spawn(), asyncio.Event()
        self.heard = time.monotonic()
        self.stepped = -math.inf
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: Connection(self.receive, lost), sock=ours)
        self.transport = transport
        transport.write(frame(self.start_message))
        try:
            await self.watch(lost)
        finally:
            if self.state == "running":
                self.state = "restarting"
            self.transport = None
            transport.abort()
            self.keys.clear()
            self.by_key.clear()
            self.running = 0
            process, self.process = self.process, None
            assert process is not None
            process.kill()
            await asyncio.shield(asyncio.to_thread(process.wait))

    def spawn(self) -> socket.socket:
        """Start a worker process; our end of the socket pair that it inherits. No file is left behind, however either ends."""
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "service.worker", str(theirs.fileno())]
            root = Path(__file__).resolve().parents[2]
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=root, stdin=subprocess.DEVNULL)
        ours.setblocking(False)
        return ours

    async def watch(self, lost: asyncio.Event) -> None:
        """Return when the worker is gone, or has not been heard of for too long."""
        while not lost.is_set() and not self.closing:  # closing may have begun before there was a socket to close
            asked = time.monotonic()
            try:
                await asyncio.wait_for(lost.wait(), WATCH_SECONDS)
            except TimeoutError:
                now = time.monotonic()
                if now - asked > 2 * WATCH_SECONDS:
                    self.heard = max(self.heard, asked)  # this process was held up itself: what it has not read is no silence
                    continue
                limit = HANG_SECONDS if self.state == "running" else LOAD_SECONDS
                if now - self.heard > limit:
                    self.message = f"the worker was silent for {limit:.0f} s"
                    return

    def give_up(self, reason: str) -> None:
        """No worker will come: every stream ends with an error."""
        self.state, self.message = "failed", reason
        for stream in list(self.streams):
            stream.fail(EngineFailed(reason))
        self.settled.set()

    async def close(self) -> None:
        """End the worker by closing its socket; kill it if it does not go."""
        self.closing = True
        if self.transport is not None:
            self.transport.abort()
        if self.task is not None:
            await self.task

    # ---- what the worker says ----------------------------------------------------------------------------------------------

    def receive(self, message: Message) -> None:
        """One message from the worker."""
        self.heard = time.monotonic()
        match message:
            case Step():
                self.on_step(message)
            case Heartbeat():
                self.running = self.waiting = self.batch_size = 0
                self.steps = message.steps
            case Loading():
                self.message = message.phase
            case Ready():
                self.on_ready(message)
            case Broken():
                self.on_broken(message.reason)

    def on_step(self, step: Step) -> None:
        """Hand every stream what it drew. A stream that was withdrawn meanwhile has no key any more."""
        self.stepped = self.heard
        self.running, self.waiting, self.steps = step.running, step.waiting, step.steps
        self.batch_size = len(step.outputs)
        for key, waited in step.admitted:
            if stream := self.by_key.get(key):
                self.stop_queue_timer(stream)
                stream.on_started(waited)
        for output in step.outputs:
            self.deaths = 0
            if stream := self.by_key.get(output.sequence):
                if output.finished:
                    self.forget(stream)
                    self.streams.discard(stream)
                    self.on_finished()
                stream.on_tokens(output.tokens, output.logprobs, output.finished)

    def on_ready(self, ready: Ready) -> None:
        """A worker has loaded. Its predecessor's streams go to it, if it serves the same bytes."""
        served = served_checkpoint(ready)
        if self.checkpoint is not None and served.fingerprint != self.checkpoint.fingerprint:
            self.on_broken(f"the checkpoint {self.start_message.checkpoint} has changed on the disk; promote it under its new id")
            return
        self.checkpoint = self.checkpoint or served
        self.state, self.message = "running", "ready"
        self.stepped = self.heard
        for stream in sorted(self.streams, key=lambda s: s.order):
            if not (stream.suspended or stream.is_over):
                self.send(stream)
        self.settled.set()

    def on_broken(self, reason: str) -> None:
        """The worker says that it cannot serve: final at first, a death like any other once it has served."""
        self.message = reason
        if self.checkpoint is None:
            self.give_up(reason)
        if self.transport is not None:
            self.transport.abort()

    # ---- streams -----------------------------------------------------------------------------------------------------------

    def submit(self, stream: EngineStream) -> None:
        """Generate for a stream, or go on with it; it waits here while there is no worker."""
        self.streams.add(stream)
        if not stream.started and stream not in self.queue_timers:
            loop = asyncio.get_running_loop()
            self.queue_timers[stream] = loop.call_later(self.queue_timeout_s, self.on_queue_timeout, stream)
        if self.state == "failed":
            stream.fail(EngineFailed(self.message))
        elif self.state == "running":
            self.send(stream)

    def send(self, stream: EngineStream) -> None:
        """Tell the worker, under a new name, so that what it still says under an old one is not mistaken.

        A worker that is just dying is told nothing: its successor is sent every stream there is.
        """
        if self.transport is None or self.transport.is_closing():
            return
        self.next_key += 1
        self.keys[stream], self.by_key[self.next_key] = self.next_key, stream
        request = stream.request
        self.write(Submit(self.next_key, stream.order, list(request.prompt), stream.tokens.tolist(), request.params))

    def withdraw(self, stream: EngineStream) -> None:
        """The worker forgets it; the stream stays ours and may be submitted again."""
        key = self.forget(stream)
        if key is not None:
            self.write(Cancel([key]))

    def release(self, stream: EngineStream, cancelled: str | None) -> None:
        """The stream is over for the engine; ``cancelled`` says where, if it was not through. Idempotent."""
        if stream in self.streams:
            self.withdraw(stream)
            self.streams.discard(stream)
            self.stop_queue_timer(stream)
            self.on_finished()
            if cancelled is not None:
                self.cancelled[cancelled] = self.cancelled.get(cancelled, 0) + 1

    def forget(self, stream: EngineStream) -> int | None:
        """Drop the worker's name for a stream, and return it."""
        key = self.keys.pop(stream, None)
        if key is not None:
            del self.by_key[key]
        return key

    def on_queue_timeout(self, stream: EngineStream) -> None:
        """No row became free in time."""
        self.queue_timers.pop(stream, None)
        stream.fail(QueueTimeout(f"no place became free within {self.queue_timeout_s:.0f} s"))
        self.withdraw(stream)

    def stop_queue_timer(self, stream: EngineStream) -> None:
        """It has a row, or is over."""
        if timer := self.queue_timers.pop(stream, None):
            timer.cancel()

    def write(self, message: Message) -> None:
        """To the worker, if there is one."""
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(frame(message))


def served_checkpoint(ready: Ready) -> ServedCheckpoint:
    """The Ready message as the routes know it."""
    return ServedCheckpoint(
        id=ready.id,
        fingerprint=ready.fingerprint,
        block_size=ready.config["block_size"],
        vocab_size=ready.config["vocab_size"],
        num_parameters=ready.num_parameters,
        tokenizer=tokenizer_from_json(ready.tokenizer),
        manifest=ready.manifest,
        config=ready.config,
        default_stride=ready.stride,
        device=ready.device,
        dtype=ready.dtype,
        kernels=ready.kernels,
        max_batch=ready.max_batch,
        memory_bytes=ready.memory_bytes,
        note=ready.note,
    )
