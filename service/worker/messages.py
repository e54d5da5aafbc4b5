"""What crosses the socket between API and worker: msgpack arrays, each behind its length in four bytes. No torch.

    API → worker    Start, then Submit and Cancel
    worker → API    Loading…, Ready or Broken, then Step (one for each engine step) and Heartbeat (while idle)

Every type is an array with its name in front. `VERSION` is checked in Start: both ends come from one installation, but an upgrade
under a running server would mix them.
"""

from __future__ import annotations

from typing import Any

import msgspec

from model.params import SamplingParams
from service.worker.runners.interface import Speculation, TokenLogprobs

VERSION = 1
MAX_MESSAGE_BYTES = 1 << 28


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, gc=False):
    """Base of all messages."""


class Start(Message, frozen=True):
    """The first message: what to load and how."""

    version: int
    checkpoint: str
    device: str
    """auto, cpu or cuda."""
    kernels: str
    """auto, cuda, native or torch."""
    cpu: str
    """auto, or an instruction set of the native kernels."""
    max_batch: int
    """0: by device."""
    threads: int
    """0: by machine."""
    stride: int
    """0: the measured default."""
    speculation: bool
    """Whether passes of the model check guesses of the tokens to come."""
    trusted_keys: list[str] | None = None
    """Public keys, one of which must have signed the checkpoint; None asks for no signature."""
    without: tuple[str, ...] = ()
    """Kernels that failed a worker before this one: not to be tried again, all others give the same bytes."""

    def but_without(self, kernels: str) -> Start:
        """The same for a successor, which leaves these kernels alone too."""
        return msgspec.structs.replace(self, without=tuple(dict.fromkeys(filter(None, (*self.without, kernels)))))


class Submit(Message, frozen=True):
    """Generate; with ``generated`` tokens, go on after them as if they had been sampled here."""

    sequence: int
    order: int
    prompt: list[int]
    generated: list[int]
    params: SamplingParams
    key: str = ""
    """Whose it is, by name: keys take turns in the queue."""
    guesses: list[int] = []
    """What all of its tokens may turn out to be; right ones make it faster, and none changes them."""
    num_given: int = 0
    """How many of ``generated`` came with the request, and were never sampled here."""
    scored: list[int] = []
    """The tokens that are to come out, whatever is likely: what is wanted are their log-probabilities."""


class Cancel(Message, frozen=True):
    """Drop these sequences. Outputs of theirs that are already under way are to be ignored."""

    sequences: list[int]


class Loading(Message, frozen=True):
    """The worker is alive and busy with ``phase``."""

    phase: str


class Ready(Message, frozen=True):
    """A checkpoint is loaded and its self-test has passed."""

    id: str
    fingerprint: str
    config: dict[str, Any]
    tokenizer: dict[str, Any]
    manifest: dict[str, Any]
    created: int
    """When its manifest was written, in seconds since 1970."""
    num_parameters: int
    stride: int
    device: str
    kernels: str
    max_batch: int
    memory_bytes: int
    note: str
    """Why it is slower than it could be, and what would help; empty if it is not."""


class Broken(Message, frozen=True):
    """The worker cannot serve and leaves; trying again would not help, or not with these kernels."""

    reason: str
    kernels: str = ""
    """Those that failed while they served, as ``--kernels`` calls them."""


class Output(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What one sequence sampled in a step."""

    sequence: int
    tokens: list[int]
    finished: bool
    logprobs: list[TokenLogprobs] | None = None
    """One for each token, if the request asked for them."""
    num_passes: int = 0
    """Passes of the model that the tokens took."""


class Step(Message, frozen=True):
    """One step of the engine."""

    admitted: list[tuple[int, float]]
    """(sequence, seconds it waited for a row)."""
    outputs: list[Output]
    steps: int
    running: int
    waiting: int
    speculation: Speculation = Speculation()


class Heartbeat(Message, frozen=True):
    """Alive and idle."""

    steps: int


ToWorker = Start | Submit | Cancel
FromWorker = Loading | Ready | Broken | Step | Heartbeat

encoder = msgspec.msgpack.Encoder()
to_worker = msgspec.msgpack.Decoder(ToWorker)
from_worker = msgspec.msgpack.Decoder(FromWorker)


def frame(message: Message) -> bytearray:
    """A message behind its length."""
    buffer = bytearray(4)
    encoder.encode_into(message, buffer, 4)
    buffer[:4] = (len(buffer) - 4).to_bytes(4, "little")
    return buffer


class Unframer:
    """Bytes in, whole messages out."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The messages that ``data`` completes."""
        self.buffer += data
        messages, at = [], 0
        while len(self.buffer) - at >= 4:
            end = at + 4 + int.from_bytes(self.buffer[at : at + 4], "little")
            assert end - at <= MAX_MESSAGE_BYTES, "a message that no end of this socket would write"
            if len(self.buffer) < end:
                break
            messages.append(bytes(self.buffer[at + 4 : end]))
            at = end
        del self.buffer[:at]
        return messages
