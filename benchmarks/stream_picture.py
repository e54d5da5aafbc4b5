"""docs/stream.svg: a real stream, as it came, whose worker was killed with SIGKILL halfway.

    python -m benchmarks.stream_picture [--out docs/stream.svg] [--tokens 600] [--seed 7]

Every chunk of text appears in the picture in the order and at the pace in which it came; a stream too fast to be seen is slowed down, a
pause of more than three seconds is shortened, and the picture says both. What it says at its end, that the text is the one that an
undisturbed run gives, is checked before it is drawn.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

import httpx

from benchmarks.serving import ROOT, free_port, processes, wait_for

PROMPT = "ROMEO:"
LINE, CHARACTER, MARGIN, WIDTH = 19, 8.43, 24, 760
"""Pixels: height of a line, width of a character at 14 px, the border, the picture."""
LONGEST_PAUSE_S = 3.0
"""A longer one is shown as this long, and the picture says so."""
WRITING_S = 6.0
"""A faster stream is shown so much slower that its writing takes this long, and the picture says so."""
HOLD_S = 4.0
"""How long the whole text stands before it begins again."""


@dataclass(frozen=True)
class Chunk:
    """Text that came at once."""

    at_s: float
    index: int  # tokens up to here
    text: str


@dataclass(frozen=True)
class Recording:
    """A stream from its request on."""

    chunks: list[Chunk]
    killed_s: float
    old_worker: int
    new_worker: int
    text_sha256: str


def record(url: str, pid: int, body: dict[str, Any]) -> Recording:
    """Read a stream, and kill the worker when half of it is here. Raises SystemExit if a byte differs from an undisturbed run's."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as http:
        golden = http.post("/generate", json={**body, "stream": False}).raise_for_status().json()
        old, killed, chunks, end = worker_of(pid), 0.0, list[Chunk](), {"text": ""}
        began = time.perf_counter()
        with http.stream("POST", "/generate", json=body) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: "):
                    continue
                data, now = json.loads(line[6:]), time.perf_counter() - began
                if "finish_reason" in data:
                    end = data
                    break
                chunks.append(Chunk(now, data["index"], data["text"]))
                if not killed and data["index"] * 2 >= body["max_new_tokens"]:
                    os.kill(old, signal.SIGKILL)
                    killed = now
    if end["text"] != golden["text"] or "".join(chunk.text for chunk in chunks) != golden["text"]:
        raise SystemExit("the text is not the one of an undisturbed run")
    if worker_of(pid) == old:
        raise SystemExit("the stream was through before its worker was killed")
    return Recording(chunks, killed, old, worker_of(pid), hashlib.sha256(golden["text"].encode()).hexdigest())


def worker_of(pid: int) -> int:
    """The newest of the workers."""
    return max(child for child, name in processes(pid).items() if name == "worker")


def draw(recording: Recording) -> str:
    """The picture. Without animation it shows its last moment."""
    true_back, pause_s = longest_pause(recording)
    shown_s = min(pause_s, LONGEST_PAUSE_S)
    slower = max(1, round(WRITING_S / (recording.chunks[-1].at_s - pause_s)))
    recording = paced(recording, true_back, pause_s, shown_s, slower)
    back = next(chunk for chunk in recording.chunks if chunk.index == true_back.index)
    total = recording.chunks[-1].at_s + HOLD_S
    rows: list[str] = [appearing(0, 0, 0.0, f'$ curl -N :8000/generate -d \'{{"prompt":"{PROMPT}","seed":7,…}}\'', "dim")]
    line, column = 2, len(PROMPT)
    rows.append(appearing(2, 0, 0.0, PROMPT, "dim"))
    for chunk in recording.chunks:
        kind = "new" if chunk.index >= back.index else "old"
        for number, part in enumerate(chunk.text.split("\n")):
            if number:
                line, column = line + 1, 0
            if part:
                rows.append(appearing(line, column, chunk.at_s, part, kind))
                column += len(part)
    bottom = line + 2
    shortened = f"   # {pause_s:.1f} s until the next character" + (f", shown as {shown_s:.0f} s" if pause_s > shown_s else "")
    slowed = f"   # shown {slower} times slower than it came" if slower > 1 else ""
    stages = [
        (
            0.0,
            recording.killed_s,
            "dim",
            f"worker {recording.old_worker} writes" + slowed,
        ),
        (recording.killed_s, back.at_s, "loss", f"$ kill -9 {recording.old_worker}" + shortened),
        (back.at_s, recording.chunks[-1].at_s, "new", f"worker {recording.new_worker} goes on, in the same stream"),
        (recording.chunks[-1].at_s, total, "new", f"the same bytes as without the kill: SHA-256 {recording.text_sha256[:16]}"),
    ]
    rows += [appearing(bottom, 0, begin, text, kind, end if end < total else None) for begin, end, kind, text in stages]
    height = 2 * MARGIN + (bottom + 1) * LINE
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" aria-labelledby="t">
<title id="t">A text streams; its worker is killed; a new one goes on with the next character, and the text is the same to the byte.</title>
<style>
text {{ font: 14px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; white-space: pre; fill: #e9e2d3 }}
.dim {{ fill: #9a9184 }} .new {{ fill: #9fce8b }} .loss {{ fill: #ef8b73 }}
</style>
<rect width="{WIDTH}" height="{height}" rx="8" fill="#1b1815"/>
<rect width="0" height="0"><animate id="loop" attributeName="x" to="0" begin="0s;loop.end" dur="{total:.2f}s"/></rect>
{chr(10).join(rows)}
</svg>
"""


def paced(recording: Recording, back: Chunk, pause_s: float, shown_s: float, slower: int) -> Recording:
    """The same with other times: writing takes ``slower`` times as long, the pause before ``back`` only ``shown_s``."""

    def time_of(chunk: Chunk) -> float:
        return chunk.at_s * slower if chunk.index < back.index else (chunk.at_s - pause_s) * slower + shown_s

    chunks = [replace(chunk, at_s=time_of(chunk)) for chunk in recording.chunks]
    return replace(recording, chunks=chunks, killed_s=min(recording.killed_s, back.at_s - pause_s) * slower)


def longest_pause(recording: Recording) -> tuple[Chunk, float]:
    """(the first chunk of the new worker, seconds that the stream stood still before it)"""
    pairs = zip(recording.chunks, recording.chunks[1:], strict=False)
    before, back = max((pair for pair in pairs if pair[0].at_s >= recording.killed_s), key=lambda pair: pair[1].at_s - pair[0].at_s)
    return back, back.at_s - before.at_s


def appearing(line: int, column: int, begin_s: float, text: str, kind: str, end_s: float | None = None) -> str:
    """Text that is hidden until ``begin_s`` of each round; or shown until ``end_s`` only, and not without animation."""
    x, y = MARGIN + column * CHARACTER, MARGIN + (line + 0.75) * LINE
    length = f' textLength="{len(text) * CHARACTER:.1f}"' if len(text) > 1 else ""
    if end_s is None:
        state, change = "visible", f'to="hidden" begin="loop.begin" dur="{begin_s:.2f}s"'
    else:
        state, change = "hidden", f'to="visible" begin="loop.begin+{begin_s:.2f}s" dur="{end_s - begin_s:.2f}s"'
    change = f'<set attributeName="visibility" {change}/>' if begin_s or end_s else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{length} visibility="{state}">{escape(text)}{change}</text>'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "stream.svg")
    parser.add_argument("--tokens", type=int, default=600)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    port = free_port()
    command = [sys.executable, "-m", "service", "--port", str(port), "--log-level", "error"]
    server = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        wait_for(port, "/readyz")
        body = {"prompt": PROMPT, "max_new_tokens": options.tokens, "seed": options.seed}
        recording = record(f"http://127.0.0.1:{port}", server.pid, body)
    finally:
        server.terminate()
        server.wait(40)
    options.out.write_text(draw(recording))
    print(f"{len(recording.chunks)} chunks in {recording.chunks[-1].at_s:.1f} s, killed at {recording.killed_s:.2f} s: {options.out}")


if __name__ == "__main__":
    main()
