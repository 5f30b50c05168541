"""The place where the parts of a trainer are wired together, and the only one.

In: a `Config`. Out: a pipeline on the servers that it names, with its metrics and topics.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial

from niwaki.model.features.schema import Schema
from niwaki.serving.store import CheckpointStore
from niwaki.stream.config import Config
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.kafka.connection import (
    Committer,
    KafkaConfig,
    ensure_topic,
    partitions_of,
)
from niwaki.stream.kafka.reader import EventReader, Reader
from niwaki.stream.kafka.reader_process import ReaderProcess
from niwaki.stream.kafka.registry import check_packages, new_decoder
from niwaki.stream.kafka.sink import DeadLetters, Outbox
from niwaki.stream.kafka.source import EventSource
from niwaki.stream.kafka.times import offsets_after
from niwaki.stream.training.observers import Observer
from niwaki.stream.training.pipeline import Pipeline
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer

log = logging.getLogger("niwaki")
_DEFAULTS = EventsConfig()


@contextmanager
def open_pipeline(config: Config, observers: Sequence[Observer] = ()) -> Iterator[Pipeline]:
    """A trainer on the servers of `config`; all is closed at the end. `observers`: see
    `Pipeline`."""
    trainer = Trainer(config.trainer())
    telemetry = Telemetry(config.drift.names())
    if config.kafka.create_topics:
        ensure_topic(config.kafka, config.kafka.topic)
    else:
        partitions_of(config.kafka, config.kafka.topic, config.kafka.connect_timeout_s)
    ensure_topic(config.kafka, config.kafka.dead_letters)
    port = telemetry.start(config.telemetry)
    log.info("metrics at http://%s:%d/metrics", config.telemetry.host, port)
    with ExitStack() as stack:
        stack.callback(telemetry.stop)
        committer = drifts = None
        if config.kafka.group_id:
            committer = stack.enter_context(closing(Committer(config.kafka)))
        if config.drift.topic:
            drifts = stack.enter_context(Outbox(config.kafka, config.drift.topic))
        reading = config.kafka, trainer.config.schema, config.events
        reader = new_reader(*reading)
        pipeline = Pipeline(
            reader=stack.enter_context(closing(reader)),
            dead_letters=stack.enter_context(DeadLetters(config.kafka)),
            trainer=trainer,
            store=stack.enter_context(CheckpointStore(config.redis)),
            telemetry=telemetry,
            snapshot=config.snapshot,
            max_rejected_ratio=config.kafka.max_rejected_ratio,
            committer=committer,
            drifts=drifts,
            offsets_after=partial(offsets_after, *reading),
            observers=observers,
        )
        stack.enter_context(closing(pipeline.publisher))
        stack.enter_context(closing(pipeline.snapshots))
        yield pipeline


def new_reader(
    config: KafkaConfig, schema: Schema, events: EventsConfig = _DEFAULTS
) -> EventReader:
    """The reader of the topic that `config.reader` names."""
    check_packages(config)
    if config.reader == "process":
        return ReaderProcess(config, schema, events)
    return Reader(EventSource(config), new_decoder(config, schema, events))
