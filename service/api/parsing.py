"""From the bytes of a request to a body that can be trusted, or to the error that names what is wrong with them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, ParamSpec, TypeVar

from fastapi import APIRouter
from fastapi.exceptions import RequestValidationError
from fastapi.params import Depends
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response

from service.api.fields import UNKNOWN_FIELD, shown
from service.errors import CLIENT_GONE, ApiError, ClientGoneError


class StrictRequest(Request):
    """A request whose body has been parsed: FastAPI's own parser takes repeated keys, NaN and any media type."""

    value: Any = None

    async def json(self) -> Any:
        """What FastAPI makes the route's argument of."""
        return self.value


LARGE_BYTES = 16 << 10
"""What is made of a larger body is made beside the event loop, which otherwise answers nobody meanwhile."""
T = TypeVar("T")
P = ParamSpec("P")


async def off_loop(data: bytes, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Work on a body: at once if it is small, else in a thread, to which Python gives turns among others."""
    if len(data) <= LARGE_BYTES:
        return work(*args, **kwargs)
    return await asyncio.to_thread(work, *args, **kwargs)


class StrictRoute(APIRoute):
    """A route whose body is parsed strictly, and whose errors are ours: 415 for a type, 400 for JSON, 422 for fields."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler, between a parser before it and our errors behind it."""
        handler, takes_body = super().get_route_handler(), self.body_field is not None

        async def handle(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            if takes_body:
                check_media_type(request.headers)
                data = await strict.body()
                strict.value = await off_loop(data, parse_json, data)  # outside `json`, where FastAPI would swallow its errors
            try:
                return await handler(strict)
            except RequestValidationError as error:
                raise field_error(error) from None
            except ClientGoneError:
                return Response(status_code=CLIENT_GONE)

        return handle


def make_router(tag: str, prefix: str = "", *, dependencies: Sequence[Depends] = ()) -> APIRouter:
    """A router of strict routes, which generated clients call by their functions' names."""
    return APIRouter(
        prefix=prefix,
        tags=[tag],
        route_class=StrictRoute,
        dependencies=dependencies,
        generate_unique_id_function=lambda route: route.name,
    )


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
        seen: set[str] = set()
        raise RepeatedKeyError(next(name for name, _ in pairs if name in seen or seen.add(name)))  # type: ignore[func-returns-value]
    return value


PARSE: Callable[[str], Any] = json.JSONDecoder(object_pairs_hook=unique_keys).decode


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
    except ValueError:  # Python converts no integer of more than some thousand digits
        raise ApiError("invalid_request", "a number has too many digits") from None
    except RecursionError:
        raise ApiError("invalid_json", "the body is nested too deeply") from None


def field_error(error: RequestValidationError) -> ApiError:
    """The first thing that is wrong with a request; an unknown field before all else, since it is most often a misspelt one."""
    problems = error.errors()
    first = next((problem for problem in problems if problem["type"] == UNKNOWN_FIELD), problems[0])
    where, message = first["loc"][1:], first["msg"].removeprefix("Value error, ")  # the first part is body, header or path
    if first["type"] == UNKNOWN_FIELD:
        param = place((*where, first["ctx"]["name"]))
        return ApiError("unknown_field", f"{param}: there is no such field", param=param)
    param = place(where)
    if param is None and first["type"] == "value_error":  # of a combination, whose message begins with a field
        return ApiError("invalid_request", message, param=message.partition(" ")[0])
    if param is None:
        return ApiError("invalid_request", "the body must be a JSON object")
    return ApiError("invalid_request", f"{param}: {message}{given(first['input'])}", param=param)


def place(location: Sequence[int | str]) -> str | None:
    """Where something is wrong, in dots."""
    return ".".join(shown(str(part)) for part in location) or None


def given(value: object) -> str:
    """What was given, if it is a number or the like: a text is never repeated."""
    return f" (given: {json.dumps(value)[:40]})" if value is None or isinstance(value, bool | int | float) else ""
