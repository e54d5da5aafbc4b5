"""The launcher on a driver without a GPU: right tokens, each call failing in turn, cards that are missing, too old, too small, wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from model.checkpoint.files import Checkpoint
from model.exact.digests import known_answers
from model.exact.network import Cache, ExactModel
from model.params import SamplingParams
from model.sampling import sample
from service.worker import selftest
from service.worker.cuda import card as card_module
from service.worker.cuda import driver
from service.worker.cuda.driver import SIGNATURES, CudaError
from service.worker.cuda.launches import Plan
from service.worker.runners.cuda import CudaRunner
from service.worker.runners.interface import CopiesPrefixes, DecodeSlot, PrefillChunk, PrefixCopy, RunnerUnavailable, SampledTokens
from tests.golden.models import golden_checkpoint
from tests.gpu.fake import build_fake, fake_driver

pytestmark = pytest.mark.needs("sm_90")
ROWS = 3
AT_THE_START = [
    name
    for name in SIGNATURES
    if not name.startswith(("cuGraph", "cuStreamBegin", "cuStreamEnd", "cuLaunch", "cuMemcpyDtoH", "cuGetError"))
]
LATER = [
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphDestroy",
    "cuStreamBeginCapture_v2",
    "cuStreamEndCapture",
    "cuLaunchKernel",
]
QUIET = {"cuDevicePrimaryCtxRelease_v2"}
"""What it says no longer matters."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return golden_checkpoint("char", tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def library(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_fake(Plan(checkpoint.config), tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cubins")


def generate(runner: CudaRunner, requests: Sequence[tuple[list[int], SamplingParams]], bursts: Sequence[int]) -> list[list[int]]:
    """Tokens of requests that decode together, a request a row."""
    out: list[list[int]] = [[] for _ in requests]
    for row, (prompt, params) in enumerate(requests):
        runner.set_row(row, params, prompt, [])
    runner.prefill([PrefillChunk(row, 0, prompt[:-1]) for row, (prompt, _) in enumerate(requests)])
    for steps in bursts:
        texts = [[*prompt, *tokens] for (prompt, _), tokens in zip(requests, out, strict=True)]
        slots = [DecodeSlot(row, text[-1], len(text) - 1, steps - row % 2) for row, text in enumerate(texts)]
        for tokens, sampled in zip(out, runner.decode(slots), strict=True):
            tokens += sampled.tokens
    return out


def test_it_gives_the_references_logits_and_tokens(checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    with fake_driver(library):
        runner = CudaRunner(checkpoint, rows=ROWS, cache=cache)
        reference = ExactModel(checkpoint.config, checkpoint.tensors)
        tokens = np.arange(20) % checkpoint.config.vocab_size
        wanted = reference.logits(reference.hidden(tokens[None], Cache(checkpoint.config)))[0]
        assert (runner.logits([PrefillChunk(1, 0, tokens.tolist())]).view(np.int32) == wanted.view(np.int32)).all()
        requests = [([1, 2, 3], SamplingParams(seed=row, top_k=9, num_logprobs=row - 1 if row else None)) for row in range(ROWS)]
        for (prompt, params), found in zip(requests, generate(runner, requests, (2, 9, 1)), strict=True):
            text: list[int] = []
            for token in found:
                assert token == sample(reference.next_logits([*prompt, *text]), params, prompt, text)
                text.append(token)
        runner.close()


REQUESTS = [([1, 2, 3], SamplingParams(seed=row, frequency_penalty=0.4, num_logprobs=row - 1 if row else None)) for row in range(ROWS)]


def decode(runner: CudaRunner, guesses: Sequence[Sequence[int]], steps: int) -> list[SampledTokens]:
    """`REQUESTS` from their beginning, some tokens of each guessed."""
    for row, (prompt, params) in enumerate(REQUESTS):
        runner.set_row(row, params, prompt, [])
    runner.prefill([PrefillChunk(row, 0, prompt[:-1]) for row, (prompt, _) in enumerate(REQUESTS)])
    return runner.decode([DecodeSlot(row, prompt[-1], len(prompt) - 1, steps, guesses[row]) for row, (prompt, _) in enumerate(REQUESTS)])


def test_guesses_save_passes_and_move_nothing(checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    """All right, wrong from the third on, none; log-probabilities too, and what a row draws after them."""
    with fake_driver(library):
        runner, steps = CudaRunner(checkpoint, rows=ROWS, cache=cache), 12
        plain = decode(runner, [()] * ROWS, steps)
        assert [each.num_passes for each in plain] == [steps] * ROWS
        right = [each.tokens for each in plain]
        changed = [(token + (i >= 2)) % checkpoint.config.vocab_size for i, token in enumerate(right[1])]
        found = decode(runner, [right[0], changed, ()], steps)
        assert [(each.tokens, each.logprobs) for each in found] == [(each.tokens, each.logprobs) for each in plain]
        assert [each.num_passes for each in found] == [1, 1 + steps - 3, steps]
        more = [runner.decode([DecodeSlot(row, right[row][-1], 2 + steps, 4)])[0].tokens for row in range(ROWS)]
        assert more == [each.tokens[steps:] for each in decode(runner, [()] * ROWS, steps + 4)]
        runner.max_items = 4  # too few for three rows to bring guesses together
        assert [each.tokens for each in decode(runner, right, steps)] == right
        runner.close()


def test_rows_share_prefixes(checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    with fake_driver(library):
        runner = CudaRunner(checkpoint, rows=ROWS, cache=cache)
        assert isinstance(runner, CopiesPrefixes)
        tokens = [5, 6, 7, 8, 9, 10, 11]
        wanted = runner.logits([PrefillChunk(0, 0, tokens)])[6]
        runner.logits([PrefillChunk(2, 0, tokens[::-1])])
        runner.copy_prefix(PrefixCopy(0, 2, 6))
        assert (runner.logits([PrefillChunk(2, 6, tokens[6:])])[0].view(np.int32) == wanted.view(np.int32)).all()
        runner.close()


def test_it_passes_the_self_test(checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    with fake_driver(library):
        runner = CudaRunner(checkpoint, rows=ROWS, cache=cache)
        assert known_answers(checkpoint.selftest, checkpoint.config) is not None
        selftest.run(runner, checkpoint, lambda phase: None)
        assert runner.kernels == "cuda-sm_90 on no GPU: kernels emulated on this CPU"


def test_a_card_of_another_arithmetic_is_refused(checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    with fake_driver(library, "bit=40"):
        runner = CudaRunner(checkpoint, rows=ROWS, cache=cache)
        with pytest.raises(selftest.SelfTestError, match="wrong on this machine"):
            selftest.run(runner, checkpoint, lambda phase: None)


@pytest.mark.parametrize("name", [name for name in AT_THE_START if name not in QUIET])
def test_a_call_that_fails_at_the_start_is_a_line(name: str, checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    with fake_driver(library, f"{name.removesuffix('_v2')}=999"), pytest.raises(RunnerUnavailable) as caught:
        CudaRunner(checkpoint, rows=ROWS, cache=cache)
    assert str(caught.value).startswith("cuda: ")
    assert name in str(caught.value)
    assert "CUDA_ERROR_UNKNOWN (999)" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", LATER)
def test_an_error_later_stays(name: str, checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    """As with a real card: what fails once fails from then on, so the process has to go."""
    with fake_driver(library, f"{name.removesuffix('_v2')}=700@1"):
        runner = CudaRunner(checkpoint, rows=ROWS, cache=cache)
        for _ in range(2):
            with pytest.raises(CudaError, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
                runner.decode([DecodeSlot(0, 1, 0, 2)])


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ("none", r"CUDA_ERROR_NO_DEVICE \(100\): the NVIDIA driver shows no GPU"),
        ("cuDevicePrimaryCtxRetain=46", "nvidia-smi --compute-mode=DEFAULT"),
        ("cuInit=802", "nvidia-fabricmanager"),
        ("cuInit=803", "restart the machine"),
        ("cuInit=804", "driver 580 or newer on the host"),
        ("old", "driver 580 or newer"),
        ("volta", "compute capability 7.0; CUDA 13 needs 7.5"),
        ("small", "lower --max-batch"),
        ("cuModuleLoadData=209", "CUDA_ERROR_NO_BINARY_FOR_GPU"),
    ],
)
def test_a_card_that_will_not_do_is_a_line(faults: str, message: str, checkpoint: Checkpoint, library: Path, cache: Path) -> None:
    with fake_driver(library, faults), pytest.raises(RunnerUnavailable, match=message):
        CudaRunner(checkpoint, rows=500 if faults == "small" else ROWS, cache=cache)


def copy_and_wait(runner: CudaRunner) -> None:
    """A copy alone is not waited for."""
    runner.copy_prefix(PrefixCopy(0, 1, 4))
    runner.set_row(1, SamplingParams(), [], [])


USES: list[Callable[[CudaRunner], object]] = [
    lambda runner: runner.decode([DecodeSlot(0, 1, 0, 2)]),
    lambda runner: runner.decode([DecodeSlot(0, 1, 0, 3, [1, 2])]),
    lambda runner: runner.logits([PrefillChunk(0, 0, [1, 2])]),
    lambda runner: runner.prefill([PrefillChunk(row, 0, [1] * 20) for row in range(ROWS)] * 5),
    copy_and_wait,
    lambda runner: runner.probe(0),
]


@pytest.mark.parametrize("use", USES)
def test_a_card_that_never_answers_is_left(
    use: Callable[[CudaRunner], object],
    checkpoint: Checkpoint,
    library: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By all that waits for it, and by its end; nothing is asked of the driver that would wait there without a limit."""
    monkeypatch.setattr(card_module, "LIMIT_S", 0.05)
    with fake_driver(library, "hang"):
        runner = CudaRunner(checkpoint, rows=ROWS, cache=cache)
        with pytest.raises(CudaError, match="has not answered"):
            use(runner)
        runner.close()
    assert "waits for ever" not in capfd.readouterr().err


def test_no_driver_is_a_line(checkpoint: Checkpoint, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "LIBRARY", "libcuda-of-no-machine.so.1")
    with pytest.raises(RunnerUnavailable, match="no NVIDIA driver"):
        CudaRunner(checkpoint, rows=ROWS, cache=cache)
