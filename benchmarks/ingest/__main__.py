"""From a Kafka topic to learned, in the sparse phase: the whole loop, publication included,
whichever way events come.

Each round takes the same events through each path in turn:

    poll               a bare kafka-python loop that throws the messages away (of JSON)
    hand over          polled and decoded in the reader's process, and thrown away by ours
    process, inline    the real loop, with `kafka.reader` so
    memory             the real loop, on events that are decoded already

with JSON and with Arrow messages, of a wide stream (13 numeric and 26 categorical fields, some 650
bytes as JSON) and of a narrow one: what `niwaki generate` makes, or a recording of yours
(`--recording FILE`).

But for the bare loop, what is timed begins some thousand events after the start and is many times
what a reader reads ahead, so neither the start of a process nor what it had read before counts.
"""

import argparse
import itertools
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import msgspec
import numpy as np
from kafka import KafkaConsumer, TopicPartition

from benchmarks.frame import Findings, at_least, main, spread
from benchmarks.ingest.streams import Stream, streams
from benchmarks.servers import some_kafka, some_redis
from niwaki.model.config import LearnerConfig
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policy import Phase
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.stream.app import new_reader
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import encode_arrow, encode_json
from niwaki.stream.kafka.batcher import Batcher
from niwaki.stream.kafka.connection import KafkaConfig, connect, ensure_topic
from niwaki.stream.kafka.reader import EventReader, PolledBatch, Positions
from niwaki.stream.kafka.sink import DeadLetters, EventSink
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.pipeline import Pipeline
from niwaki.stream.training.second_thread import tensor_threads
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Step, Trainer, TrainerConfig, TrainingConfig

TABLE_ROWS = 1_000_000
EVENTS_PER_MESSAGE = 128
NEVER_S = 1e9
PATHS = (
    ("poll", "json"),
    ("poll", "arrow"),
    ("hand over", "json"),
    ("hand over", "arrow"),
    ("process", "json"),
    ("process", "arrow"),
    ("inline", "json"),
    ("inline", "arrow"),
    ("memory", ""),
)
"""Path and wire format."""


class Sizes(NamedTuple):
    """Numbers of events of a stream, by use."""

    trained: int
    """To reach the sparse phase."""
    skipped: int
    """By each path, before the clock starts."""
    timed: int
    rounds: int
    poll_messages: int


FULL = Sizes(trained=20_480, skipped=16_384, timed=65_536, rounds=5, poll_messages=8_192)
QUICK = Sizes(trained=1_024, skipped=1_024, timed=1_024, rounds=1, poll_messages=256)


def measure(quick: bool, recording: Path | None = None) -> Findings:
    """Every path in every round."""
    sizes = QUICK if quick else FULL
    training = TrainingConfig(max_batch_age_s=NEVER_S)
    tensor_threads(training.threads)
    rows = []
    claims = []
    setting = {}
    with ExitStack() as stack:
        kafka, servers = stack.enter_context(some_kafka())
        redis, url = stack.enter_context(some_redis())
        for stream in streams(recording, sizes.trained + sizes.skipped + sizes.timed):
            with ExitStack() as inner:
                ingest = Ingest(stream, sizes, training, servers, url, inner)
                rates: dict[tuple[str, str], list[float]] = defaultdict(list)
                for place in range(sizes.rounds):
                    for path in PATHS if place % 2 else reversed(PATHS):
                        rates[path].append(sizes.timed / ingest.seconds(*path))
            found = [_row(stream.name, path, rates) for path in PATHS]
            rows, claims = rows + found, claims + _claims(stream.name, found)
            setting |= {f"{stream.name}_bytes_a_json_message": ingest.message_bytes["json"]}
    setting |= sizes._asdict() | {
        "batch_events": training.batch_events,
        "kafka": kafka,
        "redis": redis,
    }
    return Findings(rows, claims, setting)


class Ingest:
    """One stream in two topics, and the loops that learn it."""

    def __init__(
        self,
        stream: Stream,
        sizes: Sizes,
        training: TrainingConfig,
        servers: str,
        redis_url: str,
        stack: ExitStack,
    ):
        self._sizes, self._schema = sizes, stream.schema
        learned, table = stream.table.slice(0, sizes.trained), stream.table.slice(sizes.trained)
        values = {"json": encode_json(table), "arrow": encode_arrow(table, EVENTS_PER_MESSAGE)}
        self.message_bytes = {
            wire: sum(map(len, those)) / len(those) for wire, those in values.items()
        }
        self._kafka = {
            wire: self._produce(f"{stream.name}-{wire}", values[wire], servers) for wire in values
        }
        self._decoded = EventDecoder(stream.schema).decode(values["arrow"])[0]
        trained = EventDecoder(stream.schema).decode(encode_arrow(learned, EVENTS_PER_MESSAGE))[0]
        trainer = sparse_trainer(stream.schema, training, trained)
        self._loop = Loop(trainer, self._kafka["json"], redis_url, stream.name, stack)

    def seconds(self, path: str, wire: str) -> float:
        """For the timed events."""
        if path == "poll":
            return self._poll(self._kafka[wire])
        if path == "memory":
            reader = Memory(wire, self._decoded, self._sizes.poll_messages)
        else:
            kind = "inline" if path == "inline" else "process"
            reader = new_reader(
                msgspec.structs.replace(self._kafka[wire], reader=kind), self._schema
            )
        with closing(reader):
            return (
                self._hand_over(reader)
                if path == "hand over"
                else self._loop.seconds(reader, self._sizes)
            )

    def _produce(self, topic: str, values: Sequence[bytes], servers: str) -> KafkaConfig:
        at_once = self._sizes.poll_messages // (
            EVENTS_PER_MESSAGE if topic.endswith("arrow") else 1
        )
        config = KafkaConfig(
            bootstrap_servers=servers, topic=topic, group_id="", max_poll_messages=at_once
        )
        for name in (topic, config.dead_letters):
            ensure_topic(config, name)
        with EventSink(config) as sink:
            for value in values:
                sink.send(value)
        return config

    def _poll(self, config: KafkaConfig) -> float:
        """A plain consumer, once it is connected: what it fetches at first is many messages, and
        counts."""
        per_message = EVENTS_PER_MESSAGE if config.topic.endswith("arrow") else 1
        consumer = connect(
            KafkaConsumer, config, max_partition_fetch_bytes=8 * 2**20, enable_auto_commit=False
        )
        with closing(consumer):
            at = TopicPartition(config.topic, 0)
            consumer.assign([at])
            consumer.seek(at, 0)
            while not consumer.poll(100, max_records=1):
                pass
            # The consumer is connected now; the seek drops what it has fetched.
            consumer.seek(at, 0)

            def poll() -> int:
                polled = consumer.poll(100, max_records=config.max_poll_messages)
                return per_message * sum(map(len, polled.values()))

            return self._timed(poll, skipped=0)

    def _hand_over(self, reader: EventReader) -> float:
        reader.start({})

        def read() -> int:
            reading = reader.read(0.1)
            return len(reading.batch) if reading else 0

        return self._timed(read, self._sizes.skipped)

    def _timed(self, take: Callable[[], int], skipped: int) -> float:
        """Seconds for the timed events, by the rate after the first `skipped`. 0: from before the
        first fetch on."""
        events = before = 0
        started_s = time.perf_counter()
        while events < self._sizes.skipped + self._sizes.timed:
            events += take()
            if before < skipped <= events:
                before, started_s = events, time.perf_counter()
        return (time.perf_counter() - started_s) * self._sizes.timed / (events - before)


class Memory:
    """Decoded events, as a reader would bring them."""

    def __init__(self, topic: str, batch: EventBatch | None = None, at_once: int = 1):
        self.topic = topic
        self.ends: Mapping[int, int] = {}
        self._readings = iter(_readings(batch, at_once) if batch else ())

    def start(self, offsets: Mapping[int, int]) -> None:
        """As `EventReader` defines it."""

    def read(self, timeout_s: float) -> PolledBatch | None:
        """As `EventReader` defines it."""
        return next(self._readings, None)

    def close(self) -> None:
        """As `EventReader` defines it."""


def _readings(batch: EventBatch, at_once: int) -> list[PolledBatch]:
    first_B = np.arange(len(batch))
    after_B4 = np.stack([0 * first_B, first_B + 1, 0 * first_B, first_B], axis=1)
    cuts = [*range(0, len(batch), at_once), len(batch)]
    return [
        PolledBatch(
            batch.slice(start, stop), after_B4[start:stop], [], [], {0: stop}, stop - start, 0
        )
        for start, stop in itertools.pairwise(cuts)
    ]


def sparse_trainer(schema: Schema, training: TrainingConfig, events: EventBatch) -> Trainer:
    """A trainer that has learned `events` and stays sparse."""
    half = len(events) // 2
    pruning = PruningConfig(
        policy="static", warmup_events=half - training.batch_events, pruning_events=half
    )
    trainer = Trainer(
        TrainerConfig(
            schema=schema,
            model=LearnerConfig(table_rows=TABLE_ROWS // len(schema.fields)),
            pruning=pruning,
            drift=DriftConfig(),
            training=training,
        )
    )
    for batch in rebatch([events], training.batch_events):
        trainer.step(batch)
    assert trainer.policy.phase == Phase.SPARSE
    return trainer


class Enough(Exception):
    """Raised when the timed events have been learned."""


class Loop:
    """The real loop of one trainer, with one reader after the other."""

    def __init__(
        self, trainer: Trainer, config: KafkaConfig, redis_url: str, name: str, stack: ExitStack
    ):
        self._trainer, self._training = trainer, trainer.config.training
        self._dead_letters = stack.enter_context(DeadLetters(config))
        self._pipeline = Pipeline(
            reader=Memory(config.topic),
            dead_letters=self._dead_letters,
            trainer=trainer,
            store=stack.enter_context(CheckpointStore(StoreConfig(url=redis_url, name=name))),
            telemetry=Telemetry(),
            snapshot=SnapshotConfig(
                directory=stack.enter_context(tempfile.TemporaryDirectory()), every_s=NEVER_S
            ),
            observers=[StepCallback(self._look_at_the_clock)],
        )
        stack.enter_context(closing(self._pipeline.publisher))

    def seconds(self, reader: EventReader, sizes: Sizes) -> float:
        """To learn the timed events, after as many as are skipped."""
        batch_events, max_age_s = self._training.batch_events, self._training.max_batch_age_s
        self._pipeline.batcher = Batcher(
            reader, self._dead_letters, batch_events=batch_events, max_batch_age_s=max_age_s
        )
        self._pipeline.batcher.resume(Positions())
        self._from = self._trainer.events + sizes.skipped
        self._to = self._from + sizes.timed
        try:
            self._pipeline.run(stop=lambda: False)
        except Enough:
            return self._elapsed_s
        raise AssertionError("the loop ends of itself")

    def _look_at_the_clock(self, _: Step) -> None:
        if self._trainer.events == self._from:
            self._started_s = time.perf_counter()
        elif self._trainer.events == self._to:
            self._elapsed_s = time.perf_counter() - self._started_s
            raise Enough


def _row(
    stream: str, path: tuple[str, str], rates: Mapping[tuple[str, str], list[float]]
) -> dict[str, object]:
    rate = spread(rates[path])
    ratios = {
        f"of_{other}": median(a / b for a, b in zip(rates[path], rates[than], strict=True))
        for other, than in (("poll_json", ("poll", "json")), ("memory", ("memory", "")))
    }
    return {
        "stream": stream,
        "path": path[0],
        "wire": path[1],
        "events_per_s": rate.median,
        "low": rate.low,
        "high": rate.high,
    } | ratios


def _claims(stream: str, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    found = {(row["path"], row["wire"]): row for row in rows}
    json, arrow = found["process", "json"], found["process", "arrow"]
    return [
        at_least(f"{stream}: JSON to learned, over the bare poll loop", json["of_poll_json"], 0.6),
        at_least(f"{stream}: JSON to learned, events/s", json["events_per_s"], 25_000),
        at_least(f"{stream}: Arrow to learned, over learning from memory", arrow["of_memory"], 0.9),
    ]


def run_main(arguments: list[str] | None = None) -> None:
    """The program: the frame's options, and a recording."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--recording", type=Path, help="a recorded stream instead of the synthetic one"
    )
    options, rest = parser.parse_known_args(arguments)

    def measured(quick: bool) -> Findings:
        return measure(quick, options.recording)

    main("ingest", measured, rest, parser)


if __name__ == "__main__":
    run_main()
