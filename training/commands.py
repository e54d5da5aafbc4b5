"""What is done with runs and checkpoints once they are there. Torch is imported when a command runs, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path


def evaluate(arguments: Sequence[str]) -> int:
    """``python -m training eval CHECKPOINT``: the full-validation loss as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training eval", description="Measure a checkpoint's loss on the last 10 % of a text.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint's directory, such as RUN/best")
    parser.add_argument("--data", metavar="FILE", help="the text (default: $FOLIO_DATA, else Tiny Shakespeare, downloaded)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)")
    options = parser.parse_args(arguments)
    from model import load_checkpoint
    from training.data import load_text
    from training.evaluate import evaluate_text
    from training.machine import choose_device

    checkpoint = load_checkpoint(options.checkpoint, choose_device(options.device))
    print(json.dumps(evaluate_text(checkpoint, load_text(options.data))))
    return 0


def report(arguments: Sequence[str]) -> int:
    """``python -m training report RUN…``: a table on standard output and a picture."""
    parser = argparse.ArgumentParser(prog="python -m training report", description="Draw several runs in one picture, with a table.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="directories of runs")
    parser.add_argument("--out", metavar="PNG", type=Path, default=Path("report.png"), help="the picture (default: report.png)")
    options = parser.parse_args(arguments)
    from training.compare import compare
    from training.run_directory import writing

    table, picture = compare(options.runs)
    with writing(options.out):
        options.out.write_bytes(picture)
    print(f"{table}\n\npicture: {options.out}")
    return 0


def export(arguments: Sequence[str]) -> int:
    """``python -m training export CHECKPOINT OUT``: rounded weights, the loss measured again."""
    parser = argparse.ArgumentParser(
        prog="python -m training export", description="Write a checkpoint for serving, without optimizer state."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint's directory, such as RUN/best")
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to write")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="how weights are stored (default: bfloat16)"
    )
    parser.add_argument("--data", metavar="FILE", help="the run's text, to measure the loss after rounding (default: as eval)")
    options = parser.parse_args(arguments)
    from training.data import load_text
    from training.export import export_checkpoint

    loss = export_checkpoint(options.checkpoint, options.out, options.dtype, load_text(options.data))
    print(f"{options.out}: {options.dtype} weights, validation loss {loss:.6f}")
    return 0
