"""The loop: Kafka -> batches -> learning -> drift -> masks -> checkpoint -> Redis, until told to
stop.

In: a source of events, a trainer, a store. Out: a fresh sparse checkpoint in the store at every
interval, a snapshot on disk, metrics. Each event changes the model exactly once: positions are
saved with the model, in one file, and a restart seeks to them. To save:

    1. dead letters are flushed: what will not be read again is safe elsewhere; so are notices of drifts
    2. the snapshot is written, synced and renamed into place
    3. offsets are committed to Kafka, which only dashboards read
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import msgspec

from niwaki.model.features.schema import Schema
from niwaki.pruning.policy import Move
from niwaki.serving.store import CheckpointStore
from niwaki.stream.config import Config
from niwaki.stream.errors import BrokerError
from niwaki.stream.events import EventDecoder
from niwaki.stream.kafka.batcher import Intake
from niwaki.stream.kafka.connection import Committer, KafkaConfig, ensure_topic
from niwaki.stream.kafka.reader import EventReader, PolledBatch, Reader
from niwaki.stream.kafka.reader_process import ReaderProcess
from niwaki.stream.kafka.sink import Outbox
from niwaki.stream.kafka.source import DeadLetters, EventSource
from niwaki.stream.training.publisher import Publisher
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.snapshot import Positions, SnapshotConfig, load_snapshot, save_snapshot
from niwaki.stream.training.stopwatch import Stopwatch
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Step, Trainer

log = logging.getLogger("niwaki")

_OBSERVE_EVERY_S = 1.0


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
        committer: Committer | None = None,
        drifts: Outbox | None = None,
        on_step: Callable[[Step], None] = lambda step: None,
    ):
        """`committer`: shows dashboards how far the stream has been saved. `drifts` is told of each
        drift. `on_step` is called after each batch, for a progress bar or a history."""
        self.trainer, self.store, self.telemetry, self._topic = (
            trainer,
            store,
            telemetry,
            reader.topic,
        )
        self._dead_letters, self._drifts, self._snapshot = dead_letters, drifts, snapshot
        self._committer, self._on_step = committer, on_step
        training = trainer.config
        self.intake = Intake(
            reader,
            dead_letters,
            batch_events=training.batch_events,
            max_batch_age_s=training.max_batch_age_s,
            on_reading=self._observe_reading,
        )
        self.publisher = Publisher(
            trainer, trainer.follow(training.publish_every_events), store, telemetry
        )
        self._positions = Positions()
        self._saved_s, self._save_next, self._published = time.monotonic(), False, False
        self._observe_after_s = 0.0

    @property
    def publication(self) -> ServedReplica:
        """The series that is published."""
        return self.publisher.publication

    @property
    def version(self) -> int:
        """The last version that the store is known to have taken."""
        return self.publisher.version

    def resume(self) -> None:
        """Continue from the snapshot if there is one."""
        snapshot = load_snapshot(self._snapshot, self.trainer, self.publication, self._topic)
        if snapshot:
            self._positions = snapshot.positions
            log.info(
                "resumed at event %d, offsets %s", self.trainer.events, self._positions.offsets
            )
        self.publisher.resume(snapshot.version if snapshot else 0)
        self.intake.resume(self._positions)
        self.telemetry.phase(self.trainer.policy.phase)

    def run(self, stop: Callable[[], bool], limit_events: int | None = None) -> None:
        """Learn until `stop()`, or until `limit_events` have been learned or dead-lettered; then
        publish and save."""
        while not stop() and not self._reached(limit_events):
            watch = Stopwatch()
            received = self.intake.receive(last=self._reached(limit_events, polled=True))
            watch.lap("read")
            if received:
                step = self.trainer.step(received.batch)
                watch.add(step.seconds)
                self._positions = received.positions
                self._publish_if_due(step)
                watch.lap("publish")
                self._save_if_due()
                watch.lap("save")
                self._observe(step)
                self._on_step(step)
            self.publisher.settle(wait=False)
            self.telemetry.spent(watch.seconds)
            self._observe_now_and_then()
        if self.trainer.events:
            self.publisher.publish(self._positions.offsets)
            self.publisher.settle()
        self._save()
        self._observe_after_s = 0.0
        self._observe_now_and_then()
        log.info("stopped at event %d, version %d", self.trainer.events, self.version)

    def _reached(self, limit_events: int | None, polled: bool = False) -> bool:
        events = (
            self.trainer.events
            + self.intake.rejected_events
            + (self.intake.waiting if polled else 0)
        )
        return limit_events is not None and events >= limit_events

    def _publish_if_due(self, step: Step) -> None:
        self._save_next |= step.move is Move.CUT
        self._published = self.publisher.publish_if_due(step, self._positions.offsets)

    def _save_if_due(self) -> None:
        """Only after a publication: what is served is then what the learner has, so the snapshot
        need not hold both."""
        if not self._published:
            return
        if self._save_next or time.monotonic() - self._saved_s >= self._snapshot.every_s:
            self._save()

    def _save(self) -> None:
        """See the steps above. While a message of 1 can't be delivered nothing is saved: it will
        be, and then it is."""
        self._saved_s, self._save_next = time.monotonic(), False
        try:
            for outbox in filter(None, (self._dead_letters, self._drifts)):  # 1
                outbox.flush()
        except BrokerError as error:
            log.warning("no snapshot was taken at event %d: %s", self.trainer.events, error)
            return
        save_snapshot(  # 2
            self._snapshot,
            self.trainer,
            self.publication,
            self._topic,
            self._positions,
            self.version,
        )
        if self._committer:
            self._committer.commit(self._positions.offsets)  # 3
        self.telemetry.saved(time.time())

    def _observe_reading(self, reading: PolledBatch) -> None:
        self.telemetry.polled(reading.messages, reading.size_bytes)
        for _, reject in reading.rejects:
            self.telemetry.rejected(reject.rule, reject.events)

    def _observe(self, step: Step) -> None:
        trainer, telemetry = self.trainer, self.telemetry
        telemetry.learned(step.events, event_time_s=trainer.last_event_time_s)
        for drift in step.drifts:
            sizes = {"before": drift.before, "after": drift.after, "error": drift.error}
            telemetry.drift(drift.detector, drift.signal, **sizes)
            if self._drifts:
                self._drifts.put(msgspec.json.encode(drift._asdict()))
            log.info(
                "drift at event %d, event time %.3f s: %s, since event %d; %s of %s from %.4f to %.4f, error %.4f; "
                "log loss from %s to %s, error %s",
                *(drift.event, drift.time_s, drift.kind, drift.began, drift.detector, drift.signal),
                *sizes.values(),
                *(drift.loss_before, drift.loss_after, drift.loss_error),
            )
        if step.move is Move.STAY:
            return
        telemetry.phase(step.phase)
        log.info("event %d: %s, now %s", trainer.events, step.move, step.phase)
        if step.move is Move.REGROW:
            telemetry.regrown()
        elif step.move is Move.CUT:
            telemetry.pruned(forced=step.forced)
            learner, budget = trainer.learner, trainer.policy.budget
            log.info(
                "cut to %.2f %% of the dense multiply-adds, budget %.2f %%%s",
                100 * learner.multiply_adds / learner.dense_cost,
                100 * budget,
                ", chosen" if trainer.policy.config.budget == "auto" else "",
            )
            if step.forced:
                log.warning(
                    "the network cut at event %d predicts worse: its wait was at its bound",
                    trainer.events,
                )

    def _observe_now_and_then(self) -> None:
        """What changes slowly, or costs something to find out."""
        if time.monotonic() < self._observe_after_s:
            return
        self._observe_after_s = time.monotonic() + _OBSERVE_EVERY_S
        self.telemetry.lag(self.intake.lag())
        self.telemetry.evaluated("learning", self.trainer.prequential.last)
        self.telemetry.evaluated("served", self.publication.latest)
        self.telemetry.collisions(self.trainer.collisions())
        for one in self.trainer.monitor.achieved()["detectors"]:
            detector, signal, events = one["detector"], one["signal"], one["watched_events"]
            expected_events = one["expected_events_between_false_alarms"]
            self.telemetry.watched(detector, signal, events, expected_events=expected_events)


@contextmanager
def open_pipeline(
    config: Config, on_step: Callable[[Step], None] = lambda step: None
) -> Iterator[Pipeline]:
    """A trainer on the servers of `config`, with its metrics and topics; all is closed at the
    end."""
    schema = config.events_schema()
    trainer = Trainer(schema, config.model, config.pruning, config.drift, config.training)
    telemetry = Telemetry(config.drift.names())
    for topic in (config.kafka.topic, config.kafka.dead_letters):
        ensure_topic(config.kafka, topic)
    log.info(
        "metrics at http://%s:%d/metrics", config.telemetry.host, telemetry.start(config.telemetry)
    )
    with ExitStack() as stack:
        stack.callback(telemetry.stop)
        committer = (
            stack.enter_context(closing(Committer(config.kafka))) if config.kafka.group_id else None
        )
        pipeline = Pipeline(
            reader=stack.enter_context(closing(new_reader(config.kafka, schema))),
            dead_letters=stack.enter_context(DeadLetters(config.kafka)),
            trainer=trainer,
            store=stack.enter_context(CheckpointStore(config.redis)),
            telemetry=telemetry,
            snapshot=config.snapshot,
            committer=committer,
            drifts=stack.enter_context(Outbox(config.kafka, config.drift.topic))
            if config.drift.topic
            else None,
            on_step=on_step,
        )
        stack.enter_context(closing(pipeline.publisher))
        yield pipeline


def new_reader(config: KafkaConfig, schema: Schema) -> EventReader:
    """What reads the topic, as `config.reader` says."""
    if config.reader == "process":
        return ReaderProcess(config, schema)
    return Reader(EventSource(config), EventDecoder(schema, max_event_bytes=config.max_event_bytes))
