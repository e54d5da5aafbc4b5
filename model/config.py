"""The shape of a model: everything that is needed to build it, and nothing about how it is trained or served."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, get_type_hints

LIMITS = {"vocab_size": 1 << 22, "block_size": 8191, "n_layer": 1024, "n_head": 8191, "n_embd": 8191}
"""What exact arithmetic has room for: with more, a sum of integers could overflow (docs/arithmetic.md has the proofs)."""
MAX_PARAMETER = 2.0**16
"""Largest magnitude of a parameter: below it no float of exact arithmetic can become infinite."""

Arithmetic = Literal["w8a8", "w8a16"]
Activation = Literal["relu", "gelu_tanh"]


class ConfigError(ValueError):
    """A configuration that no model can be built from; the message names the field and what it may be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GPTConfig:
    """The architecture. The defaults are the described system: 5 layers, 6 heads of 42, 256 wide.

    ``n_embd`` need not be divisible by ``n_head``: a head has ``n_embd // n_head`` features (256 // 6 = 42), the heads
    concatenate to ``n_head * head_size`` (252), and the output projection leads back to ``n_embd`` (256).
    """

    vocab_size: int
    """Number of distinct tokens, V."""
    block_size: int = 256
    """Context length, T: the largest number of tokens that attention sees."""
    n_layer: int = 5
    """Number of Transformer blocks, L."""
    n_head: int = 6
    """Attention heads per block, H."""
    n_embd: int = 256
    """Width of the residual stream, C."""
    dropout: float = 0.2
    """Probability of zeroing an activation while training (embedding, attention weights, residual branches)."""
    qkv_bias: bool = False
    """Bias on the query, key and value projections (GPT-2 has it, the described system has not)."""
    activation: Activation = "relu"
    """Non-linearity of the MLP; ``gelu_tanh`` is GPT-2's."""
    arithmetic: Arithmetic = "w8a8"
    """Bits of weights and of activations when the model is served; 16 for models with outliers, such as GPT-2."""

    def __post_init__(self) -> None:
        for name, limit in LIMITS.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= limit:
                raise ConfigError(f"{name} must be an integer from 1 to {limit}, got {value!r}")
        if self.n_embd < self.n_head:
            raise ConfigError(f"n_embd must be at least n_head, got n_embd={self.n_embd} and n_head={self.n_head}")
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout must be in [0, 1), got {self.dropout!r}")
        if self.activation not in ("relu", "gelu_tanh"):
            raise ConfigError(f"activation must be 'relu' or 'gelu_tanh', got {self.activation!r}")
        if self.arithmetic not in ("w8a8", "w8a16"):
            raise ConfigError(f"arithmetic must be 'w8a8' or 'w8a16', got {self.arithmetic!r}: a newer Folio may know it")

    @property
    def head_size(self) -> int:
        """Features of one head, D."""
        return self.n_embd // self.n_head

    @property
    def attn_width(self) -> int:
        """Width of the concatenated heads, H·D; at most ``n_embd``."""
        return self.n_head * self.head_size

    @property
    def parameter_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every trainable tensor, as ``GPT.state_dict()`` has them; a checkpoint is held against this."""
        c, a, v = self.n_embd, self.attn_width, self.vocab_size
        shapes: dict[str, tuple[int, ...]] = {"token_embedding.weight": (v, c), "position_embedding.weight": (self.block_size, c)}
        for layer in range(self.n_layer):
            block = {"ln_1.weight": (c,), "ln_1.bias": (c,), "attn.qkv.weight": (3 * a, c)}
            block |= {"attn.qkv.bias": (3 * a,)} if self.qkv_bias else {}
            block |= {"attn.proj.weight": (c, a), "attn.proj.bias": (c,), "ln_2.weight": (c,), "ln_2.bias": (c,)}
            block |= {"mlp.up.weight": (4 * c, c), "mlp.up.bias": (4 * c,), "mlp.down.weight": (c, 4 * c), "mlp.down.bias": (c,)}
            shapes |= {f"blocks.{layer}.{name}": shape for name, shape in block.items()}
        return shapes | {"ln_f.weight": (c,), "ln_f.bias": (c,), "lm_head.weight": (v, c), "lm_head.bias": (v,)}

    @property
    def num_parameters(self) -> int:
        """Number of trainable numbers (4,023,873 for the defaults and 65 tokens)."""
        return sum(math.prod(shape) for shape in self.parameter_shapes.values())

    def to_json(self) -> dict[str, Any]:
        """The fields as a JSON object, ``arithmetic`` only where it is not the usual one."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("arithmetic", "w8a8")}

    @classmethod
    def from_json(cls, data: object) -> Self:
        """The inverse of :meth:`to_json`. Raises ConfigError for anything but exactly these fields with these types."""
        if not isinstance(data, dict):
            raise ConfigError("a model configuration must be a JSON object")
        hints = get_type_hints(cls)
        names = {f.name for f in fields(cls)}
        if unknown := sorted(set(data) - names):
            raise ConfigError(f"unknown configuration field {unknown[0]!r}: a newer Folio may know it")
        for name, value in data.items():
            expected = hints[name] if hints[name] in (int, float, bool) else str
            if expected is float and type(value) is int:
                value = float(value)
            if type(value) is not expected:
                raise ConfigError(f"{name} must be of type {expected.__name__}, got {value!r}")
        if "vocab_size" not in data:
            raise ConfigError("vocab_size is missing")
        return cls(**data)
