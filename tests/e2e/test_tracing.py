"""Traces out of a real server into a collector, as OTLP over HTTP."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.e2e.conftest import Start


class Collector(ThreadingHTTPServer):
    received: list[tuple[str, bytes]]


class Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:  # http.server's name
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.received.append((self.path, gzip.decompress(data) if self.headers["Content-Encoding"] == "gzip" else data))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector(("127.0.0.1", 0), Handler) as server:
        server.received = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("variable", ["FOLIO_OTEL_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"])
def test_spans_reach_a_collector(start: Start, collector: Collector, variable: str) -> None:
    """What is left is sent when the server ends."""
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    server = start(variables={variable: f"http://127.0.0.1:{collector.server_port}", "NO_PROXY": "*"})
    text = server.text(prompt="abcabcabc", max_new_tokens=50, seed=1)
    assert server.post(prompt="abcabcabc", headers={"X-Request-Id": "one-of-mine"}).status_code == 200
    assert server.end() == 0
    assert {path for path, _ in collector.received} == {"/v1/traces"}
    sent = b"".join(data for _, data in collector.received)
    for words in (b"POST /generate", b"http.route", b"folio.ttft_ms", b"one-of-mine", b"gen_ai.usage.output_tokens"):
        assert words in sent
    assert b"abcabcabc" not in sent
    assert text[:12].encode() not in sent
