"""Receipts: a text is checked by the arithmetic, by another process, without the server that wrote it."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import Catalogue
from tests.support.server import ROOT, Server, environment
from tests.support.wait import LIMIT_S

LENGTH = 120


def ask(server: Server, **body: Any) -> dict[str, Any]:
    reply: dict[str, Any] = server.post(prompt="abc", max_new_tokens=LENGTH, receipt=True, stream=False, **body).json()
    return reply


def verdict(server: Server, receipt: Any, text: str | None = None) -> dict[str, Any]:
    body: dict[str, Any] = {"receipt": receipt} | ({} if text is None else {"text": text})
    answer = server.post("/verify", **body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def random_body(rng: random.Random) -> dict[str, Any]:
    body: dict[str, Any] = {"seed": rng.randrange(2**53), "temperature": rng.choice([0, 0.5, 1, 1.7])}
    options: list[dict[str, Any]] = [
        {"top_k": rng.randrange(1, 9)},
        {"top_p": rng.uniform(0.3, 1)},
        {"min_p": rng.uniform(0, 0.3)},
        {"repetition_penalty": rng.uniform(0.8, 1.5)},
        {"frequency_penalty": rng.uniform(-1, 1), "presence_penalty": rng.uniform(-1, 1)},
        {"logit_bias": {"a": rng.uniform(-5, 5), "\n": -2}},
        {"stop": ["ab", "ji"]},
        {"echo": True},
        {"context": "sliding", "max_new_tokens": 50},
        {"generated": "bcd"},
    ]
    for option in rng.sample(options, rng.randrange(4)):
        body |= option
    return body


def test_no_false_alarm_with_any_parameter(server: Server) -> None:
    rng = random.Random(5)
    for _ in range(30):
        body: dict[str, Any] = {"prompt": "abc", "max_new_tokens": LENGTH, "receipt": True, "stream": False}
        body |= random_body(rng)
        reply = server.post(**body).json()
        tokens = reply["receipt"]["tokens"]
        for text in (reply["text"], None):
            assert verdict(server, reply["receipt"], text) == {"valid": True, "tokens": tokens, "reason": ""}, body


def test_every_changed_character_is_found_where_it_is(server: Server) -> None:
    reply = ask(server, seed=3)
    text = reply["text"]
    for at in range(len(text)):
        other = "a" if text[at] != "a" else "b"
        found = verdict(server, reply["receipt"], text[:at] + other + text[at + 1 :])
        assert (found["valid"], found["at"]) == (False, at)
        assert (found["expected"][0], found["found"][0]) == (text[at], other)
    assert verdict(server, reply["receipt"], text[:-1])["at"] == len(text) - 1
    assert verdict(server, reply["receipt"], text + "a")["at"] == len(text)
    assert verdict(server, reply["receipt"], "é" + text)["at"] == 0


def test_a_changed_receipt_is_found(server: Server) -> None:
    reply = ask(server, seed=4)
    changes: list[tuple[str, Any]] = [("seed", 5), ("prompt", "abd"), ("temperature", 0.5), ("max_new_tokens", LENGTH - 1)]
    for name, value in changes:
        receipt = copy.deepcopy(reply["receipt"])
        receipt["request"][name] = value
        assert verdict(server, receipt, reply["text"])["valid"] is False
        assert verdict(server, receipt)["valid"] is False
    for change in ({"text_sha256": "0" * 64}, {"tokens": 3}):
        assert verdict(server, reply["receipt"] | change, reply["text"])["valid"] is False


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"request": {}}, 422),
        ({"request": None}, 422),
        ({"request": {"prompt": "a", "seed": None}}, 422),
        ({"checkpoint": "sha256:0"}, 410),
        ({"arithmetic": 2}, 422),
        ({"fingerprint": "0"}, 422),
        ({"text_sha256": 5}, 422),
    ],
)
def test_what_is_no_receipt_is_refused(server: Server, change: dict[str, Any], status: int) -> None:
    reply = ask(server, seed=5)
    answer = server.post("/verify", receipt=reply["receipt"] | change)
    assert answer.status_code == status, answer.text
    assert answer.json()["error"]["message"]


def test_without_receipt_there_is_none_and_a_stream_has_it_at_its_end(server: Server) -> None:
    reply = ask(server, seed=6)
    assert "receipt" not in server.post(prompt="abc", seed=6, stream=False).json()
    streamed = server.post(prompt="abc", max_new_tokens=LENGTH, receipt=True, seed=6).text
    end = json.loads(streamed.rpartition("event: end\ndata: ")[2])
    assert end["receipt"] == reply["receipt"]


def verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.client.check_receipt", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_signed_and_checked_by_others(start: Any, catalogue: Catalogue, tmp_path: Path) -> None:
    """The signature says who, the arithmetic whether: on another machine, from the checkpoint alone."""
    from model.checkpoint.signature import new_private_key

    new_private_key(tmp_path / "key.pem")
    server = start("--receipt-key", str(tmp_path / "key.pem"))
    reply = ask(server, seed=7)
    file, text = tmp_path / "reply.json", tmp_path / "text.txt"
    file.write_text(json.dumps(reply))
    for where in (("--url", server.url), ("--checkpoint", str(catalogue.path("a")))):
        done = verify(str(file), *where)
        assert (done.returncode, done.stdout) == (0, f"valid: {LENGTH} tokens\n"), done.stderr
    text.write_text(reply["text"][:50] + "!" + reply["text"][51:])
    done = verify(str(file), "--text", str(text), "--checkpoint", str(catalogue.path("a")))
    assert done.returncode == 1
    assert "differs from character 50" in done.stdout
    for change in ({"tokens": LENGTH, "text_sha256": "0" * 64}, {"extra": 1}):
        file.write_text(json.dumps(reply | {"receipt": reply["receipt"] | change}))
        done = verify(str(file), "--url", server.url)
        assert (done.returncode, "signature" in done.stdout) == (1, True), done.stdout + done.stderr
    done = verify(str(tmp_path / "missing.json"))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
