"""The policy, with lists and a runner of forty lines."""

from __future__ import annotations

from collections.abc import Sequence as Seq

import pytest

from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.interface import Cursor, Drawn, Piece
from service.worker.scheduler import ENCODE_SECONDS, MAX_BURST, MAX_ENCODE, Plan, Scheduler


class CountingRunner:
    """Draws 0, 1, 2, … and checks what an engine must never do: decode over a hole, or two sequences in one row."""

    chunk, device, dtype, kernels, memory_bytes = 8, "cpu", "float32", "fake", 0

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.encoded: dict[int, int] = {}
        self.most_encoded = 0
        self.bursts: list[int] = []

    def set_row(self, row: int, params: SamplingParams, prompt: Seq[int], generated: Seq[int]) -> None:
        self.encoded[row] = 0

    def encode(self, pieces: Seq[Piece]) -> None:
        self.most_encoded = max(self.most_encoded, sum(len(p.tokens) for p in pieces))
        for piece in pieces:
            assert 0 < len(piece.tokens) <= self.chunk
            assert piece.start == 0 or piece.start == self.encoded[piece.row]
            assert piece.start % self.chunk == 0 or piece.replay
            self.encoded[piece.row] = piece.start + len(piece.tokens)

    def decode(self, cursors: Seq[Cursor]) -> list[Drawn]:
        assert len({c.row for c in cursors}) == len(cursors)
        self.bursts.append(max(c.steps for c in cursors))
        for c in cursors:
            assert c.position == self.encoded[c.row]
            self.encoded[c.row] += c.steps
        return [Drawn(list(range(c.steps)), None) for c in cursors]

    def next_logits(self, row: int, tokens: Seq[int]) -> list[float]:
        return []

    def close(self) -> None: ...


def make(rows: int = 2, block: int = 64) -> tuple[EngineCore, CountingRunner]:
    runner = CountingRunner(rows)
    return EngineCore(runner, block_size=block, stride=block // 2, start_token=0), runner


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
    """A budget bounds what is encoded between two bursts, and those who are ready decode in every step."""
    core, runner = make(rows=8, block=4096)
    submit(core, 0, new=4000)
    core.step()
    for number in range(1, 8):
        submit(core, number, prompt=2000)
    steps_until_all_ready = 0
    while len(core.scheduler.encoding) or steps_until_all_ready == 0:
        outputs = core.step().outputs
        steps_until_all_ready += 1
        assert outputs[0].sequence == 0
        assert outputs[0].tokens
    assert steps_until_all_ready >= 7 * 2000 // MAX_ENCODE
    assert runner.most_encoded <= MAX_ENCODE + runner.chunk


@pytest.mark.parametrize("generated", [0, 40], ids=["prompts", "replays"])
def test_a_slow_encoder_gets_less_at_a_time(generated: int) -> None:
    """On PyTorch a replayed token costs a whole tile: with a budget in tokens a rebuild under load looked like a hang."""
    core, _ = make(rows=8, block=64)
    scheduler, steps = core.scheduler, list[float]()
    for number in range(8):
        prompt = 1 if generated else 64
        core.submit(Submit(number, number, [1] * prompt, [0] * generated, SamplingParams(max_new_tokens=60)))
    cost = 0.001 if not generated else 0.02  # seconds a token
    while True:
        plan = scheduler.schedule()
        if not plan.pieces:
            break
        assert {piece.replay for piece in plan.pieces} == {bool(generated)}
        steps.append(cost * sum(len(piece.tokens) for piece in plan.pieces))
        scheduler.update(Plan(plan.pieces), [], steps[-1], 0.0)
    assert max(steps[2:]) <= ENCODE_SECONDS + core.runner.chunk * cost * (not generated)
    assert max(steps) < 1.0


def test_a_fast_encoder_soon_gets_all_that_is_allowed() -> None:
    core, runner = make(rows=8, block=4096)
    for number in range(8):
        submit(core, number, prompt=2000)
    for _ in range(8):
        core.step()
    assert MAX_ENCODE <= runner.most_encoded < MAX_ENCODE + runner.chunk


def test_bursts_start_short_and_grow() -> None:
    core, runner = make(rows=2, block=4096)
    core.scheduler.seconds_per_step = 0.0
    submit(core, 0, new=400)
    while core.has_work:
        core.step()
        core.scheduler.seconds_per_step = 1e-9
    assert runner.bursts[:8] == [1, 2, 4, 8, 16, 32, 64, 64]
    assert max(runner.bursts) == MAX_BURST


def test_a_burst_keeps_the_border_near() -> None:
    scheduler = Scheduler(4, 8)
    scheduler.seconds_per_step = 0.004

    class Old:
        bursts = 50

    assert scheduler.burst_limit([Old()]) == 2  # type: ignore[list-item]


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
    core.scheduler.free.pop()
    with pytest.raises(AssertionError, match="rows lost"):
        core.step()
