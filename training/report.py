"""What a person looks at while a run goes on: a line, a sample, the picture of the loss, the model card."""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from model.gpt import GPT
from model.tokenizer.base import Tokenizer
from training.config import TrainConfig, TrainingError
from training.data import Text
from training.model_card import model_card
from training.picture import loss_picture
from training.run_directory import Point, RunDirectory, writing
from training.samples import sample_text

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Reporter:
    """Writes down each validation of a run."""

    def __init__(
        self,
        directory: RunDirectory,
        config: TrainConfig,
        text: Text,
        tokenizer: Tokenizer,
        tokens_per_character: float,
        *,
        tensorboard: bool,
    ) -> None:
        self.directory, self.config, self.text, self.tokenizer = directory, config, text, tokenizer
        self.tokens_per_character = tokens_per_character
        self.events = EventFiles(directory) if tensorboard else None

    def report(self, model: GPT, curve: Sequence[Point], say: Callable[[str], None]) -> None:
        """Record ``curve[-1]``. Raises TrainingError when the run's directory cannot be written."""
        point = curve[-1]
        best = min(curve, key=lambda p: p.val_loss)
        self.directory.append_metrics(point)
        mark = "  best" if best is point else ""
        say(f"step {point.step:>6}  training {point.train_loss:.4f}  validation {point.val_loss:.4f}{mark}")
        if word := overfitting(curve):
            say(word)
        sample = sample_text(model, self.tokenizer, self.config.seed, self.config.sample_chars)
        self.directory.write(f"samples/step-{point.step:06d}.txt", sample.encode())
        title = f"{self.text.name}, {model.num_parameters:,} parameters"
        self.directory.write("loss.png", loss_picture({"": curve}, title))
        card = model_card(model.config, self.config, self.text, self.tokens_per_character, curve, sample)
        self.directory.write("README.md", card.encode())
        if self.events:
            self.events.write(point, self.config.learning_rate, sample)


class EventFiles:
    """The same figures for TensorBoard. The first validation makes the files: building a run touches no disk."""

    def __init__(self, directory: RunDirectory) -> None:
        if importlib.util.find_spec("tensorboard") is None:
            raise TrainingError("--tensorboard needs the package tensorboard: pip install 'folio[tensorboard]'")
        self.directory = directory.path / "tensorboard"

    @functools.cached_property
    def writer(self) -> SummaryWriter:
        from torch.utils.tensorboard import SummaryWriter

        return SummaryWriter(str(self.directory))

    def write(self, point: Point, peak: float, sample: str) -> None:
        """Add one validation."""
        scalars = {"loss/training": point.train_loss, "loss/validation": point.val_loss, "learning_rate": point.lr * peak}
        with writing(self.directory):
            for name, value in scalars.items():
                self.writer.add_scalar(name, value, point.step)
            self.writer.add_text("sample", f"```\n{sample}\n```", point.step)
            self.writer.flush()


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
