"""What the model writes while it learns, in the arithmetic that it will be served with."""

from __future__ import annotations

from model.exact.generate import generate
from model.exact.network import ExactModel
from model.gpt import GPT
from model.params import SamplingParams
from model.tokenizer.base import Tokenizer


def sample_text(model: GPT, tokenizer: Tokenizer, seed: int, length: int) -> str:
    """A plain multinomial sample that starts after a newline (or after token 0 where there is none), with a stride of half a context."""
    if not length:
        return ""
    tensors = {name: tensor.detach().float().cpu().numpy() for name, tensor in model.state_dict().items()}
    params = SamplingParams(max_new_tokens=length, seed=seed, stride=max(1, model.config.block_size // 2))
    return tokenizer.decode(list(generate(ExactModel(model.config, tensors), [], params, start=tokenizer.first("\n"))))
