"""A checkpoint so small that the naive sampler is fast too, and ways to drive an engine core without a process."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import pytest
import torch

from model.checkpoint.files import Checkpoint, read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.config import GPTConfig
from model.draft import empty_draft
from model.exact.network import ExactModel
from model.gpt import GPT
from model.params import SamplingParams
from model.tokenizer.char import CharTokenizer
from service.engine.interface import EngineOptions
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.fallback import ReferenceRunner
from service.worker.runners.interface import Runner
from service.worker.runners.native import NativeRunner
from service.worker.runners.pytorch import TorchRunner
from tests.engine.engines import engine_options

TEXT = "\n abcdefghij"
BLOCK = 32
LONG_BLOCK = 160


def make_checkpoint(path: Path, block_size: int) -> Path:
    """Random weights, large enough that the distribution is far from uniform; heads of 10 (no multiple of a vector)."""
    torch.manual_seed(11)
    config = GPTConfig(vocab_size=len(TEXT), block_size=block_size, n_layer=2, n_head=3, n_embd=32, dropout=0.0)
    model = GPT(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8 if parameter.ndim == 2 else 1)
    ids = torch.randint(0, config.vocab_size, (BLOCK,)).tolist()
    write_checkpoint(path, checkpoint_files(model.eval(), CharTokenizer(TEXT), ids), {"start": "\n"})
    return path


@pytest.fixture(scope="session")
def checkpoint_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("engine") / "tiny", BLOCK)


@pytest.fixture(scope="session")
def long_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A context of two and a half prefill chunks."""
    return read_checkpoint(make_checkpoint(tmp_path_factory.mktemp("engine") / "long", LONG_BLOCK))


@pytest.fixture(scope="session")
def checkpoint(checkpoint_dir: Path) -> Checkpoint:
    return read_checkpoint(checkpoint_dir)


@pytest.fixture(scope="session")
def oracle(checkpoint: Checkpoint) -> ExactModel:
    """The reference."""
    return ExactModel(checkpoint.config, checkpoint.tensors)


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def ticking() -> Callable[[], float]:
    """A clock on which everything takes a millisecond: what is scheduled does not depend on how fast the machine is."""
    ticks = count()
    return lambda: next(ticks) * 0.001


@pytest.fixture
def options(checkpoint_dir: Path, cache: Path) -> EngineOptions:
    return engine_options(checkpoint_dir, cache)


MakeCore = Callable[..., EngineCore]


@pytest.fixture
def make_core(checkpoint: Checkpoint) -> Iterator[MakeCore]:
    """``make_core("avx2", rows=4)``: an instruction set of the native kernels, PyTorch, or the reference."""
    runners: list[Runner] = []

    def make(engine: str, *, rows: int = 8, threads: int = 1, stride: int = 16, of: Checkpoint = checkpoint) -> EngineCore:
        runner: Runner
        if engine == "reference":
            runner = ReferenceRunner(of, rows=rows)
        elif engine == "torch":
            runner = TorchRunner(of, rows=rows, device="cpu", threads=threads)
        else:
            runner = NativeRunner(of, rows=rows, threads=threads, cpu=engine)
            runner.turn_rows = rows  # measured, it would depend on the machine
            runner.teach(empty_draft())
        runners.append(runner)
        return EngineCore(runner, block_size=of.config.block_size, stride=stride, start_token=of.start, clock=ticking())

    yield make
    for runner in runners:
        runner.close()


def random_request(rng: random.Random, *, longest: int = 3 * BLOCK) -> tuple[list[int], SamplingParams]:
    """A prompt, empty or longer than the context at times, with any mix of parameters."""
    prompt = [rng.randrange(len(TEXT)) for _ in range(rng.choice([0, 1, 2, 5, 20, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3]))]
    params = SamplingParams(
        max_new_tokens=rng.randint(1, longest),
        seed=rng.choice([0, 1, 7, 2**53 - 1, rng.randrange(2**53)]),
        temperature=rng.choice([1.0, 1.0, 0.0, 0.3, 1.7]),
        top_k=rng.choice([0, 0, 1, 3, 100]),
        top_p=rng.choice([1.0, 1.0, 0.5, 0.9]),
        min_p=rng.choice([0.0, 0.0, 0.1]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.3, 0.8]),
        frequency_penalty=rng.choice([0.0, 0.0, 0.4, -0.3]),
        presence_penalty=rng.choice([0.0, 0.0, 0.5]),
        logit_bias=rng.choice([(), (), ((3, 2.0), (4, -100.0))]),
        num_logprobs=rng.choice([None, None, 0, 3, 65]),
        stride=rng.choice([None, None, 1, 7, BLOCK]),
    )
    return prompt, params


Request = tuple[list[int], SamplingParams]
Logprobs = list[tuple[float, list[tuple[int, float]]]]


class Driver:
    """Feeds requests to a core and collects what they draw, with the row that each one had."""

    def __init__(self, core: EngineCore) -> None:
        self.core = core
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, Logprobs] = {}
        self.finished: set[int] = set()
        self.rows: dict[int, int] = {}
        self.batch_sizes: set[int] = set()

    def submit(self, number: int, request: Request, generated: list[int] | None = None) -> None:
        self.tokens[number], self.logprobs[number] = list(generated or []), []
        self.core.submit(Submit(number, number, request[0], list(generated or []), request[1]))

    def step(self) -> None:
        result = self.core.step()
        self.rows |= {number: s.row for number, s in self.core.scheduler.running.items()}
        self.batch_sizes.add(len(result.outputs))
        for output in result.outputs:
            assert output.sequence not in self.finished, "tokens after the end"
            self.tokens[output.sequence] += output.tokens
            self.logprobs[output.sequence] += output.logprobs or []
            if output.finished:
                self.finished.add(output.sequence)

    def run(self) -> None:
        while self.core.has_work:
            self.step()
