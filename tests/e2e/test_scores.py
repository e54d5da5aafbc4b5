"""The log-probabilities of prompts, by a real worker: those that generating them would have had, and what the model gives at each place."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.server import Server

TEXT_CHARACTERS = 80


def completion(server: Server, **fields: Any) -> dict[str, Any]:
    answer = server.post("/v1/completions", **fields)
    assert answer.status_code == 200, answer.text
    choice: dict[str, Any] = answer.json()["choices"][0]
    return choice


@pytest.mark.parametrize("max_tokens", [0, 5])
def test_a_text_scores_as_it_was_generated(server: Server, max_tokens: int) -> None:
    """Longer than the context, so that the window has moved: prompt and output are one text to the model."""
    written = completion(server, prompt="a", max_tokens=TEXT_CHARACTERS, seed=3, logprobs=2)
    text = "a" + written["text"]
    scored = completion(server, prompt=text, max_tokens=max_tokens, echo=True, logprobs=2, seed=1)
    assert scored["text"].startswith(text)
    assert len(scored["text"]) == len(text) + max_tokens
    assert scored["logprobs"]["token_logprobs"][0] is None
    end = 1 + TEXT_CHARACTERS
    assert scored["logprobs"]["token_logprobs"][1:end] == written["logprobs"]["token_logprobs"]
    assert scored["logprobs"]["top_logprobs"][1:end] == written["logprobs"]["top_logprobs"]
    assert scored["logprobs"]["text_offset"] == list(range(end + max_tokens))
