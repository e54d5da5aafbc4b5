"""A machine without compiled kernels and without a C compiler: slower, told so, and the same bytes."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.wire import run, text_of
from tests.support.checkpoints import Catalogue
from tests.support.server import ROOT, Server, ServerProcess
from tests.support.wait import until

BODIES: list[dict[str, Any]] = [
    {"prompt": "abc" * length, "max_new_tokens": 90, "seed": length, "frequency_penalty": 0.3} for length in (0, 1, 5, 20)
]


@pytest.fixture
def bare(catalogue: Catalogue, tmp_path: Path) -> Server:
    """Started from a copy of the package that nothing was built in."""
    for name in ("service", "model"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("library", "__pycache__", "pretrained"))
    server = Server.__new__(Server)
    arguments = ("-P", "-m", "service", "--port", "0", "--checkpoint", str(catalogue.path("a")))
    ServerProcess.__init__(server, *arguments, variables={"PATH": str(tmp_path), "PYTHONPATH": str(tmp_path)})
    return server


def test_without_a_compiler_the_same_bytes(server: Server, bare: Server) -> None:
    """What it says at its start, and texts that are those of the kernels, also after their worker was killed."""
    bare.read_line()  # the line to try
    assert bare.read_line().startswith("It could be faster: no C compiler found; `apt-get install gcc")
    assert not bare.http.get("/info").json()["model"]["kernels"].startswith("native-")

    async def body() -> None:
        golden = [await text_of(server, each) for each in BODIES]
        async with asyncio.TaskGroup() as together:
            texts = [together.create_task(text_of(bare, each)) for each in BODIES * 8]
            await until(lambda: bare.busy > 0)
            os.kill(bare.worker(), signal.SIGKILL)
        assert [each.result() for each in texts] == golden * 8

    try:
        run(body())
        assert bare.http.get("/info").json()["model"]["fingerprint"] == server.http.get("/info").json()["model"]["fingerprint"]
    finally:
        bare.close()
