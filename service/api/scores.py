"""The log-probabilities of prompts: each is read as a text whose tokens are given, by the same engine that would write it."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.types import Receive

from model.params import SamplingParams
from service.api.generation import admit, complete
from service.api.plan import Plan, check_size
from service.engine.interface import GenerationRequest, TokenLogprob
from service.request_state import RequestState
from service.state import Service


async def score_prompts(service: Service, state: RequestState, prompts: Sequence[Plan], receive: Receive) -> list[tuple[TokenLogprob, ...]]:
    """For each plan the log-probabilities of its prompt's tokens after the first. Raises ApiError, EngineError, ClientGoneError."""
    plans = [scoring_plan(service, plan) for plan in prompts if len(plan.request.prompt) > 1]
    if not plans:
        return [()] * len(prompts)
    found = iter(await complete(admit(service, state, plans), receive))
    service.key_limits.end(state)  # its texts come next, and have their own places
    return [next(found).logprobs if len(plan.request.prompt) > 1 else () for plan in prompts]


def scoring_plan(service: Service, plan: Plan) -> Plan:
    """A plan that gives the log-probabilities of another one's prompt, in the windows that generating it would have. Raises ApiError."""
    first, *scored = plan.request.prompt
    params = plan.request.params
    check_size(service, "prompt", 1, params.num_logprobs, choices=len(scored))
    request = GenerationRequest(
        prompt=(first,),
        scored=tuple(scored),
        params=SamplingParams(max_new_tokens=len(scored), num_logprobs=params.num_logprobs, stride=params.stride),
        timeout_s=plan.request.timeout_s,
        checkpoint_id=plan.checkpoint.id,
    )
    return Plan(plan.checkpoint, request, plan.prompt, echo=False, digest="")
