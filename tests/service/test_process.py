"""The process: what it imports, how it answers, how it ends."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from service.telemetry.lines import MAX_WAITING
from tests.support.events import events
from tests.support.ports import free_port
from tests.support.server import ROOT, ServerProcess, environment
from tests.support.wait import LIMIT_S, wait_for

BODY = {"prompt": "R", "max_new_tokens": 4096, "seed": 1}
SLOW_S = 0.05
"""Between chunks: the text above takes half a minute, unless it is told to hurry."""


class Process(ServerProcess):
    """A service with a fake engine in a process of its own."""

    def __init__(self, delay: float, grace: float) -> None:
        super().__init__("-W", "error", "-m", "tests.service.serve_fake", str(delay), str(grace), "0")
        self.results: list[list[dict[str, Any]]] = []

    def stream(self) -> threading.Thread:
        """Begin a stream; returns once its first event has come."""
        first = threading.Event()

        def read() -> None:
            text = ""
            try:
                with self.http.stream("POST", "/generate", json=BODY) as answer:
                    for part in answer.iter_text():
                        text += part
                        first.set()
            except httpx.TransportError:
                self.results.append([{"event": "cut"}])
            else:
                self.results.append(events(text))

        thread = threading.Thread(target=read)
        thread.start()
        assert first.wait(LIMIT_S)
        return thread

    def wait_until_it_drains(self) -> None:
        """Signals before and after this are two signals to it, however slow the machine is."""
        wait_for(lambda: self.http.get("/readyz").status_code == 503, self.logged)

    def hurry(self) -> None:
        """Every text ends at once."""
        self.send(signal.SIGUSR1)


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def begin(delay: float = 0.0, grace: float = 600.0) -> Process:
        processes.append(Process(delay, grace))
        return processes[-1]

    yield begin
    for each in processes:
        each.close()


def test_what_a_person_sees_and_no_torch_is_imported(start: Callable[..., Process]) -> None:
    process = start()
    imported, announced, address = process.printed
    example, warning = process.read_line(), process.read_line()
    assert imported == "imported:", "the API process imports neither torch nor numpy"
    assert "on cpu, fake" in announced
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", address)
    assert example.startswith(f"curl -N {process.url}/generate")
    assert "No keys are set" in warning
    data = re.search(r"-d '(.*)'", example)
    assert data is not None
    assert process.http.post("/generate", json=json.loads(data[1])).status_code == 200
    assert process.end() == 0
    assert process.read_line() == "closed: True"
    assert {json.loads(line)["message"] for line in process.logged().splitlines()} <= {"request"}


@pytest.mark.parametrize(
    ("signals", "group"), [((signal.SIGTERM,), False), ((signal.SIGTERM, signal.SIGTERM), True), ((signal.SIGINT,), True)]
)
def test_running_streams_finish_and_new_requests_get_503(
    start: Callable[..., Process], signals: tuple[signal.Signals, ...], group: bool
) -> None:
    """LESSONS 38: SIGTERM dropped answers in flight; and a second SIGTERM changes nothing."""
    process = start(SLOW_S)
    threads = [process.stream() for _ in range(8)]
    for number in signals:
        process.send(number, group=group)
        process.wait_until_it_drains()
    refused = process.http.post("/generate", json=BODY)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
    assert int(refused.headers["retry-after"]) >= 1
    assert process.http.get("/healthz").status_code == 200
    process.hurry()
    for thread in threads:
        thread.join()
    assert [result[-1]["event"] for result in process.results] == ["end"] * 8
    assert process.wait() == 0


def test_streams_beyond_the_grace_end_with_an_error_to_resume_from(start: Callable[..., Process]) -> None:
    process = start(SLOW_S, grace=0.4)
    thread = process.stream()
    assert process.end() == 0
    thread.join()
    (result,) = process.results
    assert result[-1]["event"] == "error"
    assert result[-1]["data"]["error"]["code"] == "shutting_down"
    assert result[-1]["data"]["retryable"] is True


def test_a_second_interrupt_ends_at_once(start: Callable[..., Process]) -> None:
    """With half a minute of text to come, and ten minutes of grace: what ends is cut, not finished."""
    process = start(SLOW_S)
    thread = process.stream()
    process.send(signal.SIGINT)
    process.wait_until_it_drains()
    assert process.end(signal.SIGINT) == 130
    thread.join()
    assert process.results == [[{"event": "cut"}]]


@pytest.mark.parametrize(
    ("args", "variables", "message"),
    [
        (["--port", "70000"], {}, "--port (FOLIO_PORT): "),
        ([], {"FOLIO_MAX_BATCH": "many"}, "--max-batch (FOLIO_MAX_BATCH): "),
        (["--host", "0.0.0.0"], {}, "without keys the service listens on loopback only"),
        ([], {"WEB_CONCURRENCY": "2"}, "one process serves all"),
        (["--api-keys-file", "/nonexistent"], {}, "/nonexistent cannot be read"),
        (["--checkpoint", "/nonexistent"], {}, "/nonexistent is no checkpoint"),
        (["--max-bat", "3"], {}, "unrecognized arguments"),
        (["--tls-cert", "x"], {}, "tls_cert and tls_key go together"),
    ],
)
def test_mistakes_in_the_configuration_are_one_line(
    args: list[str], variables: dict[str, str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from service.__main__ import parse_args

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        parse_args(args)
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in line


def test_every_setting_is_a_flag_and_a_variable(capsys: pytest.CaptureFixture[str]) -> None:
    from service.__main__ import parse_args
    from service.settings import Settings

    with pytest.raises(SystemExit):
        parse_args(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    for name, field in Settings.model_fields.items():
        assert field.description
        if name not in ("api_keys", "admin_key"):  # a key on a command line is there for everyone to read
            assert "--" + name.replace("_", "-") in text
            assert f"[FOLIO_{name.upper()};" in text


def full_pipe() -> tuple[int, int]:
    """A pipe that takes no byte more, as one whose reader has stopped reading."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    return reader, writer


class Bare:
    """The service with a fake engine and standard files of the test's choice, which cannot tell where it serves."""

    def __init__(self, closed: tuple[int, ...] = (), output: int = subprocess.DEVNULL) -> None:
        self.port = free_port()
        python = f"exec {shlex.quote(sys.executable)} -W error -m tests.service.serve_fake 0 1 {self.port}"
        command = python + "".join(f" {number}>&-" for number in closed)
        self.process = subprocess.Popen(["sh", "-c", command], cwd=ROOT, env=environment(), stdout=output, stderr=output)
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=LIMIT_S, trust_env=False)
        try:
            wait_for(self.serves)
        except AssertionError:
            self.process.kill()
            self.process.wait()
            raise

    def serves(self) -> bool:
        assert self.process.poll() is None
        try:
            return self.http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def end(self) -> int:
        self.http.close()
        self.process.terminate()
        return self.process.wait(LIMIT_S)


def test_nobody_reads_what_it_writes() -> None:
    """A full pipe stopped everything at the first line of the log, SIGTERM too."""
    reader, writer = full_pipe()
    server = Bare(output=writer)
    try:
        answers = [server.http.get("/nope").status_code for _ in range(MAX_WAITING + 300)]
        assert set(answers) == {404}
        metrics = server.http.get("/metrics").text
        assert float(metrics.partition("\nfolio_log_lines_dropped_total ")[2].split()[0]) > 0
    finally:
        assert server.end() == 0
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_it_was_started_without_standard_files(closed: tuple[int, ...]) -> None:
    """It served, and then aborted at SIGTERM: its sockets had become its standard files."""
    server = Bare(closed)
    assert server.http.post("/generate", json={**BODY, "stream": False}).status_code == 200
    assert server.end() == 0
