"""The part of ``folio-generate`` that turns a file of prompts into a file of texts."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from service.client.batch import BatchError, run
from service.client.batch_lines import read_jobs
from service.client.stream_state import client_options

POLL_S = 0.02
NO_LIMIT = 2**31 - 1
BAR = 30
"""Characters."""


def generate_file(
    source: Path,
    target: Path,
    defaults: dict[str, Any],
    *,
    url: str,
    api_key: str | None,
    checkpoint: Path | None,
    concurrency: int,
) -> None:
    """Fill ``target`` with the texts that ``source`` asks for, from a server or from a checkpoint.

    Raises BatchError, FolioError, OSError.
    """
    with source.open("rb") as file:
        total = sum(1 for line in file if line.strip())

    async def generate() -> None:
        remote = httpx.AsyncClient(**{**client_options(url, api_key), "headers": authorization(api_key), "timeout": None})
        async with local_client(checkpoint) if checkpoint else remote as http:
            await run(http, read_jobs(source, defaults), target, concurrency, Progress(total))

    asyncio.run(generate())


class Progress:
    """Says on standard error how many texts of how many there are: a bar on a terminal, and nothing anywhere else."""

    def __init__(self, total: int) -> None:
        self.total, self.done = total, 0

    def __call__(self, more: int) -> None:
        self.done += more
        if sys.stderr.isatty():
            bar = "#" * (BAR * self.done // max(1, self.total))
            end = "\n" if self.done == self.total else ""
            print(f"\r[{bar:{BAR}}] {self.done} of {self.total} texts", end=end, file=sys.stderr, flush=True)


def authorization(api_key: str | None) -> dict[str, str]:
    """The headers of every request."""
    return {"Authorization": f"Bearer {api_key}"} if api_key else {}


@asynccontextmanager
async def local_client(checkpoint: Path, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service's application within this process: no server and no port. Raises BatchError."""
    from service.app import create_app
    from service.settings import Settings
    from service.state import Service

    unlimited: dict[str, Any] = dict.fromkeys(("api_keys", "api_keys_file", "rate_limit", "max_concurrent", "tokens_per_minute", "watch"))
    app = create_app(Settings(**unlimited, checkpoint=checkpoint, max_new_tokens=NO_LIMIT, **settings))
    service: Service = app.state.service
    async with app.router.lifespan_context(app):
        while service.engine.current is None:
            if service.engine.status.state == "failed":
                raise BatchError(service.engine.status.message)
            await asyncio.sleep(POLL_S)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=None) as http:
            yield http
