"""A counter and a histogram for what happens at every event: one thread writes them, so they need no lock.

``prometheus_client``'s own take a lock for each of a dozen sums; at thousands of events a second that is felt.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry


class LoopCounter(Collector):
    """Grows."""

    def __init__(self, name: str, text: str, registry: CollectorRegistry) -> None:
        self.name, self.text = name, text
        self.value = 0
        registry.register(self)

    def inc(self, amount: int = 1) -> None:
        """Called on the event loop only."""
        self.value += amount

    def collect(self) -> Iterable[Metric]:
        """One reading."""
        yield CounterMetricFamily(self.name, self.text, value=self.value)


class LoopHistogram(Collector):
    """How many values were at most each of ``bounds``, and their sum."""

    def __init__(self, name: str, text: str, bounds: Sequence[float], registry: CollectorRegistry) -> None:
        self.name, self.text, self.bounds = name, text, tuple(map(float, bounds))
        self.counts = [0] * (len(self.bounds) + 1)
        self.sum = 0.0
        registry.register(self)

    def observe(self, value: float) -> None:
        """Called on the event loop only."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def collect(self) -> Iterable[Metric]:
        """One reading."""
        names = [*map(str, self.bounds), "+Inf"]
        buckets = [(name, float(count)) for name, count in zip(names, accumulate(self.counts), strict=True)]
        yield HistogramMetricFamily(self.name, self.text, buckets=buckets, sum_value=self.sum)
