"""What users call: a client that streams, and goes on by itself where a cut stream ended; and ``folio-generate``.

>>> with Folio("http://127.0.0.1:8000") as folio:
...     for piece in folio.stream("ROMEO:", max_new_tokens=500, seed=7):
...         print(piece, end="", flush=True)
...     reply = folio.generate("ROMEO:", max_new_tokens=500, seed=7)

The pieces, joined, are ``reply["text"]``, however often the connection broke between them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import httpx

DEFAULT_URL = "http://127.0.0.1:8000"
SILENCE_S = 30.0
"""The server sends at least a comment every 10 s; after three missed ones the connection is dead."""
ATTEMPTS = 8
"""Tries in a row without a new event before a cut stream is given up."""


class FolioError(Exception):
    """What the server refused, or why a text could not be finished. ``code`` is the server's, or ``connection``."""

    def __init__(self, code: str, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.retry_after_s = code, message, status, retry_after_s


@dataclass
class Stream:
    """One text while it is received: what to send, what has come, and whether it has ended. Does no input or output."""

    body: dict[str, Any]
    last_event_id: str | None = None
    reply: dict[str, Any] | None = None
    """The whole reply, once it has ended."""
    failures: int = 0
    _lines: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.body.get("seed") is None:  # a stream can be resumed only with its seed
            self.body["seed"] = secrets.randbits(53)

    @property
    def headers(self) -> dict[str, str]:
        """What resumes the stream where it was cut."""
        return {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}

    def line(self, line: str) -> str | None:
        """Take one line of the response; a piece of text if the line completes one. Raises FolioError for an error event."""
        if line:
            name, _, value = line.partition(": ")
            if name:
                self._lines[name] = value
            return None
        event, self._lines = self._lines, {}
        if "data" not in event:
            return None
        data = json.loads(event["data"])
        if event.get("event") == "end":
            self.reply = data
        elif event.get("event") == "error":
            if not data["retryable"]:
                self.failures = ATTEMPTS
            raise FolioError(data["error"]["code"], data["error"]["message"])
        else:
            self.last_event_id, self.failures = event["id"], 0
            text: str = data["text"]
            return text
        return None

    def retry(self, error: Exception) -> float:
        """Seconds to wait before the next try. Raises FolioError when there should be none."""
        self._lines = {}
        self.failures += 1
        if is_final(error) or self.failures >= ATTEMPTS:
            raise error if isinstance(error, FolioError) else FolioError("connection", str(error) or type(error).__name__) from error
        wait = error.retry_after_s if isinstance(error, FolioError) else None
        return wait if wait is not None else min(0.1 * 2 ** (self.failures - 1), 2.0)


class CutError(Exception):
    """The connection ended before the text did."""


RETRIED = (httpx.TransportError, CutError, FolioError)
FOREIGN = "http"
"""The code of an answer that is not the service's."""


def is_final(error: Exception) -> bool:
    """Whether a refusal would be repeated. A proxy's own 5xx is no refusal: it says that the server behind it has gone."""
    if not isinstance(error, FolioError) or error.status is None:
        return False
    return not (error.status in (429, 503, 504) or (error.code == FOREIGN and error.status >= 500))


def refusal(response: httpx.Response) -> FolioError:
    """What a response that is not 200 says; its body has been read."""
    retry_after = response.headers.get("retry-after")
    after = float(retry_after) if retry_after and retry_after.isdigit() else None
    try:
        error = response.json()["error"]
        return FolioError(error["code"], error["message"], status=response.status_code, retry_after_s=after)
    except (ValueError, KeyError, TypeError):
        return FolioError(FOREIGN, f"status {response.status_code}", status=response.status_code, retry_after_s=after)


def options(url: str, api_key: str | None) -> dict[str, Any]:
    """What both clients tell httpx."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(SILENCE_S, pool=None)}


class Folio:
    """The client for ordinary code. Every parameter of POST /generate is a keyword; none is set unless given."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        self._http = httpx.Client(**options(url, api_key))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._http.close()

    def generate(self, prompt: str, **params: Any) -> dict[str, Any]:
        """The whole reply (``["text"]`` and the rest of API's JSON). Raises FolioError."""
        stream = Stream({**params, "prompt": prompt, "stream": True})
        for _ in self._pieces(stream):
            pass
        assert stream.reply is not None
        return stream.reply

    def stream(self, prompt: str, **params: Any) -> Iterator[str]:
        """The text, piece by piece as it is generated. Raises FolioError."""
        return self._pieces(Stream({**params, "prompt": prompt, "stream": True}))

    def _pieces(self, stream: Stream) -> Iterator[str]:
        while stream.reply is None:
            try:
                with self._http.stream("POST", "/generate", json=stream.body, headers=stream.headers) as response:
                    if response.status_code != 200:
                        response.read()
                        raise refusal(response)
                    for line in response.iter_lines():
                        if piece := stream.line(line):
                            yield piece
                    if stream.reply is None:
                        raise CutError("the connection ended before the text did")
            except RETRIED as error:
                time.sleep(stream.retry(error))


class AsyncFolio:
    """The same for asyncio."""

    def __init__(self, url: str = DEFAULT_URL, api_key: str | None = None) -> None:
        self._http = httpx.AsyncClient(**options(url, api_key))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._http.aclose()

    async def generate(self, prompt: str, **params: Any) -> dict[str, Any]:
        """The whole reply. Raises FolioError."""
        stream = Stream({**params, "prompt": prompt, "stream": True})
        async for _ in self._pieces(stream):
            pass
        assert stream.reply is not None
        return stream.reply

    def stream(self, prompt: str, **params: Any) -> AsyncIterator[str]:
        """The text, piece by piece as it is generated. Raises FolioError."""
        return self._pieces(Stream({**params, "prompt": prompt, "stream": True}))

    async def _pieces(self, stream: Stream) -> AsyncIterator[str]:
        while stream.reply is None:
            try:
                async with self._http.stream("POST", "/generate", json=stream.body, headers=stream.headers) as response:
                    if response.status_code != 200:
                        await response.aread()
                        raise refusal(response)
                    async for line in response.aiter_lines():
                        if piece := stream.line(line):
                            yield piece
                    if stream.reply is None:
                        raise CutError("the connection ended before the text did")
            except RETRIED as error:
                await asyncio.sleep(stream.retry(error))


NUMBERS = {"max-new-tokens": int, "seed": int, "temperature": float, "top-k": int, "top-p": float, "min-p": float}


def main(argv: Sequence[str] | None = None) -> int:
    """``folio-generate "ROMEO:" --max-new-tokens 500 --seed 7``: the text, as it comes."""
    parser = argparse.ArgumentParser(prog="folio-generate", description="Generate text with a Folio server and print it as it comes.")
    parser.add_argument("prompt", nargs="?", default="", help="the text to go on from; a newline if not given")
    for name, kind in NUMBERS.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS, help="as in POST /generate")
    parser.add_argument("--stop", action="append", default=argparse.SUPPRESS, help="end the text before this string; may be repeated")
    parser.add_argument("--echo", action="store_true", default=argparse.SUPPRESS, help="print the prompt first")
    parser.add_argument("--url", default=os.environ.get("FOLIO_URL", DEFAULT_URL), help="the server [FOLIO_URL; default: %(default)s]")
    parser.add_argument("--api-key", default=os.environ.get("FOLIO_API_KEY"), help="key [FOLIO_API_KEY, which `ps` does not show]")
    params = vars(parser.parse_args(argv))
    try:
        with Folio(params.pop("url"), params.pop("api_key")) as folio:
            for piece in folio.stream(**params):
                print(piece, end="", flush=True)
        print()
    except FolioError as error:
        print(f"folio-generate: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
