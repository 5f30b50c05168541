"""A process that scores with tables which another one keeps up to date.

In: a link to the process that follows the store, and a socket. Out: answers over HTTP. A thread
takes each version over as it comes: it maps the tables, makes the model, and swaps one reference
between two requests. Once no request holds the model before, the follower is told so, and may write
to its tables. The process ends when its link is closed, and on SIGTERM, after requests in flight.
"""

import contextlib
import gc
import logging
import signal
import socket
import sys
import threading
import weakref

import torch

from niwaki.model.published import tensors as names
from niwaki.model.published.checkpoint import Header, unpack_as
from niwaki.model.published.served import ModelFrame, PublishedModel, Tables
from niwaki.serving.listener import new_server
from niwaki.serving.scorer import REFUSALS, Serving
from niwaki.serving.workers import link
from niwaki.serving.workers.shared_tables import SharedTables

_BACKLOG = 2048


class Replica(Serving):
    """The newest model, as the follower's messages make it."""

    def __init__(self, connection: socket.socket, name: str):
        self.name = name
        self._link = connection
        self._model: PublishedModel | None = None
        self._frame: tuple[int, ModelFrame, Tables] | None = None
        """Number of the frame that versions share now, the frame, and what `no_rows` says of it."""
        self._sets: dict[int, SharedTables] = {}
        self.refusals = dict.fromkeys(REFUSALS, 0)
        self._state = link.State(following=True, swaps=0, refusals=self.refusals)
        self._linked = True
        self._came = threading.Event()

    @property
    def newest(self) -> PublishedModel | None:
        return self._model

    @property
    def following(self) -> bool:
        return self._linked and self._state.following

    def receive(self) -> None:
        """Take over what comes, until the link is closed, or something can't be taken over: then
        this process is to end, and the one after it begins with the newest version."""
        try:
            self._receive()
        finally:
            self._linked = False
            self._came.set()

    def _receive(self) -> None:
        while received := link.receive_as_worker(self._link):
            message, descriptors = received
            if isinstance(message, link.Adopt):
                self._adopt(message, descriptors)
                self._came.set()
            elif isinstance(message, link.State):
                self._state = message
                self.swaps, self.refusals = message.swaps, message.refusals

    def wait(self) -> None:
        """Wait for the first model."""
        self._came.wait()

    def _adopt(self, message: link.Adopt, descriptors: link.Descriptors) -> None:
        header, tensors = unpack_as(link.read_file(descriptors[0]), Header)
        if self._frame is None or self._frame[0] != message.frame:
            frame = ModelFrame.of(header)
            self._frame = message.frame, frame, no_rows(frame)
        _, frame, nothing = self._frame
        if message.tables not in self._sets:
            tables = SharedTables(frame, message.tables, descriptors[1])
            self._sets[message.tables] = tables
        model = PublishedModel(
            frame, self._sets[message.tables], header, tensors | nothing, self._model
        )
        released = weakref.finalize(model, self._release, message.serial)
        released.atexit = False
        self._model = model
        self._sets = {n: tables for n, tables in self._sets.items() if n in message.living}

    def _release(self, serial: int) -> None:
        with contextlib.suppress(OSError):  # the follower is gone, and so will this process be
            link.send(self._link, link.Released(serial))


def no_rows(frame: ModelFrame) -> Tables:
    """The tensors of a checkpoint in which no row of any table has changed."""
    nothing: Tables = {}
    for table, empty in frame.empty_tables().items():
        nothing[names.rows_of(table)] = torch.empty(0, dtype=torch.int64)
        nothing[names.values_of(table)] = empty[:0]
    return nothing


def main() -> None:
    """The process. Its arguments: descriptors of the link and of the bound socket."""
    connection, listener = (socket.socket(fileno=int(number)) for number in sys.argv[1:])
    received = link.receive_as_worker(connection)
    if received is None or not isinstance(received[0], link.Order):
        return
    order = received[0]
    logging.basicConfig(level=order.log_level, handlers=[link.LinkHandler(connection)])
    torch.set_num_threads(1)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    replica = Replica(connection, order.name)
    server = new_server(replica, order.serve)

    def receive() -> None:
        try:
            replica.receive()
        finally:
            server.should_exit = True

    thread = threading.Thread(target=receive, name="niwaki-link", daemon=True)
    with contextlib.suppress(KeyboardInterrupt):
        thread.start()
        if order.await_model:
            replica.wait()
        listener.listen(_BACKLOG)
        link.send(connection, link.Ready())
        gc.freeze()  # as where one process serves
        server.run([listener])
