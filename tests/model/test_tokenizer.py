import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.tokenizer import CharTokenizer, TokenizerError, UnknownCharacterError


@given(st.text(min_size=1))
def test_text_survives_encoding(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert set(ids) == set(range(tokenizer.vocab_size))


@given(st.text(min_size=1))
def test_a_tokenizer_survives_json(text: str) -> None:
    tokenizer = CharTokenizer.from_text(text)
    again = CharTokenizer.from_json(json.loads(json.dumps(tokenizer.to_json())))
    assert again.characters == tokenizer.characters
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
        None,
        [],
        {},
        {"kind": "bpe", "characters": ["a"]},
        {"kind": "char", "characters": []},
        {"kind": "char", "characters": ["a", "a"]},
        {"kind": "char", "characters": ["ab"]},
        {"kind": "char", "characters": [""]},
        {"kind": "char", "characters": [1]},
        {"kind": "char", "characters": "ab"},
        {"kind": "char", "characters": ["\ud800"]},
    ],
)
def test_a_bad_file_is_refused(data: object) -> None:
    with pytest.raises(TokenizerError):
        CharTokenizer.from_json(data)


def test_an_empty_text_has_no_vocabulary() -> None:
    with pytest.raises(TokenizerError):
        CharTokenizer.from_text("")
