"""Files of texts: the same bytes however often the batch is killed, from a server or without one."""

from __future__ import annotations

import json
import os
import pty
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.checkpoints import Catalogue
from tests.support.server import ROOT, Server, environment
from tests.support.wait import LIMIT_S

LINES = 60


@pytest.fixture
def source(tmp_path: Path, catalogue: Catalogue) -> Path:
    """Lines of every kind; some cannot be answered."""
    lines: list[object] = [{"prompt": "a", "max_new_tokens": 5 + i % 40, "id": f"line {i}"} for i in range(LINES)]
    lines[3] = "b"
    lines[4] = {"prompt": "a", "temperature": -1}
    lines[5] = [1, 2]
    lines[6] = {"prompt": "a", "seed": 7, "logprobs": True, "top_logprobs": 2, "max_new_tokens": 3}
    body = {"prompt": "a", "max_tokens": 9, "n": 2}
    lines[7] = {"custom_id": "x", "method": "POST", "url": "/v1/completions", "body": body}
    lines[8] = {"custom_id": "y", "method": "POST", "url": "/v1/files", "body": body}
    lines[9] = {"custom_id": "z", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a", "max_tokens": -1}}
    chat = {"messages": [{"role": "user", "content": "a b"}], "max_tokens": 7, "seed": 3, "logprobs": True}
    lines[10] = {"custom_id": "c", "method": "POST", "url": "/v1/chat/completions", "body": chat}
    lines[11] = {"custom_id": "g", "method": "GET", "url": "/v1/completions", "body": body}
    lines[13] = {"custom_id": "l", "url": ["/v1/completions"], "body": body}
    lines[12] = {"custom_id": "n", "url": "/v1/chat/completions"}
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n\n{not json\n")
    return path


def command(source: Path, target: Path, *flags: str) -> list[str]:
    program = "from service.client import main; raise SystemExit(main())"
    return [sys.executable, "-c", program, "--input", str(source), "--output", str(target), "--concurrency", "4", *flags]


def run(source: Path, target: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    line = command(source, target, *flags)
    return subprocess.run(line, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False)


def test_each_line_is_answered_in_order_with_the_text_of_its_request(source: Path, server: Server, tmp_path: Path) -> None:
    target = tmp_path / "texts.jsonl"
    done = run(source, target, "--url", server.url)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert len(lines) == LINES + 1
    assert lines[0]["text"] == server.text(prompt="a", max_new_tokens=5, seed=1)
    assert (lines[0]["id"], lines[0]["seed"], lines[0]["line"]) == ("line 0", 1, 1)
    assert lines[3]["text"] == server.text(prompt="b", seed=4)
    assert [len(lines[6]["logprobs"]), lines[6]["seed"]] == [3, 7]
    for number in (4, 5, LINES):
        assert "text" not in lines[number]
        assert lines[number]["error"]["message"]
    assert [lines[n]["response"]["status_code"] for n in (7, 8, 9)] == [200, 400, 400]
    assert [lines[n]["custom_id"] for n in (7, 8, 9)] == ["x", "y", "z"]
    texts = [choice["text"] for choice in lines[7]["response"]["body"]["choices"]]
    assert texts == [server.text(prompt="a", max_new_tokens=9, seed=seed) for seed in (8, 9)]
    chat = lines[10]["response"]["body"]
    assert chat["choices"][0]["message"]["content"] == server.text(prompt="a b", max_new_tokens=7, seed=3)
    assert (chat["object"], chat["id"][:9], chat["folio"]) == ("chat.completion", "chatcmpl-", {"template": "joined"})
    messages = [lines[n]["response"]["body"]["error"]["message"] for n in (8, 11, 12, 13)]
    assert messages == [
        'url: "/v1/files" is not answered in a batch, only /v1/completions and /v1/chat/completions',
        'method: "GET" is not what /v1/completions takes, only POST',
        "body: a JSON object is missing, as POST /v1/chat/completions takes it",
        'url: ["/v1/completions"] is not answered in a batch, only /v1/completions and /v1/chat/completions',
    ]


def test_the_bar_is_for_a_terminal_alone(source: Path, server: Server, tmp_path: Path) -> None:
    done = run(source, tmp_path / "piped.jsonl", "--url", server.url)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")
    leader, follower = pty.openpty()
    try:
        line = command(source, tmp_path / "seen.jsonl", "--url", server.url)
        subprocess.run(line, cwd=ROOT, env=environment(), stderr=follower, stdout=follower, timeout=LIMIT_S, check=True)
        shown = ""
        while not shown.endswith("\n"):
            shown += os.read(leader, 1 << 16).decode()
    finally:
        os.close(leader)
        os.close(follower)
    assert shown.startswith(f"\r[{'':30}] 0 of {LINES + 1} texts\r[")
    assert shown.endswith(f"\r[{'#' * 30}] {LINES + 1} of {LINES + 1} texts\r\n")


def test_a_batch_killed_at_any_moment_ends_in_the_same_bytes(source: Path, server: Server, catalogue: Catalogue, tmp_path: Path) -> None:
    whole, broken, local = (tmp_path / name for name in ("whole", "broken", "local"))
    assert run(source, whole, "--url", server.url).returncode == 0
    rng = random.Random(7)
    before = b""
    for size in sorted(rng.sample(range(1, whole.stat().st_size), 5)):
        process = subprocess.Popen(command(source, broken, "--url", server.url), cwd=ROOT, env=environment(), stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + LIMIT_S
        while process.poll() is None and (not broken.exists() or broken.stat().st_size < size) and time.monotonic() < deadline:
            time.sleep(0.001)
        process.kill()
        process.wait()
        with broken.open("r+b") as file:  # as if the kill had come within a write
            file.truncate(max(len(before), file.seek(0, 2) - rng.randrange(30)))
        after = broken.read_bytes()
        assert after.startswith(before), "a finished line has changed"
        before = after[: after.rfind(b"\n") + 1]
    assert run(source, broken, "--url", server.url).returncode == 0
    assert broken.read_bytes() == whole.read_bytes()
    done = run(source, local, "--checkpoint", str(catalogue.path("a")))
    assert done.returncode == 0, done.stderr
    assert local.read_bytes() == whole.read_bytes()


def test_an_output_of_something_else_is_left_alone(source: Path, server: Server, catalogue: Catalogue, tmp_path: Path) -> None:
    target, other = tmp_path / "texts.jsonl", tmp_path / "other.jsonl"
    assert run(source, target, "--url", server.url).returncode == 0
    before = target.read_bytes()
    other.write_text('{"prompt": "a", "max_new_tokens": 1, "id": "another"}\n')
    done = run(other, target, "--url", server.url)
    assert done.returncode == 1
    assert "not of this input" in done.stderr
    done = run(source, target, "--checkpoint", str(catalogue.path("b")))
    assert done.returncode == 1
    assert "give another --output" in done.stderr
    assert target.read_bytes() == before


def test_what_cannot_begin_says_why(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "texts.jsonl"
    for flags, word in (
        (("--url", "http://127.0.0.1:9"), "connection"),
        (("--checkpoint", str(tmp_path)), "manifest.json"),
    ):
        done = run(source, target, *flags)
        assert done.returncode == 1
        assert word in done.stderr
        assert "Traceback" not in done.stderr
    done = run(tmp_path / "missing.jsonl", target)
    assert done.returncode == 1
    assert "missing.jsonl" in done.stderr
