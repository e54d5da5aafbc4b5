"""How a model is trained. Every field is a flag of ``python -m training``; its docstring is the flag's help."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, Self, get_args, get_type_hints

from model.config import GPTConfig
from model.params import MAX_SEED

AT_LEAST_ONE = ("vocab_size", "batch_size", "max_iters", "eval_interval", "save_interval", "log_interval")
NOT_NEGATIVE = (
    "learning_rate",
    "muon_lr",
    "min_lr",
    "weight_decay",
    "embedding_decay",
    "grad_clip",
    "warmup_iters",
    "patience",
    "sample_chars",
    "seed",
    "eval_tokens",
    "micro_batch_size",
)
FRACTIONS = ("dropout", "ema", "beta1", "beta2", "calibration_fraction")


class TrainingError(ValueError):
    """Something the user can put right; the message is one line and says how."""


def require_extra() -> None:
    """Before a run begins, and not at its first validation: raises TrainingError without the packages of ``folio[train]``."""
    missing = [name for name in ("matplotlib", "tqdm") if find_spec(name) is None]
    if missing:
        raise TrainingError(f"training needs {' and '.join(missing)}: pip install 'folio[train]'")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """A run, but for its text. The defaults are the preset ``default``: the described system."""

    n_layer: int = 5
    """Transformer blocks."""
    n_head: int = 6
    """Attention heads; the head size is n_embd // n_head."""
    n_embd: int = 256
    """Width of the residual stream."""
    qkv_bias: bool = False
    """Bias on queries, keys and values, as GPT-2 has it."""
    activation: Literal["relu", "gelu_tanh"] = "relu"
    """Non-linearity of the MLP; gelu_tanh is GPT-2's."""
    block_size: int = 256
    """Context length in tokens."""
    dropout: float = 0.2
    """Dropout of embeddings, attention weights and residual branches."""
    tokenizer: Literal["char", "byte", "bpe"] = "char"
    """A token is a character, a byte of UTF-8, or a piece of byte-pair encoding trained on the text."""
    vocab_size: int = 1024
    """Tokens of bpe, at least 256; char and byte have as many as they have."""
    keep_line_ends: bool = False
    """Leave CR and CRLF in the text as they are; without it both are read as a line feed, and the run says so."""
    batch_size: int = 64
    """Sequences per step, over all processes together."""
    micro_batch_size: int = 0
    """Sequences computed at once by each process, gradients adding up over a step: for a batch that memory cannot hold; 0 takes all."""
    max_iters: int = 5000
    """Optimizer steps."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """adamw, or muon for the matrices of the blocks and AdamW for the rest."""
    learning_rate: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 0.02
    """Peak learning rate of Muon."""
    lr_factors: str = ""
    """Slower or frozen parts, as PATTERN=FACTOR,…: "blocks.[01].*=0,*embedding*=0.1"; the first pattern that fits a name counts."""
    min_lr: float = 1e-5
    """Learning rate at the end of the cosine or of WSD's descent."""
    warmup_iters: int = 100
    """Steps of linear warm-up."""
    schedule: Literal["cosine", "constant", "wsd"] = "cosine"
    """What follows the warm-up: half a cosine, nothing, or a plateau and a straight descent (warm-up, stable, decay)."""
    decay_fraction: float = 0.4
    """The part of the run that WSD's descent takes."""
    dropout_descent: bool = False
    """Let dropout fall to 0 together with WSD's learning rate: what was learned noisily settles without noise."""
    calibration_fraction: float = 0.0
    """The part at the end of the training text that is never trained on; the temperature of the calibrated loss is found there."""
    weight_decay: float = 0.1
    """Decay of matrices (never of biases and LayerNorms)."""
    embedding_decay: float = 0.0
    """Decay of the embeddings of tokens and positions."""
    beta1: float = 0.9
    """AdamW's first momentum."""
    beta2: float = 0.99
    """AdamW's second momentum."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient; 0 turns clipping off."""
    ema: float = 0.0
    """Decay of a moving average of the weights, which is then what is validated, sampled and saved; 0 turns it off."""
    eval_interval: int = 250
    """Steps between full validations (each with a sample and a picture of the loss)."""
    eval_tokens: int = 0
    """Validate on a sample of about so many tokens, and on everything once, at the end; 0 always takes everything."""
    save_interval: int = 250
    """Steps between saves of last/: what a crash can cost."""
    log_interval: int = 10
    """Steps between looks at the loss, each of which waits for the device."""
    patience: int = 0
    """Stop after so many validations without a better loss; 0 trains to the end."""
    seed: int = 1337
    """Initialisation, batches and dropout are functions of it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to compute; auto takes a CUDA GPU if there is one."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast: auto is bfloat16 where the machine computes in it. Weights and validation stay in float32."""
    compile: bool = False
    """Pass the model through torch.compile; a failure is reported and the run goes on without."""
    deterministic: bool = False
    """Only deterministic CUDA kernels, so that a resumed run is bitwise the uninterrupted one there too (a CPU always is)."""
    track: Literal["none", "tensorboard", "wandb", "mlflow"] = "none"
    """Also give each validation to an experiment tracker (needs the extra of its name: pip install 'folio[wandb]')."""
    sample_chars: int = 500
    """Tokens of the sample written at each validation."""

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self)).items():
            value, flag = getattr(self, name), "--" + name.replace("_", "-")
            if (choices := get_args(kind)) and value not in choices:
                raise TrainingError(f"{flag} must be one of {', '.join(choices)}, got {value!r}")
            if not choices and type(value) is not kind and not (kind is float and type(value) is int):
                raise TrainingError(f"{flag} must be of type {kind.__name__}, got {value!r}")
            if name in AT_LEAST_ONE and value < 1:
                raise TrainingError(f"{flag} must be at least 1, got {value}")
            if name in NOT_NEGATIVE and not value >= 0:
                raise TrainingError(f"{flag} must be a number of at least 0, got {value}")
            if name in FRACTIONS and not 0 <= value < 1:
                raise TrainingError(f"{flag} must be at least 0 and less than 1, got {value}")
        if self.seed > MAX_SEED:
            raise TrainingError(f"--seed must be at most {MAX_SEED}, got {self.seed}")
        self.parse_lr_factors()
        if not 0 < self.decay_fraction <= 1:
            raise TrainingError(f"--decay-fraction must be more than 0 and at most 1, got {self.decay_fraction}")

    @property
    def tokens_per_step(self) -> int:
        """Targets whose loss one step averages."""
        return self.batch_size * self.block_size

    def parse_lr_factors(self) -> list[tuple[str, float]]:
        """Patterns of parameter names, and what their learning rates are multiplied by. Raises TrainingError."""
        pairs = []
        for item in filter(None, self.lr_factors.split(",")):
            pattern, _, factor = item.rpartition("=")
            try:
                pairs.append((pattern.strip(), float(factor)))
            except ValueError:
                raise TrainingError(f"--lr-factors: {item!r} is not PATTERN=FACTOR, such as 'blocks.0.*=0'") from None
            if not pattern.strip() or not 0 <= pairs[-1][1] < math.inf:
                raise TrainingError(f"--lr-factors: {item!r} needs a pattern and a factor of at least 0")
        return pairs

    def model_config(self, vocab_size: int) -> GPTConfig:
        """The architecture for a vocabulary of this size. Raises ConfigError."""
        return GPTConfig(
            vocab_size=vocab_size,
            block_size=self.block_size,
            n_layer=self.n_layer,
            n_head=self.n_head,
            n_embd=self.n_embd,
            dropout=self.dropout,
            qkv_bias=self.qkv_bias,
            activation=self.activation,
        )

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_json`; fields that an older run lacks take their defaults. Raises TrainingError."""
        if "tensorboard" in data:  # runs of before there were several trackers
            data = {**data, "track": "tensorboard" if data["tensorboard"] else "none"}
            del data["tensorboard"]
        if unknown := sorted(set(data) - {field.name for field in dataclasses.fields(cls)}):
            raise TrainingError(f"unknown training option {unknown[0]!r}")
        return cls(**data)
