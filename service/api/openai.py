"""/v1: what OpenAI's clients call. The same sampler as everywhere: the same seed gives the same text as POST /generate."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from fastapi import Request
from starlette.responses import Response

from service.api.chat import ChatReply, plan_chat
from service.api.choices import OpenAIReply, find_model
from service.api.completions import CompletionsReply, plan_completions
from service.api.generate import response_headers
from service.api.generation import Generation, admit, complete, events
from service.api.openai_schemas import ChatBody, CompletionBody, OpenAIBody
from service.api.openapi import ALWAYS, EXAMPLE_CHAT_CHUNKS, EXAMPLE_CHUNKS, GENERATION, errors, events_too, examples
from service.api.parsing import make_router, off_loop
from service.api.plan import Plan
from service.api.responses import ChatCompletion, CompletionReply, ModelCard, ModelList
from service.api.scores import score_prompts
from service.engine.catalogue import provenance
from service.engine.interface import ServedCheckpoint, TokenLogprob
from service.http.sse import EventStream
from service.request_state import request_state
from service.state import service_of

router = make_router("OpenAI-compatible", "/v1")
CHAT = {"messages": [{"role": "user", "content": "ROMEO:"}], "max_tokens": 16, "seed": 7}
TEXT = {"prompt": "ROMEO:", "max_tokens": 16, "seed": 7}


@router.post(
    "/completions",
    response_model=CompletionReply,
    responses=events_too("the choices: events, or one JSON", EXAMPLE_CHUNKS) | errors(*GENERATION, "checkpoint_not_found", openai=True),
)
async def completions(
    request: Request, body: Annotated[CompletionBody, examples(text=TEXT, tokens={"prompt": [30, 27], "seed": 7})]
) -> Response:
    """OpenAI's completions: text or token ids in, one or more choices out, streamed or not."""
    plans = await off_loop(await request.body(), plan_completions, service_of(request), body)
    scores: list[tuple[TokenLogprob, ...]] = []
    if body.echo and body.logprobs is not None:
        service, state = service_of(request), request_state(request.scope)
        scores = await score_prompts(service, state, plans[:: body.n], request.receive)
    return await answer(request, body, plans, partial(CompletionsReply, body, scores))


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses=events_too("the choices: events, or one JSON", EXAMPLE_CHAT_CHUNKS)
    | errors(*GENERATION, "checkpoint_not_found", openai=True),
)
async def chat_completions(request: Request, body: Annotated[ChatBody, examples(text=CHAT, stream={**CHAT, "stream": True})]) -> Response:
    """OpenAI's chat: the messages become one prompt, by the checkpoint's template or one a line."""
    plans = await off_loop(await request.body(), plan_chat, service_of(request), body)
    return await answer(request, body, plans, partial(ChatReply, body))


async def answer(request: Request, body: OpenAIBody, plans: list[Plan], make_reply: Callable[[list[Generation]], OpenAIReply]) -> Response:
    """The plans' texts, streamed or whole."""
    service, state = service_of(request), request_state(request.scope)
    generations = admit(service, state, plans)
    reply, headers = make_reply(generations), response_headers(plans[0]) | {"Cache-Control": "no-store"}
    state.fields |= {"checkpoint": plans[0].checkpoint.id, "choices": len(plans), "seed": plans[0].request.params.seed}
    if body.stream:
        return EventStream(events(generations, reply), generations, headers=headers, keep_alive_s=service.settings.keep_alive_s)
    await complete(generations, request.receive)
    return Response(await reply.whole(), headers=headers, media_type="application/json")


@router.get("/models", responses=errors(*ALWAYS, openai=True))
async def models(request: Request) -> ModelList:
    """What is served: the current checkpoint by its name and by its id, and the one before it while streams use it."""
    service = service_of(request)
    named = [model_card(service.engine.current, service.settings.served_model_name)] if service.engine.current else []
    return ModelList(data=[*named, *(model_card(each, each.id) for each in service.engine.loaded)])


@router.get("/models/{model}", responses=errors(*ALWAYS, "checkpoint_not_found", "loading", "shutting_down", "engine_failed", openai=True))
async def model(model: str, request: Request) -> ModelCard:
    """One loaded checkpoint and where it comes from."""
    return model_card(find_model(service_of(request), model), model)


def model_card(checkpoint: ServedCheckpoint, name: str) -> ModelCard:
    """OpenAI's fields of a model, and its provenance."""
    return ModelCard(
        id=name,
        created=checkpoint.created,
        checkpoint=checkpoint.id,
        fingerprint=checkpoint.fingerprint,
        block_size=checkpoint.block_size,
        max_model_len=checkpoint.block_size,
        provenance=provenance(checkpoint.manifest),
    )
