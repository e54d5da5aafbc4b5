"""The API process's side of the engine: admits requests, hands out streams, says how it fares, and ends in order."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from dataclasses import replace

from service.engine.errors import EngineStopping, QueueFull
from service.engine.interface import EngineOptions, EngineStatus, GenerationRequest, ServedCheckpoint, State
from service.engine.rollout import Rollout
from service.engine.stream import EngineStream
from service.engine.supervisor import Supervisor

FALLBACK_BATCH = 64  # rows to count with until a worker has said how many it has
QUEUE_FACTOR, MIN_QUEUE = 4, 256
RATE_WINDOW = 64  # ended requests, however they ended, that the estimate of Retry-After looks back on
DRAIN_POLL_S = 0.02


class EngineClient:
    """`interface.Engine`. ``start``, any number of ``submit``, ``drain``, ``close``."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.finished: deque[float] = deque(maxlen=RATE_WINDOW)
        self.rollout = Rollout(options, on_finished=lambda: self.finished.append(time.monotonic()))
        self.stopping = False
        self.order = 0

    # ---- life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See `interface.Engine`."""
        await self.rollout.start()

    async def drain(self, grace_s: float) -> None:
        """See `interface.Engine`."""
        self.stopping = True
        deadline = time.monotonic() + grace_s
        while any(s.streams for s in self.rollout.supervisors) and time.monotonic() < deadline:
            await asyncio.sleep(DRAIN_POLL_S)
        for supervisor in self.rollout.supervisors:
            for stream in list(supervisor.streams):
                stream.fail(EngineStopping("the server is shutting down"))

    async def close(self) -> None:
        """See `interface.Engine`."""
        await self.drain(0)
        await self.rollout.close()

    # ---- requests ----------------------------------------------------------------------------------------------------------

    def find(self, checkpoint_id: str | None = None) -> ServedCheckpoint:
        """See `interface.Engine`."""
        if self.current is None:
            self.check_running()  # what was not loaded by now never will be
        return self.rollout.find(checkpoint_id)[1]

    def submit(self, request: GenerationRequest) -> EngineStream:
        """See `interface.Engine`."""
        self.check_running()
        supervisor, checkpoint = self.rollout.find(request.checkpoint_id)
        waiting = supervisor.num_active - self.max_batch
        if waiting >= self.max_queue and any(stream.request.key == request.key for stream in supervisor.streams):
            raise QueueFull(f"{waiting} requests wait already, the most that may; try again later", self.retry_after_s())
        if request.params.stride is None:
            request = replace(request, params=replace(request.params, stride=checkpoint.default_stride))
        self.order += 1
        stream = EngineStream(supervisor, checkpoint, request, self.order, self.options.stream_buffer_tokens)
        if not stream.is_over:
            supervisor.submit(stream)
        return stream

    def retry_after_s(self) -> float:
        """Seconds until a place in the queue should be free, by how fast requests have lately been finishing."""
        if len(self.finished) < 2:
            return 1.0
        interval_s = (time.monotonic() - self.finished[0]) / len(self.finished)
        return min(60.0, max(1.0, math.ceil(interval_s)))

    # ---- promotion ---------------------------------------------------------------------------------------------------------

    async def promote(self, checkpoint_id: str) -> ServedCheckpoint:
        """See `interface.Engine`."""
        self.check_running()
        return await self.rollout.promote(checkpoint_id)

    async def rollback(self) -> ServedCheckpoint:
        """See `interface.Engine`."""
        self.check_running()
        return await self.rollout.rollback()

    def cancel_promotion(self) -> None:
        """See `interface.Engine`."""
        self.rollout.cancel_promotion()

    def check_running(self) -> None:
        """Raises EngineStopping once the engine is told to end."""
        if self.stopping:
            raise EngineStopping("the server is shutting down", retry_after_s=5)

    # ---- what it knows -----------------------------------------------------------------------------------------------------

    @property
    def current(self) -> ServedCheckpoint | None:
        """See `interface.Engine`."""
        return self.rollout.current.checkpoint if self.rollout.current else None

    @property
    def loaded(self) -> tuple[ServedCheckpoint, ...]:
        """See `interface.Engine`."""
        return tuple(s.checkpoint for s in self.rollout.supervisors if s.checkpoint is not None)

    @property
    def max_batch(self) -> int:
        """Rows of the current worker."""
        return self.current.max_batch if self.current else self.options.max_batch or FALLBACK_BATCH

    @property
    def max_queue(self) -> int:
        """Requests that may wait for a row."""
        return max(MIN_QUEUE, QUEUE_FACTOR * self.max_batch) if self.options.max_queue is None else self.options.max_queue

    @property
    def status(self) -> EngineStatus:
        """See `interface.Engine`."""
        supervisor, now = self.rollout.current, time.monotonic()
        if supervisor is None:
            return EngineStatus("loading", math.inf, 0.0, 0, 0, self.max_batch, 0, 0, "not started")
        state: State = "stopping" if self.stopping and supervisor.state != "failed" else supervisor.state
        active = supervisor.num_active
        running = min(supervisor.running, active)
        return EngineStatus(
            state=state,
            heartbeat_age_s=now - supervisor.worker.heard if supervisor.worker is not None else math.inf,
            step_age_s=now - max(supervisor.stepped, oldest_submission(supervisor)) if active else 0.0,
            running=running,
            waiting=active - running,
            max_batch=self.max_batch,
            steps=supervisor.steps,
            restarts=sum(s.restarts for s in self.rollout.supervisors),
            message=supervisor.message,
            batch_size=supervisor.batch_size,
            decode_passes=supervisor.speculation.passes,
            guesses=supervisor.speculation.proposed,
            right_guesses=supervisor.speculation.accepted,
        )


def oldest_submission(supervisor: Supervisor) -> float:
    """When the longest-waiting stream was created: before that no step was due."""
    return min((s.created for s in supervisor.streams if not s.suspended), default=time.monotonic())
