"""The real server over HTTP, in a process of its own, at 1, 8, 32, 64 and 256 streams; and the engine alone.

    python -m benchmarks.serving [--checkpoint DIR] [--tokens 200] [--json FILE] [--picture FILE] [-- server flags]

The load generator is a third process. On a small machine it takes a share of the cores, as a client on the same host would.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REPEATS = {1: 6, 8: 32, 32: 128, 64: 256, 256: 768}  # whole rounds, so that no half-empty batch ends a run


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def get(port: int, path: str) -> bytes:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as reply:
        body: bytes = reply.read()
        return body


def wait_for(port: int, path: str, limit_s: float = 120) -> float:
    """Seconds until ``path`` answers 200."""
    began = time.perf_counter()
    while time.perf_counter() - began < limit_s:
        try:
            get(port, path)
            return time.perf_counter() - began
        except OSError:
            time.sleep(0.01)
    raise SystemExit(f"{path} did not answer within {limit_s} s")


def processes(pid: int) -> dict[int, str]:
    """The server and its worker: pid → what it is."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {pid: "api", **{int(child): "worker" for child in children}}


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mb(pid: int) -> float:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def load(port: int, **options: object) -> dict[str, Any]:
    flags = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.load", "--port", str(port), *flags], capture_output=True, text=True, cwd=ROOT, check=False
    )
    if done.returncode:
        raise SystemExit(f"the load generator failed: {done.stdout}{done.stderr}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def measure(port: int, pid: int, streams: int, options: argparse.Namespace, **extra: object) -> dict[str, Any]:
    """One row of the table."""
    names = processes(pid)
    before, steps = {p: cpu_seconds(p) for p in names}, json.loads(get(port, "/info"))["engine"]["steps"]
    requests = max(streams, round(REPEATS.get(streams, 2 * streams) * options.scale))
    row = load(port, streams=streams, requests=requests, tokens=options.tokens, prompt=options.prompt, **extra)
    drawn = row["requests"] * options.tokens
    row["batch"] = round(drawn / max(1, json.loads(get(port, "/info"))["engine"]["steps"] - steps), 1)
    row["cpu"] = {name: round((cpu_seconds(p) - before[p]) / row["wall_s"], 2) for p, name in names.items()}
    return row


def engine_alone(options: argparse.Namespace, batches: list[int]) -> dict[int, float]:
    """Tokens/s of the engine's core in this process, no HTTP, no socket: what there is to lose."""
    from model.params import SamplingParams
    from service.worker.messages import VERSION, Start, Submit
    from service.worker.startup import load as load_engine

    threads = int(options.server[options.server.index("--threads") + 1]) if "--threads" in options.server else 0
    start = Start(
        VERSION,
        str(options.checkpoint),
        device="auto",
        kernels="auto",
        cpu="auto",
        max_batch=0,
        threads=threads,
        stride=0,
        speculation=True,
    )
    core, _ = load_engine(start, lambda phase: None)
    rates = {}
    for streams in batches:
        count = max(streams, round(REPEATS[streams] * options.scale))
        params = SamplingParams(max_new_tokens=options.tokens)
        prompt = list(range(1, options.prompt + 1))
        began, waiting, live = time.perf_counter(), list(range(count)), 0
        while waiting or core.has_work:
            while waiting and live < streams:
                number = waiting.pop()
                core.submit(Submit(number, number, prompt, [], params))
                live += 1
            live -= sum(output.finished for output in core.step().outputs)
        rates[streams] = round(count * options.tokens / (time.perf_counter() - began), 1)
    core.runner.close()
    return rates


def machine() -> str:
    """The machine's name: its GPU, or its processor and cores."""
    try:
        import torch

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    except ImportError:
        pass
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores of {cpu}"


def draw(report: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    streams = [row["streams"] for row in report["http"]]
    axes.plot(streams, [row["tokens_per_s"] for row in report["http"]], "o-", color="#1f5f8b", label="over HTTP")
    axes.plot(streams, [report["engine"][str(s)] for s in streams], "s--", color="#9a6b3f", label="engine alone")
    axes.set_xscale("log", base=2)
    axes.set_xticks(streams, [str(s) for s in streams])
    axes.set(xlabel="streams", ylabel="output tokens/s", title=report["machine"], ylim=(0, None))
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "model" / "pretrained")
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--prompt", type=int, default=16, help="characters")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies the number of requests")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 64, 256])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("server", nargs="*", help="flags for the server, after --")
    options = parser.parse_args()
    engine = engine_alone(options, options.streams)
    port = free_port()
    command = [sys.executable, "-m", "service", "--checkpoint", str(options.checkpoint), "--port", str(port), "--log-level", "warning"]
    server = subprocess.Popen([*command, *options.server], cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        healthy, ready = wait_for(port, "/healthz"), 0.0
        ready = healthy + wait_for(port, "/readyz")
        load(port, streams=2, requests=4, tokens=50)
        rows = [measure(port, server.pid, streams, options) for streams in options.streams]
        memory = {name: round(peak_mb(pid), 1) for pid, name in processes(server.pid).items()}
        served = json.loads(get(port, "/info"))["model"]
    finally:
        server.terminate()
        server.wait(40)
    report = {
        "machine": machine(),
        "model": {name: served[name] for name in ("device", "kernels", "num_parameters") if name in served},
        "startup_s": {"healthz": round(healthy, 3), "readyz": round(ready, 3)},
        "peak_mb": memory,
        "engine": {str(k): v for k, v in engine.items()},
        "http": rows,
    }
    show(report)
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    if options.picture:
        draw(report, options.picture)


def show(report: dict[str, Any]) -> None:
    """The table, for a terminal and for Markdown."""
    print(f"{report['machine']} · {report['model']} · healthz {report['startup_s']['healthz']} s, ready {report['startup_s']['readyz']} s")
    print(f"peak memory, MB: {report['peak_mb']}\n")
    heads = [
        "streams",
        "tokens/s",
        "engine alone",
        "share",
        "TTFT p50 / p99, ms",
        "per token p50 / p99, ms",
        "batch",
        "tokens/event",
        "CPU api / worker",
    ]
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for row in report["http"]:
        alone = report["engine"][str(row["streams"])]
        cells = [
            str(row["streams"]),
            f"{row['tokens_per_s']:,.0f}",
            f"{alone:,.0f}",
            f"{row['tokens_per_s'] / alone:.0%}",
            "{p50} / {p99}".format(**row["ttft_ms"]),
            "{p50} / {p99}".format(**row["per_token_ms"]),
            str(row["batch"]),
            str(row["tokens_per_event"]),
            f"{row['cpu'].get('api')} / {row['cpu'].get('worker')}",
        ]
        print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
