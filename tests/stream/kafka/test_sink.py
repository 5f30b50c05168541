"""Writing to a real Kafka broker: what is written arrives, and what cannot be learned becomes a
dead letter with its reason."""

import os
import time
from contextlib import closing

import pytest
from kafka import KafkaConsumer, TopicPartition

from niwaki.stream.errors import BrokerError
from niwaki.stream.kafka.source import (
    DeadLetters,
    EventSink,
    EventSource,
    KafkaConfig,
    Record,
    ensure_topic,
)
from tests.support.topics import numbers, read


def letters(config: KafkaConfig, count: int) -> list[tuple[bytes, dict[str, str]]]:
    """(value, headers) of dead letters, read with the client alone."""
    at = TopicPartition(config.dead_letters, 0)
    with closing(
        KafkaConsumer(bootstrap_servers=config.bootstrap_servers, auto_offset_reset="earliest")
    ) as consumer:
        consumer.assign([at])
        found: list[tuple[bytes, dict[str, str]]] = []
        deadline_s = time.monotonic() + 30
        while len(found) < count and time.monotonic() < deadline_s:
            for record in consumer.poll(200).get(at, []):
                found.append((record.value, {name: text.decode() for name, text in record.headers}))
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
    assert records[7] == Record(config.topic, 0, 7, now_ms + 7, b"key7", b"7")


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
            dead_letters.send(records[reject.position], reject.reason)
        dead_letters.flush()
    assert [records[index].value for index in index_B] == good
    assert batch.times_s_B.tolist() == [number / 1000 for number in range(len(good))]
    assert [reject.kind for reject in rejects] == [rule.strip() for rule in BAD_MESSAGES]
    found = letters(config, len(BAD_MESSAGES))
    assert [value for value, _ in found] == list(BAD_MESSAGES.values())
    for at, (reject, (_, headers)) in enumerate(zip(rejects, found, strict=True)):
        place = {"topic": config.topic, "partition": "0", "offset": str(2 * at + 1)}
        assert headers == {"reason": reject.reason} | place


@pytest.mark.usefixtures("needs_apache_kafka")
@pytest.mark.parametrize(("limit_bytes", "kept_bytes"), [(200_000, 100_000), (50_000, 0)])
def test_a_letter_too_large_for_its_topic_is_cut_and_says_how_long_it_was(
    kafka_config, limit_bytes, kept_bytes
):
    config = kafka_config()
    ensure_topic(config, config.dead_letters, max_message_bytes=limit_bytes)
    value = os.urandom(2_000_000)
    with DeadLetters(config) as dead_letters:
        dead_letters.send(Record(config.topic, 3, 14, -1, None, b"before"), "one")
        dead_letters.send(Record(config.topic, 3, 15, -1, None, value), "two")
        dead_letters.send(Record(config.topic, 3, 16, -1, None, None), "three")
    found = {
        headers["offset"]: (kept, headers.get("value_bytes"))
        for kept, headers in letters(config, 3)
    }
    assert found == {
        "14": (b"before", None),
        "15": (value[:kept_bytes], "2000000"),
        "16": (b"", None),
    }


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
