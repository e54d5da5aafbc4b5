"""From the bytes of a request to a body that can be trusted, or to the refusal that names what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from starlette.datastructures import Headers

from service.api.schemas import Body
from service.errors import ApiError

B = TypeVar("B", bound=Body)


def parse_body(headers: Headers, data: bytes, body: type[B]) -> B:
    """A checked body. Raises ApiError: 415 for its type, 400 for its JSON, 422 for its fields."""
    check_media_type(headers)
    value = parse_json(data)
    try:
        return body.model_validate(value)
    except ValidationError as error:
        raise refusal(error) from None


def check_media_type(headers: Headers) -> None:
    """One ``Content-Type``, JSON in UTF-8, and nothing compressed."""
    types = headers.getlist("content-type")
    media_type, _, parameters = (types[0] if len(types) == 1 else "").partition(";")
    charset = parameters.strip().lower().removeprefix("charset=").strip('"')
    if media_type.strip().lower() != "application/json" or charset not in ("", "utf-8"):
        raise ApiError("unsupported_media_type", "the body must come with one Content-Type: application/json", param="Content-Type")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError("unsupported_media_type", "the body must not be compressed", param="Content-Encoding")


class RepeatedKeyError(ValueError):
    """An object names a key twice, so that nobody can say what was meant."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object's pairs as a dict."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        raise RepeatedKeyError(next(name for name in names if names.count(name) > 1))
    return value


def bounded_int(digits: str) -> int:
    """An integer; one too long for Python's converter becomes one that is out of every range instead."""
    return int(digits[:100])


PARSE: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=unique_keys, parse_int=bounded_int).decode


def parse_json(data: bytes) -> Any:
    """The JSON value in UTF-8 bytes. Raises ApiError."""
    try:
        return PARSE(data.decode("utf-8"))
    except UnicodeDecodeError:
        raise ApiError("invalid_json", "the body is not UTF-8") from None
    except RepeatedKeyError as error:
        raise ApiError("invalid_request", f"{shown(error.key)} is given twice", param=shown(error.key)) from None
    except json.JSONDecodeError as error:
        raise ApiError("invalid_json", f"the body is not valid JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ApiError("invalid_json", "the body is nested too deeply") from None


def refusal(error: ValidationError) -> ApiError:
    """The first thing that is wrong with a body; an unknown field before all else, since it is most often a misspelt one."""
    problems = error.errors(include_url=False, include_input=True)
    first = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    param = place(first["loc"])
    if first["type"] == "extra_forbidden":
        return ApiError("unknown_field", f"{param}: there is no such field", param=param)
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("model_type", "dict_type") and param is None:
        return ApiError("invalid_request", "the body must be a JSON object")
    if param is None:
        return ApiError("invalid_request", message, param=message.partition(" ")[0] if first["type"] == "value_error" else None)
    return ApiError("invalid_request", f"{param}: {message}{given(first['input'])}", param=param)


def place(location: Sequence[int | str]) -> str | None:
    """Where in the body something is wrong, in dots. Beyond ``prompt`` pydantic names branches of a union, not places."""
    return ".".join(shown(str(part)) for part in (location[:1] if location[:1] == ("prompt",) else location)) or None


def shown(name: str) -> str:
    """A client's name for a field, made harmless and short."""
    return name[:64].encode("unicode_escape").decode("ascii")


def given(value: object) -> str:
    """What was given, if it is a number or the like: a text is never repeated."""
    return f" (given: {json.dumps(value)[:40]})" if value is None or isinstance(value, bool | int | float) else ""
