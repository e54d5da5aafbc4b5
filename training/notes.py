"""What a user should know about a run before it begins: what the text was changed by, and which flags do nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from training.config import TrainConfig
from training.data import Text

NEEDS = {  # a field, and the field and the values without which it does nothing
    "muon_lr": ("optimizer", ("muon",)),
    "vocab_size": ("tokenizer", ("bpe",)),
    "decay_fraction": ("schedule", ("wsd",)),
    "dropout_descent": ("schedule", ("wsd",)),
    "min_lr": ("schedule", ("cosine", "wsd")),
}
LINE_ENDS = {"\r": "CR", "\r\n": "CR LF"}


def notes(config: TrainConfig, given: Iterable[str], text: Text) -> Iterator[str]:
    """One line each; ``given``: the fields that were on the command line."""
    for field in given:
        other, values = NEEDS.get(field, ("", ()))
        if other and getattr(config, other) not in values:
            yield f"--{field.replace('_', '-')} has no effect without --{other.replace('_', '-')} {' or '.join(values)}"
    if 0 < config.batch_size <= config.micro_batch_size:
        yield f"--micro-batch-size {config.micro_batch_size} has no effect: a batch has {config.batch_size} sequences"
    if text.line_ends:
        yield f"line ends of {text.label} ({', '.join(LINE_ENDS[end] for end in text.line_ends)}) are read as line feeds (--keep-line-ends)"


def too_good(loss: float) -> str | None:
    """A word about a loss that no unseen text has."""
    if loss >= 0.1:
        return None
    return f"a validation loss of {loss:.4f} means that the same words stand in the training text: this says nothing about other texts"
