"""Rows that share what they have computed: fewer tokens are prefilled, nobody waits in a circle, and no byte moves."""

from __future__ import annotations

import random
from collections.abc import Sequence as Seq

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.checkpoint.files import Checkpoint
from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.prefixes import MIN_SHARED, num_shared
from service.worker.runners.interface import DecodeSlot, PrefillChunk, PrefixCopy, SampledTokens
from tests.engine.conftest import LONG_BLOCK, Driver, MakeCore, Request, ticking
from tests.engine.kernels import ENGINES
from tests.engine.test_scheduler import CountingRunner


@given(st.lists(st.integers(0, 1)), st.lists(st.integers(0, 1)))
def test_the_common_beginning(a: list[int], b: list[int]) -> None:
    expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    assert num_shared(a, b) == expected
    assert num_shared(a, a) == len(a)


class CopyingRunner(CountingRunner):
    """Knows which token every position of every row was computed from, and can copy them."""

    def __init__(self, rows: int, turn_rows: int) -> None:
        super().__init__(rows, turn_rows)
        self.cache: list[list[int]] = [[] for _ in range(rows)]
        self.copies: list[PrefixCopy] = []
        self.num_prefilled = 0

    def set_row(self, row: int, params: SamplingParams, prompt: Seq[int], generated: Seq[int]) -> None:
        """The cache stays as it is."""

    def copy_prefix(self, copy: PrefixCopy) -> None:
        assert copy.source != copy.target
        assert len(self.cache[copy.source]) >= copy.num_tokens, "what is copied was computed"
        self.cache[copy.target] = self.cache[copy.source][: copy.num_tokens]
        self.copies.append(copy)

    def prefill(self, chunks: Seq[PrefillChunk]) -> None:
        for chunk in chunks:
            assert len(self.cache[chunk.row]) >= chunk.start
            self.cache[chunk.row][chunk.start :] = chunk.tokens
            self.num_prefilled += len(chunk.tokens)

    def decode(self, slots: Seq[DecodeSlot]) -> list[SampledTokens]:
        found = []
        for slot in slots:
            tokens = [(slot.token + i) % 3 for i in range(slot.num_steps)]
            assert len(self.cache[slot.row]) >= slot.position
            self.cache[slot.row][slot.position :] = [slot.token, *tokens[:-1]]
            found.append(SampledTokens(tokens, None))
        return found


def make(rows: int = 8, block: int = 256) -> tuple[EngineCore, CopyingRunner]:
    runner = CopyingRunner(rows, rows)
    return EngineCore(runner, block_size=block, stride=block // 2, start_token=0, clock=ticking()), runner


def submit(core: EngineCore, number: int, prompt: list[int], new: int = 5, generated: Seq[int] = ()) -> None:
    core.submit(Submit(number, number, prompt, list(generated), SamplingParams(max_new_tokens=new)))


def run_checked(core: EngineCore, runner: CopyingRunner) -> None:
    """To the end; after every step each row holds what its sequence says is cached."""
    while core.has_work:
        before = runner.num_prefilled
        assert core.step().outputs or runner.num_prefilled > before, "everybody waits for somebody"
        check(core, runner)


def check(core: EngineCore, runner: CopyingRunner) -> None:
    for sequence in core.scheduler.running.values():
        assert runner.cache[sequence.row][: sequence.num_cached] == sequence.cached_tokens
    for row, tokens in enumerate(core.scheduler.prefixes.left):
        assert runner.cache[row][: len(tokens)] == tokens


PROMPT = [random.Random(1).randrange(100) for _ in range(200)]


def test_eight_choices_prefill_one_prompt() -> None:
    core, runner = make()
    for number in range(8):
        submit(core, number, PROMPT)
    run_checked(core, runner)
    assert runner.num_prefilled == len(PROMPT) - 1
    assert len(runner.copies) == 7


def test_what_differs_is_prefilled_after_what_does_not() -> None:
    """A system prompt, and a question each."""
    core, runner = make()
    for number in range(8):
        submit(core, number, [*PROMPT, number, number, number])
    run_checked(core, runner)
    assert runner.num_prefilled == len(PROMPT) + 2 + 7 * 2


def test_a_retry_finds_what_was_left_behind() -> None:
    core, runner = make(rows=4)
    submit(core, 0, PROMPT, new=9)
    run_checked(core, runner)
    prefilled = runner.num_prefilled
    submit(core, 1, [3] * 50)  # gets the row, and overwrites it
    submit(core, 2, [4] * 50)
    run_checked(core, runner)
    submit(core, 3, PROMPT)
    run_checked(core, runner)
    assert runner.num_prefilled == prefilled + 2 * 49 + len(PROMPT) - 1, "nobody has it any more"
    submit(core, 4, PROMPT, generated=[PROMPT[-1] % 3, 1])
    before = runner.num_prefilled
    run_checked(core, runner)
    assert runner.num_prefilled <= before + 3, "the same row still holds it, but for its end"


def test_a_leader_that_never_arrives() -> None:
    """Cancelled on its way: somebody else leads, from where it got to."""
    core, runner = make(rows=4)
    for number in range(4):
        submit(core, number, PROMPT, new=3)
    core.step()
    assert len(core.scheduler.prefixes.leaders) == 3
    core.cancel(0)
    assert core.scheduler.prefixes.leaders == {}
    run_checked(core, runner)
    assert core.scheduler.prefixes.leaders == {}
    assert runner.num_prefilled == len(PROMPT) - 1, "what the first one had done was not in vain"


def test_short_prompts_do_not_wait_for_each_other() -> None:
    core, runner = make()
    for number in range(8):
        submit(core, number, PROMPT[: MIN_SHARED - 1])
    core.step()
    assert core.scheduler.prefixes.leaders == {}
    run_checked(core, runner)
    assert runner.copies == []
    assert runner.num_prefilled == 8 * (MIN_SHARED - 2)


@pytest.mark.parametrize("seed", range(20))
def test_any_crowd(seed: int) -> None:
    """Prompts out of few parts, lengths beyond the context, cancellations, keys that take rows from each other."""
    rng = random.Random(seed)
    core, runner = make(rows=rng.choice([2, 5, 8]), block=64)
    parts = [[rng.randrange(5) for _ in range(20)] for _ in range(3)]
    for number in range(60):
        prompt = [token for _ in range(rng.randrange(1, 5)) for token in rng.choice(parts)]
        params = SamplingParams(max_new_tokens=rng.randrange(1, 90), stride=rng.choice([None, 1, 16, 64]))
        core.submit(Submit(number, number, prompt, [], params, rng.choice("ab")))
        for _ in range(rng.randrange(3)):
            core.step()
            check(core, runner)
        if rng.random() < 0.2:
            core.cancel(rng.randrange(number + 1))
    run_checked(core, runner)
    assert runner.copies
    prefixes = core.scheduler.prefixes
    assert (prefixes.leaders, prefixes.searched) == ({}, {})


@pytest.mark.parametrize("engine", ENGINES)
def test_no_byte_moves(make_core: MakeCore, long_checkpoint: Checkpoint, engine: str) -> None:
    """Tokens and log-probabilities are those of an engine that shares nothing."""
    rng = random.Random(6)
    beginnings = [[rng.randrange(12) for _ in range(length)] for length in (40, 90, LONG_BLOCK + 7)]
    requests: list[Request] = []
    for number in range(6 if engine in ("reference", "torch") else 24):
        prompt = [*rng.choice(beginnings), *(rng.randrange(12) for _ in range(rng.randrange(4)))]
        params = SamplingParams(max_new_tokens=rng.choice([4, 20, 60]), seed=number, num_logprobs=2, frequency_penalty=0.2)
        requests.append((prompt, params))
    results, followed = [], False
    for shares in (False, True):
        core = make_core(engine, rows=6, stride=80, of=long_checkpoint)
        core.scheduler.prefixes.enabled = shares
        driver = Driver(core)
        for number, request in enumerate(requests):
            driver.submit(number, request)
        while core.has_work:
            driver.step()
            followed = followed or bool(core.scheduler.prefixes.leaders)
        results.append((driver.tokens, driver.logprobs))
    assert results[0] == results[1]
    assert followed
