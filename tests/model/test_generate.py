"""The naive sampler: the oracle of everything faster, so it is held against nothing but the definitions."""

import pytest
import torch

from model.generate import generate
from model.gpt import GPT
from model.params import SamplingParams
from tests.model.test_sampling import plain_sample


@torch.no_grad()
def brute_force(model: GPT, prompt: list[int], params: SamplingParams, start: int) -> list[int]:
    """Moves a window token by token and asks the model for every token anew."""
    tokens, window = list(prompt) or [start], 0
    generated: list[int] = []
    for _ in range(params.max_new_tokens):
        while len(tokens) - window > model.config.block_size:
            window += params.stride or 1
        logits = model(torch.tensor([tokens[window:]]))[0, -1]
        token = plain_sample(logits.tolist(), params, prompt, generated)
        tokens.append(token)
        generated.append(token)
    return generated


@pytest.mark.parametrize("stride", [None, 1, 3, 8])
@pytest.mark.parametrize("prompt", [[], [4], [1, 2, 3, 4, 5, 6, 7, 8], [9, 1, 2, 3, 4, 5, 6, 7, 8, 0, 3, 3, 1]])
def test_generate_equals_brute_force_beyond_the_context(small: GPT, prompt: list[int], stride: int | None) -> None:
    params = SamplingParams(max_new_tokens=25, seed=11, stride=stride, repetition_penalty=1.2, presence_penalty=0.3, top_p=0.95)
    assert list(generate(small, prompt, params, start=2)) == brute_force(small, prompt, params, start=2)


def test_the_same_seed_gives_the_same_text_and_another_seed_another(small: GPT) -> None:
    torch.nn.init.normal_(small.lm_head.weight)
    texts = [list(generate(small, [1], SamplingParams(max_new_tokens=30, seed=s))) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_shorter_request_is_a_prefix_of_a_longer_one(small: GPT) -> None:
    long = list(generate(small, [1], SamplingParams(max_new_tokens=30, seed=3)))
    assert list(generate(small, [1], SamplingParams(max_new_tokens=7, seed=3))) == long[:7]


def test_generating_leaves_a_training_model_training_but_drops_nothing(small: GPT) -> None:
    params = SamplingParams(max_new_tokens=12, seed=1)
    evaluated = list(generate(small, [1], params))
    small.train()
    assert list(generate(small, [1], params)) == evaluated
    assert small.training
