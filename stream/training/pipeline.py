"""The loop: Kafka -> batches -> learning -> drift -> masks -> checkpoint -> Redis, until told to
stop.

In: a source of events, a trainer with a replica of what is served, a store. Out: a fresh sparse
checkpoint in the store at every interval, a snapshot on disk, and what the observers make of it
all. Each event changes the model exactly once: positions are saved with the model, in one file, and
a restart seeks to them. To save:

    1. outboxes are flushed: dead letters and notices of drifts, which will not be made again
    2. the snapshot is written, synced and renamed into place
    3. offsets are committed to Kafka, which only dashboards read
"""

import logging
import time
from collections.abc import Callable, Sequence

from niwaki.pruning.policy import Move
from niwaki.serving.store import CheckpointStore
from niwaki.stream.errors import BrokerError
from niwaki.stream.kafka.batcher import Batcher
from niwaki.stream.kafka.connection import Committer
from niwaki.stream.kafka.reader import EventReader, PolledBatch, Positions
from niwaki.stream.kafka.sink import DeadLetters, Outbox
from niwaki.stream.training.observers import DriftTopic, Metrics, Observer, StepLog
from niwaki.stream.training.publisher import Publisher
from niwaki.stream.training.reject_watch import RejectWatch
from niwaki.stream.training.snapshot import SnapshotConfig, load_snapshot, save_snapshot
from niwaki.stream.training.stopwatch import Stopwatch
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Step, Trainer

log = logging.getLogger("niwaki")

_PAUSE_EVERY_S = 1.0


class Pipeline:
    """A running trainer: `resume`, then `run`."""

    def __init__(
        self,
        *,
        reader: EventReader,
        dead_letters: DeadLetters,
        trainer: Trainer,
        store: CheckpointStore,
        telemetry: Telemetry,
        snapshot: SnapshotConfig,
        max_rejected_ratio: float = 1.0,
        committer: Committer | None = None,
        drifts: Outbox | None = None,
        observers: Sequence[Observer] = (),
    ):
        """`committer`: shows dashboards how far the stream has been saved. `drifts`: takes a
        message about each drift. `observers`: more of them, beside the log and the metrics.
        `max_rejected_ratio`: see `KafkaConfig`."""
        training = trainer.config.training
        self.trainer = trainer
        self.store = store
        self.telemetry = telemetry
        self.replica = trainer.add_replica(training.publish_every_events)
        self.publisher = Publisher(self.replica, store, telemetry)
        self._rejects = RejectWatch(reader.topic, max_rejected_ratio)
        self.observers: list[Observer] = [
            self._rejects,
            StepLog(trainer),
            Metrics(trainer, self.replica, telemetry),
            *([DriftTopic(drifts)] if drifts else []),
            *observers,
        ]
        self.batcher = Batcher(
            reader,
            dead_letters,
            batch_events=training.batch_events,
            max_batch_age_s=training.max_batch_age_s,
            on_polled=self._polled,
        )
        self._topic = reader.topic
        self._outboxes: tuple[DeadLetters | Outbox, ...] = (
            (dead_letters, drifts) if drifts else (dead_letters,)
        )
        self._snapshot = snapshot
        self._committer = committer
        self._positions = Positions()
        self._saved_s = time.monotonic()
        self._save_next = False
        self._pause_after_s = 0.0

    @property
    def version(self) -> int:
        """The last version that the store is known to have taken."""
        return self.publisher.version

    def resume(self) -> None:
        """Continue from the snapshot if there is one."""
        snapshot = load_snapshot(self._snapshot, self.trainer, self.replica, self._topic)
        if snapshot:
            self._positions = snapshot.positions
            offsets = self._positions.offsets
            log.info("resumed at event %d, offsets %s", self.trainer.events, offsets)
        self.publisher.resume(snapshot.version if snapshot else 0)
        self.batcher.resume(self._positions)
        self.telemetry.phase(self.trainer.policy.phase)

    def run(
        self,
        stop: Callable[[], bool],
        limit_events: int | None = None,
        *,
        end: Callable[[], int | None] | None = None,
    ) -> None:
        """Learn until `stop()`, or until `limit_events` have been learned or dead-lettered; then
        publish and save. `end`: tells that number once it is known, instead.

        Raises `TooManyRejects` at the end where that was the reason to stop.
        """
        while not (stop() or self._rejects.too_many):
            limit_events = end() if end is not None else limit_events
            if self._reached(limit_events):
                break
            watch = Stopwatch()
            received = self.batcher.receive(last=self._reached(limit_events, polled=True))
            watch.lap("read")
            if received:
                step = self.trainer.step(received.batch)
                watch.add(step.seconds)
                self._positions = received.positions
                published = self._publish_if_due(step)
                watch.lap("publish")
                self._save_if_due(step, published)
                watch.lap("save")
                for observer in self.observers:
                    observer.stepped(step)
            self.publisher.settle(wait=False)
            self.telemetry.spent(watch.seconds)
            self._pause_if_due()
        if self.trainer.events:
            self.publisher.publish(self.trainer.status(), self._positions.offsets)
            self.publisher.settle()
        self._save()
        self._pause_after_s = 0.0
        self._pause_if_due()
        log.info("stopped at event %d, version %d", self.trainer.events, self.version)
        self._rejects.check()

    def _reached(self, limit_events: int | None, polled: bool = False) -> bool:
        waiting = self.batcher.waiting if polled else 0
        events = self.trainer.events + self.batcher.rejected_events + waiting
        return limit_events is not None and events >= limit_events

    def _publish_if_due(self, step: Step) -> bool:
        status, offsets = self.trainer.status(), self._positions.offsets
        return self.publisher.publish_if_due(step.move, status, offsets)

    def _save_if_due(self, step: Step, published: bool) -> None:
        """Save only after a publication: the served model is then the learner's, so the snapshot
        need not hold both."""
        self._save_next |= step.move is Move.CUT
        if not published:
            return
        if self._save_next or time.monotonic() - self._saved_s >= self._snapshot.every_s:
            self._save()

    def _save(self) -> None:
        """Save, by the steps above. While an outbox cannot be flushed nothing is saved; the next
        save tries again."""
        self._saved_s = time.monotonic()
        self._save_next = False
        try:
            for outbox in self._outboxes:  # 1
                outbox.flush()
        except BrokerError as error:
            log.warning("no snapshot was taken at event %d: %s", self.trainer.events, error)
            return
        positions = self.batcher.positions  # behind the dead letters, too
        save_snapshot(  # 2
            self._snapshot, self.trainer, self.replica, self._topic, positions, self.version
        )
        if self._committer:
            self._committer.commit(positions.offsets)  # 3
        self.telemetry.saved(time.time())

    def _polled(self, polled: PolledBatch) -> None:
        for observer in self.observers:
            observer.polled(polled)

    def _pause_if_due(self) -> None:
        if time.monotonic() < self._pause_after_s:
            return
        self._pause_after_s = time.monotonic() + _PAUSE_EVERY_S
        lag_events = self.batcher.lag()
        for observer in self.observers:
            observer.paused(lag_events)
