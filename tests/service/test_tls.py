"""HTTPS through uvicorn's own options: the same service, and the same manners where TLS has no half-close."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from tests.service.fakes import FakeEngine
from tests.service.running import Running, read_answer, request
from tests.support.certificates import make_certificate
from tests.support.events import events, joined
from tests.support.wait import wait_for

Serve = Callable[..., Running]
HEALTHCHECK = Path(__file__).parents[2] / "deploy" / "healthcheck.py"


@pytest.fixture
def certificate(tmp_path: Path) -> dict[str, Path]:
    cert, key = make_certificate(tmp_path)
    return {"tls_cert": cert, "tls_key": key}


def test_streams_refusals_and_leaving(serve: Serve, certificate: dict[str, Path]) -> None:
    server = serve(FakeEngine(delay=0.002), **certificate)
    assert server.server.address.startswith("https://")
    context = ssl.create_default_context(cafile=str(certificate["tls_cert"]))
    with httpx.Client(base_url=f"https://localhost:{server.port}", verify=context, trust_env=False) as http:
        found = events(http.post("/generate", json={"prompt": "R", "seed": 1}).text)
        assert joined(found) == found[-1]["data"]["text"]
    with context.wrap_socket(server.connect(), server_hostname="localhost") as sock:
        sock.sendall(b"\x00\x01\r\n\r\n")
        assert read_answer(sock).code == "invalid_http"
    sock = context.wrap_socket(server.connect(), server_hostname="localhost")
    sock.sendall(request({"prompt": "R", "max_new_tokens": 4096}))
    wait_for(lambda: server.engine.streams)
    sock.close()
    wait_for(lambda: not server.engine.streams)


def test_the_images_health_check_speaks_it(serve: Serve, certificate: dict[str, Path]) -> None:
    server = serve(FakeEngine(), **certificate)
    variables = os.environ | {"FOLIO_PORT": str(server.port), "FOLIO_TLS_CERT": str(certificate["tls_cert"])}
    assert subprocess.run([sys.executable, str(HEALTHCHECK)], env=variables, timeout=60, check=False).returncode == 0
    del variables["FOLIO_TLS_CERT"]
    assert subprocess.run([sys.executable, str(HEALTHCHECK)], env=variables, capture_output=True, timeout=60, check=False).returncode == 1
