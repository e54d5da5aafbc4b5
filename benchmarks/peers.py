"""Folio beside llama.cpp's server over HTTP, and beside CTranslate2 in process, taking turns in one run.

    pip install gguf ctranslate2 transformers
    python -m benchmarks.peers --llama-server PATH [--streams 1 8 64] [--rounds 3] [--json FILE]

Every server gets the machine to itself for its turn: it starts, is warmed up, answers every load and is stopped; medians over rounds.
The peers get random weights of our size (speed does not depend on them), in the nearest shape that they can hold: 5 layers, 256 wide,
4 heads of 64, 65 tokens, context 256. All of them sample at temperature 1 from the whole vocabulary, 200 tokens after 16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import serving

TOKENS, PROMPT = 200, 16
CORES = len(os.sched_getaffinity(0))
Row = dict[str, Any]


@contextmanager
def started(command: list[str], port: int, path: str) -> Iterator[Row]:
    """A server from its start until it is ready, stopped at the end; what its start took, and its peak memory once it is used."""
    server = subprocess.Popen(command, cwd=serving.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    facts: Row = {}
    try:
        facts["ready_s"] = round(serving.wait_for(port, path), 2)
        yield facts
        facts["peak_mb"] = round(sum(serving.peak_mb(pid) for pid in serving.processes(server.pid)), 1)
    finally:
        server.terminate()
        server.wait(60)


def folio(port: int) -> tuple[list[str], str]:
    """The command of our server, and the route that says that it is ready."""
    return [sys.executable, "-m", "service", "--port", str(port), "--log-level", "warning"], "/readyz"


def llama(binary: Path, model: Path) -> Callable[[int], tuple[list[str], str]]:
    """The same of llama.cpp's, with as many threads as there are cores, and room for 64 contexts."""
    flags = ["-m", str(model), "-c", str(64 * 256), "-np", "64", "-t", str(CORES), "--no-webui"]
    return lambda port: ([str(binary), *flags, "--port", str(port)], "/health")


def over_http(
    name: str, command: Callable[[int], tuple[list[str], str]], streams: list[int], scale: float, no_more: int = 1_000_000
) -> tuple[Row, list[Row]]:
    """One turn of a server: facts about it, and a row for each load; loads of more than ``no_more`` streams are left out."""
    port = serving.free_port()
    dialect = "folio" if name == "folio" else "llama"
    arguments, path = command(port)
    with started(arguments, port, path) as facts:
        serving.load(port, dialect=dialect, streams=2, requests=4, tokens=50)
        rows = []
        for count in (count for count in streams if count <= no_more):
            requests = max(count, round(serving.REPEATS[count] * scale))
            rows.append(serving.load(port, dialect=dialect, streams=count, requests=requests, tokens=TOKENS, prompt=PROMPT))
    return facts, rows


def ctranslate2_rates(folder: Path, batches: list[int], scale: float) -> dict[int, float]:
    """Tokens/s of CTranslate2 with weights and products of 8 bits, in this process."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    if not (folder / "ct2").exists():
        write_gpt2(folder / "gpt2")
        TransformersConverter(str(folder / "gpt2")).convert(str(folder / "ct2"), quantization="int8")
    generator = ctranslate2.Generator(str(folder / "ct2"), device="cpu", compute_type="int8", intra_threads=CORES)
    rates = {}
    for batch in batches:
        prompts = [[chr(33 + i) for i in range(PROMPT)]] * batch
        times = []
        for _ in range(1 + max(1, round(4 * scale))):
            began = time.perf_counter()
            results = generator.generate_batch(
                prompts,
                max_batch_size=batch,
                min_length=TOKENS,
                max_length=TOKENS,
                sampling_topk=0,
                sampling_temperature=1.0,
                include_prompt_in_result=False,
                end_token=[],
            )
            times.append(time.perf_counter() - began)
            assert all(len(result.sequences_ids[0]) == TOKENS for result in results)
        rates[batch] = batch * TOKENS / min(times[1:])
    return rates


def write_gpt2(path: Path) -> None:
    """Random weights of our size as transformers keeps them, with a tokenizer of single characters."""
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    vocabulary = {chr(33 + i): i for i in range(65)}
    GPT2LMHeadModel(
        GPT2Config(vocab_size=65, n_positions=256, n_embd=256, n_layer=5, n_head=4, bos_token_id=0, eos_token_id=0)
    ).save_pretrained(path)
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="!"))
    fast: Any = PreTrainedTokenizerFast
    fast(tokenizer_object=words, unk_token="!", bos_token="!", eos_token="!").save_pretrained(path)


def engine_rates(batches: list[int], scale: float) -> dict[int, float]:
    """Tokens/s of our engine, in this process, with as many threads as there are cores."""
    flags = argparse.Namespace(
        server=["--threads", str(CORES)], checkpoint=serving.ROOT / "model" / "pretrained", scale=scale, tokens=TOKENS, prompt=PROMPT
    )
    return serving.engine_alone(flags, batches)


def median(rows: list[Row], *path: str) -> float:
    """Over rounds, of one figure of a row."""
    values = []
    for row in rows:
        value: Any = row
        for name in path:
            value = value[name]
        values.append(float(value))
    return statistics.median(values)


def show(http: dict[str, list[list[Row]]], facts: dict[str, list[Row]], streams: list[int]) -> None:
    """The table in Markdown: a row for each load, and for each server its figures and its ratio to Folio's."""
    names = list(http)
    print("| streams | " + " | ".join(f"{name}, tokens/s (TTFT p50 / p99, ms)" for name in names) + " | Folio ÷ |")
    print("|---" * (len(names) + 2) + "|")
    for at, count in enumerate(streams):
        cells, rates = [], []
        for name in names:
            rows = [turn[at] for turn in http[name] if at < len(turn)]
            if rows:
                rates.append(median(rows, "tokens_per_s"))
                cells.append(f"{rates[-1]:,.0f} ({median(rows, 'ttft_ms', 'p50'):.1f} / {median(rows, 'ttft_ms', 'p99'):.0f})")
            else:
                cells.append("–")
        ratios = ", ".join(f"{rates[0] / rate:.1f}" for rate in rates[1:])
        print(f"| {count} | " + " | ".join(cells) + f" | {ratios or '–'} |")
    for name in names:
        print(f"\n{name}: ready after {median(facts[name], 'ready_s'):.2f} s, {median(facts[name], 'peak_mb'):.0f} MB at its peak")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama-server", type=Path, help="llama.cpp's server (default: it is left out)")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 64, 256])
    parser.add_argument("--in-process", type=int, nargs="*", default=[1, 8, 64], help="batches beside CTranslate2; none leaves it out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of requests")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = compare(options, Path(name))
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")


def compare(options: argparse.Namespace, folder: Path) -> Row:
    """All rounds; prints the tables."""
    servers: dict[str, Callable[[int], tuple[list[str], str]]] = {"folio": folio}
    if options.llama_server:
        from benchmarks import peer_gguf

        for kind in ("f16", "q8_0"):
            peer_gguf.write(folder / f"{kind}.gguf", kind)
            servers[f"llama-server {kind}"] = llama(options.llama_server, folder / f"{kind}.gguf")
    http: dict[str, list[list[Row]]] = {name: [] for name in servers}
    facts: dict[str, list[Row]] = {name: [] for name in servers}
    alone: dict[str, list[dict[int, float]]] = {"folio": [], "ctranslate2": []}
    for _ in range(options.rounds):
        for name, command in servers.items():
            fact, rows = over_http(name, command, options.streams, options.scale, 64 if name != "folio" else 1_000_000)
            facts[name].append(fact)
            http[name].append(rows)
        if options.in_process:
            alone["folio"].append(engine_rates(options.in_process, options.scale))
            alone["ctranslate2"].append(ctranslate2_rates(folder, options.in_process, options.scale))
    print(f"{serving.machine()}; medians of {options.rounds} rounds\n")
    show(http, facts, options.streams)
    if options.in_process:
        print(f"\nIn process, {CORES} threads, tokens/s:\n\n| batch | Folio | CTranslate2 int8 | Folio ÷ |\n|---|---|---|---|")
        for batch in options.in_process:
            ours, theirs = (statistics.median(rates[batch] for rates in alone[name]) for name in alone)
            print(f"| {batch} | {ours:,.0f} | {theirs:,.0f} | {ours / theirs:.1f} |")
    return {"machine": serving.machine(), "http": http, "facts": facts, "in_process": alone}


if __name__ == "__main__":
    main()
