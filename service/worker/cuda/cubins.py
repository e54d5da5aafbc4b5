"""Machine code for the shipped checkpoint, for every architecture, beside the sources: what a wheel and an image bring along.

    python -m service.worker.cuda.cubins [--checkpoint DIR] [--arch sm_90 …]

A card of another architecture, or another checkpoint's shape, is compiled for when it is met, if NVRTC or nvcc is there. Only the standard
library here: it runs where nothing is installed yet.
"""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from model.config import GPTConfig
from service.worker.cuda.compiler import ARCHITECTURES, SHIPPED, CompileError, compile_code, file_of
from service.worker.cuda.launches import Plan

PRETRAINED = Path(__file__).parents[3] / "model" / "pretrained"


def build(checkpoint: Path, architectures: list[str], folder: Path = SHIPPED) -> list[Path]:
    """The files, those of other sources removed. Raises CompileError."""
    options = Plan(GPTConfig.from_json(json.loads((checkpoint / "config.json").read_text(encoding="utf-8")))).defines()
    jobs = [(name, arch, defines) for arch in architectures for name, defines in (("kernel.cu", options), ("probe.cu", []))]
    wanted = [folder / file_of(*job) for job in jobs]
    folder.mkdir(exist_ok=True)
    for path in set(folder.glob("*.cubin")) - set(wanted):
        path.unlink()

    def make(path: Path, job: tuple[str, str, list[str]]) -> None:
        if not path.is_file():
            path.write_bytes(compile_code(*job))
            path.chmod(0o644)

    with ThreadPoolExecutor() as pool:
        list(pool.map(make, wanted, jobs))
    return wanted


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Compile the CUDA kernels for the shipped checkpoint.")
    parser.add_argument("--checkpoint", type=Path, default=PRETRAINED)
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES))
    options = parser.parse_args()
    try:
        files = build(options.checkpoint, options.arch)
    except CompileError as error:
        sys.exit(str(error))
    print(f"{len(files)} files, {sum(file.stat().st_size for file in files) / 1e6:.1f} MB in {SHIPPED}")


if __name__ == "__main__":
    main()
