"""The loop: Kafka -> batches -> learning -> drift -> masks -> checkpoint -> Redis, until told to
stop.

In: a source of events, a trainer with a replica of what is served, a store; and perhaps a recording
that is learned before. Out: a fresh sparse checkpoint in the store at every interval, a snapshot on
disk, and what the observers make of it all. Each event changes the model exactly once: positions
are saved with the model, in one file, and a restart seeks to them. To save:

    1. outboxes are flushed: dead letters and notices of drifts, which will not be made again
    2. the snapshot is written, synced and renamed into place, beside the learning
    3. offsets are committed to Kafka, which only dashboards read
"""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from niwaki.model.features.schema import EventBatch
from niwaki.pruning.policy import Move
from niwaki.serving.store import CheckpointStore
from niwaki.stream.errors import BrokerError, ConfigError
from niwaki.stream.kafka.batcher import Batcher
from niwaki.stream.kafka.connection import Committer
from niwaki.stream.kafka.overlap import Overlap
from niwaki.stream.kafka.reader import EventReader, PolledBatch, Positions
from niwaki.stream.kafka.sink import DeadLetters, Outbox
from niwaki.stream.training.observers import DriftTopic, Metrics, Observer, QuarantineFile, StepLog
from niwaki.stream.training.past import OPTION, Past, Progress
from niwaki.stream.training.publisher import Publisher
from niwaki.stream.training.reject_watch import RejectWatch
from niwaki.stream.training.snapshots.contents import Place, SnapshotHeader, load_snapshot
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.snapshots.writer import SnapshotWriter
from niwaki.stream.training.stopwatch import Stopwatch
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer

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
        offsets_after: Callable[[int], Mapping[int, int]] | None = None,
        observers: Sequence[Observer] = (),
    ):
        """`committer`: shows dashboards how far the stream has been saved. `drifts`: takes a
        message about each drift. `offsets_after`: finds the offsets that follow on a recording, by
        its last event time, microseconds since the epoch. `observers`: more of them, beside the log
        and the metrics. `max_rejected_ratio`: see `KafkaConfig`."""
        training = trainer.config.training
        self.trainer = trainer
        self.store = store
        self.telemetry = telemetry
        every_events = training.publish_every_events
        self.replica = trainer.add_replica(every_events, evaluates_all=False)
        self.publisher = Publisher(self.replica, store, telemetry)
        self._rejects = RejectWatch(reader.topic, max_rejected_ratio)
        self.observers: list[Observer] = [
            self._rejects,
            StepLog(trainer),
            Metrics(trainer, self.replica, telemetry),
            QuarantineFile(
                Path(snapshot.directory) / "quarantine.jsonl",
                trainer,
                lambda: self._positions.offsets,
            ),
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
        self.snapshots = SnapshotWriter(snapshot, trainer, self.replica, telemetry)
        self._committer = committer
        self._offsets_after = offsets_after
        self._past: Past | None = None
        self._progress: Progress | None = None
        self._positions = Positions()
        self._pause_after_s = 0.0

    @property
    def version(self) -> int:
        """The last version that the store is known to have taken."""
        return self.publisher.version

    def resume(self, past: Past | None = None) -> None:
        """Continue from the snapshot if there is one; else `run` is to learn `past` before the
        topic, if there is one."""
        self.snapshots.clear()
        snapshot = load_snapshot(self._snapshot, self.trainer, self.replica, self._topic)
        if snapshot:
            self._positions = snapshot.positions
            offsets = self._positions.offsets
            log.info("resumed at event %d, offsets %s", self.trainer.events, offsets)
            if snapshot.past is not None:
                self._progress = Progress(snapshot.past)
            self._commit(self._positions)  # an older snapshot's may be behind those committed last
        self.publisher.resume(snapshot.version if snapshot else 0)
        self.telemetry.phase(self.trainer.policy.phase)
        self._past = self._past_to_learn(past, snapshot)
        if self._past is None:
            self._begin_topic()

    def run(
        self,
        stop: Callable[[], bool],
        limit_events: int | None = None,
        *,
        end: Callable[[], int | None] | None = None,
    ) -> None:
        """Learn until `stop()`, or until `limit_events` have been learned or dead-lettered; then
        publish and save. `end`: tells that number once it is known, instead. A recording before the
        topic is learned as a whole.

        Raises `TooManyRejects` or `LearnError` at the end where that was the reason to stop.
        """
        asked, stop = stop, lambda: asked() or self.trainer.quarantine.must_stop
        if self._past is not None and not self._learn_past(self._past, stop):
            return self._end()
        while not (stop() or self._rejects.too_many):
            limit_events = end() if end is not None else limit_events
            if self._reached(limit_events):
                break
            watch = Stopwatch()
            received = self.batcher.receive(last=self._reached(limit_events, polled=True))
            watch.lap("read")
            if received:
                self._learn(received.batch, received.positions, watch)
            elif not self.batcher.waiting:
                self._save_if_due(published=False)
                watch.lap("save")
            self._settle(watch)
        self._end()

    def _learn(self, batch: EventBatch, positions: Positions, watch: Stopwatch) -> None:
        """Learn a batch, then publish and save if that is due. `positions`: those after it."""
        step = self.trainer.step(batch)
        watch.add(step.seconds)
        self._positions = positions
        published = self._publish_if_due(step.move)
        watch.lap("publish")
        if step.move is Move.CUT:
            self.snapshots.hurry()
        if published or self.snapshots.overdue:
            self._save_if_due(published)
        watch.lap("save")
        for observer in self.observers:
            observer.stepped(step)

    def _settle(self, watch: Stopwatch) -> None:
        """Do what is due between two batches."""
        self.publisher.settle(wait=False)
        if self.publisher.overdue:
            self._publish_if_due(Move.STAY)
        self._settle_snapshot()
        self.telemetry.spent(watch.seconds)
        self._pause_if_due()

    def _end(self) -> None:
        """Publish and save what was learned."""
        if self.trainer.events:
            self.publisher.publish(self.trainer.status(), self._positions.offsets)
            self.publisher.settle()
        self._save(wait=True)
        self._pause_after_s = 0.0
        self._pause_if_due()
        if self._overlap is not None:
            self._overlap.tell(last=True)
        log.info("stopped at event %d, version %d", self.trainer.events, self.version)
        self._rejects.check()
        self.trainer.quarantine.check(self.trainer.events)

    def _past_to_learn(self, past: Past | None, snapshot: SnapshotHeader | None) -> Past | None:
        """The recording that is to be learned, all or the rest of it; None: there is none, or it is
        learned already."""
        if past is not None and not self.trainer.events:
            self._progress, self._positions = Progress(), Positions()
            return past
        if snapshot is None:
            return None
        if snapshot.past is None or snapshot.past.complete:
            where = f"going on from the snapshot at event {self.trainer.events:,}"
            if past is not None and snapshot.past is not None:
                log.info("%s is learned already: %s", OPTION, where)
            elif past is not None:
                log.warning("%s is not learned: %s; move it away to start anew", OPTION, where)
            return None
        if past is None and not snapshot.past.events:
            self._progress = None
        elif past is None:
            events = f"{snapshot.past.events:,}"
            rule = (
                f"is missing: the snapshot in {self._snapshot.directory} was taken after {events}"
                " events of a recording; give it again, or move the snapshot away to start anew"
            )
            raise ConfigError(OPTION, rule)
        else:
            log.info("%s goes on after %s of its events", OPTION, f"{snapshot.past.events:,}")
        return past

    def _learn_past(self, past: Past, stop: Callable[[], bool]) -> bool:
        """Learn the recording before the topic, publish it in full and save; False: stopped before
        its end, at which the next start goes on."""
        progress = self._progress = self._progress or Progress()
        if not past.survey(stop):
            return False
        watch = Stopwatch()
        for batch in past.batches(progress, self.trainer.config.training.batch_events, stop):
            watch.lap("read")
            self._learn(batch, Positions(), watch)
            past.tell(progress, self.trainer.prequential.last)
            self._settle(watch)
            watch = Stopwatch()
        past.tell(progress, self.trainer.prequential.last, last=True)
        if not progress.complete:
            return False
        self.replica.want_full()
        self.publisher.publish(self.trainer.status(), {})
        self.publisher.settle()
        self._save(wait=True)
        self._past = None
        self._begin_topic()
        return True

    def _begin_topic(self) -> None:
        """Begin to read the topic at the positions of the snapshot, or behind a recording."""
        overlap = self._overlap
        if overlap is not None and not self._positions.offsets and self._offsets_after:
            offsets = self._offsets_after(overlap.end_us)
            self._positions = Positions(offsets=dict(offsets))
        self.batcher.resume(self._positions, overlap)

    @property
    def _overlap(self) -> Overlap | None:
        """What the topic has of a recording that is learned."""
        return None if self._progress is None else self._progress.overlap

    def _reached(self, limit_events: int | None, polled: bool = False) -> bool:
        waiting = self.batcher.waiting if polled else 0
        passed = self.trainer.events + self.trainer.quarantine.events
        events = passed + self.batcher.rejected_events + waiting
        return limit_events is not None and events >= limit_events

    def _publish_if_due(self, move: Move) -> bool:
        status, offsets = self.trainer.status(), self._positions.offsets
        return self.publisher.publish_if_due(move, status, offsets)

    def _save_if_due(self, published: bool) -> None:
        """Save if that is due and there is something new. Only after a publication: the served
        model is then the learner's, so the snapshot need not hold both. Where none has just been
        made, since no events come, one is made."""
        if not self.snapshots.due() or not self.snapshots.is_new(self._place()):
            return
        if not published and self.replica.behind and not self.publisher.overdue:
            self.publisher.publish(self.trainer.status(), self._positions.offsets)
        self._save()

    def _save(self, *, wait: bool = False) -> None:
        """Save, by the steps above; `wait`: until the snapshot is on the disk. While an outbox
        cannot be flushed nothing is saved; the next save tries again."""
        self._settle_snapshot(wait=wait)
        try:
            for outbox in self._outboxes:  # 1
                outbox.flush()
        except BrokerError as error:
            self.snapshots.postpone()
            log.warning("no snapshot was taken at event %d: %s", self.trainer.events, error)
            return
        self.snapshots.begin(self._place())  # 2
        self._settle_snapshot(wait=wait)

    def _place(self) -> Place:
        """The present place, behind the dead letters, too."""
        past = None if self._progress is None else self._progress.state
        return Place(
            topic=self._topic,
            positions=self.batcher.positions,
            version=self.version,
            past=past,
        )

    def _settle_snapshot(self, *, wait: bool = False) -> None:
        saved = self.snapshots.settle(wait=wait)
        if saved is not None:
            self._commit(saved.positions)  # 3

    def _commit(self, positions: Positions) -> None:
        if self._committer and positions.offsets:
            self._committer.commit(positions.offsets)

    def _polled(self, polled: PolledBatch) -> None:
        for observer in self.observers:
            observer.polled(polled)

    def _pause_if_due(self) -> None:
        if time.monotonic() < self._pause_after_s:
            return
        self._pause_after_s = time.monotonic() + _PAUSE_EVERY_S
        if self._overlap is not None:
            self._overlap.tell()
        lag_events = self.batcher.lag()
        for observer in self.observers:
            observer.paused(lag_events)
