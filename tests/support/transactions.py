"""A producer other than ours, which writes in transactions."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from uuid import uuid4

from kafka import KafkaProducer

from niwaki.stream.kafka.connection import KafkaConfig


@contextmanager
def transactional(config: KafkaConfig) -> Iterator[KafkaProducer]:
    """A producer that is ready for its first transaction."""
    settings = {"bootstrap_servers": config.bootstrap_servers, "transactional_id": uuid4().hex}
    with closing(KafkaProducer(**settings)) as producer:
        producer.init_transactions()
        yield producer


def send(
    producer: KafkaProducer, config: KafkaConfig, values: Sequence[bytes], commit: bool = True
) -> None:
    """One transaction with these messages, which are in the topic whether it is committed or
    aborted."""
    producer.begin_transaction()
    for value in values:
        producer.send(config.topic, value)
    producer.flush()
    if commit:
        producer.commit_transaction()
    else:
        producer.abort_transaction()
