import json

import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import bpe
from model.tokenizer.base import Detokenizer, Tokenizer, TokenizerError, UnknownCharacterError
from model.tokenizer.bpe import BPETokenizer
from model.tokenizer.byte import ByteTokenizer
from model.tokenizer.char import CharTokenizer
from model.tokenizer.load import tokenizer_from_json

SAMPLE = "the théâtre, the thé — 中文 中文 🙂🙂\n\n  the end\r\n" * 20
BPE = BPETokenizer.from_text(SAMPLE, 280)
BYTE = ByteTokenizer()
VALID = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.text(min_size=1))
def test_text_survives_encoding(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(tokenizer.vocab_size))


@given(st.text(min_size=1))
def test_a_tokenizer_survives_json(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.texts == tokenizer.texts
    assert again.encode(text) == tokenizer.encode(text)


@given(st.text(min_size=1), st.text())
def test_unknown_characters_are_named_with_their_offsets(text: str, other: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    expected: dict[str, list[int]] = {}
    for offset, character in enumerate(other):
        if character not in text:
            expected.setdefault(character, []).append(offset)
    assert tokenizer.unknown(other) == expected
    if expected:
        with pytest.raises(UnknownCharacterError) as caught:
            tokenizer.encode(other)
        assert caught.value.characters == expected


def test_the_message_names_characters_and_offsets() -> None:
    with pytest.raises(UnknownCharacterError, match=r"'x' at 1, 3; '\\u20ac' at 4|'x' at 1, 3, '\\u20ac' at 4"):
        CharTokenizer.from_text("ab").encode("axbx€")


def test_combining_characters_stay_as_they_are() -> None:
    """é as one code point and as two are different texts: nothing is normalised."""
    tokenizer = CharTokenizer.from_text("e\u0301")
    assert tokenizer.unknown("\u00e9") == {"\u00e9": [0]}


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"kind": 1, "characters": ["a"]},
        {"kind": "words", "characters": ["a"]},
        {"kind": "bpe", "characters": ["a"]},
        {"kind": "bpe", "tokenizer": {}},
        {"kind": "bpe", "tokenizer": None},
        {"kind": "char"},
        {"kind": "char", "characters": []},
        {"kind": "char", "characters": ["a", "a"]},
        {"kind": "char", "characters": ["ab"]},
        {"kind": "char", "characters": [""]},
        {"kind": "char", "characters": [1]},
        {"kind": "char", "characters": "ab"},
        {"kind": "char", "characters": ["\ud800"]},
    ],
)
def test_a_bad_file_is_refused(data: dict[str, object]) -> None:
    with pytest.raises(TokenizerError):
        tokenizer_from_json(data)


def test_an_empty_text_has_no_vocabulary() -> None:
    with pytest.raises(TokenizerError):
        CharTokenizer.from_text("")


# Bytes and BPE


def test_bpe_has_the_size_that_was_asked_for_and_learns_the_same_each_time() -> None:
    assert BPE.vocab_size == 280
    assert BPETokenizer.from_text(SAMPLE, 280).to_json() == BPE.to_json()
    assert len(BPE.encode(SAMPLE)) < len(SAMPLE.encode()) / 2
    assert BPETokenizer.from_text("ab", 300).vocab_size == 257  # one pair is all there is
    with pytest.raises(TokenizerError, match="255 are too few"):
        BPETokenizer.from_text(SAMPLE, 255)


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
@given(VALID)
def test_any_text_survives_bytes_and_bpe(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.unknown(text) == {}
    assert b"".join(tokenizer.tokens[i] for i in ids) == text.encode()
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert (again.kind, again.encode(text), again.tokens) == (tokenizer.kind, ids, tokenizer.tokens)


@pytest.mark.parametrize("tokenizer", [BYTE, BPE], ids=["byte", "bpe"])
def test_half_of_a_character_is_the_one_thing_unknown(tokenizer: Tokenizer) -> None:
    with pytest.raises(UnknownCharacterError) as caught:
        tokenizer.encode("a\ud800b\ud800")
    assert caught.value.characters == {"\ud800": [1, 3]}


@given(st.text(st.sampled_from("ab \n\té'1"), max_size=60))
def test_a_long_text_is_encoded_in_parts_as_if_it_were_one(text: str) -> None:
    whole, before = BPE.encode(text), bpe.SLICE
    try:
        for bpe.SLICE in (1, 5, 17):
            assert BPE.encode(text) == whole
    finally:
        bpe.SLICE = before


def test_tokens_that_are_no_text_have_names_of_their_own() -> None:
    assert BYTE.texts[0xC3] == "bytes:\\xc3"
    assert BYTE.texts[ord("a")] == "a"
    for tokenizer in (BYTE, BPE):
        assert [tokenizer.ids[text] for text in tokenizer.texts] == list(range(tokenizer.vocab_size))


def test_the_first_token_of_a_text() -> None:
    assert (BYTE.first("\n"), BYTE.first(""), CharTokenizer("ab").first("\n"), CharTokenizer("ab").first("b")) == (10, 0, 0, 1)


def changed(**parts: object) -> dict[str, object]:
    """The BPE's file with other parts."""
    return {"kind": "bpe", "tokenizer": BPE.to_json()["tokenizer"] | parts}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(normalizer={"type": "Lowercase"}), "changes the text"),
        (changed(normalizer={"type": "NFKC"}), "changes the text"),
        (changed(pre_tokenizer={"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True}), "changes the text"),
        (changed(pre_tokenizer=None), "changes the text"),
        (changed(model={"type": "BPE", "vocab": {"a": 0, "b": 2}, "merges": []}), "has no token 1"),
        (changed(model={"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []}), "no token for the byte 0x00"),
        (changed(model={"type": "WordLevel", "vocab": {"a word": 0}, "unk_token": "a word"}), "not byte-level"),
    ],
)
def test_a_bpe_that_would_change_its_text_is_refused(data: dict[str, object], message: str) -> None:
    with pytest.raises(TokenizerError, match=message):
        tokenizer_from_json(data)


def test_what_another_program_left_in_the_file_changes_nothing() -> None:
    """Truncation and padding belong to training classifiers."""
    library = tokenizers.Tokenizer.from_str(json.dumps(BPE.to_json()["tokenizer"]))
    library.enable_truncation(4)
    library.enable_padding(length=8)
    tokenizer = tokenizer_from_json({"kind": "bpe", "tokenizer": json.loads(library.to_str())})
    assert tokenizer.encode(SAMPLE) == BPE.encode(SAMPLE)


# Text as it comes

RANDOM = st.lists(st.one_of(st.integers(0, 255), st.sampled_from([0xC3, 0xA9, 0xE4, 0xB8, 0xAD, 0xF0, 0x9F, 0x99, 0x82])), max_size=40)


@given(RANDOM, st.integers(1, 5))
def test_a_stream_of_bytes_becomes_the_text_of_all_of_them(ids: list[int], step: int) -> None:
    """And nothing that was handed out ever changes: what is whole stays, what is not is one character further on."""
    detokenizer, text, ends = Detokenizer(BYTE), "", list[int]()
    for first in range(0, len(ids), step):
        for piece, is_whole in detokenizer.feed(ids[first : first + step]):
            text += piece
            ends.append(len(text) + (not is_whole))
            assert BYTE.decode(ids[: len(ends)]).startswith(text)
    text += detokenizer.flush()
    assert text == BYTE.decode(ids)
    assert all(end <= len(text) for end in ends)
    assert [len(BYTE.decode(ids[:count])) for count in range(1, len(ids) + 1)] == ends


@given(VALID)
def test_no_half_of_a_character_is_ever_handed_out(text: str) -> None:
    detokenizer = Detokenizer(BYTE)
    pieces = [piece for piece, _ in detokenizer.feed(BYTE.encode(text))]
    assert [piece for piece in pieces if piece] == list(text)
    assert detokenizer.flush() == ""
