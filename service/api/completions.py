"""POST /v1/completions: text or token ids in, one or more choices out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from model.tokenizer.base import Tokenizer
from service.api.choices import OpenAIReply, find_model, json_logprob, plan_choices
from service.api.generation import Generation
from service.api.openai_schemas import CompletionBody
from service.api.plan import Plan, encode
from service.engine.interface import TokenLogprob
from service.errors import ApiError
from service.state import Service


def plan_completions(service: Service, body: CompletionBody) -> list[Plan]:
    """The choices that a body asks for. Raises ApiError and EngineError."""
    checkpoint = find_model(service, body.model)
    prompts = [encode_prompt(prompt, body.on_unknown, checkpoint.tokenizer) for prompt in split_prompts(body.prompt)]
    return plan_choices(service, checkpoint, body, prompts, body.max_tokens, body.logprobs)


def split_prompts(prompt: str | list[int] | list[str | list[int]]) -> list[str | list[int]]:
    """One prompt or several, each text or token ids."""
    if isinstance(prompt, str):
        return [prompt]
    several = [each for each in prompt if not isinstance(each, int)]
    return several or [[each for each in prompt if isinstance(each, int)]]


def encode_prompt(prompt: str | list[int], on_unknown: str, tokenizer: Tokenizer) -> tuple[str, tuple[int, ...]]:
    """A prompt as text and as tokens. Raises ApiError."""
    if isinstance(prompt, str):
        return encode(prompt, on_unknown, tokenizer)
    if max(prompt) >= tokenizer.vocab_size:
        raise ApiError("invalid_request", f"prompt: token ids are below {tokenizer.vocab_size}", param="prompt")
    return tokenizer.decode(prompt), tuple(prompt)


class CompletionsReply(OpenAIReply):
    """OpenAI's text completion."""

    id_prefix = "cmpl"
    whole_object = chunk_object = "text_completion"

    def __init__(self, body: CompletionBody, scores: Sequence[Sequence[TokenLogprob]], generations: Sequence[Generation]) -> None:
        super().__init__(body, generations)
        self.scores = scores
        """Of each prompt's tokens after the first, if they are asked for."""

    def prompt_logprobs(self, index: int) -> dict[str, list[Any]] | None:
        """Nothing stands before a prompt's first token, so it has none."""
        prompt = self.generations[index].plan.request.prompt
        if not self.scores or not prompt:
            return None
        tokenizer = self.checkpoint.tokenizer
        rest = self.logprobs(self.scores[index // self.body.n], offset=len(tokenizer.decode(prompt[:1])))
        first = {"tokens": tokenizer.texts[prompt[0]], "token_logprobs": None, "top_logprobs": None, "text_offset": 0}
        return {name: [first[name], *values] for name, values in rest.items()}

    def whole_choice(self, text: str, logprobs: dict[str, list[Any]] | None) -> dict[str, Any]:
        """A text."""
        return {"text": text, "logprobs": logprobs}

    chunk_choice = whole_choice

    def logprobs(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, list[Any]]:
        """OpenAI's four lists. A token that was sampled stands beside the most probable ones, if it is none of them."""
        texts = self.checkpoint.tokenizer.texts
        return {
            "tokens": [texts[each.id] for each in logprobs],
            "token_logprobs": [json_logprob(each.logprob) for each in logprobs],
            "top_logprobs": [{texts[id]: json_logprob(value) for id, value in (*each.top, (each.id, each.logprob))} for each in logprobs],
            "text_offset": [offset + each.offset for each in logprobs],
        }
