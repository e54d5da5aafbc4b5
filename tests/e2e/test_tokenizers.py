"""Bytes and BPE over HTTP: any text goes in, no half of a character comes out, and a cut stream goes on as ever."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

from model.checkpoint.files import read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer.base import Tokenizer
from model.tokenizer.bpe import BPETokenizer
from model.tokenizer.byte import ByteTokenizer
from tests.e2e.conftest import Start
from tests.e2e.wire import fetch, run, stream, together
from tests.support.server import Server
from training.__main__ import main

TEXT = "the théâtre, the thé — 中文 中文 🙂🙂\n\n  the end\r\n" * 20
PROMPT = "É 🙂\u2028中"
LIKELY = {r"bytes:\xc3": 6, r"bytes:\xa9": 6, r"bytes:\xf0": 5, r"bytes:\x9f": 6, r"bytes:\x99": 5, r"bytes:\x82": 5, "a": 4}
"""So that characters are begun, finished and broken off."""
BODIES: list[dict[str, Any]] = [
    {"prompt": PROMPT, "max_new_tokens": 80, "seed": 1, "logit_bias": LIKELY},
    {"prompt": "", "max_new_tokens": 70, "seed": 2, "logit_bias": LIKELY, "echo": True, "context": "sliding"},
    {"prompt": PROMPT, "max_new_tokens": 60, "seed": 3},
    {"prompt": PROMPT, "max_new_tokens": 400, "seed": 4, "logit_bias": LIKELY, "stop": ["éé", "\ufffd\ufffd\ufffda"]},
    {"prompt": PROMPT, "max_new_tokens": 1, "seed": 5, "logit_bias": {r"bytes:\xc3": 100}},
]


def random_checkpoint(path: Path, tokenizer: Tokenizer) -> Tokenizer:
    torch.manual_seed(3)
    model = GPT(GPTConfig(vocab_size=tokenizer.vocab_size, block_size=32, n_layer=2, n_head=3, n_embd=32, dropout=0.0)).eval()
    write_checkpoint(path, checkpoint_files(model, tokenizer, list(range(100))), {})
    return tokenizer


Case = tuple[Server, Tokenizer]


@pytest.fixture(scope="module", params=["byte", "bpe"])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    path = tmp_path_factory.mktemp("tokens") / request.param
    tokenizer = random_checkpoint(path, ByteTokenizer() if request.param == "byte" else BPETokenizer.from_text(TEXT, 280))
    server = Server(path)
    yield server, tokenizer
    server.close()


@pytest.mark.parametrize("body", BODIES, ids=["plain", "echo", "unbiased", "stops", "half"])
def test_streams_are_the_text_of_all_their_tokens(case: Case, body: dict[str, Any]) -> None:
    """Streamed, as JSON and through /v1, beside each other, and cut at every event."""
    server, tokenizer = case

    async def one() -> None:
        whole = await stream(server, body)
        assert whole.end is not None
        reply = await fetch(server, {**body, "stream": False, "logprobs": True})
        assert reply["text"] == whole.end["text"] == whole.text
        ids = [each["id"] for each in reply["logprobs"]]
        text = whole.text.removeprefix(body["prompt"] if body.get("echo") else "")
        if reply["finish_reason"] == "length":
            assert text == tokenizer.decode(ids)
            assert len(ids) == body["max_new_tokens"]
        else:
            assert tokenizer.decode(ids).startswith(text[: len(tokenizer.decode(ids))])
            assert not any(stop in text for stop in body["stop"])
        assert [each["token"] for each in reply["logprobs"]] == [tokenizer.texts[id] for id in ids]
        assert reply["usage"]["prompt_tokens"] == len(tokenizer.encode(body["prompt"]))
        for event, length in zip(whole.ids, whole.lengths, strict=True):
            rest = await stream(server, body, {"Last-Event-ID": event})
            assert rest.text == whole.text[length:]

    async def several() -> None:
        await together(one(), one(), one())

    run(several())


def test_no_text_is_unknown_but_half_a_character(case: Case) -> None:
    server, tokenizer = case
    assert server.post(prompt="日本語 Ω ﬁ \x00", max_new_tokens=3).status_code == 200
    surrogate = json.dumps({"prompt": "a\ud800", "max_new_tokens": 3, "on_unknown": "drop"})
    refused = server.http.post("/generate", content=surrogate, headers={"Content-Type": "application/json"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (422, "prompt")
    info = server.http.get("/info").json()["model"]
    assert (info["tokenizer"], info["vocabulary"], info["vocab_size"]) == (tokenizer.kind, None, tokenizer.vocab_size)


def test_openai_lists_tokens_and_where_they_begin(case: Case) -> None:
    server, tokenizer = case
    body = {
        "prompt": PROMPT,
        "max_tokens": 40,
        "seed": 3,
        "logprobs": 3,
        "logit_bias": {str(tokenizer.ids[k]): v for k, v in LIKELY.items()},
    }
    choice = server.http.post("/v1/completions", json=body).json()["choices"][0]
    logprobs = choice["logprobs"]
    assert len(logprobs["tokens"]) == len(logprobs["text_offset"]) == 40
    best = zip(logprobs["tokens"], logprobs["top_logprobs"], strict=True)
    assert all(token in top and len(top) in (3, 4) for token, top in best), "the sampled one stands beside the best"
    for text, offset in zip(logprobs["tokens"], logprobs["text_offset"], strict=True):
        assert text.startswith("bytes:") or choice["text"][offset:].startswith(text)
    ids = [tokenizer.ids[text] for text in logprobs["tokens"]]
    assert tokenizer.decode(ids) == choice["text"]
    as_ids = server.http.post("/v1/completions", json={**body, "prompt": tokenizer.encode(PROMPT)}).json()["choices"][0]
    assert as_ids["text"] == choice["text"]


@pytest.mark.filterwarnings("ignore")  # of the library under test
def test_a_gpt2_of_hugging_face_is_served(tmp_path: Path, start: Start) -> None:
    """What `transformers` continues greedily with is what the service answers, character for character."""
    transformers = pytest.importorskip("transformers")
    library = tokenizers.Tokenizer.from_str(json.dumps(BPETokenizer.from_text(TEXT, 280).to_json()["tokenizer"]))
    library.add_special_tokens(["<|endoftext|>"])
    sizes = {"n_positions": 64, "n_embd": 24, "n_layer": 2, "n_head": 3, "bos_token_id": 280, "eos_token_id": 280}
    torch.manual_seed(5)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=281, **sizes)).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    theirs.save_pretrained(tmp_path / "hf")
    library.save(str(tmp_path / "hf" / "tokenizer.json"))
    assert main(["import", str(tmp_path / "hf"), str(tmp_path / "gpt2")]) == 0
    assert read_checkpoint(tmp_path / "gpt2").start == 280
    prompt = torch.tensor([library.encode(PROMPT).ids])
    ids = theirs.generate(prompt, do_sample=False, max_new_tokens=40, eos_token_id=None, pad_token_id=0)[0, prompt.shape[1] :].tolist()
    server = Server(tmp_path / "gpt2")
    try:
        expected = BPETokenizer(library).decode(ids)
        assert server.text(prompt=PROMPT, max_new_tokens=40, temperature=0) == expected
        assert server.post(prompt="", max_new_tokens=4, temperature=0, stream=False).status_code == 200
        assert server.post(prompt="<|endoftext|>", max_new_tokens=1, stream=False).json()["usage"]["prompt_tokens"] == 1
    finally:
        server.close()
