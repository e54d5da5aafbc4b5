"""POST /v1/chat/completions: messages become one plain prompt, whose text is the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from service.api.choices import OpenAIReply, find_model, json_logprob, plan_choices
from service.api.fields import MAX_PROMPT_CHARACTERS, shown
from service.api.generation import Generation
from service.api.openai_schemas import ChatBody, Message
from service.api.plan import Plan, encode
from service.engine.interface import ServedCheckpoint, TokenLogprob
from service.errors import ApiError
from service.state import Service

JOINED = "joined"
"""The template of checkpoints that have none of their own: the messages' texts, one a line."""
OWN = "chat_template"
"""The manifest's field, which ``tokenizer_config.json`` of Hugging Face models has too."""


def plan_chat(service: Service, body: ChatBody) -> list[Plan]:
    """The choices that a body asks for. Raises ApiError and EngineError."""
    checkpoint = find_model(service, body.model)
    text = prompt_of(checkpoint, body.messages)
    if len(text) > MAX_PROMPT_CHARACTERS:
        message = f"messages: at most {MAX_PROMPT_CHARACTERS} characters, and the prompt has {len(text)}"
        raise ApiError("invalid_request", message, param="messages")
    prompt = encode(text, body.on_unknown, checkpoint.tokenizer, field="messages")
    if template_of(checkpoint) and (end := special_tokens(checkpoint).get("eos_token")) and end not in body.stop:
        body = body.model_copy(update={"stop": [*body.stop, end]})  # where a model was taught to end its turn
    return plan_choices(service, checkpoint, body, [prompt], body.length, body.top_logprobs if body.logprobs else None)


def template_of(checkpoint: ServedCheckpoint) -> str | None:
    """A checkpoint's own template, if it has one."""
    template = checkpoint.manifest.get(OWN)
    return template if isinstance(template, str) else None


def special_tokens(checkpoint: ServedCheckpoint) -> dict[str, str]:
    """The texts of the tokens that templates name, by name."""
    tokens = checkpoint.manifest.get("special_tokens")
    return {str(name): str(text) for name, text in tokens.items()} if isinstance(tokens, dict) else {}


def prompt_of(checkpoint: ServedCheckpoint, messages: Sequence[Message]) -> str:
    """The prompt that messages stand for. Raises ApiError for what the checkpoint's template refuses."""
    if (template := template_of(checkpoint)) is None:
        return "\n".join(message.content for message in messages)
    try:
        return compiled(template)(
            messages=[message.model_dump(include={"role", "content", "name"}, exclude_none=True) for message in messages],
            add_generation_prompt=True,
            **{"bos_token": "", "eos_token": ""} | special_tokens(checkpoint),
        )
    except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, RecursionError) as error:
        message = f"messages: the checkpoint's chat template does not take them: {shown(str(error))}"
        raise ApiError("invalid_request", message, param="messages") from None


@lru_cache(maxsize=4)
def compiled(template: str) -> Callable[..., str]:
    """A template as Hugging Face's library runs it: in a sandbox, since it comes with the checkpoint. Raises TemplateError."""

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.globals["raise_exception"] = raise_exception
    return environment.from_string(template).render


def with_refusal(logprobs: dict[str, list[Any]] | None) -> dict[str, Any] | None:
    """OpenAI's object of log-probabilities."""
    return None if logprobs is None else {**logprobs, "refusal": None}


class ChatReply(OpenAIReply):
    """OpenAI's chat completion, which says how the messages became a prompt."""

    id_prefix = "chatcmpl"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, body: ChatBody, generations: Sequence[Generation]) -> None:
        super().__init__(body, generations)
        self.template = JOINED if template_of(self.checkpoint) is None else OWN

    def extra(self) -> dict[str, Any]:
        """Ours."""
        return {"folio": {"template": self.template}}

    def whole_choice(self, text: str, logprobs: dict[str, list[Any]] | None) -> dict[str, Any]:
        """The assistant's message."""
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"message": message, "logprobs": with_refusal(logprobs)}

    def begin(self, index: int) -> bytes:
        """Who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return self.event(index, {"delta": delta, "logprobs": None})

    def chunk_choice(self, text: str, logprobs: dict[str, list[Any]] | None) -> dict[str, Any]:
        """Some text."""
        return {"delta": {"content": text} if text else {}, "logprobs": with_refusal(logprobs)}

    def logprobs(self, logprobs: Sequence[TokenLogprob], offset: int = 0) -> dict[str, list[Any]]:
        """OpenAI's list of tokens, each with the most probable ones in its place."""
        return {
            "content": [
                {**self.token(each.id, each.logprob), "top_logprobs": [self.token(id, value) for id, value in each.top]}
                for each in logprobs
            ]
        }

    def token(self, id: int, logprob: float) -> dict[str, Any]:
        """One token."""
        tokenizer = self.checkpoint.tokenizer
        return {"token": tokenizer.texts[id], "logprob": json_logprob(logprob), "bytes": list(tokenizer.tokens[id])}
