"""What keeps a worker from serving is one line that says what is missing, and is said once: no eight deaths, no eight tracebacks."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.files import Checkpoint
from model.exact.arithmetic import Floats
from model.exact.probes import SUMS
from service.engine.interface import EngineOptions
from service.worker import selftest
from service.worker.runners.fallback import ReferenceRunner
from service.worker.runners.interface import PrefillChunk
from tests.engine.engines import current, running
from tests.engine.engines import run as run_engine

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("damage", ["missing", "selftest", "truncated", "number"])
def test_a_checkpoint_that_cannot_be_served_fails_with_its_reason(options: EngineOptions, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad"
    if damage != "missing":
        shutil.copytree(options.checkpoint, path)
    if damage == "truncated":
        data = (path / "model.safetensors").read_bytes()
        (path / "model.safetensors").write_bytes(data[: len(data) // 2])
    if damage == "number":
        manifest = (path / "manifest.json").read_text()
        (path / "manifest.json").write_text(manifest.replace("{", '{"curve": [{"loss": NaN}],', 1))
    if damage == "selftest":
        selftest = json.loads((path / "selftest.json").read_text())
        selftest["digests"]["moved"] = "0" * 64
        (path / "selftest.json").write_text(json.dumps(selftest))
        manifest = json.loads((path / "manifest.json").read_text())
        manifest["files"]["selftest.json"] = hashlib.sha256((path / "selftest.json").read_bytes()).hexdigest()
        (path / "manifest.json").write_text(json.dumps(manifest))

    async def body() -> None:
        async with running(replace(options, checkpoint=path)) as engine:
            assert engine.status.state == "failed"
            expected = {
                "missing": "not a directory",
                "selftest": "the logits of 'moved' are wrong",
                "truncated": "model.safetensors",
                "number": "manifest.json: curve.0.loss is not a finite number",
            }
            assert expected[damage] in engine.status.message
            assert "\n" not in engine.status.message

    run_engine(body())


FAILURES = {
    "OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.\\nSee the documentation.')": "--max-batch",
    "AcceleratorError('CUDA error: CUDA-capable device(s) is/are busy or unavailable\\nCompile with...')": "--device cpu",
    "RuntimeError('CUDA error: no kernel image is available for execution on the device')": "too old",
    "MemoryError()": "too little memory",
    "ZeroDivisionError('a bug')": "an unexpected error, whose traceback is in the log: ZeroDivisionError('a bug')",
}


@pytest.mark.parametrize("failure", FAILURES, ids=[name.partition("(")[0] for name in FAILURES])
def test_whatever_goes_wrong_while_loading_is_one_line_and_final(
    options: EngineOptions, tmp_path: Path, capfd: pytest.CaptureFixture[str], failure: str
) -> None:
    """A card that is too small, busy or too old meant eight tracebacks, and a service that was started again for ever."""
    (tmp_path / "sitecustomize.py").write_text(
        "import service.worker.startup as startup\n"
        "class OutOfMemoryError(RuntimeError): pass\n"
        "class AcceleratorError(RuntimeError): pass\n"
        f"def load(*args): raise {failure}\n"
        "startup.load = load\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    async def body() -> None:
        async with running(replace(options, environment=environment)) as engine:
            assert engine.status.state == "failed"
            assert FAILURES[failure] in engine.status.message
            assert "\n" not in engine.status.message
            assert current(engine).restarts == 0

    run_engine(body())
    is_ours = failure.startswith("ZeroDivision")
    assert capfd.readouterr().err.count("Traceback") == (1 if is_ours else 0)


def test_a_self_test_is_never_silent_for_longer_than_a_step(checkpoint: Checkpoint) -> None:
    """It took more than the three minutes that a silent worker has, with 300M parameters: the worker was replaced, again and again."""

    class Spy(ReferenceRunner):
        def logits(self, chunks: Sequence[PrefillChunk]) -> Floats:
            heard.append(None)
            return super().logits(chunks)

        def probe(self, function: int) -> int:
            heard.append(None)
            return super().probe(function)

    heard: list[str | None] = []
    runner = Spy(checkpoint, rows=3)
    selftest.run(runner, checkpoint, heard.append)
    runner.close()
    steps = [at for at, each in enumerate(heard) if each is None]
    assert len(steps) > len(SUMS) + 2
    assert all(heard[at - 1] is not None for at in steps)
