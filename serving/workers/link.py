"""The messages between the process that follows the store and a worker.

Each is one packet of a Unix socket: MessagePack, and perhaps descriptors of files, which hold what
is long: a set of tables, and the rest of a checkpoint. A closed link tells each side that the other
is gone.
"""

import logging
import os
import socket
from typing import TypeVar

import msgspec

from niwaki.serving.app import ServeConfig

_MAX_BYTES = 65_536
_MAX_FILES = 2
_MAX_TEXT = 4_096
Descriptors = list[int]
M = TypeVar("M")


class Order(msgspec.Struct, tag=True, kw_only=True):
    """The first message to a worker."""

    serve: ServeConfig
    name: str
    """Name of the model."""
    log_level: int
    await_model: bool
    """True: a model follows, and the worker does not listen before it has it."""


class Adopt(msgspec.Struct, tag=True, kw_only=True):
    """A version to serve from now on. Its descriptors: a file with header and tensors, without
    rows of tables, and one with tables, where `tables` are new to the worker."""

    serial: int
    """Number of the version, one more than that of the version before."""
    frame: int
    """Number of the `ModelFrame`; versions of one frame have tables of the same shapes."""
    tables: int
    """Number of the set of tables."""
    living: list[int]
    """Numbers of the sets that may still be named; others are forgotten."""


class State(msgspec.Struct, tag=True, kw_only=True):
    """The state of the follower, beside the model."""

    following: bool
    swaps: int
    refusals: dict[str, int]


class Ready(msgspec.Struct, tag=True):
    """The worker listens."""


class Released(msgspec.Struct, tag=True):
    """Nothing in the worker reads the version `serial` any more."""

    serial: int


class Line(msgspec.Struct, tag=True):
    """A line of the log."""

    level: int
    text: str


ToWorker = Order | Adopt | State
FromWorker = Ready | Released | Line
_pack = msgspec.msgpack.Encoder().encode
_to_worker = msgspec.msgpack.Decoder(ToWorker)
_from_worker = msgspec.msgpack.Decoder(FromWorker)


def pair() -> tuple[socket.socket, socket.socket]:
    """Both ends of a new link."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(link: socket.socket, message: ToWorker | FromWorker, *descriptors: int) -> None:
    """Send a message; the descriptors stay the caller's. Raises `OSError` where the other side is
    gone or takes nothing."""
    socket.send_fds(link, [_pack(message)], descriptors, socket.MSG_DONTWAIT)


def receive_as_worker(link: socket.socket) -> tuple[ToWorker, Descriptors] | None:
    """The next message and its descriptors, which are the caller's; None when the link is
    closed."""
    data, descriptors = _receive(link)
    return (_to_worker.decode(data), descriptors) if data else None


def receive_from_worker(link: socket.socket) -> FromWorker | None:
    """The next message; None when the link is closed."""
    data, _ = _receive(link)
    return _from_worker.decode(data) if data else None


def _receive(link: socket.socket) -> tuple[bytes, Descriptors]:
    try:
        data, descriptors, _, _ = socket.recv_fds(link, _MAX_BYTES, _MAX_FILES)
    except OSError:
        return b"", []
    return data, descriptors


def file_of(data: bytes) -> int:
    """The descriptor of an anonymous file that holds `data`; it is the caller's."""
    descriptor = os.memfd_create("niwaki-version", os.MFD_CLOEXEC)
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
    return descriptor


def read_file(descriptor: int) -> bytes:
    """The content of an anonymous file, which is closed then."""
    size, parts, at = os.fstat(descriptor).st_size, [], 0
    try:
        while at < size:  # all processes share its position, which is therefore left alone
            parts.append(os.pread(descriptor, size - at, at))
            at += len(parts[-1])
    finally:
        os.close(descriptor)
    return b"".join(parts)


class LinkHandler(logging.Handler):
    """A handler that sends lines of the log to the other side."""

    def __init__(self, link: socket.socket):
        super().__init__()
        self._link = link

    def emit(self, record: logging.LogRecord) -> None:
        try:
            send(self._link, Line(record.levelno, self.format(record)[:_MAX_TEXT]))
        except OSError:
            self.handleError(record)
