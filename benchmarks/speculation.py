"""``python -m benchmarks.speculation [--gpt2]``: what guesses win and cost, with and without them by turns in one process.

Engine alone. In each round both write the same texts, of seeds that neither has seen (what was generated once is guessed the next time),
and which of them begins changes. The figure is the ratio of the medians of their times: above 1, guesses win. Texts must be equal.

The shipped checkpoint has its table of contexts; ``--gpt2`` takes the shape of GPT-2 124M with random weights and no table, where guesses
fail at temperature 1 (what do they cost then, also beside filters over 50,257 tokens?) and are right where a greedy text repeats itself.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.gpt2_shape import gpt2_shape
from model.checkpoint.files import Checkpoint, read_checkpoint
from model.draft import Draft, empty_draft
from model.params import SamplingParams
from model.window import default_stride
from service.worker.core import EngineCore
from service.worker.messages import Submit
from service.worker.runners.native import NativeRunner
from service.worker.startup import what_training_counted

PRETRAINED = Path(__file__).parents[1] / "model" / "pretrained"


@dataclass(frozen=True)
class Load:
    """What is asked of both engines in a round."""

    name: str
    streams: int
    params: SamplingParams
    prompts: tuple[tuple[int, ...], ...]
    """Taken by turns."""


def shipped_loads(checkpoint: Checkpoint) -> list[Load]:
    """From one stream to a full machine, and a prompt that is unlike anything in the table."""
    prompts = tuple(tuple(checkpoint.tokenizer.encode(text)) for text in ("ROMEO:", "First Citizen:\n", "\n", "What, is the "))
    strange = (tuple(checkpoint.tokenizer.encode("zqxj vwkz QXZJ kkqv ")),)
    text = SamplingParams(max_new_tokens=400)
    loads = [Load(f"temperature {t}", n, replace(text, temperature=float(t)), prompts) for n in (1, 2, 4, 8, 64) for t in (1, 0)]
    wild = Load("temperature 2, strange prompt", 1, replace(text, temperature=2.0), strange)
    return [*loads, wild, Load("top_p 0.9, penalties", 1, replace(text, top_p=0.9, repetition_penalty=1.1, frequency_penalty=0.2), prompts)]


def gpt2_loads() -> list[Load]:
    """Guesses that fail, with and without filters, and guesses that are right."""
    prompts = (tuple(range(5, 21)),)
    text = SamplingParams(max_new_tokens=64)
    filters = [("top_k 50", {"top_k": 50}), ("top_p 0.9", {"top_p": 0.9})]
    failing = [Load("temperature 1", n, text, prompts) for n in (1, 4)]
    filtered = [Load(f"temperature 1, {name}", 1, replace(text, **values), prompts) for name, values in filters]  # type: ignore[arg-type]
    return [*failing, *filtered, Load("temperature 0", 1, replace(text, temperature=0.0), prompts)]


class Engine:
    """A core, with or without guesses."""

    def __init__(self, checkpoint: Checkpoint, rows: int, draft: Draft | None) -> None:
        self.runner = NativeRunner(checkpoint, rows=rows, threads=1, speculation=draft is not None)
        if draft is not None:
            self.runner.teach(draft)
        block_size = checkpoint.config.block_size
        self.core = EngineCore(self.runner, block_size=block_size, stride=default_stride(block_size), start_token=checkpoint.start)

    def write(self, load: Load, seed: int) -> tuple[float, dict[int, list[int]]]:
        """Seconds for one text of each stream, and the texts."""
        texts: dict[int, list[int]] = {number: [] for number in range(load.streams)}
        for number in texts:
            prompt = list(load.prompts[(seed + number) % len(load.prompts)])
            self.core.submit(Submit(number, number, prompt, [], replace(load.params, seed=1000 * seed + number)))
        began = time.perf_counter()
        while self.core.has_work:
            for output in self.core.step().outputs:
                texts[output.sequence] += output.tokens
        return time.perf_counter() - began, texts


def compare(load: Load, engines: dict[bool, Engine], rounds: int) -> None:
    """Print the ratio of one load."""
    times: dict[bool, list[float]] = {True: [], False: []}
    before = engines[True].runner.speculation
    for number in range(-1, rounds):  # the first round is not counted: what passes cost is measured there
        texts = {}
        for guesses in (True, False) if number % 2 else (False, True):
            seconds, texts[guesses] = engines[guesses].write(load, number + 1)
            if number >= 0:
                times[guesses].append(seconds)
        assert texts[True] == texts[False], "a guess moved a byte"
    after = engines[True].runner.speculation
    proposed, accepted = after.proposed - before.proposed, after.accepted - before.accepted
    without, with_guesses = statistics.median(times[False]), statistics.median(times[True])
    rate = load.streams * load.params.max_new_tokens / with_guesses
    right = f"{accepted / proposed:.0%} of {proposed} guesses right" if proposed else "no guesses"
    print(
        f"{load.streams:3} × {load.name}: {without / with_guesses:.2f} times as fast with guesses ({rate:,.0f} tokens/s; {right})",
        flush=True,
    )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpt2", action="store_true", help="the shape of GPT-2 124M instead of the shipped checkpoint")
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    checkpoint = gpt2_shape() if options.gpt2 else read_checkpoint(PRETRAINED)
    draft = empty_draft() if options.gpt2 else what_training_counted(checkpoint)
    loads = gpt2_loads() if options.gpt2 else shipped_loads(checkpoint)
    rows = max(load.streams for load in loads)
    engines = {guesses: Engine(checkpoint, rows, draft if guesses else None) for guesses in (True, False)}
    for load in loads:
        compare(load, engines, options.rounds)
    for engine in engines.values():
        engine.runner.close()


if __name__ == "__main__":
    main()
