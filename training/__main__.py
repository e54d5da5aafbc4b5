"""The command line of training."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

from training.config import PRESETS, TrainConfig, TrainingError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; the exit status. User errors are one line on standard error and status 2."""
    from model.checkpoint import CheckpointError

    arguments = list(sys.argv[1:] if argv is None else argv)
    commands = {"resume": resume, "eval": evaluate, "export": export}
    try:
        if arguments and arguments[0] in commands:
            return commands[arguments[0]](arguments[1:])
        return train(arguments)
    except (TrainingError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def train(arguments: Sequence[str]) -> int:
    """``python -m training [--preset P] [--data FILE] [--out RUN] [any field]``."""
    parser = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a model on a text. Other commands: resume RUN, eval CHECKPOINT, export CHECKPOINT.",
    )
    parser.add_argument("--preset", choices=sorted(PRESETS), default="default", help="where the other defaults come from")
    parser.add_argument("--data", metavar="FILE", help="a UTF-8 text file (default: $FOLIO_DATA, else Tiny Shakespeare, downloaded)")
    parser.add_argument("--out", metavar="RUN", help="directory of the run (default: runs/PRESET)")
    add_fields(parser)
    values = vars(parser.parse_args(arguments))
    preset, data, out = values.pop("preset"), values.pop("data"), values.pop("out")
    config = dataclasses.replace(PRESETS[preset], **{k: v for k, v in values.items() if v is not None})
    from training.data import load_text
    from training.trainer import Trainer

    return finish(Trainer.start(config, load_text(data), Path(out or f"runs/{preset}")))


def resume(arguments: Sequence[str]) -> int:
    """``python -m training resume RUN``."""
    parser = argparse.ArgumentParser(prog="python -m training resume", description="Go on with a run from its last save.")
    parser.add_argument("run", metavar="RUN", type=Path)
    parser.add_argument("--data", metavar="FILE", help="the run's text (default: $FOLIO_DATA, else Tiny Shakespeare)")
    options = parser.parse_args(arguments)
    from training.data import load_text
    from training.trainer import Trainer

    return finish(Trainer.resume(options.run, load_text, options.data))


def finish(trainer: Any) -> int:
    """Run to the end and say how to go on, whatever ended it."""
    from training.trainer import Interrupted

    run = trainer.directory.path
    print(f"training {trainer.model.num_parameters:,} parameters on {trainer.device}, step {trainer.step} of {trainer.config.max_iters}, in {run}")
    try:
        trainer.run()
    except Interrupted as interrupted:
        print(f"{interrupted}: saved at step {trainer.step}. Go on with: python -m training resume {run}")
        return 130
    print(f"best validation loss {trainer.best_loss:.4f} at step {trainer.best_step}. Serve it: python -m service --checkpoint {run}/best")
    return 0


def evaluate(arguments: Sequence[str]) -> int:
    """``python -m training eval CHECKPOINT``: the full-validation loss as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training eval", description="Measure a checkpoint's loss on the last 10 % of a text.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--data", metavar="FILE", help="the text (default: $FOLIO_DATA, else Tiny Shakespeare)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args(arguments)
    from model import load_checkpoint
    from training.data import Dataset, load_text
    from training.evaluate import full_loss
    from training.trainer import choose_device

    device = choose_device(options.device)
    checkpoint = load_checkpoint(options.checkpoint, device)
    text = load_text(options.data)
    data = Dataset(text.text, checkpoint.tokenizer, checkpoint.config.block_size, device)
    loss = full_loss(checkpoint.model, data.val)
    result = {"val_loss": round(loss, 6), "manifest_val_loss": checkpoint.manifest.get("val_loss"), "tokens": len(data.val) - 1}
    print(json.dumps({**result, "block_size": checkpoint.config.block_size, "same_text": text.sha256 == checkpoint.manifest["data"]["sha256"]}))
    return 0


def export(arguments: Sequence[str]) -> int:
    """``python -m training export CHECKPOINT OUT``: rounded weights, the loss measured again."""
    parser = argparse.ArgumentParser(prog="python -m training export", description="Write a checkpoint for serving, without optimizer state.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("out", metavar="OUT", type=Path)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="how weights are stored")
    parser.add_argument("--data", metavar="FILE", help="the run's text, to measure the loss after rounding")
    options = parser.parse_args(arguments)
    from training.data import load_text
    from training.export import export_checkpoint

    loss = export_checkpoint(options.checkpoint, options.out, options.dtype, load_text(options.data))
    print(f"{options.out}: {options.dtype} weights, validation loss {loss:.6f}")
    return 0


def add_fields(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of TrainConfig, its docstring as help; only flags that are given replace the preset's values."""
    hints, documentation = get_type_hints(TrainConfig), field_docstrings(TrainConfig)
    for field in dataclasses.fields(TrainConfig):
        kind = hints[field.name]
        choices = get_args(kind) or None
        parser.add_argument(
            "--" + field.name.replace("_", "-"),
            type=str if choices else kind,
            choices=choices,
            help=f"{documentation[field.name]} (default preset: {field.default})".replace("%", "%%"),
        )


def field_docstrings(cls: type) -> dict[str, str]:
    """The string literal under each annotated field."""
    body = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(body, ast.ClassDef)
    found = {}
    for field, text in zip(body.body, body.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            found[field.target.id] = " ".join(str(ast.literal_eval(text.value)).split())
    return found


if __name__ == "__main__":
    sys.exit(main())
