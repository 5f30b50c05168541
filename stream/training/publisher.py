"""What has been learned goes to the store, a version at every interval, while learning goes on.

In: a trainer, and one series of its publications. Out: checkpoints in the store, in order. The loop
only copies what has changed; a thread packs, hashes and writes it, one version at a time. While the
store takes what it is given, a version counts as served from the event on at which it was copied,
so what is reported depends on events alone. What the store did not take costs freshness, never
events: it is in the next version, which is a full one, since nobody knows what has arrived. That
one is waited for, and counts as served only once it is taken.
"""

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor

from niwaki.model.published.checkpoint import Header, pack
from niwaki.serving.errors import StoreUnavailable
from niwaki.serving.store import CheckpointStore
from niwaki.stream.training.served_replica import Prepared, ServedReplica
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Step, Trainer

log = logging.getLogger("niwaki")

_RETRY_S = 1.0


class Publisher:
    """Publishes one series of a trainer's versions. For one thread, the loop's."""

    def __init__(
        self,
        trainer: Trainer,
        publication: ServedReplica,
        store: CheckpointStore,
        telemetry: Telemetry,
    ):
        self.publication = publication
        self.version = 0
        """The last version that the store is known to have taken."""
        self._trainer, self._store, self._telemetry = trainer, store, telemetry
        self._thread = ThreadPoolExecutor(1, "niwaki-publish")
        self._on_its_way: tuple[Header, Future[int]] | None = None
        self._base = 0
        """The last version published in full."""
        self._trusted = False
        """Whether the store took the last version."""
        self._retry_s = _RETRY_S
        self._not_before_s = 0.0

    def resume(self, version: int) -> None:
        """Go on after `version`, and after whatever is published."""
        pointer = self._store.head()
        self.version = max(version, pointer.version if pointer else 0)

    def publish_if_due(self, step: Step, offsets: dict[int, int]) -> bool:
        """After each batch; True where it was time to, and not too soon after a failure. `offsets`:
        see `publish`."""
        if not self.publication.due(step.move):
            return False
        self.settle()
        if time.monotonic() < self._not_before_s:
            return False
        self.publish(offsets)
        return True

    def publish(self, offsets: dict[int, int]) -> None:
        """Begin to hand the store a new version, a delta where it has what that changes. `offsets`:
        by partition, the next message that is not in it."""
        self.settle()
        header, prepared = self._trainer.prepare(
            self.publication,
            version=self.version + 1,
            parent=self.version,
            base=0 if self.publication.full_due else self._base,
            offsets={str(partition): offset for partition, offset in offsets.items()},
            created_s=time.time(),
        )
        self._on_its_way = header, self._thread.submit(self._send, header, prepared)
        if self._trusted or self.settle():
            self.publication.refresh()

    def settle(self, *, wait: bool = True) -> bool:
        """Learn what became of the version that is on its way; True if it was taken. `wait`: until
        it is known.

        Raises `StoreRefused`.
        """
        if self._on_its_way is None or not (wait or self._on_its_way[1].done()):
            return False
        (header, sent), self._on_its_way = self._on_its_way, None
        self._trusted, version, telemetry = False, header.version, self._telemetry
        try:
            if not (size_bytes := sent.result()):
                pointer = self._store.head()
                log.warning(
                    "version %d does not follow on what is published; going on in full from there",
                    version,
                )
                self.version = max(version, pointer.version if pointer else 0)
                self.publication.want_full()
                return False
        except StoreUnavailable as error:
            self.publication.want_full()
            telemetry.publication_failed()
            self._not_before_s = time.monotonic() + self._retry_s
            log.warning("version %d was not published: %s", version, error)
            return False
        self._trusted, self.version, self._base = True, version, header.base or version
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
        self._thread.shutdown()

    def _send(self, header: Header, prepared: Prepared) -> int:
        """Bytes that the store took; 0: what it holds is not what this version changes, or not
        older."""
        data = pack(header, prepared.tensors())
        return len(data) if self._store.publish(header, data) else 0
