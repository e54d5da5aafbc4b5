"""A machine without a C compiler: slower, told so, and as pure."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

from tests.e2e.conftest import Start
from tests.e2e.wire import run, text_of
from tests.support.wait import until

BODIES: list[dict[str, Any]] = [
    {"prompt": "abc" * length, "max_new_tokens": 90, "seed": length, "frequency_penalty": 0.3} for length in (0, 1, 5, 20)
]


def test_without_a_compiler_the_engine_runs_on_pytorch(start: Start, tmp_path: Path) -> None:
    """What it says at its start, and streams that go on byte for byte after their worker was killed."""
    server = start(variables={"PATH": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert server.process.stdout is not None
    announced = [server.process.stdout.readline() for _ in range(2)]  # the line to try, and what there is to know
    assert announced[1].startswith("It runs on PyTorch: no C compiler found; `apt-get install gcc")

    async def body() -> None:
        golden = [await text_of(server, each) for each in BODIES]
        async with asyncio.TaskGroup() as together:
            texts = [together.create_task(text_of(server, each)) for each in BODIES * 8]
            await until(lambda: server.busy > 0)
            os.kill(server.worker(), signal.SIGKILL)
        assert [each.result() for each in texts] == golden * 8

    run(body())
    assert server.http.get("/info").json()["model"]["kernels"].startswith("torch-")
