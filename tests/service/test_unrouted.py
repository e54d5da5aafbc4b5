"""What no route takes is answered with where to go, and other servers' probes with ours."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.service.fakes import FakeEngine
from tests.service.running import Running

Serve = Callable[..., Running]


@pytest.mark.parametrize(
    ("method", "path", "hint"),
    [
        ("POST", "/v1/responses", "POST /v1/chat/completions"),
        ("GET", "/v1/responses/resp_1", "POST /v1/chat/completions"),
        ("POST", "/v1/embeddings", "POST /v1/completions"),
        ("POST", "/chat/completions", "/v1"),
        ("POST", "/v1/batches", "folio-generate"),
        ("POST", "/api/generate", "POST /generate"),
        ("POST", "/v1/audio/speech", "only writes text"),
        ("POST", "/v1/score", "echo and logprobs"),
        ("POST", "/completion", "POST /generate"),
        ("GET", "/api/tags", "GET /v1/models"),
        ("GET", "/version", "GET /info"),
        ("POST", "/v1", "base URL ends in /v1"),
        ("POST", "/v1/chat/completions/", "use /v1/chat/completions, without the slash"),
        ("POST", "/generate//", "use /generate, without the slash"),
        ("POST", "/v1/nope", "GET /docs"),
        ("GET", "/nope", "GET /docs"),
        ("GET", "/nope/", "GET /docs"),
    ],
)
def test_other_doors_say_where_to_go(shared: Running, method: str, path: str, hint: str) -> None:
    answer = shared.http.request(method, path)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (404, "not_found")
    assert error["message"].startswith(f"there is no {method} {path} here: ")
    assert hint in error["message"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/chat/completions", "POST"), ("PUT", "/generate", "GET, HEAD, POST, QUERY"), ("DELETE", "/v1/models/folio", "GET, HEAD")],
)
def test_another_method_is_told_which_there_are(shared: Running, method: str, path: str, allowed: str) -> None:
    answer = shared.http.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert answer.json()["error"]["message"] == f"there is no {method} {path} here: it takes {allowed}"


def test_what_is_shown_of_a_path_is_harmless_and_short(shared: Running) -> None:
    message = shared.http.get("/%1b%5b31m%0d%0a" + "a" * 500).json()["error"]["message"]
    assert message.isprintable()
    assert len(message) < 200


def test_health_is_healthz_by_its_other_name(serve: Serve) -> None:
    """``vllm bench serve``, guidellm and dashboards ask for it, without a key."""
    server = serve(FakeEngine(), api_keys="k")
    for state, status in (("running", 200), ("failed", 503)):
        server.engine.state = state
        answers = [server.http.get(path) for path in ("/health", "/healthz")]
        assert [answer.status_code for answer in answers] == [status, status]
        assert server.http.head("/health").status_code == status
    server.engine.state = "running"
    assert server.http.get("/health").json() == {"status": "running"}
