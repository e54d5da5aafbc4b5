"""Requests with every parameter, and the hashes of their answers in ``NAME.json``, computed by the reference (``make golden``)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint.files import Checkpoint
from model.exact.generate import logits_after
from model.exact.network import ExactModel
from model.params import MAX_SEED, SamplingParams
from model.sampling import log_probabilities, rank_tokens, sample

FOLDER = Path(__file__).parent
TokenLogprobs = tuple[float, list[tuple[int, float]]]


@dataclass(frozen=True)
class Request:
    """What an engine is asked for. An empty prompt starts from ``checkpoint.start``, which is no part of it."""

    prompt: str
    params: SamplingParams


@dataclass(frozen=True)
class Answer:
    """What it gives: tokens, and their log-probabilities where ``params.num_logprobs`` asks for them."""

    tokens: list[int]
    logprobs: list[TokenLogprobs] | None = None


Engine = Callable[[Checkpoint, Sequence[Request]], list[Answer]]
"""All requests at once, in any order and any batch; answers in the order of the requests."""


def requests(checkpoint: Checkpoint) -> list[Request]:
    """Every parameter alone and with others; prompts of none and of more than a context; windows of every stride."""
    block, size = checkpoint.config.block_size, checkpoint.config.vocab_size
    over = block + block // 4
    long = ("And what is the hour? " * 40)[: block + 5]
    bias = ((size // 3, 1.5), (size // 2, -100.0), (size // 3, 0.25))
    return [
        Request("", SamplingParams(seed=1, repetition_penalty=1.5, stride=block // 2, max_new_tokens=over)),
        Request("the ", SamplingParams(seed=2, stride=max(1, int(block * 0.875)), max_new_tokens=over, num_logprobs=5)),
        Request(long, SamplingParams(seed=3, stride=3, max_new_tokens=12, temperature=0.7)),
        Request(long[: block - 2], SamplingParams(seed=4, stride=1, max_new_tokens=9, temperature=1.3, num_logprobs=0)),
        Request("in", SamplingParams(temperature=0.0, stride=block, max_new_tokens=24)),
        Request("and ", SamplingParams(seed=5, top_k=5, stride=block // 2, max_new_tokens=24)),
        Request("and ", SamplingParams(seed=6, top_p=0.8, stride=block // 2, max_new_tokens=24)),
        Request("and ", SamplingParams(seed=7, min_p=0.1, stride=block // 2, max_new_tokens=24)),
        Request("sing", SamplingParams(seed=8, top_k=20, top_p=0.9, min_p=0.02, temperature=1.5, stride=2, max_new_tokens=24)),
        Request(
            "would",
            SamplingParams(seed=9, repetition_penalty=1.3, frequency_penalty=0.4, presence_penalty=0.2, stride=2, max_new_tokens=24),
        ),
        Request(
            "would",
            SamplingParams(repetition_penalty=0.8, presence_penalty=-1.0, temperature=0.0, stride=2, max_new_tokens=24, num_logprobs=2),
        ),
        Request("the", SamplingParams(seed=MAX_SEED, logit_bias=bias, top_k=size + 1, stride=5, max_new_tokens=24)),
    ]


def reference(checkpoint: Checkpoint, asked: Sequence[Request]) -> list[Answer]:
    """The reference as an engine."""
    model = ExactModel(checkpoint.config, checkpoint.tensors)
    encode = checkpoint.tokenizer.encode
    return [reference_answer(model, encode(request.prompt), request.params, checkpoint.start) for request in asked]


def reference_answer(model: ExactModel, prompt: list[int], params: SamplingParams, start: int) -> Answer:
    tokens: list[int] = []
    logprobs: list[TokenLogprobs] = []
    for logits in logits_after(model, prompt or [start], params.stride or 1, tokens):
        tokens.append(sample(logits, params, prompt, tokens))
        own = log_probabilities(logits)
        logprobs.append((float(own[tokens[-1]]), [(i, float(own[i])) for i in rank_tokens(logits, params.num_logprobs or 0)]))
        if len(tokens) == params.max_new_tokens:
            break
    return Answer(tokens, None if params.num_logprobs is None else logprobs)


def describe(checkpoint: Checkpoint, request: Request, answer: Answer) -> dict[str, Any]:
    """One entry of a golden file; the beginning of the text is for the eye."""
    text = checkpoint.tokenizer.decode(answer.tokens)
    neutral = asdict(SamplingParams())
    entry: dict[str, Any] = {
        "prompt": request.prompt,
        "params": {name: value for name, value in asdict(request.params).items() if value != neutral[name]},
        "begins": text[:24],
        "text_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "tokens_sha256": hashlib.sha256(np.array(answer.tokens, "<i4").tobytes()).hexdigest(),
    }
    if answer.logprobs is not None:
        numbers = [x for own, top in answer.logprobs for x in (own, *(value for pair in top for value in pair))]
        entry["logprobs_sha256"] = hashlib.sha256(np.array(numbers, "<f8").tobytes()).hexdigest()
    return entry


def entries(checkpoint: Checkpoint, engine: Engine) -> list[dict[str, Any]]:
    """A golden file's content as ``engine`` has it."""
    asked = requests(checkpoint)
    described = [describe(checkpoint, request, answer) for request, answer in zip(asked, engine(checkpoint, asked), strict=True)]
    loaded: list[dict[str, Any]] = json.loads(json.dumps(described))
    return loaded


def golden_file(name: str) -> Path:
    return FOLDER / f"{name}.json"


def check(checkpoint: Checkpoint, name: str, engine: Engine) -> None:
    """Raises AssertionError with the first request whose answer is another one."""
    golden = json.loads(golden_file(name).read_text(encoding="utf-8"))
    for expected, found in zip(golden["requests"], entries(checkpoint, engine), strict=True):
        assert found == expected
