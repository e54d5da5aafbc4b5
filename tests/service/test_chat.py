"""/v1/chat/completions: a completion of one plain prompt, for clients that speak nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.service.fakes import fake_checkpoint
from tests.service.running import Running
from tests.support.events import events

Serve = Callable[..., Running]
MESSAGES = [
    {"role": "system", "content": "Speak."},
    {"role": "user", "content": [{"type": "text", "text": "ROM"}, {"type": "text", "text": "EO:"}]},
]
PROMPT = "Speak.\nROMEO:"
TEMPLATE = """
{%- for message in messages %}
{{- message['role'] + ': ' + message['content'] + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"""
NODE_S = 120.0


@pytest.fixture
def client(shared: Running) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def chat(server: Running, **fields: Any) -> Any:
    return server.post("/v1/chat/completions", **{"messages": MESSAGES, "seed": 7, **fields})


def text_after(server: Running, prompt: str, max_tokens: int = 16, **fields: Any) -> str:
    text: str = server.post(prompt=prompt, max_new_tokens=max_tokens, seed=7, stream=False, **fields).json()["text"]
    return text


def test_the_prompt_is_the_messages_one_a_line(shared: Running, client: openai.OpenAI) -> None:
    args: Any = {"model": "folio", "messages": MESSAGES, "seed": 7, "max_tokens": 16}
    completion = client.chat.completions.create(**args)
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", text_after(shared, PROMPT), "length")
    assert completion.model_extra == {"folio": {"template": "joined"}}
    assert completion.model == shared.engine.loaded[0].id
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (len(PROMPT), 16)


def test_streamed_it_is_the_same_text(shared: Running, client: openai.OpenAI) -> None:
    args: Any = {"model": "folio", "messages": MESSAGES, "n": 2, "seed": 7, "max_completion_tokens": 40}
    whole = client.chat.completions.create(**args)
    texts, roles, reasons = ["", ""], [], []
    for chunk in client.chat.completions.create(**args, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            roles += [choice.delta.role] if choice.delta.role else []
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage
    assert texts == [choice.message.content for choice in whole.choices]
    assert (roles, reasons) == (["assistant"] * 2, ["length"] * 2)
    assert usage == whole.usage


def test_256_tokens_are_the_default(shared: Running) -> None:
    assert chat(shared).json()["usage"]["completion_tokens"] == 256


def test_stop_and_logprobs(shared: Running, client: openai.OpenAI) -> None:
    whole = text_after(shared, PROMPT, 60)
    args: dict[str, Any] = {"model": "folio", "messages": MESSAGES, "seed": 7, "max_tokens": 60}
    stopped = client.chat.completions.create(**args, stop=whole[30:33]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == (whole[: whole.find(whole[30:33])], "stop")
    listed = client.chat.completions.create(**args, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert "".join(each.token for each in listed) == whole
    assert b"".join(bytes(each.bytes) for each in listed).decode() == whole
    assert {len(each.top_logprobs) for each in listed} == {3}
    streamed = client.chat.completions.create(**args, logprobs=True, stream=True)
    assert [each.token for chunk in streamed for choice in chunk.choices if choice.logprobs for each in choice.logprobs.content] == list(
        whole
    )


def test_the_checkpoints_own_template(serve: Serve) -> None:
    """As ``tokenizer_config.json`` of Hugging Face's models has it."""
    server = serve()
    server.engine.loaded = (replace(fake_checkpoint(), manifest={"chat_template": TEMPLATE}),)
    reply = chat(server, max_tokens=16).json()
    assert reply["choices"][0]["message"]["content"] == text_after(server, "system: Speak.\nuser: ROMEO:\nassistant:")
    assert reply["folio"] == {"template": "chat_template"}


def test_a_templates_special_tokens_and_the_end_of_a_turn(serve: Serve) -> None:
    """A chat is the completion of one prompt, up to the text that the model was taught to end its turn with."""
    server = serve()
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% break %}{% endfor %}"
    whole = text_after(server, "OSpeak.", 60)
    end = whole[40:43]
    manifest = {"chat_template": template, "special_tokens": {"bos_token": "O", "eos_token": end}}
    server.engine.loaded = (replace(fake_checkpoint(), manifest=manifest),)
    choice = chat(server, max_tokens=60).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (whole[: whole.find(end)], "stop")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for a in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('user and assistant must alternate') }}",
        "{{ 1 / 0 }}",
        "{{ messages[9].content }}",
        "{% if %}",
        "{{ 'x' * 70000 }}",
    ],
)
def test_a_template_that_fails_is_a_refusal(serve: Serve, template: str) -> None:
    """It comes with the checkpoint and runs in the service: in a sandbox, and never to a 500."""
    server = serve()
    server.engine.loaded = (replace(fake_checkpoint(), manifest={"chat_template": template}),)
    error = chat(server).json()["error"]
    assert (error["param"], error["type"]) == ("messages", "invalid_request_error")


def test_what_open_webui_sends(shared: Running) -> None:
    """Its backend forwards what its page sends: first the list of models, then chats by the names in it, titles not streamed."""
    headers = {"Authorization": "Bearer none", "X-OpenWebUI-User-Name": "Ann", "X-OpenWebUI-Chat-Id": "1"}
    with httpx.Client(base_url=f"{shared.url}/v1", headers=headers, trust_env=False, timeout=60) as http:
        name = http.get("/models").json()["data"][0]["id"]
        turn = [{"role": "user", "content": [{"type": "text", "text": "ROMEO:"}]}]
        chat = {"model": name, "stream": True, "stream_options": {"include_usage": True}, "messages": turn, "max_tokens": 20, "seed": 3}
        lines = http.post("/chat/completions", json=chat).text.split("\n\n")
        assert lines[-2:] == ["data: [DONE]", ""]
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert chunks[-1]["usage"]["completion_tokens"] == 20
        title = {
            "model": name,
            "stream": False,
            "messages": [{"role": "user", "content": "ROMEO:"}],
            "max_completion_tokens": 20,
            "seed": 3,
        }
        assert http.post("/chat/completions", json=title).json()["choices"][0]["message"]["content"] == text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, "messages.0.content"),
    ({"messages": [{"role": "narrator", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": "日"}]}, "messages"),
    ({"messages": [{"role": "user", "content": "a" * 65_537}]}, "messages"),
    ({"messages": [{"role": "user", "content": "x", "mood": 1}]}, "messages.0.mood"),
    ({"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    ({"top_logprobs": 1}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "json_object"}}, "response_format.type"),
    ({"store": True}, "store"),
    ({"echo": True}, "echo"),
]


@pytest.mark.parametrize(("fields", "param"), REFUSED, ids=lambda value: str(value)[:40])
def test_what_is_not_taken_is_named(shared: Running, fields: dict[str, Any], param: str) -> None:
    answer = chat(shared, **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_open_webuis_requests(shared: Running) -> None:
    """What Open WebUI sends: the models' list first, then streams with nulls, a conversation and an answer's own fields in it."""
    assert shared.http.get("/v1/models").json()["data"][0]["id"] == "folio"
    history = [
        {"role": "user", "content": "R"},
        {"role": "assistant", "content": "O", "refusal": None, "tool_calls": None},
        {"role": "user", "content": "R"},
    ]
    answer = chat(
        shared,
        model="folio",
        messages=history,
        stream=True,
        max_tokens=8,
        temperature=None,
        stop=None,
        stream_options={"include_usage": True},
    )
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    found = events(answer.text)
    assert found[-1]["data"] == "[DONE]"
    text = "".join(choice["delta"].get("content", "") for event in found[:-1] for choice in event["data"]["choices"])
    assert text == text_after(shared, "R\nO\nR", 8)


def test_langchain(shared: Running) -> None:
    langchain = pytest.importorskip("langchain_openai")
    llm = langchain.ChatOpenAI(base_url=f"{shared.url}/v1", api_key="none", model="folio", seed=7, max_tokens=16, temperature=1)
    messages = [("system", "Speak."), ("human", "ROMEO:")]
    assert llm.invoke(messages).content == text_after(shared, PROMPT)
    assert "".join(chunk.content for chunk in llm.stream(messages)) == text_after(shared, PROMPT)


AI_SDK = """
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const folio = createOpenAICompatible({ name: "folio", baseURL: process.argv[2] + "/v1" });
const call = { model: folio("folio"), prompt: "ROMEO:", seed: 7, maxOutputTokens: 16, maxRetries: 0 };
const { text, finishReason, usage } = await generateText(call);
let streamed = "";
for await (const part of streamText(call).textStream) streamed += part;
console.log(JSON.stringify({ text, streamed, finishReason, tokens: usage.outputTokens }));
"""


@pytest.mark.skipif(shutil.which("npm") is None, reason="the AI SDK needs node and npm")
def test_the_ai_sdk(shared: Running, tmp_path: Path) -> None:
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    (tmp_path / "call.js").write_text(AI_SDK)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "ai@5", "@ai-sdk/openai-compatible@1"]
    if subprocess.run(install, check=False, cwd=tmp_path, capture_output=True, timeout=NODE_S).returncode:
        pytest.skip("npm cannot install the AI SDK: no registry in reach")
    done = subprocess.run(["node", "call.js", shared.url], check=False, cwd=tmp_path, capture_output=True, text=True, timeout=NODE_S)
    assert done.returncode == 0, done.stderr
    expected = text_after(shared, "ROMEO:")
    assert json.loads(done.stdout) == {"text": expected, "streamed": expected, "finishReason": "length", "tokens": 16}
