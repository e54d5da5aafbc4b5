"""What the API process costs: its processor time for each event and for each request, beside an engine that costs nothing.

    python -m benchmarks.api_process

Processor time, not time on the clock: other work on the machine changes it little. With 8 tokens in an event, ``tokens_per_core_s`` says
how many tokens a second fill one core with HTTP.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from service.engine import worker_process

ROOT = Path(__file__).parents[1]
TICKS_PER_S = 40
TOKENS_PER_EVENT = 8


def processor_s(pid: int) -> float:
    """Processor seconds that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def load(port: int, streams: int, requests: int, tokens: int) -> dict[str, float]:
    """What the load generator saw."""
    command = [sys.executable, "-m", "benchmarks.load", "--port", str(port), "--streams", str(streams)]
    done = subprocess.run(
        [*command, "--requests", str(requests), "--tokens", str(tokens)], cwd=ROOT, check=True, capture_output=True, text=True
    )
    result: dict[str, float] = json.loads(done.stdout)
    return result


def measure() -> dict[str, float]:
    """Start a service, ask for few long texts and for many short ones, and divide."""
    flood = {"PYTHONFLOOD_TICKS": str(TICKS_PER_S), "PYTHONFLOOD_TOKENS": str(TOKENS_PER_EVENT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.api_process", "--serve"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ | flood,
    )
    assert process.stdout is not None
    try:
        port = next(int(line.strip().rpartition(":")[2]) for line in process.stdout if line.startswith("http://"))
        load(port, 16, 32, 200)
        before = processor_s(process.pid)
        long = load(port, 16, 32, 2400)
        between = processor_s(process.pid)
        load(port, 8, 1500, TOKENS_PER_EVENT)
        after = processor_s(process.pid)
    finally:
        process.terminate()
        process.wait()
    tokens, request_s = 32 * 2400, (after - between) / 1500
    events = tokens / long["tokens_per_event"]
    event_s = (between - before - 32 * request_s) / events
    return {
        "us_per_event": round(event_s * 1e6, 1),
        "us_per_request_of_one_event": round(request_s * 1e6, 1),
        "tokens_per_event": long["tokens_per_event"],
        "tokens_per_core_s": round(tokens / (between - before)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--serve", action="store_true", help="be the service that is measured")
    if parser.parse_args().serve:
        from service.__main__ import main as serve

        worker_process.WORKER = "benchmarks.flood"
        sys.exit(serve(["--port", "0"]))
    print(json.dumps(measure()))


if __name__ == "__main__":
    main()
