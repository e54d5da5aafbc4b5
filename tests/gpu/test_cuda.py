"""What only a GPU can show: captured graphs are pure too, across tiles, rows and neighbours. Run with ``-m gpu``."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
import torch

from model.checkpoint.files import Checkpoint, read_checkpoint, write_checkpoint
from model.checkpoint.loading import checkpoint_files, load_checkpoint
from model.config import GPTConfig
from model.generate import generate
from model.gpt import GPT
from model.params import SamplingParams
from model.tokenizer.char import CharTokenizer
from service.worker.core import EngineCore
from service.worker.messages import VERSION, Start
from service.worker.runners.pytorch import TorchRunner
from service.worker.startup import load
from tests.engine.conftest import BLOCK, TEXT, Driver, random_request

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    torch.manual_seed(11)
    config = GPTConfig(vocab_size=len(TEXT), block_size=BLOCK, n_layer=2, n_head=3, n_embd=32, dropout=0.0)
    path = tmp_path_factory.mktemp("gpu") / "tiny"
    write_checkpoint(path, checkpoint_files(GPT(config).eval(), CharTokenizer(TEXT), list(range(12)) * 2), {})
    return read_checkpoint(path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zero_differing_bytes_across_tiles_and_rows(checkpoint: Checkpoint, dtype: str) -> None:
    core = EngineCore(TorchRunner(checkpoint, rows=256, dtype=dtype, device="cuda"), block_size=BLOCK, stride=16, start_token=0)
    rng = random.Random(3)
    requests = [random_request(rng) for _ in range(200)]
    golden = []
    for number, request in enumerate(requests):
        driver = Driver(core)
        driver.submit(number, request)
        driver.run()
        golden.append(driver.tokens[number])
    crowd = Driver(core)
    for number in rng.sample(range(800), 800):
        crowd.submit(number, requests[number % 200])
        if rng.random() < 0.5 and core.has_work:
            crowd.step()
    crowd.run()
    assert [n for n, tokens in crowd.tokens.items() if tokens != golden[n % 200]] == []
    assert max(crowd.rows.values()) >= 64, "more than one tile was used"


def test_float64_equals_the_naive_sampler(checkpoint: Checkpoint) -> None:
    oracle = load_checkpoint(checkpoint.path, dtype=torch.float64).model
    core = EngineCore(TorchRunner(checkpoint, rows=64, dtype="float64", device="cuda"), block_size=BLOCK, stride=16, start_token=0)
    for seed in range(40):
        params = SamplingParams(max_new_tokens=50, seed=seed, stride=16)
        driver = Driver(core)
        driver.submit(0, ([1, 2, 3], params))
        driver.run()
        assert driver.tokens[0] == list(generate(oracle, [1, 2, 3], params))


def test_the_shipped_checkpoint_is_ready_within_ten_seconds() -> None:
    pretrained = Path(__file__).resolve().parents[2] / "model" / "pretrained"
    began = time.monotonic()
    load(Start(VERSION, str(pretrained), "cuda", "auto", "auto", 0, 0, 0, ""), lambda phase: None)
    assert time.monotonic() - began < 10
