"""A proxy between a client and Redis that answers in its place while it is told to."""

import socket
import threading


class AnsweringProxy:
    """Forwards requests, or answers each of them with one line."""

    def __init__(self, port: int):
        self.upstream, self.answer = port, b""
        """`answer`: sent in the place of Redis's, unless it is empty."""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

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

    def close(self) -> None:
        self._listener.close()
