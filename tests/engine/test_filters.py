"""min-p, top-k and top-p over a large vocabulary, of which a kernel sorts only what it keeps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from model.checkpoint.files import Checkpoint
from model.config import GPTConfig
from model.params import SamplingParams
from service.worker.runners.fallback import ReferenceRunner
from service.worker.runners.interface import DecodeSlot, Runner
from service.worker.runners.native import NativeRunner
from tests.engine.kernels import NATIVE
from tests.golden.models import hashed_weights

STEPS = 3


@dataclass(frozen=True)
class Model:
    """As much of a checkpoint as a runner looks at: 5,000 tokens, every third of them as likely as its neighbour."""

    config: GPTConfig
    tensors: dict[str, NDArray[np.float32]]


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    config = GPTConfig(vocab_size=5000, block_size=8, n_layer=1, n_head=2, n_embd=24)
    tensors = hashed_weights(config)
    for name in ("lm_head.weight", "lm_head.bias"):
        tensors[name][2::3] = tensors[name][1:-1:3]  # equal weights: the lower token comes first
    return cast(Checkpoint, Model(config, tensors))


def settings() -> list[SamplingParams]:
    rng = np.random.default_rng(3)
    return [
        SamplingParams(
            seed=seed,
            temperature=float(rng.choice([0.3, 1.0, 2.0])),
            top_k=int(rng.choice([0, 1, 2, 40, 1000, 4999, 5000, 6000])),
            top_p=float(rng.choice([1.0, 0.01, 0.5, 0.9, 0.999])),
            min_p=float(rng.choice([0.0, 0.0, 0.001, 0.3])),
        )
        for seed in range(60)
    ]


def texts(runner: Runner) -> list[list[int]]:
    found = []
    for params in settings():
        runner.set_row(0, params, [7], [])
        found.append(runner.decode([DecodeSlot(0, 7, 0, STEPS)])[0].tokens)
    return found


@pytest.mark.parametrize("cpu", NATIVE)
def test_filters_keep_what_the_reference_keeps(checkpoint: Checkpoint, cpu: str) -> None:
    runner = NativeRunner(checkpoint, rows=1, threads=1, cpu=cpu, speculation=False)
    assert texts(runner) == texts(ReferenceRunner(checkpoint, rows=1))
    runner.close()
