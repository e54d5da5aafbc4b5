"""A real server in a process of its own, and a connection to it that can be cut."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx

ROOT = Path(__file__).parents[2]


class Serving:
    """``python -m service`` on a port that stays the same when it is killed and started again."""

    def __init__(self, checkpoint: Path, **environment: str) -> None:
        self.checkpoint = checkpoint
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.environment = {k: v for k, v in os.environ.items() if not k.startswith("FOLIO_")} | environment
        self.http = httpx.Client(base_url=self.url, timeout=30, trust_env=False)
        self.start()

    def start(self) -> None:
        flags = ["--port", str(self.port), "--threads", "1", "--max-new-tokens", "10000000", "--log-level", "error"]
        command = [sys.executable, "-m", "service", "--checkpoint", str(self.checkpoint), *flags]
        self.process = subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.DEVNULL)
        try:
            wait_until(self.is_ready, 60)
        except BaseException:
            self.kill()
            raise

    def is_ready(self) -> bool:
        assert self.process.poll() is None, "the server has ended"
        with contextlib.suppress(httpx.TransportError):
            return self.http.get("/readyz").status_code == 200
        return False

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> None:
        self.http.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        finally:
            self.process.kill()

    def text(self, **body: Any) -> str:
        """What the JSON route says to a request."""
        answer = self.http.post("/generate", json=body | {"stream": False})
        text: str = answer.raise_for_status().json()["text"]
        return text

    @property
    def num_cancelled(self) -> int:
        """Streams that the server ended because their reader had left."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("folio_requests_cancelled_total{"))

    @property
    def running(self) -> int:
        count: int = self.http.get("/info").json()["engine"]["running"]
        return count


class Proxy:
    """Hands bytes on. ``cuts`` says after how many bytes of the answer each of the next ``POST /generate`` loses its connection.

    A negative number: it is not lost, but from then on nothing comes any more.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.cuts: list[int] = []
        self.num_cut = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        left: list[int] = []
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target)) as server:
            threading.Thread(target=self.upward, args=(client, server, left), daemon=True).start()
            while data := server.recv(4096):
                if not left:
                    client.sendall(data)
                    continue
                cut, left[0] = left[0], max(0, abs(left[0]) - len(data)) * (1 if left[0] > 0 else -1)
                client.sendall(data[: abs(cut)])
                if cut > 0 and not left[0]:
                    break
            self.num_cut += 1 if left else 0
            client.shutdown(socket.SHUT_RDWR)

    def upward(self, client: socket.socket, server: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith(b"POST /generate") and self.cuts:
                    left[:] = [self.cuts.pop(0)]
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.listener.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
    return port


def wait_until(condition: Any, seconds: float = 5.0) -> None:
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "it did not happen in time"
        time.sleep(0.01)
