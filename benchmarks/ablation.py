"""What each trick is worth: one row per change, three seeds, exact full validation after a number of steps fixed beforehand.

    python benchmarks/ablation.py --out /tmp/ablation                     # the small size below, minutes on a CPU
    python benchmarks/ablation.py --out /tmp/ablation --full --jobs 4     # the described system: wants a GPU

Every run is an ordinary ``python -m training …`` whose command is printed, and the runs stay in --out for `training report`.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parent.parent
SMALL = "--n-layer 3 --n-head 3 --n-embd 96 --block-size 64 --batch-size 32 --dropout 0.0 --warmup-iters 40 --learning-rate 3e-3"
ROWS = {
    "AdamW, cosine": "",
    "AdamW, WSD": "--schedule wsd",
    "AdamW, cosine, EMA 0.98": "--ema 0.98",
    "Muon, cosine": "--optimizer muon",
    "Muon, WSD": "--optimizer muon --schedule wsd",
    "Muon, WSD, EMA 0.98": "--optimizer muon --schedule wsd --ema 0.98",
    "Muon, WSD, embeddings decayed": "--optimizer muon --schedule wsd --embedding-decay 0.1",
    "Muon, WSD, dropout 0.2": "--optimizer muon --schedule wsd --dropout 0.2",
    "Muon, WSD, dropout 0.2 falling to 0": "--optimizer muon --schedule wsd --dropout 0.2 --dropout-descent",
}


def train(flags: str, out: Path, data: list[str]) -> float:
    """One run to its end, unless it is there already; its last validation loss."""
    if not (out / "metrics.jsonl").exists() or not (out / "last").exists():
        command = [sys.executable, "-m", "training", *data, "--out", str(out), *shlex.split(flags)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    from training.run_directory import read_metrics

    return read_metrics(out)[-1].val_loss


def main() -> None:
    parser = argparse.ArgumentParser(description="The ablation table of docs/training.md.")
    parser.add_argument("--out", type=Path, required=True, help="where the runs go")
    parser.add_argument("--data", help="the text (default: as python -m training)")
    parser.add_argument("--full", action="store_true", help="the preset default instead of the small size")
    parser.add_argument("--iters", type=int, default=400, help="steps of each run (default: 400)")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help="some of the rows (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--jobs", type=int, default=1, help="runs side by side (default: 1)")
    options = parser.parse_args()
    rows = {row: ROWS[row] for row in options.rows}
    data = ["--data", options.data] if options.data else []
    end = f"--max-iters {options.iters} --eval-interval {options.iters} --save-interval {options.iters} --sample-chars 0"
    common = f"{end} {'' if options.full else SMALL}"
    jobs = {
        (row, seed): (f"{common} {flags} --seed {seed}", options.out / f"{row.replace(', ', '-').replace(' ', '')}-{seed}")
        for seed in range(1, options.seeds + 1)
        for row, flags in rows.items()
    }
    with ThreadPoolExecutor(options.jobs) as pool:
        losses = dict(zip(jobs, pool.map(lambda job: train(job[0], job[1], data), jobs.values()), strict=True))
    print("| change | validation loss, mean | of each seed | against the first row | flags |\n|---|---|---|---|---|")
    base = statistics.fmean(losses[next(iter(rows)), seed] for seed in range(1, options.seeds + 1))
    for row, flags in rows.items():
        each = [losses[row, seed] for seed in range(1, options.seeds + 1)]
        mean = statistics.fmean(each)
        print(f"| {row} | {mean:.4f} | {', '.join(f'{x:.4f}' for x in each)} | {mean - base:+.4f} | `{flags or 'none'}` |")
    print(f"\nCommon flags: `{' '.join(common.split())}`")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
