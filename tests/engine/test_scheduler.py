"""The policy, with lists and a runner of forty lines."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import numpy as np
import pytest
from numpy.typing import NDArray

from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.interface import DecodeSlot, PrefillChunk, SampledTokens, Speculation
from service.worker.scheduler import MAX_DECODE_STEPS, MAX_PREFILL_TOKENS, PREFILL_S, Batch, Scheduler
from tests.engine.conftest import ticking


class CountingRunner:
    """Draws 0, 1, 2, … and checks what an engine must never do: decode over a hole, or two sequences in one row."""

    device, kernels, memory_bytes = "cpu", "fake", 0

    def __init__(self, rows: int, turn_rows: int) -> None:
        self.rows = rows
        self.turn_rows = turn_rows
        self.speculation = Speculation()
        self.num_cached: dict[int, int] = {}
        self.most_prefilled = 0
        self.decodes: list[int] = []

    def set_row(self, row: int, params: SamplingParams, prompt: Seq[int], generated: Seq[int]) -> None:
        self.num_cached[row] = 0

    def prefill(self, chunks: Seq[PrefillChunk]) -> None:
        self.most_prefilled = max(self.most_prefilled, sum(len(p.tokens) for p in chunks))
        for chunk in chunks:
            assert chunk.tokens
            assert chunk.start == 0 or chunk.start == self.num_cached[chunk.row]
            self.num_cached[chunk.row] = chunk.start + len(chunk.tokens)

    def decode(self, slots: Seq[DecodeSlot]) -> list[SampledTokens]:
        assert len({c.row for c in slots}) == len(slots)
        self.decodes.append(max(c.num_steps for c in slots))
        for c in slots:
            assert c.position == self.num_cached[c.row]
            self.num_cached[c.row] += c.num_steps
        return [SampledTokens(list(range(c.num_steps)), None) for c in slots]

    def logits(self, chunks: Seq[PrefillChunk]) -> NDArray[np.float32]:
        raise NotImplementedError

    def probe(self, function: int) -> int:
        raise NotImplementedError

    def close(self) -> None: ...


def make(rows: int = 2, block: int = 64, turn_rows: int | None = None) -> tuple[EngineCore, CountingRunner]:
    runner = CountingRunner(rows, turn_rows or rows)
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
    """A budget bounds what is prefilled between two decodes, and who is ready decodes in every second step at least."""
    core, runner = make(rows=8, block=4096)
    submit(core, 0, new=4000)
    core.step()
    for number in range(1, 8):
        submit(core, number, prompt=2000)
    steps_until_all_ready = waited = 0
    while len(core.scheduler.prefilling) or steps_until_all_ready == 0:
        outputs = core.step().outputs
        steps_until_all_ready += 1
        waited = 0 if any(output.sequence == 0 and output.tokens for output in outputs) else waited + 1
        assert waited <= 1
    assert steps_until_all_ready >= 7 * 2000 // MAX_PREFILL_TOKENS
    assert runner.most_prefilled <= MAX_PREFILL_TOKENS


@pytest.mark.parametrize("generated", [0, 40], ids=["prompts", "rebuilt"])
def test_a_slow_prefill_gets_less_at_a_time(generated: int) -> None:
    """With a budget in tokens a rebuild under load would look like a hang on a slow engine."""
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
        steps.append(cost * sum(len(chunk.tokens) for chunk in batch.chunks))
        scheduler.update(Batch(chunks=batch.chunks), [], steps[-1], 0.0)
    assert max(steps[2:]) <= PREFILL_S + cost
    assert max(steps) < 1.0


def test_a_fast_prefill_soon_gets_all_that_is_allowed() -> None:
    core, runner = make(rows=8, block=4096)
    for number in range(8):
        submit(core, number, prompt=2000)
    for _ in range(8):
        core.step()
    assert runner.most_prefilled == MAX_PREFILL_TOKENS


def test_decodes_start_short_and_grow() -> None:
    core, runner = make(rows=2, block=4096)
    submit(core, 0, new=400)
    while core.has_work:
        core.scheduler.step_s = dict.fromkeys(range(8), 1e-9)
        core.step()
    assert runner.decodes[:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    assert max(runner.decodes) == MAX_DECODE_STEPS


def test_a_slow_model_decodes_few_steps_at_once() -> None:
    scheduler = Scheduler(4, 4)
    scheduler.step_s = {1: 0.004}

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


# ---- turns ---------------------------------------------------------------------------------------------------------------------------


def turns(core: EngineCore, steps: int) -> list[list[int]]:
    """Who decoded in each step."""
    return [[output.sequence for output in core.step().outputs] for _ in range(steps)]


def test_no_turn_is_larger_than_fits_the_cache() -> None:
    core, _ = make(rows=20, block=4096, turn_rows=6)
    for number in range(20):
        submit(core, number, new=1000)
    sizes = [len(turn) for turn in turns(core, 40)]
    assert max(sizes) == 6
    assert min(sizes) >= 1


def test_everybody_gets_the_same_share() -> None:
    core, _ = make(rows=10, block=4096, turn_rows=4)
    for number in range(10):
        submit(core, number, new=4000)
    turns(core, 8)  # until all have their first token
    for _ in range(5):  # ten rows at four a turn: each has two turns in five
        served = [number for turn in turns(core, 5) for number in turn]
        assert sorted(served) == sorted([*range(10)] * 2)


def test_a_newcomer_gets_its_first_token_before_a_round_is_through() -> None:
    core, _ = make(rows=32, block=4096, turn_rows=4)
    for number in range(31):
        submit(core, number, new=4000)
    turns(core, 30)
    submit(core, 99, new=4000)
    assert turns(core, 2)[0] == [99] or turns(core, 1)[0] == [99]


def test_a_stream_of_newcomers_starves_nobody() -> None:
    """Short texts come without end; those that run have every second turn."""
    core, _ = make(rows=16, block=4096, turn_rows=4)
    for number in range(8):
        submit(core, number, new=100_000, stride=2048)
    turns(core, 10)
    waited, longest = dict.fromkeys(range(8), 0), 0
    for number in range(1000, 1200):
        submit(core, number, new=1)
        served = turns(core, 1)[0]
        waited = {n: 0 if n in served else waited[n] + 1 for n in waited}
        longest = max(longest, *waited.values())
    assert longest <= 4  # two turns of eight rows at four, each after one of newcomers
