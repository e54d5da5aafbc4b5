"""POST /generate: one text in both forms, its headers and fields, and the way a cut stream goes on."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from service.engine.errors import EngineError, EngineStopping, QueueTimeout
from tests.service.fakes import FakeEngine, fake_checkpoint
from tests.service.running import Running
from tests.support.events import events, joined
from tests.support.wait import wait_for

Serve = Callable[..., Running]
BODY: dict[str, Any] = {"prompt": "ROMEO:", "max_new_tokens": 100, "seed": 7}


def json_text(server: Running, **more: object) -> str:
    text: str = server.post(**{**BODY, **more, "stream": False}).json()["text"]
    return text


def test_stream_json_end_and_openai_agree(shared: Running) -> None:
    """API.md: join(stream text) == end.text == JSON text == /v1 text. LESSONS 8, 25: text lost or changed between forms."""
    found = events(shared.post(**BODY).text)
    reply = found[-1]["data"]
    assert found[-1]["event"] == "end"
    assert joined(found) == reply["text"] == json_text(shared)
    v1 = shared.post("/v1/completions", prompt="ROMEO:", max_tokens=100, seed=7).json()
    assert v1["choices"][0]["text"] == reply["text"]
    assert reply["text_sha256"] == hashlib.sha256(reply["text"].encode()).hexdigest()
    assert reply["usage"] == {"prompt_tokens": 6, "completion_tokens": 100, "total_tokens": 106}
    assert set(reply) == {
        *("id", "checkpoint", "fingerprint", "text", "finish_reason", "seed", "usage", "text_sha256", "prompt_truncated", "timings")
    }


def test_events_count_tokens_from_one(shared: Running) -> None:
    found = events(shared.post(**BODY).text)[:-1]
    text = ""
    for event in found:
        text += event["data"]["text"]
        assert event["data"]["index"] == len(text)
        assert event["id"].split(".")[-1] == str(len(text))


@pytest.mark.parametrize("stream", [True, False])
def test_headers(shared: Running, stream: bool) -> None:
    answer = shared.post(**BODY, stream=stream, headers={"X-Request-Id": "my.id-1"})
    current = shared.engine.loaded[0]
    assert answer.headers["x-request-id"] == "my.id-1"
    assert answer.headers["x-seed"] == "7"
    assert answer.headers["x-checkpoint"] == current.id
    assert answer.headers["x-fingerprint"] == current.fingerprint
    assert answer.headers["cache-control"] == "no-store"
    if stream:
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["x-accel-buffering"] == "no"
        assert "content-length" not in answer.headers


@pytest.mark.parametrize(
    ("accept", "more", "is_stream"),
    [
        ("*/*", {}, True),
        ("application/json", {}, False),
        ("application/json", {"stream": True}, True),
        ("text/event-stream", {"stream": False}, False),
        ("application/json, text/event-stream", {}, True),
        ("Application/JSON;q=0.9, text/html", {}, False),
        ("image/png", {}, True),
    ],
)
def test_accept_chooses_where_stream_is_not_given(shared: Running, accept: str, more: dict[str, Any], is_stream: bool) -> None:
    answer = shared.post(**BODY, **more, headers={"Accept": accept})
    assert answer.headers["content-type"].startswith("text/event-stream" if is_stream else "application/json")


def test_stream_is_ascii_and_survives_line_splitting_clients(shared: Running) -> None:
    """LESSONS 10: a charset-less stream was split on U+0085 by ``splitlines``. httpx splits on it, and U+2028, too."""
    text = json_text(shared, max_new_tokens=2000)
    assert {"\u0085", "\u2028", "\r", "😀"} <= set(text)
    body: dict[str, Any] = {**BODY, "max_new_tokens": 2000}
    answer = shared.post(**body)
    assert answer.content.isascii()
    with shared.http.stream("POST", "/generate", json=body) as streamed:
        lines = list(streamed.iter_lines())
    assert joined(events("\n".join(lines))) == text


def test_a_drawn_seed_is_returned_and_repeats_the_text(shared: Running) -> None:
    first = shared.post(prompt="x", stream=False)
    seed = int(first.headers["x-seed"])
    assert 0 <= seed < 2**53
    assert first.json()["seed"] == seed
    assert shared.post(prompt="x", stream=False, seed=seed).json()["text"] == first.json()["text"]


NEUTRAL: dict[str, list[Any]] = {
    "temperature": [1.0, 1],
    "top_k": [0, 10_000, 2**70],
    "top_p": [1.0, 1],
    "min_p": [0, 0.0, -0.0],
    "repetition_penalty": [1, 1.0],
    "frequency_penalty": [0, -0.0],
    "presence_penalty": [0.0, -0.0],
    "logit_bias": [{}, {"a": 0}],
    "stop": [[]],
    "logprobs": [False],
    "top_logprobs": [0],
    "echo": [False],
    "on_unknown": ["error", "drop"],
    "context": [None, "anchored"],
    "checkpoint": [None],
    "timeout_s": [600, 5.0],
    "max_tokens": [None],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in NEUTRAL.items() for value in values])
def test_neutral_values_equal_omission(shared: Running, name: str, value: object) -> None:
    """LESSONS 49: servers refused ``top_p=1`` and ``temperature=0``."""
    assert json_text(shared, **{name: value}) == json_text(shared)


CHANGING: dict[str, Any] = {
    "temperature": 0,
    "top_k": 1,
    "top_p": 0.5,
    "min_p": 0.5,
    "repetition_penalty": 1.5,
    "frequency_penalty": 1,
    "presence_penalty": 1,
    "logit_bias": {"a": 1},
    "context": "sliding",
    "seed": 8,
}


@pytest.mark.parametrize("name", CHANGING)
def test_every_parameter_reaches_the_engine(shared: Running, name: str) -> None:
    """LESSONS 50: a parameter was accepted and ignored. The fake's text depends on all of them."""
    assert json_text(shared, **{name: CHANGING[name]}) != json_text(shared)
    if name not in ("logit_bias", "seed"):
        v1 = [shared.post("/v1/completions", prompt="R", seed=7, **more).json() for more in ({}, {name: CHANGING[name]})]
        assert v1[0]["choices"][0]["text"] != v1[1]["choices"][0]["text"]


def test_max_tokens_is_another_name(shared: Running) -> None:
    assert len(shared.post(prompt="x", max_tokens=5, stream=False).json()["text"]) == 5


@pytest.mark.parametrize("stop", ["single", "list"])
def test_stop_is_never_in_the_text(shared: Running, stop: str) -> None:
    whole = json_text(shared)
    cut = whole[40:43]
    reply = shared.post(**BODY, stop=cut if stop == "single" else [cut, "never there"], stream=False).json()
    assert reply["finish_reason"] == "stop"
    assert reply["text"] == whole[: whole.find(cut)]
    assert reply["usage"]["completion_tokens"] == len(reply["text"]) + 3


@pytest.mark.parametrize("prompt", ["ROMEO:", "", "data: x\n\nevent: end", "é\r\u2028😀"])
def test_echo_puts_the_prompt_in_front(shared: Running, prompt: str) -> None:
    found = events(shared.post(**{**BODY, "prompt": prompt, "echo": True}).text)
    plain = json_text(shared, prompt=prompt)
    assert joined(found) == prompt + plain == found[-1]["data"]["text"] == json_text(shared, prompt=prompt, echo=True)


def test_unknown_characters_are_named_with_offsets_or_dropped(shared: Running) -> None:
    error = shared.post(prompt="a日b本日", stream=False).json()["error"]
    assert error["code"] == "unknown_characters"
    assert "'\\u65e5' at 1, 4" in error["message"]
    assert "'\\u672c' at 3" in error["message"]
    dropped = shared.post(**{**BODY, "prompt": "a日b本", "on_unknown": "drop", "echo": True}, stream=False).json()
    assert dropped["text"] == "ab" + json_text(shared, prompt="ab")
    assert dropped["usage"]["prompt_tokens"] == 2


@pytest.mark.parametrize(("length", "truncated"), [(63, False), (64, False), (65, True)])
def test_prompt_truncated_tells_that_only_the_end_was_seen(shared: Running, length: int, truncated: bool) -> None:
    assert shared.post(prompt="a" * length, stream=False).json()["prompt_truncated"] is truncated


def test_logprobs_on_events_and_in_the_reply(shared: Running) -> None:
    found = events(shared.post(**BODY, logprobs=True, top_logprobs=2).text)
    reply = found[-1]["data"]
    assert [each for event in found[:-1] for each in event["data"]["logprobs"]] == reply["logprobs"]
    assert "".join(each["token"] for each in reply["logprobs"]) == reply["text"]
    assert [set(each) for each in reply["logprobs"][0]["top"]] == [{"id", "token", "logprob"}] * 2
    assert "logprobs" not in events(shared.post(**BODY).text)[-1]["data"]


def test_cut_at_every_event_the_joined_text_is_the_same(shared: Running) -> None:
    """LESSONS 14. The server keeps nothing: only the id and the body say where to go on."""
    body: dict[str, Any] = {**BODY, "echo": True, "logprobs": True}
    found = events(shared.post(**body).text)
    for cut in range(len(found) - 1):
        rest = events(shared.post(**body, headers={"Last-Event-ID": found[cut]["id"]}).text)
        assert joined(found[: cut + 1]) + joined(rest) == found[-1]["data"]["text"]
        again = rest[-1]["data"]
        assert {k: v for k, v in again.items() if k not in ("id", "timings")} == {
            k: v for k, v in found[-1]["data"].items() if k not in ("id", "timings")
        }


def test_resume_at_every_index_also_between_events(shared: Running) -> None:
    found = events(shared.post(**BODY).text)
    stem, text = found[0]["id"].rpartition(".")[0], found[-1]["data"]["text"]
    for index in range(101):
        rest = events(shared.post(**BODY, headers={"Last-Event-ID": f"{stem}.{index}"}).text)
        assert joined(rest) == text[index:]
    assert [e["event"] for e in rest] == ["end"], "nothing left to send: end at once"


def test_resume_refusals(serve: Serve) -> None:
    server = serve()
    event_id = events(server.post(**BODY).text)[0]["id"]
    stem, checkpoint, digest, _ = event_id.rsplit(".", 3)

    def status(id: str, **more: object) -> tuple[int, str]:
        answer = server.post(**{**BODY, **more}, headers={"Last-Event-ID": id})
        return answer.status_code, answer.json()["error"]["code"]

    assert status(event_id, prompt="JULIET:") == (409, "resume_mismatch")
    assert status(event_id, temperature=0.5) == (409, "resume_mismatch")
    assert status(event_id, echo=True) == (409, "resume_mismatch")
    assert status(event_id, seed=None) == (422, "invalid_request")
    assert status(event_id, stream=False) == (422, "invalid_request")
    assert status(f"{stem}.{checkpoint}.{digest}.101") == (422, "invalid_request")
    for garbage in ("x", "", "-1", f"{stem}.{checkpoint}.{digest}.-1", f"{stem}.{checkpoint}.{digest}.01", "a" * 5000):
        assert status(garbage) == (422, "invalid_request")
    assert status(f"{stem}.{'0' * 12}.{digest}.7") == (410, "checkpoint_gone")
    assert server.post(**{**BODY, "timeout_s": 5, "checkpoint": None}, headers={"Last-Event-ID": event_id}).status_code == 200


def test_resume_runs_on_the_streams_own_checkpoint(serve: Serve) -> None:
    """LESSONS 51: streams mixed old and new weights. A promoted checkpoint changes neither text nor id."""
    server = serve()
    found = events(server.post(**BODY).text)
    server.engine.loaded = (fake_checkpoint("b"), *server.engine.loaded)
    rest = server.post(**BODY, headers={"Last-Event-ID": found[3]["id"]})
    assert joined(found[:4]) + joined(events(rest.text)) == found[-1]["data"]["text"]
    assert rest.headers["x-checkpoint"] == server.engine.loaded[1].id
    assert server.post(**BODY, stream=False).json()["text"] != found[-1]["data"]["text"]
    named = server.post(**BODY, stream=False, checkpoint=server.engine.loaded[1].id)
    assert named.json()["text"] == found[-1]["data"]["text"]
    assert server.post(**BODY, checkpoint="sha256:" + "0" * 64).status_code == 410


def test_resume_on_another_kind_of_machine_is_refused(serve: Serve) -> None:
    """The same checkpoint with another fingerprint may give other bytes."""
    server = serve()
    event_id = events(server.post(**BODY).text)[0]["id"]
    server.engine.loaded = (replace(server.engine.loaded[0], fingerprint="other"),)
    assert server.post(**BODY, headers={"Last-Event-ID": event_id}).status_code == 409


@pytest.mark.parametrize(
    ("failure", "status", "code", "retryable"),
    [
        (EngineError("gone"), 503, "engine_failed", True),
        (EngineStopping("ending"), 503, "shutting_down", True),
        (QueueTimeout("too long"), 504, "queue_timeout", True),
        (ZeroDivisionError("secret"), 500, "internal_error", False),
    ],
)
def test_a_failure_within_is_an_event_or_a_status(serve: Serve, failure: Exception, status: int, code: str, retryable: bool) -> None:
    """LESSONS 18, 19, 21: a failed stream ended as if it were whole. Exactly one ending, and never [DONE] after an error."""
    server = serve(FakeEngine(failure=failure))
    for fail_at in (0, 7, 49, 98):
        server.engine.fail_at = fail_at
        found = events(server.post(**BODY).text)
        assert [e.get("event") for e in found].count("error") == 1
        assert found[-1]["event"] == "error"
        assert found[-1]["data"]["error"]["code"] == code
        assert found[-1]["data"]["index"] == fail_at == len(joined(found[:-1]))
        assert found[-1]["data"]["retryable"] is retryable
        assert "secret" not in str(found)
        answer = server.post(**BODY, stream=False)
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert ("retry-after" in answer.headers) == (status == 503)
        openai = server.post("/v1/completions", prompt="x", max_tokens=100, stream=True).text
        assert "[DONE]" not in openai
        assert events(openai)[-1]["data"]["error"]["code"] == code
    wait_for(lambda: server.metric("folio_request_refused_total", code=code) == 12)
    assert server.metric("folio_requests_cancelled_total", where="shutdown") == (12 if code == "shutting_down" else 0)


def test_a_full_queue_is_429_before_any_stream_opens(serve: Serve) -> None:
    """LESSONS 16, 18: a refusal came as 200 with an error inside, which clients took for an empty success."""
    server = serve(FakeEngine(capacity=0))
    for path in ("/generate", "/v1/completions"):
        for stream in (True, False):
            answer = server.post(path, prompt="x", stream=stream)
            assert answer.status_code == 429
            assert answer.json()["error"]["code"] == "queue_full"
            assert answer.headers["retry-after"] == "3"


@pytest.mark.parametrize(
    ("state", "status", "code"), [("loading", 503, "loading"), ("failed", 503, "engine_failed"), ("stopping", 503, "shutting_down")]
)
def test_no_checkpoint_yet_or_any_more(serve: Serve, state: str, status: int, code: str) -> None:
    server = serve(FakeEngine(state=state, loaded=()))
    for path in ("/generate", "/v1/completions"):
        answer = server.post(path, prompt="x")
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert int(answer.headers["retry-after"]) >= 1


def test_silent_streams_get_comments_also_while_queued(serve: Serve) -> None:
    """LESSONS 15: proxies cut streams that were silent for a minute."""
    hold = asyncio.Event()
    server = serve(FakeEngine(hold=hold), keep_alive_s=0.05)
    with server.http.stream("POST", "/generate", json=BODY) as answer:
        chunks = answer.iter_raw()
        assert next(chunks) == next(chunks) == b": keep-alive\n"
        server.call(hold.set)
        text = b"".join(chunks).decode()
    assert joined(events(text)) == events(text)[-1]["data"]["text"]


def test_logprobs_beyond_one_answers_size_are_refused(serve: Serve) -> None:
    """LESSONS 34: a request of 155 bytes asked for megabytes of log-probabilities."""
    server = serve(max_new_tokens=1_000_000)
    answer = server.post(prompt="x", max_new_tokens=1_000_000, logprobs=True, top_logprobs=65)
    assert answer.status_code == 422
    answer = server.post("/v1/completions", prompt=["x"] * 32, n=8, max_tokens=4096, logprobs=65)
    assert answer.status_code == 400


def test_an_event_loop_that_streams_still_answers_probes(serve: Serve) -> None:
    """LESSONS 36, 37: a probe timed out while the server was busy."""
    server = serve(FakeEngine(delay=0.001, burst=2), max_new_tokens=100_000)
    with (
        httpx.Client(base_url=server.url, trust_env=False) as busy,
        busy.stream("POST", "/generate", json={**BODY, "max_new_tokens": 100_000}),
    ):
        assert {server.http.get("/healthz").status_code for _ in range(20)} == {200}
        assert server.engine.streams, "they were answered after the stream, not beside it"
