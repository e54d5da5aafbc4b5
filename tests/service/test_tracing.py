"""Traces: one span for each request, under the client's own trace, with numbers and never text; nothing imported unless asked for."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from service.settings import Settings
from service.telemetry import tracing
from tests.service.fakes import FakeEngine
from tests.service.running import Running, request
from tests.support.wait import wait_for

Serve = Callable[..., Running]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What is exported, in memory."""
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter").InMemorySpanExporter()
    monkeypatch.setattr(tracing, "make_exporter", lambda endpoint: memory)
    return memory


def spans(server: Running, exporter: Any) -> list[Any]:
    server.app.state.service.tracing.provider.force_flush()
    return list(exporter.get_finished_spans())


def test_a_span_for_each_request(serve: Serve, exporter: Any) -> None:
    server = serve(otel_endpoint="http://collector:4318")
    body: dict[str, Any] = {"prompt": "ROMEO", "max_new_tokens": 20, "seed": 7}
    answer = server.post(headers={"traceparent": f"00-{TRACE}-{PARENT}-01"}, **body)
    text = server.post(**body, stream=False).json()["text"]
    server.post("/v1/completions", prompt="ROMEO", max_tokens=5)
    server.post(prompt="R", temprature=1)
    server.http.get("/healthz")
    server.http.get("/no/such/path")
    first, second, third, refused, unknown = spans(server, exporter)
    assert [span.name for span in (first, second, third, refused, unknown)] == [
        "POST /generate",
        "POST /generate",
        "POST /v1/completions",
        "POST /generate",
        "GET unmatched",
    ]
    assert f"{first.context.trace_id:032x}" == TRACE
    assert f"{first.parent.span_id:016x}" == PARENT
    assert second.parent is None
    assert second.context.trace_id != first.context.trace_id
    expected = {
        "http.request.method": "POST",
        "http.route": "/generate",
        "http.response.status_code": 200,
        "folio.request_id": answer.headers["x-request-id"],
        "folio.seed": 7,
        "folio.finish_reason": "length",
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 20,
    }
    assert {name: first.attributes[name] for name in expected} == expected
    assert [event.name for event in first.events] == ["left the queue", "first token"]
    assert first.start_time <= first.events[0].timestamp <= first.end_time
    assert third.attributes["gen_ai.usage.output_tokens"] == 5
    assert (refused.attributes["http.response.status_code"], refused.attributes["error.type"]) == (422, "unknown_field")
    for span in (first, second, third, refused, unknown):
        assert "ROMEO" not in span.to_json()
        assert text[:8] not in span.to_json()
        assert "such" not in span.to_json()


def test_what_ends_early_is_traced_too(serve: Serve, exporter: Any) -> None:
    server = serve(FakeEngine(delay=0.005), otel_endpoint="http://collector:4318")
    sock = server.connect()
    sock.sendall(request({"prompt": "R", "max_new_tokens": 4096}))
    wait_for(lambda: server.engine.generated > 30)
    sock.close()
    wait_for(lambda: spans(server, exporter))
    (span,) = spans(server, exporter)
    assert span.attributes["folio.cancelled"] == "running"
    assert span.attributes["gen_ai.usage.output_tokens"] > 0


def test_a_broken_parent_is_no_parent(serve: Serve, exporter: Any) -> None:
    server = serve(otel_endpoint="http://collector:4318")
    for value in ("", "00-xyz", "00-" + "0" * 32 + "-" + "0" * 16 + "-01", "~" * 200):
        assert server.http.get("/info", headers={"traceparent": value}).status_code == 200
    assert [span.parent for span in spans(server, exporter)] == [None] * 4


def test_the_extra_is_asked_for_in_one_line(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr("service.settings.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'folio\[otel\]'"):
        Settings(otel_endpoint="http://x")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://somebody")
    assert tracing.make_tracing(Settings()) is None
    assert "no traces" in caplog.text


def test_a_collector_that_hangs_does_not_hold_the_end_up(serve: Serve, exporter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "FLUSH_S", 0.1)
    hangs = threading.Event()
    monkeypatch.setattr(exporter, "export", lambda spans: hangs.wait())
    server = serve(otel_endpoint="http://collector:4318")
    server.http.get("/info")
    try:
        server.stop()  # would never return
    finally:
        hangs.set()


def test_nothing_is_imported_otherwise() -> None:
    """FastAPI itself imports OpenTelemetry's interface; what does something is the SDK."""
    code = "import sys; from service.app import create_app; from service.settings import Settings; create_app(Settings()); "
    code += "sys.exit(any(name.startswith(('opentelemetry.sdk', 'opentelemetry.exporter')) for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0
