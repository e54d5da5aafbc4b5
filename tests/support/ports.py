"""A port for a program that cannot be told to take any free one and say which."""

from __future__ import annotations

import socket


def free_port() -> int:
    """A port that nothing listens on at this moment. What can take port 0 should: another program may be faster here."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port
