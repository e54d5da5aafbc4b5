"""OpenTelemetry traces, an extra (``pip install 'folio[otel]'``): a span for each request, made when it is answered.

    POST /generate   ├── queue ──┤── first token ──────── generation ────────┤
                     http.route, status, tokens, queue and first-token times; never text

A span is made of what the log line has, after the fact, so that tracing costs a running stream nothing. A ``traceparent`` that the
client sent is its parent. OpenTelemetry's SDK is imported only if an endpoint is set.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from service.request_state import RequestState
from service.settings import Settings, has_opentelemetry
from service.telemetry.logs import logger

STANDARD_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PARENT_HEADERS = ("traceparent", "tracestate")
FLUSH_S = 2.0
"""A collector that does not answer must not hold the service up on its way out."""
NAMES = {
    "method": "http.request.method",
    "route": "http.route",
    "status": "http.response.status_code",
    "code": "error.type",
    "request_id": "folio.request_id",
    "checkpoint": "folio.checkpoint",
    "seed": "folio.seed",
    "choices": "folio.choices",
    "resumed_at": "folio.resumed_at",
    "cancelled": "folio.cancelled",
    "finish_reason": "folio.finish_reason",
    "prompt_tokens": "gen_ai.usage.input_tokens",
    "completion_tokens": "gen_ai.usage.output_tokens",
    "queue_ms": "folio.queue_ms",
    "ttft_ms": "folio.ttft_ms",
}
"""Fields of the log line, and what they are called in a span. What is not here is not sent."""


class Tracing:
    """Makes spans and sends them, in batches and in a thread of its own."""

    def __init__(self, endpoint: str | None) -> None:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        resource = Resource.create({SERVICE_NAME: os.environ.get("OTEL_SERVICE_NAME", "folio")})
        self.provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self.provider.add_span_processor(BatchSpanProcessor(make_exporter(endpoint)))
        self.tracer = self.provider.get_tracer("folio")
        self.propagator = TraceContextTextMapPropagator()

    def request(self, scope: Scope, state: RequestState, fields: Mapping[str, Any]) -> None:
        """The span of a request that has just ended."""
        from opentelemetry.trace import SpanKind, StatusCode

        end = time.time_ns()
        start = end - int((time.monotonic() - state.started) * 1e9)
        parents = {name: value.decode("latin-1") for key, value in scope["headers"] if (name := key.decode("latin-1")) in PARENT_HEADERS}
        span = self.tracer.start_span(
            f"{fields['method']} {fields['route']}",
            context=self.propagator.extract(parents),
            kind=SpanKind.SERVER,
            attributes={NAMES[name]: value for name, value in fields.items() if name in NAMES and value is not None},
            start_time=start,
        )
        for name, event in (("queue_ms", "left the queue"), ("ttft_ms", "first token")):
            if name in fields:
                span.add_event(event, timestamp=min(end, start + int(fields[name] * 1e6)))  # the engine began later
        if fields["status"] >= 500 or (fields["status"] == 200 and fields["code"]):  # or an error within a stream
            span.set_status(StatusCode.ERROR)
        span.end(end)

    def close(self) -> None:
        """Send what is left, as far as that can be done soon."""
        thread = threading.Thread(target=self.provider.shutdown, daemon=True)
        thread.start()
        thread.join(FLUSH_S)


def make_exporter(endpoint: str | None) -> Any:
    """OTLP over HTTP. Without an endpoint of ours the exporter reads the standard variables, headers among them."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces") if endpoint else OTLPSpanExporter()


def make_tracing(settings: Settings) -> Tracing | None:
    """What sends traces, if anybody wants them. The standard variables alone are no mistake: they may be meant for others."""
    if settings.otel_endpoint:
        return Tracing(settings.otel_endpoint)
    if not any(os.environ.get(name) for name in STANDARD_VARIABLES):
        return None
    if not has_opentelemetry():
        logger.warning("no traces: pip install 'folio[otel]', or unset OTEL_EXPORTER_OTLP_ENDPOINT")
        return None
    return Tracing(None)
