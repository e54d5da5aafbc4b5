"""The native kernels against the reference: the same bits from every instruction set, batch, piece and number of threads."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from model.checkpoint.files import Checkpoint
from model.draft import empty_draft
from model.exact.network import ExactModel
from model.exact.probes import SUMS
from service.worker.core import EngineCore
from service.worker.kernels import build
from service.worker.runners.interface import PrefillChunk
from service.worker.runners.native import NativeRunner
from tests.engine.conftest import Driver
from tests.engine.kernels import NATIVE, native_sets, use_emulated
from tests.golden import goldens
from tests.golden.models import NAMES, golden_checkpoint
from tests.model.random_models import CONFIGS, RandomModel, random_model

ROWS = 19
FOREIGN = ["avx512", "avxvnni"]
"""Instruction sets that are emulated."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


def checkpoint_of(model: RandomModel) -> Checkpoint:
    """As much of one as a runner looks at."""
    return cast(Checkpoint, model)


def text_of(model: RandomModel, length: int) -> list[int]:
    size = min(length, model.config.block_size)
    return [int(token) for token in np.random.default_rng(length).integers(0, model.config.vocab_size, size)]


def bits(logits: NDArray[np.float32]) -> NDArray[np.uint32]:
    return logits.view(np.uint32)


def pieces(tokens: Sequence[int], size: int, row: int) -> list[PrefillChunk]:
    return [PrefillChunk(row, at, tokens[at : at + size]) for at in range(0, len(tokens), size)]


def check_logits(model: RandomModel, cpu: str, threads: int, length: int) -> None:
    """One pass, pieces of every size that a register tile has, rows side by side at different positions."""
    tokens = text_of(model, length)
    expected = bits(ExactModel(model.config, model.tensors).text_logits(tokens))
    runner = NativeRunner(checkpoint_of(model), rows=ROWS, threads=threads, cpu=cpu)
    try:
        assert np.array_equal(bits(runner.logits([PrefillChunk(3, 0, tokens)])), expected)
        for size in (1, 2, 3, 5, 7, 12, 13):
            found = np.concatenate([runner.logits([piece]) for piece in pieces(tokens, size, row=size)])
            assert np.array_equal(bits(found), expected), f"pieces of {size}"
        for count in (4, 8, ROWS):
            for step in range(6):  # row i is i tokens behind
                here = [(row, step - row % 4) for row in range(count) if 0 <= step - row % 4 < len(tokens)]
                found = runner.logits([PrefillChunk(row, at, [tokens[at]]) for row, at in here])
                assert np.array_equal(bits(found), expected[[at for _, at in here]]), f"{count} rows"
    finally:
        runner.close()


@pytest.mark.parametrize("cpu", NATIVE)
@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("threads", [1, 2])
def test_logits_are_the_references(name: str, cpu: str, threads: int) -> None:
    for seed in range(2):
        check_logits(random_model(name, seed), cpu, threads, length=1000 if cpu == NATIVE[0] else 150)


QUIET = {"one head": 2.2, "odd": 1.2, "long": 3.0}
"""How much less every hidden unit gets, so that ReLU leaves a few of them, as in trained models: then zeros are skipped."""


def quiet_model(name: str) -> RandomModel:
    model = random_model(name)
    for layer in range(model.config.n_layer):
        model.tensors[f"blocks.{layer}.mlp.up.bias"] -= np.float32(QUIET[name])
    return model


@pytest.mark.parametrize("cpu", NATIVE)
@pytest.mark.parametrize("name", QUIET)
def test_zeros_may_be_skipped(name: str, cpu: str) -> None:
    check_logits(quiet_model(name), cpu, threads=2, length=60)


@pytest.mark.parametrize("cpu", NATIVE)
def test_probes_have_their_sums(cpu: str) -> None:
    """Vector functions too: that is how a kernel asks itself."""
    runner = NativeRunner(checkpoint_of(random_model("odd")), rows=1, threads=1, cpu=cpu)
    assert [runner.probe(number) for number in range(len(SUMS))] == list(SUMS.values())
    runner.close()


def answers(cpu: str, threads: int, turn_rows: int, checkpoint: Checkpoint, asked: Sequence[goldens.Request]) -> list[goldens.Answer]:
    """All requests at once."""
    runner = NativeRunner(checkpoint, rows=len(asked), threads=threads, cpu=cpu)
    runner.turn_rows = turn_rows
    runner.teach(empty_draft())
    driver = Driver(EngineCore(runner, block_size=checkpoint.config.block_size, stride=1, start_token=checkpoint.start))
    for number, request in enumerate(asked):
        driver.submit(number, (checkpoint.tokenizer.encode(request.prompt), request.params))
    driver.run()
    runner.close()
    wanted = [request.params.num_logprobs is not None for request in asked]
    return [goldens.Answer(driver.tokens[n], driver.logprobs[n] if wanted[n] else None) for n in range(len(asked))]


@pytest.mark.parametrize("cpu", NATIVE)
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("threads", "turn_rows"), [(1, 64), (2, 5)])
def test_golden_texts(name: str, cpu: str, threads: int, turn_rows: int, folder: Path) -> None:
    goldens.check(golden_checkpoint(name, folder), name, lambda *asked: answers(cpu, threads, turn_rows, *asked))


# ---- processors that are not here ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("avx2" not in NATIVE, reason="their emulation is made of AVX2")
@pytest.mark.parametrize("cpu", FOREIGN)
def test_an_emulated_processor(cpu: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_emulated(monkeypatch, folder)
    for name in CONFIGS:
        check_logits(random_model(name), cpu, threads=1, length=40)
    for name in QUIET:
        check_logits(quiet_model(name), cpu, threads=1, length=40)
    for name in ("char", "wide"):
        goldens.check(golden_checkpoint(name, folder), name, lambda *asked: answers(cpu, 1, 64, *asked))
    runner = NativeRunner(checkpoint_of(random_model("odd")), rows=1, threads=1, cpu=cpu)
    assert [runner.probe(number) for number in range(len(SUMS))] == list(SUMS.values())
    runner.close()


ARM_COMPILER, ARM_EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"
DRIVER = Path(__file__).parent / "driver.c"


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which(ARM_COMPILER) and shutil.which(ARM_EMULATOR)), reason=f"needs {ARM_COMPILER} and {ARM_EMULATOR}")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="on ARM the other tests run its kernels")
@pytest.mark.parametrize("cpu", build.ARM)
def test_arm_in_an_emulator(cpu: str, folder: Path) -> None:
    """driver.c runs a model and the probes: its logits are the reference's, and its tokens those of a native kernel."""
    program = folder / f"driver-{cpu}"
    flags = [*build.FLAGS, *build.ARM[cpu], f"-DISA={cpu}", f"-I{build.SOURCES}", "-static"]
    subprocess.run([ARM_COMPILER, *flags, str(DRIVER), "-o", str(program), "-lpthread"], check=True)
    for name in CONFIGS:
        model = random_model(name)
        tokens = text_of(model, 40)
        command = [ARM_EMULATOR, "-cpu", "max", str(program)]
        done = subprocess.run(command, input=model_file(model, tokens), capture_output=True, check=True)
        expected = bits(ExactModel(model.config, model.tensors).text_logits(tokens))
        logits = np.frombuffer(done.stdout, np.uint32, 2 * expected.size).reshape(2, *expected.shape)
        assert np.array_equal(logits[0], expected), f"{name}: one pass"
        assert np.array_equal(logits[1], expected), f"{name}: pieces"
    sums = np.frombuffer(done.stdout[logits.nbytes :], np.uint64)
    assert sums.tolist() == list(SUMS.values())


def model_file(model: RandomModel, tokens: Sequence[int]) -> bytes:
    """What driver.c reads: Config, the number of tensors, each with its size, then tokens with their number."""
    c = model.config
    flags = [c.activation == "gelu_tanh", c.qkv_bias, c.arithmetic == "w8a16"]
    config = [c.n_layer, c.n_head, c.n_embd, c.head_size, c.block_size, c.vocab_size, *flags, 2, 64, 1, 0]
    parts = [np.array([*config, len(c.parameter_shapes)], np.int32).tobytes()]
    for name in c.parameter_shapes:
        parts += [np.int32(model.tensors[name].size).tobytes(), np.ascontiguousarray(model.tensors[name]).tobytes()]
    return b"".join([*parts, np.array([len(tokens), *tokens], np.int32).tobytes()])


def test_every_instruction_set_of_the_machine_is_tested() -> None:
    """A library was built and loaded wherever a compiler is."""
    if shutil.which("cc") or shutil.which("gcc"):
        assert "generic" in native_sets()
