"""The types of bodies' fields, and checks that end at the first thing that is wrong: pydantic would build an error for each."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, FailFast, Field, PlainValidator

from model.params import SamplingParams

MAX_PROMPT_CHARACTERS = 65_536
MAX_STOPS = 8
MAX_STOP_CHARACTERS = 128
MAX_TOP_LOGPROBS = 65
MAX_CHOICES_PER_PROMPT = 8
MAX_PROMPTS = 32
MAX_MESSAGES = 1024
MAX_CHAT_TOP_LOGPROBS = 20
MAX_TIMEOUT_S = 86_400.0
DEFAULT_MAX_TOKENS = SamplingParams().max_new_tokens
UNKNOWN_FIELD = "unknown_field"


def shown(name: str) -> str:
    """A client's name for something, made harmless and short."""
    return name[:64].encode("unicode_escape").decode("ascii")


def check_text(text: str) -> None:
    """Raises ValueError for half of a surrogate pair, which no UTF-8 can hold."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"character {error.start} is half of a surrogate pair") from None


def one_or_many(value: object) -> object:
    """A single stop string counts as a list of one."""
    return [value] if isinstance(value, str) else value


def check_bias(value: object) -> object:
    """Ends at the first bad entry: pydantic would build an error for each of a hundred thousand. Raises ValueError."""
    if isinstance(value, dict):
        check_text("".join(value))
        for name, addend in value.items():
            if type(addend) not in (int, float) or not -100 <= addend <= 100:
                raise ValueError(f"{shown(name)!r} needs a number from -100 to 100")
    return value


def check_token_ids(value: list[Any]) -> None:
    """Raises ValueError for what is no token id of any vocabulary; `plan` knows how many there are in this one."""
    if set(map(type, value)) != {int}:
        at = next(i for i, id in enumerate(value) if type(id) is not int)
        raise ValueError(f"a list of token ids holds integers only, and number {at} is none")
    if (least := min(value)) < 0:
        raise ValueError(f"token ids are 0 or greater, and {str(least)[:40]} is not")
    if len(value) > MAX_PROMPT_CHARACTERS:
        raise ValueError(f"at most {MAX_PROMPT_CHARACTERS} tokens, and there are {len(value)}")


def check_one_prompt(value: object) -> None:
    """Text or token ids. Raises ValueError."""
    if isinstance(value, str):
        if len(value) > MAX_PROMPT_CHARACTERS:
            raise ValueError(f"at most {MAX_PROMPT_CHARACTERS} characters, and there are {len(value)}")
        check_text(value)
    elif isinstance(value, list):
        if not value:
            raise ValueError("an empty list is no prompt: give text, or the ids of one token or more")
        check_token_ids(value)
    else:
        raise ValueError("a prompt is text or a list of token ids")


def check_generated(value: object) -> object:
    """Text or token ids, or nothing. Raises ValueError."""
    if value != []:
        check_one_prompt(value)
    return value


def check_prompts(value: object) -> object:
    """Says what is wrong with this prompt, where a union would say what it is not. Raises ValueError."""
    if not isinstance(value, list) or not value or type(value[0]) is int:
        check_one_prompt(value)
        return value
    if len(value) > MAX_PROMPTS:
        raise ValueError(f"at most {MAX_PROMPTS} prompts in one request, and there are {len(value)}")
    for at, each in enumerate(value):
        try:
            check_one_prompt(each)
        except ValueError as error:
            raise ValueError(f"number {at} of the list: {error}") from None
    return value


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]
Stops = Annotated[
    list[Stop],
    FailFast(),
    Field(max_length=MAX_STOPS),
    BeforeValidator(one_or_many, json_schema_input_type=Stop | list[Stop]),
]
BiasMap = Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], BeforeValidator(check_bias)]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
TokenId = Annotated[int, Field(ge=0)]
TokenIds = Annotated[list[TokenId], Field(min_length=1, max_length=MAX_PROMPT_CHARACTERS)]
Several = Annotated[list[Prompt | TokenIds], Field(min_length=1, max_length=MAX_PROMPTS)]
Prompts = Annotated[
    str | list[int] | list[str | list[int]],
    PlainValidator(check_prompts, json_schema_input_type=Prompt | TokenIds | Several),
]
Generated = Annotated[
    str | list[int],
    PlainValidator(check_generated, json_schema_input_type=Prompt | Annotated[list[TokenId], Field(max_length=MAX_PROMPT_CHARACTERS)]),
]
Context = Literal["anchored", "sliding"]
