"""Lines for standard output and standard error, from which nobody ever waits for whoever should read them."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque

MAX_WAITING = 1000
COLLECT_S = 0.02
"""Lines of this long go in one write: to wake a thread for each would cost the event loop its turn, twice."""
FLUSH_S = 1.0
"""How long the end of the process waits for its last lines to be taken."""


class LineWriter:
    """Writes to a file descriptor in a thread. A pipe that nobody reads costs lines, which are counted, and no time.

    It does not use ``sys.stderr``: a thread that is stuck within it would abort the interpreter at its end.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.waiting: deque[str] = deque()
        self.dropped = 0
        self.thread: threading.Thread | None = None
        self.wake = threading.Event()
        self.closing = False

    def write(self, line: str) -> None:
        """Hand over a line, without its end. At once."""
        if len(self.waiting) >= MAX_WAITING:
            self.dropped += 1
            return
        self.waiting.append(line)
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, name=f"lines-{self.descriptor}", daemon=True)
            self.thread.start()
        if not self.wake.is_set():
            self.wake.set()

    def close(self) -> None:
        """Wait for what was handed over, but not for long. A line that comes later begins anew."""
        thread, self.thread = self.thread, None
        if thread is not None:
            self.closing = True
            self.wake.set()
            thread.join(FLUSH_S)
            self.closing = False

    def _run(self) -> None:
        while not self.closing:
            self.wake.wait()
            if not self.closing:
                time.sleep(COLLECT_S)
            self.wake.clear()
            self._write_waiting()

    def _write_waiting(self) -> None:
        lines = [self.waiting.popleft() for _ in range(len(self.waiting))]
        left = memoryview("".join([f"{line}\n" for line in lines]).encode(errors="backslashreplace"))
        try:
            while left:
                left = left[os.write(self.descriptor, left) :]
        except OSError:  # nobody is there any more
            self.dropped += len(lines)


stdout = LineWriter(1)
stderr = LineWriter(2)


def close() -> None:
    """At the end of the process."""
    for writer in (stdout, stderr):
        writer.close()


def open_standard_files() -> None:
    """Open what the process was started without: else its first sockets would be its standard files."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
