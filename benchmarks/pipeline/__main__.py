"""The time of an event, from a recorded stream to a published checkpoint: each stage of the demo's
path.

Every round takes fresh events through all stages, one after the other, with a dense learner and
with a pruned one; then the real loop learns the same events from the same topic. A stage's share is
its part of the sum over all stages of the path in that phase, encoding and producing (which `niwaki
replay` does in a process of its own) included.

Kafka is an Apache Kafka where KAFKA_HOME names one and there is a Java, else the embedded broker;
Redis is the `redis-server` on the PATH, else the embedded one.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack, closing
from statistics import median

import pyarrow as pa

from benchmarks.frame import Findings, at_least, at_most, main, spread
from benchmarks.servers import some_kafka, some_redis
from niwaki.model.config import LearnerConfig
from niwaki.model.features.schema import EventBatch
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.policy import Phase
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.stream.drift.monitor import DriftConfig
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import encode_json
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.kafka.connection import KafkaConfig, Record, ensure_topic
from niwaki.stream.kafka.reader import Reader
from niwaki.stream.kafka.sink import DeadLetters, EventSink
from niwaki.stream.kafka.source import EventSource
from niwaki.stream.offline.backtest import rebatch
from niwaki.stream.synthetic.columns import SCHEMA
from niwaki.stream.synthetic.generator import generate
from niwaki.stream.synthetic.world import SyntheticConfig
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.pipeline import Pipeline
from niwaki.stream.training.second_thread import tensor_threads
from niwaki.stream.training.snapshots.files import SnapshotConfig
from niwaki.stream.training.stopwatch import Stopwatch
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Step, Trainer, TrainerConfig, TrainingConfig

Seconds = dict[str, float]
"""By stage."""

BEFORE = ("encode JSON", "produce to Kafka")
"""The stages of a replay, in a process of its own."""
INTAKE = ("poll", "decode")
LEARN = ("learn_linear", "learn_embeddings", "learn_network", "learn_rest")
STEP = ("encode", "predict", *LEARN, "score", "watch", "decide", "publish")
PHASES = ("dense", "sparse")
WATCHING = DriftConfig(quiet_events=0, calibration_events=1_000)
"""So that detectors are at work when they are measured."""


def measure(quick: bool) -> Findings:
    """Warm both learners up, then measure round by round."""
    warmup_events = 1_024 if quick else 40_960
    events = 1_024 if quick else 10_240
    rounds = 2 if quick else 7
    training = TrainingConfig()
    tensor_threads(training.threads)
    tables = generate(
        SyntheticConfig(events=warmup_events + rounds * events, drifts=()), chunk_events=1_024
    )
    warmup = [next(tables) for _ in range(warmup_events // 1_024)]
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    with ExitStack() as stack:
        kafka, servers = stack.enter_context(some_kafka())
        redis, url = stack.enter_context(some_redis())
        config = KafkaConfig(bootstrap_servers=servers, group_id="")
        ensure_topic(config, config.topic)
        ensure_topic(config, config.dead_letters)
        sink = stack.enter_context(EventSink(config))
        source = stack.enter_context(EventSource(config))
        loops = {
            phase: Loop(_trained(phase, training, warmup), config, url, stack) for phase in PHASES
        }
        for _ in range(rounds):
            table = pa.concat_tables(next(tables) for _ in range(events // 1_024))
            intake, batch = _intake_seconds(table, sink, source)
            for stage, taken_s in intake.items():
                seconds[stage, ""].append(taken_s)
            for phase, loop in loops.items():
                for stage, taken_s in _step_seconds(loop.pipeline, batch).items():
                    seconds[stage, phase].append(taken_s)
                seconds["the loop", phase].append(loop.seconds(events))
    setting = {"events_a_round": events, "rounds": rounds, "batch_events": training.batch_events}
    setting |= {
        "publish_every_events": training.publish_every_events,
        "kafka": kafka,
        "redis": redis,
    }
    return Findings(*_reckon(seconds, events), setting)


def _trained(phase: str, training: TrainingConfig, warmup: Sequence[pa.Table]) -> Trainer:
    """A trainer that has learned `warmup` and stays in `phase`."""
    policy = "dense" if phase == "dense" else "static"
    half = sum(map(len, warmup)) // 2
    pruning = PruningConfig(
        policy=policy, warmup_events=half - training.batch_events, pruning_events=half
    )
    trainer = Trainer(
        TrainerConfig(
            schema=SCHEMA, model=LearnerConfig(), pruning=pruning, drift=WATCHING, training=training
        )
    )
    for batch in rebatch(
        (table_to_batch(table, SCHEMA)[0] for table in warmup), training.batch_events
    ):
        trainer.step(batch)
    assert trainer.policy.phase == Phase(phase)
    return trainer


class Loop:
    """The real loop, run for some events at a time."""

    def __init__(self, trainer: Trainer, config: KafkaConfig, redis_url: str, stack: ExitStack):
        self._last_step_s = 0.0
        name = f"loop-{trainer.policy.phase}"
        self.pipeline = Pipeline(
            reader=stack.enter_context(closing(Reader(EventSource(config), EventDecoder(SCHEMA)))),
            dead_letters=stack.enter_context(DeadLetters(config)),
            trainer=trainer,
            store=stack.enter_context(CheckpointStore(StoreConfig(url=redis_url, name=name))),
            telemetry=Telemetry(),
            snapshot=SnapshotConfig(
                directory=stack.enter_context(tempfile.TemporaryDirectory(prefix="niwaki-"))
            ),
            observers=[StepCallback(self._look_at_the_clock)],
        )
        self.pipeline.publisher.publish(trainer.status(), {})

    def seconds(self, events: int) -> float:
        """From the first poll to the end of the last batch."""
        started_s = time.perf_counter()
        self.pipeline.run(stop=lambda: False, limit_events=self.pipeline.trainer.events + events)
        return self._last_step_s - started_s

    def _look_at_the_clock(self, _: Step) -> None:
        self._last_step_s = time.perf_counter()


def _intake_seconds(
    table: pa.Table, sink: EventSink, source: EventSource
) -> tuple[Seconds, EventBatch]:
    """Encode, produce, poll and decode all events; also what was decoded."""
    decoder = EventDecoder(SCHEMA, max_event_bytes=source.config.max_event_bytes)
    watch = Stopwatch()
    values = encode_json(table)
    watch.lap("encode JSON")
    for value in values:
        sink.send(value)
    sink.flush()
    watch.lap("produce to Kafka")
    polls: list[list[Record]] = []
    while sum(map(len, polls)) < len(values):
        polls.append(source.poll(0.1))
    watch.lap("poll")
    batches = [
        decoder.decode([record.value for record in records])[0] for records in polls if records
    ]
    watch.lap("decode")
    return watch.seconds, EventBatch.concat(batches)


def _step_seconds(pipeline: Pipeline, events: EventBatch) -> Seconds:
    """Times of `Trainer.step` and of a publication, stage by stage."""
    watch = Stopwatch()
    for batch in rebatch([events], pipeline.trainer.config.training.batch_events):
        step = pipeline.trainer.step(batch)
        watch.add(step.seconds)
        pipeline.publisher.publish_if_due(step.move, pipeline.trainer.status(), {})
        watch.lap("publish")
    return watch.seconds


def _reckon(
    seconds: dict[tuple[str, str], list[float]], events: int
) -> tuple[list[dict], list[dict]]:
    """Rows and claims from the seconds of each stage in each round."""
    us = {key: [1e6 * taken_s / events for taken_s in taken] for key, taken in seconds.items()}
    paths = {
        phase: [key for key in us if key[1] in ("", phase) and key[0] != "the loop"]
        for phase in PHASES
    }
    sums = {phase: sum(median(us[key]) for key in path) for phase, path in paths.items()}
    rows = []
    order = (*BEFORE, *INTAKE, *STEP, "the loop")
    for key in sorted(us, key=lambda key: (order.index(key[0]), key[1])):
        stage, phase = key
        taken = spread(us[key])
        shares = {
            f"share_{name}": taken.median / sums[name] if key in path else None
            for name, path in paths.items()
        }
        measures = {"us_per_event": taken.median, "low": taken.low, "high": taken.high}
        measures |= {"events_per_s": 1e6 / taken.median}
        rows.append({"stage": stage, "phase": phase} | measures | shares)
    learn = {phase: _sums([us[stage, phase] for stage in LEARN]) for phase in PHASES}
    inside = [key for key in paths["sparse"] if key[0] not in BEFORE]
    rounds = _sums([us[key] for key in inside])

    def share(stages: tuple[str, ...]) -> float:
        return sum(median(us[key]) for key in inside if key[0] in stages) / median(rounds)

    def ratio(first: list[float], second: list[float]) -> float:
        return median(a / b for a, b in zip(first, second, strict=True))

    return rows, [
        at_least(
            "a dense network takes this many times as long to learn as a sparse one",
            ratio(*learn.values()),
            1.5,
        ),
        at_most(
            "share of poll and decode in what a trainer does, sparse phase", share(INTAKE), 0.25
        ),
        at_most(
            "share of drift detection in what a trainer does, sparse phase", share(("watch",)), 0.1
        ),
        at_least(
            "share of the loop that the stages account for, sparse phase",
            ratio(rounds, us["the loop", "sparse"]),
            0.8,
        ),
    ]


def _sums(values: Sequence[Sequence[float]]) -> list[float]:
    """Round by round."""
    return [sum(of_round) for of_round in zip(*values, strict=True)]


if __name__ == "__main__":
    main("pipeline", measure)
