"""Publication: learned versions go to the store, one at every interval, while learning goes on.

In: a replica of one series of publications. Out: checkpoints in the store, in order. The loop only
copies what has changed; the replica's thread packs and writes it, one version at a time. While the
store takes what it is given, a version counts as served from the event on at which it was copied,
so what is reported depends on events alone. A version that the store did not take costs freshness,
never events: its changes are in the next version, which is a full one, since nobody knows what has
arrived. That one is waited for, and counts as served only once it is taken.
"""

import logging
import time
from concurrent.futures import Future, wait
from typing import NamedTuple

from niwaki.model.published.checkpoint import Header, TrainingStatus, pack
from niwaki.pruning.policy import Move
from niwaki.serving.errors import StoreUnavailable
from niwaki.serving.store import CheckpointStore
from niwaki.stream.training.served_replica import Prepared, ServedReplica
from niwaki.stream.training.telemetry import Telemetry

log = logging.getLogger("niwaki")

_RETRY_S = 1.0


class _Upload(NamedTuple):
    """A version on its way to the store."""

    header: Header
    sent_bytes: Future[int]


class Publisher:
    """Publishes the versions of one replica. For one thread, the loop's."""

    def __init__(self, replica: ServedReplica, store: CheckpointStore, telemetry: Telemetry):
        self.replica = replica
        self.version = 0
        """The last version that the store is known to have taken."""
        self._store = store
        self._telemetry = telemetry
        self._upload: _Upload | None = None
        self._base = 0
        """The last version published in full."""
        self._trusted = False
        """True while the store has taken the last version."""
        self._told = False
        """True once the log says that a version is published."""
        self._retry_s = _RETRY_S
        self._not_before_s = 0.0

    def resume(self, version: int) -> None:
        """Go on after `version`, and after whatever is published."""
        pointer = self._store.head()
        if pointer and not version:
            log.warning(
                "version %d is published as %s, and is not this trainer's: it goes on from its own"
                " snapshot, or from nothing, and replaces it",
                *(pointer.version, self._store.name),
            )
        self.version = max(version, pointer.version if pointer else 0)

    def publish_if_due(self, move: Move, status: TrainingStatus, offsets: dict[int, int]) -> bool:
        """Publish after a step that ended with `move`, if a publication is due and not too soon
        after a failure; True if so. The others: see `publish`."""
        if not self.replica.due(move):
            return False
        self.settle()
        if time.monotonic() < self._not_before_s:
            return False
        self.publish(status, offsets)
        return True

    def publish(self, status: TrainingStatus, offsets: dict[int, int]) -> None:
        """Begin to hand the store a new version, a delta where it has what that changes. `offsets`:
        by partition, the next message that is not in the version."""
        self.settle()
        prepared = self.replica.prepare(
            status,
            version=self.version + 1,
            parent=self.version,
            base=0 if self.replica.full_due else self._base,
            offsets={str(partition): offset for partition, offset in offsets.items()},
            created_s=time.time(),
        )
        sent_bytes = self.replica.begin(self._send, prepared)
        self._upload = _Upload(prepared.header, sent_bytes)
        if self._trusted or self.settle():
            self.replica.refresh()

    def settle(self, *, wait: bool = True) -> bool:
        """Learn what became of the version that is on its way; True if the store took it. `wait`:
        until it is known.

        Raises `StoreRefused`.
        """
        upload = self._upload
        if upload is None or not (wait or upload.sent_bytes.done()):
            return False
        self._upload = None
        self._trusted = False
        header, telemetry = upload.header, self._telemetry
        version = header.version
        try:
            size_bytes = upload.sent_bytes.result()
            if not size_bytes:
                pointer = self._store.head()
                log.warning(
                    "version %d does not follow on the published one; going on in full from there",
                    version,
                )
                self.version = max(version, pointer.version if pointer else 0)
                self.replica.want_full()
                return False
        except StoreUnavailable as error:
            self.replica.want_full()
            telemetry.publication_failed()
            self._not_before_s = time.monotonic() + self._retry_s
            log.warning("version %d was not published: %s", version, error)
            return False
        if not self._told:
            log.info("version %d is published as %s", version, self._store.name)
        self._trusted = self._told = True
        self.version = version
        self._base = header.base or version
        telemetry.published(
            version, size_bytes, dense_bytes=header.dense_bytes, created_s=header.created_s
        )
        telemetry.sparsity(
            header.sparsity_by_layer,
            multiply_adds_ratio=header.multiply_adds / header.dense_multiply_adds,
            budget_ratio=header.budget,
        )
        return True

    def close(self) -> None:
        """Wait for the version that is on its way, whatever becomes of it."""
        if self._upload:
            wait([self._upload.sent_bytes])

    def _send(self, prepared: Prepared) -> int:
        """Bytes that the store took; 0: the store holds another version than this one changes, or a
        newer one."""
        data = pack(prepared.header, prepared.tensors())
        return len(data) if self._store.publish(prepared.header, data) else 0
