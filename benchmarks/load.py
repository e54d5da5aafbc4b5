"""A load generator that costs little: raw sockets, one event loop, no HTTP library, in a process of its own.

A request without its terminal event counts as failed, and a run with a failed request is no result.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import sys
import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Reply:
    """What one stream looked like from outside. Times in seconds from the moment that the request was sent."""

    first: float = 0.0
    total: float = 0.0
    tokens: int = 0
    events: int = 0
    gaps: list[tuple[float, int]] = field(default_factory=list)
    """(time since the event before, tokens in this one)."""
    error: str | None = None


class Dialect:
    """How a server is asked, and how its events are read."""

    path = "/generate"

    def body(self, tokens: int, seed: int, prompt: str) -> dict[str, object]:
        return {"prompt": prompt, "max_new_tokens": tokens, "seed": seed}

    def index(self, event: bytes, before: int) -> int:
        """Tokens so far, after this event's text."""
        at = event.find(b'"index": ')
        return int(event[at + 9 : event.index(b",", at)]) if at >= 0 else before

    def is_end(self, event: bytes) -> bool:
        return event.startswith(b"event: end")

    def is_error(self, event: bytes) -> bool:
        return event.startswith(b"event: error")


class LlamaServer(Dialect):
    """llama.cpp's /completion: one event for each token."""

    path = "/completion"

    def body(self, tokens: int, seed: int, prompt: str) -> dict[str, object]:
        sampling = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "samplers": ["temperature"], "cache_prompt": False}
        ids = [ord(c) % 65 for c in prompt]
        return {"prompt": ids, "n_predict": tokens, "seed": seed, "stream": True, "ignore_eos": True, **sampling}

    def index(self, event: bytes, before: int) -> int:
        return before + 1

    def is_end(self, event: bytes) -> bool:
        return b'"stop":true' in event

    def is_error(self, event: bytes) -> bool:
        return event.startswith(b"error")


DIALECTS: dict[str, Dialect] = {"folio": Dialect(), "llama": LlamaServer()}


async def request(host: str, port: int, dialect: Dialect, tokens: int, seed: int, prompt: str) -> Reply:
    """One request over a connection of its own."""
    reply = Reply()
    body = json.dumps(dialect.body(tokens, seed, prompt)).encode()
    head = f"POST {dialect.path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    reader, writer = await asyncio.open_connection(host, port, limit=1 << 20)
    began = time.perf_counter()
    writer.write(head.encode() + body)
    try:
        status = await reader.readline()
        if b" 200 " not in status:
            reply.error = status.decode().strip()
            return reply
        await reader.readuntil(b"\r\n\r\n")
        await read_events(reader, dialect, reply, began)
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        reply.error = f"no terminal event: {type(error).__name__}"
    finally:
        writer.close()
    reply.total = time.perf_counter() - began
    if reply.error is None and reply.tokens < tokens:
        reply.error = f"{reply.tokens} tokens instead of {tokens}"
    return reply


async def read_events(reader: asyncio.StreamReader, dialect: Dialect, reply: Reply, began: float) -> None:
    """Undo chunked transfer coding and split events until the terminal one."""
    buffer, last = b"", 0.0
    while True:
        size = int((await reader.readline()).strip() or b"0", 16)
        if size == 0:
            reply.error = "no terminal event"
            return
        buffer += (await reader.readexactly(size + 2))[:-2]
        *events, buffer = buffer.split(b"\n\n")
        now = time.perf_counter() - began
        for event in events:
            if dialect.is_error(event):
                reply.error = event.decode()[:200]
                return
            if dialect.is_end(event):
                return
            index = dialect.index(event, reply.tokens)
            if index > reply.tokens:
                reply.events += 1
                if reply.tokens == 0:
                    reply.first = now
                else:
                    reply.gaps.append((now - last, index - reply.tokens))
                reply.tokens, last = index, now


async def drive(args: argparse.Namespace) -> dict[str, object]:
    """``streams`` workers, each sending one request after the other until all are sent."""
    dialect, queue = DIALECTS[args.dialect], list(range(args.requests))
    replies: list[Reply] = []

    async def worker() -> None:
        while queue:
            number = queue.pop()
            replies.append(
                await request(args.host, args.port, dialect, args.tokens, args.seed + number, "ROMEO: what light"[: args.prompt])
            )

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(args.streams)))
    wall = time.perf_counter() - began
    failed = [r.error for r in replies if r.error]
    good = [r for r in replies if not r.error]
    per_token = sorted(gap / n for r in good for gap, n in r.gaps for _ in range(n))
    first = sorted(r.first for r in good)
    return {
        "streams": args.streams,
        "requests": args.requests,
        "failed": len(failed),
        "first_error": failed[0] if failed else None,
        "tokens_per_s": round(sum(r.tokens for r in good) / wall, 1),
        "ttft_ms": {"p50": quantile(first, 0.5), "p99": quantile(first, 0.99)},
        "per_token_ms": {"p50": quantile(per_token, 0.5), "p99": quantile(per_token, 0.99)},
        "tokens_per_event": round(sum(r.tokens for r in good) / max(1, sum(r.events for r in good)), 2),
        "wall_s": round(wall, 3),
    }


def quantile(ordered: list[float], q: float) -> float:
    """In milliseconds; the nearest rank."""
    return round(1000 * ordered[min(len(ordered) - 1, math.ceil(q * len(ordered)) - 1)], 3) if ordered else math.nan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--dialect", choices=sorted(DIALECTS), default="folio")
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--requests", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=16, help="characters")
    parser.add_argument("--seed", type=int, default=0)
    result = asyncio.run(drive(parser.parse_args()))
    print(json.dumps(result))
    sys.exit(1 if result["failed"] else 0)


if __name__ == "__main__":
    main()
