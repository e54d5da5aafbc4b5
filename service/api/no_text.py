"""The text of a request for no tokens, which the engine need not hear of."""

from __future__ import annotations

from collections.abc import AsyncIterator

from service.engine.interface import Chunk, Completion, ServedCheckpoint


class NoText:
    """The stream of a text of no tokens: `interface.TextStream`."""

    completion = Completion("", "length", 0, (), 0.0, 0.0, 0.0)

    def __init__(self, checkpoint: ServedCheckpoint) -> None:
        self.checkpoint = checkpoint

    def cancel(self) -> None:
        """There is nothing to cancel."""

    async def __aiter__(self) -> AsyncIterator[Chunk]:
        nothing: tuple[Chunk, ...] = ()
        for chunk in nothing:
            yield chunk

    async def __aenter__(self) -> NoText:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass
