"""Publication: learned versions go to the store, one at every interval, while learning goes on.

In: a replica of one series of publications. Out: checkpoints in the store, in order. The loop only
copies what has changed; the replica's thread packs it, and a thread of this module sends it, one
version at a time. The loop waits for the store a second at most, and once: what a version brings is
in the next one too.

While the store takes what it is given, a version counts as served from the event on at which it was
copied, so what is reported depends on events alone. Where the store fails or hangs, publication is
interrupted: versions are skipped, not queued, and the last one serves on. The store is asked at
intervals; once it takes a write, a full version follows, since nobody knows what has arrived, and
counts as served only once it is taken. No event is lost or learned otherwise for any of that.
"""

import logging
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, TypeVar

from niwaki.model.published.checkpoint import Header, TrainingStatus, pack
from niwaki.pruning.policy import Move
from niwaki.serving.errors import StoreError, StoreUnavailable
from niwaki.serving.store import CheckpointStore, Pointer
from niwaki.stream.training.served_replica import Prepared, ServedReplica
from niwaki.stream.training.telemetry import Telemetry

log = logging.getLogger("niwaki")

_PATIENCE_S = 1.0
"""Longest wait of the loop for the version before, once it is packed."""
_RETRY_S, _LAST_RETRY_S = 0.5, 8.0
T = TypeVar("T")


class _Sent(NamedTuple):
    """The store's answer to a version."""

    size_bytes: int
    """0: the store holds another version than this one changes, or a newer one."""
    pointer: Pointer | None = None
    """The version that it holds, where it did not take this one."""


@dataclass
class _Upload:
    """A version on its way to the store."""

    header: Header
    packed: Future[bytes]
    sent: Future[_Sent]
    begun_s: float
    held: bool
    """True: it counts as served only once the store has taken it."""
    waited_s: float = 0.0
    """Longest time for which the loop has waited for it."""


class Publisher:
    """Publishes the versions of one replica. For one thread, the loop's."""

    def __init__(self, replica: ServedReplica, store: CheckpointStore, telemetry: Telemetry):
        self.replica = replica
        self.version = 0
        """The last version that the store is known to have taken."""
        self._store = store
        self._telemetry = telemetry
        self._sender = _Sender()
        self._upload: _Upload | None = None
        self._base = 0
        """The last version published in full."""
        self._told = False
        """True once the log says that a version is published."""
        self._asked: Future[Pointer | None] | None = None
        """The store's answer to a question whether it takes versions."""
        self._interrupted_s: float | None = None
        """Since when publication is interrupted; None: it is not."""
        self._retry_s = _RETRY_S
        self._not_before_s = 0.0

    def resume(self, version: int) -> None:
        """Go on after `version`, and after whatever is published. Where the store can't say what
        that is, learning begins all the same."""
        self.version = version
        asked = self._sender.submit(self._store.head)
        wait([asked], self._store.config.timeout_s)
        if not asked.done():
            self._asked = asked
            return self._interrupt(self._no_answer())
        try:
            self._go_on_after(asked.result())
        except StoreError as error:
            self._interrupt(error)

    @property
    def overdue(self) -> bool:
        """True while something that was learned waits for a store that took nothing."""
        return self._interrupted_s is not None and self._upload is None

    def publish_if_due(self, move: Move, status: TrainingStatus, offsets: dict[int, int]) -> bool:
        """Publish after a step that ended with `move`, if a publication is due; True if so, also
        where the store takes none now and it is skipped. The others: see `publish`."""
        if not self.replica.due(move):
            return False
        if self._upload is not None and self._interrupted_s is None:
            self._wait_for(self._upload, _PATIENCE_S)
        self.settle(wait=False)
        if self._upload is None and self._takes_versions():
            self.publish(status, offsets)
        return True

    def publish(self, status: TrainingStatus, offsets: dict[int, int]) -> None:
        """Begin to hand the store a new version, a delta where it has what that changes. `offsets`:
        by partition, the next message that is not in the version. Does nothing where the version
        before is still on its way after the longest wait for an answer."""
        self.settle()
        if self._upload is not None:
            return
        prepared = self.replica.prepare(
            status,
            version=self.version + 1,
            parent=self.version,
            base=0 if self.replica.full_due else self._base,
            offsets={str(partition): offset for partition, offset in offsets.items()},
            created_s=time.time(),
        )
        packed = self.replica.begin(_packed, prepared)
        held = self._interrupted_s is not None
        sent = self._sender.submit(self._send, prepared.header, packed)
        self._upload = _Upload(prepared.header, packed, sent, time.monotonic(), held)
        if held:
            self.replica.hold()
        else:
            self.replica.refresh()

    def settle(self, *, wait: bool = True) -> bool:
        """Learn what became of the version that is on its way; True if the store took it. `wait`:
        until it is known, for as long as an answer of the store may take."""
        upload = self._upload
        if upload is None:
            return False
        longest_s = self._store.config.timeout_s
        if wait:
            self._wait_for(upload, longest_s)
        if not upload.sent.done():
            if self._interrupted_s is None and time.monotonic() - upload.begun_s > longest_s:
                self._interrupt(self._no_answer())
            return False
        self._upload = None
        try:
            sent = upload.sent.result()
        except StoreError as error:
            self.replica.withdraw()
            self._interrupt(error)
            return False
        if not sent.size_bytes:
            log.warning(
                "version %d does not follow on the published one; going on in full from there",
                upload.header.version,
            )
            self.replica.withdraw()
            self.version = max(upload.header.version, sent.pointer.version if sent.pointer else 0)
            return False
        self._taken(upload, sent.size_bytes)
        return True

    def close(self) -> None:
        """Wait for the version that is on its way, but not for a store that does not answer."""
        if self._upload:
            self._wait_for(self._upload, self._store.config.timeout_s)

    def _taken(self, upload: _Upload, size_bytes: int) -> None:
        """The store has taken a version."""
        header, telemetry = upload.header, self._telemetry
        if upload.held:
            self.replica.accept()
        if not self._told:
            log.info("version %d is published as %s", header.version, self._store.name)
        if self._interrupted_s is not None:
            log.warning(
                "publication goes on with version %d, after %.0f s",
                *(header.version, time.monotonic() - self._interrupted_s),
            )
        self._interrupted_s = None
        self._retry_s = min(self._retry_s, _RETRY_S)
        self._told = True
        self.version = header.version
        self._base = header.base or header.version
        telemetry.published(
            header.version,
            size_bytes,
            dense_bytes=header.dense_bytes,
            created_s=header.created_s,
        )
        telemetry.sparsity(
            header.sparsity_by_layer,
            multiply_adds_ratio=header.multiply_adds / header.dense_multiply_adds,
            budget_ratio=header.budget,
        )

    def _interrupt(self, error: StoreError) -> None:
        """The store has failed: it is asked again later. The log says so once."""
        if self._interrupted_s is None:
            self._interrupted_s = time.monotonic()
            log.warning("publication is interrupted (%s), learning goes on: %s", error.kind, error)
        self._telemetry.publication_failed(error.kind)
        self._not_before_s = time.monotonic() + self._retry_s
        self._retry_s = min(2 * self._retry_s, _LAST_RETRY_S)

    def _takes_versions(self) -> bool:
        """False while publication is interrupted, until the store has taken a write."""
        if self._interrupted_s is None:
            return True
        if self._asked is None:
            if time.monotonic() >= self._not_before_s:
                self._asked = self._sender.submit(self._store.probe)
            return False
        if not self._asked.done():
            return False
        asked, self._asked = self._asked, None
        try:
            self._go_on_after(asked.result())
        except StoreError as error:
            self._interrupt(error)
            return False
        return True

    def _go_on_after(self, pointer: Pointer | None) -> None:
        if pointer and not self.version:
            log.warning(
                "version %d is published as %s, and is not this trainer's: it goes on from its own"
                " snapshot, or from nothing, and replaces it",
                *(pointer.version, self._store.name),
            )
        self.version = max(self.version, pointer.version if pointer else 0)

    def _no_answer(self) -> StoreUnavailable:
        waited_s = self._store.config.timeout_s
        return StoreUnavailable(f"{self._store.address}: no answer for {waited_s:g} s", "timeout")

    def _wait_for(self, upload: _Upload, longest_s: float) -> None:
        """Wait until a version is packed, and then at most so long until the store has answered;
        once for each version."""
        if longest_s > upload.waited_s:
            wait([upload.packed])
            wait([upload.sent], longest_s - upload.waited_s)
            upload.waited_s = longest_s

    def _send(self, header: Header, packed: Future[bytes]) -> _Sent:
        data = packed.result()
        if self._store.publish(header, data):
            return _Sent(len(data))
        return _Sent(0, self._store.head())


def _packed(prepared: Prepared) -> bytes:
    return pack(prepared.header, prepared.tensors())


class _Sender:
    """A thread that asks the store, one thing after another. It ends with this object, or with the
    process, which does not wait for a store that hangs."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        Thread(target=_work, args=(self._jobs,), name="niwaki-publish", daemon=True).start()
        weakref.finalize(self, self._jobs.put, None)

    def submit(self, job: Callable[..., T], *arguments: Any) -> Future[T]:
        """Do a job after all that came before."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(job(*arguments))
            except BaseException as error:  # whatever it is, it is raised where it is asked for
                future.set_exception(error)

        self._jobs.put(run)
        return future


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        del job
