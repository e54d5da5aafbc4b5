"""GET and QUERY /generate: the address of a text, its tag, and how caches and browsers are told what they may do with it."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.service.fakes import FakeEngine
from tests.service.running import Running
from tests.support.events import events, joined

Serve = Callable[..., Running]
BODY: dict[str, Any] = {"prompt": "ROMEO:", "max_new_tokens": 40, "seed": 7}


FORMS: dict[str, dict[str, Any]] = {"sse": {}, "json": {"stream": "false"}}


def get(server: Running, headers: dict[str, str] | None = None, **params: Any) -> httpx.Response:
    return server.http.get("/generate", params={**BODY, **params}, headers=headers)


def query(server: Running, headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
    return server.http.request("QUERY", "/generate", json={**BODY, **body}, headers=headers)


@pytest.mark.parametrize(
    ("written", "body"),
    [
        ({}, {}),
        ({"temperature": "0.5", "top_k": "3", "echo": "true"}, {"temperature": 0.5, "top_k": 3, "echo": True}),
        ({"stop": ["e", "o t"]}, {"stop": ["e", "o t"]}),
        ({"logit_bias": '{"e": 5, " ": -5}', "context": "sliding"}, {"logit_bias": {"e": 5, " ": -5}, "context": "sliding"}),
        ({"logprobs": "true", "top_logprobs": "2"}, {"logprobs": True, "top_logprobs": 2}),
    ],
)
def test_get_query_and_post_are_one_text(shared: Running, written: dict[str, Any], body: dict[str, Any]) -> None:
    post = shared.post(**BODY, **body, stream=False).json()
    for answer in (get(shared, stream="false", **written), query(shared, stream=False, **body)):
        assert answer.status_code == 200, answer.text
        reply = answer.json()
        assert {**reply, "id": "", "timings": {}} == {**post, "id": "", "timings": {}}
        assert answer.headers["accept-query"] == '"application/json"'
    assert joined(events(get(shared, **written).text)) == post["text"]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"seed": None}, "seed"),
        ({"prompt": None}, "prompt"),
        ({"seed": ["7", "8"]}, "seed"),
        ({"seed": "seven"}, "seed"),
        ({"seed": "7.0"}, "seed"),
        ({"temperature": '"1"'}, "temperature"),
        ({"temperature": "NaN"}, "temperature"),
        ({"logit_bias": "{"}, "logit_bias"),
        ({"temprature": "1"}, "temprature"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [""]}, "stop"),
    ],
)
def test_a_bad_address_is_told_where_it_is_bad(shared: Running, params: dict[str, Any], param: str) -> None:
    given = {name: value for name, value in {**BODY, **params}.items() if value is not None}
    answer = shared.http.get("/generate", params=given)
    assert answer.status_code == 422, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == param


def test_the_tag_names_the_text_before_there_is_one(shared: Running) -> None:
    tags = {form: get(shared, **more).headers["etag"] for form, more in FORMS.items()}
    assert len(set(tags.values())) == 2
    assert all(tag.startswith('W/"') for tag in tags.values())
    submitted = len(shared.engine.submitted)
    for sent in (tags["sse"], tags["sse"].removeprefix("W/"), f'"x", {tags["sse"]}', "*"):
        for answer in (get(shared, {"If-None-Match": sent}), query(shared, {"If-None-Match": sent})):
            assert (answer.status_code, answer.content) == (304, b"")
            assert answer.headers["etag"] == tags["sse"]
    head = shared.http.head("/generate", params=BODY)
    assert (head.status_code, head.headers["etag"], head.content) == (200, tags["sse"], b"")
    assert len(shared.engine.submitted) == submitted, "a text was generated that nobody needed"
    others: list[dict[str, Any]] = [{"seed": 8}, {"stream": "false"}, {"temperature": 0.9}]
    for other in others:
        assert get(shared, {"If-None-Match": tags["sse"]}, **other).status_code == 200
    assert shared.post(**BODY, headers={"If-None-Match": tags["sse"]}).status_code == 200
    assert get(shared, {"If-None-Match": tags["sse"]}, seed=-1).status_code == 422, "validation comes first"


def test_what_a_cache_is_told(shared: Running, serve: Serve) -> None:
    checkpoint = shared.engine.loaded[0].id
    assert get(shared).headers["cache-control"] == "public, no-cache"
    assert get(shared, checkpoint=checkpoint).headers["cache-control"] == "public, max-age=31536000, immutable"
    assert get(shared).headers["vary"] == "Accept, Last-Event-ID, Authorization"
    assert shared.post(**BODY).headers["cache-control"] == "no-store"
    assert query(shared, seed=None).headers["cache-control"] == "no-store", "a drawn seed makes another text each time"
    first = events(get(shared).text)[0]["id"]
    assert get(shared, {"Last-Event-ID": first}).headers["cache-control"] == "no-store"
    keyed = serve(api_keys="k")
    answer = get(keyed, {"Authorization": "Bearer k"})
    assert answer.headers["cache-control"] == "private, no-cache"


def test_an_event_source_goes_on_and_then_stays_away(shared: Running) -> None:
    """WHATWG HTML 9.2: a browser comes back with the last id after every end of a stream, but for 204."""
    found = events(get(shared).text)
    assert found[-1]["id"] == f"{found[-2]['id']}.end"
    rest = events(get(shared, {"Last-Event-ID": found[0]["id"]}).text)
    assert joined(rest) == joined(found[1:])
    again = events(get(shared, {"Last-Event-ID": found[-2]["id"]}).text)
    assert [event["event"] for event in again] == ["end"]
    over = get(shared, {"Last-Event-ID": found[-1]["id"]})
    assert (over.status_code, over.content) == (204, b"")
    assert get(shared, {"Last-Event-ID": found[-1]["id"]}, seed=8).status_code == 409
    post = shared.post(**BODY, headers={"Last-Event-ID": found[-1]["id"]})
    assert [event["event"] for event in events(post.text)] == ["end"]
    assert "id" not in {key for event in events(shared.post(**BODY).text)[-1:] for key, value in event.items() if key == "id" and value}


def raw_get(server: Running, path: str, version: str = "1.1") -> bytes:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(f"GET {path} HTTP/{version}\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        parts = []
        while data := connection.recv(65536):
            parts.append(data)
        return b"".join(parts)


def test_an_answer_that_is_not_whole_is_not_ended(serve: Serve) -> None:
    """A cache keeps a chunked answer only with its last chunk; HTTP/1.0 has no chunks, so nothing is kept there."""
    path = "/generate?prompt=ROMEO%3A&seed=7&max_new_tokens=40"
    whole = serve()
    assert raw_get(whole, path).endswith(b"0\r\n\r\n")
    failing = serve(FakeEngine(fail_at=5))
    answer = raw_get(failing, path)
    assert b"event: error" in answer
    assert not answer.endswith(b"0\r\n\r\n")
    assert b"cache-control: no-store" in raw_get(whole, path, "1.0")
    assert events(failing.post(**BODY).text)[-1]["event"] == "error", "a POST is no address: its last chunk comes as ever"
