"""Whether the service in this container takes requests: exit status 0 if ``/readyz`` says so. The images have no curl."""

from __future__ import annotations

import http.client
import os
import ssl
import sys

TIMEOUT_S = 4


def main() -> int:
    """The exit status; any failure to connect is a traceback and 1."""
    port = int(os.environ.get("FOLIO_PORT") or 8000)
    if os.environ.get("FOLIO_TLS_CERT"):
        unverified = ssl.create_default_context()
        unverified.check_hostname, unverified.verify_mode = False, ssl.CERT_NONE  # it is this very container
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=TIMEOUT_S, context=unverified)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
    connection.request("GET", "/readyz")
    return 0 if connection.getresponse().status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
