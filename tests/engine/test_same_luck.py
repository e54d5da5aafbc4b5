"""Going on after a text that is given: token number i is still drawn with random number i, and everything sees what was given."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint.files import write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.config import GPTConfig
from model.gpt import GPT
from model.params import SamplingParams
from model.tokenizer.base import Tokenizer
from model.tokenizer.bpe import BPETokenizer
from model.tokenizer.byte import ByteTokenizer
from model.tokenizer.char import CharTokenizer
from service.engine.engine import EngineClient
from service.engine.interface import Chunk, Completion, EngineOptions, GenerationRequest
from tests.engine.conftest import BLOCK
from tests.engine.engines import current, read, run, running

SAMPLE = "thé théâtre 中文 🙂 the end\n" * 20
KINDS: dict[str, Tokenizer] = {
    "char": CharTokenizer.from_text(SAMPLE),
    "byte": ByteTokenizer(),
    "bpe": BPETokenizer.from_text(SAMPLE, 290),
}
LENGTH = 2 * BLOCK + 9
"""Windows move twice."""
PARAMS = [
    SamplingParams(max_new_tokens=LENGTH, seed=1),
    SamplingParams(max_new_tokens=LENGTH, seed=2, temperature=0.0, stride=1),
    SamplingParams(max_new_tokens=LENGTH, seed=3, repetition_penalty=1.2, frequency_penalty=0.3, presence_penalty=0.2, num_logprobs=2),
    SamplingParams(max_new_tokens=LENGTH, seed=4, top_k=9, top_p=0.9, stride=7),
]


@pytest.fixture(params=KINDS)
def options_of_kind(request: pytest.FixtureRequest, options: EngineOptions, tmp_path: Path) -> EngineOptions:
    """Random weights over each kind of tokenizer, whose texts are full of halves of characters."""
    tokenizer = KINDS[request.param]
    torch.manual_seed(4)
    config = GPTConfig(vocab_size=tokenizer.vocab_size, block_size=BLOCK, n_layer=1, n_head=2, n_embd=24, dropout=0.0)
    files = checkpoint_files(GPT(config).eval(), tokenizer, tokenizer.encode(SAMPLE))
    write_checkpoint(tmp_path / "model", files, {})
    return replace(options, checkpoint=tmp_path / "model")


async def follow(engine: EngineClient, request: GenerationRequest) -> tuple[list[Chunk], Completion]:
    """A text, after what is true of any has been checked."""
    chunks: list[Chunk] = []
    text, completion = await read(engine.submit(request), chunks)
    assert text == completion.text
    assert all(chunk.index > len(request.generated) for chunk in chunks)
    if completion.finish_reason == "length":
        assert sum(len(chunk.tokens) for chunk in chunks) == len(completion.tokens)
    return chunks, completion


def test_the_rest_of_a_text_follows_from_any_position(options_of_kind: EngineOptions) -> None:
    """In characters where a token is one, in tokens where it is not: the ids that the text itself came with."""

    async def body() -> None:
        async with running(options_of_kind) as engine:
            rng = random.Random(1)
            for params in PARAMS:
                prompt = tuple(KINDS["byte"].encode("th")) if engine.find().tokenizer.kind == "byte" else (1, 2)
                whole_request = GenerationRequest(prompt=prompt, params=params)
                _, whole = await follow(engine, whole_request)
                assert len(whole.tokens) == whole.completion_tokens == LENGTH
                tokenizer = engine.find().tokenizer
                for cut in sorted({0, 1, BLOCK - 2, BLOCK, LENGTH - 1, LENGTH, *(rng.randrange(LENGTH) for _ in range(12))}):
                    given = whole.tokens[:cut]
                    _, rest = await follow(engine, replace(whole_request, generated=given))
                    assert rest.tokens == whole.tokens[cut:]
                    assert rest.completion_tokens == LENGTH
                    assert rest.logprobs == () or [p.logprob for p in rest.logprobs] == [p.logprob for p in whole.logprobs[cut:]]
                    begun = tokenizer.decode(given)
                    if begun.endswith("\ufffd"):  # a character that was only begun comes whole, with the rest
                        assert whole.text.endswith(rest.text)
                    else:
                        assert begun + rest.text == whole.text
            assert current(engine).streams == set()

    run(body())


def test_a_stop_is_found_across_what_was_given(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            request = GenerationRequest(prompt=(1, 2, 3), params=SamplingParams(max_new_tokens=120, seed=6))
            _, plain = await follow(engine, request)
            start = 60
            stop = plain.text[start : start + 4]
            end = plain.text.find(stop)
            for cut in range(end + 8):
                _, rest = await follow(engine, replace(request, generated=plain.tokens[:cut], stop=(stop,)))
                assert rest.finish_reason == "stop"
                assert rest.text == plain.text[cut:end], "nothing of the stop, and nothing where it began in what was given"
                assert rest.completion_tokens == end + 4

    run(body())


def test_a_changed_text_goes_on_from_the_change(options: EngineOptions) -> None:
    """What the same draws make of it: a text of its own, the rest of which follows from any position too."""

    async def body() -> None:
        async with running(options) as engine:
            request = GenerationRequest(prompt=(1, 2, 3), params=SamplingParams(max_new_tokens=100, seed=8))
            _, whole = await follow(engine, request)
            changed = (*whole.tokens[:40], (whole.tokens[40] + 1) % 12)
            _, other = await follow(engine, replace(request, generated=changed))
            assert other.tokens != whole.tokens[41:]
            for cut in (1, 20, 58):
                _, rest = await follow(engine, replace(request, generated=(*changed, *other.tokens[:cut])))
                assert rest.tokens == other.tokens[cut:]

    run(body())


def test_nothing_is_left_to_generate(options: EngineOptions) -> None:
    async def body() -> None:
        async with running(options) as engine:
            request = GenerationRequest(prompt=(1,), params=SamplingParams(max_new_tokens=3, seed=1), generated=(4, 5, 6))
            steps = engine.status.steps
            chunks, completion = await follow(engine, request)
            assert (chunks, completion.text, completion.tokens, completion.finish_reason) == ([], "", (), "length")
            assert engine.status.steps == steps

    run(body())


def test_withholding_and_going_on_together(options: EngineOptions) -> None:
    """A cut stream of a text that went on from another."""

    async def body() -> None:
        async with running(options) as engine:
            request = GenerationRequest(prompt=(1, 2, 3), params=SamplingParams(max_new_tokens=60, seed=5))
            _, whole = await follow(engine, request)
            for skip in (20, 21, 40, 60):
                chunks: list[Chunk] = []
                text, completion = await read(engine.submit(replace(request, generated=whole.tokens[:20], skip_tokens=skip)), chunks)
                assert text == whole.text[skip:]
                assert completion.text == whole.text[20:]
                assert all(chunk.index > skip for chunk in chunks)

    run(body())
