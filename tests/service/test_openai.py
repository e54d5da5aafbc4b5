"""/v1 with the real ``openai`` package, and the rest of what its users rely on."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from service.engine.interface import TokenLogprob
from tests.service.fakes import FakeEngine, FakeStream, fake_checkpoint
from tests.service.running import Running
from tests.support.events import events
from tests.support.wait import wait_for

Serve = Callable[..., Running]


@pytest.fixture
def client(shared: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def current(server: Running) -> str:
    return server.engine.loaded[0].id


def test_models(shared: Running, client: openai.OpenAI) -> None:
    named, model = client.models.list().data
    assert (named.id, model.id) == ("folio", current(shared))
    for name in (named.id, model.id):
        found = client.models.retrieve(name)
        assert found.model_extra is not None
        assert (found.id, found.model_extra["checkpoint"]) == (name, current(shared))
        assert found.model_extra["provenance"] == {"seed": 1337, "val_loss": 1.5}
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("gpt-4")
    assert error.value.code == "checkpoint_not_found"
    assert f"what is served: folio, {current(shared)}" in error.value.message


def test_the_served_name_stays_when_checkpoints_change(serve: Serve) -> None:
    """``model`` is required by OpenAI's clients; the only one there was, an id, was 404 for good after a promotion."""
    server = serve(served_model_name="mine")
    for name in ("b", "c"):
        server.engine.loaded = (fake_checkpoint(name), *server.engine.loaded[:1])
        reply = server.post("/v1/completions", prompt="R", model="mine", max_tokens=1).json()
        assert reply["model"] == current(server), "the reply names the true id"
    assert server.http.get("/v1/models").json()["data"][0]["id"] == "mine"
    assert server.post("/v1/completions", prompt="R", model="folio").status_code == 404


def test_a_model_was_created_when_its_manifest_was_written(serve: Serve) -> None:
    server = serve()
    server.engine.loaded = (replace(fake_checkpoint(), created=1767225600),)
    assert {model["created"] for model in server.http.get("/v1/models").json()["data"]} == {1767225600}


def test_completion(shared: Running, client: openai.OpenAI) -> None:
    completion = client.completions.create(model=current(shared), prompt="ROMEO:", seed=7)
    native = shared.post(prompt="ROMEO:", seed=7, max_new_tokens=16, stream=False).json()
    (choice,) = completion.choices
    assert (choice.text, choice.finish_reason, choice.logprobs) == (native["text"], "length", None)
    assert completion.usage is not None
    assert completion.usage.model_dump(exclude_none=True) == {"prompt_tokens": 6, "completion_tokens": 16, "total_tokens": 22}
    assert completion.system_fingerprint == native["fingerprint"]


def test_stream_with_usage(shared: Running, client: openai.OpenAI) -> None:
    args: dict[str, Any] = {"model": current(shared), "prompt": ["a", "b"], "n": 2, "max_tokens": 50, "seed": 3}
    whole = client.completions.create(**args)
    texts = dict.fromkeys(range(4), "")
    reasons = []
    for chunk in client.completions.create(**args, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage
    assert texts == {choice.index: choice.text for choice in whole.choices}
    assert reasons == ["length"] * 4
    assert usage == whole.usage
    assert whole.usage.prompt_tokens == 2, "a prompt counts once for all of its choices"


def test_choice_c_uses_seed_plus_c(shared: Running, client: openai.OpenAI) -> None:
    last = 2**53 - 1
    completion = client.completions.create(model=current(shared), prompt="R", n=3, seed=last)
    natives = [shared.post(prompt="R", seed=s, max_new_tokens=16, stream=False).json()["text"] for s in (last, 0, 1)]
    assert [choice.text for choice in completion.choices] == natives


def test_token_ids_are_a_prompt_too(shared: Running, client: openai.OpenAI) -> None:
    tokenizer = shared.engine.loaded[0].tokenizer
    ids = tokenizer.encode("ROMEO:")
    for prompt in (ids, [ids], ["ROMEO:"]):
        completion = client.completions.create(model=current(shared), prompt=prompt, seed=7, echo=True)
        assert completion.choices[0].text.startswith("ROMEO:")
        assert (
            completion.choices[0].text
            == client.completions.create(model=current(shared), prompt="ROMEO:", seed=7, echo=True).choices[0].text
        )


def test_logprobs(shared: Running, client: openai.OpenAI) -> None:
    args: dict[str, Any] = {"model": current(shared), "prompt": "R", "seed": 7, "logprobs": 2}
    choice = client.completions.create(**args).choices[0]
    assert "".join(choice.logprobs.tokens) == choice.text
    assert choice.logprobs.text_offset == list(range(16))
    for token, top in zip(choice.logprobs.tokens, choice.logprobs.top_logprobs, strict=True):
        assert token in top, "the sampled one stands beside the best"
        assert len(top) in (2, 3)
    streamed = [c.choices[0].logprobs for c in client.completions.create(**args, stream=True) if c.choices[0].logprobs]
    assert [t for part in streamed for t in part.tokens] == choice.logprobs.tokens
    assert [o for part in streamed for o in part.text_offset] == choice.logprobs.text_offset


def test_minus_infinity_is_a_number_on_every_route(shared: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is none in JSON, and ``-Infinity`` is read by Python alone."""
    impossible = TokenLogprob(5, -math.inf, ((6, -math.inf),), 0)
    monkeypatch.setattr(FakeStream, "logprob", staticmethod(lambda *_: impossible))
    native = shared.post(prompt="R", logprobs=True, top_logprobs=1, stream=False)
    completions = shared.post("/v1/completions", prompt="R", logprobs=1)
    chat = shared.post("/v1/chat/completions", messages=[{"role": "user", "content": "R"}], logprobs=True, top_logprobs=1)
    for answer in (native, completions, chat):
        assert "Infinity" not in answer.text
        assert "-9999.0" in answer.text


TAKEN: list[dict[str, Any]] = [
    {"stream_options": {"include_obfuscation": False, "include_usage": None}, "stream": True},
    {"suffix": ""},
    {"logprobs": False},
    {"stop": ""},
    {"max_tokens": 16.0},
    {"stream_options": {"include_usage": True}},
    {"seed": 7 + 2**53},
    {"seed": 7 - 2**53},
    {"ignore_eos": True, "min_tokens": 16, "skip_special_tokens": False, "spaces_between_special_tokens": False},
    {"top_k": -1, "stop_token_ids": [], "include_stop_str_in_output": False, "use_beam_search": False, "length_penalty": 1.0},
    {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
]


@pytest.mark.parametrize("fields", TAKEN, ids=str)
def test_what_openai_and_vllm_take_is_taken_and_changes_nothing(shared: Running, fields: dict[str, Any]) -> None:
    """Their clients and benchmarks send these; the native route stays strict."""
    body: dict[str, Any] = {"prompt": "R", "seed": 7, "max_tokens": 16}
    expected = shared.post("/v1/completions", **body).json()["choices"][0]["text"]
    answer = shared.post("/v1/completions", **{**body, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-seed"] == "7", "a seed is folded, and told as it was used"
    if fields.get("stream"):
        found = [event["data"] for event in events(answer.text) if event["data"] != "[DONE]"]
        assert "".join(choice["text"] for chunk in found for choice in chunk["choices"]) == expected
    else:
        assert answer.json()["choices"][0]["text"] == expected
    if set(fields) - {"stream", "seed", "max_tokens", "stop", "logprobs"}:
        assert shared.post(**{**body, **fields}).status_code == 422


def test_usage_is_told_so_far_in_every_chunk(shared: Running) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = shared.post("/v1/completions", prompt="R", max_tokens=20, stream=True, stream_options=options)
    counts = [event["data"]["usage"]["completion_tokens"] for event in events(answer.text) if event["data"] != "[DONE]"]
    assert counts == sorted(counts)
    assert counts[0] < counts[-1] == 20


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"prompt": ["R"] * 33}, "prompt: at most 32 prompts in one request, and there are 33"),
    ({"prompt": []}, "prompt: an empty list is no prompt: give text, or the ids of one token or more"),
    ({"prompt": [-1]}, "prompt: token ids are 0 or greater, and -1 is not"),
    ({"prompt": ["A", 1]}, "prompt: number 1 of the list: a prompt is text or a list of token ids"),
    ({"prompt": [1, "A"]}, "prompt: a list of token ids holds integers only, and number 1 is none"),
    ({"prompt": [75]}, "prompt: token ids are below 75"),
    ({"prompt": {"text": "R"}}, "prompt: a prompt is text or a list of token ids"),
    ({"prompt": "R", "min_tokens": 1, "stop": "x"}, "min_tokens does not go with stop: a text ends wherever its stop is"),
    ({"prompt": "R", "suffix": "x"}, "suffix: Input should be ''"),
    ({"prompt": "R", "logprobs": True}, "logprobs: Input should be a valid integer (given: true)"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_refusal_says_what_is_wrong_with_this_request(shared: Running, fields: dict[str, Any], message: str) -> None:
    """Whatever was wrong with a prompt, it said "Input should be a valid string"."""
    answer = shared.post("/v1/completions", **fields)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


def test_stop_user_and_extra_parameters(shared: Running, client: openai.OpenAI) -> None:
    whole = client.completions.create(model=current(shared), prompt="R", seed=7, max_tokens=100).choices[0].text
    stopped = client.completions.create(model=current(shared), prompt="R", seed=7, max_tokens=100, stop=[whole[30:33]], user="me").choices[
        0
    ]
    assert (stopped.text, stopped.finish_reason) == (whole[: whole.find(whole[30:33])], "stop")
    biased = client.completions.create(model=current(shared), prompt="R", seed=7, logit_bias={"5": 10}, extra_body={"top_k": 3})
    assert biased.choices[0].text != whole[:16]


def test_errors_are_the_packages_exceptions(serve: Serve) -> None:
    server = serve(FakeEngine(capacity=0), api_keys="k")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="k", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as full:
            client.completions.create(model=current(server), prompt="R")
        assert full.value.code == "queue_full"
        with pytest.raises(openai.BadRequestError) as invalid:
            client.completions.create(model=current(server), prompt="R", temperature=9)
        assert (invalid.value.code, invalid.value.param) == ("invalid_request", "temperature")
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="gpt-4", prompt="R")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0) as client, pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_an_error_within_a_stream_raises(serve: Serve) -> None:
    """LESSONS 19: a failed stream ended with [DONE] alone."""
    server = serve(FakeEngine(fail_at=7))
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client, pytest.raises(openai.APIError) as error:
        list(client.completions.create(model=current(server), prompt="R", stream=True))
    assert error.value.code == "engine_failed"


def test_done_comes_last_and_after_success_only(shared: Running) -> None:
    found = events(shared.post("/v1/completions", prompt="R", stream=True).text)
    assert found[-1]["data"] == "[DONE]"
    assert [event["data"] for event in found].count("[DONE]") == 1
    assert all("usage" not in event["data"] for event in found[:-1])


def test_the_model_before_is_served_while_loaded(serve: Serve) -> None:
    server = serve()
    old = current(server)
    text = server.post("/v1/completions", prompt="R", seed=1).json()["choices"][0]["text"]
    server.engine.loaded = (fake_checkpoint("b"), *server.engine.loaded)
    assert server.post("/v1/completions", prompt="R", seed=1).json()["choices"][0]["text"] != text
    assert server.post("/v1/completions", prompt="R", seed=1, model=old).json()["choices"][0]["text"] == text


def test_async_client(shared: Running) -> None:
    async def main() -> tuple[str, str]:
        async with openai.AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none") as client:
            whole = await client.completions.create(model=current(shared), prompt="R", seed=7)
            stream = await client.completions.create(model=current(shared), prompt="R", seed=7, stream=True)
            return whole.choices[0].text, "".join([chunk.choices[0].text async for chunk in stream])

    whole, streamed = asyncio.run(main())
    assert whole == streamed


def test_langchain(shared: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    llm = langchain.OpenAI(base_url=f"{shared.url}/v1", api_key="none", model=current(shared), seed=7, max_tokens=16, temperature=1)
    expected = shared.post(prompt="R", seed=7, max_new_tokens=16, stream=False).json()["text"]
    assert llm.invoke("R") == expected
    assert "".join(llm.stream("R")) == expected


def test_a_prompts_log_probabilities(shared: Running, client: openai.OpenAI) -> None:
    """``echo`` with ``logprobs``: what evaluations of models are made of."""
    args: Any = {"model": "folio", "prompt": ["ROMEO:", "R"], "echo": True, "logprobs": 2, "seed": 7, "n": 2}
    plain = client.completions.create(**{**args, "logprobs": None})
    for max_tokens, length in ((0, 6), (3, 9)):
        choices = client.completions.create(**args, max_tokens=max_tokens).choices
        assert [choice.text for choice in choices] == [
            each.text[: len(choice.text)] for each, choice in zip(plain.choices, choices, strict=True)
        ]
        found = choices[0].logprobs
        assert found is not None
        assert found.tokens is not None
        assert found.token_logprobs is not None
        assert found.top_logprobs is not None
        assert "".join(found.tokens) == choices[0].text
        assert found.text_offset == list(range(length))
        assert (found.token_logprobs[0], found.top_logprobs[0]) == (None, None), "nothing stands before the first"
        assert all(value is not None and value < 0 for value in found.token_logprobs[1:])
        assert len(found.top_logprobs) == length
        streamed = list(client.completions.create(**args, max_tokens=max_tokens, stream=True))
        parts = [choice.logprobs for chunk in streamed for choice in chunk.choices if choice.index == 0 and choice.logprobs]
        assert [offset for part in parts for offset in part.text_offset or ()] == list(range(length))
        assert [token for part in parts for token in part.tokens or ()] == found.tokens
    usage = client.completions.create(**args, max_tokens=0).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 0)


def test_a_scored_prompt_counts_against_its_keys_limits_once(serve: Serve) -> None:
    server = serve(api_keys="k", max_concurrent=1, rate_limit=0.001, rate_burst=2)
    body = {"prompt": "ROMEO:", "echo": True, "logprobs": 1, "max_tokens": 2}
    answers = [server.http.post("/v1/completions", json=body, headers={"Authorization": "Bearer k"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    limits = server.app.state.service.key_limits
    wait_for(lambda: not any(limits.texts.values()))
