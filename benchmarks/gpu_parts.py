"""The parts of `make gpu`, each a process: ``python -m benchmarks.gpu_parts PART --out FILE``. It writes after every finding."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from model.checkpoint.files import Checkpoint, read_checkpoint
from model.exact.probes import SUMS
from model.params import SamplingParams
from service.worker.runners.interface import DecodeSlot, PrefillChunk, Runner

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "model" / "pretrained"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "folio"
BODY: dict[str, Any] = {"prompt": "the ", "seed": 7}


class Report:
    """What a part finds; on the disk as soon as it is found."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.path: Path = options.out
        self.dry: bool = options.dry
        self.checkpoint: Path = options.checkpoint
        self.found: dict[str, Any] = {}

    def add(self, **values: Any) -> None:
        self.found |= values
        self.path.write_text(json.dumps(self.found, indent=1))

    def read_checkpoint(self) -> Checkpoint:
        return read_checkpoint(self.checkpoint)

    def cuda_runner(self, rows: int) -> Runner:
        from service.worker.runners.cuda import CudaRunner

        return CudaRunner(self.read_checkpoint(), rows=rows, cache=CACHE)

    def native_runner(self, rows: int) -> Runner:
        from service.worker.runners.native import NativeRunner

        return NativeRunner(self.read_checkpoint(), rows=rows, threads=max(1, len(os.sched_getaffinity(0)) - 1))


def environment(report: Report) -> None:
    """(a) Card, driver, packages, and how long a runner takes to be there."""
    versions = {name: find_spec(name) is not None for name in ("torch", "transformers", "matplotlib")}
    report.add(machine=platform.platform(), cores=os.cpu_count(), python=platform.python_version(), installed=versions)
    if smi := shutil.which("nvidia-smi"):
        report.add(nvidia_smi=subprocess.run([smi], capture_output=True, text=True, timeout=15, check=False).stdout)
    began = time.perf_counter()
    runner: Any = report.cuda_runner(2)
    card = runner.card
    report.add(
        card={"name": card.name, "arch": card.arch, "multiprocessors": card.multiprocessors, "free_mib": card.free_bytes >> 20},
        ready_s=round(time.perf_counter() - began, 2),
    )
    runner.close()


@contextmanager
def server(report: Report, *flags: str) -> Iterator[Any]:
    """The service, as its users start it."""
    from tests.support.server import Server

    began = time.perf_counter()
    batch = ("--max-batch", "4") if report.dry else ()
    running = Server(report.checkpoint, *batch, *flags, variables={"XDG_CACHE_HOME": str(CACHE.parent), "LD_LIBRARY_PATH": library_path()})
    running.ready_s = round(time.perf_counter() - began, 2)  # type: ignore[attr-defined]
    try:
        yield running
    finally:
        running.close()


def library_path() -> str:
    return os.environ.get("LD_LIBRARY_PATH", "")


def service(report: Report) -> None:
    """(b) The real service on the card: ready time, the CPU's bytes, a killed worker, a stream that ends on the CPU, SIGTERM."""
    tokens = 40 if report.dry else 600
    with server(report, "--device", "cpu") as running:
        wanted = running.text(**BODY, max_new_tokens=tokens)
        report.add(cpu=running.http.get("/info").json()["model"]["kernels"], text_sha256=hashlib.sha256(wanted.encode()).hexdigest())
    with server(report, "--kernels", "cuda") as running:
        model = running.http.get("/info").json()["model"]
        report.add(kernels=model["kernels"], rows=model["max_batch"], ready_s=running.ready_s)
        report.add(same_bytes=running.text(**BODY, max_new_tokens=tokens) == wanted)
        os.kill(running.worker(), signal.SIGKILL)
        report.add(same_bytes_after_a_kill=running.text(**BODY, max_new_tokens=tokens) == wanted)
        first = running.post(**BODY, max_new_tokens=tokens // 2, stream=False).json()["text"]
        report.add(sigterm_status=running.end())
    with server(report, "--device", "cpu") as running:  # the stream goes on elsewhere: the second half of the same text
        report.add(begun_here_ended_on_the_cpu=running.text(**BODY, max_new_tokens=tokens).startswith(first))
    problems = [name for name, value in report.found.items() if value is False]
    assert not problems, problems


def bits(report: Report) -> None:
    """(c) Probes, and logits of every row, in steps of every size and in one pass, against the CPU's, bit by bit."""
    rows = 4 if report.dry else 256
    card, processor = report.cuda_runner(rows), report.native_runner(min(rows, 4))
    wrong = [name for number, (name, known) in enumerate(SUMS.items()) if card.probe(number) != known]
    report.add(probes=len(SUMS), wrong_probes=wrong)
    config = report.read_checkpoint().config
    tokens = np.random.default_rng(1).integers(0, config.vocab_size, min(config.block_size, 8 if report.dry else 256)).tolist()
    wanted = processor.logits([PrefillChunk(0, 0, tokens)]).view(np.int32)
    differing = {"one pass": int((card.logits([PrefillChunk(rows - 1, 0, tokens)]).view(np.int32) != wanted).sum())}
    for size in sorted({1, 2, 3, 9, 64, rows} & set(range(rows + 1))):
        count = 0
        for at in range(len(tokens) if size in (1, rows) else min(len(tokens), 32)):
            logits = card.logits([PrefillChunk(row, at, [tokens[at]]) for row in range(size)]).view(np.int32)
            count += int((logits != wanted[at]).sum())
        differing[f"{size} rows"] = count
        report.add(differing_logits=differing)
    assert not wrong, wrong
    assert not any(differing.values()), differing


def profile(report: Report) -> None:
    """(d) One step, kernel by kernel: the time of each when it runs again and again behind itself, and of the whole."""
    repeats = 2 if report.dry else 200
    for rows in (1, 4) if report.dry else (1, 64, 256):
        runner: Any = report.cuda_runner(rows)
        slots = [DecodeSlot(row, 0, runner.plan.config.block_size // 2, 2) for row in range(rows)]
        runner.decode(slots)
        args = runner.arguments(runner.size_for(rows))
        found: dict[str, float] = {}
        launches = runner.plan.launches(runner.size_for(rows), distinct=True)
        for launch in {launch.kernel: launch for launch in launches}.values():
            runner.place([(row, 0, slots[row].position) for row in range(rows)], [1] * rows)
            graph = runner.card.captured(runner.launches([launch] * repeats, args))
            found[launch.kernel] = round(timed(lambda: (runner.card.run(graph), runner.card.wait())) / repeats * 1e6, 2)  # noqa: B023
        step = timed(lambda: runner.decode([DecodeSlot(s.row, 0, s.position, min(64, 4 * repeats)) for s in slots])) / min(64, 4 * repeats)  # noqa: B023
        report.add(**{f"{rows} rows": {"launches": len(launches), "us": found, "step_us": round(step * 1e6, 1)}})
        runner.close()


def timed(run: Callable[[], Any]) -> float:
    """Seconds, the median of three, after one that does not count."""
    run()
    times = []
    for _ in range(3):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def decode_rate(runner: Runner, rows: int, steps: int, position: int) -> float:
    """Tokens a second of some rows."""
    for row in range(rows):
        runner.set_row(row, SamplingParams(seed=row), [], [])
    slots = [DecodeSlot(row, 0, position, steps) for row in range(rows)]
    return round(rows * steps / timed(lambda: runner.decode(slots)), 1)


def rates(report: Report) -> None:
    """(e) Tokens a second: the card and the processor alone, the service over HTTP, and PyTorch's transformers where installed."""
    sizes = (1, 4) if report.dry else (1, 8, 64, 256)
    config = report.read_checkpoint().config
    position, steps = config.block_size // 2, min(64, config.block_size // 2)
    for name, make in (("gpu", report.cuda_runner), ("cpu", report.native_runner)):
        found: dict[str, float] = {}
        runner = make(sizes[-1])
        for rows in sizes:
            found[str(rows)] = decode_rate(runner, rows, steps, position)
            report.add(**{name: found})
        runner.close()
    found = {}
    with server(report, "--kernels", "cuda") as running:
        for streams in sizes:
            tokens, requests = (8, streams) if report.dry else (200, max(8, 2 * streams))
            flags = {"port": running.port, "streams": streams, "requests": requests, "tokens": tokens, "prompt": 0 if report.dry else 16}
            command = [sys.executable, "-m", "benchmarks.load", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
            found[str(streams)] = json.loads(done.stdout)["tokens_per_s"]
            report.add(http=found)
    if not report.dry and find_spec("torch") and find_spec("transformers"):
        report.add(transformers_static_cache=transformers_rate(report))


def transformers_rate(report: Report) -> float:
    """One text, the same shape, random weights, a static cache and compiled steps."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    c = report.read_checkpoint().config
    width = c.n_embd // c.n_head * c.n_head  # its heads divide its width
    shape = GPT2Config(vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=width, n_layer=c.n_layer, n_head=c.n_head)
    model: Any = GPT2LMHeadModel(shape)
    model = model.to("cuda", torch.bfloat16).eval()
    model.generation_config.cache_implementation = "static"
    ids = torch.zeros(1, 4, dtype=torch.long, device="cuda")
    count = 128
    return round(count / timed(lambda: model.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False)), 1)


def shapes(report: Report) -> None:
    """(f) GPT-2's shape, more rows than the card holds, and a card that others have filled."""
    from model.config import GPTConfig
    from service.worker.runners.cuda import CudaRunner
    from service.worker.runners.interface import RunnerUnavailable

    try:
        report.cuda_runner(10_000_000).close()
    except RunnerUnavailable as error:
        report.add(too_many_rows=str(error))
    assert "lower --max-batch" in report.found.get("too_many_rows", ""), report.found
    if report.dry:
        return
    from tests.gpu.checkpoints import random_model

    shape = GPTConfig(vocab_size=50257, block_size=1024, n_layer=12, n_head=12, n_embd=768, qkv_bias=True, activation="gelu_tanh")
    model: Any = random_model(
        1, wide=True, **{name: getattr(shape, name) for name in shape.__slots__ if name not in ("dropout", "arithmetic")}
    )
    runner = CudaRunner(model, rows=64, cache=CACHE)
    report.add(**{f"gpt2_{rows}": decode_rate(runner, rows, 64, 512) for rows in (1, 8, 64)})
    runner.close()


def training(report: Report) -> None:
    """(g) A run that is stopped and resumed is the same to the last bit, and the step beside the original script's."""
    if report.dry:
        text = report.path.parent / "text.txt"
        text.write_text("To be, or not to be, that is the question:\n" * 300)
    elif data := os.environ.get("FOLIO_DATA"):
        text = Path(data)
    else:
        report.add(skipped="FOLIO_DATA names no text")
        return
    folder = report.path.parent / "runs"
    shutil.rmtree(folder, ignore_errors=True)
    steps = 6 if report.dry else 300
    flags = [
        "--data",
        str(text),
        "--max-iters",
        str(steps),
        "--eval-interval",
        str(steps // 2),
        *(["--preset", "smoke"] if report.dry else []),
    ]

    def train(*arguments: str, stop_when: Path | None = None) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "training", *arguments], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        while stop_when is not None and process.poll() is None and not stop_when.exists():
            time.sleep(0.02)
        if stop_when is not None:
            process.terminate()
        said, _ = process.communicate()
        assert process.returncode == 0 or stop_when is not None, said.decode(errors="replace")[-1000:]

    def weights(run: str) -> str:
        return hashlib.sha256((folder / run / "last" / "model.safetensors").read_bytes()).hexdigest()

    began = time.perf_counter()
    train(*flags, "--out", str(folder / "whole"))
    report.add(steps=steps, seconds_of_the_run=round(time.perf_counter() - began, 1))
    train(*flags, "--out", str(folder / "stopped"), stop_when=folder / "stopped" / "last" / "model.safetensors")
    train("resume", str(folder / "stopped"))
    report.add(resumed_bit_for_bit=weights("stopped") == weights("whole"))
    if not report.dry:
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.train_step"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
        )
        report.add(train_step=done.stdout[-2000:])
    assert report.found["resumed_bit_for_bit"]


def containers(report: Report) -> None:
    """(h) The compose file on a Docker engine, and compute-sanitizer, where they are installed."""
    if docker := shutil.which("docker"):
        done = subprocess.run([docker, "compose", "config", "--quiet"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
        report.add(compose="valid" if done.returncode == 0 else done.stderr.splitlines()[0])
    else:
        report.add(compose="no docker here")
    tool = shutil.which("compute-sanitizer")
    if tool is None or report.dry:
        report.add(compute_sanitizer="not installed" if tool is None else "not in a dry run")
        return
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu_parts",
        "bits",
        "--out",
        str(report.path.with_suffix(".bits")),
        "--checkpoint",
        str(report.checkpoint),
        "--dry",
    ]
    for check in ("memcheck", "racecheck"):
        done = subprocess.run(
            [tool, "--tool", check, "--error-exitcode", "9", *command], cwd=ROOT, capture_output=True, text=True, check=False
        )
        report.add(**{check: done.stdout[-400:], f"{check}_status": done.returncode})


PARTS = {part.__name__: part for part in (environment, service, bits, profile, rates, shapes, training, containers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--checkpoint", type=Path, default=SHIPPED)
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    PARTS[options.part](Report(options))


if __name__ == "__main__":
    main()
