"""The native route's JSON: the reply, its log-probabilities, and the stream's events, all pure ASCII."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from json.encoder import encode_basestring_ascii as quote

from model.tokenizer.base import Tokenizer
from service.api.event_id import event_id_prefix
from service.api.plan import Plan
from service.engine.interface import Chunk, Completion, TokenLogprob

TOKENS_AT_ONCE = 64
"""Log-probabilities of so many tokens are written before other requests get their turn."""


LEAST = -9999.0
"""Stands for minus infinity, which JSON does not have."""


@lru_cache(maxsize=4)
def heads(tokenizer: Tokenizer) -> list[str]:
    """For each token the beginning of its log-probability's object, up to the number."""
    return [f'{{"id": {id}, "token": {quote(text)}, "logprob": ' for id, text in enumerate(tokenizer.texts)]


def logprobs_json(logprobs: Sequence[TokenLogprob], tokenizer: Tokenizer) -> str:
    """A list's inside: each token's log-probability and those of the most probable ones."""
    head = heads(tokenizer)
    return ", ".join(
        [
            f"{head[each.id]}{max(each.logprob, LEAST)!r}, "
            f'"top": [{", ".join([f"{head[id]}{max(logprob, LEAST)!r}}}" for id, logprob in each.top])}]}}'
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


def sha256_text(text: str) -> str:
    """The hash that lets a client check a text put together from events."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


async def reply_json(plan: Plan, completion: Completion, request_id: str) -> str:
    """The reply of POST /generate, which is also the data of a stream's ``end``."""
    text = plan.echoed + completion.text
    num_prompt = len(plan.request.prompt)
    reply = {
        "id": request_id,
        "checkpoint": plan.checkpoint.id,
        "fingerprint": plan.checkpoint.fingerprint,
        "text": text,
        "finish_reason": completion.finish_reason,
        "seed": plan.request.params.seed,
        "usage": {
            "prompt_tokens": num_prompt,
            "completion_tokens": completion.completion_tokens,
            "total_tokens": num_prompt + completion.completion_tokens,
        },
        "text_sha256": sha256_text(text),
        "prompt_truncated": plan.prompt_truncated,
        "timings": {
            "queue_ms": round(completion.queue_s * 1e3, 3),
            "ttft_ms": round(completion.ttft_s * 1e3, 3),
            "total_ms": round(completion.total_s * 1e3, 3),
        },
    }
    data = json.dumps(reply)
    if plan.request.params.num_logprobs is None:
        return data
    return f'{data[:-1]}, "logprobs": [{await all_logprobs_json(completion.logprobs, plan.checkpoint.tokenizer)}]}}'


class Events:
    """The events of one stream.

    >>> events.text(Chunk(7, "O, sp"))
    b'id: my-id.0123456789ab.fedcba9876543210.7\\ndata: {"index": 7, "text": "O, sp"}\\n\\n'
    """

    def __init__(self, plan: Plan, request_id: str) -> None:
        self._id = "id: " + event_id_prefix(request_id, plan.checkpoint.id, plan.digest)

    def text(self, chunk: Chunk, logprobs: str = "") -> bytes:
        """A piece of text; ``logprobs`` are the inside of its list."""
        if logprobs:
            logprobs = f', "logprobs": [{logprobs}]'
        return f'{self._id}{chunk.index}\ndata: {{"index": {chunk.index}, "text": {quote(chunk.text)}{logprobs}}}\n\n'.encode("ascii")

    @staticmethod
    def end(reply: str) -> bytes:
        """The whole reply; nothing follows."""
        return f"event: end\ndata: {reply}\n\n".encode("ascii")

    @staticmethod
    def error(error: dict[str, object], index: int, retryable: bool) -> bytes:
        """What went wrong after the stream had opened; nothing follows."""
        data = json.dumps({"error": error, "index": index, "retryable": retryable})
        return f"event: error\ndata: {data}\n\n".encode("ascii")
