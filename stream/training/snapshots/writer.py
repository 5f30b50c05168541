"""The writing of snapshots beside the learning: one at a time, by a forked process.

In: a trainer between two steps, and its place in the stream. Out: a file, or a line in the log that
says why there is none. The fork has all memory as it is at that moment, so the loop stops for
nothing but the fork itself, and no page is copied before the learner changes it. The fork packs,
hashes, writes and syncs. A thread of the trainer hands it the state of what is published, waits for
it, and renames the file: a trainer that is killed leaves no process that could still rename one.

A failure, such as a full disk, costs nothing but the snapshot: the next attempt follows after a
pause that doubles each time.
"""

import gc
import logging
import os
import select
import signal
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import msgspec
import numpy as np
import torch

from niwaki.model.published.checkpoint import pack_as, unpack_as
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.snapshots.contents import Place, write_snapshot
from niwaki.stream.training.snapshots.files import SnapshotConfig, SnapshotFiles
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer

log = logging.getLogger("niwaki")

_FIRST_RETRY_S = 1.0
_LAST_RETRY_S = 60.0
_OVERDUE_S = 10.0
"""No snapshot is overdue before: a publication is worth waiting for."""
_LONGEST_S = 600.0
"""A fork that takes longer is ended."""
_NICENESS = 10
"""Added to the fork's: where processors are short the learning goes first."""
_READ_BYTES = 65_536

Arrays = dict[str, np.ndarray]


class _Nothing(msgspec.Struct):
    """The header of what the fork is handed."""


class _Writing(NamedTuple):
    """A snapshot that is being written."""

    events: int
    place: Place
    path: Future[Path]


class SnapshotWriter:
    """Writes the snapshots of one trainer. For one thread, the loop's."""

    def __init__(
        self,
        config: SnapshotConfig,
        trainer: Trainer,
        replica: ServedReplica,
        telemetry: Telemetry,
        *,
        clock: Callable[[], float] = time.monotonic,
    ):
        """`clock`: returns seconds that only grow."""
        self._config = config
        self._files = SnapshotFiles(config)
        self._trainer = trainer
        self._replica = replica
        self._telemetry = telemetry
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, "niwaki-snapshot")
        self._writing: _Writing | None = None
        self._hurried = False
        self._begun_s = clock()
        self._begun_events = 0
        self._last: tuple[int, Place] | None = None
        """Events and place of the last snapshot that was written."""
        self._retry_s = 0.0
        """Pause after the last failure; 0: the last snapshot was written."""
        self._not_before_s = 0.0

    def clear(self) -> None:
        """Remove what an earlier trainer had begun to write."""
        try:
            self._files.clear()
        except OSError as error:
            log.warning("%s can't be cleared: %s", self._files.directory, error.strerror)

    @property
    def overdue(self) -> bool:
        """True after twice the interval, where nothing has led to a snapshot."""
        overdue_s = max(2 * self._config.every_s, _OVERDUE_S)
        return self._clock() - self._begun_s >= overdue_s

    def hurry(self) -> None:
        """Make the next snapshot due now."""
        self._hurried = True

    def postpone(self) -> None:
        """Let the interval begin anew, since no snapshot can be taken now."""
        self._begun_s = self._clock()
        self._begun_events = self._trainer.events
        self._hurried = False

    def due(self) -> bool:
        """True where it is time for a snapshot, none is being written, and no failure was just
        before."""
        now_s = self._clock()
        if self._writing or now_s < self._not_before_s:
            return False
        every_events = self._config.every_events
        return bool(
            self._hurried
            or self._retry_s
            or now_s - self._begun_s >= self._config.every_s
            or (every_events and self._trainer.events - self._begun_events >= every_events)
        )

    def is_new(self, place: Place) -> bool:
        """True unless the last snapshot was taken at this place and event."""
        return self._last != (self._trainer.events, place)

    def begin(self, place: Place) -> None:
        """Begin to write a snapshot of the trainer as it is now; none may be on its way."""
        assert self._writing is None
        self.postpone()
        replica = self._replica.begin_state()
        try:
            path = self._files.unfinished(os.getpid())
            fork = _Fork(lambda arrays: write_snapshot(path, self._trainer, arrays, place))
        except OSError as error:
            return self._tell_failure(error)
        future = self._thread.submit(self._finish, fork, replica, path)
        self._writing = _Writing(self._trainer.events, place, future)

    def settle(self, *, wait: bool = False) -> Place | None:
        """Learn what became of the snapshot that is being written; its place if it is on the disk.
        `wait`: until it is known."""
        writing = self._writing
        if writing is None or not (wait or writing.path.done()):
            return None
        self._writing = None
        try:
            path = writing.path.result()
        except OSError as error:
            self._tell_failure(error)
            return None
        if self._retry_s:
            log.info("snapshots are written again: %s", path)
        self._retry_s = self._not_before_s = 0.0
        self._last = writing.events, writing.place
        self._telemetry.saved(time.time())
        return writing.place

    def close(self) -> None:
        """Wait for the snapshot that is being written, whatever becomes of it."""
        self._thread.shutdown()

    def _finish(self, fork: "_Fork", replica: Future[Arrays], path: Path) -> Path:
        try:
            fork.send(replica.result())
            fork.wait()
            return self._files.finish(path)
        except BaseException:
            fork.end()
            with suppress(OSError):
                path.unlink(missing_ok=True)
            raise

    def _tell_failure(self, error: OSError) -> None:
        if not self._retry_s:
            log.warning(
                "no snapshot was written at event %d: %s; learning goes on, and it is tried again",
                *(self._trainer.events, _reason(error, self._files.directory)),
            )
        self._retry_s = min(2 * self._retry_s or _FIRST_RETRY_S, _LAST_RETRY_S)
        self._not_before_s = self._clock() + self._retry_s
        self._telemetry.snapshot_failed()


class _Fork:
    """A process that has this one's memory as it is now. It calls a function with the arrays that
    it is sent later."""

    def __init__(self, write: Callable[[Arrays], None]):
        """Raises `OSError` if there can be no more processes or descriptors."""
        orders, self._orders = os.pipe()
        self._result, result = os.pipe()
        try:
            self._pid = os.fork()
        except OSError:
            for descriptor in (orders, self._orders, self._result, result):
                os.close(descriptor)
            raise
        if not self._pid:
            _work(write, orders, result)
        os.close(orders)
        os.close(result)

    def send(self, arrays: Arrays) -> None:
        """Hand the arrays over; the fork begins its work."""
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        with suppress(BrokenPipeError), open(self._orders, "wb", closefd=False) as file:
            file.write(pack_as(_Nothing(), tensors))
        self._close_orders()

    def wait(self) -> None:
        """Wait for the end. Raises `OSError` with the fork's own reason."""
        reason, deadline_s = b"", time.monotonic() + _LONGEST_S
        poll = select.poll()
        poll.register(self._result, select.POLLIN)
        while poll.poll(1e3 * max(0.0, deadline_s - time.monotonic())):
            part = os.read(self._result, _READ_BYTES)
            if not part:
                break
            reason += part
        else:
            raise TimeoutError(f"it took longer than {_LONGEST_S:.0f} s")
        code = self._reap()
        if reason:
            raise OSError(reason.decode(errors="replace"))
        if code:
            how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            raise OSError(f"the process that wrote it ended by {how}")

    def end(self) -> None:
        """End the process, if it has not ended, and free what is left of it."""
        self._close_orders()
        if self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
            self._reap()

    def _reap(self) -> int:
        _, status = os.waitpid(self._pid, 0)
        self._pid = 0
        os.close(self._result)
        return os.waitstatus_to_exitcode(status)

    def _close_orders(self) -> None:
        if self._orders >= 0:
            os.close(self._orders)
            self._orders = -1


def _work(write: Callable[[Arrays], None], orders: int, result: int) -> NoReturn:
    """The fork's whole life."""
    code = 1
    try:
        os.nice(_NICENESS)
        gc.disable()  # no object of the trainer's may close a descriptor of a number used anew
        first, second = sorted((orders, result))
        # Sockets and pipes of the trainer must close when it ends, not when this process does.
        for start, stop in ((3, first), (first + 1, second), (second + 1, _most_descriptors())):
            os.closerange(start, stop)
        torch.set_num_threads(1)  # other threads are not in a fork
        with open(orders, "rb") as file:
            data = file.read()
        if data:  # else the trainer is gone
            _, tensors = unpack_as(data, _Nothing)
            write({name: tensor.numpy() for name, tensor in tensors.items()})
            code = 0
    except BaseException as error:
        os.write(result, _reason(error).encode())
    finally:
        os._exit(code)


def _most_descriptors() -> int:
    return max(256, os.sysconf("SC_OPEN_MAX"))


def _reason(error: BaseException, path: Path | None = None) -> str:
    """An error in one line. `path`: of what could not be written."""
    if isinstance(error, OSError):
        text = error.strerror or str(error)
        name = error.filename or path
    else:
        text, name = f"{type(error).__name__}: {error}", path
    return f"{name}: {text}" if name and str(name) not in text else text
