"""A run's README.md: what was trained on what, how well, and the command that does it again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from model.config import GPTConfig
from training.config import TrainConfig
from training.data import SHA256, Text
from training.presets import PRESETS
from training.run_directory import Point


def model_card(model: GPTConfig, config: TrainConfig, text: Text, tokens_per_character: float, curve: Sequence[Point], sample: str) -> str:
    """The card as Markdown; figures are of the best validation so far."""
    best = min(curve, key=lambda point: point.val_loss)
    rows = "\n".join(f"| {p.step} | {p.train_loss:.4f} | {p.val_loss:.4f} |" for p in curve)
    quoted = "\n".join("    " + line for line in sample.splitlines())
    shape = f"{model.n_layer} layers, {model.n_head} heads of {model.head_size}, {model.n_embd} wide, context {model.block_size}"
    tokens = {"char": "distinct", "byte": "tokens: the bytes", "bpe": "tokens of BPE, trained on it"}[config.tokenizer]
    loss = f"Validation loss {best.val_loss:.4f} nats per {'character' if config.tokenizer == 'char' else 'token'}"
    per_character = "" if config.tokenizer == "char" else f" ({best.val_loss * tokens_per_character:.4f} per character)"
    return f"""# A model of {text.name}

A decoder-only Transformer of {model.num_parameters:,} parameters ({shape}), trained on the first 90 % of {text.name}
({len(text.text):,} characters; {model.vocab_size} {tokens}).

**{loss}**{per_character} at step {best.step}: the exact mean over the last 10 % of the text,
in consecutive windows of {model.block_size}. The lowest of {len(curve)} validations, so it flatters a little.

![loss against steps](loss.png)

## Do it again

    {command_line(config, text)}

Text: sha256 `{text.sha256}`.

## A sample

After step {curve[-1].step}, plain multinomial sampling:

{quoted}

## All validations

| step | training loss | validation loss |
|---|---|---|
{rows}
"""


def command_line(config: TrainConfig, text: Text) -> str:
    """The command that trains this, from the preset that needs the fewest flags."""
    fields = config.to_json()
    differences = {name: [field for field, value in preset.to_json().items() if value != fields[field]] for name, preset in PRESETS.items()}
    nearest = min(differences, key=lambda name: len(differences[name]))
    words = ["python", "-m", "training", "--preset", nearest]
    if text.sha256 != SHA256:
        words += ["--data", text.name]
    for field in differences[nearest]:
        flag, value = field.replace("_", "-"), fields[field]
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)
