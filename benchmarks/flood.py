"""``python -m benchmarks.flood FD``: an engine process that samples nothing. Every running text gets some tokens at every tick.

Of a real worker it has the loading and the messages, so that the API process cannot tell the difference.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import time

from service.worker.__main__ import SocketClosedError, Worker
from service.worker.core import EngineCore
from service.worker.messages import Cancel, Heartbeat, Output, Start, Step, Submit

TICKS_PER_S = int(os.environ.get("PYTHONFLOOD_TICKS", "100"))
TOKENS_PER_TICK = int(os.environ.get("PYTHONFLOOD_TOKENS", "8"))
"""Named so that they reach a worker, which gets few variables of its parent's."""


class Flood(Worker):
    """Gives every text its tokens at the same pace, whatever is asked for."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        self.left: dict[int, int] = {}
        self.fresh: list[int] = []

    def handle(self, message: Start | Submit | Cancel) -> None:
        """One message."""
        if isinstance(message, Submit):
            self.left[message.sequence] = message.params.max_new_tokens - len(message.generated)
            self.fresh.append(message.sequence)
        elif isinstance(message, Cancel):
            for sequence in message.sequences:
                self.left.pop(sequence, None)

    def main_loop(self, core: EngineCore) -> None:
        """Tick by tick."""
        steps, at = 0, time.monotonic()
        while True:
            self.receive(wait=not self.left)
            if not self.left:
                self.send(Heartbeat(steps))
                at = time.monotonic()
                continue
            at = max(at + 1 / TICKS_PER_S, time.monotonic() - 0.1)
            time.sleep(max(0.0, at - time.monotonic()))
            steps += TOKENS_PER_TICK
            outputs = []
            for sequence, left in list(self.left.items()):
                count = min(TOKENS_PER_TICK, left)
                tokens = [(sequence * 31 + (left - i) * 7) % 65 for i in range(count)]
                outputs.append(Output(sequence, tokens, count == left))
                if count == left:
                    del self.left[sequence]
                else:
                    self.left[sequence] = left - count
            admitted, self.fresh = [(sequence, 0.0) for sequence in self.fresh], []
            self.send(Step(admitted, outputs, steps, len(outputs), 0))


if __name__ == "__main__":
    with contextlib.suppress(SocketClosedError):
        Flood(socket.socket(fileno=int(sys.argv[1]))).serve()
