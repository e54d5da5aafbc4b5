"""``folio-generate --input prompts.jsonl --output texts.jsonl``: a text for each line, in the input's order.

The output is a function of the input and the checkpoint, to the byte: it holds no times, no ids drawn by chance, and a line
without a seed takes its number for one. So a batch that was killed at any moment goes on after its last whole line, and the
file is the same as if nothing had happened. `service.client.batch_lines` has the kinds of lines.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain, repeat
from pathlib import Path
from typing import BinaryIO

import httpx

from service.client.batch_lines import Job
from service.client.stream_state import FIRST_WAIT_S, LONGEST_WAIT_S, RETRIED_STATUSES, FolioError, error_of

FATAL_STATUSES = frozenset({401, 403})
AHEAD = 4
"""Lines read ahead of the first unfinished one, for each that may run: short texts need not wait for a long one."""


class BatchError(Exception):
    """The batch cannot go on; what was written stays. The message says what to do."""


class Output:
    """The output file: whole lines only, one process at a time."""

    def __init__(self, path: Path) -> None:
        import fcntl

        self.file: BinaryIO = path.open("a+b")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BatchError(f"another process writes {path}") from None
        self.finished = 0

    def resume(self, jobs: Iterator[Job], checkpoint: str) -> None:
        """Advance ``jobs`` past the lines that are there. Raises BatchError where they are not of this input and checkpoint."""
        self.file.seek(0)
        whole = 0
        for line in self.file:
            if not line.endswith(b"\n"):
                break  # it was being written when the process was killed
            whole += len(line)
            self.finished += 1
            job = next(jobs, None)
            if job is None or not is_of(line, job):
                raise BatchError(f"line {self.finished} of the output is not of this input: give another --output, or delete the file")
            if (before := checkpoint_of(line)) not in ("", checkpoint):
                raise BatchError(
                    f"the output is of {before[:19]}…, the server has {checkpoint[:19]}… now: serve that one, or give another --output"
                )
        self.file.truncate(whole)

    def write(self, line: bytes) -> None:
        """Append one line."""
        self.file.write(line)
        self.file.flush()

    def close(self) -> None:
        """End. Whatever was written is there already."""
        self.file.close()


def is_of(line: bytes, job: Job) -> bool:
    """Whether a line of an output is that of a job."""
    try:
        document = json.loads(line)
        if job.custom_id is not None:
            return bool(document["custom_id"] == job.custom_id)
        return bool(document["line"] == job.number and document.get("id") == job.id)
    except (ValueError, KeyError, TypeError):
        return False


def checkpoint_of(line: bytes) -> str:
    """The checkpoint of a line's text, empty for a line without one."""
    document = json.loads(line)
    if "response" in document:
        return str(document["response"]["body"].get("model", ""))
    return str(document.get("checkpoint", ""))


async def post(http: httpx.AsyncClient, job: Job, checkpoint: str) -> bytes:
    """The output's line for a job; tries again for as long as the server is away, busy or starting. Raises BatchError, FolioError."""
    if job.error:
        return job.line(400, {"error": {"code": "invalid_line", "message": job.error}})
    wait_s = FIRST_WAIT_S
    while True:
        retry_after = ""
        try:
            response = await http.post(job.url, json=job.body)
            if response.status_code == 200 and response.headers.get("x-checkpoint", checkpoint) != checkpoint:
                raise BatchError("the server serves another checkpoint than when this batch began: promote that one again, then go on")
            if response.status_code in FATAL_STATUSES:
                raise error_of(response)
            if response.status_code not in RETRIED_STATUSES and response.status_code < 500:
                return job.line(response.status_code, response.json())
            retry_after = response.headers.get("retry-after", "")
        except httpx.TransportError:
            pass
        except ValueError:
            raise BatchError(f"the answer to line {job.number} is no JSON: is this a Folio server?") from None
        await asyncio.sleep(float(retry_after) if retry_after.isdigit() else wait_s)
        wait_s = min(2 * wait_s, LONGEST_WAIT_S)


async def run(
    http: httpx.AsyncClient,
    jobs: Iterator[Job],
    target: Path,
    concurrency: int,
    progress: Callable[[int], object],
) -> None:
    """Generate what is missing in ``target``; tells ``progress`` how many lines each step adds.

    Raises BatchError, FolioError, OSError.
    """
    output = Output(target)
    window: deque[asyncio.Task[bytes]] = deque()
    limit = asyncio.Semaphore(concurrency)

    async def bounded(job: Job, checkpoint: str) -> bytes:
        async with limit:
            return await post(http, job, checkpoint)

    try:
        checkpoint = await current_checkpoint(http)
        output.resume(jobs, checkpoint)
        progress(output.finished)
        for job in chain(jobs, repeat(None)):
            if job is not None:
                window.append(asyncio.create_task(bounded(job, checkpoint)))
            if not window:
                break
            if job is None or len(window) >= AHEAD * concurrency:
                output.write(await window.popleft())
                progress(1)
    finally:
        for task in window:
            task.cancel()
        await asyncio.gather(*window, return_exceptions=True)
        output.close()


async def current_checkpoint(http: httpx.AsyncClient) -> str:
    """The id of the checkpoint that requests get, once the server has one. Raises FolioError."""
    while True:
        try:
            response = await http.get("/info")
        except httpx.TransportError as error:
            raise FolioError("connection", str(error) or type(error).__name__) from error
        if response.status_code != 200:
            raise error_of(response)
        document = response.json()
        if document["model"] is not None:
            return str(document["model"]["checkpoint"])
        if document["engine"]["state"] == "failed":
            raise FolioError("engine_failed", document["engine"]["message"])
        await asyncio.sleep(FIRST_WAIT_S)
