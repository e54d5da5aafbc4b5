"""/openapi.json says what routes take and answer: by its own rules, and by clients that generators make of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.service.running import Running

Serve = Callable[..., Running]
PAGES = {"/": "text/html", "/docs": "text/html", "/metrics": "text/plain", "/v1/models/{model}/weights": "application/octet-stream"}
STREAMS = ("/generate", "/v1/completions", "/v1/chat/completions")
GENERATE_S = 120.0


@pytest.fixture(scope="module")
def document(shared: Running) -> dict[str, Any]:
    found: dict[str, Any] = shared.http.get("/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method, path, operation


def with_body(operation: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every answer that has a body."""
    yield from ((status, answer) for status, answer in operation["responses"].items() if status not in ("204", "304"))


def resolved(schema: dict[str, Any], document: dict[str, Any]) -> dict[str, Any]:
    """A schema, or the component that it refers to."""
    if "$ref" not in schema:
        return schema
    component: dict[str, Any] = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
    return component


def test_every_json_answer_has_named_properties(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        for status, response in with_body(operation):
            content = response["content"]
            if status == "200" and path in PAGES:
                assert set(content) == {PAGES[path]}, path
                continue
            assert resolved(content["application/json"]["schema"], document)["properties"], (path, status)
            events = {"text/event-stream"} if status == "200" and path in STREAMS else set()
            assert set(content) - {"application/json"} <= events, (path, status)
    generic = [name for name in document["components"]["schemas"] if "ValidationError" in name]
    assert not generic, "FastAPI's own 422, which no route sends"


def test_errors_have_the_shape_of_their_side(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        for status, response in with_body(operation):
            if status != "200":
                name = "OpenAIError" if path.startswith("/v1") else "NativeError"
                assert response["content"]["application/json"]["schema"] == {"$ref": f"#/components/schemas/{name}"}, (path, status)
                assert response["content"]["application/json"]["examples"]


def test_no_field_of_a_body_has_a_default_that_clients_would_send(document: dict[str, Any]) -> None:
    for _, path, operation in operations(document):
        if "requestBody" in operation:
            body = resolved(operation["requestBody"]["content"]["application/json"]["schema"], document)
            assert [name for name, field in body["properties"].items() if "default" in field] == [], path


def test_keys_are_declared(serve: Serve, document: dict[str, Any]) -> None:
    assert document["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    with_keys = serve(api_keys="k").http.get("/openapi.json", headers={"Authorization": "Bearer k"}).json()
    for _, path, operation in operations(with_keys):
        assert operation.get("security", []) == ([] if path in ("/", "/healthz", "/readyz") else [{"key": []}]), path
    assert document["paths"]["/generate"]["post"]["security"] == [{}, {"key": []}], "without keys one may still send one"


PYTHON_CLIENT = """
import sys

from {package}.api.generation import generate
from {package}.api.open_ai_compatible import chat_completions, completions, models
from {package}.client import Client
from {package}.models import ChatBody, ChatCompletion, Message, MessageRole
from {package}.models import CompletionBody, CompletionReply, GenerateBody, GenerateReply, ModelList, NativeError, OpenAIError

client = Client(base_url=sys.argv[1], httpx_args={{"trust_env": False}})
native = generate.sync(client=client, body=GenerateBody(prompt="ROMEO:", max_tokens=10, seed=7, stop=["never there"], stream=False))
assert isinstance(native, GenerateReply), native
assert (len(native.text), native.usage.completion_tokens, native.seed) == (10, 10, 7)
whole = completions.sync(client=client, body=CompletionBody(prompt=["ROMEO:", "R"], max_tokens=10, seed=7, logprobs=2))
assert isinstance(whole, CompletionReply), whole
assert whole.choices[0].text == native.text
assert whole.choices[0].logprobs.tokens == list(native.text)
messages = [Message(role=MessageRole.USER, content="ROMEO:")]
talk = chat_completions.sync(client=client, body=ChatBody(messages=messages, max_tokens=10, seed=7))
assert isinstance(talk, ChatCompletion), talk
assert talk.choices[0].message.content == native.text
assert isinstance(models.sync(client=client), ModelList)
wrong = generate.sync(client=client, body=GenerateBody(prompt="ROMEO:", temperature=9.0))
assert isinstance(wrong, NativeError) and wrong.error.param == "temperature", wrong
unknown = completions.sync(client=client, body=CompletionBody(prompt="R", model="gpt-4"))
assert isinstance(unknown, OpenAIError) and unknown.error.code == "checkpoint_not_found", unknown
print(native.text, end="")
"""


def test_a_client_made_by_openapi_python_client(shared: Running, document: dict[str, Any], tmp_path: Path) -> None:
    """It sent defaults that exclude each other, and could not be made at all of a default within a union."""
    pytest.importorskip("openapi_python_client")
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    make = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none", "--fail-on-warning"]
    make += ["--path", "openapi.json", "--output-path", "made"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # it formats with ruff
    environment = os.environ | {"PATH": path}
    made = subprocess.run(make, check=False, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=GENERATE_S)
    assert made.returncode == 0, made.stdout + made.stderr
    command = [sys.executable, "-c", PYTHON_CLIENT.format(package="made"), shared.url]
    done = subprocess.run(command, check=False, cwd=tmp_path, capture_output=True, text=True, timeout=GENERATE_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout == shared.post(prompt="ROMEO:", max_tokens=10, seed=7, stream=False).json()["text"]


TYPESCRIPT_CLIENT = """
import createClient from "openapi-fetch";
import type { paths } from "./schema.d.ts";

const client = createClient<paths, "application/json">({ baseUrl: process.argv[2] });
const body = { prompt: "ROMEO:", max_tokens: 10, seed: 7, stream: false };
const native = await client.POST("/generate", { body });
const text: string = native.data!.text;
const whole = await client.POST("/v1/completions", { body: { prompt: ["ROMEO:", "R"], max_tokens: 10, seed: 7 } });
const first: string = whole.data!.choices[0].text;
const chat = { messages: [{ role: "user" as const, content: "ROMEO:" }], max_tokens: 10, seed: 7 };
const talk = await client.POST("/v1/chat/completions", { body: chat });
const said: string = talk.data!.choices[0].message.content;
const wrong = await client.POST("/generate", { body: { prompt: "ROMEO:", temperature: 9 } });
const param: string | null | undefined = wrong.error?.error.param;
const models = await client.GET("/v1/models");
const id: string = models.data!.data[0].id;
console.log(JSON.stringify({ text, first, said, param, id }));
"""
NPM_PACKAGES = ("openapi-typescript@7", "openapi-fetch@0.17", "typescript@5", "@types/node@20")


def run_node(directory: Path, *command: str) -> str:
    done = subprocess.run(command, check=False, cwd=directory, capture_output=True, text=True, timeout=GENERATE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(shutil.which("npm") is None, reason="openapi-typescript needs node and npm")
def test_a_client_made_by_openapi_typescript(shared: Running, document: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "package.json").write_text('{"type": "module", "private": true}')
    (tmp_path / "call.ts").write_text(TYPESCRIPT_CLIENT)
    install = ["npm", "install", "--silent", "--no-audit", "--no-fund", *NPM_PACKAGES]
    if subprocess.run(install, check=False, cwd=tmp_path, capture_output=True, timeout=GENERATE_S).returncode:
        pytest.skip("npm cannot install openapi-typescript: no registry in reach")
    run_node(tmp_path, "npx", "openapi-typescript", "openapi.json", "-o", "schema.d.ts")
    flags = ["--strict", "--skipLibCheck", "--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext"]
    run_node(tmp_path, "npx", "tsc", *flags, "--allowImportingTsExtensions", "--rewriteRelativeImportExtensions", "call.ts")
    answer = json.loads(run_node(tmp_path, "node", "call.js", shared.url))
    expected = shared.post(prompt="ROMEO:", max_tokens=10, seed=7, stream=False).json()["text"]
    assert answer == {"text": expected, "first": expected, "said": expected, "param": "temperature", "id": "folio"}
