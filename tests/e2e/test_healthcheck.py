"""The image's health check, run beside a real service as Docker runs it within the container."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.support.server import Server, environment

HEALTHCHECK = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


def check(**variables: str) -> int:
    done = subprocess.run([sys.executable, str(HEALTHCHECK)], env=environment(**variables), capture_output=True, timeout=60, check=False)
    return done.returncode


def test_a_ready_service_is_healthy_and_a_proxy_is_not_asked(server: Server) -> None:
    assert check(FOLIO_PORT=str(server.port), http_proxy="http://127.0.0.1:1") == 0


def test_nothing_there_is_unhealthy() -> None:
    assert check(FOLIO_PORT="1") == 1
