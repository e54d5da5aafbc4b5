"""Which checkpoints have a worker: load one beside the other, switch, retire the old one, go back, follow a training run."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.checkpoint.manifest import CheckpointError, read_manifest
from service.background import Background
from service.engine.catalogue import find_checkpoint
from service.engine.errors import (
    CheckpointGone,
    CheckpointNotFound,
    CheckpointRefused,
    EngineFailed,
    EngineLoading,
    PromotionInProgress,
)
from service.engine.interface import EngineOptions, ServedCheckpoint
from service.engine.pinned import PinnedCheckpoints
from service.engine.supervisor import MAX_DEATHS, Supervisor
from service.worker.messages import VERSION, Start

log = logging.getLogger("folio.engine")

FOLLOW_S = 1.0
RETIRE_S = 0.02
PROMOTION_S = 600.0
"""Longest time that a promotion may take to load, however much progress it reports."""
MAX_LOADING_RETRY_S = 60.0
"""OpenAI's clients obey no longer wait than this, and fall back to their own short ones."""


@dataclass(frozen=True, slots=True)
class Target:
    """A checkpoint to serve: where it is, and which one it has to be."""

    path: Path
    id: str


class Rollout:
    """``current`` gets new requests; ``retiring`` is the one before, while streams use it; ``candidate`` is being loaded."""

    def __init__(self, options: EngineOptions, on_finished: Callable[[], None]) -> None:
        self.options = options
        self.on_finished = on_finished
        self.current: Supervisor | None = None
        self.retiring: Supervisor | None = None
        self.candidate: Supervisor | None = None
        self.candidate_since = 0.0
        self.loading_since = 0.0
        self.previous: Target | None = None
        self.pinned = PinnedCheckpoints(options.cache.resolve() / "followed")
        self.background = Background()  # what follows and retires
        self.lives = Background()  # a task of each supervisor, which ends with its worker and is never cancelled before
        self.alive: set[Supervisor] = set()

    @property
    def supervisors(self) -> list[Supervisor]:
        """The current one, and the one before while it is used."""
        return [s for s in (self.current, self.retiring) if s is not None]

    def find(self, checkpoint_id: str | None) -> tuple[Supervisor, ServedCheckpoint]:
        """Who serves a checkpoint, the current one if none is named. The one place that says whether it may. Raises EngineError."""
        if self.current is not None and self.current.state == "failed":
            raise EngineFailed(f"the engine has given up: {self.current.message}", retry_after_s=30)
        if self.current is None or self.current.checkpoint is None:
            so_far_s = time.monotonic() - self.loading_since  # as long again: a few tries outlast any load, and no try comes far too late
            raise EngineLoading("the checkpoint is still being loaded", min(MAX_LOADING_RETRY_S, max(2.0, so_far_s)))
        for supervisor in self.supervisors:
            served = supervisor.checkpoint
            if served is not None and checkpoint_id in (None, served.id):
                return supervisor, served
        raise CheckpointGone(f"checkpoint {checkpoint_id} is not loaded")

    # ---- life ------------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Begin to load the first checkpoint; returns at once."""
        self.loading_since = time.monotonic()
        self.current = self.supervise(self.options.checkpoint)
        if self.options.watch is not None:
            self.background.start("follow", self.follow(self.options.watch))

    def supervise(self, path: Path, expected_id: str | None = None, attempts: int = MAX_DEATHS) -> Supervisor:
        """A supervisor that has begun to load a checkpoint."""
        options = self.options
        start = Start(
            version=VERSION,
            checkpoint=str(path.resolve()),
            device=options.device,
            kernels=options.kernels,
            cpu=options.cpu,
            max_batch=options.max_batch or 0,
            threads=options.threads or 0,
            stride=options.stride or 0,
            speculation=options.speculation,
            trusted_keys=None if options.trusted_keys is None else list(options.trusted_keys),
        )
        supervisor = Supervisor(
            start,
            options.environment,
            queue_timeout_s=options.queue_timeout_s,
            on_finished=self.on_finished,
            expected_id=expected_id,
            attempts=attempts,
        )
        self.alive.add(supervisor)
        supervisor.task = self.lives.start(
            "supervise", supervisor.run(), on_failure=lambda error: supervisor.give_up(f"unexpected error: {error!r}")
        )
        supervisor.task.add_done_callback(lambda _: self.alive.discard(supervisor))
        return supervisor

    async def close(self) -> None:
        """End every worker, loading or not."""
        if self.candidate is not None:
            self.candidate.give_up("the server is shutting down")
        await self.background.close()
        await asyncio.gather(*(supervisor.close() for supervisor in self.alive))
        await self.lives.close()
        await asyncio.to_thread(self.pinned.close)

    # ---- promotion ---------------------------------------------------------------------------------------------------------

    async def promote(self, checkpoint_id: str) -> ServedCheckpoint:
        """See `interface.Engine`."""
        found = await asyncio.to_thread(find_checkpoint, self.options.checkpoints, checkpoint_id)
        if found is None:
            raise CheckpointNotFound(f"no checkpoint {checkpoint_id} in the catalogue")
        return await self.move_to(Target(found.path, found.id))

    async def rollback(self) -> ServedCheckpoint:
        """See `interface.Engine`."""
        if self.previous is None:
            raise CheckpointNotFound("nothing was promoted yet, so there is nothing to go back to")
        return await self.move_to(self.previous)

    def cancel_promotion(self) -> None:
        """See `interface.Engine`."""
        if self.candidate is None:
            raise CheckpointNotFound("no checkpoint is being promoted")
        self.candidate.give_up("the promotion was cancelled")

    async def move_to(self, target: Target) -> ServedCheckpoint:
        """Load beside, self-test, then switch: one assignment moves all new requests over. Raises PromotionError."""
        self.check_idle()
        assert self.current is not None and self.current.checkpoint is not None
        candidate = self.supervise(target.path, target.id, attempts=1)
        self.candidate, self.candidate_since = candidate, time.monotonic()
        try:
            served = await self.loaded(candidate, target)
        except BaseException:
            await candidate.close()
            raise
        finally:
            self.candidate = None
        self.previous = Target(Path(self.current.start_message.checkpoint), self.current.checkpoint.id)
        self.current, self.retiring = candidate, self.current
        self.background.start("retire", self.retire(self.retiring))
        return served

    def check_idle(self) -> None:
        """Raises PromotionInProgress unless exactly one checkpoint is loaded, and EngineStopping at the end."""
        if self.candidate is not None:
            seconds = time.monotonic() - self.candidate_since
            raise PromotionInProgress(
                f"checkpoint {self.candidate.expected_id} has been loading for {seconds:.0f} s ({self.candidate.message}); "
                "wait, or cancel it with DELETE /admin/promote"
            )
        if self.retiring is not None:
            raise PromotionInProgress(f"{len(self.retiring.streams)} texts still use the checkpoint before; try again later")
        self.find(None)

    async def loaded(self, candidate: Supervisor, target: Target) -> ServedCheckpoint:
        """What the candidate serves, once it does. Raises CheckpointRefused."""
        try:
            await asyncio.wait_for(candidate.settled.wait(), PROMOTION_S)
        except TimeoutError:
            candidate.give_up(f"{target.path} was not loaded after {PROMOTION_S:.0f} s; the last that was heard: {candidate.message}")
        if candidate.checkpoint is None or candidate.state == "failed":
            where = candidate.start_message.checkpoint
            raise CheckpointRefused(candidate.message.replace(where, target.path.name))  # clients know no paths
        return candidate.checkpoint

    async def retire(self, supervisor: Supervisor) -> None:
        """Free the old worker when its last stream has ended."""
        try:
            while supervisor.streams:
                await asyncio.sleep(RETIRE_S)
        finally:
            self.retiring = None
            await supervisor.close()

    # ---- a training run ------------------------------------------------------------------------------------------------------

    async def follow(self, path: Path) -> None:
        """Promote what a training run writes to ``path`` (its ``best``) whenever that is another checkpoint than before.

        Whatever is wrong with it, following goes on, and says once why it was not promoted.
        """
        refused, said = "", ""
        while True:
            await asyncio.sleep(FOLLOW_S)
            if self.current is None or self.current.checkpoint is None or self.candidate is not None or self.retiring is not None:
                continue
            found = ""
            try:
                await asyncio.to_thread(self.pinned.open)
                manifest = await asyncio.to_thread(lambda: read_manifest(path.resolve()))  # one directory, wherever the link leads next
                found = manifest.id
                if found in (refused, self.current.checkpoint.id):
                    continue
                await self.move_to(Target(await asyncio.to_thread(self.pinned.pin, manifest), found))
                log.info("promoted %s from %s", found, path)
                await asyncio.to_thread(self.pinned.remove_unused, self.paths_in_use)
            except Exception as error:  # a link in a circle, a full disk, a file that is no checkpoint: the next one may be good
                refused = found if isinstance(error, CheckpointRefused | CheckpointError) else ""
                if str(error) != said:
                    log.warning("not promoted: %s: %s", found or path, error)
                    said = str(error)

    @property
    def paths_in_use(self) -> set[Path]:
        """Checkpoints that a worker may have to load again, and the one that `rollback` goes back to."""
        paths = {Path(s.start_message.checkpoint) for s in self.supervisors}
        return paths | ({self.previous.path} if self.previous is not None else set())
