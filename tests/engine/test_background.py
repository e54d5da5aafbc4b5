"""No task that nobody awaits ends unseen."""

from __future__ import annotations

import asyncio

import pytest

from service.background import Background
from tests.engine.engines import until


def test_an_error_is_logged_and_acted_on(caplog: pytest.LogCaptureFixture) -> None:
    async def fails() -> None:
        raise ZeroDivisionError("a bug")

    async def body() -> None:
        seen: list[BaseException] = []
        background = Background()
        background.start("counting", fails(), on_failure=seen.append)
        await until(lambda: seen)
        assert isinstance(seen[0], ZeroDivisionError)
        await background.close()

    asyncio.run(body())
    assert "the task 'counting' ended by an error" in caplog.text
    assert "a bug" in caplog.text


def test_what_is_done_or_cancelled_says_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def body() -> None:
        background = Background()
        done = background.start("done", asyncio.sleep(0))
        endless = background.start("endless", asyncio.sleep(3600))
        await done
        await background.close()
        assert endless.cancelled()

    asyncio.run(body())
    assert caplog.text == ""
