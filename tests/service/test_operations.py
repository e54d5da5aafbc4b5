"""Probes, /info, metrics, logs and the documents: what people run the service with."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import service.__main__ as command
from service.app import create_app
from service.errors import STATUS
from service.http.server import Server
from service.settings import Settings
from service.telemetry.logs import JsonFormatter
from tests.service.fakes import FakeEngine
from tests.service.running import Running, request
from tests.support.wait import wait_for

Serve = Callable[..., Running]


PROBED: list[tuple[dict[str, object], int, int]] = [
    ({}, 200, 200),
    ({"state": "loading", "heartbeat_age_s": math.inf}, 200, 503),
    ({"state": "restarting"}, 200, 503),
    ({"state": "failed"}, 503, 503),
    ({"state": "stopping"}, 200, 503),
    ({"heartbeat_age_s": 1.9, "step_age_s": 1.9}, 200, 200),
    ({"heartbeat_age_s": 2.1}, 200, 503),
    ({"step_age_s": 2.1}, 200, 503),
    ({"loaded": ()}, 200, 503),
]


def test_probes(serve: Serve) -> None:
    """LESSONS 35, 36: /health said 200 while no token came any more."""
    server = serve()
    usual = dict(vars(server.engine))
    for change, healthz, readyz in PROBED:
        vars(server.engine).update(usual | change)
        for path, expected in (("/healthz", healthz), ("/readyz", readyz)):
            answer = server.http.get(path)
            assert answer.status_code == expected, (change, path)
            assert answer.headers["cache-control"] == "no-store"
            assert ("retry-after" in answer.headers) == (expected == 503)
        assert server.http.get("/info").status_code == 200, "also with infinite ages"
    vars(server.engine).update(usual)


def test_draining_is_not_ready_and_refuses(serve: Serve) -> None:
    server = serve()
    server.app.state.service.draining = True
    assert server.http.get("/readyz").status_code == 503
    assert server.http.get("/healthz").status_code == 200
    refused = server.post(prompt="R")
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")


def test_info(shared: Running) -> None:
    info = shared.http.get("/info").json()
    assert info["limits"]["max_new_tokens"] == 4096
    assert info["model"]["checkpoint"] == shared.engine.loaded[0].id
    assert "".join(info["model"]["vocabulary"]) == "".join(shared.engine.loaded[0].tokenizer.texts)
    assert info["model"]["manifest"] == {"seed": 1337, "val_loss": 1.5}
    assert info["engine"]["state"] == "running"


COUNTED = (
    "prompt_tokens",
    "generation_tokens",
    "request_success",
    "request_refused",
    "requests_cancelled",
    "engine_steps",
    "engine_restarts",
)
TIMED = ("time_to_first_token", "inter_token_latency", "e2e_request_latency", "request_queue_time")
NAMES = (
    "num_requests_running",
    "num_requests_waiting",
    "engine_batch_size",
    "model_info",
    *COUNTED,
    *(f"{name}_seconds" for name in TIMED),
)


def test_metrics_have_their_names_and_count(serve: Serve) -> None:
    server = serve()
    for _ in range(3):
        server.post(prompt="abc", max_new_tokens=20, stream=False)
    server.post(prompt="R", top_p=7)
    families = {f.name: f for f in text_string_to_metric_families(server.http.get("/metrics").text)}
    assert {f"folio_{name}" for name in NAMES} <= set(families)
    assert server.metric("folio_prompt_tokens_total") == 9
    assert server.metric("folio_generation_tokens_total") == 60
    assert server.metric("folio_request_success_total", finish_reason="length") == 3
    assert server.metric("folio_time_to_first_token_seconds_count") == 3
    wait_for(lambda: server.metric("folio_request_refused_total", code="invalid_request") == 1)
    buckets = {s.labels["le"] for s in families["folio_inter_token_latency_seconds"].samples if "le" in s.labels}
    assert min(map(float, buckets)) == 5e-5
    buckets = {s.labels["le"] for s in families["folio_e2e_request_latency_seconds"].samples if "le" in s.labels}
    assert min(map(float, buckets)) == 1e-3


def test_a_resumed_stream_counts_only_what_it_sends(serve: Serve) -> None:
    server = serve()
    answer = server.post(prompt="R", max_new_tokens=21, seed=1).text
    ids = re.findall(r"^id: (.*)$", answer, re.M)
    server.post(prompt="R", max_new_tokens=21, seed=1, stream=True)
    resumed = server.post(headers={"Last-Event-ID": ids[0]}, prompt="R", max_new_tokens=21, seed=1)
    assert resumed.status_code == 200
    assert server.metric("folio_generation_tokens_total") == 21 + 21 + 14


def test_series_do_not_grow_with_what_clients_send(shared: Running) -> None:
    """LESSONS 47: scanners' paths became labels, 17,700 series of them."""

    def series() -> set[str]:
        return {line.rpartition(" ")[0] for line in shared.http.get("/metrics").text.splitlines() if not line.startswith("#")}

    shared.post(prompt="R", max_new_tokens=1)
    before = series()
    for i in range(300):
        shared.http.get(f"/{i}", headers={"X-Request-Id": str(i)})
        shared.http.request(f"M{i}", f"/{i}/generate")
        shared.http.post("/generate", json={"prompt": "R", f"field{i}": i})
    assert series() == before


def test_logs_are_json_and_never_hold_text(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    """LESSONS 52: prompts and answers were logged at INFO."""
    caplog.set_level(logging.DEBUG)
    prompt = "A most peculiar prompt"
    server = serve(FakeEngine(burst=40))
    body: dict[str, Any] = {"prompt": prompt, "seed": 5, "max_new_tokens": 40}
    answers = [
        server.post(**body, stream=False).json()["text"],
        server.post(prompt=[prompt], path="/v1/completions").json()["choices"][0]["text"],
    ]
    server.post(**body)
    server.post(**{**body, "prompt": prompt + "日"})
    server.post(**{**body, "stop": [prompt, 5]})
    server.post(**{**body, prompt: prompt})
    server.raw(request(json.dumps(body).encode() + b"}"))
    server.engine.failure, server.engine.fail_at = ValueError(prompt), 0
    assert server.post(**body, stream=False).status_code == 500
    server.post(**body)
    wait_for(lambda: len([r for r in caplog.records if r.getMessage() == "request"]) == 9)
    lines = [JsonFormatter().format(record) for record in caplog.records]
    for text in (prompt, *answers):
        assert not [line for line in lines if text in line or json.dumps(text)[1:-1] in line]
    first = next(line for line in map(json.loads, lines) if line["message"] == "request")
    assert (first["method"], first["route"], first["status"]) == ("POST", "/generate", 200)
    assert {"time", "level", "request_id", "route", "status", "ms", "prompt_tokens", "completion_tokens", "text_sha256"} <= set(first)
    failed = next(line for line in map(json.loads, lines) if line["level"] == "error")
    assert failed["error"] == "ValueError"
    assert "fakes.py" in failed["where"][-1]


def test_log_lines_cannot_be_forged(shared: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    shared.raw(b"GET /%0a%1b[31mforged HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\tb\r\n\r\n")
    wait_for(lambda: [r for r in caplog.records if r.getMessage() == "request"])
    line = JsonFormatter().format(caplog.records[-1])
    assert "\n" not in line
    assert "forged" not in line
    assert json.loads(line)["route"] == "unmatched"


def test_a_client_that_left_is_one_line(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    server = serve(FakeEngine(hold=asyncio.Event()))
    for stream in (True, False):
        sock = server.connect()
        sock.sendall(request({"prompt": "R", "stream": stream}))
        wait_for(lambda: server.engine.streams)
        sock.close()
        wait_for(lambda: not server.engine.streams)
    wait_for(lambda: len([r for r in caplog.records if r.getMessage() == "request"]) == 2)
    lines = [json.loads(JsonFormatter().format(r)) for r in caplog.records if r.name == "folio"]
    assert [(line["status"], line["cancelled"]) for line in lines] == [(200, "queued"), (499, "queued")]
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


def test_every_answer_has_an_id_and_forbids_everything_to_browsers(shared: Running) -> None:
    for path in ("/healthz", "/nope", "/docs", "/openapi.json", "/metrics", "/v1/models", "/"):
        headers = shared.http.get(path).headers
        assert len(headers["x-request-id"]) == 32
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert "unsafe" not in headers["content-security-policy"]


def test_the_documents_are_complete(shared: Running) -> None:
    document = shared.http.get("/openapi.json").json()
    expected = {
        "/generate",
        "/v1/completions",
        "/v1/chat/completions",
        "/verify",
        "/tokenize",
        "/detokenize",
        "/tokenizer_info",
        "/v1/models",
        "/v1/models/{model}",
        "/v1/models/{model}/weights",
        "/healthz",
        "/readyz",
        "/metrics",
        "/info",
        "/",
        "/docs",
    }
    assert expected | {"/openapi.json", "/admin/checkpoints", "/admin/promote", "/admin/rollback"} == set(document["paths"])
    generate = document["paths"]["/generate"]["post"]
    assert set(generate["responses"]) == {*map(str, (200, 400, 401, 408, 409, 410, 413, 415, 422, 429, 431, 503, 504))}
    documented = {
        code
        for methods in document["paths"].values()
        for operation in methods.values()
        for response in operation["responses"].values()
        for code in response.get("content", {}).get("application/json", {}).get("examples", {})
    }
    beside_any_route = {"invalid_http", "not_found", "method_not_allowed", "misdirected_request", "internal_error"}
    assert documented == set(STATUS) - beside_any_route


def test_the_documents_examples_run(shared: Running) -> None:
    document = shared.http.get("/openapi.json").json()
    for path in ("/generate", "/v1/completions"):
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        for example in content["examples"].values():
            assert shared.http.post(path, json=example["value"]).status_code == 200


def test_the_docs_page_is_whole_and_asks_nobody_else(shared: Running) -> None:
    page = shared.http.get("/docs")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert re.findall(r"<script[^>]*>", page.text) == re.findall(r"<script src=\"docs/[\w.-]+\" defer>", page.text)
    links = re.findall(r"""(?:src|href)=["']?([^"'>]+)""", page.text)
    assert "openapi.json" in links
    for link in links:
        assert shared.http.get("/" + link).status_code == 200, link
    for path in shared.http.get("/openapi.json").json()["paths"]:
        assert path in page.text, "without JavaScript too"
    assert shared.http.get("/docs/reference.py").status_code == 404


def test_playground_serves_its_own_directory_only(shared: Running) -> None:
    for path in (
        "/playground/../app.py",
        "/playground/..%2fapp.py",
        "/playground/%2e%2e%2fapp.py",
        "/playground/.",
        "/playground/__init__.py",
    ):
        assert shared.raw(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).status == 404


@pytest.mark.parametrize("failing", ["drain", "announce"])
def test_a_background_task_that_fails_is_logged_and_holds_nothing_up(
    serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    """What nobody awaits ended without a word."""

    async def fails(*_: object) -> None:
        raise ZeroDivisionError

    if failing == "drain":
        server = serve()
        monkeypatch.setattr(server.engine, "drain", fails)
        server.server.should_exit = True
        wait_for(lambda: server.engine.closed)
    else:
        monkeypatch.setattr(command, "announce", fails)
        monkeypatch.setattr(command, "create_app", lambda settings: create_app(settings, FakeEngine()))
        monkeypatch.setattr(Server, "serve", lambda self: asyncio.sleep(0))
        assert asyncio.run(command.serve(Settings(port=0), 0.0)) == 0
    ended = [record for record in caplog.records if f"{failing!r} ended by an error" in record.getMessage()]
    assert len(ended) == 1
    assert ended[0].levelname == "ERROR"
