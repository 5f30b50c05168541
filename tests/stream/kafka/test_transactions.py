"""Topics that transactional producers write, as Flink and Kafka Streams do: what is read of them,
and where they end. Against a real Apache Kafka."""

import pytest

from niwaki.model.features.schema import Schema
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.rejects import Tally
from niwaki.stream.kafka.connection import ensure_topic
from niwaki.stream.kafka.reader import Reader
from niwaki.stream.kafka.sink import EventSink
from niwaki.stream.kafka.source import EventSource, KafkaConfig
from niwaki.stream.recordings.replay import record
from tests.support.topics import numbers, read
from tests.support.transactions import send, transactional

pytestmark = pytest.mark.usefixtures("needs_apache_kafka")

SCHEMA = Schema(timestamp=None, numeric=("n",))


@pytest.fixture
def config(kafka_config) -> KafkaConfig:
    config = kafka_config()
    ensure_topic(config, config.topic)
    return config


def event(number: int) -> bytes:
    return b'{"label":1,"n":%d}' % number


def test_events_of_aborted_transactions_are_not_read_and_nothing_seems_to_be_left(config):
    with transactional(config) as producer:
        send(producer, config, [b"0", b"1"])
        send(producer, config, [b"2", b"3", b"4"], commit=False)
        send(producer, config, [b"5"])
        send(producer, config, [b"6"], commit=False)
    with EventSource(config) as source:
        records = read(source, 3)
        while source.lag() != {0: 0}:
            assert source.poll(0.1) == []
        assert source.positions == {0: 11}  # seven messages, four markers
    assert [(r.offset, r.value) for r in records] == [(0, b"0"), (1, b"1"), (7, b"5")]


def test_a_reader_of_everything_is_given_the_aborted_ones_too(kafka_config):
    config = kafka_config(isolation_level="read_uncommitted")
    ensure_topic(config, config.topic)
    with transactional(config) as producer:
        send(producer, config, [b"0"])
        send(producer, config, [b"1"], commit=False)
    with EventSource(config) as source:
        assert numbers(read(source, 2)) == [0, 1]
        while source.lag() != {0: 0}:
            assert source.poll(0.1) == []


@pytest.mark.parametrize("commit", [True, False], ids=["committed", "aborted"])
def test_the_reader_tells_a_position_behind_the_marker_that_no_record_comes_with(config, commit):
    with EventSource(config) as source:
        reader = Reader(source, EventDecoder(SCHEMA))
        reached, events = {}, 0
        with transactional(config) as producer:
            send(producer, config, [event(1)], commit=commit)
        while reached.get(0) != 2:
            if polled := reader.read(0.1):
                reached |= polled.polled
                events += len(polled.batch)
        assert events == commit
        assert reader.read(0.1) is None


def test_a_recording_of_a_transactional_topic_ends_and_has_what_was_committed(config, tmp_path):
    with transactional(config) as producer:
        send(producer, config, [event(1), event(2)])
        send(producer, config, [event(3)], commit=False)
    with EventSource(config) as source:
        assert record(source, tmp_path / "events.jsonl", SCHEMA, tally=Tally()) == 2


def test_an_open_transaction_ends_what_can_be_read_until_it_is_committed(config, tmp_path):
    with EventSink(config) as sink:
        sink.send(event(1))
    with transactional(config) as producer:
        producer.begin_transaction()
        producer.send(config.topic, event(2))
        producer.flush()
        with EventSink(config) as sink:
            sink.send(event(3))
        with EventSource(config) as source:
            assert record(source, tmp_path / "before.jsonl", SCHEMA, tally=Tally()) == 1
            assert source.lag() == {0: 0} and source.positions == {0: 1}
            producer.commit_transaction()
            assert [r.offset for r in read(source, 2)] == [1, 2]
            while source.lag() != {0: 0}:
                assert source.poll(0.1) == []


def test_reading_from_the_latest_begins_with_the_transaction_that_is_still_open(kafka_config):
    config = kafka_config(start="latest")
    ensure_topic(config, config.topic)
    with EventSink(config) as sink:
        sink.send(b"0")
    with transactional(config) as producer:
        producer.begin_transaction()
        producer.send(config.topic, b"1")
        producer.flush()
        with EventSource(config) as source:
            assert source.positions == {0: 1}
            producer.commit_transaction()
            assert numbers(read(source, 1)) == [1]
