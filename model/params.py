"""How a request wants its text sampled. No torch here: both sides of the engine's socket speak of it."""

from __future__ import annotations

from dataclasses import dataclass

MAX_SEED = 2**53 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Every parameter that can change a token. The defaults are the plain multinomial over softmax.

    A field at its neutral value changes nothing, byte for byte. The order of application is that of vLLM: bias, repetition,
    frequency and presence penalties, temperature, then min-p, top-k and top-p over what is left.
    """

    max_new_tokens: int = 256
    """Tokens to generate, at least 1."""
    seed: int = 0
    """0 to 2^53 − 1; token number i is drawn with ``uniform(seed, i)``."""
    temperature: float = 1.0
    """0 is greedy: the largest logit, the lowest id on a tie."""
    top_k: int = 0
    """Keep the k most probable tokens; 0 is off. On a tie the lower id wins, here and below."""
    top_p: float = 1.0
    """Keep the most probable tokens until their sum reaches p."""
    min_p: float = 0.0
    """Keep tokens of at least min_p times the largest probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens seen in prompt or output (Keskar et al. 2019, CTRL, §4.1)."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the token was generated."""
    presence_penalty: float = 0.0
    """Subtracted once if the token was generated at all."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token id, addend) pairs."""
    num_logprobs: int | None = None
    """None: no log-probabilities; n: those of the chosen token and of the n most probable ones."""
    stride: int | None = None
    """How far the context window jumps when it is full; 1 slides exactly, None is the server's choice."""

    @property
    def is_greedy(self) -> bool:
        """Whether no random number is used."""
        return self.temperature == 0.0

    @property
    def has_filter(self) -> bool:
        """Whether tokens may be cut off before drawing (which needs a sort)."""
        return not self.is_greedy and (self.top_k > 0 or self.top_p < 1.0 or self.min_p > 0.0)

    @property
    def has_penalty(self) -> bool:
        """Whether earlier tokens change the logits."""
        return self.repetition_penalty != 1.0 or self.frequency_penalty != 0.0 or self.presence_penalty != 0.0
