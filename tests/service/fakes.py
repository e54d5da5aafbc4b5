"""An engine without a model: the text after a prompt is a function of the request alone, and tests decide how fast it comes."""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace

from model.params import SamplingParams
from model.tokenizer.char import CharTokenizer
from service.engine.errors import CheckpointGone, CheckpointNotFound, EngineError, EngineFailed, EngineLoading, EngineStopping, QueueFull
from service.engine.interface import Chunk, Completion, EngineStatus, FinishReason, GenerationRequest, ServedCheckpoint, TokenLogprob

CHARACTERS = "\n !#$%&'()*+,-.:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyzé\r\u0085\u2028😀"


def fake_checkpoint(name: str = "a", characters: str = CHARACTERS) -> ServedCheckpoint:
    return ServedCheckpoint(
        id="sha256:" + hashlib.sha256(name.encode()).hexdigest(),
        fingerprint=hashlib.sha256(b"fingerprint" + name.encode()).hexdigest()[:32],
        block_size=64,
        vocab_size=len(characters),
        num_parameters=1000,
        tokenizer=CharTokenizer(sorted(characters)),
        manifest={"seed": 1337, "val_loss": 1.5, "files": {"model.safetensors": "00"}},
        config={"block_size": 64},
        default_stride=32,
        device="cpu",
        kernels="fake",
        max_batch=8,
    )


def oracle(checkpoint: ServedCheckpoint, request: GenerationRequest) -> str:
    """The text of a request, stop strings not looked at: a hash of all that may change a token picks each one."""
    p = request.params
    neutral = replace(p, max_new_tokens=1, num_logprobs=None)
    key = repr((checkpoint.id, neutral)).encode() + array("i", request.prompt).tobytes()
    key = hashlib.sha256(key).digest()  # prompts may be long, and the loop of a test's server must not wait
    digests = [hashlib.sha256(key + bytes([i & 255, i >> 8 & 255, i >> 16])).digest() for i in range(p.max_new_tokens)]
    return "".join(checkpoint.tokenizer.texts[d[0] % checkpoint.vocab_size] for d in digests)


@dataclass
class FakeStream:
    """One running text."""

    engine: FakeEngine
    request: GenerationRequest
    checkpoint: ServedCheckpoint
    cancelled: bool = False
    completion: Completion = field(init=False)
    generated: int = 0

    def cancel(self) -> None:
        self.cancelled = True
        self.engine.streams.discard(self)

    async def __aenter__(self) -> FakeStream:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.cancel()

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        engine, params = self.engine, self.request.params
        text = oracle(self.checkpoint, self.request)
        if self.request.scored:
            text = self.checkpoint.tokenizer.decode(self.request.scored)
        ends = [at + len(stop) for stop in self.request.stop if (at := text.find(stop)) >= 0]
        count = min(ends, default=len(text))
        kept = next((text[: count - len(stop)] for stop in self.request.stop if text[:count].endswith(stop)), text[:count])
        ids, given = tuple(self.checkpoint.tokenizer.encode(text[:count])), len(self.request.generated)
        has_logprobs = params.num_logprobs is not None
        logprobs = tuple(self.logprob(id, params, i - given) for i, id in enumerate(ids)) if has_logprobs else ()
        if engine.hold is not None:
            await engine.hold.wait()
        for first in range(max(self.request.skip_tokens, given), count, engine.burst):
            last = min(first + engine.burst, count)
            if engine.fail_at is not None and first >= engine.fail_at:
                raise engine.failure
            await asyncio.sleep(engine.delay)
            self.generated = engine.generated = last
            yield Chunk(last, kept[first:last], logprobs[first:last], ids[first:last])
        reason: FinishReason = "stop" if ends else "length"
        self.completion = Completion(kept[given:], reason, count, logprobs[given:], 0.001, 0.002, 0.003, ids[given:])
        self.engine.streams.discard(self)

    @staticmethod
    def logprob(id: int, params: SamplingParams, offset: int) -> TokenLogprob:
        return TokenLogprob(id, -0.5, tuple((i, -0.5 - i) for i in range(params.num_logprobs or 0)), offset)

    __hash__ = object.__hash__


@dataclass
class FakeEngine:
    """`service.engine.interface.Engine`, with knobs."""

    delay: float = 0.0
    burst: int = 7
    capacity: int = 1000
    hold: asyncio.Event | None = None
    fail_at: int | None = None
    failure: Exception = field(default_factory=lambda: EngineError("broken on purpose"))
    state: str = "running"
    message: str = ""
    heartbeat_age_s: float = 0.1
    step_age_s: float = 0.0
    loaded: tuple[ServedCheckpoint, ...] = field(default_factory=lambda: (fake_checkpoint(),))
    catalogue: dict[str, ServedCheckpoint] = field(default_factory=dict)
    streams: set[FakeStream] = field(default_factory=set)
    submitted: list[FakeStream] = field(default_factory=list)
    generated: int = 0
    closed: bool = False

    @property
    def current(self) -> ServedCheckpoint | None:
        return self.loaded[0] if self.loaded else None

    @property
    def status(self) -> EngineStatus:
        ages = (self.heartbeat_age_s, self.step_age_s)
        return EngineStatus(self.state, *ages, len(self.streams), 0, 8, self.generated, 0, self.message)  # type: ignore[arg-type]

    def find(self, checkpoint_id: str | None = None) -> ServedCheckpoint:
        if self.state == "failed":
            raise EngineFailed("the engine has failed")
        if not self.loaded and self.state == "stopping":
            raise EngineStopping("the server is shutting down")
        if not self.loaded:
            raise EngineLoading("the model is being loaded")
        for checkpoint in self.loaded:
            if checkpoint_id in (None, checkpoint.id):
                return checkpoint
        raise CheckpointGone("the checkpoint that the request names is not loaded")

    def submit(self, request: GenerationRequest) -> FakeStream:
        if self.state == "stopping":
            raise EngineStopping("the server is shutting down")
        if len(self.streams) >= self.capacity:
            raise QueueFull("the queue is full", retry_after_s=2.5)
        checkpoint = next(c for c in self.loaded if c.id == request.checkpoint_id)
        stream = FakeStream(self, request, checkpoint)
        self.streams.add(stream)
        self.submitted.append(stream)
        return stream

    async def start(self) -> None:
        self.closed = False

    async def promote(self, checkpoint_id: str) -> ServedCheckpoint:
        if checkpoint_id not in self.catalogue:
            raise CheckpointNotFound("no such checkpoint")
        self.loaded = (self.catalogue[checkpoint_id], *self.loaded[:1])
        return self.loaded[0]

    def cancel_promotion(self) -> None:
        raise CheckpointNotFound("no checkpoint is being promoted")

    async def rollback(self) -> ServedCheckpoint:
        if len(self.loaded) < 2:
            raise CheckpointNotFound("there is no checkpoint to roll back to")
        self.loaded = self.loaded[::-1]
        return self.loaded[0]

    async def drain(self, grace_s: float) -> None:
        self.state = "stopping"
        deadline = asyncio.get_running_loop().time() + grace_s
        while self.streams and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        self.fail_at, self.failure = 0, EngineStopping("the server is shutting down")

    async def close(self) -> None:
        self.closed = True
