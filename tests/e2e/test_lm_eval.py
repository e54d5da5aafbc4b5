"""EleutherAI's lm-eval, as docs/api.md says to run it: its own requests, and itself where it is installed."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from contextlib import closing
from http.client import HTTPConnection
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.checkpoints import BLOCK, TEXT, Catalogue
from tests.support.server import ROOT, Server, environment
from tests.support.wait import LIMIT_S
from training.__main__ import main

DOCUMENT = (ROOT / "docs" / "api.md").read_text()
LYRICS = ("ab cad ghi\nbed j " * 8)[: 4 * BLOCK]
"""Whole windows of the model's context."""
LONGER = LYRICS + "face a"
HEADERS = {
    "User-Agent": "python-requests/2.34.2",
    "Accept-Encoding": "gzip, deflate",
    "Accept": "*/*",
    "Content-Type": "application/json",
}
KEYLESS = HEADERS | {"Authorization": "Bearer "}
TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {directory}/{name}.jsonl
test_split: test
"""
TASKS = {
    "rolling": """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list:
  - metric: bits_per_byte
    aggregation: bits_per_byte
    higher_is_better: false
""",
    "choice": """
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
target_delimiter: ""
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
""",
    "writing": """
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
generation_kwargs:
  until: ["j"]
  max_gen_toks: 20
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
""",
}


def ids_of(text: str) -> list[int]:
    return [TEXT.index(character) for character in text]


def logprobs_of(server: Server, prompt: list[int]) -> list[float]:
    """Of the tokens after the first, by our own reading of ``echo``."""
    answer = server.post("/v1/completions", prompt=prompt, max_tokens=0, echo=True, logprobs=0)
    assert answer.status_code == 200, answer.text
    values: list[float] = answer.json()["choices"][0]["logprobs"]["token_logprobs"][1:]
    return values


def greedy(server: Server, prompt: str) -> str:
    return server.text(prompt=prompt, temperature=0, max_new_tokens=20, stop="j")


def exact_bits_per_byte(checkpoint: Path, text: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> float:
    """What ``python -m training eval --exact`` prints."""
    path = directory / "text.txt"
    path.write_text(text)
    assert main(["eval", str(checkpoint), "--exact", "--data", str(path), "--val-data", str(path)]) == 0
    found: float = json.loads(capsys.readouterr().out)["exact_bits_per_byte"]
    return found


def post(server: Server, path: str, body: bytes, headers: dict[str, str]) -> Any:
    """By the standard library, since httpx refuses to send an empty key, as `requests` does."""
    with closing(HTTPConnection(server.host, server.port, timeout=LIMIT_S)) as connection:
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        data = answer.read()
    assert answer.status == 200, data
    return json.loads(data)


def scored(choice: dict[str, Any], context: int) -> float:
    """What lm-eval makes of an answer: the last token is the one that it had to let the server write."""
    return float(sum(choice["logprobs"]["token_logprobs"][context:-1]))


def test_the_requests_that_it_sends(server: Server, catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """lm-eval 0.4.13's, recorded to the byte: the tokenizer, a window of a rolling text, two choices in one request, a generation."""
    info = server.http.get("/tokenizer_info", headers=HEADERS).json()
    assert (info["eos_token"], info["bos_token"], info["max_model_len"]) == (None, "\n", BLOCK)
    asked = b'{"prompt": "ab cad ghi\\nbed j", "add_special_tokens": false}'
    assert post(server, "/tokenize", asked, HEADERS)["tokens"] == ids_of("ab cad ghi\nbed j")
    assert post(server, "/detokenize", b'{"tokens": [2, 3, 1, 4]}', HEADERS) == {"prompt": "ab c"}

    total, ids = 0.0, ids_of("\n" + LYRICS)
    for start in range(0, len(LYRICS), BLOCK):
        window = json.dumps([ids[start : start + BLOCK + 1]]).encode()
        body = b'{"model": "folio", "prompt": %b, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true}'
        (choice,) = post(server, "/v1/completions", body % window, KEYLESS)["choices"]
        total -= scored(choice, context=1)
    expected = exact_bits_per_byte(catalogue.path("a"), "\n" + LYRICS, tmp_path, capsys)
    assert total / len(LYRICS) / math.log(2) == pytest.approx(expected, abs=1e-6)

    body = (
        b'{"model": "folio", "prompt": [[2, 3, 1, 4, 2], [2, 3, 1, 11]], "temperature": 0, "max_tokens": 1, "logprobs": 1, '
        b'"seed": 1234, "echo": true}'
    )
    choices = post(server, "/v1/completions", body, KEYLESS)["choices"]
    assert [choice["index"] for choice in choices] == [0, 1]
    for choice, prompt in zip(choices, ([2, 3, 1, 4, 2], [2, 3, 1, 11]), strict=True):
        assert scored(choice, context=2) == pytest.approx(sum(logprobs_of(server, prompt)[1:]), abs=1e-12)
        tops = choice["logprobs"]["top_logprobs"]
        assert tops[0] is None
        assert all(max(top.values()) >= value for top, value in zip(tops[1:], choice["logprobs"]["token_logprobs"][1:], strict=True))

    body = b'{"prompt": [[2, 3, 1]], "model": "folio", "max_tokens": 20, "temperature": 0, "stop": ["j"], "seed": 1234}'
    assert post(server, "/v1/completions", body, KEYLESS)["choices"][0]["text"] == greedy(server, "ab ")


def documented(server: Server) -> list[str]:
    """The command of docs/api.md, for another server and its context."""
    (line,) = re.findall(r"^\$ lm_eval (.*)$", DOCUMENT, re.MULTILINE)
    for before, after in (
        ("http://127.0.0.1:8000", server.url),
        ("max_length=258", f"max_length={BLOCK + 2}"),
        ("--tasks mine", f"--tasks {','.join(TASKS)}"),
    ):
        assert before in line
        line = line.replace(before, after)
    return [sys.executable, "-m", "lm_eval", *line.split(), "--output_path", "out", "--log_samples"]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("lm_eval") is None, reason="needs lm-eval: pip install 'lm-eval[api]'")
def test_itself(server: Server, catalogue: Catalogue, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    questions: list[dict[str, Any]] = [
        {"question": "ab c", "choices": ["ad g", "jj"], "answer": 0},
        {"question": "", "choices": ["abc", "d\n"], "answer": 1},
    ]
    documents: dict[str, list[dict[str, Any]]] = {
        "rolling": [{"text": LYRICS}, {"text": LONGER}],
        "choice": questions,
        "writing": [{"question": "ab ", "answer": greedy(server, "ab ")}, {"question": "ghi", "answer": "nothing"}],
    }
    (tmp_path / "tasks").mkdir()
    for name, lines in documents.items():
        (tmp_path / "tasks" / f"{name}.yaml").write_text(TASK.format(name=name, directory=tmp_path / "tasks") + TASKS[name])
        (tmp_path / "tasks" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    offline = environment(HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", no_proxy="*")
    command = documented(server)
    done = subprocess.run(command, check=False, cwd=tmp_path, env=offline, capture_output=True, text=True, timeout=4 * LIMIT_S)
    assert done.returncode == 0, done.stderr[-3000:]

    def samples(task: str) -> list[Any]:
        (path,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        found = sorted(map(json.loads, path.read_text().splitlines()), key=lambda sample: int(sample["doc_id"]))
        return [sample["filtered_resps"] for sample in found]

    whole, longer = (-float(values[0]) for values in samples("rolling"))
    expected = exact_bits_per_byte(catalogue.path("a"), "\n" + LYRICS, tmp_path, capsys)
    assert whole / len(LYRICS) / math.log(2) == pytest.approx(expected, abs=1e-6)
    rest = len(LONGER) - len(LYRICS)
    last = logprobs_of(server, ids_of(LONGER)[-BLOCK - 1 :])[-rest:]
    assert longer == pytest.approx(whole - sum(last), abs=1e-9), "a last window has a whole context"
    for question, found in zip(questions, samples("choice"), strict=True):
        for choice, (value, _) in zip(question["choices"], found, strict=True):
            prompt = ids_of((question["question"] or "\n") + choice)
            assert float(value) == pytest.approx(sum(logprobs_of(server, prompt)[-len(choice) :]), abs=1e-9)
    assert samples("writing") == [[greedy(server, "ab ")], [greedy(server, "ghi")]]
