"""What only a GPU can show, most valuable first: one command, nothing downloaded, some eight minutes.

    make gpu            on a machine with a GPU
    make gpu DRY=1      all of it on a driver without a GPU: that the parts work, no figure

Every part is a process with a limit of its own that writes ``build/gpu/PART.json``, so a part that fails, or a run that is cut off, loses
nothing else. The figures of a real card become ``benchmarks/gpu-NAME.json``, a picture, and a table for ``benchmarks/README.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "build" / "gpu"
PARTS = {
    "environment": 20,
    "service": 75,
    "bits": 75,
    "profile": 30,
    "rates": 90,
    "shapes": 60,
    "training": 90,
    "containers": 40,
}
"""Part → longest seconds; some eight minutes together."""


def run_part(name: str, limit_s: float, variables: dict[str, str], flags: list[str]) -> dict[str, Any]:
    """A part's result: what it found, or why it found nothing."""
    file = OUT / f"{name}.json"
    file.unlink(missing_ok=True)
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu_parts", name, "--out", str(file), *flags]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=variables, timeout=limit_s, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        problem = "" if done.returncode == 0 else done.stdout.decode(errors="replace")[-1500:]
    except subprocess.TimeoutExpired:
        problem = f"cut off after {limit_s:.0f} s"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    return found | ({"problem": problem} if problem else {}) | {"seconds": round(time.monotonic() - began, 1)}


def dry_environment() -> tuple[dict[str, str], list[str]]:
    """A small checkpoint, and the driver without a GPU for its shape."""
    from service.worker.cuda.launches import Plan
    from tests.golden.models import golden_checkpoint
    from tests.gpu.fake import build_fake

    folder = OUT / "dry"
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = golden_checkpoint("char", folder)
    build_fake(Plan(checkpoint.config), folder)
    search = os.pathsep.join(filter(None, [str(folder), os.environ.get("LD_LIBRARY_PATH", "")]))
    return os.environ | {"LD_LIBRARY_PATH": search, "XDG_CACHE_HOME": str(folder)}, ["--checkpoint", str(checkpoint.path), "--dry"]


def table(results: dict[str, dict[str, Any]]) -> str:
    """The rates, in Markdown."""
    rates = results.get("rates", {})
    lines = ["| rows | GPU, engine alone | GPU, over HTTP | CPU, engine alone |", "|---|---|---|---|"]
    for rows in ("1", "8", "64", "256"):
        cells = [f"{rates[key][rows]:,.0f}" if rows in rates.get(key, {}) else "–" for key in ("gpu", "http", "cpu")]
        lines.append(f"| {rows} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Tokens a second over rows, where matplotlib is installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        return
    figure, axes = pyplot.subplots(figsize=(6, 4))
    for key, label in (("gpu", "GPU, engine alone"), ("http", "GPU, over HTTP"), ("cpu", "CPU, engine alone")):
        points = sorted((int(rows), rate) for rows, rate in results.get("rates", {}).get(key, {}).items())
        if points:
            axes.loglog(*zip(*points, strict=True), marker="o", label=label)
    axes.set_xlabel("texts at once")
    axes.set_ylabel("tokens a second")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry", action="store_true", help="on a driver without a GPU, small; writes no figures")
    parser.add_argument("--parts", default=",".join(PARTS), help="some of them, separated by commas")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    variables, flags = dry_environment() if options.dry else (dict(os.environ), [])
    results: dict[str, dict[str, Any]] = {}
    for name in options.parts.split(","):
        results[name] = run_part(name, PARTS[name] * (6 if options.dry else 1), variables, flags)
        print(f"{name}: {json.dumps(results[name])[:600]}", flush=True)
    failed = [name for name, result in results.items() if "problem" in result]
    if options.dry:
        print("dry run: nothing above is a figure of a GPU")
    elif card := results.get("environment", {}).get("card"):
        name = re.sub(r"[^a-z0-9]+", "-", card["name"].lower()).strip("-")
        (ROOT / "benchmarks" / f"gpu-{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        draw(results, ROOT / "benchmarks" / f"gpu-{name}.png")
        print(f"\nbenchmarks/gpu-{name}.json\n\n{table(results)}")
    sys.exit(f"these parts found problems: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
