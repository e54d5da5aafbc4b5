"""Logs as one JSON object a line. Lengths, hashes and times are logged; prompts, answers and keys never."""

from __future__ import annotations

import json
import logging
import time
import traceback
from typing import Any

from service.telemetry import lines

logger = logging.getLogger("folio")


class JsonFormatter(logging.Formatter):
    """A log record as JSON: what was passed as ``extra={"fields": {…}}`` stands beside time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        at = f"{moment}.{int(record.msecs):03d}Z"
        line: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fields", {})
        if record.exc_info and record.exc_info[1]:
            line |= describe(record.exc_info[1])
        return json.dumps(line, default=str)


def describe(error: BaseException) -> dict[str, Any]:
    """An exception's type and where it came from. Not its message, which may quote a prompt or a key."""
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "where": [f"{f.filename}:{f.lineno} {f.name}" for f in frames[-12:]]}


class LinesHandler(logging.Handler):
    """Hands lines to the thread that writes them to standard error."""

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits."""
        lines.stderr.write(self.format(record))


def configure(level: str) -> None:
    """Send everything, uvicorn's lines too, to standard error as JSON."""
    handler = LinesHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))  # see `announce`
