"""The API's side of the engine: admits requests, hands out streams, and keeps one supervised worker for each loaded checkpoint."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import shutil
import time
from collections import deque
from collections.abc import Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

from service.engine.catalogue import find_checkpoint, find_manifest
from service.engine.interface import (
    CheckpointGone,
    CheckpointNotFound,
    CheckpointRefused,
    EngineError,
    EngineFailed,
    EngineLoading,
    EngineOptions,
    EngineStatus,
    EngineStopping,
    GenerationRequest,
    PromotionInProgress,
    QueueFull,
    ServedCheckpoint,
    State,
)
from service.engine.pinned import forget_the_dead, keep, tidy
from service.engine.stream import EngineStream
from service.engine.supervisor import Supervisor
from service.worker.messages import VERSION, Start

log = logging.getLogger("folio.engine")

WATCH_SECONDS = 1.0
FALLBACK_BATCH = 64  # rows to count with until a worker has said how many it has
QUEUE_FACTOR, MIN_QUEUE = 4, 256
RATE_WINDOW = 64  # ends of requests, of whatever kind, that the estimate of Retry-After looks back on


class EngineClient:
    """`interface.Engine`. ``start``, any number of ``submit``, ``drain``, ``close``."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options
        self.worker: Supervisor | None = None  # of the current checkpoint
        self.retiring: Supervisor | None = None  # of the one before, while streams use it
        self.previous: Path | None = None
        self.promoting = False
        self.stopping = False
        self.order = 0
        self.finished: deque[float] = deque(maxlen=RATE_WINDOW)
        self.tasks: set[asyncio.Task[None]] = set()

    # ---- life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """See `interface.Engine`."""
        self.worker = self.supervise(self.options.checkpoint)
        if self.options.watch is not None:
            await asyncio.to_thread(forget_the_dead, self.kept.parent)
            self.keep(self.follow(self.options.watch))

    def supervise(self, checkpoint: Path) -> Supervisor:
        """A supervisor that has begun to load a checkpoint."""
        options = self.options
        start = Start(
            version=VERSION,
            checkpoint=str(checkpoint.resolve()),
            device=options.device,
            dtype=options.dtype,
            kernels=options.kernels,
            max_batch=options.max_batch or 0,
            threads=options.threads or 0,
            stride=options.stride or 0,
            cache=str(options.cache),
            trusted_keys=None if options.trusted_keys is None else list(options.trusted_keys),
        )
        supervisor = Supervisor(start, options.queue_timeout_s, lambda: self.finished.append(time.monotonic()))
        supervisor.task = asyncio.get_running_loop().create_task(supervisor.run())
        return supervisor

    async def drain(self, grace_s: float) -> None:
        """See `interface.Engine`."""
        self.stopping = True
        deadline = time.monotonic() + grace_s
        while any(s.streams for s in self.supervisors) and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        for supervisor in self.supervisors:
            for stream in list(supervisor.streams):
                stream.fail(EngineStopping("the server is shutting down"))

    async def close(self) -> None:
        """See `interface.Engine`."""
        self.stopping = True
        await self.drain(0)
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*(supervisor.close() for supervisor in self.supervisors))
        if self.options.watch is not None:
            await asyncio.to_thread(shutil.rmtree, self.kept, ignore_errors=True)

    def keep(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run something in the background until it is done or the engine closes."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # ---- what it knows -----------------------------------------------------------------------------------------------------

    @property
    def supervisors(self) -> list[Supervisor]:
        """The current one, and the one before while it is used."""
        return [s for s in (self.worker, self.retiring) if s is not None]

    @property
    def current(self) -> ServedCheckpoint | None:
        """See `interface.Engine`."""
        return self.worker.checkpoint if self.worker else None

    @property
    def loaded(self) -> tuple[ServedCheckpoint, ...]:
        """See `interface.Engine`."""
        return tuple(s.checkpoint for s in self.supervisors if s.checkpoint is not None)

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
        worker, now = self.worker, time.monotonic()
        if worker is None:
            return EngineStatus("loading", math.inf, 0.0, 0, 0, self.max_batch, 0, 0, "not started")
        state: State = "stopping" if self.stopping and worker.state != "failed" else worker.state
        active = sum(1 for s in worker.streams if not s.suspended)
        running = min(worker.running, active)
        return EngineStatus(
            state=state,
            heartbeat_age_s=now - worker.heard if worker.process is not None else math.inf,
            step_age_s=now - max(worker.stepped, self.oldest_submission(worker)) if active else 0.0,
            running=running,
            waiting=active - running,
            max_batch=self.max_batch,
            steps=worker.steps,
            restarts=sum(s.restarts for s in self.supervisors),
            message=worker.message,
            batch_size=worker.batch_size,
        )

    def oldest_submission(self, worker: Supervisor) -> float:
        """When the longest-waiting stream was created: before that no step was due."""
        return min((s.created for s in worker.streams if not s.suspended), default=time.monotonic())

    # ---- requests ----------------------------------------------------------------------------------------------------------

    def submit(self, request: GenerationRequest) -> EngineStream:
        """See `interface.Engine`."""
        supervisor = self.choose(request.checkpoint_id)
        assert supervisor.checkpoint is not None
        waiting = sum(1 for s in supervisor.streams if not s.suspended) - self.max_batch
        if waiting >= self.max_queue:
            raise QueueFull(f"{waiting} requests wait already, the most that may; try again later", self.retry_after_s())
        if request.params.stride is None:
            request = replace(request, params=replace(request.params, stride=supervisor.checkpoint.default_stride))
        self.order += 1
        stream = EngineStream(supervisor, supervisor.checkpoint, request, self.order, self.options.stream_buffer_tokens)
        supervisor.submit(stream)
        return stream

    def choose(self, checkpoint_id: str | None) -> Supervisor:
        """The supervisor that a request runs on. Raises EngineError."""
        if self.stopping:
            raise EngineStopping("the server is shutting down", retry_after_s=5)
        if self.worker is None or (self.worker.checkpoint is None and self.worker.state != "failed"):
            raise EngineLoading("the checkpoint is still being loaded", retry_after_s=2)
        if self.worker.state == "failed":
            raise EngineFailed(f"the engine has given up: {self.worker.message}", retry_after_s=30)
        if checkpoint_id is None:
            return self.worker
        for supervisor in self.supervisors:
            if supervisor.checkpoint is not None and supervisor.checkpoint.id == checkpoint_id:
                return supervisor
        raise CheckpointGone(f"checkpoint {checkpoint_id[:19]}… is not loaded")

    def retry_after_s(self) -> float:
        """Seconds until a place in the queue should be free, by how fast requests have lately been finishing."""
        if len(self.finished) < 2:
            return 1.0
        interval = (time.monotonic() - self.finished[0]) / len(self.finished)
        return min(60.0, max(1.0, math.ceil(interval)))

    # ---- promotion ---------------------------------------------------------------------------------------------------------

    async def promote(self, checkpoint_id: str) -> ServedCheckpoint:
        """See `interface.Engine`."""
        found = await asyncio.to_thread(find_checkpoint, self.options.checkpoints, checkpoint_id)
        if found is None:
            raise CheckpointNotFound(f"no checkpoint {checkpoint_id} in the catalogue")
        return await self.move_to(found.path)

    async def rollback(self) -> ServedCheckpoint:
        """See `interface.Engine`."""
        if self.previous is None:
            raise CheckpointNotFound("nothing was promoted yet, so there is nothing to go back to")
        return await self.move_to(self.previous)

    async def move_to(self, path: Path) -> ServedCheckpoint:
        """Load beside, self-test, then switch: one assignment moves all new requests over."""
        if self.promoting or self.retiring is not None:
            raise PromotionInProgress("another promotion is running, or streams still use the checkpoint before; try again later")
        if self.worker is None or self.stopping:
            raise PromotionInProgress("the engine is not running")
        self.promoting = True
        candidate = self.supervise(path)
        try:
            await candidate.settled.wait()
            if candidate.checkpoint is None:
                raise CheckpointRefused(candidate.message.replace(candidate.start_message.checkpoint, path.name))  # clients know no paths
        except BaseException:
            await candidate.close()
            raise
        finally:
            self.promoting = False
        self.previous = Path(self.worker.start_message.checkpoint)
        self.worker, self.retiring = candidate, self.worker
        self.keep(self.retire(self.retiring))
        assert candidate.checkpoint is not None
        return candidate.checkpoint

    async def retire(self, supervisor: Supervisor) -> None:
        """Free the old worker when its last stream has ended."""
        while supervisor.streams:
            await asyncio.sleep(0.02)
        self.retiring = None
        await supervisor.close()

    async def follow(self, path: Path) -> None:
        """Promote what a training run writes to ``path`` (its ``best``) whenever that is another checkpoint than before."""
        tried = None
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            source = await asyncio.to_thread(path.resolve)  # once, so that the id and the copy are of one directory
            manifest = await asyncio.to_thread(find_manifest, source)
            found = manifest.id if manifest is not None else None
            if found is None or found == tried or self.current is None or self.retiring is not None or self.promoting:
                continue
            tried = found
            if found != self.current.id:
                try:
                    await self.move_to(await asyncio.to_thread(keep, source, self.kept, found.removeprefix("sha256:")))
                    log.info("promoted %s from %s", found, path)
                    await asyncio.to_thread(tidy, self.kept, self.paths_in_use)
                except (EngineError, OSError) as error:
                    log.warning("not promoted: %s: %s", found, error)

    @property
    def kept(self) -> Path:
        """Where copies of followed checkpoints stay while this process lives."""
        return self.options.cache.resolve() / "followed" / str(os.getpid())

    @property
    def paths_in_use(self) -> set[Path]:
        """Checkpoints that a worker may have to load again, and the one that `rollback` goes back to."""
        paths = {Path(s.start_message.checkpoint) for s in self.supervisors}
        return paths | ({self.previous} if self.previous is not None else set())
