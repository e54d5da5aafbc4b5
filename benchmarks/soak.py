"""A soak of the real server: many requests with random cancellations, crashes of the worker and promotions, all at once.

    python -m benchmarks.soak [--requests 20000] [--seed 1]

It ends with 0 differing bytes, 0 responses of 500, flat memory and balanced books, or it fails and says what differed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks.serving import ROOT, free_port, get, peak_mb, processes, wait_for
from model.checkpoint.files import write_checkpoint
from model.checkpoint.loading import checkpoint_files
from model.checkpoint.manifest import read_manifest
from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer.char import CharTokenizer

ADMIN = "soak-admin-key"
CHARACTERS = "\n abcdefghij"
TEMPLATES = 60


@dataclass
class Tally:
    """What happened."""

    done: int = 0
    cancelled: int = 0
    resumed: int = 0
    kills: int = 0
    promotions: int = 0
    refused: dict[str, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)


def make_checkpoints(directory: Path) -> dict[str, Path]:
    """Two small models of one vocabulary. id → directory."""
    made = {}
    for seed in (1, 2):
        torch.manual_seed(seed)
        config = GPTConfig(vocab_size=len(CHARACTERS), block_size=64, n_layer=2, n_head=3, n_embd=48, dropout=0.0)
        path = directory / f"model-{seed}"
        write_checkpoint(path, checkpoint_files(GPT(config).eval(), CharTokenizer(CHARACTERS), list(range(12)) * 5), {})
        made[read_manifest(path).id] = path
    return made


def templates(rng: random.Random) -> list[dict[str, Any]]:
    """Request bodies of every kind, short enough that many fit in."""
    bodies = []
    for number in range(TEMPLATES):
        body: dict[str, Any] = {
            "prompt": "".join(rng.choice(CHARACTERS) for _ in range(rng.choice([0, 1, 9, 40, 90]))),
            "max_new_tokens": rng.choice([1, 10, 60, 150]),
            "seed": number,
        }
        body |= rng.choice([{}, {}, {"temperature": 0.5}, {"temperature": 0}, {"top_k": 3}, {"top_p": 0.8, "min_p": 0.02}])
        body |= rng.choice([{}, {}, {"stop": ["ab", "j"]}, {"frequency_penalty": 0.5}, {"repetition_penalty": 1.2}])
        body |= rng.choice([{}, {}, {}, {"context": "sliding", "max_new_tokens": 20}, {"logprobs": True, "top_logprobs": 2}])
        bodies.append(body)
    return bodies


async def post(port: int, path: str, body: dict[str, Any], headers: dict[str, str], cut_after: int | None = None) -> tuple[int, bytes]:
    """One request on a connection of its own: (status, body). ``cut_after`` bytes of body the connection is reset: (0, what came)."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps(body).encode()
    fields = {"Host": "localhost", "Content-Type": "application/json", "Content-Length": str(len(data)), "Connection": "close", **headers}
    writer.write((f"POST {path} HTTP/1.1\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n").encode() + data)
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        status, received = int(head.split(" ", 2)[1]), b""
        chunked = "transfer-encoding: chunked" in head.lower()
        while True:
            if chunked:
                size = int((await reader.readline()).strip() or b"0", 16)
                part = (await reader.readexactly(size + 2))[:-2] if size else b""
            else:
                part = await reader.read(1 << 16)
            if not part:
                return status, received
            received += part
            if cut_after is not None and len(received) > cut_after:
                writer.transport.abort()
                return 0, received
    finally:
        writer.close()


def parse_stream(data: bytes) -> tuple[str, str | None, dict[str, Any] | None]:
    """(text so far, last event id, the end event)."""
    text, last, end = "", None, None
    for event in data.decode().split("\n\n")[:-1]:
        fields = dict(line.split(": ", 1) for line in event.split("\n") if ": " in line and not line.startswith(":"))
        if fields.get("event") == "end":
            end = json.loads(fields["data"])
        elif fields.get("event") == "error":
            end = {"error": json.loads(fields["data"])["error"]}
        elif "data" in fields:
            text += json.loads(fields["data"])["text"]
            last = fields.get("id", last)
    return text, last, end


class Soak:
    """The clients and those who make trouble."""

    def __init__(self, port: int, pid: int, checkpoints: list[str], options: argparse.Namespace) -> None:
        self.port, self.pid, self.checkpoints, self.total = port, pid, checkpoints, options.requests
        self.pause, self.kill_share = options.pause, options.kills
        self.rng = random.Random(options.seed)
        self.bodies = templates(self.rng)
        self.golden: dict[tuple[str, int], str] = {}
        self.tally = Tally()
        self.started = 0

    async def learn(self) -> None:
        """The golden text of every template under every checkpoint, one request at a time."""
        for checkpoint in self.checkpoints:
            await self.promote(checkpoint)
            for number, body in enumerate(self.bodies):
                status, data = await post(self.port, "/generate", {**body, "stream": False}, {})
                assert status == 200, data
                self.golden[checkpoint, number] = json.loads(data)["text"]

    async def promote(self, checkpoint: str) -> None:
        """Until it serves, or is refused for a reason that passes."""
        for _ in range(200):
            status, data = await post(self.port, "/admin/promote", {"checkpoint": checkpoint}, {"Authorization": f"Bearer {ADMIN}"})
            if status == 200:
                self.tally.promotions += 1
                return
            assert status in (409, 503), (status, data)
            await asyncio.sleep(0.1)

    async def client(self) -> None:
        """Requests of every kind, one after the other."""
        while self.started < self.total:
            self.started += 1
            number = self.rng.randrange(TEMPLATES)
            kind = self.rng.choice(["json", "stream", "stream", "cancel", "resume"])
            try:
                await self.one(number, kind)
            except (ConnectionError, asyncio.IncompleteReadError) as error:
                self.tally.wrong.append(f"{kind} {number}: {type(error).__name__} {error}")
            self.tally.done += 1

    async def one(self, number: int, kind: str) -> None:
        body = {**self.bodies[number], "stream": kind != "json"}
        cut = self.rng.randrange(1, 900) if kind in ("cancel", "resume") else None
        status, data = await post(self.port, "/generate", body, {}, cut)
        if status not in (0, 200):
            code = json.loads(data)["error"]["code"]
            self.tally.refused[code] = self.tally.refused.get(code, 0) + 1
            if status == 500:
                self.tally.wrong.append(f"500: {data!r}")
            return
        if kind == "json":
            reply = json.loads(data)
            self.compare(number, reply["checkpoint"], reply["text"], kind)
            return
        text, last, end = parse_stream(data)
        if status == 200:
            self.finish(number, text, end, kind)
        elif kind == "cancel" or last is None:
            self.tally.cancelled += 1
        else:
            status, data = await post(self.port, "/generate", body, {"Last-Event-ID": last})
            if status == 410:  # its checkpoint was retired meanwhile: the one honest answer
                self.tally.refused["checkpoint_gone"] = self.tally.refused.get("checkpoint_gone", 0) + 1
                return
            rest, _, end = parse_stream(data)
            self.tally.resumed += 1
            self.finish(number, text + rest, end, kind)

    def finish(self, number: int, text: str, end: dict[str, Any] | None, kind: str) -> None:
        """A stream that was read to its end."""
        if end is None or "error" in end:
            self.tally.wrong.append(f"{kind} {number}: ended with {end}")
        elif text != end["text"]:
            self.tally.wrong.append(f"{kind} {number}: joined stream differs from its end event")
        else:
            self.compare(number, end["checkpoint"], text, kind)

    def compare(self, number: int, checkpoint: str, text: str, kind: str) -> None:
        if text != self.golden[checkpoint, number]:
            self.tally.wrong.append(f"{kind} {number}: {text!r} instead of {self.golden[checkpoint, number]!r}")

    async def trouble(self) -> None:
        """Kill the worker now and then, promote now and then."""
        turn = 0
        while True:
            await asyncio.sleep(self.rng.uniform(self.pause / 6, self.pause))
            if self.rng.random() < self.kill_share:
                for pid, name in processes(self.pid).items():
                    if name == "worker":
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pid, signal.SIGKILL)
                        self.tally.kills += 1
                        break
            else:
                turn += 1
                with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                    await self.promote(self.checkpoints[turn % len(self.checkpoints)])

    async def run(self, clients: int) -> list[float]:
        """Returns the API's resident memory over time, in MB."""
        await self.learn()
        trouble = asyncio.create_task(self.trouble())
        workers = [asyncio.create_task(self.client()) for _ in range(clients)]
        memory = []
        while not all(w.done() for w in workers):
            await asyncio.sleep(1)
            memory.append(resident_mb(self.pid))
            if len(memory) % 20 == 0:
                t = self.tally
                print(f"{t.done:>6} done, {t.kills} kills, {t.promotions} promotions, {len(t.wrong)} wrong", flush=True)
        trouble.cancel()
        await asyncio.gather(*workers)
        return memory


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    line = next(x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--pause", type=float, default=3.0, help="most seconds between two troubles; 0 promotes back to back")
    parser.add_argument("--kills", type=float, default=0.5, help="share of the troubles that kill the worker; the rest promote")
    options = parser.parse_args()
    directory = Path(tempfile.mkdtemp(prefix="folio-soak-"))
    checkpoints = make_checkpoints(directory)
    port = free_port()
    first = next(iter(checkpoints.values()))
    command = [
        sys.executable,
        "-m",
        "service",
        "--checkpoint",
        str(first),
        "--checkpoints",
        str(directory),
        "--port",
        str(port),
        "--threads",
        "1",
    ]
    environment = {**os.environ, "FOLIO_ADMIN_KEY": ADMIN}
    with open(directory / "server.log", "wb") as log:
        server = subprocess.Popen([*command, "--max-batch", "16"], cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        wait_for(port, "/readyz")
        began = time.monotonic()
        soak = Soak(port, server.pid, list(checkpoints), options)
        memory = asyncio.run(soak.run(options.clients))
        seconds = time.monotonic() - began
        time.sleep(1)
        engine = json.loads(get(port, "/info"))["engine"]
        peak = peak_mb(server.pid)
    finally:
        server.terminate()
        status = server.wait(40)
    settled = memory[len(memory) // 4 :] or memory
    growth = sum(settled[-5:]) / len(settled[-5:]) - sum(settled[:5]) / len(settled[:5])
    tally = soak.tally
    print(f"{tally.done} requests in {seconds:.0f} s: {tally.cancelled} cancelled, {tally.resumed} resumed, refused {tally.refused}")
    print(f"{tally.kills} kills of the worker, {tally.promotions} promotions; exit status {status}")
    print(f"API memory: peak {peak:.0f} MB, growth after the first quarter {growth:+.1f} MB")
    print(f"running {engine['running']}, waiting {engine['waiting']} at the end")
    print(f"{len(tally.wrong)} wrong", *tally.wrong[:10], sep="\n  ")
    passed = not tally.wrong and growth < 10 and engine["running"] == engine["waiting"] == 0 and status == 0
    print("passed" if passed else f"FAILED; the server's log is {directory / 'server.log'}")
    if passed:
        shutil.rmtree(directory)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
