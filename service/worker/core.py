"""The engine without its process: a scheduler, a runner, and the step that joins them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from service.worker.messages import Output, Submit
from service.worker.runners.interface import CopiesPrefixes, Runner
from service.worker.scheduler import Scheduler
from service.worker.sequence import Sequence


@dataclass(slots=True)
class StepResult:
    """What one step did: the ids that got a row, and what was sampled."""

    admitted: list[int]
    outputs: list[Output]


class EngineCore:
    """Continuous batching over a fixed number of rows: ``submit``, ``cancel``, ``step``."""

    def __init__(
        self, runner: Runner, *, block_size: int, stride: int, start_token: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.runner = runner
        self.copier = runner if isinstance(runner, CopiesPrefixes) else None
        self.scheduler = Scheduler(runner.rows, runner.turn_rows, shares_prefixes=self.copier is not None)
        self.block_size = block_size
        self.stride = stride
        self.start_token = start_token
        self.clock = clock
        self.steps = 0

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        return self.scheduler.has_work

    def submit(self, request: Submit) -> None:
        """Queue a request, new or to be rebuilt."""
        beginning = request.prompt or [self.start_token]
        sequence = Sequence(
            id=request.sequence,
            prompt=request.prompt,
            params=request.params,
            stride=min(request.params.stride or self.stride, self.block_size),
            block_size=self.block_size,
            tokens=beginning + request.generated,
            num_prompt=len(beginning),
            num_given=request.num_given,
            order=request.order,
            key=request.key,
            guesses=request.guesses,
            scored=request.scored,
        )
        self.scheduler.add(sequence)

    def cancel(self, sequence_id: int) -> None:
        """Drop a request; its row is free for the next step."""
        self.scheduler.cancel(sequence_id)

    def step(self) -> StepResult:
        """Schedule, copy, prefill, decode, and say what came of it."""
        batch = self.scheduler.schedule()
        for s in batch.admitted:
            self.runner.set_row(s.row, s.params, s.prompt, s.tokens[s.num_prompt :])
        for copy in batch.copies:
            assert self.copier is not None
            self.copier.copy_prefix(copy)
        for s in batch.sequences:
            if s.scored:
                self.runner.set_row(s.row, s.scoring_params, [], [])
        began = self.clock()
        self.runner.prefill(batch.chunks)
        prefilled = self.clock()
        sampled = self.runner.decode(batch.slots) if batch.slots else []
        sampled = [s.as_scored(t) if s.scored else t for s, t in zip(batch.sequences, sampled, strict=True)]
        finished = self.scheduler.update(batch, sampled, prefilled - began, self.clock() - prefilled)
        self.steps += batch.num_decode_steps
        ended = {s.id for s in finished}
        outputs = [Output(s.id, t.tokens, s.id in ended, t.logprobs, t.num_passes) for s, t in zip(batch.sequences, sampled, strict=True)]
        return StepResult([s.id for s in batch.admitted], outputs)
