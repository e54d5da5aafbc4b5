"""``python -m tests.service.serve_fake DELAY GRACE PORT``: the service's process with a fake engine, for tests of signals and start-up.

DELAY: seconds between chunks, until SIGUSR1. GRACE: seconds that streams have after SIGTERM. PORT: 0 for any.
"""

from __future__ import annotations

import signal
import sys
from unittest.mock import patch

import service.__main__ as command
from service import app as application
from service.telemetry import lines
from tests.service.fakes import FakeEngine


def main() -> int:
    engine = FakeEngine(delay=float(sys.argv[1]))
    signal.signal(signal.SIGUSR1, lambda *_: setattr(engine, "delay", 0.0))
    make = application.create_app
    patch.object(command, "create_app", lambda settings: make(settings, engine)).start()
    forbidden = [name for name in ("torch", "numpy") if name in sys.modules]
    lines.stdout.write(" ".join(["imported:", *forbidden]))
    status = command.main(["--port", sys.argv[3], "--grace-s", sys.argv[2]])
    lines.stdout.write(f"closed: {engine.closed}")
    lines.close()
    return status


if __name__ == "__main__":
    sys.exit(main())
