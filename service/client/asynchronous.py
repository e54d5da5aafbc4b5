"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any, Self

import httpx
from httpx_sse import EventSource

from service.client.stream_state import DEFAULT_URL, RETRIED, CutError, Stream, client_options, error_of


class AsyncFolio:
    """`Folio` for asyncio."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        self._http = httpx.AsyncClient(**client_options(url, api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def generate(self, prompt: str, **params: Any) -> dict[str, Any]:
        """The whole reply. Raises FolioError."""
        stream = Stream({**params, "prompt": prompt})
        async for _ in self._texts(stream):
            pass
        assert stream.reply is not None
        return stream.reply

    def stream(self, prompt: str, **params: Any) -> AsyncIterator[str]:
        """The text, piece by piece as it is generated. Raises FolioError."""
        return self._texts(Stream({**params, "prompt": prompt}))

    async def _texts(self, stream: Stream) -> AsyncIterator[str]:
        while stream.reply is None:
            try:
                async with aclosing(self._attempt(stream)) as texts:
                    async for text in texts:
                        yield text
            except RETRIED as error:
                await asyncio.sleep(stream.retry(error))

    async def _attempt(self, stream: Stream) -> AsyncGenerator[str, None]:
        async with self._http.stream(**stream.request) as response:
            if response.status_code != 200:
                await response.aread()
                raise error_of(response)
            async with aclosing(EventSource(response).aiter_sse()) as events:
                async for event in events:
                    if text := stream.receive(event):
                        yield text
        if stream.reply is None:
            raise CutError
