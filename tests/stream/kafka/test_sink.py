"""Writing to a real Kafka broker: what is written arrives, and what cannot be learned becomes a
dead letter with its reason."""

import os
import time
from contextlib import closing
from typing import NamedTuple

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from niwaki.stream.errors import BrokerError
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka.sink import NOTES
from niwaki.stream.kafka.source import (
    DeadLetters,
    EventSink,
    EventSource,
    KafkaConfig,
    Record,
    ensure_topic,
)
from tests.support.topics import numbers, read


class Letter(NamedTuple):
    """A dead letter as it lies in its topic."""

    value: bytes | None
    notes: dict[str, str]
    """Our own headers, without their prefix."""
    key: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


def letters(config: KafkaConfig, count: int) -> list[Letter]:
    """Dead letters, read with the client alone."""
    at = TopicPartition(config.dead_letters, 0)
    with closing(
        KafkaConsumer(bootstrap_servers=config.bootstrap_servers, auto_offset_reset="earliest")
    ) as consumer:
        consumer.assign([at])
        found: list[Letter] = []
        deadline_s = time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline_s:
            for record in consumer.poll(200).get(at, []):
                notes = {
                    name.removeprefix(NOTES): note.decode()
                    for name, note in record.headers
                    if name.startswith(NOTES)
                }
                own = [header for header in record.headers if not header[0].startswith(NOTES)]
                found.append(Letter(record.value, notes, record.key, own, record.timestamp))
    return found


def test_what_is_written_is_read_back_in_order_with_key_and_time(kafka_config):
    config = kafka_config()
    ensure_topic(config, config.topic)
    now_ms = int(time.time() * 1000)
    with EventSink(config) as sink:
        for number in range(1000):
            sink.send(b"%d" % number, now_ms + number, b"key%d" % number)
    with EventSource(config) as source:
        records = read(source, 1000)
    assert numbers(records) == list(range(1000))
    assert [record.offset for record in records] == list(range(1000))
    assert records[7] == Record(config.topic, 0, 7, now_ms + 7, b"key7", b"7", [])


BAD_MESSAGES = {
    "json": b"not JSON",
    "label": b'{"ts":1,"n":1}',
    "numeric": b'{"label":1,"ts":1,"n":1e999}',
    "column": b'{"label":1,"ts":1,"n":1,"surprise":1}',
    "label ": b'{"label":NaN,"ts":1,"n":1}',
    "size": b'{"label":1,"ts":1,"n":1,"c":"' + os.urandom(1_000_000).hex().encode() + b'"}',
}


def test_bad_events_are_dead_lettered_with_reason_and_place_and_the_others_are_learned(
    kafka_config,
):
    from niwaki.model.features.schema import Schema
    from niwaki.stream.events.decoder import EventDecoder

    config = kafka_config()
    ensure_topic(config, config.topic)
    good = [b'{"label":1,"ts":%d,"n":1}' % number for number in range(len(BAD_MESSAGES) + 1)]
    with EventSink(config) as sink:
        for value, bad in zip(good, [*BAD_MESSAGES.values(), None], strict=True):
            sink.send(value)
            if bad:
                sink.send(bad, key=b"key")
    decoder = EventDecoder(
        Schema(categorical=("c",), numeric=("n",)), max_event_bytes=config.max_event_bytes
    )
    with EventSource(config) as source, DeadLetters(config) as dead_letters:
        records = read(source, len(good) + len(BAD_MESSAGES))
        batch, index_B, rejects = decoder.decode([record.value for record in records])[:3]
        for reject in rejects:
            dead_letters.send(records[reject.position], reject)
        dead_letters.flush()
    assert [records[index].value for index in index_B] == good
    assert batch.times_s_B.tolist() == [number / 1000 for number in range(len(good))]
    assert [reject.kind for reject in rejects] == [rule.strip() for rule in BAD_MESSAGES]
    found = letters(config, len(BAD_MESSAGES))
    assert [letter.value for letter in found] == list(BAD_MESSAGES.values())
    for at, (reject, letter) in enumerate(zip(rejects, found, strict=True)):
        place = {"topic": config.topic, "partition": "0", "offset": str(2 * at + 1)}
        what = {"message": reject.reason, "rule": reject.kind, "field": reject.field}
        assert letter.notes == what | place
        record = records[2 * at + 1]
        assert (letter.key, letter.timestamp_ms) == (b"key", record.timestamp_ms)


def test_a_dead_letter_has_key_headers_time_and_absent_value_of_the_original(kafka_config):
    config = kafka_config()
    ensure_topic(config, config.topic)
    then_ms = 1_600_000_000_000
    headers = [("trace", b"\xff\x00"), ("trace", b""), ("__connect.source", b"orders")]
    messages: list[tuple[bytes | None, bytes | None]] = [
        (b"nonsense", None),
        (b"nonsense", b""),
        (b"", b"key"),
        (None, b"key"),
    ]
    with closing(KafkaProducer(bootstrap_servers=config.bootstrap_servers)) as producer:
        for value, key in messages:
            producer.send(
                config.topic, value, key, headers=headers, partition=0, timestamp_ms=then_ms
            )
    keyless = Record(config.topic, 0, 4, -1, None, None, [("none", None)])
    with EventSource(config) as source, DeadLetters(config) as dead_letters:
        for record in [*read(source, len(messages)), keyless]:
            dead_letters.send(record, Reject(0, "json", "value", "must be JSON"))
    *found, last = letters(config, len(messages) + 1)
    assert [(letter.value, letter.key) for letter in found] == messages
    assert all(letter.headers == headers for letter in found)
    assert all(letter.timestamp_ms == then_ms for letter in found)
    assert (last.value, last.key, last.headers) == (None, None, [("none", b"")])
    assert last.timestamp_ms > then_ms


@pytest.mark.usefixtures("needs_apache_kafka")
@pytest.mark.parametrize(("limit_bytes", "kept_bytes"), [(200_000, 100_000), (50_000, 0)])
def test_a_letter_too_large_for_its_topic_is_cut_and_says_how_long_it_was(
    kafka_config, limit_bytes, kept_bytes
):
    config = kafka_config()
    ensure_topic(config, config.dead_letters, max_message_bytes=limit_bytes)
    value = os.urandom(2_000_000)
    with DeadLetters(config) as dead_letters:
        for offset, sent in ((14, b"before"), (15, value), (16, None)):
            record = Record(config.topic, 3, offset, -1, b"key", sent, [("trace", b"1")])
            dead_letters.send(record, Reject(0, "json", "value", "must be JSON"))
    found = {
        letter.notes["offset"]: (letter.value, letter.notes.get("value_bytes"), letter.key)
        for letter in letters(config, 3)
    }
    assert found == {
        "14": (b"before", None, b"key"),
        "15": (value[:kept_bytes], "2000000", b"key" if kept_bytes else None),
        "16": (None, None, b"key"),
    }


@pytest.mark.usefixtures("needs_apache_kafka")
def test_a_letter_whose_time_its_topic_refuses_is_kept_with_the_present_time(kafka_config):
    config = kafka_config()
    ensure_topic(config, config.dead_letters)
    limit = ConfigResource(
        ConfigResourceType.TOPIC, config.dead_letters, {"message.timestamp.before.max.ms": "60000"}
    )
    with closing(KafkaAdminClient(bootstrap_servers=config.bootstrap_servers)) as admin:
        admin.alter_configs([limit])
    with DeadLetters(config) as dead_letters:
        for offset, then_ms in enumerate((-1, 1_600_000_000_000, -1, 0, 1)):
            record = Record(config.topic, 0, offset, then_ms, None, b"x")
            dead_letters.send(record, Reject(0, "json", "value", "must be JSON"))
        dead_letters.flush()
    found = letters(config, 5)
    assert sorted(letter.notes["offset"] for letter in found) == ["0", "1", "2", "3", "4"]
    assert min(letter.timestamp_ms for letter in found) > 1_700_000_000_000


@pytest.mark.usefixtures("needs_apache_kafka")
def test_a_message_that_the_broker_refuses_is_an_error_of_the_sink(kafka_config):
    config = kafka_config()
    ensure_topic(config, config.topic, max_message_bytes=100_000)
    sink = EventSink(config)
    sink.send(os.urandom(200_000))
    with pytest.raises(BrokerError, match=f"{config.topic}: .*MessageSizeTooLarge"):
        sink.close()
    with pytest.raises(BrokerError):
        sink.send(b"more")


def test_a_sink_holds_its_caller_back_and_loses_nothing(kafka_config):
    config = kafka_config()
    ensure_topic(config, config.topic)
    with EventSink(config, max_waiting_bytes=100_000) as sink:
        for number in range(2000):
            sink.send(b"%d" % number)
            assert sink._waiting_bytes <= 100_000
    with EventSource(config) as source:
        assert numbers(read(source, 2000)) == list(range(2000))


def test_a_topic_is_made_once_and_takes_large_messages(kafka_config):
    config = kafka_config()
    ensure_topic(config, config.topic, 3)
    ensure_topic(config, config.topic, 5)
    with EventSink(config) as sink:
        sink.send(os.urandom(4_000_000))
    with EventSource(config) as source:
        assert source.partitions == (0, 1, 2)
        assert len(read(source, 1)[0].value) == 4_000_000
