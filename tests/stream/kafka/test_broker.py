"""Reading from a real Kafka broker: positions that nothing loses, failures that cost no message,
and settings that are checked."""

import gc
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import closing

import pytest
from kafka import KafkaAdminClient, TopicPartition
from kafka.record.default_records import DefaultRecordBatch

from niwaki.pruning.errors import RuleError
from niwaki.stream.errors import BrokerError, ConfigError, PositionError
from niwaki.stream.kafka import connection
from niwaki.stream.kafka import source as broker
from niwaki.stream.kafka.source import EventSink, EventSource, KafkaConfig, ensure_topic
from niwaki.stream.offline.local import free_port
from tests.support.topics import numbers, read

Make = Callable[..., KafkaConfig]


@pytest.fixture
def filled(kafka_config: Make) -> Make:
    """Makes settings for a topic with messages "0", "1", ... in it, dealt to its partitions in
    turn."""

    def make(messages: int, partitions: int = 1, **changes: object) -> KafkaConfig:
        config = kafka_config(**changes)
        ensure_topic(config, config.topic, partitions)
        fill(config, range(messages), partitions)
        return config

    return make


def fill(config: KafkaConfig, numbers: Sequence[int], partitions: int = 1) -> None:
    with EventSink(config) as sink:
        for number in numbers:
            sink.send(str(number).encode(), key=_KEYS[partitions][number % partitions])


# Keys that the client's hash sends to partitions 0, 1, ... of a topic with so many.
_KEYS = {1: [None], 2: [b"k3", b"k0"], 4: [b"k3", b"k0", b"k8", b"k14"]}


def test_trainers_share_the_partitions_by_rank_and_between_them_read_everything_once(filled):
    config = filled(400, partitions=4, world_size=2)
    with EventSource(config) as first:
        one = read(first, 200)
        assert first.partitions == (0, 2)
    with EventSource(filled(0, topic=config.topic, world_size=2, rank=1)) as second:
        other = read(second, 200)
        assert second.partitions == (1, 3)
    assert sorted(numbers(one) + numbers(other)) == list(range(400))
    for partition in range(4):
        assert [n for n in numbers(one + other) if n % 4 == partition] == list(
            range(partition, 400, 4)
        )


def test_a_trainer_without_a_partition_waits(filled):
    with EventSource(filled(10, world_size=2, rank=1)) as source:
        assert source.partitions == ()
        assert source.poll(0.05) == []
        assert source.lag() == {}


def test_reading_goes_on_exactly_where_it_is_told_to(filled):
    config = filled(100, partitions=2)
    with EventSource(config) as source:
        source.seek({0: 30, 1: 45, 7: 3})
        records = read(source, 25)
        assert [r.offset for r in records if r.partition == 0] == list(range(30, 50))
        assert [r.offset for r in records if r.partition == 1] == list(range(45, 50))
        source.seek({0: 49, 1: 50})
        assert [(r.partition, r.offset) for r in read(source, 1)] == [(0, 49)]


def test_a_partition_that_a_snapshot_does_not_know_is_read_from_its_beginning(filled):
    with EventSource(filled(100, partitions=2, start="latest")) as source:
        source.seek({0: 50})
        assert [r.offset for r in read(source, 50)] == list(range(50))


def test_starting_at_the_latest_reads_only_what_comes_afterwards(filled):
    config = filled(100, start="latest")
    with EventSource(config) as source:
        fill(config, range(100, 103))
        assert numbers(read(source, 3)) == [100, 101, 102]


def test_lag_counts_what_has_not_been_polled(filled):
    with EventSource(filled(100, max_poll_messages=40)) as source:
        assert source.lag() == {}
        behind = []
        while not behind or behind[-1]:
            if source.poll(0.2):
                behind.append(source.lag()[0])
        assert behind == [60, 20, 0]


def test_a_paused_source_polls_nothing_and_then_goes_on(filled):
    with EventSource(filled(10)) as source:
        source.pause()
        assert source.poll(0.3) == []
        source.resume()
        assert numbers(read(source, 10)) == list(range(10))


def test_committed_offsets_can_be_seen_by_dashboards(filled):
    config = filled(10, group_id=f"group-{os.urandom(4).hex()}")
    with closing(connection.Committer(config)) as committer:
        for offset in (3, 5, 7):
            committer.commit({0: offset})
    with closing(KafkaAdminClient(bootstrap_servers=config.bootstrap_servers)) as admin:
        committed = admin.list_group_offsets(config.group_id)[config.group_id]
    assert committed[TopicPartition(config.topic, 0)].offset == 7


def test_a_commit_that_fails_is_said_once_and_harms_nothing(caplog, monkeypatch):
    monkeypatch.setattr(connection, "_COMMIT_S", 0.1)
    with closing(
        connection.Committer(KafkaConfig(bootstrap_servers=f"127.0.0.1:{free_port()}"))
    ) as committer:
        committer.commit({0: 1})
        committer._thread.submit(int).result()  # the first has been tried
        committer.commit({0: 2})
    assert [record.levelname for record in caplog.records if "not committed" in record.message] == [
        "WARNING"
    ]


def test_without_a_broker_the_error_names_the_address_and_nothing_is_left_behind(caplog):
    address = f"127.0.0.1:{free_port()}"
    threads = threading.active_count()
    with pytest.raises(
        BrokerError, match=f"{address} over PLAINTEXT within 0.3 s: .*Connection refused"
    ):
        EventSource(KafkaConfig(bootstrap_servers=address, connect_timeout_s=0.3))
    assert caplog.text.count("no Kafka answers at") == 1
    assert threading.active_count() == threads


def test_something_else_that_listens_there_is_not_waited_for_in_silence(redis_url):
    address = redis_url.removeprefix("redis://").removesuffix("/0")
    with pytest.raises(BrokerError, match=f"{address} .*it takes connections; is it Kafka"):
        EventSource(KafkaConfig(bootstrap_servers=address, connect_timeout_s=0.5))


def test_a_certificate_that_is_not_there_is_the_users_mistake(kafka_config):
    with pytest.raises(
        ConfigError, match=r"kafka\.ssl_cafile: must be a file that can be read, got '/no/such'"
    ):
        EventSource(kafka_config(ssl_cafile="/no/such"))


@pytest.mark.parametrize("opened", [EventSource, EventSink])
def test_a_topic_that_does_not_exist_is_an_error_and_is_not_made(kafka_config, opened):
    config = kafka_config(connect_timeout_s=0.5)
    with pytest.raises(BrokerError, match=f"has no topic {config.topic}"):
        opened(config)
    with closing(KafkaAdminClient(bootstrap_servers=config.bootstrap_servers)) as admin:
        assert config.topic not in admin.list_topics()


def test_a_topic_that_does_not_exist_is_named_with_the_nearest_that_does(kafka_config):
    there = kafka_config()
    ensure_topic(there, there.topic)
    missing = kafka_config(topic=f"{there.topic}s", connect_timeout_s=0.1)
    rule = f"has no topic {missing.topic}; did you mean {there.topic}\\?$"
    with pytest.raises(BrokerError, match=rule):
        EventSource(missing)


def test_a_position_beyond_the_end_is_refused(filled, monkeypatch):
    monkeypatch.setattr(broker, "_AHEAD_S", 0.1)
    config = filled(10)
    with EventSource(config) as source:
        source.seek({0: 500})
        with pytest.raises(PositionError, match=rf"{config.topic}\[0\] ends at 10, we are at 500"):
            read(source, 1)


@pytest.mark.usefixtures("needs_apache_kafka")
def test_messages_deleted_before_they_were_read_are_counted_in_the_log_and_the_rest_is_read(
    filled, caplog
):
    config = filled(100)
    with closing(KafkaAdminClient(bootstrap_servers=config.bootstrap_servers)) as admin:
        admin.delete_records({TopicPartition(config.topic, 0): 60})
    with EventSource(config) as source:
        source.seek({0: 50})
        assert numbers(read(source, 40)) == list(range(60, 100))
    assert "10 messages" in "".join(
        record.message for record in caplog.records if record.levelname == "ERROR"
    )


@pytest.mark.usefixtures("needs_apache_kafka")
def test_partitions_that_are_added_while_reading_join(filled, monkeypatch):
    monkeypatch.setattr(broker, "_NEW_PARTITIONS_S", 0.0)
    monkeypatch.setitem(broker._CONSUMER, "metadata_max_age_ms", 100)
    config = filled(10)
    with EventSource(config) as source:
        assert len(read(source, 10)) == 10
        with closing(KafkaAdminClient(bootstrap_servers=config.bootstrap_servers)) as admin:
            admin.create_partitions({config.topic: 2})
        fill(config, range(10, 30), 2)
        assert sorted(numbers(read(source, 20))) == list(range(10, 30))
        assert source.partitions == (0, 1)


def test_a_damaged_batch_is_fetched_again_without_loss_or_repetition(filled, monkeypatch, caplog):
    config = filled(100, max_poll_messages=30)
    check, damaged = DefaultRecordBatch.validate_crc, iter([True])
    monkeypatch.setattr(
        DefaultRecordBatch, "validate_crc", lambda batch: not next(damaged, False) and check(batch)
    )
    with EventSource(config) as source:
        assert numbers(read(source, 100)) == list(range(100))
    assert "lost" in caplog.text


@pytest.mark.filterwarnings(
    "ignore:unclosed:ResourceWarning"
)  # of the client's own attempts, while it is still open
def test_a_broker_that_goes_away_and_comes_back_costs_time_but_no_message(
    own_kafka, kafka_home, caplog, monkeypatch
):
    monkeypatch.setattr(broker, "_SILENCE_S", 0.2)
    monkeypatch.setattr(broker, "_AHEAD_S", 0.1)
    caplog.set_level(logging.INFO)
    with own_kafka() as servers:
        config = KafkaConfig(bootstrap_servers=servers, max_poll_messages=40)
        ensure_topic(config, config.topic)
        fill(config, range(100))
        source = EventSource(config)
        before = read(source, 80)
    while "lost events at" not in caplog.text:
        before += source.poll(0.1)
    assert source.poll(0.1) == []
    with own_kafka(), source:
        if kafka_home:
            fill(config, range(100, 150))
            assert numbers(before + read(source, 150 - len(before))) == list(range(150))
            assert "is back after" in caplog.text
        else:
            ensure_topic(config, config.topic)
            with pytest.raises(PositionError, match="ends at 0, we are at"):
                read(source, 1)
    assert caplog.text.count("lost events at") == 1
    gc.collect()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bootstrap_servers", "localhost"),
        ("bootstrap_servers", "a:1,,b:2"),
        ("topic", "two words"),
        ("dead_letter_topic", "events"),
        ("rank", 1),
        ("rank", -1),
        ("world_size", 0),
        ("max_poll_messages", 0),
        ("max_event_bytes", 0),
        ("connect_timeout_s", 0),
    ],
)
def test_a_bad_setting_is_named(field, value):
    with pytest.raises(RuleError, match=rf"^{field}: must be .*, got {value!r}$"):
        KafkaConfig(**{field: value})


def test_a_password_is_asked_for_where_it_is_needed_and_never_shown():
    with pytest.raises(RuleError, match="^sasl_mechanism: SASL_SSL needs"):
        KafkaConfig(security_protocol="SASL_SSL")
    login = {"sasl_mechanism": "PLAIN", "sasl_username": "ann", "sasl_password": "secret"}
    assert "secret" not in repr(KafkaConfig(security_protocol="SASL_SSL", **login))
