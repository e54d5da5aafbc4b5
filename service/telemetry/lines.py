"""Lines for standard output and standard error, from which nobody ever waits for whoever should read them."""

from __future__ import annotations

import os
import queue
import sys
import threading
from contextlib import suppress

MAX_WAITING = 1000
FLUSH_S = 1.0
"""How long the end of the process waits for its last lines to be taken."""


class LineWriter:
    """Writes to a file descriptor in a thread of its own. A pipe that nobody reads costs the lines, which are counted, and no time.

    It does not use ``sys.stderr``: a thread that is stuck within it would abort the interpreter at its end.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.waiting: queue.Queue[str | None] = queue.Queue(MAX_WAITING)
        self.dropped = 0
        self.thread: threading.Thread | None = None

    def write(self, line: str) -> None:
        """Hand over a line, without its end. From any thread, at once."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, name=f"lines-{self.descriptor}", daemon=True)
            self.thread.start()
        try:
            self.waiting.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Wait for what was handed over, but not for long. A line that comes later begins anew."""
        thread, self.thread = self.thread, None
        if thread is not None:
            with suppress(queue.Full):
                self.waiting.put(None, timeout=FLUSH_S)
                thread.join(FLUSH_S)

    def _run(self) -> None:
        while (line := self.waiting.get()) is not None:
            left = memoryview(f"{line}\n".encode(errors="backslashreplace"))
            try:
                while left:
                    left = left[os.write(self.descriptor, left) :]
            except OSError:  # nobody is there any more
                self.dropped += 1


stdout = LineWriter(1)
stderr = LineWriter(2)


def close() -> None:
    """At the end of the process."""
    for writer in (stdout, stderr):
        writer.close()


def open_standard_files() -> None:
    """Open what the process was started without: else its first sockets would be its standard files, and lines would go there."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", closefd=False))
