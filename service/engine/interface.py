"""The engine as the routes see it: submit a request, read its text, know how the engine fares. No torch."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from model.params import SamplingParams
from model.tokenizer.base import Tokenizer

DEFAULT_TIMEOUT_S = 600.0
"""For a whole request that does not say."""

FinishReason = Literal["length", "stop", "timeout"]
State = Literal["loading", "running", "restarting", "failed", "stopping"]


@dataclass(frozen=True, slots=True)
class ServedCheckpoint:
    """A checkpoint that a worker has loaded and whose self-test has passed."""

    id: str
    """``sha256:`` and 64 hex digits."""
    fingerprint: str
    """Hash of everything that can change a byte: checkpoint, version of the arithmetic, window rule. Nothing of the machine."""
    block_size: int
    vocab_size: int
    num_parameters: int
    tokenizer: Tokenizer
    manifest: Mapping[str, Any]
    config: Mapping[str, Any]
    default_stride: int
    device: str
    kernels: str
    """What computes: native-avx2, torch, … All give the same bytes."""
    max_batch: int
    created: int = 0
    """When its manifest was written, in seconds since 1970."""
    memory_bytes: int = 0
    """Cache memory, all of it taken when the worker loaded."""
    path: Path | None = None
    """Its directory, while it is there."""
    note: str = ""
    """Why it is slower than it could be, and what would help; empty if it is not."""


@dataclass(frozen=True, slots=True)
class EngineStatus:
    """How the engine fares, read without a lock and without asking the worker."""

    state: State
    heartbeat_age_s: float
    """Seconds since the worker was last heard from; infinite before that."""
    step_age_s: float
    """Seconds since the last step if work waits, else 0."""
    running: int
    waiting: int
    max_batch: int
    steps: int
    restarts: int
    message: str
    """What a person should know: the phase of loading, or why the engine failed."""
    batch_size: int = 0
    """Rows that the last step computed."""
    decode_passes: int = 0
    """Passes of the model in decoding, since the worker's start; and guesses of tokens that these have judged, and found right."""
    guesses: int = 0
    right_guesses: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One text to generate, parsed and checked: nothing in here needs a second look."""

    prompt: tuple[int, ...]
    params: SamplingParams
    """``params.stride`` is a number here, never None."""
    generated: tuple[int, ...] = ()
    """Tokens that count as generated already, at most ``params.max_new_tokens``: the text begins after them, token number i is still
    drawn with random number i, and penalties and stops see them."""
    guesses: tuple[int, ...] = ()
    """What the generated tokens may turn out to be, from the first on: right ones save passes of the model, and none changes a byte."""
    scored: tuple[int, ...] = ()
    """The text itself, ``params.max_new_tokens`` tokens, if it is there already and its log-probabilities are all that is wanted."""
    stop: tuple[str, ...] = ()
    timeout_s: float = DEFAULT_TIMEOUT_S
    skip_tokens: int = 0
    """Withhold the text of the first tokens (a resumed stream has sent it already)."""
    checkpoint_id: str | None = None
    """None: the current one."""
    key: str = ""
    """Whose it is, by name: keys take turns in the queue."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The model's own log-probability of a token, and those of the most probable ones."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    offset: int
    """How many characters of the text were begun before it."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Text that is ready to be sent, and the tokens that it is of.

    ``index`` counts generated tokens from 1, those that a request gave included, and names the last one whose text is out whole.
    """

    index: int
    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """How a generation ended.

    ``text`` is all of it, withheld parts included; the stop string and the text of the tokens that the request gave are not part of it.
    """

    text: str
    finish_reason: FinishReason
    completion_tokens: int
    """Tokens generated, those that the request gave included."""
    logprobs: tuple[TokenLogprob, ...]
    queue_s: float
    ttft_s: float
    total_s: float
    tokens: tuple[int, ...] = ()
    """Those generated here."""
    num_passes: int = 0
    """Passes of the model that drew them: fewer than tokens where guesses were right."""


class TextStream(Protocol):
    """One running generation. Iterate to its end or leave the context: leaving early cancels it and frees its row.

    >>> async with engine.submit(request) as stream:
    ...     async for chunk in stream:
    ...         send(chunk.text)
    ...     completion = stream.completion

    The chunks' texts, joined, are ``completion.text`` less what was withheld. Iteration raises EngineError for what goes wrong
    after admission. Ready tokens are merged: a slow reader gets fewer, larger chunks, and while it does not read at all its
    generation is suspended.
    """

    checkpoint: ServedCheckpoint

    @property
    def completion(self) -> Completion:
        """The result, once iteration has ended."""
        ...

    def cancel(self) -> None:
        """End the generation and free its row. Idempotent."""
        ...

    def __aiter__(self) -> AsyncIterator[Chunk]: ...

    async def __aenter__(self) -> TextStream: ...

    async def __aexit__(self, *exc: object) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """What the service's settings say about the engine; `service.settings` documents each and holds the defaults."""

    checkpoint: Path
    checkpoints: Path | None
    watch: Path | None
    trusted_keys: tuple[str, ...] | None
    """Public keys, one of which must have signed a checkpoint; None asks for no signature."""
    device: str
    kernels: str
    cpu: str
    threads: int | None
    stride: int | None
    speculation: bool
    cache: Path
    max_batch: int | None
    max_queue: int | None
    queue_timeout_s: float
    stream_buffer_tokens: int
    environment: Mapping[str, str]
    """This process's variables; a worker gets those of them that it needs, and no key."""


class Engine(Protocol):
    """What ``create_app`` is given."""

    @property
    def status(self) -> EngineStatus: ...

    @property
    def current(self) -> ServedCheckpoint | None:
        """The checkpoint that new requests get; None until one is loaded."""
        ...

    @property
    def loaded(self) -> tuple[ServedCheckpoint, ...]:
        """The current checkpoint, and the one before it while streams use it."""
        ...

    def find(self, checkpoint_id: str | None = None) -> ServedCheckpoint:
        """The loaded checkpoint of this id, the current one if none is named. Raises EngineError."""
        ...

    def submit(self, request: GenerationRequest) -> TextStream:
        """Admit a request or raise EngineError, at once: nothing is awaited, so an error can still choose a status line."""
        ...

    async def start(self) -> None:
        """Start loading; returns at once."""
        ...

    async def promote(self, checkpoint_id: str) -> ServedCheckpoint:
        """Load and self-test a checkpoint of the catalogue beside the current one, then give it all new requests.

        Returns when it serves; running streams end on theirs. Raises PromotionError, and then nothing has changed.
        """
        ...

    def cancel_promotion(self) -> None:
        """End the promotion that is loading a checkpoint, which then raises CheckpointRefused. Raises CheckpointNotFound if none is."""
        ...

    async def rollback(self) -> ServedCheckpoint:
        """Promote the checkpoint that was current before the last promotion. Raises PromotionError."""
        ...

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, let running ones finish for ``grace_s`` seconds, then end them with EngineStopping."""
        ...

    async def close(self) -> None:
        """End the worker. No process, file or socket stays behind."""
        ...
