"""The engine in PyTorch: every bit is the reference's, and what a machine lacks is said in one line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint.files import Checkpoint
from model.exact.network import ExactModel
from model.exact.probes import PROBES, SUMS
from model.params import SamplingParams
from service.worker import selftest, startup
from service.worker.core import EngineCore
from service.worker.messages import Start
from service.worker.runners import pytorch
from service.worker.runners import torch_arithmetic as ar
from service.worker.runners.interface import DecodeSlot, PrefillChunk, RunnerUnavailable
from service.worker.runners.pytorch import TorchRunner, open_device, rows_that_fit
from tests.engine.conftest import Driver
from tests.engine.test_kernels import checkpoint_of, pieces
from tests.golden import goldens
from tests.golden.models import NAMES, golden_checkpoint
from tests.model.random_models import CONFIGS, random_model


def make(checkpoint: Checkpoint, rows: int = 4) -> TorchRunner:
    return TorchRunner(checkpoint, rows=rows, device="cpu", threads=1)


@pytest.mark.parametrize("number", range(len(PROBES)), ids=[probe.name for probe in PROBES])
def test_every_function_has_its_sum(number: int) -> None:
    runner = TorchRunner.__new__(TorchRunner)
    runner.torch_device = torch.device("cpu")
    assert runner.probe(number) == SUMS[PROBES[number].name]


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_are_the_references(name: str) -> None:
    source = random_model(name)
    rng = np.random.default_rng(5)
    tokens = rng.integers(0, source.config.vocab_size, min(source.config.block_size, 300)).tolist()
    expected = ExactModel(source.config, source.tensors).text_logits(tokens).view(np.int32)
    runner = make(checkpoint_of(source))
    assert np.array_equal(runner.logits([PrefillChunk(2, 0, tokens)]).view(np.int32), expected)
    for size in (1, 7):
        found = np.concatenate([runner.logits([piece]) for piece in pieces(tokens[:40], size, row=1)])
        assert np.array_equal(found.view(np.int32), expected[:40])
    for at in range(6):  # all rows side by side
        found = runner.logits([PrefillChunk(row, at, tokens[at : at + 1]) for row in range(4)])
        assert (found.view(np.int32) == expected[at]).all()


def answers(checkpoint: Checkpoint, asked: Sequence[goldens.Request]) -> list[goldens.Answer]:
    """All requests at once."""
    driver = Driver(
        EngineCore(make(checkpoint, len(asked)), block_size=checkpoint.config.block_size, stride=1, start_token=checkpoint.start)
    )
    for number, request in enumerate(asked):
        driver.submit(number, (checkpoint.tokenizer.encode(request.prompt), request.params))
    driver.run()
    wanted = [request.params.num_logprobs is not None for request in asked]
    return [goldens.Answer(driver.tokens[n], driver.logprobs[n] if wanted[n] else None) for n in range(len(asked))]


@pytest.mark.parametrize("name", NAMES)
def test_golden_texts(name: str, tmp_path: Path) -> None:
    checkpoint = golden_checkpoint(name, tmp_path)
    selftest.run(make(checkpoint), checkpoint, lambda phase: None)
    goldens.check(checkpoint, name, answers)


def test_the_target_of_a_draw_is_exact_to_the_last_of_128_bits() -> None:
    numbers = [0, 1, 2**26 - 1, 2**32 - 1, 2**32, 2**53 - 1, 2**53]
    totals = [1, 2**31, 2**32 + 1, 2**40, 2**62, 2**63 - 1]
    for fraction in numbers:
        for total in totals:
            found = ar.target(torch.tensor([fraction]), torch.tensor([total]))
            assert found.item() == fraction * total >> 53


def test_rows_that_end_at_different_steps(checkpoint: Checkpoint) -> None:
    """A row's tokens are the same whether its neighbours go on or not, and come back in the order of the slots."""
    runner = make(checkpoint)
    for row in range(4):
        runner.set_row(row, SamplingParams(seed=row), [1], [])
    alone = [runner.decode([DecodeSlot(row, 1, 0, 6)])[0].tokens for row in range(4)]
    for row in range(4):
        runner.set_row(row, SamplingParams(seed=row), [1], [])
    steps = [2, 6, 1, 4]
    together = runner.decode([DecodeSlot(row, 1, 0, steps[row]) for row in range(4)])
    assert [one.tokens for one in together] == [alone[row][: steps[row]] for row in range(4)]


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ("The NVIDIA driver on your system is too old (found version 11040).", "driver cannot be used, or is too old"),
        ("CUDA error: no kernel image is available for execution on the device", "no kernels for the Card (it knows sm_90)"),
        ("CUDA error: all CUDA-capable devices are busy or unavailable\nCompile with …", "CUDA does not work: CUDA error: all"),
    ],
)
def test_a_card_that_cannot_be_used_is_one_line(failure: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError(failure)

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Card")
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: ["sm_90"])
    with pytest.raises(RunnerUnavailable) as caught:
        open_device("cuda")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch has CUDA")
def test_a_torch_without_cuda_says_so() -> None:
    with pytest.raises(RunnerUnavailable, match="installed without CUDA; install one with it"):
        open_device("cuda")


def test_rows_follow_the_memory_of_the_card(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for gigabytes in (0.0001, 0.002, 80):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=gigabytes: (int(free * 2**30), 80 * 2**30))
        found.append(rows_that_fit(checkpoint.config, torch.device("cuda")))
    assert found[0] == 1
    assert 1 < found[1] < found[2] == pytorch.MAX_ROWS


@pytest.mark.parametrize(
    ("device", "kernels", "cpu", "has_gpu", "expected"),
    [
        ("auto", "auto", "auto", False, ["native", "torch", "reference"]),
        ("auto", "auto", "auto", True, ["cuda", "native", "torch", "torch", "reference"]),
        ("auto", "cuda", "auto", False, ["cuda"]),
        ("cuda", "auto", "auto", True, ["cuda", "torch"]),
        ("auto", "torch", "auto", True, ["torch", "torch"]),
        ("cpu", "torch", "auto", True, ["torch"]),
        ("auto", "auto", "generic", True, ["native"]),
    ],
)
def test_which_engines_are_tried(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, device: str, kernels: str, cpu: str, has_gpu: bool, expected: list[str]
) -> None:
    monkeypatch.setattr(startup, "gpu_is_expected", lambda: has_gpu)
    start = Start(**{**START, "device": device, "kernels": kernels, "cpu": cpu})  # type: ignore[arg-type]
    assert [name for name, _ in startup.candidates(start, checkpoint)] == expected


@pytest.mark.parametrize("kernels", ["auto", "cuda"])
def test_what_failed_while_it_served_is_left_alone(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, kernels: str) -> None:
    """Also where it was asked for by name: streams that have begun go on, with the same bytes."""
    monkeypatch.setattr(startup, "gpu_is_expected", lambda: True)
    start = Start(**START, device="auto", kernels=kernels, cpu="auto").but_without("").but_without("cuda").but_without("cuda")  # type: ignore[arg-type]
    assert start.without == ("cuda",)
    names = [name for name, _ in startup.candidates(start, checkpoint)]
    assert names[0] == "native"
    assert "cuda" not in names


START = {"version": 0, "checkpoint": "", "threads": 1, "stride": 0, "max_batch": 4, "speculation": False}


def test_without_torch_the_next_engine_is_taken(checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "service.worker.runners.pytorch", None)
    start = Start(**START, device="cpu", kernels="torch", cpu="auto")  # type: ignore[arg-type]
    with pytest.raises(RunnerUnavailable, match="PyTorch is not installed"):
        startup.torch_runner(start, checkpoint, "cpu")
