"""The service against its own OpenAPI document: no status that is not documented, no 500, whatever the document lets one send."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.service.running import Running

pytest.importorskip("schemathesis")

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    # not "unsupported_method": QUERY /generate is there, and OpenAPI 3.1 has no such method; `test_hostile` holds the answers to others
    "missing_required_header",
    "negative_data_rejection",
)


@pytest.mark.parametrize("keys", [{}, {"api_keys": "k", "admin_key": "a"}])
def test_nothing_undocumented(serve: Callable[..., Running], keys: dict[str, str]) -> None:
    server = serve(**keys)
    checks = ",".join(CHECKS)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "-n", "10", "--seed", "1", "-c", checks]
    command += ["--phases", "examples,coverage,fuzzing", "--exclude-path", "/", "--generation-database", "none"]
    command += ["-H", "Authorization: Bearer a"] if keys else ["--exclude-path-regex", "^/admin"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=250, check=False)
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr
