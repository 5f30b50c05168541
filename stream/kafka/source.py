"""Consumer of a Kafka topic: `EventSource`.

Partitions are assigned by rank and read from the offsets that the caller gives. An absent broker
costs time, never a position: `EventSource.poll` keeps its offsets, logs one line, and reconnects
with backoff. Positions are the client's own, which also pass records that nobody is given: markers
of transactions, aborted events, what compaction has left out. Lag is computed from the high
watermark of fetches, since some brokers answer ListOffsets with the base offset of the last batch;
but before an open transaction, the readable part of a partition ends.
"""

import logging
import time
from collections.abc import Mapping
from contextlib import closing
from operator import itemgetter
from typing import Any, Self

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import KafkaError, OffsetOutOfRangeError, UnsupportedCodecError

from niwaki.pruning.errors import NiwakiError
from niwaki.stream.errors import BrokerError, PositionError
from niwaki.stream.kafka.connection import (
    REQUEST_MS,
    KafkaConfig,
    Record,
    connect,
    connect_once,
    ensure_topic,
    partitions_of,
    translated_kafka_errors,
)
from niwaki.stream.kafka.sink import DeadLetters, EventSink

__all__ = ["DeadLetters", "EventSink", "EventSource", "KafkaConfig", "Record", "ensure_topic"]

log = logging.getLogger("niwaki.kafka")

_FETCH_BYTES = (
    8 * 2**20
)  # of one partition at once: larger fetches mean fewer round trips while catching up
_SILENCE_S = 2.0  # of an idle topic, after which the broker is asked whether it is there
_AHEAD_S = (
    5.0  # a high watermark may fall behind us for a moment while a partition's leader changes
)
_STALL_S = 1.0  # without progress before the end, after which an open transaction is looked for
_NEW_PARTITIONS_S = 60.0
_BACKOFF_S = (0.5, 8.0)
_CONSUMER = {
    "auto_offset_reset": "none",  # never to a place that nobody chose
    "enable_auto_commit": False,
    "max_partition_fetch_bytes": _FETCH_BYTES,
    "metadata_max_age_ms": int(_NEW_PARTITIONS_S * 1000),
    "request_timeout_ms": REQUEST_MS,
}
_PROBE_MS = 2_000
_CODEC_PACKAGES = {"snappy": "python-snappy", "lz4": "lz4", "zstd": "zstandard"}
# Of the client's record: topic, partition, offset, timestamp, key, value, headers.
_FIELDS = itemgetter(0, 1, 3, 4, 6, 7, 8)


def _consumer(config: KafkaConfig) -> dict[str, Any]:
    return _CONSUMER | {"isolation_level": config.isolation_level}


class EventSource:
    """Reader of this trainer's partitions of one topic, in order within each partition."""

    def __init__(self, config: KafkaConfig):
        self.config, self.topic = config, config.topic
        self._consumer = connect(KafkaConsumer, config, **_consumer(config))
        self._connected = True
        self._next: dict[int, int] = {}
        self._highwater: dict[int, int] = {}
        self._blocked: dict[int, int] = {}  # positions behind which a transaction is open
        self._paused = False
        self._heard_s = self._looked_s = self._moved_s = time.monotonic()
        self._lost_s: float | None = None
        self._ahead_s: float | None = None
        self._retry_s = self._backoff_s = 0.0
        try:
            self._assign(partitions_of(config, self.topic, config.connect_timeout_s))
            self.seek({})
        except BaseException:
            self.close()
            raise

    @property
    def positions(self) -> dict[int, int]:
        """By partition of ours, the offset at which the next poll reads on."""
        return dict(self._next)

    @property
    def partitions(self) -> tuple[int, ...]:
        """Partitions of the topic that this trainer reads; new ones may join."""
        return tuple(sorted(self._next))

    def seek(self, offsets: Mapping[int, int]) -> None:
        """Read on from these offsets, each that of the next message to be polled.

        Offsets of partitions that are not ours are ignored. A partition of ours that is not named
        begins where `start` says if none is named, else at its beginning: it was added since.
        """
        with translated_kafka_errors(f"no position in {self.topic}"):
            given = {p: offsets[p] for p in self._next if p in offsets}
            others = [self._at(p) for p in self._next if p not in offsets]
            self._next |= given
            if others and (self.config.start == "earliest" or offsets):
                begins = self._consumer.beginning_offsets(others, REQUEST_MS)
                self._next |= {at.partition: offset for at, offset in begins.items()}
            elif others:
                self._next |= self._ends(others)
            self._resume_at_next()

    def poll(self, timeout_s: float) -> list[Record]:
        """The next messages, in order within each partition; none if none came in time, or if the
        broker is away.

        Raises `PositionError` where the topic ends before our position: it is not the topic that
        was read before. Raises `NiwakiError` at messages whose compression can't be undone here.
        """
        if not self._connected and not self._reconnect(timeout_s):
            return []
        try:
            self._assign_new_partitions()
            fetched = self._consumer.poll(
                int(timeout_s * 1000), max_records=self.config.max_poll_messages
            )
            records = [
                record
                for batch in fetched.values()
                for record in map(Record._make, map(_FIELDS, batch))
            ]
            self._move()
            self._look_around(bool(records))
        except OffsetOutOfRangeError as error:
            with translated_kafka_errors(f"no position in {self.topic}"):
                self._skip_deleted([at.partition for at in error.args[0]])
            return []
        except UnsupportedCodecError as error:
            raise self._undecodable(error) from error
        except KafkaError as error:
            self._lose(error)
            return []
        if not fetched and not self._next:
            time.sleep(timeout_s)
        return records

    @property
    def ends(self) -> dict[int, int]:
        """By partition, the offset after the last message that can be read, as of the last fetch;
        those not fetched from yet are left out."""
        return {
            p: self._next[p] if self._blocked.get(p) == self._next[p] else high
            for p, high in self._highwater.items()
        }

    def lag(self) -> dict[int, int]:
        """By partition, messages not polled yet, as of the last fetch; partitions not fetched from
        yet are left out."""
        return {p: max(0, end - self._next[p]) for p, end in self.ends.items()}

    def pause(self) -> None:
        """Make `poll` return no records, for back-pressure, while the connection stays alive."""
        self._paused = True
        if self._connected:
            self._consumer.pause(*map(self._at, self._next))

    def resume(self) -> None:
        """End a `pause`."""
        self._paused = False
        if self._connected:
            self._consumer.resume(*map(self._at, self._next))

    def close(self) -> None:
        """Disconnect."""
        self._disconnect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _at(self, partition: int) -> TopicPartition:
        return TopicPartition(self.topic, partition)

    def _assign(self, partitions: set[int]) -> None:
        ours = sorted(p for p in partitions if p % self.config.world_size == self.config.rank)
        self._next |= {p: 0 for p in ours if p not in self._next}
        self._consumer.assign([self._at(p) for p in self._next])
        log.info("partitions %s of %d of %s are ours", ours, len(partitions), self.topic)

    def _assign_new_partitions(self) -> None:
        """Partitions that the topic was given while we read begin at their beginning: nothing in
        them was ever read."""
        if time.monotonic() - self._looked_s < _NEW_PARTITIONS_S:
            return
        self._looked_s = time.monotonic()
        known = self._consumer.partitions_for_topic(self.topic) or set()
        if any(p % self.config.world_size == self.config.rank for p in known - self._next.keys()):
            self._assign(known)
            self._resume_at_next()

    def _resume_at_next(self) -> None:
        for partition, offset in self._next.items():
            self._consumer.seek(self._at(partition), offset)
        self._highwater.clear()
        self._blocked.clear()
        self._ahead_s = None
        if self._paused:
            self.pause()

    def _ends(self, partitions: list[TopicPartition]) -> dict[int, int]:
        """Ends of what can be read now, from fetches, since ListOffsets may answer with a smaller
        offset."""
        for at, offset in self._consumer.end_offsets(partitions, REQUEST_MS).items():
            self._consumer.seek(at, offset)
        deadline_s = time.monotonic() + REQUEST_MS / 1000
        ends: dict[int, int] = {}
        while time.monotonic() < deadline_s:
            fetched = self._consumer.poll(100)
            positions = {at.partition: self._consumer.position(at) for at in partitions}
            for at in partitions:
                if (highwater := self._consumer.highwater(at)) is not None:
                    ends.setdefault(at.partition, highwater)
            if len(ends) == len(partitions) and (
                not fetched or all(positions[p] >= end for p, end in ends.items())
            ):
                return {p: min(positions[p], end) for p, end in ends.items()}
        raise BrokerError(f"the end of {self.topic} could not be found")

    def _move(self) -> None:
        """Note the positions after a poll, which may have moved though it brought no records."""
        moved = {p: self._consumer.position(self._at(p), timeout_ms=0) for p in self._next}
        if moved != self._next:
            self._moved_s = time.monotonic()
        self._next = moved

    def _look_around(self, records: bool) -> None:
        """Update high watermarks after a fetch, probe an idle broker, and refuse a topic that ends
        before our position."""
        now_s = time.monotonic()
        for partition in self._next:
            highwater = self._consumer.highwater(self._at(partition))
            if highwater is not None:
                self._highwater[partition] = highwater
        ahead = {p: high for p, high in self._highwater.items() if high < self._next[p]}
        self._ahead_s = (self._ahead_s or now_s) if ahead else None
        if self._ahead_s and now_s - self._ahead_s > _AHEAD_S:
            self._refuse(ahead)
        if not records and not self._paused and now_s - self._moved_s > _STALL_S:
            self._look_for_open_transactions()
        if records:
            self._heard_s = now_s
        elif self._next and now_s - self._heard_s > _SILENCE_S:
            self._consumer.beginning_offsets(
                [self._at(next(iter(self._next)))], 2 * int(_SILENCE_S * 1000)
            )
            self._heard_s = time.monotonic()

    def _look_for_open_transactions(self) -> None:
        """Note the partitions in which a transaction is open at our position: they end there until
        it is over. The broker's answer to a reader of committed events is the last stable
        offset."""
        stalled = [
            self._at(p)
            for p, high in self._highwater.items()
            if high > self._next[p] != self._blocked.get(p)
        ]
        if stalled and self.config.isolation_level == "read_committed":
            self._moved_s = time.monotonic()
            for at, stable in self._consumer.end_offsets(stalled, REQUEST_MS).items():
                if stable <= self._next[at.partition]:
                    self._blocked[at.partition] = self._next[at.partition]

    def _skip_deleted(self, partitions: list[int]) -> None:
        begins = self._consumer.beginning_offsets([self._at(p) for p in partitions], REQUEST_MS)
        for at, begin in begins.items():
            position = self._next[at.partition]
            if position > begin:
                self._refuse({at.partition: self._consumer.end_offsets([at], REQUEST_MS)[at]})
            where = f"{self.topic}[{at.partition}]"
            lost = f"{begin - position} messages of {where} from offset {position} on"
            log.error(
                "%s were deleted by the broker before they were read; going on at %d", lost, begin
            )
            self._next[at.partition] = begin
        self._resume_at_next()

    def _refuse(self, ends: Mapping[int, int]) -> None:
        which = ", ".join(
            f"{self.topic}[{p}] ends at {end}, we are at {self._next[p]}" for p, end in ends.items()
        )
        raise PositionError(
            f"{which}: not the topic that was read before. Name another, or remove the snapshot"
        )

    def _undecodable(self, error: UnsupportedCodecError) -> NiwakiError:
        """The error that names the place of messages that can't be uncompressed. The client does
        not say which, so a new one asks for the next message of each partition alone."""
        where = self.topic
        self._disconnect()
        with (
            translated_kafka_errors(self.topic),
            closing(
                connect_once(KafkaConsumer, self.config, 1.0, **_consumer(self.config))
            ) as consumer,
        ):
            for partition, offset in self._next.items():
                if offset == self._highwater.get(partition):
                    continue
                consumer.assign([self._at(partition)])
                consumer.seek(self._at(partition), offset)
                try:
                    consumer.poll(_PROBE_MS, max_records=1)
                except UnsupportedCodecError:
                    where = f"{self.topic}[{partition}]@{offset}"
                    break
        codec = str(error.args[0]).removeprefix("Libraries for ").partition(" compression")[0]
        needed = _CODEC_PACKAGES.get(codec, "another version of kafka-python")
        return NiwakiError(
            f"{where}: messages are compressed with {codec}, and reading them needs {needed};"
            " nothing is lost: install it and start again"
        )

    def _lose(self, error: KafkaError) -> None:
        """Start afresh later: after some errors the client would never go on by itself."""
        now_s = time.monotonic()
        if self._lost_s is None:
            self._lost_s = now_s
            where = f"{self.topic} at {self.config.bootstrap_servers}"
            log.warning(
                "lost %s (%s); holding offsets %s and trying again", where, str(error), self._next
            )
        self._backoff_s = min(max(2 * self._backoff_s, _BACKOFF_S[0]), _BACKOFF_S[1])
        self._retry_s = now_s + self._backoff_s
        self._disconnect()

    def _reconnect(self, timeout_s: float) -> bool:
        wait_s = self._retry_s - time.monotonic()
        if wait_s > 0:
            time.sleep(min(wait_s, timeout_s))
        if wait_s > timeout_s:
            return False
        try:
            settings = _consumer(self.config)
            self._consumer = connect_once(KafkaConsumer, self.config, 1.0, **settings)
            self._connected = True
            self._consumer.assign([self._at(p) for p in self._next])
            self._resume_at_next()
            if self._next:
                self._consumer.beginning_offsets([self._at(next(iter(self._next)))], 1000)
        except KafkaError as error:
            self._lose(error)
            return False
        now_s = time.monotonic()
        log.info(
            "%s is back after %.1f s; going on at %s",
            self.topic,
            now_s - (self._lost_s or now_s),
            self._next,
        )
        self._lost_s, self._backoff_s = None, 0.0
        self._heard_s = now_s
        return True

    def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            self._consumer.close(autocommit=False, timeout_ms=1000)
