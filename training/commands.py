"""What is done with runs and checkpoints once they are there. Torch is imported when a command runs, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from training.config import require_extra

FEWEST_BITS = "a text of the kind that the model knows: activations get the fewest bits that cost at most 0.001 nats per token on it"


def evaluate(arguments: Sequence[str]) -> int:
    """``python -m training eval CHECKPOINT``: the full-validation loss as JSON."""
    parser = argparse.ArgumentParser(prog="python -m training eval", description="Measure a checkpoint's loss on the last 10 % of a text.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint's directory, such as RUN/best")
    parser.add_argument("--data", metavar="FILE", nargs="+", help="the text (default: $FOLIO_DATA, else Tiny Shakespeare, downloaded)")
    parser.add_argument("--val-data", metavar="FILE", nargs="+", help="measure on all of this text instead of on the last 10 %% of that")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute (default: auto)")
    parser.add_argument("--exact", action="store_true", help="in the integers that the service computes with, on the CPU (minutes)")
    options = parser.parse_args(arguments)
    from model import load_checkpoint
    from training.data import load_text
    from training.device import choose_device
    from training.evaluate import evaluate_text, float_losses
    from training.exact_loss import exact_losses

    checkpoint = load_checkpoint(options.checkpoint, "cpu" if options.exact else choose_device(options.device))
    keep = checkpoint.manifest.get("train", {}).get("keep_line_ends", False)
    text = load_text(options.data, options.val_data, keep_line_ends=keep)
    print(json.dumps(evaluate_text(checkpoint, text, exact_losses if options.exact else float_losses)))
    return 0


def draft(arguments: Sequence[str]) -> int:
    """``python -m training draft CHECKPOINT``: a table of what follows what in the training part of a text."""
    parser = argparse.ArgumentParser(
        prog="python -m training draft",
        description="Count what follows what in the first 90 %% of a text: the service guesses from it which tokens come next, which is "
        "faster and changes no byte. The file lies beside the checkpoint and is no part of it.",
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint's directory, such as RUN/best")
    parser.add_argument("--data", metavar="FILE", nargs="+", help="the text (default: $FOLIO_DATA, else Tiny Shakespeare, downloaded)")
    options = parser.parse_args(arguments)
    from model.checkpoint.files import read_checkpoint
    from model.draft import FILE
    from training.data import load_text
    from training.export import write_draft

    checkpoint = read_checkpoint(options.checkpoint)
    keep = checkpoint.manifest.get("train", {}).get("keep_line_ends", False)
    size = write_draft(options.checkpoint, checkpoint.tokenizer, load_text(options.data, keep_line_ends=keep))
    print(f"{options.checkpoint / FILE}: {size:,} bytes")
    return 0


def report(arguments: Sequence[str]) -> int:
    """``python -m training report RUN…``: a table on standard output and a picture."""
    parser = argparse.ArgumentParser(prog="python -m training report", description="Draw several runs in one picture, with a table.")
    parser.add_argument("runs", metavar="RUN", type=Path, nargs="+", help="directories of runs")
    parser.add_argument("--out", metavar="PNG", type=Path, default=Path("report.png"), help="the picture (default: report.png)")
    options = parser.parse_args(arguments)
    require_extra()
    from training.picture import compare
    from training.run_directory import writing

    table, picture = compare(options.runs)
    with writing(options.out):
        options.out.write_bytes(picture)
    print(f"{table}\n\npicture: {options.out}")
    return 0


def export(arguments: Sequence[str]) -> int:
    """``python -m training export CHECKPOINT [OUT] [--to folio|hf]``."""
    parser = argparse.ArgumentParser(
        prog="python -m training export", description="Write a checkpoint for serving, without optimizer state, or for another program."
    )
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="a checkpoint's directory, such as RUN/best")
    parser.add_argument(
        "out", metavar="OUT", type=Path, nargs="?", help="the directory to write (default: CHECKPOINT-folio or CHECKPOINT-hf)"
    )
    parser.add_argument(
        "--to",
        choices=("folio", "hf"),
        default="folio",
        help="folio: rounded weights for serving, the loss measured again; hf: what transformers' GPT2LMHeadModel loads (default: folio)",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), default="bfloat16", help="how folio's weights are stored (default: bfloat16)"
    )
    parser.add_argument("--data", metavar="FILE", nargs="+", help="the run's text, to measure the loss after rounding (default: as eval)")
    parser.add_argument("--val-data", metavar="FILE", nargs="+", help="the run's validation text, where it had one of its own")
    options = parser.parse_args(arguments)
    out = options.out or options.checkpoint.with_name(f"{options.checkpoint.name}-{options.to}")
    from training.export import export_checkpoint, refuse_full
    from training.huggingface import export_hf

    refuse_full(out)
    if options.to == "hf":
        export_hf(options.checkpoint, out)
        print(f"{out}: for transformers' GPT2LMHeadModel.from_pretrained")
    else:
        loss = export_checkpoint(options.checkpoint, out, options.dtype, options.data, options.val_data)
        print(f"{out}: {options.dtype} weights, validation loss {loss:.6f}")
    return 0


def import_(arguments: Sequence[str]) -> int:
    """``python -m training import DIRECTORY OUT``: a Hugging Face GPT-2 becomes a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training import", description="Make a checkpoint of a Hugging Face GPT-2 directory.")
    parser.add_argument("source", metavar="DIRECTORY", type=Path, help="with config.json, model.safetensors and tokenizer.json")
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to write")
    parser.add_argument("--data", metavar="FILE", nargs="+", help=f"{FEWEST_BITS} (default: 16 bits)")
    options = parser.parse_args(arguments)
    from training.export import refuse_full
    from training.huggingface import import_hf

    refuse_full(options.out)
    config, cost = import_hf(options.source, options.out, options.data)
    measured = "" if cost is None else f", which costs {cost:+.6f} nats per token on this text"
    print(f"{options.out}: {config.num_parameters:,} parameters, arithmetic {config.arithmetic}{measured}")
    print(f"Serve it: python -m service --checkpoint {options.out}")
    return 0


def upgrade(arguments: Sequence[str]) -> int:
    """``python -m training upgrade IN OUT``: a checkpoint of before with what today's have."""
    parser = argparse.ArgumentParser(
        prog="python -m training upgrade", description="Copy a checkpoint of an older Folio, with the known answers that today's have."
    )
    parser.add_argument("source", metavar="IN", type=Path, help="the checkpoint's directory, which stays as it is")
    parser.add_argument("out", metavar="OUT", type=Path, help="the directory to write: a checkpoint with another id")
    parser.add_argument("--data", metavar="FILE", nargs="+", help=f"{FEWEST_BITS} (default: 16 bits for an imported model, 8 for others)")
    parser.add_argument("--key", metavar="FILE", type=Path, help="sign the copy with this private key")
    options = parser.parse_args(arguments)
    from training.export import refuse_full
    from training.upgrade import upgrade_checkpoint

    refuse_full(options.out)
    print(f"{options.out}: {upgrade_checkpoint(options.source, options.out, options.data)}")
    return sign([str(options.out), "--key", str(options.key)]) if options.key else 0


def sign(arguments: Sequence[str]) -> int:
    """``python -m training sign CHECKPOINT --key FILE``: vouch for a checkpoint."""
    parser = argparse.ArgumentParser(prog="python -m training sign", description="Sign a checkpoint with an Ed25519 key.")
    parser.add_argument("checkpoint", metavar="CHECKPOINT", type=Path)
    parser.add_argument("--key", metavar="FILE", type=Path, required=True, help="private key (PEM, unencrypted)")
    parser.add_argument("--new-key", action="store_true", help="make the key first")
    options = parser.parse_args(arguments)
    from model.checkpoint.files import read_checkpoint
    from model.checkpoint.manifest import MANIFEST
    from model.checkpoint.signature import SignatureError, new_private_key, public_key_text, read_private_key
    from model.checkpoint.signature import sign as sign_manifest
    from training.config import TrainingError

    try:
        key = new_private_key(options.key) if options.new_key else read_private_key(options.key)
    except SignatureError as error:
        raise TrainingError(str(error)) from None
    checkpoint = read_checkpoint(options.checkpoint)
    sign_manifest(checkpoint.path, (checkpoint.path / MANIFEST).read_bytes(), key)
    print(f"signed {checkpoint.id}\nServe it with: FOLIO_TRUSTED_KEYS={public_key_text(key)}")
    return 0
