"""Ctrl-C and SIGTERM ask a run to save and stop; they never tear a step apart."""

from __future__ import annotations

import contextlib
import signal
from types import FrameType, TracebackType
from typing import Self


class InterruptedRunError(Exception):
    """A signal asked the run to stop, and it has saved."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


class StopSignals:
    """While entered, SIGINT and SIGTERM set ``received``; a second one ends the process at once.

    >>> with StopSignals() as signals:
    ...     signals.received is None
    True
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Self:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._stack.callback(signal.signal, number, signal.signal(number, self._handle))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stack.close()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.received = number
