"""What one key may do: requests a second, texts beside each other, tokens a minute. Without keys everybody shares one."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

from service.errors import ApiError
from service.request_state import RequestState
from service.settings import Settings

BUSY_RETRY_S = 1.0
MINUTE_S = 60.0


class TokenBucket:
    """Fills at ``rate`` a second up to ``capacity``; may be overdrawn, which delays whoever comes next.

    >>> bucket = TokenBucket(rate=1.0, capacity=2, clock=lambda: 0.0)
    >>> [bucket.take() for _ in range(3)]
    [0.0, 0.0, 1.0]
    """

    def __init__(self, rate: float, capacity: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self.capacity, self.clock = rate, float(capacity), clock
        self.level, self.at = self.capacity, clock()

    def wait_s(self, amount: float = 1.0) -> float:
        """Seconds until it holds ``amount``; 0 if it does."""
        now = self.clock()
        self.level, self.at = min(self.capacity, self.level + (now - self.at) * self.rate), now
        return max(0.0, (amount - self.level) / self.rate)

    def take(self) -> float:
        """Take one if it is there, and return 0; else the seconds until it will be."""
        wait = self.wait_s()
        if not wait:
            self.level -= 1
        return wait


class KeyLimits:
    """Counts what each key has under way. Keys are few, so what is known of them is kept."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.starts: dict[str | None, TokenBucket] = {}
        self.budgets: dict[str | None, TokenBucket] = {}
        self.texts: Counter[str | None] = Counter()

    def admit(self, state: RequestState, texts: int, tokens: int) -> None:
        """It asks for ``texts`` of at most ``tokens``, prompts included. Raises ApiError beyond the key's limits.

        The tokens are charged at once, and what was not used is given back by `end`: a budget can be overdrawn by one request.
        """
        if (rate := self.settings.rate_limit) is not None and not state.is_admitted:
            starts = self.starts.setdefault(state.key, TokenBucket(rate, self.settings.rate_burst))
            if wait := starts.take():
                raise ApiError("rate_limited", f"this key may start {rate:g} requests a second", retry_after_s=wait)
        if (most := self.settings.max_concurrent) is not None:
            if texts > most:
                raise ApiError("invalid_request", f"{texts} texts are asked for, and this key may have {most} at a time")
            if self.texts[state.key] + texts > most:
                message = f"this key has {self.texts[state.key]} texts under way and may have {most}"
                raise ApiError("rate_limited", message, retry_after_s=BUSY_RETRY_S)
        if (budget := self.settings.tokens_per_minute) is not None:
            bucket = self.budgets.setdefault(state.key, TokenBucket(budget / MINUTE_S, budget))
            if wait := bucket.wait_s():
                raise ApiError("rate_limited", f"this key may use {budget} tokens a minute", retry_after_s=wait)
            bucket.level -= tokens
        state.is_admitted, state.num_texts, state.charged_tokens = True, texts, tokens
        self.texts[state.key] += texts

    def end(self, state: RequestState) -> None:
        """What was admitted is over, however it ended. Idempotent."""
        self.texts[state.key] -= state.num_texts
        if (bucket := self.budgets.get(state.key)) is not None:
            bucket.level += max(0, state.charged_tokens - state.used_tokens)
        state.num_texts = state.charged_tokens = state.used_tokens = 0
