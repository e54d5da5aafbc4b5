"""The lines of a batch: what each asks for, and what its answer looks like.

Two kinds of lines, also mixed:

- a body of POST /generate, with an ``id`` if you like (or a string, which is only a prompt);
- OpenAI's batch format: ``{"custom_id", "method": "POST", "url": "/v1/completions", "body"}``, or ``/v1/chat/completions``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

ID_PREFIXES = {"/v1/completions": "cmpl", "/v1/chat/completions": "chatcmpl"}
"""OpenAI's routes that a line may ask, and what the ids of their replies begin with."""
NO_TIMEOUT_S = 86_400.0
"""The longest that a request may take: a text that ran out of time would not be a function of its request."""
VOLATILE = ("id", "timings", "created")
"""What a reply says about this time of asking."""
SHOWN = 60
"""Characters of what a line says that an error repeats."""


@dataclass(frozen=True, slots=True)
class Job:
    """One line of the input."""

    number: int
    """From 1, blank lines not counted."""
    url: str
    body: dict[str, Any]
    custom_id: str | None = None
    """OpenAI's format, if it is not None."""
    id: str | int | None = None
    error: str = ""
    """What is wrong with the line, if it cannot be sent."""

    def line(self, status: int, reply: dict[str, Any]) -> bytes:
        """The output's line for a reply, or for the error in it."""
        for name in VOLATILE:
            reply.pop(name, None)
        if status != 200 and isinstance(reply.get("error"), dict):
            reply["error"].pop("request_id", None)
        if self.custom_id is None:
            document = {"line": self.number, **({} if self.id is None else {"id": self.id}), **reply}
        else:
            if status == 200:
                digest = sha256(f"{self.number}:{self.custom_id}".encode()).hexdigest()[:24]
                reply = {"id": f"{ID_PREFIXES[self.url]}-{digest}", "created": 0, **reply}
            response = {"status_code": status, "request_id": f"line-{self.number}", "body": reply}
            document = {"id": f"batch_req_{self.number}", "custom_id": self.custom_id, "response": response, "error": None}
        return json.dumps(document).encode("ascii") + b"\n"


def read_jobs(path: Path, defaults: dict[str, Any]) -> Iterator[Job]:
    """The lines of an input, one at a time; ``defaults`` are parameters of POST /generate for lines that do not give them."""
    number = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                number += 1
                yield parse_job(number, line, defaults)


def parse_job(number: int, line: bytes, defaults: dict[str, Any]) -> Job:
    """One line; what is wrong with it is the job's ``error``, so that the lines after it still run."""
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Job(number, "/generate", {}, error=f"the line is no JSON: {error}")
    if isinstance(data, str):
        data = {"prompt": data}
    if not isinstance(data, dict):
        return Job(number, "/generate", {}, error="a line holds a JSON object, or a prompt as a string")
    if "custom_id" in data:
        return parse_openai(number, data)
    name = data.pop("id", None)
    body = {**defaults, **data, "stream": False, "timeout_s": NO_TIMEOUT_S}
    if body.get("seed") is None:
        body["seed"] = number
    return Job(number, "/generate", body, id=name if isinstance(name, str | int) else None)


def parse_openai(number: int, data: dict[str, Any]) -> Job:
    """A line of OpenAI's batch format."""
    custom_id, url, body = str(data["custom_id"]), data.get("url"), data.get("body")

    def refused(why: str) -> Job:
        return Job(number, "", {}, custom_id, error=why)

    if not isinstance(url, str) or url not in ID_PREFIXES:
        return refused(f"url: {json.dumps(url)[:SHOWN]} is not answered in a batch, only {' and '.join(ID_PREFIXES)}")
    if (method := data.get("method", "POST")) != "POST":
        return refused(f"method: {json.dumps(method)[:SHOWN]} is not what {url} takes, only POST")
    if not isinstance(body, dict):
        return refused(f"body: a JSON object is missing, as POST {url} takes it")
    body = {**body, "stream": False, "timeout_s": NO_TIMEOUT_S}
    if body.get("seed") is None:
        body["seed"] = number
    return Job(number, url, body, custom_id)
