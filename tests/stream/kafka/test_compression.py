"""Compressed topics, as Java's and other clients write them to a real broker."""

import subprocess
from contextlib import closing

import kafka.codec
import pytest
from kafka import KafkaProducer

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import NiwakiError
from niwaki.stream.kafka.connection import ensure_topic
from niwaki.stream.kafka.reader_process import ReaderProcess
from niwaki.stream.kafka.sink import EventSink
from niwaki.stream.kafka.source import EventSource, KafkaConfig
from tests.support.topics import numbers, read


def write(config: KafkaConfig, codec: str, count: int, partition: int = 0) -> None:
    """Messages "0", "1", ... in one compressed batch, if they are enough for that to pay."""
    settings = {"bootstrap_servers": config.bootstrap_servers, "linger_ms": 60_000}
    with closing(KafkaProducer(compression_type=codec, **settings)) as producer:
        for number in range(count):
            producer.send(config.topic, str(number).encode(), partition=partition)


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_a_topic_in_each_of_kafkas_codecs_is_read(kafka_config, codec):
    config = kafka_config()
    ensure_topic(config, config.topic)
    write(config, codec, 1000)
    with EventSource(config) as source:
        assert numbers(read(source, 1000)) == list(range(1000))


@pytest.mark.usefixtures("needs_apache_kafka")
def test_a_topic_that_javas_producer_compressed_with_snappy_is_read(kafka_config, kafka_home):
    config = kafka_config()
    ensure_topic(config, config.topic)
    arguments = ["--bootstrap-server", config.bootstrap_servers, "--topic", config.topic]
    subprocess.run(
        [kafka_home / "bin/kafka-console-producer.sh", *arguments, "--compression-codec", "snappy"],
        input="".join(f"{number}\n" for number in range(5000)),
        text=True,
        capture_output=True,
        check=True,
    )
    with EventSource(config) as source:
        assert numbers(read(source, 5000)) == list(range(5000))


def test_messages_that_cannot_be_uncompressed_are_an_error_that_names_place_and_package(
    kafka_config, monkeypatch
):
    config = kafka_config()
    ensure_topic(config, config.topic, partitions=3)
    write(config, "gzip", 5, partition=0)
    write(config, "gzip", 7, partition=2)
    write(config, "snappy", 300, partition=2)
    monkeypatch.setattr(kafka.codec, "snappy", None)
    polled = []
    with (
        EventSource(config) as source,
        pytest.raises(
            NiwakiError,
            match=rf"{config.topic}\[2\]@7: messages are compressed with snappy,"
            " and reading them needs python-snappy",
        ),
    ):
        while True:
            polled += source.poll(0.2)
    assert sorted(numbers(polled)) == sorted([*range(5), *range(7)])


def test_what_the_process_cannot_uncompress_ends_the_learner_with_the_same_line(
    kafka_config, monkeypatch, tmp_path
):
    config = kafka_config()
    ensure_topic(config, config.topic)
    write(config, "snappy", 300)
    (tmp_path / "snappy.py").write_text("raise ImportError('not installed here')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    reader = ReaderProcess(config, Schema(categorical=("user",)))
    reader.start({})
    with closing(reader), pytest.raises(NiwakiError, match=r"\[0\]@0: .* needs python-snappy"):
        while True:
            reader.read(1.0)


def test_our_own_messages_need_no_further_codec(kafka_config, monkeypatch):
    monkeypatch.setattr(kafka.codec, "snappy", None)
    config = kafka_config()
    ensure_topic(config, config.topic)
    with EventSink(config) as sink:
        sink.send(b"1")
    with EventSource(config) as source:
        assert numbers(read(source, 1)) == [1]
