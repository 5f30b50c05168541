"""The loop over a real Kafka and a real Redis: every event changes the model exactly once, whatever
breaks."""

import json
import os
import signal
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from niwaki.model.features.schema import EventBatch
from niwaki.pruning.config import PruningConfig
from niwaki.pruning.errors import NiwakiError
from niwaki.serving.scorer import Scorer
from niwaki.serving.store import CheckpointStore, StoreConfig
from niwaki.stream.app import new_reader
from niwaki.stream.drift.monitor import DetectorConfig, DriftConfig
from niwaki.stream.errors import BrokerError, ConfigError
from niwaki.stream.events import encode_arrow, encode_json
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.kafka.sink import DeadLetters, EventSink, Outbox
from niwaki.stream.recordings.recording import batch_to_table
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.pipeline import Pipeline
from niwaki.stream.training.served_replica import ServedReplica
from niwaki.stream.training.snapshot import SnapshotConfig
from niwaki.stream.training.stopwatch import STAGES
from niwaki.stream.training.telemetry import Telemetry
from niwaki.stream.training.trainer import Trainer, TrainerConfig, TrainingConfig
from tests.support.streams import SCHEMA, SMALL, click_events, differing

NEVER_S = 1e9
PRUNING = PruningConfig(warmup_events=1024, regrowth_events=512, pruning_events=512, budget=0.2)
ADWIN = DetectorConfig(detector="ADWIN", signal="log_loss", parameters={"delta": 1e-3})
DRIFT = DriftConfig(detectors=(ADWIN,), quiet_events=256)


def new_trainer(max_batch_age_s: float = NEVER_S) -> Trainer:
    training = TrainingConfig(
        batch_events=64,
        window_events=512,
        publish_every_events=256,
        max_batch_age_s=max_batch_age_s,
    )
    return Trainer(
        TrainerConfig(schema=SCHEMA, model=SMALL, pruning=PRUNING, drift=DRIFT, training=training)
    )


def uninterrupted(
    events: EventBatch, replica: ServedReplica | None = None
) -> dict[str, torch.Tensor]:
    """What a trainer that got all events at once has become. If `replica` is given, it must be
    as this trainer's, published as often, has become."""
    trainer = new_trainer()
    followed = trainer.add_replica(trainer.config.training.publish_every_events)
    for start in range(0, len(events), 64):
        if followed.due(trainer.step(events.slice(start, start + 64)).move):
            followed.refresh()
    if replica:
        followed.refresh()  # the last one, at the end
        first, second = followed.state(), replica.state()
        assert len(first) > 5 and all(
            np.array_equal(first[name], second[name], equal_nan=True) for name in first
        )
    return trainer.state()[1]


def assert_same(trainer: Trainer, tensors: dict[str, torch.Tensor]) -> None:
    assert differing(trainer.state()[1], tensors) == []


def json_messages(events: EventBatch) -> list[bytes]:
    return encode_json(batch_to_table(events, SCHEMA))


class Running:
    """The parts of one trainer over the session's servers; each instance is a process that may
    die."""

    def __init__(self, kafka: KafkaConfig, store: StoreConfig, directory: Path, **options):
        self.reader, self.dead_letters = new_reader(kafka, SCHEMA), DeadLetters(kafka)
        self.store, self.telemetry = CheckpointStore(store), Telemetry()
        self.pipeline = Pipeline(
            reader=self.reader,
            dead_letters=self.dead_letters,
            trainer=new_trainer(options.pop("max_batch_age_s", NEVER_S)),
            store=self.store,
            telemetry=self.telemetry,
            snapshot=SnapshotConfig(directory=str(directory), every_s=NEVER_S),
            **options,
        )
        self.trainer = self.pipeline.trainer

    def __enter__(self) -> "Running":
        try:
            self.pipeline.resume()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.pipeline.publisher.close()
        self.reader.close()
        self.dead_letters.close()
        self.store.close()


@pytest.fixture
def setting(kafka_config, redis_url, key_prefix, tmp_path):
    """(Kafka, Redis, folder) of one trainer, with its topics. It reads inline, which starts
    faster."""
    kafka = kafka_config(reader="inline")
    ensure_topic(kafka, kafka.topic)
    ensure_topic(kafka, kafka.dead_letters)
    return kafka, StoreConfig(url=redis_url, name=key_prefix()), tmp_path


def produce(kafka: KafkaConfig, values: list[bytes]) -> None:
    with EventSink(kafka) as sink:
        for value in values:
            sink.send(value)


def never() -> bool:
    return False


def test_what_comes_through_kafka_is_learned_as_if_it_had_been_handed_over(setting):
    events = click_events(3000)
    produce(setting[0], json_messages(events))
    with Running(*setting) as running:
        running.pipeline.run(never, limit_events=3000)
        assert_same(running.trainer, uninterrupted(events))


def test_json_and_arrow_messages_mixed_are_learned_in_their_order(setting):
    events = click_events(2000)
    table = batch_to_table(events, SCHEMA)
    values = (
        json_messages(events.slice(0, 700))
        + encode_arrow(table.slice(700, 1000), 333)
        + json_messages(events.slice(1700, 2000))
    )
    produce(setting[0], values)
    with Running(*setting) as running:
        running.pipeline.run(never, limit_events=2000)
        assert_same(running.trainer, uninterrupted(events))


class Crash(BaseException):
    """Ends a run the hard way: nothing is saved after it."""


def reading(setting, reader: str):
    """The same setting with another reader."""
    return msgspec.structs.replace(setting[0], reader=reader), *setting[1:]


@pytest.mark.parametrize(
    ("arrow", "reader"), [(False, "inline"), (False, "process"), (True, "process")]
)
def test_a_trainer_that_dies_and_comes_back_ends_where_one_that_lived_does(setting, arrow, reader):
    setting = reading(setting, reader)
    events = click_events(4000)
    produce(
        setting[0],
        encode_arrow(batch_to_table(events, SCHEMA), 150) if arrow else json_messages(events),
    )
    with Running(
        *setting
    ) as first:  # ends in the middle of an Arrow message: 1,000 is no multiple of 150
        first.pipeline.run(never, limit_events=1024)

    def die(step):
        if second.trainer.events >= 2048:
            raise Crash

    with Running(*setting, observers=[StepCallback(die)]) as second:
        assert second.trainer.events == 1024
        with pytest.raises(Crash):
            second.pipeline.run(never)
    with Running(*setting) as third:
        assert third.trainer.events < 2048
        third.pipeline.run(never, limit_events=4000)
        assert_same(third.trainer, uninterrupted(events, third.pipeline.replica))
        assert third.pipeline.version > second.pipeline.version


def test_events_of_several_partitions_are_each_learned_once_across_restarts(
    kafka_config, redis_url, key_prefix, tmp_path
):
    kafka = kafka_config(reader="inline")
    ensure_topic(kafka, kafka.topic, partitions=3)
    ensure_topic(kafka, kafka.dead_letters)
    produce(kafka, json_messages(click_events(3000)))
    setting = (kafka, StoreConfig(url=redis_url, name=key_prefix()), tmp_path)
    labels = 0.0
    for limit in (500, 1700, 3000):
        with Running(*setting) as running:
            running.pipeline.run(never, limit_events=limit)
            labels = running.trainer.prequential.total.label_sum
            events = running.trainer.events
    assert events == 3000
    assert labels == click_events(3000).labels_B.sum()


@pytest.mark.parametrize("reader", ["inline", "process"])
def test_what_cannot_be_learned_is_dead_lettered_with_its_place_and_the_rest_is_learned(
    setting, reader
):
    setting = reading(setting, reader)
    kafka, store, directory = setting
    good = json_messages(click_events(640))
    row = json.loads(good[0])
    poison = {
        b"not json": "json",
        json.dumps({k: v for k, v in row.items() if k != "label"}).encode(): "label",
        json.dumps(row | {"age": "old"}).encode(): "age",
        json.dumps(row | {"user": 1.5}).encode(): "user",
        json.dumps(row | {"colour": "red"}).encode(): "colour",
        json.dumps(row | {"label": float("nan")}).encode(): "label",
        json.dumps(row | {"\ud83d": 1}).encode(): "column",
        json.dumps(row | {"user": "x" * 2_000_000}).encode(): "bytes",
    }
    produce(kafka, [*good[:100], *poison, *good[100:]])
    with Running(*setting) as running:
        running.pipeline.run(never, limit_events=640 + len(poison))
        assert_same(running.trainer, uninterrupted(click_events(640)))
        counted = running.telemetry.registry.get_sample_value
        assert counted("niwaki_events_total", {"outcome": "rejected"}) == len(poison)
        assert counted("niwaki_events_total", {"outcome": "learned"}) == 640
        assert counted("niwaki_polled_messages_total") == 640 + len(poison)
        assert counted("niwaki_lag_events", {"partition": "0"}) == 0
        assert all(
            counted("niwaki_stage_seconds_total", {"stage": stage}) > 0
            for stage in STAGES
            if stage != "save"
        )
    letters = dead_letters(kafka, len(poison))
    assert [int(headers["offset"]) for headers, _ in letters] == list(range(100, 100 + len(poison)))
    for (headers, value), (sent, word) in zip(letters, poison.items(), strict=True):
        assert headers["topic"] == kafka.topic and headers["partition"] == "0"
        assert word in headers["reason"].lower()
        assert value == sent
    with Running(*setting) as again:  # what was dead-lettered is not read again
        assert again.pipeline.batcher.receive() is None
    assert len(dead_letters(kafka, len(poison))) == len(poison)


def dead_letters(kafka: KafkaConfig, count: int) -> list[tuple[dict[str, str], bytes]]:
    return read(kafka, kafka.dead_letters, count)


def read(kafka: KafkaConfig, topic: str, count: int) -> list[tuple[dict[str, str], bytes]]:
    """Headers and values of the first `count` messages, at least."""
    from kafka import KafkaConsumer, TopicPartition

    consumer = KafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, max_partition_fetch_bytes=16 * 2**20
    )
    try:
        at = TopicPartition(topic, 0)
        consumer.assign([at])
        consumer.seek_to_beginning(at)
        letters = []
        while len(letters) < count:
            for records in consumer.poll(timeout_ms=1000).values():
                letters += [
                    ({k: v.decode() for k, v in record.headers}, record.value) for record in records
                ]
        return letters
    finally:
        consumer.close()


def test_each_drift_is_told_in_a_topic_of_its_own_as_the_report_has_it(setting):
    kafka, *_ = setting
    outbox = Outbox(kafka, f"{kafka.topic}.drifts")
    produce(
        kafka,
        json_messages(click_events(3000)) + json_messages(click_events(2000, seed=1, flipped=True)),
    )
    rows = []
    with (
        closing(outbox),
        Running(
            *setting, drifts=outbox, observers=[StepCallback(lambda step: rows.extend(step.drifts))]
        ) as running,
    ):
        running.pipeline.run(never, limit_events=5000)
        shown = running.telemetry.registry.get_sample_value
        labels = {"detector": "ADWIN", "signal": "log_loss"}
        assert shown("niwaki_drift_mean", labels | {"side": "after"}) == rows[-1].after
        assert 0 < shown("niwaki_watched_events", labels) < 5000
    told = [json.loads(value) for _, value in read(kafka, outbox.topic, len(rows))]
    assert told == [row._asdict() for row in rows] != []
    assert 3000 <= told[0]["event"] < 3500


def test_while_dead_letters_cannot_be_delivered_no_snapshot_says_that_they_were_read(setting):
    kafka, store, directory = setting
    produce(kafka, [b"not json", *json_messages(click_events(128))])
    with Running(*setting) as running:
        flush, away = running.dead_letters.flush, [True]

        def flush_or_fail():
            if away:
                raise BrokerError("away")
            flush()

        running.dead_letters.flush = flush_or_fail
        running.pipeline.run(never, limit_events=129)
        assert not (directory / "snapshot.niwaki").exists()
        away.clear()
        running.pipeline.run(never, limit_events=129)
        assert (directory / "snapshot.niwaki").exists()
    assert len(dead_letters(kafka, 1)) == 1


@pytest.mark.parametrize("reader", ["inline", "process"])
def test_a_quiet_topic_is_learned_from_without_waiting_for_a_full_batch(setting, reader):
    setting = reading(setting, reader)
    produce(setting[0], json_messages(click_events(10)))
    with Running(*setting, max_batch_age_s=0.05) as running:
        running.pipeline.run(lambda: running.trainer.events == 10)
        assert running.trainer.events == 10


def test_a_trainer_whose_reader_dies_says_so_and_the_next_one_goes_on_from_its_snapshot(setting):
    setting = reading(setting, "process")
    events = click_events(2048)
    produce(setting[0], json_messages(events))
    with Running(*setting) as first:
        first.pipeline.run(never, limit_events=1024)
        os.kill(first.reader.pid, signal.SIGKILL)
        with pytest.raises(
            NiwakiError, match="the process that reads events-.* was ended by SIGKILL"
        ):
            first.pipeline.run(never)
    with Running(*setting) as second:
        assert 1024 <= second.trainer.events <= first.trainer.events
        second.pipeline.run(never, limit_events=2048)
        assert_same(second.trainer, uninterrupted(events))


def test_the_scorer_follows_and_predicts_what_the_sparse_branch_does_at_that_version(setting):
    kafka, store, _ = setting
    events, scored = click_events(8000), click_events(500, seed=3)
    produce(
        kafka,
        json_messages(events.slice(0, 4000))
        + json_messages(click_events(4000, seed=1, flipped=True)),
    )
    with Scorer.from_redis(store.url, store.name) as scorer, Running(*setting) as running:
        learner, checked = running.trainer.learner, []
        publisher = running.pipeline.publisher
        publish = publisher.publish

        def publish_and_compare(status, offsets):
            publish(status, offsets)
            publisher.settle()
            assert scorer.wait(publisher.version, 30)
            weights = running.pipeline.replica.mixture.weights
            logits = torch.from_numpy(learner.predict(learner.encoder.encode(scored), weights))
            checked.append(
                float(np.abs(scorer.score_batch(scored) - logits.sigmoid().numpy()).max())
            )

        publisher.publish = publish_and_compare
        running.pipeline.run(never, limit_events=8000)
        header = scorer.model.header
        assert running.trainer.policy.state.cycle >= 2, "no newly pruned network after the drift"
    assert max(checked) <= 1e-6 and len(checked) > 20
    assert header.multiply_adds <= PRUNING.budget * header.dense_multiply_adds
    assert header.events == 8000 and header.offsets == {"0": 8000}


def test_a_published_network_is_as_small_as_it_says(setting):
    from niwaki.model.published.checkpoint import unpack

    kafka, store, _ = setting
    produce(kafka, json_messages(click_events(2048)))
    with Running(*setting) as running:
        running.pipeline.run(never, limit_events=2048)
        header, tensors = unpack(running.store.fetch())
    matrices = {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith("network.") and tensor.dim() == 2
    }
    assert header.phase == "sparse"
    assert (
        sum(tensor.numel() for tensor in matrices.values())
        <= header.multiply_adds
        <= PRUNING.budget * header.dense_multiply_adds
    )


def test_while_redis_is_away_learning_goes_on_and_the_next_version_is_published_later(setting):
    from niwaki.serving.errors import StoreUnavailable

    produce(setting[0], json_messages(click_events(2048)))
    with Running(*setting) as running:
        publish, attempts = running.store.publish, []

        def away_at_first(header, data):
            attempts.append(header.version)
            if len(attempts) < 2:
                raise StoreUnavailable("away")
            return publish(header, data)

        running.store.publish = away_at_first
        running.pipeline.run(never, limit_events=2048)
        assert running.trainer.events == 2048
        assert attempts[0] == attempts[1] == 1
        assert running.store.head().version == running.pipeline.version >= 1
        assert running.telemetry.registry.get_sample_value("niwaki_publication_failures_total") == 1


@pytest.mark.parametrize("fails", [1, 3, 4])
def test_what_was_on_its_way_when_redis_went_away_is_in_the_next_version(setting, fails):
    """Redis goes away after the loop has gone on: the scorer ends where the trainer does all the
    same."""
    from niwaki.serving.errors import StoreUnavailable

    produce(setting[0], json_messages(click_events(3000)))
    scored = click_events(200, seed=3)
    with Scorer.from_redis(setting[1].url, setting[1].name) as scorer, Running(*setting) as running:
        publisher, publish, kinds = running.pipeline.publisher, running.store.publish, []

        def sometimes_away(header, data):
            kinds.append("full" if not header.base else "delta")
            if len(kinds) == fails:
                raise StoreUnavailable("away")
            return publish(header, data)

        running.store.publish = sometimes_away
        publisher._retry_s = 0.0
        running.pipeline.run(never, limit_events=3000)
        assert scorer.wait(publisher.version, 30)
        learner, weights = running.trainer.learner, publisher.replica.mixture.weights
        logits = torch.from_numpy(learner.predict(learner.encoder.encode(scored), weights))
        assert np.abs(scorer.score_batch(scored) - logits.sigmoid().numpy()).max() <= 1e-6
        served = publisher.replica.served
        assert scorer.score_batch(scored).tolist() == served.predict(scored).tolist()
    assert kinds[fails] == "full" and "delta" in kinds[fails + 1 :]


def test_a_snapshot_of_another_schema_or_a_damaged_one_is_refused_rather_than_ignored(setting):
    kafka, store, directory = setting
    produce(kafka, json_messages(click_events(128)))
    with Running(*setting) as running:
        running.pipeline.run(never, limit_events=128)
    path = directory / "snapshot.niwaki"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ConfigError, match="can't be read.*sha256"), Running(*setting):
        pass
    path.write_bytes(data)
    other = Running(*setting)
    other.trainer.learner.schema = msgspec.structs.replace(SCHEMA, ignore=("x",))
    with pytest.raises(ConfigError, match="schema: differs"), other:
        pass
