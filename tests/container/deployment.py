"""The shipped compose files, run as a user runs them, each deployment under a name of its own."""

from __future__ import annotations

import hashlib
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

from tests.support.ports import free_port

ROOT = Path(__file__).parents[2]
LIMIT_S = 120.0
NO_DRIVER = "could not select device driver"
"""What Docker says to a GPU reservation where the NVIDIA Container Toolkit is missing."""
ON_THE_HOST = """\
services:
  folio:
    network_mode: host
    ports: !reset []
    environment: {FOLIO_HOST: 127.0.0.1, FOLIO_PORT: "%d"}
  train: {network_mode: host}
"""
"""For an engine that has no bridge network. Everything else is the shipped file's."""


def docker(*arguments: str, check: bool = True, **options: Any) -> subprocess.CompletedProcess[str]:
    """One docker command."""
    done = subprocess.run(["docker", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900, check=False, **options)
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done


def build(target: str, tag: str, context: Path = ROOT) -> float:
    """Seconds that it took to build an image."""
    secret = ["--secret", f"id=pipconf,src={os.environ['PIP_CONF']}"] if "PIP_CONF" in os.environ else []
    arguments = ["--build-arg", "BASE_IMAGE", "--build-arg", "PIP_EXTRA_INDEX_URL", "--network", "host", *secret]
    began = time.monotonic()
    docker("build", "--quiet", *arguments, "--target", target, "--tag", tag, str(context))
    return time.monotonic() - began


def checkpoint_id(manifest: str) -> str:
    return "sha256:" + hashlib.sha256(manifest.encode()).hexdigest()


class Deployment:
    """``docker compose`` with the shipped files, on a free port."""

    def __init__(self, name: str, directory: Path, *, gpu: bool, **variables: str) -> None:
        self.port = free_port()
        files = ["docker-compose.yml", *([] if gpu else ["deploy/compose.cpu.yml"])]
        if docker("network", "inspect", "bridge", check=False).returncode:
            override = directory / "host-network.yml"
            override.write_text(ON_THE_HOST % self.port)
            files.append(str(override))
        self.command = ["compose", "--project-name", f"folio-test-{name}", *(part for file in files for part in ("--file", file))]
        clean = {key: value for key, value in os.environ.items() if not key.startswith("FOLIO_")}
        self.environment = clean | {"PORT": str(self.port)} | variables
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=LIMIT_S, trust_env=False)

    def compose(self, *arguments: str, **options: Any) -> str:
        """What a command of docker compose prints."""
        return docker(*self.command, *arguments, env=self.environment, **options).stdout

    def up(self) -> float:
        """Start and wait for the image's own health check; seconds that it took."""
        began = time.monotonic()
        self.compose("up", "--detach", "--no-build", "--wait", "folio")
        return time.monotonic() - began

    def inside(self, *command: str) -> str:
        """What a command in the service's container prints."""
        return self.compose("exec", "-T", "folio", *command)

    def inspect(self, template: str) -> str:
        container = self.compose("ps", "--all", "--quiet", "folio").strip()
        return docker("inspect", "--format", template, container).stdout.strip()

    @property
    def serving(self) -> str | None:
        """The id of the checkpoint that it serves."""
        model = self.http.get("/info").json()["model"]
        return None if model is None else model["checkpoint"]

    def down(self) -> None:
        self.http.close()
        self.compose("--profile", "*", "down", "--volumes", "--timeout", "5", check=False)
