"""The service as a user starts it: a process of its own, with its worker below it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.checkpoints import Catalogue

ROOT = Path(__file__).parents[2]
ADMIN_KEY = "the-admin-key"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}
LIMIT_S = 60.0
"""For what takes a second or two: a machine with other work must not fail a test, and a hang must."""


def environment(**variables: str) -> dict[str, str]:
    """Ours, without what whoever runs the tests has set."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FOLIO_", "OTEL_")) and k != "WEB_CONCURRENCY"}
    return clean | {"FOLIO_ADMIN_KEY": ADMIN_KEY} | variables


class Server:
    """``python -m service`` on a free port. It leads a process group of its own, so that a signal can go to the whole of it."""

    def __init__(self, checkpoint: Path, *flags: str, variables: dict[str, str] | None = None, ready: bool = True) -> None:
        command = [sys.executable, "-m", "service", "--port", "0", "--threads", "1", "--max-batch", "16", "--max-new-tokens", "1000000"]
        self.began = time.monotonic()
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self.process = subprocess.Popen(
            [*command, "--checkpoint", str(checkpoint), *flags],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
            env=environment(**variables or {}),
        )
        self.ready_s = 0.0
        if ready:
            self.url = self.read_address()
            self.ready_s = time.monotonic() - self.began
            self.host, _, port = self.url.removeprefix("http://").partition(":")
            self.port = int(port)
            self.http = httpx.Client(base_url=self.url, timeout=LIMIT_S, trust_env=False)

    def read_address(self) -> str:
        """It is printed once a checkpoint is loaded."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("http://"):
                return line.strip()
        raise AssertionError(f"the service ended before it was ready: {self.logged()}")

    def logged(self) -> str:
        """What it has written to its log."""
        self.log.seek(0)
        return self.log.read()

    # ---- what it says ------------------------------------------------------------------------------------------------------

    def post(self, path: str = "/generate", headers: dict[str, str] | None = None, **body: Any) -> httpx.Response:
        return self.http.post(path, json=body, headers=headers)

    def text(self, **body: Any) -> str:
        """The golden text of a request: what the server says to it as one JSON."""
        answer = self.post(**body, stream=False)
        assert answer.status_code == 200, answer.text
        text: str = answer.json()["text"]
        return text

    def metrics(self) -> dict[str, float]:
        """Every sample of /metrics."""
        lines = self.http.get("/metrics").text.splitlines()
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))}

    @property
    def busy(self) -> int:
        """Requests that have a row or wait for one."""
        engine = self.http.get("/info").json()["engine"]
        busy: int = engine["running"] + engine["waiting"]
        return busy

    def promote(self, checkpoint: str, limit_s: float = LIMIT_S) -> httpx.Response:
        """The answer once it is another one than "in progress"."""
        deadline = time.monotonic() + limit_s
        while True:
            answer = self.post("/admin/promote", ADMIN, checkpoint=checkpoint)
            if answer.status_code != 409:
                return answer
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.02)

    # ---- its processes -----------------------------------------------------------------------------------------------------

    def workers(self) -> list[int]:
        """The processes below it."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [pid for pid in map(int, children.read_text().split()) if is_alive(pid)]

    def worker(self) -> int:
        (pid,) = self.workers()
        return pid

    def group(self) -> list[int]:
        """Every process of its group that still runs; its workers are in it."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, group = path.read_text().rpartition(") ")[2].split()[:3]
                if int(group) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after a signal."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> int:
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        if hasattr(self, "http"):
            self.http.close()


def serve(catalogue: Catalogue, *flags: str, variables: dict[str, str] | None = None, name: str = "a") -> Server:
    """A server of one of the checkpoints, ready."""
    return Server(catalogue.path(name), "--checkpoints", str(catalogue.directory), *flags, variables=variables)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False


def code_of(answer: httpx.Response) -> str:
    code: str = json.loads(answer.text)["error"]["code"]
    return code
