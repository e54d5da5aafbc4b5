"""LESSONS' "Bad inputs to try": each × stream on and off × both routes has exactly one status and code, never 500.

What the server would wait for in vain would be a 408, so that a status here also says that it did not wait.
"""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from tests.service.running import Running, request

PATHS = ("/generate", "/v1/completions")
OK = (200, "")
INVALID = (422, "invalid_request")
BAD_REQUEST = (400, "invalid_request")
UNKNOWN = (422, "unknown_characters")
NOT_JSON = (400, "invalid_json")
WRONG_TYPE = (415, "unsupported_media_type")

both = pytest.mark.parametrize("path", PATHS)
on_and_off = pytest.mark.parametrize("stream", [True, False])


def under(path: str, expected: tuple[int, str]) -> tuple[int, str]:
    """What a route says where the native one says ``expected``: OpenAI has no 422."""
    return (400, expected[1]) if path.startswith("/v1") and expected[0] == 422 else expected


def outcome(server: Running, data: bytes) -> tuple[tuple[int, str], dict[str, Any]]:
    """Status and code of what the server answers to these bytes, and the error."""
    answer = server.raw(data)
    if answer.status == 200:
        return OK, {}
    error = json.loads(answer.body)["error"]
    return (answer.status, error["code"]), error


BODIES: dict[str, tuple[bytes, tuple[int, str]]] = {
    "empty": (b"", NOT_JSON),
    "null": (b"null", INVALID),
    "list": (b"[]", INVALID),
    "string": (b'"x"', INVALID),
    "number": (b"42", INVALID),
    "truncated": (b'{"prompt": "RO', NOT_JSON),
    "trailing garbage": (b'{"prompt": "R"} x', NOT_JSON),
    "two objects": (b'{"prompt": "R"}{"prompt": "R"}', NOT_JSON),
    "duplicate keys": (b'{"prompt": "R", "seed": 1, "seed": 2}', INVALID),
    "duplicate keys deep": (b'{"prompt": "R", "logit_bias": {"a": 1, "a": 2}}', INVALID),
    "deep": (b'{"prompt": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", NOT_JSON),
    "deep objects": (b'{"prompt": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_000 + b"}", NOT_JSON),
    "UTF-16": ('{"prompt": "R"}'.encode("utf-16"), NOT_JSON),
    "UTF-16 without a mark": ('{"prompt": "R"}'.encode("utf-16-le"), NOT_JSON),
    "UTF-32": ('{"prompt": "R"}'.encode("utf-32"), NOT_JSON),
    "byte order mark": (b"\xef\xbb\xbf" + b'{"prompt": "R"}', NOT_JSON),
    "invalid UTF-8": (b'{"prompt": "\xff"}', NOT_JSON),
    "gzip without a header": (gzip.compress(b'{"prompt": "R"}'), NOT_JSON),
    "control character": (b'{"prompt": "a\x00b"}', NOT_JSON),
    "long number": (b'{"prompt": "R", "seed": ' + b"9" * 5000 + b"}", INVALID),
}


@both
@pytest.mark.parametrize("name", BODIES)
def test_body(shared: Running, name: str, path: str) -> None:
    data, expected = BODIES[name]
    assert outcome(shared, request(data, path))[0] == under(path, expected)


TYPES: dict[str, tuple[str, tuple[int, str]]] = {
    "none": ("", WRONG_TYPE),
    "text": ("Content-Type: text/plain\r\n", WRONG_TYPE),
    "form": ("Content-Type: application/x-www-form-urlencoded\r\n", WRONG_TYPE),
    "twice": ("Content-Type: application/json\r\nContent-Type: application/json\r\n", WRONG_TYPE),
    "latin-1": ("Content-Type: application/json; charset=latin-1\r\n", WRONG_TYPE),
    "utf-8": ("Content-Type: application/json; charset=UTF-8\r\n", OK),
    "upper case": ("CONTENT-TYPE: Application/JSON\r\n", OK),
    "gzip": ("Content-Type: application/json\r\nContent-Encoding: gzip\r\n", WRONG_TYPE),
}


@both
@pytest.mark.parametrize("name", TYPES)
def test_content_type(shared: Running, name: str, path: str) -> None:
    header, expected = TYPES[name]
    body = gzip.compress(b'{"prompt": "R"}') if name == "gzip" else b'{"prompt": "R"}'
    data = f"POST {path} HTTP/1.1\r\nHost: localhost\r\n{header}Content-Length: {len(body)}\r\n\r\n".encode() + body
    if expected == OK:
        data = data.replace(b'"}', b'", "stream": false}').replace(b"Content-Length: 15", b"Content-Length: 32")
    assert outcome(shared, data)[0] == under(path, expected)


FRAMING: dict[str, tuple[str, tuple[int, str]]] = {
    "negative length": ("Content-Length: -1\r\n\r\n{}", (400, "invalid_http")),
    "length in words": ("Content-Length: two\r\n\r\n{}", (400, "invalid_http")),
    "two lengths": ("Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", (400, "invalid_http")),
    "length and chunks": ("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", (400, "invalid_http")),
    "huge length": ("Content-Length: 99999999999999999999999\r\n\r\n{}", (400, "invalid_http")),
    "short length": ("Content-Length: 1\r\n\r\n{}", NOT_JSON),
    "bad chunk": ("Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", (400, "invalid_http")),
    "chunks": ('Transfer-Encoding: chunked\r\n\r\n2\r\n{"\r\n5\r\na": 1\r\n1\r\n}\r\n0\r\n\r\n', (422, "unknown_field")),
    "expects 100": ("Expect: 100-continue\r\nContent-Length: 2\r\n\r\n{}", (100, "")),
    "line folded header": ("X-A: a\r\n b\r\nContent-Length: 2\r\n\r\n{}", (400, "invalid_http")),
    "space before the colon": ("X-A : a\r\nContent-Length: 2\r\n\r\n{}", (400, "invalid_http")),
    "upgrade": (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\nContent-Length: 2\r\n\r\n{}",
        (422, "invalid_request"),
    ),
}


@both
@pytest.mark.parametrize("name", FRAMING)
def test_framing(shared: Running, name: str, path: str) -> None:
    rest, expected = FRAMING[name]
    data = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{rest}".encode()
    if name == "expects 100":
        with shared.connect() as sock:
            sock.sendall(data)
            assert sock.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        return
    assert outcome(shared, data)[0] == under(path, expected)


PROMPTS: dict[str, tuple[Any, tuple[int, str]]] = {
    "null": (None, INVALID),
    "number": (5, INVALID),
    "object": ({}, INVALID),
    "empty": ("", OK),
    "space": (" ", OK),
    "NUL": ("\0", UNKNOWN),
    "lone surrogate": ("\ud800", INVALID),
    "surrogate in the wrong order": ("a\udc00\ud800", INVALID),
    "emoji": ("😀", OK),
    "another emoji": ("🎭", UNKNOWN),
    "NFC": ("\u00e9", OK),
    "NFD": ("e\u0301", UNKNOWN),
    "64 Ki - 1": ("a" * 65_535, OK),
    "64 Ki": ("a" * 65_536, OK),
    "64 Ki + 1": ("a" * 65_537, INVALID),
    "only unknown": ("日本語", UNKNOWN),
    "block_size - 1": ("a" * 63, OK),
    "block_size": ("a" * 64, OK),
    "block_size + 1": ("a" * 65, OK),
    "right to left": ("שלום", UNKNOWN),
    "line ends": ("a\r\nb", OK),
    "U+2028": ("\u2028", OK),
    "looks like SSE": ("data: x\n\nevent: end", OK),
}


@both
@on_and_off
@pytest.mark.parametrize("name", PROMPTS)
def test_prompt(shared: Running, name: str, path: str, stream: bool) -> None:
    prompt, expected = PROMPTS[name]
    found, error = outcome(shared, request({"prompt": prompt, "stream": stream, **short(path)}, path, extra="Connection: close\r\n"))
    assert found == under(path, expected)
    assert expected == OK or error["param"] == "prompt"


def test_prompt_missing_or_list(shared: Running) -> None:
    for path in PATHS:
        found, error = outcome(shared, request({}, path))
        assert (found, error["param"]) == (under(path, INVALID), "prompt")
    assert outcome(shared, request({"prompt": ["a"]}))[0] == INVALID
    prompts: list[list[Any]] = [[], [[]], [True], [1.0], [-1], [10**30], [75], ["a", 1], [[1], 2], ["\ud800"], ["a"] * 33, [["a"]]]
    for prompt in prompts:
        found, error = outcome(shared, request({"prompt": prompt}, "/v1/completions"))
        assert (found, error["param"]) == (BAD_REQUEST, "prompt"), prompt


def short(path: str) -> dict[str, int]:
    return {"max_new_tokens": 2} if path == "/generate" else {"max_tokens": 2}


HUGE = [2**31, 2**53, 2**53 + 1, 2**63, 2**64]
NOT_NUMBERS = ["NaN", "Infinity", "-Infinity", "1e400", '"1"', "true", "[]", "{}"]
RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "temperature": ([0, -0.0, 1, 5, 5.0, 1e-320], [-1, 5.000001, -1e-9, 1e308, *HUGE]),
    "top_k": ([0, 1, 75, 76, *HUGE], [-1, 1.0, 1e308, -0.0]),
    "top_p": ([1e-320, 0.5, 1, 1.0], [0, -0.0, -1, 1.0000001, 1e308, *HUGE]),
    "min_p": ([0, -0.0, 1e-320, 1, 1.0], [-1, 1.0000001, 1e308, *HUGE]),
    "repetition_penalty": ([1e-320, 1, 10], [0, -0.0, -1, 10.1, 1e308, *HUGE]),
    "frequency_penalty": ([-2, -0.0, 0, 2], [-2.1, 2.1, 1e308, *HUGE]),
    "presence_penalty": ([-2, 0, 2], [-2.1, 2.1, 1e308, *HUGE]),
    "seed": ([0, 1, 2**31, 2**53 - 1], [-1, 2**53, 2**53 + 1, 2**63, 2**64, 1.0, -0.0, 1e308]),
    "timeout_s": ([1e-3, 1, 86_400], [0, -1, 86_401, 1e308, *HUGE]),
    "max_tokens": ([1, 4096], [-1, 0, 4097, *HUGE, 1.0, 1e308]),
}
NATIVE_RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "max_new_tokens": ([1, 4096], [-1, 0, 4097, *HUGE, 1.0, 1e308, None]),
    "top_logprobs": ([0], [-1, 66, 2**63, 1.0, None]),
}
LENIENT_RANGES: dict[str, tuple[list[Any], list[Any]]] = {
    "top_k": ([-1, 0, 1, 76, -0.0, 1.0, *HUGE], [-2, 1.5]),
    "seed": ([-(2**63), -1, 0, 2**53, 2**63 - 1, 7.0], [2**63, -(2**63) - 1, 2**64, 7.5, 1e308]),
    "max_tokens": ([0, 1, 4096, 16.0], [-1, 4097, *HUGE, 1.5, 1e308]),
    "n": ([1, 8, 1.0], [-1, 0, 9, 2**31, 2**63, 1_000_000, 1.5]),
    "best_of": ([1, 1.0], [-1, 0, 2, 9, 2**63, 1.5]),
    "logprobs": ([0, 65, 5.0, False], [-1, 66, 2**63, 1.5]),
}
"""What OpenAI takes and the native route does not: integers with a point, any seed of 64 bits, vLLM's -1 for no top_k."""
FIELDS = {"/generate": RANGES | NATIVE_RANGES, "/v1/completions": RANGES | LENIENT_RANGES}


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, fields in FIELDS.items() for name in fields])
def test_numbers(shared: Running, name: str, path: str) -> None:
    """LESSONS 41: one request with n = 1,000,000 took vLLM down."""
    good, bad = FIELDS[path][name]
    for stream in (True, False):
        base = {"prompt": "R", "stream": stream, **(short(path) if name not in ("max_tokens", "max_new_tokens") else {})}
        for value in good:
            assert shared.post(path, **{**base, name: value}).status_code == 200, value
        texts = [json.dumps(value) for value in bad] + NOT_NUMBERS
        for text in texts:
            data = json.dumps({**base, name: "@"}).replace('"@"', text).encode()
            found, error = outcome(shared, request(data, path))
            assert (found, error["param"]) == (under(path, INVALID), name), text


def test_null_only_where_the_default_is_null(shared: Running) -> None:
    nullable = {"max_tokens", "seed", "context", "checkpoint"}
    for name in shared.http.get("/openapi.json").json()["components"]["schemas"]["GenerateBody"]["properties"]:
        found = outcome(shared, request({"prompt": "R", name: None}, extra="Connection: close\r\n"))[0]
        assert found == (OK if name in nullable else INVALID), name


@both
def test_the_openai_package_may_send_nulls(shared: Running, path: str) -> None:
    names = ("temperature", "top_p", "n", "stop", "seed", "suffix", "user", "logprobs", "echo", "best_of", "logit_bias", "stream")
    answer = shared.post("/v1/completions", prompt="R", **dict.fromkeys(names))
    assert answer.status_code == 200
    assert shared.post("/v1/completions", prompt="R", temprature=None).json()["error"]["code"] == "unknown_field"


COMBINATIONS: dict[str, tuple[dict[str, Any], tuple[int, str]]] = {
    "greedy with top_p": ({"temperature": 0, "top_p": 0.5}, OK),
    "top_k above the vocabulary": ({"top_k": 1000}, OK),
    "min_p 1": ({"min_p": 1}, OK),
    "stop is the prompt": ({"stop": "R"}, OK),
    "stop empty in a list": ({"stop": ["a", ""]}, INVALID),
    "stop number": ({"stop": 5}, INVALID),
    "8 stops": ({"stop": ["x"] * 8}, OK),
    "9 stops": ({"stop": ["x"] * 9}, INVALID),
    "stop of 128": ({"stop": "x" * 128}, OK),
    "stop of 129": ({"stop": "x" * 129}, INVALID),
    "overlapping stops": ({"stop": ["aa", "aab"]}, OK),
    "stop the model cannot say": ({"stop": "日"}, OK),
    "stop with a lone surrogate": ({"stop": "\ud800"}, INVALID),
    "inputs": ({"inputs": "x"}, (422, "unknown_field")),
    "regex": ({"regex": "(a+)+$"}, (422, "unknown_field")),
    "temprature": ({"temprature": 1}, (422, "unknown_field")),
    "__proto__": ({"__proto__": {}}, (422, "unknown_field")),
    "constructor": ({"constructor": {}}, (422, "unknown_field")),
    "unknown key with escapes": ({"\x1b[31m\r\n": 1}, (422, "unknown_field")),
    "unknown key with a lone surrogate": ({"\ud800": 1}, INVALID),
    "echo in words": ({"echo": "yes"}, INVALID),
    "echo 1": ({"echo": 1}, INVALID),
    "context": ({"context": "both"}, INVALID),
    "on_unknown": ({"on_unknown": "ignore"}, INVALID),
    "bias unknown token": ({"logit_bias": {"日": 1}}, INVALID),
    "bias out of range": ({"logit_bias": {"a": 101}}, INVALID),
    "bias list": ({"logit_bias": [1]}, INVALID),
}


@both
@on_and_off
@pytest.mark.parametrize("name", COMBINATIONS)
def test_combinations(shared: Running, name: str, path: str, stream: bool) -> None:
    fields, expected = COMBINATIONS[name]
    body = {"prompt": "R", "stream": stream, **short(path), **fields}
    found, error = outcome(shared, request(body, path, extra="Connection: close\r\n"))
    assert found == under(path, expected)
    if expected == (422, "unknown_field"):
        assert error["param"].isascii()
        assert error["param"].isprintable()


def test_combinations_of_one_route(shared: Running) -> None:
    tokens = shared.engine.loaded[0].tokenizer.texts
    banned = shared.post(prompt="R", logit_bias=dict.fromkeys(tokens, -100), max_new_tokens=2)
    assert banned.status_code == 200, "every token banned alike is no ban"
    assert shared.post(prompt="R", top_logprobs=1).json()["error"]["param"] == "top_logprobs"
    assert shared.post(prompt="R", max_tokens=1, max_new_tokens=1).json()["error"]["param"] == "max_tokens"
    v1 = "/v1/completions"
    assert shared.post(v1, prompt="R", suffix="x").json()["error"]["param"] == "suffix"
    assert shared.post(v1, prompt="R", n=2, stream=True, max_tokens=2).status_code == 200
    assert shared.post(v1, prompt="R", best_of=2).json()["error"]["param"] == "best_of"
    assert shared.post(v1, prompt="R", stream_options={"include_usage": True}).status_code == 200, "it says nothing without stream"
    assert shared.post(v1, prompt="R", echo=True, logprobs=1).status_code == 200
    assert shared.post(prompt="R", stop="").json()["error"]["param"] == "stop.0"
    assert shared.post(v1, prompt="R", stop="", suffix="").status_code == 200
    assert shared.post(v1, prompt="R", model="gpt-4").status_code == 404
    for key in ("-1", "75", "1.0", "a", "٣", "01", " 1", "9" * 30):
        assert shared.post(v1, prompt="R", logit_bias={key: 1}).json()["error"]["param"] == "logit_bias"


HEADERS: dict[str, tuple[str, int]] = {
    "accept an image": ("Accept: image/png", 200),
    "host garbage": ("Host: \x7f", 400),
    "host twice": ("Host: localhost", 400),
    "origin null": ("Origin: null", 200),
    "request id with a path": ("X-Request-Id: ../../etc", 200),
    "request id with escapes": ("X-Request-Id: \x1b[31mred", 400),
    "request id of 10 KB": ("X-Request-Id: " + "a" * 10_000, 200),
    "request id twice": ("X-Request-Id: a\r\nX-Request-Id: b", 200),
    "bytes beyond ASCII": ("X-Other: \xe9", 200),
    "last event id": ("Last-Event-ID: \xe9", 422),
}


@both
@pytest.mark.parametrize("name", HEADERS)
def test_headers(shared: Running, name: str, path: str) -> None:
    line, expected = HEADERS[name]
    if name == "last event id" and path == "/v1/completions":
        expected = 200  # nothing resumes there
    answer = shared.raw(request({"prompt": "R", "seed": 1, "stream": True}, path, extra=f"{line}\r\nConnection: close\r\n"))
    assert answer.status == expected
    if expected == 200 and name.startswith("request id"):
        assert len(answer.headers["x-request-id"]) == 32
