"""Offsets by time, of a real Kafka: nothing later than the time lies before them, whatever the
messages are stamped with, and gaps are told."""

import logging
import time
from contextlib import closing

import msgspec
import numpy as np
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from niwaki.model.features.schema import EventBatch
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.kafka.connection import KafkaConfig, ensure_topic
from niwaki.stream.kafka.sink import EventSink
from niwaki.stream.kafka.times import offsets_after
from tests.support.pipelines import json_messages
from tests.support.streams import SCHEMA, click_events
from tests.support.transactions import send as send_transaction
from tests.support.transactions import transactional

HOUR_S = 3600
NOW_S = float(int(time.time()) - 60)


@pytest.fixture
def topic(kafka_config):
    """A topic of two partitions."""
    kafka = kafka_config()
    ensure_topic(kafka, kafka.topic, partitions=2)
    return kafka


def events_at(times_s: list[float]) -> EventBatch:
    """Events at these times, seconds before now."""
    events = click_events(len(times_s))
    return EventBatch(
        events.labels_B, NOW_S - np.array(times_s), events.categorical, events.numerics_BN
    )


def send(kafka: KafkaConfig, partition: int, ages_s: list[float], early_s: float = 0) -> None:
    """Write events of these ages to a partition. `early_s`: messages are stamped so long before
    their event."""
    with closing(KafkaProducer(bootstrap_servers=kafka.bootstrap_servers)) as producer:
        for age_s, value in zip(ages_s, json_messages(events_at(ages_s)), strict=True):
            stamp_ms = int((NOW_S - age_s - early_s) * 1000)
            producer.send(kafka.topic, value, partition=partition, timestamp_ms=stamp_ms)


def found(kafka: KafkaConfig, age_s: float) -> dict[int, int]:
    """Offsets after a recording that ends at an age."""
    return offsets_after(kafka, SCHEMA, EventsConfig(), int((NOW_S - age_s) * 1e6))


def hours(first: float, last: float, count: int) -> list[float]:
    """Ages at equal intervals, seconds."""
    return (np.linspace(first, last, count) * HOUR_S).tolist()


@pytest.mark.usefixtures("needs_apache_kafka")
def test_each_partition_is_sought_for_itself_an_hour_before_the_end(topic):
    send(topic, 0, hours(10, 0.1, 100))
    send(topic, 1, hours(5, 0.1, 50))
    assert found(topic, 2 * HOUR_S) == {0: 70, 1: 20}


@pytest.mark.usefixtures("needs_apache_kafka")
@pytest.mark.parametrize("early_s", [10 * HOUR_S, 5 * 24 * HOUR_S])
def test_messages_that_are_stamped_long_before_their_events_are_sought_further_back(topic, early_s):
    ages_s = hours(60, 0.1, 600)
    send(topic, 0, ages_s, early_s)
    offset = found(topic, 2 * HOUR_S)[0]
    assert all(age_s >= 2 * HOUR_S for age_s in ages_s[:offset])
    assert (offset > 0) == (early_s < 24 * HOUR_S)


def test_an_empty_topic_is_read_from_its_beginning(topic, caplog):
    caplog.set_level(logging.INFO)
    assert found(topic, 0) == {0: 0, 1: 0}
    assert f"{topic.topic} is empty" in caplog.text


@pytest.mark.usefixtures("needs_apache_kafka")
def test_a_topic_that_ends_before_the_recording_does_is_read_from_its_end(topic, caplog):
    caplog.set_level(logging.INFO)
    send(topic, 0, hours(10, 5, 30))
    assert found(topic, 0) == {0: 30, 1: 0}
    assert "ends more than an hour before" in caplog.text


def test_a_topic_that_begins_after_the_recording_ends_is_a_gap_with_both_times(topic, caplog):
    send(topic, 0, hours(3, 0.1, 30))
    assert found(topic, 4 * HOUR_S) == {0: 0, 1: 0}
    ended, begins = (np.datetime64(int(NOW_S - h * HOUR_S), "s") for h in (4, 3))
    assert f"a gap: the recording ends at {ended}.000Z, and {topic.topic}[0]" in caplog.text
    assert f"begins at {begins}.000Z, offset 0; what lies between" in caplog.text


def test_a_partition_that_begins_later_than_others_is_no_gap(topic, caplog):
    send(topic, 0, hours(10, 0.1, 30))
    send(topic, 1, hours(1, 0.1, 30))
    found(topic, 4 * HOUR_S)
    assert "gap" not in caplog.text


@pytest.mark.usefixtures("needs_apache_kafka")
def test_messages_that_were_deleted_are_a_gap_of_their_partition(topic, caplog):
    send(topic, 0, hours(10, 0.1, 30))
    send(topic, 1, hours(10, 0.1, 100))
    with closing(KafkaAdminClient(bootstrap_servers=topic.bootstrap_servers)) as admin:
        admin.delete_records({TopicPartition(topic.topic, 1): 70})
    assert found(topic, 4 * HOUR_S)[1] == 70
    assert f"{topic.topic}[1] begins at" in caplog.text
    assert "offset 70: messages before were deleted" in caplog.text
    assert f"{topic.topic}[0] begins" not in caplog.text


def test_what_is_no_event_tells_no_time_and_is_passed(topic):
    with EventSink(topic) as sink:
        for at in range(300):
            sink.send(b"not json", None, str(at).encode())
    assert found(topic, 0) == {0: 0, 1: 0}


@pytest.mark.usefixtures("needs_apache_kafka")
def test_a_transaction_that_is_open_is_behind_the_offset(kafka_config):
    kafka = kafka_config()
    ensure_topic(kafka, kafka.topic)
    with transactional(kafka) as producer:
        send_transaction(producer, kafka, json_messages(events_at([9.0, 8.0])), commit=False)
        send_transaction(producer, kafka, json_messages(events_at([7.0, 6.0])))
        producer.begin_transaction()
        producer.send(kafka.topic, json_messages(events_at([5.0]))[0])
        producer.flush()
        assert offsets_after(kafka, SCHEMA, EventsConfig(), int((NOW_S + 1e5) * 1e6))[0] <= 6
        producer.abort_transaction()


def test_a_trainer_finds_the_offsets_of_its_own_partitions(topic):
    send(topic, 1, hours(10, 0.1, 30))
    second = msgspec.structs.replace(topic, rank=1, world_size=2)
    assert found(second, 0).keys() == {1}
