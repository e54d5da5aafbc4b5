"""Keeps one checkpoint's worker alive: replaces it when it dies or hangs, and gives its successor every unfinished stream, which
then goes on byte for byte, because a sequence's cache is a function of its tokens.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping

from service.engine.catalogue import served_checkpoint
from service.engine.errors import EngineFailed, QueueTimeout
from service.engine.interface import ServedCheckpoint, State
from service.engine.stream import EngineStream
from service.engine.worker_process import WorkerProcess
from service.worker.messages import Broken, Cancel, FromWorker, Heartbeat, Loading, Ready, Start, Step
from service.worker.runners.interface import Speculation

log = logging.getLogger("folio.engine")

HANG_S = 3.0
LOAD_S = 180.0
"""Longest silence of a worker, once it serves and while it loads; while it loads it reports its progress."""
MAX_DEATHS, CAREFUL_AFTER = 8, 2  # in a row; then no GPU is tried any more: a driver that crashes gives no other sign
MAX_BACKOFF_S = 1.0


class Supervisor:
    """One checkpoint and whoever serves it. ``run`` is its life; ``submit``, ``withdraw`` and ``release`` are for streams.

    ``expected_id``: what the directory must hold; None takes what is there. ``attempts``: workers that may die before one has served.
    """

    def __init__(
        self,
        start: Start,
        environment: Mapping[str, str],
        *,
        queue_timeout_s: float,
        on_finished: Callable[[], None],
        expected_id: str | None = None,
        attempts: int = MAX_DEATHS,
    ) -> None:
        self.start_message = start
        self.environment = environment
        self.queue_timeout_s = queue_timeout_s
        self.on_finished = on_finished
        self.expected_id = expected_id
        self.attempts = attempts
        self.state: State = "loading"
        self.message = "starting"
        self.broken = ""  # what the present worker said of itself, if it cannot serve
        self.checkpoint: ServedCheckpoint | None = None
        self.settled = asyncio.Event()  # ready once, or failed
        self.streams: set[EngineStream] = set()  # every unfinished one, suspended ones included
        self.keys: dict[EngineStream, int] = {}  # stream → the number that the present worker knows it by
        self.by_key: dict[int, EngineStream] = {}
        self.next_key = 0
        self.queue_timers: dict[EngineStream, asyncio.TimerHandle] = {}
        self.worker: WorkerProcess | None = None
        self.closing = False
        self.deaths = 0  # in a row, without a token between them
        self.restarts = 0
        self.steps = self.running = self.batch_size = 0
        self.speculation = Speculation()
        self.stepped = 0.0
        self.task: asyncio.Task[None] | None = None

    @property
    def num_active(self) -> int:
        """Streams that have a row or wait for one."""
        return sum(1 for s in self.streams if not s.suspended)

    @property
    def is_over(self) -> bool:
        """Whether no further worker is wanted."""
        return self.closing or self.state == "failed"

    # ---- life ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve until closed or given up."""
        while not self.is_over:
            ending = await self.serve_once()
            if self.is_over:
                break
            self.deaths += 1
            log.warning("%s (%s)", ending, self.start_message.checkpoint)
            if self.deaths >= (MAX_DEATHS if self.checkpoint else self.attempts):
                self.give_up(self.last_words(ending))
                break
            if self.deaths == CAREFUL_AFTER:
                self.start_message = self.start_message.but_without("cuda")
            self.message = ending
            self.restarts += 1
            await asyncio.sleep(min(MAX_BACKOFF_S, 0.05 * 2 ** (self.deaths - 1)) if self.deaths > 1 else 0)

    def last_words(self, ending: str) -> str:
        """Why no further worker is started."""
        if self.deaths == 1:
            return ending
        return f"the worker died {self.deaths} times in a row without generating anything; the last time: {ending}"

    async def serve_once(self) -> str:
        """One worker, from its start to its end; how it ended."""
        self.broken = ""
        try:
            self.worker = await WorkerProcess.start(self.receive, self.environment)
        except (OSError, MemoryError) as error:
            return f"no worker could be started: {error}"
        try:
            self.worker.send(self.start_message)
            if self.is_over:  # decided before there was a worker to end
                return "closed"
            ending = await self.worker.wait(lambda: HANG_S if self.state == "running" else LOAD_S)
            return self.broken or ending
        finally:
            if self.state == "running":
                self.state = "restarting"
            self.keys.clear()
            self.by_key.clear()
            self.running = 0
            worker, self.worker = self.worker, None
            await worker.kill()

    def give_up(self, reason: str) -> None:
        """No worker will come: every stream ends with an error."""
        self.state, self.message = "failed", reason
        if self.worker is not None:
            self.worker.hang_up()
        for stream in list(self.streams):
            stream.fail(EngineFailed(reason))
        self.settled.set()

    async def close(self) -> None:
        """End the worker by closing its socket; it is killed if it does not go."""
        self.closing = True
        if self.worker is not None:
            self.worker.hang_up()
        if self.task is not None:
            await asyncio.wait([self.task])

    # ---- what the worker says ----------------------------------------------------------------------------------------------

    def receive(self, message: FromWorker) -> None:
        """One message from the worker."""
        match message:
            case Step():
                self.on_step(message)
            case Heartbeat():
                self.running, self.batch_size, self.steps = 0, 0, message.steps
            case Loading():
                self.message = message.phase
            case Ready():
                self.on_ready(message)
            case Broken():
                self.on_broken(message.reason, message.kernels)

    def on_step(self, step: Step) -> None:
        """Hand every stream what it sampled. A stream that was withdrawn meanwhile has no key any more."""
        self.stepped = time.monotonic()
        self.running, self.steps, self.batch_size = step.running, step.steps, len(step.outputs)
        self.speculation = step.speculation
        for key, waited_s in step.admitted:
            if stream := self.by_key.get(key):
                self.stop_queue_timer(stream)
                stream.on_started(waited_s)
        for output in step.outputs:
            self.deaths = 0
            if stream := self.by_key.get(output.sequence):
                if output.finished:
                    self.forget_key(stream)
                    self.streams.discard(stream)
                    self.on_finished()
                stream.on_tokens(output)

    def on_ready(self, ready: Ready) -> None:
        """A worker has loaded. Its predecessor's streams go to it, if it serves the same bytes."""
        served = served_checkpoint(ready, self.start_message.checkpoint)
        is_other = self.checkpoint is not None and served.fingerprint != self.checkpoint.fingerprint
        if is_other or served.id != (self.expected_id or served.id):
            self.on_broken(f"the checkpoint {self.start_message.checkpoint} has changed on the disk: promote it under its new id")
            return
        self.checkpoint = served  # the same one, perhaps on other kernels
        self.state, self.message = "running", "ready"
        self.stepped = time.monotonic()
        for stream in sorted(self.streams, key=lambda s: s.order):
            if not (stream.suspended or stream.is_over):
                self.send(stream)
        self.settled.set()

    def on_broken(self, reason: str, kernels: str = "") -> None:
        """The worker says that it cannot serve: final if none has served yet, else a death like any other."""
        self.broken = reason
        self.start_message = self.start_message.but_without(kernels)
        if self.checkpoint is None:
            self.give_up(reason)
        elif self.worker is not None:
            self.worker.hang_up()

    # ---- streams (`stream.StreamOwner`) --------------------------------------------------------------------------------------

    def submit(self, stream: EngineStream) -> None:
        """Generate for a stream, or go on with it; it waits here while there is no worker."""
        self.streams.add(stream)
        if not stream.started and stream not in self.queue_timers:
            self.queue_timers[stream] = asyncio.get_running_loop().call_later(self.queue_timeout_s, self.on_queue_timeout, stream)
        if self.state == "failed":
            stream.fail(EngineFailed(self.message))
        elif self.state == "running":
            self.send(stream)

    def send(self, stream: EngineStream) -> None:
        """Submit a stream to the worker, under a new key: outputs that still come under an old one are ignored."""
        assert self.worker is not None
        self.next_key += 1
        self.keys[stream], self.by_key[self.next_key] = self.next_key, stream
        self.worker.send(stream.submission(self.next_key))

    def withdraw(self, stream: EngineStream) -> None:
        """Take a stream from the worker; it stays ours and may be submitted again."""
        key = self.forget_key(stream)
        if key is not None and self.worker is not None:
            self.worker.send(Cancel([key]))

    def release(self, stream: EngineStream) -> None:
        """The stream is over, through or not. Idempotent."""
        if stream in self.streams:
            self.withdraw(stream)
            self.streams.discard(stream)
            self.stop_queue_timer(stream)
            self.on_finished()

    def forget_key(self, stream: EngineStream) -> int | None:
        """Drop the worker's number of a stream, and return it."""
        key = self.keys.pop(stream, None)
        if key is not None:
            del self.by_key[key]
        return key

    def on_queue_timeout(self, stream: EngineStream) -> None:
        """No row became free in time."""
        stream.fail(QueueTimeout(f"no place became free within {self.queue_timeout_s:.0f} s"))
        self.release(stream)

    def stop_queue_timer(self, stream: EngineStream) -> None:
        """It has a row, or is over."""
        if timer := self.queue_timers.pop(stream, None):
            timer.cancel()
