"""Metrics under API.md's names. Labels come from fixed sets only, so no client can make series grow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from service.engine.interface import Engine
from service.errors import STATUS
from service.telemetry import lines
from service.telemetry.loop_metrics import LoopCounter, LoopHistogram

Where = Literal["queued", "running", "shutdown"]

TOKEN_BUCKETS = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 5)
REQUEST_BUCKETS = (1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60, 300)


disable_created_metrics()  # type: ignore[no-untyped-call]  # three series where one says it all


class Metrics:
    """What /metrics shows. Each application has its own registry, so tests can make many."""

    def __init__(self, engine: Engine) -> None:
        self.registry = registry = CollectorRegistry()
        self.prompt_tokens = LoopCounter("folio_prompt_tokens", "Prompt tokens of admitted requests", registry)
        self.generation_tokens = LoopCounter("folio_generation_tokens", "Generated tokens whose text was sent", registry)
        self.tokens = Counter("folio_tokens", "Tokens of prompts and of texts", ["key"], registry=registry)
        self.success = Counter("folio_request_success", "Requests answered whole", ["finish_reason"], registry=registry)
        self.refused = Counter("folio_request_refused", "Requests that ended with an error", ["code"], registry=registry)
        self.cancelled = Counter("folio_requests_cancelled", "Requests that ended before their text did", ["where"], registry=registry)
        self.ttft = LoopHistogram("folio_time_to_first_token_seconds", "From a request to its first token", REQUEST_BUCKETS, registry)
        self.itl = LoopHistogram(
            "folio_inter_token_latency_seconds", "Between tokens; merged ones count their mean", TOKEN_BUCKETS, registry
        )
        self.e2e = LoopHistogram("folio_e2e_request_latency_seconds", "From a request to its last token", REQUEST_BUCKETS, registry)
        self.queue = LoopHistogram(
            "folio_request_queue_time_seconds", "From a request to its place in the batch", REQUEST_BUCKETS, registry
        )
        registry.register(EngineCollector(engine))
        for reason in ("length", "stop", "timeout"):
            self.success.labels(reason)
        for code in STATUS:
            self.refused.labels(code)
        for where in ("queued", "running", "shutdown"):
            self.cancelled.labels(where)


class EngineCollector(Collector):
    """Reads the engine's state when /metrics is asked for, not whenever it changes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def collect(self) -> Iterable[Metric]:
        """One reading."""
        status = self.engine.status
        yield GaugeMetricFamily("folio_num_requests_running", "Requests that have a row of the batch", value=status.running)
        yield GaugeMetricFamily("folio_num_requests_waiting", "Requests in the queue", value=status.waiting)
        yield GaugeMetricFamily("folio_engine_batch_size", "Rows that the last step computed", value=status.batch_size)
        yield GaugeMetricFamily("folio_engine_max_batch_size", "Rows that a step can compute", value=status.max_batch)
        yield CounterMetricFamily("folio_engine_passes", "Passes of the model in decoding", value=status.decode_passes)
        yield CounterMetricFamily("folio_guesses", "Guesses of coming tokens that a pass has judged", value=status.guesses)
        yield CounterMetricFamily("folio_right_guesses", "Guesses that were what the model drew", value=status.right_guesses)
        yield CounterMetricFamily("folio_engine_steps", "Steps of the engine", value=status.steps)
        yield CounterMetricFamily("folio_engine_restarts", "Workers that had to be replaced", value=status.restarts)
        yield CounterMetricFamily("folio_log_lines_dropped", "Log lines that nobody took in time", value=lines.stderr.dropped)
        info = GaugeMetricFamily("folio_model_info", "What is served", labels=("checkpoint", "fingerprint", "device", "kernels"))
        if current := self.engine.current:
            info.add_metric((current.id, current.fingerprint, current.device, current.kernels), 1)
        yield info

    def describe(self) -> Iterable[Metric]:
        """Nothing, so that registering does not read the engine."""
        return ()
