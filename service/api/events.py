"""The native route's JSON: the reply, its log-probabilities, and the stream's events, all pure ASCII."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote

from model.tokenizer.base import Tokenizer
from service.api.event_id import event_id_prefix
from service.api.generation import Generation
from service.api.plan import Plan
from service.api.receipt import sha256_text
from service.engine.interface import Chunk, Completion, TokenLogprob
from service.errors import ApiError, error_object

TOKENS_AT_ONCE = 64
"""Log-probabilities of this many tokens are written before other requests get their turn."""
LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON does not have."""


@lru_cache(maxsize=4)
def token_prefixes(tokenizer: Tokenizer) -> list[str]:
    """For each token the beginning of its log-probability's object, up to the number."""
    return [f'{{"id": {id}, "token": {quote(text)}, "logprob": ' for id, text in enumerate(tokenizer.texts)]


def logprobs_json(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> str:
    """A list's inside: each token's log-probability and those of the most probable ones."""
    prefix = token_prefixes(tokenizer)
    return ", ".join(
        [
            f"{prefix[each.id]}{max(each.logprob, LEAST_LOGPROB)!r}, "
            f'"top": [{", ".join([f"{prefix[id]}{max(logprob, LEAST_LOGPROB)!r}}}" for id, logprob in each.top])}]}}'
            for each in logprobs
        ]
    )


async def all_logprobs_json(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> str:
    """The same for a whole text, which can be megabytes: written in slices, so that nobody waits for it."""
    slices = []
    for first in range(0, len(logprobs), TOKENS_AT_ONCE):
        slices.append(logprobs_json(logprobs[first : first + TOKENS_AT_ONCE], tokenizer))
        await asyncio.sleep(0)
    return ", ".join(slices)


async def reply_json(plan: Plan, completion: Completion, request_id: str) -> str:
    """The reply of POST /generate, which is also the data of a stream's ``end``."""
    text = plan.echoed + completion.text
    num_prompt, num_generated = plan.num_prompt, len(completion.tokens)
    reply = {
        "id": request_id,
        "checkpoint": plan.checkpoint.id,
        "fingerprint": plan.checkpoint.fingerprint,
        "text": text,
        "finish_reason": completion.finish_reason,
        "seed": plan.request.params.seed,
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": num_generated,
            "total_tokens": num_prompt + num_generated,
        },
        "text_sha256": sha256_text(text),
        "prompt_truncated": plan.prompt_truncated,
        "timings": {
            "queue_ms": round(completion.queue_s * 1e3, 3),
            "ttft_ms": round(completion.ttft_s * 1e3, 3),
            "total_ms": round(completion.total_s * 1e3, 3),
            "passes": completion.num_passes,
        },
    }
    if plan.return_tokens:
        reply["tokens"] = completion.tokens
    if plan.receipt is not None:
        reply["receipt"] = plan.receipt.receipt(plan.checkpoint, text, completion)
    data = json.dumps(reply)
    if plan.request.params.num_logprobs is None:
        return data
    return f'{data[:-1]}, "logprobs": [{await all_logprobs_json(completion.logprobs, plan.checkpoint.tokenizer)}]}}'


class NativeEvents:
    """The events of one text: `generation.EventFormat`.

    >>> await native.chunk(0, Chunk(7, "O, sp"))
    b'id: my-id.0123456789ab.fedcba9876543210.7\\ndata: {"index": 7, "text": "O, sp"}\\n\\n'
    """

    def __init__(self, generation: Generation, *, ends_for_good: bool = False) -> None:
        self.generation, self.plan, self.ends_for_good = generation, generation.plan, ends_for_good
        self.request_id = generation.state.request_id
        self._id = "id: " + event_id_prefix(self.request_id, self.plan.checkpoint.id, self.plan.digest)

    def begin(self, index: int) -> bytes:
        """The prompt, if it is asked for and was not sent before the cut."""
        return self.text(Chunk(self.plan.num_given, self.plan.echoed)) if self.plan.echoed and self.plan.resume_from is None else b""

    async def chunk(self, index: int, chunk: Chunk) -> bytes:
        """Some text."""
        tokenizer = self.plan.checkpoint.tokenizer
        return self.text(chunk, await all_logprobs_json(chunk.logprobs, tokenizer) if chunk.logprobs else "")

    def text(self, chunk: Chunk, logprobs: str = "") -> bytes:
        """A piece of text; ``logprobs`` are the inside of its list."""
        more = f', "tokens": {list(chunk.tokens)}' if self.plan.return_tokens else ""
        if logprobs:
            more += f', "logprobs": [{logprobs}]'
        return (f'{self._id}{chunk.index}\ndata: {{"index": {chunk.index}, "text": {quote(chunk.text)}{more}}}\n\n').encode("ascii")

    def end(self, index: int, completion: Completion) -> bytes:
        """Nothing: the one text's end is the stream's."""
        return b""

    async def close(self, completions: Sequence[Completion]) -> bytes:
        """The whole reply."""
        end = f"{self._id}{completions[0].completion_tokens}.end\n" if self.ends_for_good else ""
        return f"{end}event: end\ndata: {await reply_json(self.plan, completions[0], self.request_id)}\n\n".encode("ascii")

    def error(self, error: ApiError) -> bytes:
        """What went wrong after the stream had opened."""
        data = {
            "error": error_object(error, self.request_id, openai=False),
            "index": self.generation.index,
            "retryable": error.retryable,
        }
        return f"event: error\ndata: {json.dumps(data)}\n\n".encode("ascii")
