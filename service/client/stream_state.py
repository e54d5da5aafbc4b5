"""One text while it is received, without input or output: both clients feed it and ask it what to do next."""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass
from typing import Any

import httpx
from httpx_sse import ServerSentEvent

DEFAULT_URL = "http://127.0.0.1:8000"
SILENCE_S = 30.0
"""The server sends at least a comment every 10 s; after three missed ones the connection is dead."""
MAX_ATTEMPTS = 8
"""Tries in a row without a new event before a cut stream is given up."""
FIRST_WAIT_S, LONGEST_WAIT_S = 0.1, 2.0
FOREIGN = "http"
"""The code of an answer that is not the service's."""
RETRIED_STATUSES = frozenset({429, 503, 504})


class FolioError(Exception):
    """What the server refused, or why a text could not be finished. ``code`` is the server's, or ``connection``."""

    def __init__(self, code: str, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message, self.status, self.retry_after_s = code, message, status, retry_after_s


class CutError(Exception):
    """The connection ended before the text did."""

    def __init__(self) -> None:
        super().__init__("the connection ended before the text did")


RETRIED = (httpx.TransportError, CutError, FolioError)


@dataclass
class Stream:
    """What to send, what has come, and whether the text has ended.

    ``stamina`` would count every try of a text; here only those count that brought nothing new, so that a text of an hour outlives
    any number of cuts.
    """

    body: dict[str, Any]
    last_event_id: str | None = None
    reply: dict[str, Any] | None = None
    """The whole reply, once the text has ended."""
    failures: int = 0

    def __post_init__(self) -> None:
        self.body["stream"] = True
        if self.body.get("seed") is None:  # a stream can be resumed only with its seed
            self.body["seed"] = secrets.randbits(53)

    @property
    def request(self) -> dict[str, Any]:
        """The request as httpx takes it; it resumes the text where it was cut."""
        headers = {"Last-Event-ID": self.last_event_id} if self.last_event_id else {}
        return {"method": "POST", "url": "/generate", "json": self.body, "headers": headers}

    def receive(self, event: ServerSentEvent) -> str:
        """A piece of text, empty if the event has none. Raises FolioError for an error event."""
        if not event.data:  # a comment of a server that ends them with an empty line
            return ""
        data = json.loads(event.data)
        if event.event == "end":
            self.reply = data
            return ""
        if event.event == "error":
            if not data["retryable"]:
                self.failures = MAX_ATTEMPTS
            raise FolioError(data["error"]["code"], data["error"]["message"])
        self.last_event_id, self.failures = event.id, 0
        text: str = data["text"]
        return text

    def retry(self, error: Exception) -> float:
        """Seconds to wait before the next try. Raises FolioError when there should be none."""
        self.failures += 1
        if is_final(error) or self.failures >= MAX_ATTEMPTS:
            if isinstance(error, FolioError):
                raise error
            raise FolioError("connection", str(error) or type(error).__name__) from error
        if isinstance(error, FolioError) and error.retry_after_s is not None:
            return error.retry_after_s
        return min(FIRST_WAIT_S * 2.0 ** (self.failures - 1), LONGEST_WAIT_S)


def is_final(error: Exception) -> bool:
    """Whether the server would say the same again. A proxy's own 5xx only says that the server behind it has gone."""
    if not isinstance(error, FolioError) or error.status is None:
        return False
    return not (error.status in RETRIED_STATUSES or (error.code == FOREIGN and error.status >= 500))


def error_of(response: httpx.Response) -> FolioError:
    """What a response that is not 200 says; its body has been read."""
    retry_after = response.headers.get("retry-after", "")
    details: dict[str, Any] = {
        "status": response.status_code,
        "retry_after_s": float(retry_after) if retry_after.isdigit() else None,
    }
    try:
        error = response.json()["error"]
        return FolioError(error["code"], error["message"], **details)
    except (ValueError, KeyError, TypeError):
        return FolioError(FOREIGN, f"status {response.status_code}", **details)


def client_options(url: str, api_key: str | None) -> dict[str, Any]:
    """What both clients tell httpx."""
    headers = {"Accept": "text/event-stream"}
    if api_key:
        headers["Authorization"] = f"Bearer {api_key}"
    return {"base_url": url, "headers": headers, "timeout": httpx.Timeout(SILENCE_S, pool=None)}
