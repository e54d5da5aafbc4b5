"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Self

import httpx
from httpx_sse import EventSource

from service.client.stream_state import DEFAULT_URL, RETRIED, CutError, Stream, client_options, error_of


class Folio:
    """Streams, and goes on by itself where a cut stream ended.

    Every parameter of POST /generate is a keyword; none is set unless given.

    >>> with Folio("http://127.0.0.1:8000") as folio:
    ...     for text in folio.stream("ROMEO:", max_new_tokens=500, seed=7):
    ...         print(text, end="", flush=True)
    ...     reply = folio.generate("ROMEO:", max_new_tokens=500, seed=7)

    The pieces, joined, are ``reply["text"]``, however often the connection broke between them.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        self._http = httpx.Client(**client_options(url, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def generate(self, prompt: str, **params: Any) -> dict[str, Any]:
        """The whole reply (``["text"]`` and the rest of the route's JSON). Raises FolioError."""
        stream = Stream({**params, "prompt": prompt})
        for _ in self._texts(stream):
            pass
        assert stream.reply is not None
        return stream.reply

    def stream(self, prompt: str, **params: Any) -> Iterator[str]:
        """The text, piece by piece as it is generated. Raises FolioError."""
        return self._texts(Stream({**params, "prompt": prompt}))

    def _texts(self, stream: Stream) -> Iterator[str]:
        while stream.reply is None:
            try:
                yield from self._attempt(stream)
            except RETRIED as error:
                time.sleep(stream.retry(error))

    def _attempt(self, stream: Stream) -> Iterator[str]:
        with self._http.stream(**stream.request) as response:
            if response.status_code != 200:
                response.read()
                raise error_of(response)
            for event in EventSource(response).iter_sse():
                if text := stream.receive(event):
                    yield text
        if stream.reply is None:
            raise CutError
