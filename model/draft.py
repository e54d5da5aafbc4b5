"""What speculation guesses from: how often each token followed each context, counted in a text and kept beside a checkpoint.

A guess that is wrong costs time and nothing else, so this file is no part of a checkpoint's id, and a checkpoint without it serves
the same bytes. The engine's kernels go on counting from here (``service/worker/kernels/draft.h``, which has the same hash).

Letters: N tokens of the text, E contexts kept, F tokens that followed them, all together.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FILE = "draft.safetensors"
FORMAT = "1"
CONTEXT_LENGTHS = (1, 2, 3, 4, 5, 6, 10)
FOLLOWERS = 7
"""Most tokens that are kept for one context."""
SLOTS = 1 << 18
"""Places of the engine's table: of the contexts that fall into one, the most frequent stays."""
MIN_SEEN = 2
"""A context that was seen once says little about the next time."""
MAX_BYTES = 3_000_000
MAX_FILE_BYTES = 64 << 20
MAX_COUNT = 255
MAX_VOCAB = 1 << 16

Ints = NDArray[Any]


class DraftError(ValueError):
    """A file that is no table of contexts; the message is one line and names it."""


@dataclass(frozen=True, slots=True)
class Draft:
    """A table of contexts. The arrays of followers are one context's after another's, ``sizes`` of them, their tokens ascending."""

    slots: Ints
    """(E,) place of each context in the table."""
    tags: Ints
    """(E,) what tells contexts of one place apart; never 0."""
    sizes: Ints
    """(E,) how many tokens are known to follow: 1 to FOLLOWERS."""
    tokens: Ints
    """(F,)"""
    counts: Ints
    """(F,) 1 to MAX_COUNT."""


def hash_contexts(tokens: Ints, length: int) -> NDArray[np.uint64]:
    """(N - length,) a hash of the ``length`` tokens before each token from ``length`` on, the nearest first."""
    count = len(tokens) - length
    hashes = np.full(count, 0x9E3779B97F4A7C15, np.uint64)
    for back in range(length):
        begin = length - 1 - back
        hashes = (hashes ^ (tokens[begin : begin + count].astype(np.uint64) + np.uint64(1))) * np.uint64(0xD6E8FEB86659FD93)
        hashes ^= hashes >> np.uint64(32)
    return hashes


def count_contexts(tokens: Ints, vocab_size: int) -> Draft:
    """The table of a text, at most MAX_BYTES of it: the most frequent contexts of every length."""
    parts = [count_length(tokens, length) for length in CONTEXT_LENGTHS if len(tokens) > length]
    hashes, following, counts, totals = (np.concatenate(column) for column in zip(*parts, strict=True)) if parts else empty()
    slots = (hashes & np.uint64(SLOTS - 1)).astype(np.uint32)
    # One row a follower. Contexts stand together, the most frequent of a slot first.
    order = np.lexsort((following, hashes, -totals, slots))
    hashes, following, counts, totals, slots = (column[order] for column in (hashes, following, counts, totals, slots))
    first = np.flatnonzero(np.diff(hashes, prepend=~hashes[:1]) != 0)
    winners = first[np.diff(slots[first].astype(np.int64), prepend=-1) != 0]
    ends = np.append(first, len(hashes))[np.searchsorted(first, winners) + 1]
    small = np.uint8 if vocab_size <= MAX_COUNT + 1 else np.uint16
    kept = np.argsort(-totals[winners], kind="stable")
    size = 9 + (ends - winners)[kept] * (1 + small().itemsize)
    kept = np.sort(kept[np.cumsum(size) <= MAX_BYTES])
    winners, ends = winners[kept], ends[kept]
    rows = np.concatenate([np.arange(a, b) for a, b in zip(winners, ends, strict=True)]) if len(kept) else np.zeros(0, np.int64)
    return Draft(
        slots=slots[winners],
        tags=tags_of(hashes[winners]),
        sizes=(ends - winners).astype(np.uint8),
        tokens=following[rows].astype(small),
        counts=counts[rows].astype(np.uint8),
    )


def tags_of(hashes: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """What an entry keeps of its context."""
    return (hashes >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def empty() -> tuple[Ints, Ints, Ints, Ints]:
    """No context at all."""
    return np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)


def count_length(tokens: Ints, length: int) -> tuple[Ints, Ints, Ints, Ints]:
    """Contexts of one length that were seen MIN_SEEN times: a row for each of the tokens that followed most often.

    Returns the context's hash, the token, its count (at most MAX_COUNT, in proportion), and how often the context was seen.
    """
    hashes, following = hash_contexts(tokens, length), tokens[length:].astype(np.int64)
    order = np.lexsort((following, hashes))
    hashes, following = hashes[order], following[order]
    begins = np.flatnonzero((np.diff(hashes, prepend=~hashes[:1]) != 0) | (np.diff(following, prepend=-1) != 0))
    counts = np.diff(begins, append=len(hashes))
    hashes, following = hashes[begins], following[begins]
    context = np.cumsum(np.diff(hashes, prepend=hashes[:1]) != 0)
    totals, largest = np.bincount(context, counts)[context], np.zeros(context[-1] + 1)
    np.maximum.at(largest, context, counts)
    order = np.lexsort((-counts, context))
    rank = np.arange(len(order)) - np.searchsorted(context[order], context[order])
    kept = order[(rank < FOLLOWERS) & (totals[order] >= MIN_SEEN)]
    scaled = np.where(largest[context] > MAX_COUNT, np.maximum(1, counts * MAX_COUNT // largest[context]), counts)
    return hashes[kept], following[kept], scaled[kept].astype(np.int64), totals[kept].astype(np.int64)


def save_draft(draft: Draft) -> bytes:
    """The content of FILE."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(getattr(draft, name)) for name in Draft.__slots__}
    return save(arrays, {"format": FORMAT})


def empty_draft() -> Draft:
    """The table of no text."""
    return count_contexts(np.zeros(0, np.int32), 1)


def read_draft(path: Path, vocab_size: int) -> Draft:
    """The table of a file, an empty one if there is no file. Raises DraftError for anything that the engine could not use."""
    from safetensors import deserialize

    from model.checkpoint.manifest import CheckpointError, read_file

    if not path.exists():
        return empty_draft()
    try:
        entries = dict(deserialize(read_file(path, MAX_FILE_BYTES)))  # type: ignore[no-untyped-call]
        kinds = {"U8": np.uint8, "U16": np.uint16, "U32": np.uint32}
        arrays = {name: np.frombuffer(entries[name]["data"], kinds[entries[name]["dtype"]]) for name in Draft.__slots__}
    except CheckpointError as error:
        raise DraftError(str(error)) from None
    except Exception as error:  # the library raises its own type, which is no subclass of ValueError
        raise DraftError(f"{path} is no table of contexts: {error}") from None
    draft = Draft(**arrays)
    if not is_sound(draft, vocab_size):
        raise DraftError(f"{path} is damaged, or of another vocabulary: delete it, or make it again with `python -m training draft`")
    return draft


def is_sound(draft: Draft, vocab_size: int) -> bool:
    """Whether every place, size, token and count is one that the engine's table can hold."""
    if not len(draft.slots) == len(draft.tags) == len(draft.sizes) or not len(draft.tokens) == len(draft.counts) == int(draft.sizes.sum()):
        return False
    if len(draft.slots) == 0:
        return True
    begins = np.zeros(len(draft.tokens), bool)
    begins[np.cumsum(draft.sizes)[:-1]] = True
    ascends = (np.diff(draft.tokens.astype(np.int64), prepend=-1) > 0) | begins
    return bool(
        draft.slots.max() < SLOTS
        and draft.tags.min() > 0
        and 1 <= draft.sizes.min() <= draft.sizes.max() <= FOLLOWERS
        and draft.tokens.max() < min(vocab_size, MAX_VOCAB)
        and draft.counts.min() > 0
        and ascends.all()
    )
