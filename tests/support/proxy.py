"""Proxies between a client and Redis, which do what it seldom does by itself."""

import socket
import threading
from abc import ABC, abstractmethod
from contextlib import suppress


class Proxy(ABC):
    """Serves each client that connects by a thread of its own; a subclass says how."""

    def __init__(self, port: int):
        """`port`: that of Redis."""
        self.upstream = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve_until_gone, args=(client,), daemon=True).start()

    def _serve_until_gone(self, client: socket.socket) -> None:
        with suppress(OSError):  # either side may close first
            self._serve(client)

    @abstractmethod
    def _serve(self, client: socket.socket) -> None:
        """Serve one client until it goes."""

    def close(self) -> None:
        self._listener.close()


class AnsweringProxy(Proxy):
    """Forwards requests, or answers each of them with one line."""

    answer = b""
    """Sent in the place of Redis's, unless it is empty."""

    def _serve(self, client: socket.socket) -> None:
        with client, socket.create_connection(("127.0.0.1", self.upstream)) as server:
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            while request := client.recv(2**20):
                if self.answer:
                    client.sendall(self.answer)
                else:
                    server.sendall(request)

    def _back(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while data := server.recv(2**20):
                client.sendall(data)
        except OSError:
            return
