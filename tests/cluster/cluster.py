"""``python -m service.cluster`` as a user starts it: Ray, its proxy and two replicas, each known by a mark in its environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path

from tests.support.ports import free_port
from tests.support.server import ROOT, environment
from tests.support.wait import wait_for

LIMIT_S = 120.0
"""For what takes ten seconds on a quiet machine."""
REPLICA, WORKER = "ray::ServeReplica", "service.worker"


class Cluster:
    """Two replicas of a checkpoint. ``close`` leaves no process behind, whatever has happened."""

    def __init__(self, checkpoint: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.directory = Path(tempfile.mkdtemp(prefix="folio-"))  # short: Ray's and HAProxy's sockets lie below it
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "service.cluster", "--replicas", "2", "--port", str(self.port), "--threads", "1"]
        flags = ["--checkpoint", str(checkpoint), "--max-batch", "16", "--max-queue", "16", "--max-new-tokens", "1000000"]
        with self.log_path.open("w") as log:
            self.process = subprocess.Popen(
                [*command, *flags], cwd=ROOT, stdout=log, stderr=log, start_new_session=True, env=environment(**self.variables())
            )

    def variables(self) -> dict[str, str]:
        """What keeps this cluster apart from others on the machine, and nothing of it in the home directory."""
        haproxy = self.directory / "haproxy"
        return {
            "FOLIO_TEST_MARK": self.mark,
            "RAY_AUTH_TOKEN": self.mark,
            "RAY_TMPDIR": str(self.directory),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(haproxy / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(haproxy / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(haproxy / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
        }

    @property
    def log_path(self) -> Path:
        return self.directory / "log"

    def logged(self) -> str:
        return self.log_path.read_text()

    def wait_for(self, condition: Callable[[], object]) -> float:
        """The seconds until a condition held. Polls slowly, since asking walks over all processes."""

        def holds() -> object:
            assert self.process.poll() is None, self.logged()
            return condition()

        return wait_for(holds, self.logged, limit_s=LIMIT_S, pause_s=0.05)

    def deployed(self) -> int:
        """How many times all replicas have been started or replaced."""
        return self.logged().count("Folio serves")

    # ---- its processes -----------------------------------------------------------------------------------------------------

    def processes(self, kind: str = "") -> set[int]:
        """Those that carry the mark, or whose parent does (a worker is given little of the environment), and have ``kind`` in their
        command line."""
        marked, parents, found = set(), {}, set()
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(path.name)
                if kind in (path / "cmdline").read_text().replace("\0", " "):
                    found.add(pid)
                parents[pid] = int((path / "stat").read_text().rpartition(") ")[2].split()[1])
                if self.mark.encode() in (path / "environ").read_bytes():
                    marked.add(pid)
        return {pid for pid in found if pid in marked or parents.get(pid) in marked}

    def replicas(self) -> set[int]:
        return self.processes(REPLICA)

    def is_whole(self) -> bool:
        """Whether both replicas run, with an engine each."""
        return len(self.replicas()) == len(self.processes(WORKER)) == 2

    def routed(self) -> int | None:
        """How many replicas the proxy sends requests to; None while its configuration is being written."""
        (path,) = self.directory.glob("haproxy/*/haproxy.cfg")
        text = path.read_text()
        return text.count("server SERVE_REPLICA_") if "listen stats" in text else None

    def is_gone(self) -> bool:
        """Whether nothing of it runs any more, once what did was killed."""
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not left

    def end(self) -> int:
        """The exit status after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(LIMIT_S)

    def close(self) -> None:
        """End what still runs."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        wait_for(self.is_gone, limit_s=LIMIT_S, pause_s=0.05)
        shutil.rmtree(self.directory)
