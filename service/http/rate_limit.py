"""What one key may do at a time: start so many requests a second, have so many running."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ApiError
from service.request_state import request_state
from service.state import Service

LIMITED_PATHS = frozenset({"/generate", "/v1/completions"})
BUSY_RETRY_S = 1.0


class TokenBucket:
    """Allows ``rate`` requests a second on average and ``burst`` at once.

    >>> bucket = TokenBucket(rate=1.0, burst=2, clock=lambda: 0.0)
    >>> [bucket.take() for _ in range(3)]
    [0.0, 0.0, 1.0]
    """

    def __init__(self, rate: float, burst: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.burst, self.clock = rate, burst, clock
        self.level, self.at = float(burst), clock()

    def take(self) -> float:
        """0 if a request may start, else the seconds until one may."""
        now = self.clock()
        self.level, self.at = min(self.burst, self.level + (now - self.at) * self.rate), now
        if self.level < 1:
            return (1 - self.level) / self.rate
        self.level -= 1
        return 0.0


class KeyLimits:
    """429 beyond a key's limits. Without keys everybody shares one. Keys are few, so their buckets are kept."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app = app
        self.settings = service.settings
        self.buckets: dict[str | None, TokenBucket] = {}
        self.running: Counter[str | None] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in LIMITED_PATHS:
            await self.app(scope, receive, send)
            return
        key = request_state(scope).key
        self.check(key)
        self.running[key] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running[key] -= 1

    def check(self, key: str | None) -> None:
        """Raises ApiError."""
        if (most := self.settings.max_concurrent) is not None and self.running[key] >= most:
            raise ApiError("rate_limited", f"this key has {most} requests running, as many as it may", retry_after_s=BUSY_RETRY_S)
        if (rate := self.settings.rate_limit) is None:
            return
        bucket = self.buckets.setdefault(key, TokenBucket(rate, self.settings.rate_burst))
        if wait := bucket.take():
            raise ApiError("rate_limited", f"this key may start {rate:g} requests a second", retry_after_s=wait)
