"""No body costs the event loop more than a moment, and no request more memory than was agreed, whatever is in them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from model.tokenizer.byte import ByteTokenizer
from service.api.generation import MAX_HELD_LOGPROBS
from tests.service.fakes import FakeEngine
from tests.service.running import Running
from tests.service.slices import LoopWatch
from tests.support.wait import wait_for

Serve = Callable[..., Running]
MIB = (1 << 20) - 64
PATHS = ("/generate", "/v1/completions", "/v1/chat/completions", "/admin/promote", "/tokenize", "/detokenize")
FREEZE_S = 0.05
"""Of the loop's own processor time, so that other work on the machine does not count. Before, it was 0.6 to 24 s."""


def repeated_key() -> bytes:
    """Looking for the repeated one was quadratic: 24 s for a third of this."""
    names = ", ".join(f'"{number:x}": 0' for number in range(MIB // 13))
    return f'{{{names}, "0": 0}}'.encode()


def many(name: str, entry: str, brackets: str = "[]") -> bytes:
    """A field with as many equal entries as fit."""
    inside = ",".join([entry] * ((MIB - len(name)) // (len(entry) + 1)))
    return f'{{"prompt": "R", "messages": [], "{name}": {brackets[0]}{inside}{brackets[1]}}}'.encode()


def entries(value: str) -> str:
    return ",".join(f'"{number}": {value}' for number in range(MIB // (len(value) + 12)))


BODIES: dict[str, bytes] = {
    "a key given twice": repeated_key(),
    "unknown fields": f'{{"prompt": "R", {entries("0")}}}'.encode(),
    "bad addends": f'{{"prompt": "R", "messages": [], "logit_bias": {{{entries("1000")}}}}}'.encode(),
    "good addends": f'{{"prompt": "R", "messages": [], "logit_bias": {{{entries("1")}}}}}'.encode(),
    "bad ids in many prompts": json.dumps({"prompt": [[-1] + [1] * 9_000] * 32}).encode(),
    "many ids": json.dumps({"prompt": [[1] * 10_000] * 32, "tokens": [1] * 300_000}).encode(),
    "long prompts": json.dumps({"prompt": ["a" * 65_536] * 15, "max_tokens": 1}).encode(),
    "a long prompt": json.dumps({"prompt": "a" * 1_000_000}).encode(),
    "many stops": many("stop", '"x"'),
    "bad stops": many("stop", "0"),
    "bad messages": many("messages", "0"),
    "empty objects": many("messages", "{}"),
    "parts": f'{{"messages": [{{"role": "user", "content": [{",".join(["{}"] * 300_000)}]}}]}}'.encode(),
    "unknown stream options": f'{{"prompt": "R", "messages": [], "stream_options": {{{entries("0")}}}}}'.encode(),
    "numbers": b"[" + b"1," * (MIB // 2 - 2) + b"1]",
    "long numbers": b'{"seed": ' + b"9" * (MIB - 20) + b"}",
    "brackets": b"[" * MIB,
    "not UTF-8": b'{"prompt": "' + b"\xff" * (MIB - 20) + b'"}',
    "escapes": b'{"prompt": "' + rb"\ud83d\ude00" * (MIB // 12 - 20) + b'"}',
}


@pytest.fixture(scope="module")
def knows_everything() -> Iterator[Running]:
    """A server whose model knows every character, so that nothing is refused for its letters."""
    engine = FakeEngine()
    tokenizer = ByteTokenizer()
    engine.loaded = (replace(engine.loaded[0], tokenizer=tokenizer, vocab_size=tokenizer.vocab_size),)
    server = Running(engine, admin_key="admin")
    yield server
    server.stop()


@pytest.mark.parametrize("name", BODIES)
def test_the_loop_answers_beside_the_worst_bodies(knows_everything: Running, name: str) -> None:
    """The work for a body was done on the loop, and for each thing that was wrong an error was built of which one was shown."""
    server = knows_everything
    headers = {"Authorization": "Bearer admin", "Content-Type": "application/json", "Accept": "application/json"}
    for path in PATHS:
        with LoopWatch(server.loop) as watch:
            answer = server.http.post(path, content=BODIES[name], headers=headers, timeout=60)
        assert answer.status_code < 500, (path, answer.text[:200])
        assert watch.slowest_s < FREEZE_S, path


def test_log_probabilities_have_one_budget(serve: Serve) -> None:
    """Each of 320 texts might come to 36 MB of them in the API process."""
    hold = asyncio.Event()
    server = serve(FakeEngine(hold=hold))
    body: dict[str, Any] = {"prompt": "R", "max_tokens": 4096, "logprobs": 65, "stream": True}
    streams = [server.http.stream("POST", "/v1/completions", json=body) for _ in range(MAX_HELD_LOGPROBS // (4096 * 66))]
    for stream in streams:
        assert stream.__enter__().status_code == 200
    refused = server.post("/v1/completions", **body)
    assert (refused.status_code, refused.json()["error"]["param"]) == (429, "logprobs")
    assert int(refused.headers["retry-after"]) >= 1
    with server.http.stream("POST", "/v1/completions", json={"prompt": "R", "stream": True}) as other:
        assert other.status_code == 200, "those without are served"
    for stream in streams:
        stream.__exit__(None, None, None)
    wait_for(lambda: server.app.state.service.held_logprobs == 0)


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty"])
def test_tiny_factors_act_as_their_neighbours_do(shared: Running, name: str) -> None:
    """A logit over 1e-310 is infinite, and what was written then was newlines for ever."""
    texts = set()
    for value in (1e-6, 1e-7, 1e-300, 5e-324):
        body: dict[str, Any] = {"prompt": "R", "seed": 7, "stream": False, name: value}
        texts.add(shared.post(**body).json()["text"])
    assert len(texts) == 1
    assert all(stream.request.params.temperature >= 1e-6 for stream in shared.engine.submitted)
    assert all(stream.request.params.repetition_penalty >= 1e-6 for stream in shared.engine.submitted)
