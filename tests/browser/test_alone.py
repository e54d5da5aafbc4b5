"""``python -m service.playground``: a folder that needs no server of ours, and says what the service says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from model.tokenizer.byte import ByteTokenizer
from tests.browser.conftest import FLAGS, Open
from tests.browser.engines import Folder
from tests.golden.models import golden_checkpoint
from tests.support.checkpoints import make_checkpoint
from tests.support.server import ROOT, Server, environment


def make(checkpoint: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "service.playground", str(checkpoint), str(out)]
    return subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, check=False)


def written(open_page: Open, folder: Path, prompt: str) -> str:
    """What the page of a folder writes after a prompt, with the seed 7."""
    with Folder(folder) as web:
        page = open_page(url=f"http://127.0.0.1:{web.server_port}", ready=False)
        page.locator("#state[data-state=ready]").wait_for()
        page.locator("#prompt").fill(prompt)
        page.locator("#max_new_tokens").fill("90")
        page.locator("#seed").fill("7")
        page.locator("#generate").click()
        page.get_by_text("Written: 90").wait_for()
        text: str = page.locator("#text").text_content()
        page.close()
        web.shutdown()
    assert text.startswith(prompt)
    return text[len(prompt) :]


def test_it_writes_what_the_service_writes(open_page: Open, server: Server, checkpoint: Path, tmp_path: Path) -> None:
    done = make(checkpoint, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert written(open_page, tmp_path / "out", "ROMEO:") == server.text(prompt="ROMEO:", max_new_tokens=90, seed=7)
    assert written(open_page, tmp_path / "out", "") == server.text(prompt="", max_new_tokens=90, seed=7)


def test_a_model_of_bytes(open_page: Open, tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "bytes", tokenizer=ByteTokenizer())
    server = Server(checkpoint, *FLAGS)
    try:
        assert make(checkpoint, tmp_path / "out").returncode == 0
        assert written(open_page, tmp_path / "out", "Café 😀") == server.text(prompt="Café 😀", max_new_tokens=90, seed=7)
    finally:
        server.close()


def test_what_cannot_be_done_is_said_in_a_line(tmp_path: Path) -> None:
    pairs = make(golden_checkpoint("bpe", tmp_path).path, tmp_path / "out")
    assert (pairs.returncode, pairs.stderr.count("\n")) == (2, 1)
    assert "the page knows characters and bytes" in pairs.stderr
    missing = make(tmp_path / "nothing", tmp_path / "out")
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("name", ["index.html", "alone.js"])
def test_a_server_does_not_show_it(server: Server, name: str) -> None:
    """Its files lie in a folder of their own: beside a server the page would have no model."""
    assert server.http.get(f"/playground/alone/{name}").status_code == 404
