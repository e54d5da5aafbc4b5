"""The event loop never computes for long: the worst bodies that a limit of 1 MiB leaves, sent to every route."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute

from tests.service.running import Running
from tests.service.slices import LoopWatch

LIMIT = 1 << 20
FREEZE_S = 0.05
"""Of the loop's own processor time, so that other work on the machine does not count."""
KEY, ADMIN = "the-key", "the-admin-key"


def filled(begin: str, item: str, end: str = "]}", separator: str = ",") -> bytes:
    """As many items as fit."""
    room = LIMIT - len(begin.encode()) - len(end.encode())
    return (begin + separator.join([item] * (room // (len(item.encode()) + len(separator)))) + end).encode()


def keys(count: int, value: str, begin: str, end: str, last: str = "") -> bytes:
    """An object of many keys."""
    return (begin + ",".join(f'"{i}":{value}' for i in range(count)) + last + end).encode()[:LIMIT]


WORST: dict[str, bytes] = {
    "a key given twice, after many": keys(80_000, "0", "{", "}", last=',"z":0,"z":0'),
    "unknown fields": keys(90_000, "0", '{"prompt":"R",', "}"),
    "wrong biases": keys(90_000, "9e9", '{"prompt":"R","logit_bias":{', "}}"),
    "biases": keys(90_000, "1", '{"prompt":"R","logit_bias":{', "}}"),
    "biases in words": keys(80_000, '"x"', '{"prompt":"R","logit_bias":{', "}}"),
    "negative ids": filled('{"prompt":[[', "-1", "]]}"),
    "prompts of negative ids": filled('{"prompt":[', "[" + ",".join(["-1"] * 9_000) + "]"),
    "ids": filled('{"max_tokens":1,"prompt":[', "1"),
    "prompts of ids": filled('{"max_tokens":1,"prompt":[', "[" + ",".join(["1"] * 16_000) + "]"),
    "prompts": filled('{"max_tokens":1,"prompt":[', '"' + "R" * 65_000 + '"'),
    "prompts of what is not known": filled('{"max_tokens":1,"prompt":[', json.dumps("\u03a9" * 10_000)),
    "a prompt of what is dropped": json.dumps({"prompt": "\u03a9R" * 32_000, "on_unknown": "drop", "max_tokens": 1}).encode(),
    "prompts of the wrong kind": filled('{"prompt":[', "null"),
    "stops": filled('{"prompt":"R","stop":[', '"s"'),
    "empty objects": filled('{"prompt":[', "{}"),
    "objects": filled('{"prompt":[', '{"a":0}'),
    "lists in lists": filled('{"prompt":[', "[" * 900 + "]" * 900),
    "too deep": b'{"prompt":' + b"[" * (LIMIT - 10),
    "escapes": filled('{"prompt":"', "\\u0052", '"}', separator=""),
    "half of a pair": filled('{"prompt":"', "\\ud800", '"}', separator=""),
    "a long number": b'{"prompt":"R","seed":' + b"9" * (LIMIT - 30) + b"}",
    "a long fraction": b'{"prompt":"R","top_p":0.' + b"9" * (LIMIT - 30) + b"}",
    "an unknown field's long name": b'{"prompt":"R","' + b"x" * (LIMIT - 30) + b'":0}',
    "a long name of a model": b'{"prompt":"R","model":"' + b"x" * (LIMIT - 30) + b'"}',
    "a long id": b'{"checkpoint":"' + b"x" * (LIMIT - 30) + b'"}',
    "messages": filled('{"messages":[', '{"role":"user","content":"R"}'),
    "wrong messages": filled('{"messages":[', '{"role":0}'),
    "no end": b'{"prompt":"' + b"R" * (LIMIT - 20),
    "no UTF-8 at the end": b'{"prompt":"' + b"R" * (LIMIT - 20) + b'\xff"}',
    "blanks": b'{"prompt":"R","max_tokens":1,"max_new_tokens":1' + b" " * (LIMIT - 60) + b"}",
    "nothing but letters": b"x" * LIMIT,
}


@pytest.fixture(scope="module")
def keyed() -> Iterator[Running]:
    server = Running(api_keys=KEY, admin_key=ADMIN)
    yield server
    server.stop()


def routes(server: Running) -> list[tuple[str, str]]:
    """Every route that there is, and one that there is not."""
    found = [(next(iter(r.methods or ())), r.path) for r in server.app.routes if isinstance(r, APIRoute) and r.methods != {"HEAD"}]
    return [*found, ("POST", "/nope")]


def send(server: Running, method: str, path: str, key: str | None, body: bytes) -> float:
    """Seconds that the event loop computed without a pause."""
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
    with LoopWatch(server.loop) as watch:
        answer = server.http.request(method, path.replace("{", "").replace("}", ""), content=body, headers=headers)
    assert answer.status_code < 500, (method, path, answer.text[:500])
    return watch.slowest_s


@pytest.mark.parametrize("name", WORST)
def test_no_body_holds_the_event_loop_up(keyed: Running, name: str) -> None:
    """One of them held every other client up for 24 s."""
    body = WORST[name]
    assert LIMIT / 2 < len(body) <= LIMIT or "dropped" in name
    parsed = [(method, path) for method, path in routes(keyed) if method not in ("GET", "DELETE")]
    slowest = {(m, path): send(keyed, m, path, ADMIN if path.startswith("/admin") else KEY, body) for m, path in parsed}
    assert not {which: seconds for which, seconds in slowest.items() if seconds > FREEZE_S}


@pytest.mark.parametrize("key", [None, ADMIN])
def test_nor_where_nobody_asked_for_one(keyed: Running, key: str | None) -> None:
    """Without a key, and on routes that take no body."""
    body = WORST["objects"]
    chosen = [(method, path) for method, path in routes(keyed) if key is None or method in ("GET", "DELETE")]
    slowest = {(method, path): send(keyed, method, path, key, body) for method, path in chosen}
    assert not {which: seconds for which, seconds in slowest.items() if seconds > FREEZE_S}
