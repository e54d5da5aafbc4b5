"""What a checkpoint says of its own logits: true for any way of computing them, and false for any other bit."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.checkpoint.files import read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.checkpoint.manifest import CheckpointError
from model.config import GPTConfig
from model.exact.digests import NAMES, NUM_TOKENS, KnownAnswers, answers_of, from_cases, known_answers
from model.exact.network import Cache, ExactModel
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer
from tests.model.random_models import calm_model

CONFIG = GPTConfig(vocab_size=11, block_size=30, n_layer=2, n_head=3, n_embd=16)
TEXT = [i * i % 11 for i in range(90)]


@pytest.fixture(scope="module")
def model() -> ExactModel:
    return ExactModel(CONFIG, calm_model(CONFIG).tensors)


@pytest.fixture(scope="module")
def answers(model: ExactModel) -> KnownAnswers:
    return answers_of(model, TEXT)


def one_by_one(model: ExactModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    """(N, V) logits, each token a pass of its own."""
    cache = Cache(model.config)
    return np.concatenate([model.logits(model.hidden(np.array([[token]]), cache))[0] for token in tokens])


@pytest.mark.parametrize("name", NAMES)
def test_the_digests_are_those_of_the_logits_however_they_are_computed(model: ExactModel, answers: KnownAnswers, name: str) -> None:
    passes: dict[str, list[Sequence[int]]] = {
        "text": [answers.tokens[i : i + 30] for i in range(0, NUM_TOKENS, 30)],
        "moved": [answers.tokens[104:134]],
        "start": [TEXT[:4]],
    }
    logits = np.concatenate([one_by_one(model, tokens) for tokens in passes[name]])
    assert hashlib.sha256(logits.tobytes()).hexdigest() == answers.digests[name]
    assert answers.digest(name, lambda tokens: one_by_one(model, tokens)) == answers.digests[name]


def test_one_bit_makes_another_digest(model: ExactModel, answers: KnownAnswers) -> None:
    def wrong(tokens: Sequence[int]) -> NDArray[np.float32]:
        logits = one_by_one(model, tokens)
        logits[-1, 3] = np.nextafter(logits[-1, 3], np.float32(9))
        return logits

    assert all(answers.digest(name, wrong) != answers.digests[name] for name in NAMES)


def test_a_short_text_is_repeated(answers: KnownAnswers) -> None:
    assert len(answers.tokens) == NUM_TOKENS >= 200
    assert list(answers.tokens) == (TEXT * 3)[:NUM_TOKENS]


def test_json_keeps_them(answers: KnownAnswers) -> None:
    assert known_answers(answers.to_json(), CONFIG) == answers


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arithmetic": 2}, "arithmetic 2, this version computes in 1"),
        ({"tokens": []}, "list of known tokens"),
        ({"tokens": [11]}, "list of known tokens"),
        ({"tokens": [True]}, "list of known tokens"),
        ({"digests": []}, "digests text, moved, start"),
        ({"digests": {"text": "00"}}, "digests text, moved, start"),
        ({"digests": {"text": "00", "moved": "00", "start": 5}}, "digests text, moved, start"),
    ],
)
def test_what_is_no_self_test_is_refused(answers: KnownAnswers, change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        known_answers({**answers.to_json(), **change}, CONFIG)


@pytest.mark.parametrize("selftest", [{}, {"cases": 5}, {"cases": [5, {"prompt": "x"}, {"prompt": [99]}]}, {"cases": [{"prompt": TEXT}]}])
def test_a_checkpoint_of_before_gets_answers_of_64_tokens(model: ExactModel, selftest: dict[str, Any]) -> None:
    assert known_answers(selftest, CONFIG) is None
    found = from_cases(model, selftest)
    assert len(found.tokens) == 64
    assert found.digest("text", lambda tokens: one_by_one(model, tokens)) == found.digests["text"]
    assert list(found.tokens[:5]) == (TEXT[:5] if selftest.get("cases") == [{"prompt": TEXT}] else [0] * 5)


def test_a_saved_checkpoint_holds_the_answers_of_the_stored_weights(tmp_path: Path) -> None:
    tokenizer = CharTokenizer("abcdefghijk")
    write_checkpoint(tmp_path / "c", checkpoint_files(GPT(CONFIG), tokenizer, TEXT), {})
    checkpoint = read_checkpoint(tmp_path / "c")
    assert known_answers(checkpoint.selftest, CONFIG) == answers_of(ExactModel(CONFIG, checkpoint.tensors), TEXT)


@pytest.mark.parametrize(("value", "message"), [(float("nan"), "not finite"), (70_000.0, "magnitude 70000, at most 65536")])
def test_weights_that_cannot_be_served_are_not_saved(value: float, message: str) -> None:
    model = GPT(CONFIG)
    model.lm_head.bias.data[2] = value
    with pytest.raises(CheckpointError, match=message):
        checkpoint_files(model, CharTokenizer("abcdefghijk"), TEXT)
