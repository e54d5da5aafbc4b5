"""The service on a driver without a GPU: golden texts over HTTP, and streams that go on when the card fails under them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.files import Checkpoint
from service.worker.cuda.launches import Plan
from tests.e2e.wire import run, text_of
from tests.golden.goldens import golden_file, requests
from tests.golden.models import golden_checkpoint
from tests.gpu.fake import build_fake
from tests.support.server import Server
from tests.support.wait import until

pytestmark = pytest.mark.needs("sm_90")
ROWS = "4"
BODIES: list[dict[str, Any]] = [{"prompt": "the ", "max_new_tokens": 30, "seed": seed, "top_k": 9} for seed in range(3)]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return golden_checkpoint("char", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def driver(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a libcuda.so.1 in it."""
    return build_fake(Plan(checkpoint.config), tmp_path_factory.mktemp("driver")).parent


@contextmanager
def serving(checkpoint: Checkpoint, driver: Path, faults: str, *flags: str) -> Iterator[Server]:
    """The service, whose worker finds the driver without a GPU."""
    variables = {"LD_LIBRARY_PATH": str(driver), "CUDA_FAKE": faults, "XDG_CACHE_HOME": str(driver)}
    stride = str(checkpoint.config.block_size // 2)
    server = Server(checkpoint.path, "--stride", stride, "--max-batch", ROWS, *flags, variables=variables)
    try:
        yield server
    finally:
        server.close()


def model_of(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = server.http.get("/info").json()["model"]
    return found


def golden_bodies(checkpoint: Checkpoint) -> list[tuple[dict[str, Any], str]]:
    """The golden requests that HTTP can ask for, of this server's stride or of a sliding window, with their texts' sha256."""
    found = []
    golden = json.loads(golden_file("char").read_text())["requests"]
    for request, entry in zip(requests(checkpoint), golden, strict=True):
        params = request.params
        if params.stride not in (1, checkpoint.config.block_size // 2) or params.logit_bias:
            continue
        body = {name: value for name, value in entry["params"].items() if name not in ("stride", "num_logprobs")}
        body |= {"prompt": request.prompt, "context": "sliding" if params.stride == 1 else "anchored"}
        found.append((body, entry["text_sha256"]))
    return found


def test_the_golden_texts_and_what_the_engine_is_called(checkpoint: Checkpoint, driver: Path) -> None:
    """Nothing that the service says lets it be taken for a GPU."""
    bodies = golden_bodies(checkpoint)
    assert len(bodies) >= 5
    with serving(checkpoint, driver, "", "--kernels", "cuda") as server:
        assert model_of(server)["kernels"] == "cuda-sm_90 on no GPU: kernels emulated on this CPU"

        async def body() -> None:
            texts = await asyncio.gather(*(text_of(server, body) for body, _ in bodies))
            assert [hashlib.sha256(text.encode()).hexdigest() for text in texts] == [wanted for _, wanted in bodies]

        run(body())
        assert server.end() == 0


def test_a_killed_worker_is_replaced_by_one_on_the_card(checkpoint: Checkpoint, driver: Path) -> None:
    with serving(checkpoint, driver, "", "--kernels", "cuda") as server, serving(checkpoint, driver, "", "--device", "cpu") as processor:
        assert model_of(processor)["device"] == "cpu"

        async def body() -> None:
            golden = [await text_of(processor, each) for each in BODIES]
            async with asyncio.TaskGroup() as together:
                texts = [together.create_task(text_of(server, each)) for each in BODIES]
                await until(lambda: server.busy > 0)
                os.kill(server.worker(), signal.SIGKILL)
            assert [text.result() for text in texts] == golden

        run(body())
        assert model_of(server)["device"] == "cuda"


@pytest.mark.parametrize("fault", ["cuGraphLaunch=700@3", "cuStreamQuery=719@7", "hang"])
def test_streams_that_began_on_the_card_end_on_the_processor(fault: str, checkpoint: Checkpoint, driver: Path, tmp_path: Path) -> None:
    """A CUDA error stays, so the worker leaves, and its successor does without the card; no byte differs."""
    begun = tmp_path / "begun"
    with serving(checkpoint, driver, "", "--device", "cpu") as processor:
        golden = [processor.text(**each) for each in BODIES]
    with serving(checkpoint, driver, f"{fault},once={begun}", "--kernels", "cuda") as server:
        assert model_of(server)["device"] == "cuda"

        async def body() -> None:
            async with asyncio.TaskGroup() as together:
                texts = [together.create_task(text_of(server, each)) for each in BODIES]
                await until(lambda: server.busy > 0)
                begun.touch()
            assert [text.result() for text in texts] == golden

        run(body())
        assert model_of(server)["device"] == "cpu"


@pytest.mark.parametrize(
    ("faults", "said"),
    [
        ("cuInit=100", "CUDA_ERROR_NO_DEVICE"),
        ("old", "driver 580 or newer"),
        ("bit=30", "wrong on this machine"),
        ("cuMemAlloc=2", "OUT_OF_MEMORY"),
    ],
)
def test_a_card_that_cannot_serve_is_a_line_and_the_processor_serves(faults: str, said: str, checkpoint: Checkpoint, driver: Path) -> None:
    with serving(checkpoint, driver, faults) as server:
        model = model_of(server)
        assert model["device"] == "cpu"
        while not (line := server.read_line()).startswith("It could be faster: "):
            pass
        assert said in line
        assert server.text(**BODIES[0])
