"""A connection to a server that can be cut."""

from __future__ import annotations

import contextlib
import socket
import threading


class Proxy:
    """Hands bytes on. ``cuts`` says after how many bytes of the answer each of the next ``POST /generate`` loses its connection.

    A negative number: it is not lost, but from then on nothing comes any more.
    """

    def __init__(self, port: int) -> None:
        self.target = port
        self.cuts: list[int] = []
        self.num_cut = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        left: list[int] = []
        with contextlib.suppress(OSError), client, socket.create_connection(("127.0.0.1", self.target)) as server:
            threading.Thread(target=self.upward, args=(client, server, left), daemon=True).start()
            while data := server.recv(4096):
                if not left:
                    client.sendall(data)
                    continue
                cut, left[0] = left[0], max(0, abs(left[0]) - len(data)) * (1 if left[0] > 0 else -1)
                client.sendall(data[: abs(cut)])
                if cut > 0 and not left[0]:
                    break
            self.num_cut += 1 if left else 0
            client.shutdown(socket.SHUT_RDWR)

    def upward(self, client: socket.socket, server: socket.socket, left: list[int]) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                if data.startswith(b"POST /generate") and self.cuts:
                    left[:] = [self.cuts.pop(0)]
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        self.listener.close()
