"""The loop over a real Kafka and a real Redis: every event changes the model exactly once, whatever
breaks."""

import json
import os
import signal
from contextlib import closing

import msgspec
import pyarrow as pa
import pytest

from niwaki.pruning.errors import NiwakiError
from niwaki.serving.store import StoreConfig
from niwaki.stream.errors import BrokerError, ConfigError
from niwaki.stream.events.encoders import encode_arrow
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.kafka.sink import Outbox
from niwaki.stream.kafka.source import EventSource
from niwaki.stream.recordings.writing import batch_to_table
from niwaki.stream.training.observers import StepCallback
from niwaki.stream.training.stopwatch import STAGES
from tests.support.pipelines import (
    Running,
    assert_same,
    json_messages,
    never,
    produce,
    uninterrupted,
)
from tests.support.streams import SCHEMA, click_events
from tests.support.transactions import send, transactional


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


@pytest.mark.usefixtures("needs_apache_kafka")
@pytest.mark.parametrize("reader", ["inline", "process"])
def test_of_a_transactional_topic_each_committed_event_is_learned_once_across_restarts(
    setting, reader
):
    setting = reading(setting, reader)
    events, others = click_events(1280), json_messages(click_events(300, seed=1))
    with transactional(setting[0]) as producer:
        for start in range(0, 1280, 160):
            send(producer, setting[0], json_messages(events.slice(start, start + 160)))
            send(producer, setting[0], others, commit=False)
    for limit in (192, 832, 1280):
        with Running(*setting) as running:
            running.pipeline.run(never, limit_events=limit)
            assert running.trainer.events == limit
    assert_same(running.trainer, uninterrupted(events))
    with Running(*setting) as again:
        again.pipeline.run(lambda: again.pipeline.batcher.lag() == {0: 0})
        lag_events = again.telemetry.registry.get_sample_value
        assert again.trainer.events == 1280
        assert lag_events("niwaki_lag_events", {"partition": "0"}) == 0


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
        json.dumps(row | {"age": float("inf")}).encode(): "age",
        json.dumps(row | {"user": [1.5]}).encode(): "user",
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
    notes = "__niwaki.errors."
    offsets = [int(headers[f"{notes}offset"]) for headers, _ in letters]
    assert offsets == list(range(100, 100 + len(poison)))
    for (headers, value), (sent, word) in zip(letters, poison.items(), strict=True):
        assert headers[f"{notes}topic"] == kafka.topic and headers[f"{notes}partition"] == "0"
        assert word in headers[f"{notes}message"].lower()
        assert value == sent
    with Running(*setting) as again:  # what was dead-lettered is not read again
        assert again.pipeline.batcher.receive() is None
    assert len(dead_letters(kafka, len(poison))) == len(poison)


@pytest.mark.parametrize("reader", ["inline", "process"])
def test_dead_letters_are_not_repeated_by_clean_restarts_though_nothing_was_learned(
    setting, reader
):
    setting = reading(setting, reader)
    produce(setting[0], [b"not json"] * 200)
    for _ in range(4):
        with Running(*setting) as running:
            batcher = running.pipeline.batcher
            running.pipeline.run(lambda: batcher.lag() == {0: 0})  # noqa: B023
    assert letter_offsets(setting[0]) == list(range(200))


def test_each_wrong_message_among_events_becomes_one_dead_letter_across_clean_restarts(setting):
    events, messages, wrong = click_events(1920), [], []
    sent = json_messages(events)
    for start in range(0, 1920, 40):
        rows = batch_to_table(events.slice(start, start + 20), SCHEMA).to_pylist()
        rows.insert(11, rows[0] | {"label": 7.0})  # rejected in the middle of its message
        wrong += [len(messages), len(messages) + 11]
        messages += encode_arrow(pa.Table.from_pylist(rows), len(rows))
        messages += [*sent[start + 20 : start + 30], b"not json", *sent[start + 30 : start + 40]]
    produce(setting[0], messages)
    for limit in (1, 64, 333, 1111, 1920):
        with Running(*setting) as running:
            trainer, batcher = running.trainer, running.pipeline.batcher
            running.pipeline.run(lambda: trainer.events >= limit)  # noqa: B023
        assert letter_offsets(setting[0]) == [
            at for at in wrong if at < batcher.positions.offsets[0]
        ]
    assert_same(trainer, uninterrupted(events))
    assert letter_offsets(setting[0]) == wrong


def letter_offsets(kafka: KafkaConfig) -> list[int]:
    """Offsets of the messages whose dead letters are in the topic for them now."""
    with EventSource(msgspec.structs.replace(kafka, topic=kafka.dead_letters)) as source:
        letters = []
        while source.lag() != {0: 0}:
            letters += source.poll(0.1)
    return [int(dict(letter.headers)["__niwaki.errors.offset"]) for letter in letters]


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
        assert not list(directory.glob("*.niwaki"))
        away.clear()
        running.pipeline.run(never, limit_events=129)
        assert list(directory.glob("*.niwaki"))
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


def test_a_snapshot_of_another_label_or_a_damaged_one_is_refused_rather_than_ignored(setting):
    kafka, store, directory = setting
    produce(kafka, json_messages(click_events(128)))
    with Running(*setting) as running:
        running.pipeline.run(never, limit_events=128)
    (path,) = directory.glob("*.niwaki")
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ConfigError, match="can't be read .*sha256"), Running(*setting):
        pass
    path.write_bytes(data)
    other = msgspec.structs.replace(SCHEMA, label="bought")
    with pytest.raises(ConfigError, match="schema.label: differs"), Running(*setting, schema=other):
        pass
