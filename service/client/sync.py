"""The client for ordinary code."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from queue import SimpleQueue
from threading import Event, Thread
from typing import Any, Self

import httpx
from httpx_sse import EventSource

from service.client.race import Race
from service.client.stream_state import DEFAULT_URL, RETRIED, CutError, FolioError, Stream, client_options, error_of


class Folio:
    """Streams, and goes on by itself where a cut stream ended.

    Every parameter of POST /generate is a keyword; none is set unless given.

    >>> with Folio("http://127.0.0.1:8000") as folio:
    ...     for text in folio.stream("ROMEO:", max_new_tokens=500, seed=7):
    ...         print(text, end="", flush=True)
    ...     reply = folio.generate("ROMEO:", max_new_tokens=500, seed=7)

    The pieces, joined, are ``reply["text"]``, however often the connection broke between them. With ``urls`` all of these replicas are
    asked, and whichever comes first is taken, event by event.
    """

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None, *, urls: Sequence[str] = ()) -> None:
        self._replicas = [httpx.Client(**client_options(each, api_key)) for each in urls or [url]]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        for http in self._replicas:
            http.close()

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
        return self._raced(stream) if len(self._replicas) > 1 else self._read(self._replicas[0], stream)

    def _raced(self, stream: Stream) -> Iterator[str]:
        """From all replicas, each in a thread, until the first of them is through; ``stream`` gets its reply."""
        race, queue, over = Race(len(self._replicas)), SimpleQueue[tuple[int, str | Exception | None]](), Event()
        streams = [Stream(dict(stream.body)) for _ in self._replicas]

        def read(replica: int) -> None:
            try:
                for text in self._read(self._replicas[replica], streams[replica]):
                    if over.is_set():
                        return
                    queue.put((replica, text))
                queue.put((replica, None))
            except (FolioError, RuntimeError) as error:  # httpx's RuntimeError: the client was closed meanwhile
                queue.put((replica, error))

        for replica in range(len(streams)):
            Thread(target=read, args=(replica,), daemon=True).start()
        left = len(streams)
        try:
            while True:
                replica, item = queue.get()
                if item is None:
                    stream.reply = streams[replica].reply
                    return
                if isinstance(item, Exception):
                    left -= 1
                    if left == 0:
                        raise item
                elif new := race.add(replica, item):
                    yield new
        finally:
            over.set()  # the others end with the next event that they read

    def _read(self, http: httpx.Client, stream: Stream) -> Iterator[str]:
        while stream.reply is None:
            try:
                yield from self._attempt(http, stream)
            except RETRIED as error:
                time.sleep(stream.retry(error))

    def _attempt(self, http: httpx.Client, stream: Stream) -> Iterator[str]:
        with http.stream(**stream.request) as response:
            if response.status_code != 200:
                response.read()
                raise error_of(response)
            for event in EventSource(response).iter_sse():
                if text := stream.receive(event):
                    yield text
        if stream.reply is None:
            raise CutError
