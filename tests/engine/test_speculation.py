"""Guesses change how many passes a text takes, and no byte of it: none, our own, and whatever an adversary would guess."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint.files import Checkpoint
from model.draft import Draft, DraftError, count_contexts, empty_draft, read_draft, save_draft
from model.params import SamplingParams
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.interface import DecodeSlot, PrefillChunk, SampledTokens
from service.worker.runners.native import NativeRunner
from tests.engine.conftest import BLOCK, TEXT, Driver, random_request
from tests.engine.kernels import NATIVE

Request = tuple[list[int], SamplingParams]
Guesser = Callable[[random.Random, Sequence[int]], list[int]]
VOCAB = len(TEXT)

GUESSERS: dict[str, Guesser] = {
    "right": lambda rng, true: list(true),
    "wrong": lambda rng, true: [(token + 1) % VOCAB for token in true],
    "random": lambda rng, true: [rng.randrange(VOCAB) for _ in true],
    "changes its mind": lambda rng, true: [t if rng.random() < 0.8 else rng.randrange(VOCAB) for t in true[: rng.randrange(len(true) + 1)]],
}


def make_runner(checkpoint: Checkpoint, cpu: str, *, rows: int, threads: int = 1, draft: Draft | None = None) -> NativeRunner:
    """Without ``draft`` nothing is guessed but what the caller gives."""
    runner = NativeRunner(checkpoint, rows=rows, threads=threads, cpu=cpu, speculation=draft is not None)
    runner.turn_rows = rows
    if draft is not None:
        runner.teach(draft)
    return runner


def decode_all(
    runner: NativeRunner, requests: Sequence[Request], start: int, guess: Guesser | None, truth: list[list[int]]
) -> list[SampledTokens]:
    """Texts that fit into one window, in one multi-step decode."""
    rng = random.Random(3)
    slots, chunks = [], []
    for row, (prompt, params) in enumerate(requests):
        tokens = prompt or [start]
        runner.set_row(row, params, prompt, [])
        if tokens[:-1]:
            chunks.append(PrefillChunk(row, 0, tokens[:-1]))
        guesses = guess(rng, truth[row]) if guess else ()
        slots.append(DecodeSlot(row, tokens[-1], len(tokens) - 1, params.max_new_tokens, guesses))
    runner.prefill(chunks)
    return runner.decode(slots)


def short_requests(rng: random.Random, count: int) -> list[Request]:
    """Requests whose texts end within the first window."""
    requests = []
    for prompt, params in (random_request(rng) for _ in range(count)):
        prompt = prompt[:8]
        requests.append((prompt, replace(params, max_new_tokens=rng.randrange(1, BLOCK - max(len(prompt), 1)))))
    return requests


@pytest.mark.parametrize("cpu", NATIVE)
@pytest.mark.parametrize("name", GUESSERS)
def test_no_guess_moves_a_token_or_a_log_probability(checkpoint: Checkpoint, name: str, cpu: str) -> None:
    for seed, threads in ((1, 1), (2, 2)):
        requests = short_requests(random.Random(seed), 24)
        plain = make_runner(checkpoint, cpu, rows=24)
        expected = decode_all(plain, requests, checkpoint.start, None, [])
        plain.close()
        runner = make_runner(checkpoint, cpu, rows=24, threads=threads, draft=empty_draft())
        truth = [each.tokens for each in expected]
        found = decode_all(runner, requests, checkpoint.start, GUESSERS[name], truth)
        runner.close()
        assert [(each.tokens, each.logprobs) for each in found] == [(each.tokens, each.logprobs) for each in expected]
        assert all(each.num_passes == len(each.tokens) for each in expected)
        if name == "right":
            assert sum(each.num_passes for each in found) < sum(map(len, truth)) / 2
        if name == "wrong":
            assert all(1 <= each.num_passes <= len(each.tokens) for each in found)


@pytest.mark.parametrize("cpu", NATIVE)
def test_our_own_guesses_move_nothing_under_load(checkpoint: Checkpoint, cpu: str) -> None:
    """Windows crossed, rows shared, a table that is taught, learns, and forgets."""
    requests = [random_request(random.Random(seed)) for seed in range(40)]
    texts = []
    for draft in (None, empty_draft(), count_contexts(np.arange(2000, dtype=np.int32) % VOCAB, VOCAB)):
        runner = make_runner(checkpoint, cpu, rows=5, draft=draft)
        driver = Driver(EngineCore(runner, block_size=BLOCK, stride=BLOCK // 2, start_token=checkpoint.start))
        for number, request in enumerate(requests):
            driver.submit(number, request)
        driver.run()
        texts.append((driver.tokens, driver.logprobs))
        runner.close()
    assert texts[0] == texts[1] == texts[2]


@pytest.mark.parametrize("cpu", NATIVE)
def test_what_training_counted_is_guessed_and_what_is_guessed_right_saves_passes(checkpoint: Checkpoint, cpu: str) -> None:
    """The two hashes, of the table's maker and of the kernels, are one; and a text that was seen before takes fewer passes."""
    prompt, params = [1, 2, 3], SamplingParams(seed=5, temperature=0, max_new_tokens=BLOCK - 4)
    plain = make_runner(checkpoint, cpu, rows=1)
    (expected,) = decode_all(plain, [(prompt, params)], checkpoint.start, None, [])
    plain.close()
    seen = np.array((prompt + expected.tokens) * 8, np.int32)
    taught = make_runner(checkpoint, cpu, rows=1, draft=count_contexts(seen, VOCAB))
    (found,) = decode_all(taught, [(prompt, params)], checkpoint.start, None, [])
    assert found.tokens == expected.tokens
    counts = taught.speculation
    assert counts.passes == found.num_passes
    assert counts.proposed >= counts.accepted > 0
    assert counts.passes + counts.accepted == len(found.tokens)
    taught.close()


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    draft = count_contexts(rng.integers(0, 50, 5000).astype(np.int32), 50)
    path = tmp_path / "draft.safetensors"
    path.write_bytes(save_draft(draft))
    read = read_draft(path, 50)
    for name in Draft.__slots__:
        assert np.array_equal(getattr(read, name), getattr(draft, name)), name
    assert len(read_draft(tmp_path / "missing", 50).slots) == 0


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    """It is input like any other: nothing in it may reach beyond the engine's table or the vocabulary."""
    good = count_contexts(np.tile(np.arange(30, dtype=np.int32), 40), 50)
    path = tmp_path / "draft.safetensors"
    bad = [
        replace(good, slots=good.slots + np.uint32(1 << 20)),
        replace(good, sizes=good.sizes + np.uint8(7)),
        replace(good, sizes=np.zeros_like(good.sizes)),
        replace(good, tokens=good.tokens + good.tokens.dtype.type(50)),
        replace(good, tokens=np.zeros_like(good.tokens), sizes=np.array([2], np.uint8)),
        replace(good, counts=np.zeros_like(good.counts)),
        replace(good, counts=good.counts[:-1]),
    ]
    for draft in bad:
        path.write_bytes(save_draft(draft))
        with pytest.raises(DraftError, match="draft"):
            read_draft(path, 50)
    for content in (b"", b"nonsense", save_draft(good)[:-3]):
        path.write_bytes(content)
        with pytest.raises(DraftError, match="draft"):
            read_draft(path, 50)


def test_a_table_keeps_the_most_frequent(tmp_path: Path) -> None:
    text = [1, 2] * 500 + [1, 3] * 20 + [int(x) for x in np.random.default_rng(2).integers(4, 50, 300)]
    draft = count_contexts(np.array(text, np.int32), 50)
    after_one = {int(t): int(c) for t, c in zip(*followers_of(draft, [1]), strict=True)}
    assert max(after_one, key=after_one.__getitem__) == 2
    assert after_one[3] < after_one[2]


def followers_of(draft: Draft, context: list[int]) -> tuple[list[int], list[int]]:
    """Tokens and counts after a context."""
    from model.draft import SLOTS, hash_contexts, tags_of

    (hashed,) = hash_contexts(np.array([*context, 0], np.int32), len(context))
    at = np.flatnonzero((draft.slots == hashed % np.uint64(SLOTS)) & (draft.tags == tags_of(np.array([hashed]))[0]))
    (entry,) = at.tolist()
    begin, size = int(draft.sizes[:entry].sum()), int(draft.sizes[entry])
    return draft.tokens[begin : begin + size].tolist(), draft.counts[begin : begin + size].tolist()


@pytest.mark.parametrize("cpu", NATIVE[:1])
def test_a_text_that_is_known_is_checked_in_few_passes(checkpoint: Checkpoint, cpu: str) -> None:
    """What a receipt's check does: the whole text as guesses, windows crossed; one wrong character costs only what follows it."""
    prompt, params = [1, 2, 3], SamplingParams(seed=9, max_new_tokens=6 * BLOCK)

    def run(guesses: list[int]) -> tuple[list[int], int]:
        runner = make_runner(checkpoint, cpu, rows=2, draft=empty_draft())
        core = EngineCore(runner, block_size=BLOCK, stride=BLOCK // 2, start_token=checkpoint.start)
        core.submit(Submit(0, 0, prompt, [], params, guesses=guesses))
        tokens: list[int] = []
        passes = 0
        while core.has_work:
            for output in core.step().outputs:
                tokens, passes = tokens + output.tokens, passes + output.num_passes
        runner.close()
        return tokens, passes

    text, without = run([])
    known, with_all = run(text)
    assert known == text
    assert with_all < without / 2
    changed = [*text[: 3 * BLOCK], (text[3 * BLOCK] + 1) % VOCAB, *text[3 * BLOCK + 1 :]]
    found, with_half = run(changed)
    assert found == text
    assert with_all < with_half < without
    assert run(text[:10])[0] == text
