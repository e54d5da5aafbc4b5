"""How a model is trained. Every field is a flag of ``python -m training``; its docstring is the flag's help."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal, Self, get_type_hints

from model.config import GPTConfig

Schedule = Literal["cosine", "constant"]


class TrainingError(ValueError):
    """Something the user can put right; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A run, but for its text. The defaults are the preset ``default``: the described system."""

    n_layer: int = 5
    """Transformer blocks."""
    n_head: int = 6
    """Attention heads; the head size is n_embd // n_head."""
    n_embd: int = 256
    """Width of the residual stream."""
    block_size: int = 256
    """Context length in tokens."""
    dropout: float = 0.2
    """Dropout of embeddings, attention weights and residual branches."""
    batch_size: int = 64
    """Sequences per step."""
    max_iters: int = 5000
    """Optimizer steps."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine."""
    warmup_iters: int = 100
    """Steps of linear warm-up."""
    schedule: Schedule = "cosine"
    """What follows the warm-up."""
    weight_decay: float = 0.1
    """AdamW's decay of matrices (never of biases, LayerNorms or embeddings)."""
    beta1: float = 0.9
    """AdamW's first momentum."""
    beta2: float = 0.99
    """AdamW's second momentum."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""
    eval_interval: int = 250
    """Steps between full validations (each with samples and a picture of the loss)."""
    save_interval: int = 250
    """Steps between saves of last/: what a crash can cost."""
    patience: int = 0
    """Stop after so many validations without a better loss; 0 trains to the end."""
    seed: int = 1337
    """Initialisation, batches and dropout are functions of it."""
    device: str = "auto"
    """auto, cpu or cuda."""
    dtype: str = "auto"
    """Autocast: auto (bfloat16 where the machine computes in it), float32 or bfloat16."""
    sample_chars: int = 500
    """Tokens of the sample written at each validation."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_iters", "eval_interval", "save_interval"):
            if getattr(self, name) < 1:
                raise TrainingError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("learning_rate", "min_lr", "weight_decay", "grad_clip", "warmup_iters", "patience", "sample_chars", "seed"):
            if not getattr(self, name) >= 0:
                raise TrainingError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        for name, allowed in {
            "schedule": ("cosine", "constant"),
            "device": ("auto", "cpu", "cuda"),
            "dtype": ("auto", "float32", "bfloat16"),
        }.items():
            if getattr(self, name) not in allowed:
                raise TrainingError(f"--{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")

    def model_config(self, vocab_size: int) -> GPTConfig:
        """The architecture for a vocabulary of this size."""
        return GPTConfig(
            vocab_size=vocab_size,
            block_size=self.block_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            dropout=self.dropout,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; unknown fields raise TrainingError."""
        if unknown := sorted(set(data) - set(get_type_hints(cls))):
            raise TrainingError(f"unknown training option {unknown[0]!r}")
        return cls(**data)


PRESETS: dict[str, TrainConfig] = {
    "default": TrainConfig(),
    # The original script's hyperparameters, with the right arithmetic: what comparisons run.
    "original": TrainConfig(
        block_size=128,
        max_iters=5501,
        learning_rate=3e-4,
        schedule="constant",
        warmup_iters=0,
        weight_decay=0.01,
        beta2=0.999,
        grad_clip=0.0,
        eval_interval=500,
        save_interval=500,
    ),
    # nanoGPT's config/train_shakespeare_char.py.
    "baby": TrainConfig(n_layer=6, n_head=6, n_embd=384, min_lr=1e-4),
    # About 20 seconds on two CPU cores, saving every second or so: for tests and a first look.
    "smoke": TrainConfig(
        n_layer=2,
        n_head=3,
        n_embd=64,
        block_size=64,
        dropout=0.0,
        batch_size=32,
        max_iters=600,
        learning_rate=3e-3,
        warmup_iters=20,
        eval_interval=100,
        save_interval=50,
        sample_chars=200,
    ),
}
