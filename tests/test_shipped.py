"""The checkpoint that ships, and what the README promises of it: real process, real sockets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from model import load_checkpoint
from model.checkpoint.files import read_checkpoint
from model.draft import FILE as DRAFT
from model.exact.digests import answers_of, known_answers
from model.exact.network import ExactModel
from tests.support.events import events, joined
from tests.support.server import ServerProcess
from tests.support.wait import LIMIT_S, wait_for
from training.data import SHA256

ROOT = Path(__file__).resolve().parents[1]
PRETRAINED = ROOT / "model" / "pretrained"
MAX_BYTES, MAX_DRAFT_BYTES = 9 << 20, 3 << 20


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """The service as a user starts it, on a free port."""
    server = ServerProcess("-m", "service", "--port", "0")
    yield server.url
    assert server.end() == 0
    server.close()


def read_stream(url: str, body: dict[str, object]) -> tuple[str, dict[str, Any]]:
    """(the joined text of a stream, its end event's data)."""
    answer = httpx.post(f"{url}/generate", json=body, timeout=LIMIT_S, trust_env=False)
    assert answer.status_code == 200
    found = events(answer.text)
    assert found[-1]["event"] == "end"
    return joined(found), found[-1]["data"]


def test_it_is_small_and_says_where_it_comes_from() -> None:
    sizes = {path.name: path.stat().st_size for path in PRETRAINED.iterdir()}
    assert sizes.pop(DRAFT) <= MAX_DRAFT_BYTES
    assert sum(sizes.values()) <= MAX_BYTES
    checkpoint = load_checkpoint(PRETRAINED)
    config, manifest = checkpoint.config, checkpoint.manifest
    assert (config.n_layer, config.n_head, config.n_embd, config.block_size, config.head_size) == (5, 6, 256, 256, 42)
    assert config.num_parameters == 4_023_873
    assert manifest["data"]["sha256"] == SHA256
    assert manifest["val_loss"] <= (1.50 if "NVIDIA" in manifest["device"] else 1.60)
    assert {"seed", "steps", "train_loss", "curve", "versions", "device", "wall_time_s", "git_commit"} <= set(manifest)


def test_its_known_answers_are_the_references() -> None:
    """A checkpoint without digests makes every start slower: the reference would be asked then."""
    checkpoint = read_checkpoint(PRETRAINED)
    answers = known_answers(checkpoint.selftest, checkpoint.config)
    assert answers is not None
    assert answers == answers_of(ExactModel(checkpoint.config, checkpoint.tensors), answers.tokens)


@pytest.mark.skipif("FOLIO_DATA" not in os.environ, reason="FOLIO_DATA names no copy of Tiny Shakespeare")
def test_its_loss_is_what_its_manifest_says() -> None:
    done = subprocess.run([sys.executable, "-m", "training", "eval", str(PRETRAINED)], cwd=ROOT, capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["same_text"]
    assert result["val_loss"] == pytest.approx(result["manifest_val_loss"], abs=2e-5)


def test_the_curl_line_of_the_readme(url: str) -> None:
    """500 characters as events, the same as one JSON, the same again."""
    body = {"prompt": "ROMEO:", "max_new_tokens": 500, "seed": 7}
    text, end = read_stream(url, body)
    assert len(text) == 500
    assert end["text"] == text
    assert end["finish_reason"] == "length"
    whole = httpx.post(f"{url}/generate", json={**body, "stream": False}, timeout=LIMIT_S, trust_env=False).json()
    assert whole["text"] == text
    assert whole["text_sha256"] == end["text_sha256"]
    assert read_stream(url, body)[0] == text


def test_text_may_be_longer_than_the_context(url: str) -> None:
    for context in ("anchored", "sliding"):
        length = 4096 if context == "anchored" else 400
        text, end = read_stream(url, {"prompt": "", "max_new_tokens": length, "seed": 1, "context": context})
        assert len(text) == length
        assert end["usage"] == {"prompt_tokens": 0, "completion_tokens": length, "total_tokens": length}


def test_a_client_that_leaves_stops_its_generation(url: str) -> None:
    with httpx.stream("POST", f"{url}/generate", json={"prompt": "", "max_new_tokens": 4096, "seed": 1}, trust_env=False) as answer:
        next(answer.iter_raw())
    wait_for(lambda: httpx.get(f"{url}/info", trust_env=False).json()["engine"]["running"] == 0, "it still runs")
