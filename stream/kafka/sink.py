"""Producers for Kafka: `EventSink` for events, `Outbox` for notices, `DeadLetters` for rejects.

In: bytes. Out: acknowledged by all replicas, or an error; nothing is dropped in silence. Both batch
and compress, and both hold the caller back when the broker does not keep up.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Self

from kafka import KafkaProducer
from kafka.errors import (
    InvalidRecordError,
    InvalidTimestampError,
    KafkaError,
    MessageSizeTooLargeError,
)
from kafka.producer.future import FutureRecordMetadata
from kafka.serializer import Serializer

from niwaki.stream.errors import BrokerError
from niwaki.stream.events.rejects import Reject
from niwaki.stream.kafka.connection import (
    REQUEST_MS,
    KafkaConfig,
    Record,
    connect,
    ensure_topic,
    partitions_of,
    translated_kafka_errors,
)

_DELIVERY_S = 60.0
_PRODUCER = {
    "acks": "all",
    "compression_type": "lz4",
    "batch_size": 256 * 1024,
    "linger_ms": 20,
    "max_request_size": 64 * 2**20,  # the broker decides on the largest size
    "request_timeout_ms": REQUEST_MS,
    "delivery_timeout_ms": int(_DELIVERY_S * 1000),
    "max_block_ms": REQUEST_MS,
}
_RECORD_BYTES = 1_000  # size of the client's objects for each waiting record
_CUTS_BYTES = (100_000, 0)
_MAX_LETTERS = 1_000
_BAD_TIMES = (InvalidTimestampError, InvalidRecordError)  # the second: several in one batch
_NULL = object()
NOTES = "__niwaki.errors."
"""Prefix of the headers that a dead letter has beside those of the original message."""
_VALUE_BYTES = f"{NOTES}value_bytes"


class EventSink:
    """Writes events to a topic, in order within each partition and each exactly once, unless it
    raises.

    `max_waiting_bytes`: bytes that may wait for the broker; `send` blocks while there are more.
    """

    def __init__(
        self, config: KafkaConfig, topic: str | None = None, *, max_waiting_bytes: int = 64 * 2**20
    ):
        self.topic = topic or config.topic
        self._max_waiting_bytes = max_waiting_bytes
        self._producer = _producer(config, self.topic)
        # Waiting for each record would be slow: it is the last one of each stretch, with the bytes
        # of the stretch.
        self._waiting: deque[tuple[FutureRecordMetadata, int]] = deque()
        self._waiting_bytes = self._stretch_bytes = 0
        self._failure: KafkaError | None = None

    def send(self, value: bytes, timestamp_ms: int | None = None, key: bytes | None = None) -> None:
        """Hand over one message. Raises `BrokerError` as soon as any message before it could not be
        delivered.

        Brokers delete by timestamp: a `timestamp_ms` of years ago is past most topics' retention.
        None is now.
        """
        with translated_kafka_errors(f"events can't be written to {self.topic}"):
            if self._failure:
                raise self._failure
            sent = self._producer.send(
                self.topic, value, key, timestamp_ms=timestamp_ms
            ).add_errback(self._fail)
            self._stretch_bytes += len(value) + _RECORD_BYTES
            if self._stretch_bytes * 16 > self._max_waiting_bytes:
                self._waiting.append((sent, self._stretch_bytes))
                self._waiting_bytes += self._stretch_bytes
                self._stretch_bytes = 0
            while self._waiting_bytes > self._max_waiting_bytes:
                oldest, size = self._waiting.popleft()
                oldest.get(2 * _DELIVERY_S)
                self._waiting_bytes -= size

    def flush(self) -> None:
        """Wait until every message so far is delivered. Raises `BrokerError` if one was not."""
        with translated_kafka_errors(f"events can't be written to {self.topic}"):
            self._producer.flush(2 * _DELIVERY_S)
            self._waiting.clear()
            self._waiting_bytes = self._stretch_bytes = 0
            if self._failure:
                raise self._failure

    def close(self) -> None:
        """Deliver what waits and disconnect."""
        try:
            self.flush()
        finally:
            self._producer.close(timeout=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        if kind:
            self._producer.close(timeout=1)
        else:
            self.close()

    def _fail(self, error: KafkaError) -> None:
        self._failure = self._failure or error


class _NullSerializer(Serializer):  # type: ignore[misc]
    """Writes `_NULL` as a message without a value, which the client refuses where there is no key
    either."""

    def serialize(self, topic: str, headers: object, data: object) -> object:
        return None if data is _NULL else data


class _Letter(NamedTuple):
    """One message, and how much of it was left out since the topic or the broker refused it."""

    value: bytes | None
    key: bytes | None = None
    headers: Sequence[tuple[str, bytes]] = ()
    """Of the original message."""
    notes: Sequence[tuple[str, bytes]] = ()
    """Our own headers."""
    timestamp_ms: int | None = None
    cuts: int = 0

    def cut(self) -> "_Letter":
        """The beginning of its value only; then nothing but our own headers."""
        if self.cuts == len(_CUTS_BYTES):
            raise BrokerError("the topic refuses even an empty message as too large")
        value, kept_bytes = self.value, _CUTS_BYTES[self.cuts]
        notes = list(self.notes)
        if value is not None and not any(name == _VALUE_BYTES for name, _ in notes):
            notes.append((_VALUE_BYTES, str(len(value)).encode()))
        cut = self._replace(
            value=None if value is None else value[:kept_bytes], notes=notes, cuts=self.cuts + 1
        )
        return cut if kept_bytes else cut._replace(key=None, headers=())


class Outbox:
    """Keeps messages in a topic of their own, which is made if it is not there. One that can't be
    delivered is tried again at the next `flush`; a crash between `flush` and the snapshot that
    follows it can write one twice."""

    def __init__(self, config: KafkaConfig, topic: str):
        self.topic = topic
        ensure_topic(config, topic)
        # Without idempotence: one refused message must not fail those behind it.
        self._producer = _producer(
            config,
            topic,
            enable_idempotence=False,
            delivery_timeout_ms=15_000,
            value_serializer=_NullSerializer(),
        )
        self._waiting: list[tuple[_Letter, FutureRecordMetadata]] = []

    def put(self, value: bytes) -> None:
        """Hand over one message. It is safe after the next `flush`."""
        self._keep(_Letter(value))

    def flush(self) -> None:
        """Wait until all are delivered. Raises `BrokerError` if some are not: the next call tries
        those again."""
        with translated_kafka_errors(f"messages can't be written to {self.topic}"):
            while self._waiting:
                self._producer.flush(2 * _DELIVERY_S)
                waiting, self._waiting = self._waiting, []
                failure, mended = None, False
                for letter, sent in waiting:
                    if not sent.failed():
                        continue
                    if isinstance(sent.exception, MessageSizeTooLargeError):
                        letter, mended = letter.cut(), True
                    elif isinstance(sent.exception, _BAD_TIMES) and letter.timestamp_ms is not None:
                        letter, mended = letter._replace(timestamp_ms=None), True
                    else:
                        failure = sent.exception
                    self._post(letter)
                if failure and not mended:  # what is mended made others of its batch fail, too
                    raise failure

    def close(self) -> None:
        """Deliver what waits and disconnect."""
        try:
            self.flush()
        finally:
            self._producer.close(timeout=1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _keep(self, letter: _Letter) -> None:
        self._post(letter)
        if len(self._waiting) >= _MAX_LETTERS:
            self.flush()

    def _post(self, letter: _Letter) -> None:
        with translated_kafka_errors(f"messages can't be written to {self.topic}"):
            sent = self._producer.send(
                self.topic,
                _NULL if letter.value is None else letter.value,
                letter.key,
                [*letter.headers, *letter.notes],
                timestamp_ms=letter.timestamp_ms,
            )
        self._waiting.append((letter, sent))


class DeadLetters(Outbox):
    """Writes rejected messages as they were: key, value, headers and time. What was wrong with them
    is in further headers, after the manner of Kafka Streams (KIP-1034).

    Each of those has the prefix `__niwaki.errors.`: message (the reason), rule (its kind, as in the
    metric), field, topic, partition, offset. Where this topic refuses a value as too large it is
    cut, and value_bytes says how long it was; a time that it refuses becomes that of the writing.
    A header without a value is written with an empty one, since the client knows no other. None is
    lost.
    """

    def __init__(self, config: KafkaConfig):
        super().__init__(config, config.dead_letters)

    def send(self, record: Record, reject: Reject) -> None:
        """Hand over one record. It is safe after the next `flush`."""
        notes = {
            "message": reject.reason,
            "rule": reject.kind,
            **({"field": reject.field} if reject.field else {}),
            "topic": record.topic,
            "partition": record.partition,
            "offset": record.offset,
        }
        letter = _Letter(
            record.value,
            record.key,
            [(name, value or b"") for name, value in record.headers],
            [(NOTES + name, str(note).encode(errors="replace")) for name, note in notes.items()],
            record.timestamp_ms if record.timestamp_ms >= 0 else None,
        )
        self._keep(letter)


def _producer(config: KafkaConfig, topic: str, **settings: object) -> KafkaProducer:
    partitions_of(config, topic)
    producer = connect(KafkaProducer, config, **_PRODUCER | settings)
    with translated_kafka_errors(f"topic {topic} can't be written to"):
        producer.partitions_for(topic)  # once known, no `send` has to wait for it
    return producer
