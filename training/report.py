"""What a person looks at while a run goes on: a line, a sample, the picture of the loss, the model card."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.config import GPTConfig
from model.gpt import GPT
from model.tokenizer.base import Tokenizer
from training.config import TrainConfig
from training.data import SHA256, Text
from training.dataset import Dataset
from training.evaluate import bits_per_byte
from training.picture import loss_picture
from training.presets import PRESETS
from training.run_directory import Point, RunDirectory
from training.sampling import sample_text
from training.tracking import Tracking

ORIGINS = {"init_from": "Begun with the weights of", "extends": "Goes on from the run that had made"}


class Reporter:
    """Writes down each validation of a run."""

    def __init__(
        self,
        directory: RunDirectory,
        config: TrainConfig,
        text: Text,
        tokenizer: Tokenizer,
        data: Dataset,
        ancestors: Mapping[str, Mapping[str, Any]],
    ) -> None:
        self.ancestors = ancestors
        self.directory, self.config, self.text, self.tokenizer = directory, config, text, tokenizer
        self.data = data
        self.tracking = Tracking(directory.path, config)

    def report(self, model: GPT, curve: Sequence[Point], say: Callable[[str], None]) -> None:
        """Record ``curve[-1]``. Raises TrainingError when the run's directory cannot be written."""
        point = curve[-1]
        best = min(curve, key=lambda p: p.val_loss)
        self.directory.append_metrics(point)
        say(self.line(point) + ("  best" if best is point else ""))
        if word := overfitting(curve):
            say(word)
        sample = sample_text(model, self.tokenizer, self.config.seed, self.config.sample_chars)
        self.directory.write(f"samples/step-{point.step:06d}.txt", sample.encode())
        title = f"{self.text.name}, {model.num_parameters:,} parameters"
        self.directory.write("loss.png", loss_picture({"": curve}, title))
        card = model_card(model.config, self.config, self.text, self.data, curve, sample, self.ancestors)
        self.directory.write("README.md", card.encode())
        self.tracking.write(point, sample)

    def line(self, point: Point) -> str:
        """One validation in words. Training is said twice: as the steps saw it, dropout on, and as validation sees it."""
        words = f"step {point.step:>6}  training {point.train_loss:.4f}"
        words += "" if point.train_loss_eval is None else f" (dropout off {point.train_loss_eval:.4f})"
        words += f"  validation {point.val_loss:.4f} ({bits_per_byte(point.val_loss, self.data.tokens_per_byte):.3f} bits per byte)"
        words += "" if point.temperature is None else f", {point.val_loss_calibrated:.4f} at temperature {point.temperature}"
        return words + ("" if point.val_loss_whole is None else f", {point.val_loss_whole:.4f} over everything")


def overfitting(curve: Sequence[Point]) -> str | None:
    """A clear word when validation has risen for two evaluations while training fell, else None."""
    if len(curve) < 3:
        return None
    first, second, third = curve[-3:]
    rising = first.val_loss < second.val_loss < third.val_loss
    falling = first.train_loss > second.train_loss > third.train_loss
    if not (rising and falling):
        return None
    best = min(curve, key=lambda point: point.val_loss)
    return (
        f"overfitting: validation rises ({first.val_loss:.4f} to {third.val_loss:.4f}) while training falls; best/ keeps step "
        f"{best.step}. More dropout, a smaller model, more text or --patience 3 would help."
    )


def model_card(
    model: GPTConfig,
    config: TrainConfig,
    text: Text,
    data: Dataset,
    curve: Sequence[Point],
    sample: str,
    ancestors: Mapping[str, Mapping[str, Any]],
) -> str:
    """The card as Markdown; figures are of the best validation so far."""
    best = min(curve, key=lambda point: point.val_loss)
    rows = "\n".join(f"| {p.step} | {figure(p.train_loss)} | {figure(p.train_loss_eval)} | {figure(p.val_loss)} |" for p in curve)
    quoted = "\n".join("    " + line for line in sample.splitlines())
    shape = f"{model.n_layer} layers, {model.n_head} heads of {model.head_size}, {model.n_embd} wide, context {model.block_size}"
    tokens = {"char": "distinct", "byte": "tokens: the bytes", "bpe": "tokens of BPE, trained on it"}[config.tokenizer]
    loss = f"Validation loss {best.val_loss:.4f} nats per {'character' if config.tokenizer == 'char' else 'token'}"
    per_character = "" if config.tokenizer == "char" else f" ({best.val_loss * data.tokens_per_character:.4f} per character)"
    measured = f"{bits_per_byte(best.val_loss, data.tokens_per_byte):.3f} bits per byte"
    measured += f", {best.val_loss_calibrated:.4f} nats at temperature {best.temperature}" if best.temperature else ""
    where = f"all of {text.validation.name}" if text.validation else "the last 10 % of the text"
    part = "" if text.validation else "the first 90 % of "
    return f"""# A model of {text.name}

A decoder-only Transformer of {model.num_parameters:,} parameters ({shape}), trained on {part}{text.name}
({text.characters:,} characters; {model.vocab_size} {tokens}).

**{loss}**{per_character} at step {best.step}, {measured}: the mean over {where},
in consecutive windows of {model.block_size}, dropout off. The lowest of {len(curve)} validations, so it flatters a little.

![loss against steps](loss.png)

## Do it again

    {command_line(config, text, from_weights="init_from" in ancestors)}

{"".join(f"{ORIGINS[kind]} `{of['id']}` after {of['steps']} steps.  " for kind, of in ancestors.items())}
Text: sha256 `{text.sha256}`.

## A sample

After step {curve[-1].step}, plain multinomial sampling:

{quoted}

## All validations

| step | training loss, dropout on | training loss, dropout off | validation loss |
|---|---|---|---|
{rows}
"""


def file_names(text: Text) -> list[str]:
    """Its files without their directories, which are nobody's business in a card that is passed on."""
    return [Path(path).name for path in text.paths] if text.paths else [text.name]


def figure(loss: float | None) -> str:
    """A loss in a table."""
    return "" if loss is None else f"{loss:.4f}"


def command_line(config: TrainConfig, text: Text, *, from_weights: bool = False) -> str:
    """The command that trains this, from the preset that needs the fewest flags."""
    fields = config.to_json()
    differences = {name: [field for field, value in preset.to_json().items() if value != fields[field]] for name, preset in PRESETS.items()}
    nearest = min(differences, key=lambda name: len(differences[name]))
    words = ["python", "-m", "training", "--preset", nearest]
    words += ["--init-from", "CHECKPOINT"] if from_weights else []
    if text.sha256 != SHA256:
        words += ["--data", *file_names(text)]
    if text.validation:
        words += ["--val-data", *file_names(text.validation)]
    for field in differences[nearest]:
        flag, value = field.replace("_", "-"), fields[field]
        words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", str(value)]
    return shlex.join(words)
