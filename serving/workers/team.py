"""The workers of a server: their start and end, and what is told to them.

In: settings, and each version that the follower has made. Out: running processes, all of which have
been told to serve the newest version. A worker that ends is started again; the kernel gives new
connections to the others until it listens. A set of tables is written to only while no worker reads
it, by their own word.
"""

import logging
import os
import subprocess
import sys
import threading
import time
from signal import Signals

import msgspec

from niwaki.model.published.checkpoint import pack_as
from niwaki.model.published.served import ModelFrame, PublishedModel, Tables
from niwaki.serving.app import ServeConfig
from niwaki.serving.double_buffer import Shelf
from niwaki.serving.errors import ServingError
from niwaki.serving.listener import bind
from niwaki.serving.metrics import FOLDER
from niwaki.serving.workers import link
from niwaki.serving.workers.shared_tables import SharedTables

log = logging.getLogger("niwaki")

_PROGRAM = "from niwaki.serving.workers.worker import main; main()"
_RELEASE_WAIT_S = 1.0  # for requests that hold the version before; then fresh tables are made
_RESTART_WAIT_S = 1.0  # between two starts of one worker
_LAST_WAIT_S = 5.0  # beyond `stop_timeout_s`, for a worker to end


class _Version(msgspec.Struct):
    """The version that serves, as workers are told of it."""

    model: PublishedModel
    tables: SharedTables
    serial: int
    frame: int
    descriptor: int
    """Of a file with its header and tensors."""


class _Worker:
    """One process, and what it has been told."""

    def __init__(self, team: "Team", number: int):
        self.number = number
        self.reads: dict[int, int] = {}
        """By serial of each version that the process may read, its set of tables."""
        self.known: set[int] = set()
        """Sets of tables that it has mapped."""
        self.ready = False
        ours, theirs = link.pair()
        self.link = ours
        with theirs, bind(team.config, team.port) as listener:
            passed = theirs.fileno(), listener.fileno()
            # In a session of its own: Ctrl-C is for the follower, which ends it.
            self.process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *map(str, passed)],
                pass_fds=passed,
                env=os.environ | {FOLDER: team.folder},
                start_new_session=True,
            )

    def send(self, message: link.ToWorker, *descriptors: int) -> None:
        """Send a message; a process that takes none is ended, and started again."""
        try:
            link.send(self.link, message, *descriptors)
        except OSError:
            self.process.kill()


class Team(Shelf):
    """All workers. Its methods may be called by several threads."""

    def __init__(self, config: ServeConfig, port: int, name: str, folder: str):
        """`name`: of the model. `folder`: for the counts of the workers' metrics."""
        self.config, self.port, self.folder = config, port, folder
        self.failure: ServingError | None = None
        """Why the team can't go on, if so."""
        self._name = name
        self._changed = threading.Condition()
        self._workers: dict[int, _Worker] = {}
        self._threads: list[threading.Thread] = []
        self._serials = 0
        self._version: _Version | None = None
        self._state: link.State | None = None
        self._stopping = threading.Event()

    # Tables

    def empty_tables(self, frame: ModelFrame) -> Tables:
        with self._changed:
            self._serials += 1
            return SharedTables.empty(frame, self._serials)

    def is_read(self, tables: Tables) -> bool:
        assert isinstance(tables, SharedTables)
        with self._changed:
            return not self._changed.wait_for(
                lambda: tables.serial not in self._read_sets(), _RELEASE_WAIT_S
            )

    def _read_sets(self) -> set[int]:
        return {tables for worker in self._workers.values() for tables in worker.reads.values()}

    # Versions

    def publish(self, model: PublishedModel) -> None:
        """Tell all workers to serve `model`, whose tables are this team's."""
        assert isinstance(model.tables, SharedTables)
        descriptor = link.file_of(pack_as(model.header, model.rest))
        with self._changed:
            before = self._version
            same = before is not None and before.model.frame is model.frame
            frame = before.frame + (not same) if before else 1
            serial = before.serial + 1 if before else 1
            self._version = _Version(model, model.tables, serial, frame, descriptor)
            for worker in self._workers.values():
                self._tell(worker, self._version)
            if before:
                os.close(before.descriptor)

    def _tell(self, worker: _Worker, version: _Version) -> None:
        tables = version.tables
        new = [] if tables.serial in worker.known else [tables.descriptor]
        worker.known.add(tables.serial)
        worker.known &= {tables.serial, *worker.reads.values()}
        worker.reads[version.serial] = tables.serial
        message = link.Adopt(
            serial=version.serial,
            frame=version.frame,
            tables=tables.serial,
            living=sorted(worker.known),
        )
        worker.send(message, version.descriptor, *new)

    def tell_state(self, state: link.State) -> None:
        """Tell all workers what the follower knows, where it is new."""
        with self._changed:
            if state != self._state:
                self._state = state
                for worker in self._workers.values():
                    worker.send(state)

    # Processes

    def start(self) -> None:
        """Start all workers. Raises `ServingError` unless each of them listens in the end."""
        for number in range(self.config.workers):
            thread = threading.Thread(
                target=self._keep, args=(number,), name=f"niwaki-worker-{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        with self._changed:
            self._changed.wait_for(lambda: self.failure or self._all_ready())
        self.check()

    def check(self) -> None:
        """Raise the `ServingError` for which the team can't go on, if there is one."""
        if self.failure:
            raise self.failure

    def close(self) -> None:
        """End all workers, each after its requests in flight."""
        self._stopping.set()
        with self._changed:
            processes = [worker.process for worker in self._workers.values()]
        for process in processes:
            process.terminate()
        until_s = time.monotonic() + self.config.stop_timeout_s + _LAST_WAIT_S
        for process in processes:
            try:
                process.wait(max(until_s - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
        for thread in self._threads:
            thread.join()

    def _all_ready(self) -> bool:
        ready = sum(worker.ready for worker in self._workers.values())
        return ready == self.config.workers

    def _keep(self, number: int) -> None:
        """Run one worker after the other in the place `number`."""
        while not self._stopping.is_set():
            started_s = time.monotonic()
            try:
                worker = self._start(number)
            except (OSError, ServingError) as error:
                self._fail(f"worker {number} can't be started: {error}")
                return
            if worker is None:
                return
            self._listen(worker)
            code = worker.process.wait()
            with self._changed:
                del self._workers[number]
                self._changed.notify_all()
            worker.link.close()
            if self._stopping.is_set():
                return
            how = f"by {Signals(-code).name}" if code < 0 else f"with exit code {code}"
            if not worker.ready:
                self._fail(f"worker {number} ended {how} before it listened")
                return
            log.warning("worker %d ended %s, and is started again", number, how)
            self._stopping.wait(started_s + _RESTART_WAIT_S - time.monotonic())

    def _start(self, number: int) -> _Worker | None:
        """A worker that has been told all; None where the team ends."""
        with self._changed:
            if self._stopping.is_set():
                return None
            worker = _Worker(self, number)
            self._workers[number] = worker
            order = link.Order(
                serve=self.config,
                name=self._name,
                log_level=log.getEffectiveLevel(),
                await_model=self._version is not None,
            )
            worker.send(order)
            if self._version:
                self._tell(worker, self._version)
            if self._state:
                worker.send(self._state)
            return worker

    def _listen(self, worker: _Worker) -> None:
        """Read what a worker says, until it is gone."""
        while message := link.receive_from_worker(worker.link):
            if isinstance(message, link.Line):
                log.log(message.level, "worker %d: %s", worker.number, message.text)
                continue
            with self._changed:
                if isinstance(message, link.Ready):
                    worker.ready = True
                else:
                    worker.reads.pop(message.serial, None)
                self._changed.notify_all()

    def _fail(self, reason: str) -> None:
        with self._changed:
            self.failure = ServingError(f"serve.workers: {reason}")
            self._changed.notify_all()
