"""The policy, with lists and a runner of forty lines."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest

from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.interface import DecodeSlot, PrefillChunk, SampledTokens
from service.worker.scheduler import MAX_DECODE_STEPS, MAX_PREFILL_TOKENS, PREFILL_S, Batch, Scheduler
from tests.engine.conftest import ticking


class CountingRunner:
    """Draws 0, 1, 2, … and checks what an engine must never do: decode over a hole, or two sequences in one row."""

    chunk_size, device, dtype, kernels, memory_bytes = 8, "cpu", "float32", "fake", 0

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.num_cached: dict[int, int] = {}
        self.most_prefilled = 0
        self.decodes: list[int] = []

    def set_row(self, row: int, params: SamplingParams, prompt: Seq[int], generated: Seq[int]) -> None:
        self.num_cached[row] = 0

    def prefill(self, chunks: Seq[PrefillChunk]) -> None:
        self.most_prefilled = max(self.most_prefilled, sum(len(p.tokens) for p in chunks))
        for chunk in chunks:
            assert 0 < len(chunk.tokens) <= self.chunk_size
            assert chunk.start == 0 or chunk.start == self.num_cached[chunk.row]
            assert chunk.start % self.chunk_size == 0 or chunk.replay
            self.num_cached[chunk.row] = chunk.start + len(chunk.tokens)

    def decode(self, slots: Seq[DecodeSlot]) -> list[SampledTokens]:
        assert len({c.row for c in slots}) == len(slots)
        self.decodes.append(max(c.num_steps for c in slots))
        for c in slots:
            assert c.position == self.num_cached[c.row]
            self.num_cached[c.row] += c.num_steps
        return [SampledTokens(list(range(c.num_steps)), None) for c in slots]

    def next_logits(self, row: int, tokens: Seq[int]) -> list[float]:
        return []

    def close(self) -> None: ...


def make(rows: int = 2, block: int = 64) -> tuple[EngineCore, CountingRunner]:
    runner = CountingRunner(rows)
    return EngineCore(runner, block_size=block, stride=block // 2, start_token=0, clock=ticking()), runner


def submit(core: EngineCore, number: int, prompt: int = 4, new: int = 10, stride: int | None = None) -> None:
    core.submit(Submit(number, number, [1] * prompt, [], SamplingParams(max_new_tokens=new, stride=stride)))


def test_lowest_free_row_first_and_first_come_first_served() -> None:
    core, _ = make(rows=2)
    for number in range(4):
        submit(core, number, new=100)
    core.step()
    assert {n: s.row for n, s in core.scheduler.running.items()} == {0: 0, 1: 1}
    core.cancel(0)
    core.step()
    assert {n: s.row for n, s in core.scheduler.running.items()} == {1: 1, 2: 0}


def test_a_rebuilt_sequence_keeps_its_place() -> None:
    core, _ = make(rows=1)
    submit(core, 5, new=1)
    submit(core, 9, new=1)
    submit(core, 2, new=1)  # arrived first, submitted again
    assert core.step().admitted == [2]


def test_cancelling_while_queued_never_schedules() -> None:
    core, _ = make(rows=1)
    submit(core, 0, new=30)
    submit(core, 1)
    core.cancel(1)
    seen = []
    while core.has_work:
        seen += core.step().admitted
    assert seen == [0]


def test_decode_never_starves_behind_prefill() -> None:
    """A budget bounds what is prefilled between two decodes, and those who are ready decode in every step."""
    core, runner = make(rows=8, block=4096)
    submit(core, 0, new=4000)
    core.step()
    for number in range(1, 8):
        submit(core, number, prompt=2000)
    steps_until_all_ready = 0
    while len(core.scheduler.prefilling) or steps_until_all_ready == 0:
        outputs = core.step().outputs
        steps_until_all_ready += 1
        assert outputs[0].sequence == 0
        assert outputs[0].tokens
    assert steps_until_all_ready >= 7 * 2000 // MAX_PREFILL_TOKENS
    assert runner.most_prefilled <= MAX_PREFILL_TOKENS + runner.chunk_size


@pytest.mark.parametrize("generated", [0, 40], ids=["prompts", "replays"])
def test_a_slow_prefill_gets_less_at_a_time(generated: int) -> None:
    """On PyTorch a replayed token costs a whole tile: with a budget in tokens a rebuild under load looked like a hang."""
    core, _ = make(rows=8, block=64)
    scheduler, steps = core.scheduler, list[float]()
    for number in range(8):
        prompt = 1 if generated else 64
        core.submit(Submit(number, number, [1] * prompt, [0] * generated, SamplingParams(max_new_tokens=60)))
    cost = 0.001 if not generated else 0.02  # seconds a token
    while True:
        batch = scheduler.schedule()
        if not batch.chunks:
            break
        assert {chunk.replay for chunk in batch.chunks} == {bool(generated)}
        steps.append(cost * sum(len(chunk.tokens) for chunk in batch.chunks))
        scheduler.update(Batch(chunks=batch.chunks), [], steps[-1], 0.0)
    assert max(steps[2:]) <= PREFILL_S + core.runner.chunk_size * cost * (not generated)
    assert max(steps) < 1.0


def test_a_fast_prefill_soon_gets_all_that_is_allowed() -> None:
    core, runner = make(rows=8, block=4096)
    for number in range(8):
        submit(core, number, prompt=2000)
    for _ in range(8):
        core.step()
    assert MAX_PREFILL_TOKENS <= runner.most_prefilled < MAX_PREFILL_TOKENS + runner.chunk_size


def test_decodes_start_short_and_grow() -> None:
    core, runner = make(rows=2, block=4096)
    core.scheduler.step_s = 0.0
    submit(core, 0, new=400)
    while core.has_work:
        core.step()
        core.scheduler.step_s = 1e-9
    assert runner.decodes[:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    assert max(runner.decodes) == MAX_DECODE_STEPS


def test_a_slow_model_decodes_few_steps_at_once() -> None:
    scheduler = Scheduler(4, 8)
    scheduler.step_s = 0.004

    class Old:
        num_decodes = 50

    assert scheduler.decode_steps([Old()]) == 2  # type: ignore[list-item]


def test_sliding_neighbours_share_the_budget_fairly() -> None:
    core, _ = make(rows=4, block=64)
    for number in range(4):
        submit(core, number, prompt=64, new=40, stride=1)
    progress: dict[int, int] = dict.fromkeys(range(4), 0)
    while core.has_work:
        for output in core.step().outputs:
            progress[output.sequence] += len(output.tokens)
        if core.has_work:
            assert max(progress.values()) - min(progress.values()) <= 2
    assert set(progress.values()) == {40}


def test_the_books_are_checked_when_idle() -> None:
    core, _ = make()
    submit(core, 0, new=1)
    core.scheduler.free_rows.pop()
    with pytest.raises(AssertionError, match="rows lost"):
        core.step()
