"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, Self

import httpx
from httpx_sse import EventSource

from service.client.race import Race
from service.client.stream_state import DEFAULT_URL, RETRIED, CutError, FolioError, Stream, client_options, error_of


class AsyncFolio:
    """`Folio` for asyncio."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, *, urls: Sequence[str] = ()) -> None:
        self._replicas = [httpx.AsyncClient(**client_options(each, api_key)) for each in urls or [url]]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        for http in self._replicas:
            await http.aclose()

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

    def _texts(self, stream: Stream) -> AsyncIterator[str]:
        return self._raced(stream) if len(self._replicas) > 1 else self._read(self._replicas[0], stream)

    async def _raced(self, stream: Stream) -> AsyncIterator[str]:
        """From all replicas, until the first of them is through; ``stream`` gets its reply."""
        race, queue = Race(len(self._replicas)), asyncio.Queue[tuple[int, str | FolioError | None]]()
        streams = [Stream(dict(stream.body)) for _ in self._replicas]

        async def read(replica: int) -> None:
            try:
                async for text in self._read(self._replicas[replica], streams[replica]):
                    queue.put_nowait((replica, text))
                queue.put_nowait((replica, None))
            except FolioError as error:
                queue.put_nowait((replica, error))

        tasks = [asyncio.create_task(read(replica)) for replica in range(len(streams))]
        try:
            left = len(tasks)
            while True:
                replica, item = await queue.get()
                if item is None:
                    stream.reply = streams[replica].reply
                    return
                if isinstance(item, FolioError):
                    left -= 1
                    if left == 0:
                        raise item
                elif new := race.add(replica, item):
                    yield new
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, http: httpx.AsyncClient, stream: Stream) -> AsyncIterator[str]:
        while stream.reply is None:
            try:
                async with aclosing(self._attempt(http, stream)) as texts:
                    async for text in texts:
                        yield text
            except RETRIED as error:
                await asyncio.sleep(stream.retry(error))

    async def _attempt(self, http: httpx.AsyncClient, stream: Stream) -> AsyncGenerator[str, None]:
        async with http.stream(**stream.request) as response:
            if response.status_code != 200:
                await response.aread()
                raise error_of(response)
            async with aclosing(EventSource(response).aiter_sse()) as events:
                async for event in events:
                    if text := stream.receive(event):
                        yield text
        if stream.reply is None:
            raise CutError
