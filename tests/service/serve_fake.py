"""``python -m tests.service.serve_fake DELAY GRACE``: the service's process with a fake engine, for tests of signals and start-up.

DELAY: seconds between chunks, until SIGUSR1. GRACE: seconds that streams have after SIGTERM.
"""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from unittest.mock import patch

import uvloop

import service.__main__ as command
from service import app as application
from service.settings import Settings
from tests.service.fakes import FakeEngine


def main() -> int:
    started = time.monotonic()
    engine = FakeEngine(delay=float(sys.argv[1]))
    signal.signal(signal.SIGUSR1, lambda *_: setattr(engine, "delay", 0.0))
    make = application.create_app
    patch.object(command, "create_app", lambda settings: make(settings, engine)).start()
    forbidden = [name for name in ("torch", "numpy") if name in sys.modules]
    print("imported:", *forbidden, flush=True)
    settings = Settings(port=0, grace_s=float(sys.argv[2]))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        status = runner.run(command.serve(settings, started))
    print("closed:", engine.closed, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main())
