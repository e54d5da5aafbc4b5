"""docs/api.md: every example runs against the service as it ships, and gets the status that stands behind it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.api.schemas import GenerateBody
from service.errors import STATUS
from service.settings import PRETRAINED
from tests.support.events import events, joined
from tests.support.server import ADMIN_KEY, Server, environment
from tests.support.wait import LIMIT_S

ROOT = Path(__file__).parents[2]
DOCUMENT = (ROOT / "docs" / "api.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def shipped() -> Iterator[Server]:
    server = Server(PRETRAINED)
    yield server
    server.close()


@pytest.mark.skipif(shutil.which("curl") is None, reason="the examples need curl")
@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_examples(shipped: Server, block: str, tmp_path: Path) -> None:
    expected = re.findall(r"# → (\d+)$", block, re.MULTILINE)
    assert len(expected) == len(re.findall(r"^curl ", block, re.MULTILINE)), "an example does not say what it gets"
    (tmp_path / ".curlrc").write_text(f'silent\nnoproxy = "*"\nmax-time = {LIMIT_S:g}\nwrite-out = "%{{stderr}}%{{http_code}}\\n"\n')
    (tmp_path / "prompts.jsonl").write_text('"ROMEO:"\n{"prompt": "JULIET:", "max_new_tokens": 20}\n')
    (tmp_path / "model").symlink_to(ROOT / "model")
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # the commands that the package brings
    variables = environment(
        URL=shipped.url,
        FOLIO_URL=shipped.url,
        ADMIN_KEY=ADMIN_KEY,
        CURL_HOME=str(tmp_path),
        HOME=str(tmp_path),
        PATH=path,
        PYTHONPATH=str(ROOT),
    )
    done = subprocess.run(
        ["bash", "-eu", "-c", block], check=False, cwd=tmp_path, env=variables, capture_output=True, text=True, timeout=2 * LIMIT_S
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == expected, done.stdout


def test_the_example_of_resuming_gives_the_rest(shipped: Server) -> None:
    """What the document promises, and not only its status."""
    whole = shipped.text(prompt="ROMEO:", max_new_tokens=200, seed=7)
    assert len(whole) == 200
    with shipped.http.stream("POST", "/generate", json={"prompt": "ROMEO:", "max_new_tokens": 200, "seed": 7}) as answer:
        first = next(line for line in answer.iter_lines() if line.startswith("id: "))[4:]
    rest = events(shipped.post(headers={"Last-Event-ID": first}, prompt="ROMEO:", max_new_tokens=200, seed=7).text)
    assert joined(rest) == whole[int(first.rpartition(".")[2]) :]
    assert rest[-1]["data"]["text"] == whole


def test_every_code_and_field_is_told() -> None:
    assert set(re.findall(r"`([a-z_]+)`", DOCUMENT)) >= set(STATUS) | set(GenerateBody.model_fields)
    for code, status in STATUS.items():
        assert re.search(rf"^\| {status} \|.*`{code}`", DOCUMENT, re.MULTILINE), code
