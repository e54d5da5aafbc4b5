"""The process: what it imports, how soon it answers, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.service.running import events

ROOT = Path(__file__).parents[2]
BODY = {"prompt": "R", "max_new_tokens": 300, "seed": 1}


class Process:
    """A service in a process of its own."""

    def __init__(self, delay: float, grace: float) -> None:
        self.started = time.monotonic()
        command = [sys.executable, "-W", "error", "-m", "tests.service.serve_fake", str(delay), str(grace)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=environment()
        )
        assert self.process.stdout is not None
        self.imported = self.process.stdout.readline().strip()
        self.announced = [self.process.stdout.readline().strip() for _ in range(4)]
        self.url = self.announced[1]
        self.results: list[list[str]] = []

    def stream(self) -> threading.Thread:
        """Begin a stream; returns once its first event has come."""
        first = threading.Event()

        def read() -> None:
            try:
                with httpx.stream("POST", f"{self.url}/generate", json=BODY, timeout=30, trust_env=False) as answer:
                    text = ""
                    for part in answer.iter_text():
                        text += part
                        first.set()
                self.results.append([e.get("event", "text") for e in events(text)] + ([events(text)[-1]["data"]] if text else []))
            except httpx.TransportError:
                self.results.append(["cut"])

        thread = threading.Thread(target=read)
        thread.start()
        assert first.wait(10)
        return thread

    def end(self, *signals: signal.Signals, group: bool = False) -> tuple[int, float]:
        """The exit status after these signals, and the seconds until then."""
        start = time.monotonic()
        for number in signals:
            (os.killpg if group else os.kill)(self.process.pid, number)
            time.sleep(0.3)
        return self.process.wait(15), time.monotonic() - start


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if not k.startswith("FOLIO_")}


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    processes: list[Process] = []

    def begin(delay: float = 0.0, grace: float = 5.0) -> Process:
        processes.append(Process(delay, grace))
        return processes[-1]

    yield begin
    for each in processes:
        each.process.kill()
        each.process.communicate()


def test_what_a_person_sees_and_no_torch_is_imported(start: Callable[..., Process]) -> None:
    process = start()
    assert process.imported == "imported:", "the API process imports neither torch nor numpy"
    assert "on cpu, float32, fake" in process.announced[0]
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", process.url)
    assert process.announced[2].startswith(f"curl -N {process.url}/generate")
    assert "No keys are set" in process.announced[3]
    data = re.search(r"-d '(.*)'", process.announced[2])
    assert data is not None
    assert httpx.post(f"{process.url}/generate", json=json.loads(data[1]), trust_env=False).status_code == 200
    status, seconds = process.end(signal.SIGTERM)
    assert status == 0
    assert seconds < 3
    output, errors = process.process.communicate()
    assert "closed: True" in output
    assert errors == ""


@pytest.mark.parametrize(
    ("signals", "group"), [((signal.SIGTERM,), False), ((signal.SIGTERM, signal.SIGTERM), True), ((signal.SIGINT,), True)]
)
def test_running_streams_finish_and_new_requests_get_503(
    start: Callable[..., Process], signals: tuple[signal.Signals, ...], group: bool
) -> None:
    """LESSONS 38: SIGTERM dropped answers in flight; and a second SIGTERM changes nothing."""
    process = start(delay=0.025)
    threads = [process.stream() for _ in range(8)]
    ending = threading.Thread(target=lambda: process.end(*signals, group=group))
    ending.start()
    time.sleep(0.25)
    with httpx.Client(base_url=process.url, trust_env=False) as http:
        refused = http.post("/generate", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        assert int(refused.headers["retry-after"]) >= 1
        assert http.get("/readyz").status_code == 503
        assert http.get("/healthz").status_code == 200
    for thread in threads:
        thread.join()
    assert [result[-2] for result in process.results] == ["end"] * 8
    ending.join()
    assert process.process.returncode == 0


def test_streams_beyond_the_grace_end_with_an_error_to_resume_from(start: Callable[..., Process]) -> None:
    process = start(delay=0.05, grace=0.4)
    thread = process.stream()
    status, seconds = process.end(signal.SIGTERM)
    thread.join()
    (result,) = process.results
    assert result[-2] == "error"
    assert result[-1]["error"]["code"] == "shutting_down"  # type: ignore[index]
    assert result[-1]["retryable"] is True  # type: ignore[index]
    assert status == 0
    assert seconds < 5


def test_a_second_interrupt_ends_at_once(start: Callable[..., Process]) -> None:
    process = start(delay=0.2, grace=30)
    thread = process.stream()
    status, seconds = process.end(signal.SIGINT, signal.SIGINT)
    assert status == 130
    assert seconds < 2
    thread.join()
    assert process.results[0][-1] == "cut"


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
