"""The engine without its process: a scheduler, a runner, and the step that joins them."""

from __future__ import annotations

import time
from dataclasses import dataclass

from service.worker.messages import Output, Submit
from service.worker.runners.interface import Runner
from service.worker.scheduler import Scheduler
from service.worker.sequence import Sequence


@dataclass(slots=True)
class StepResult:
    """What one step did: who got a row, and what was drawn."""

    admitted: list[int]
    outputs: list[Output]


class EngineCore:
    """Continuous batching over a fixed pool of rows; ``submit``, ``cancel``, ``step``."""

    def __init__(self, runner: Runner, *, block_size: int, stride: int, start_token: int) -> None:
        self.runner = runner
        self.scheduler = Scheduler(runner.rows, runner.chunk)
        self.block_size, self.stride, self.start_token = block_size, stride, start_token
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
        )
        self.scheduler.add(sequence, request.order)

    def cancel(self, sequence_id: int) -> None:
        """Forget a request; its row is free for the next step."""
        self.scheduler.cancel(sequence_id)

    def step(self) -> StepResult:
        """Schedule, encode, decode a burst, and say what came of it."""
        plan = self.scheduler.schedule()
        for s in plan.admitted:
            self.runner.set_row(s.row, s.params, s.prompt, s.tokens[s.num_prompt :])
        began = time.perf_counter()
        self.runner.encode(plan.pieces)
        encoded = time.perf_counter()
        drawn = self.runner.decode(plan.cursors) if plan.cursors else []
        finished = self.scheduler.update(plan, drawn, encoded - began, time.perf_counter() - encoded)
        self.steps += max((cursor.steps for cursor in plan.cursors), default=0)
        ended = {s.id for s in finished}
        outputs = [Output(s.id, d.tokens, s.id in ended, d.logprobs) for s, d in zip(plan.batch, drawn, strict=True)]
        return StepResult([s.id for s in plan.admitted], outputs)
