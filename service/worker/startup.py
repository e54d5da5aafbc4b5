"""From a Start message to an engine that has passed its self-test."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from msgspec import structs

from model.checkpoint.files import Checkpoint, read_checkpoint
from model.checkpoint.manifest import MANIFEST
from model.draft import FILE as DRAFT
from model.draft import Draft, DraftError, empty_draft, read_draft
from model.params import SamplingParams
from model.version import ARITHMETIC_VERSION
from model.window import default_stride
from service.worker import selftest
from service.worker.core import EngineCore
from service.worker.cuda.driver import gpu_is_expected
from service.worker.messages import Ready, Start
from service.worker.runners.cuda import CudaRunner
from service.worker.runners.fallback import ReferenceRunner
from service.worker.runners.interface import DecodeSlot, Runner, RunnerLost, RunnerUnavailable
from service.worker.runners.native import NativeRunner

CPU_BATCH, REFERENCE_BATCH = 64, 8


MEASURED_STEPS, MEASURED_ROWS = 16, 64
"""Of the decoding by which two engines are compared."""


class UnusableError(RuntimeError):
    """The settings ask for what this machine has not; the message says what would help."""


def cache_directory() -> Path:
    """Where compiled kernels are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio"


def default_threads() -> int:
    """All cores that this process may use but one, which the HTTP side needs, and at most 8: the model is too small to feed more.

    Measured on two cores: over HTTP one thread is as fast as two, and its latencies are steadier.
    """
    return max(1, min(8, len(os.sched_getaffinity(0)) - 1))


def torch_devices(start: Start) -> list[str]:
    """Where PyTorch may compute, the first choice first."""
    if start.device == "auto":
        return ["cuda", "cpu"] if gpu_is_expected() else ["cpu"]
    return [start.device]


def torch_runner(start: Start, checkpoint: Checkpoint, device: str) -> Runner:
    """PyTorch on a device. Raises RunnerUnavailable."""
    try:
        from service.worker.runners.pytorch import TorchRunner  # takes seconds to load, so only where it is wanted
    except ImportError:
        raise RunnerUnavailable("torch: PyTorch is not installed (pip install torch)") from None
    rows = start.max_batch or (None if device == "cuda" else CPU_BATCH)
    return TorchRunner(checkpoint, rows=rows, device=device, threads=start.threads or default_threads())


Candidate = tuple[str, Callable[[], Runner]]
"""A runner's name, as --kernels has it, and what builds it."""


def candidates(start: Start, checkpoint: Checkpoint) -> list[Candidate]:
    """What the settings allow, the fastest first. All give the same bits. Raises UnusableError.

    What is asked for by name is all there is, unless it has failed while it served: then the processor keeps the streams going.
    """
    rows, threads = start.max_batch or CPU_BATCH, start.threads or default_threads()

    def cuda() -> Runner:
        return CudaRunner(checkpoint, rows=start.max_batch or None, cache=cache_directory())

    def native() -> Runner:
        runner = NativeRunner(checkpoint, rows=rows, threads=threads, cpu=start.cpu, speculation=start.speculation)
        if start.speculation:
            runner.teach(what_training_counted(checkpoint))
        return runner

    found: list[Candidate] = []
    if start.cpu == "auto" and (start.device == "cuda" or (start.device == "auto" and (start.kernels == "cuda" or gpu_is_expected()))):
        found += [("cuda", cuda)]
    if start.device != "cuda":
        found += [("native", native)]
    if start.cpu == "auto":  # whoever names an instruction set wants that one
        found += [("torch", partial(torch_runner, start, checkpoint, device)) for device in torch_devices(start)]
    if start.cpu == "auto" and start.device != "cuda":
        found += [("reference", lambda: ReferenceRunner(checkpoint, rows=min(rows, REFERENCE_BATCH)))]
    if start.kernels != "auto":
        found = [candidate for candidate in found if candidate[0] == start.kernels]
    if not found:
        raise UnusableError(f"no engine fits device {start.device}, kernels {start.kernels}, cpu {start.cpu}: docs/engine.md has a table")
    left = [candidate for candidate in found if candidate[0] not in start.without]
    return left or candidates(structs.replace(start, device="cpu", kernels="auto"), checkpoint)


def what_training_counted(checkpoint: Checkpoint) -> Draft:
    """Where guesses start from. A file that cannot be used costs speed alone, so it is said and passed over."""
    try:
        return read_draft(checkpoint.path / DRAFT, checkpoint.config.vocab_size)
    except DraftError as error:
        print(f"folio: {error}", file=sys.stderr, flush=True)
        return empty_draft()


def first_that_passes(start: Start, checkpoint: Checkpoint, say: Callable[[str], None]) -> tuple[EngineCore, str]:
    """An engine that has passed its self-test, and why it is not a faster one. Raises UnusableError, SelfTestError, MemoryError."""
    stride = min(start.stride or default_stride(checkpoint.config.block_size), checkpoint.config.block_size)
    notes = [f"{name}: left alone, since it failed before" for name in start.without if gpu_is_expected()]
    on_card: EngineCore | None = None
    options = candidates(start, checkpoint)
    for name, build in options:
        say(f"preparing the {name} kernels")
        try:
            runner = build()
        except RunnerUnavailable as error:
            notes.append(str(error))
            continue
        core = EngineCore(runner, block_size=checkpoint.config.block_size, stride=stride, start_token=checkpoint.start)
        say(f"testing the {name} kernels")
        try:
            selftest.run(runner, checkpoint, say)
        except (selftest.SelfTestError, RunnerLost) as error:
            runner.close()
            if name == options[-1][0]:
                raise
            notes.append(str(error))
            continue
        if on_card is not None:
            core, note = faster(on_card, core)
            return core, "; ".join(filter(None, [*notes, note]))
        if name == "cuda" and any(other == "native" for other, _ in options):
            on_card = core
            continue
        return core, "; ".join(notes)
    if on_card is not None:
        return on_card, "; ".join(notes)
    raise UnusableError("; ".join(notes))


def faster(card: EngineCore, processor: EngineCore) -> tuple[EngineCore, str]:
    """Of two engines that passed, the one that decodes faster here, and a word if that is not the GPU's; the other is closed."""
    try:
        rate, other = decode_rate(card), decode_rate(processor)
    except RunnerLost as error:
        return processor, f"{card.runner.kernels}: {error}"
    slower = card if rate < other else processor
    slower.runner.close()
    if slower is processor:
        return card, ""
    return processor, f"{card.runner.kernels}: {rate:.0f} tokens/s, fewer than the {other:.0f} of {processor.runner.kernels}"


def decode_rate(core: EngineCore) -> float:
    """Tokens a second, the geometric mean of those of one row and of many, in the middle of a context."""
    runner, position, rates = core.runner, core.block_size // 2, []
    steps = max(1, min(MEASURED_STEPS, core.block_size - position))
    for rows in (1, min(runner.rows, MEASURED_ROWS)):
        slots = [DecodeSlot(row, 0, position, steps) for row in range(rows)]
        for row in range(rows):
            runner.set_row(row, SamplingParams(), [], [])
        runner.decode(slots)
        began = time.perf_counter()
        runner.decode(slots)
        rates.append(rows * steps / (time.perf_counter() - began))
    return math.sqrt(rates[0] * rates[1])


def load(start: Start, say: Callable[[str], None]) -> tuple[EngineCore, Ready]:
    """Read, build, self-test. Raises CheckpointError, UnusableError, SelfTestError, MemoryError."""
    say("reading the checkpoint")
    checkpoint = read_checkpoint(start.checkpoint, start.trusted_keys)
    core, note = first_that_passes(start, checkpoint, say)
    runner = core.runner
    ready = Ready(
        id=checkpoint.id,
        fingerprint=fingerprint(checkpoint, core.stride),
        config=checkpoint.config.to_json(),
        tokenizer=checkpoint.tokenizer.to_json(),
        manifest=checkpoint.manifest,
        created=int((Path(start.checkpoint) / MANIFEST).stat().st_mtime),
        num_parameters=checkpoint.config.num_parameters,
        stride=core.stride,
        device=runner.device,
        kernels=runner.kernels,
        max_batch=runner.rows,
        memory_bytes=runner.memory_bytes,
        note=note,
    )
    return core, ready


def fingerprint(checkpoint: Checkpoint, stride: int) -> str:
    """32 hex digits over everything that can change a byte: nothing of the machine is among it."""
    parts = {"checkpoint": checkpoint.id, "arithmetic": ARITHMETIC_VERSION, "window": "anchored", "stride": stride}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
