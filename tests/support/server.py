"""The service as a user starts it: a process of its own, with its worker below it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import httpx

from tests.support.checkpoints import Catalogue
from tests.support.wait import LIMIT_S, wait_for

ROOT = Path(__file__).parents[2]
ADMIN_KEY = "the-admin-key"
ADMIN = {"Authorization": f"Bearer {ADMIN_KEY}"}


def environment(**variables: str) -> dict[str, str]:
    """Ours, without what whoever runs the tests has set."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("FOLIO_", "OTEL_")) and k != "WEB_CONCURRENCY"}
    return clean | variables


class ServerProcess:
    """``python ARGUMENTS``, which prints its address once it serves. It leads a process group of its own, for signals to the whole."""

    http: httpx.Client

    def __init__(self, *arguments: str, variables: dict[str, str] | None = None, ready: bool = True) -> None:
        self.arguments, self.variables = arguments, variables or {}
        self.printed: list[str] = []
        """Lines of the standard output so far."""
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115  # lives as long as the process
        self.spawn()
        if ready:
            try:
                self.connect()
            except BaseException:
                self.close()
                raise

    def spawn(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *self.arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            start_new_session=True,
            env=environment(**self.variables),
        )

    def connect(self) -> None:
        """Returns once it has printed its address."""
        while not (line := self.read_line()).startswith("http://"):
            pass
        self.url = line
        self.host, _, port = self.url.removeprefix("http://").partition(":")
        self.port = int(port)
        self.http = httpx.Client(base_url=self.url, timeout=LIMIT_S, trust_env=False)

    def read_line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the service ended before it was ready: {self.logged()}"
        self.printed.append(line.strip())
        return self.printed[-1]

    def logged(self) -> str:
        """What it has written to its standard error."""
        self.log.seek(0)
        return self.log.read()

    def send(self, number: signal.Signals, *, group: bool = False) -> None:
        """To the process, or to all of its group, as a terminal does."""
        (os.killpg if group else os.kill)(self.process.pid, number)

    def wait(self) -> int:
        """Its exit status when it has ended."""
        return self.process.wait(LIMIT_S)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after a signal."""
        self.send(number)
        return self.wait()

    def close(self) -> None:
        """End it, however it is."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.wait()
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
        if hasattr(self, "http"):
            self.http.close()


class Server(ServerProcess):
    """The service with a checkpoint on a free port: one thread, 16 rows, texts as long as a test likes, and an admin's key."""

    def __init__(self, checkpoint: Path, *flags: str, variables: dict[str, str] | None = None, ready: bool = True) -> None:
        limits = ("--threads", "1", "--max-batch", "16", "--max-new-tokens", "1000000")
        arguments = ("-m", "service", "--port", "0", *limits, "--checkpoint", str(checkpoint), *flags)
        super().__init__(*arguments, variables={"FOLIO_ADMIN_KEY": ADMIN_KEY, **(variables or {})}, ready=ready)

    def restart(self) -> None:
        """Start it again on the port that it had."""
        assert self.process.poll() is not None, "it still runs"
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.http.close()
        self.arguments = (*self.arguments, "--port", str(self.port))
        self.spawn()
        self.connect()

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
    def num_cancelled(self) -> float:
        """Requests that it ended because their client had left."""
        return sum(value for name, value in self.metrics().items() if name.startswith("folio_requests_cancelled_total{"))

    @property
    def busy(self) -> int:
        """Requests that have a row or wait for one."""
        engine = self.http.get("/info").json()["engine"]
        busy: int = engine["running"] + engine["waiting"]
        return busy

    def promote(self, checkpoint: str) -> httpx.Response:
        """The answer once it is another one than "in progress"."""
        answers: list[httpx.Response] = []

        def is_answered() -> bool:
            answers.append(self.post("/admin/promote", ADMIN, checkpoint=checkpoint))
            return answers[-1].status_code != 409

        wait_for(is_answered, lambda: answers[-1].text)
        return answers[-1]

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


def serve(catalogue: Catalogue, *flags: str, variables: dict[str, str] | None = None, name: str = "a") -> Server:
    """A server of one of the checkpoints, ready; an admin may promote the others."""
    return Server(catalogue.path(name), "--checkpoints", str(catalogue.directory), *flags, variables=variables)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for does not."""
    try:
        return not Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].startswith("Z")
    except (FileNotFoundError, ProcessLookupError):
        return False


def code_of(answer: httpx.Response) -> str:
    """The code of an error."""
    code: str = json.loads(answer.text)["error"]["code"]
    return code
