"""Offsets by time: where a topic goes on after a recording.

In: the time at which the recording ends. Out: for each partition of ours, an offset before which no
event is of the recording's last minute or later. Kafka finds messages by their own time, which the
producer or the broker sets, so the offset is that of a message an hour earlier; the events just
before it are looked at, and where one of them is that late, the offset is sought further back. What
is read twice for that is left out by `overlap`.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from niwaki.model.features.schema import Schema
from niwaki.stream.errors import BrokerError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.kafka.connection import REQUEST_MS, KafkaConfig, Record, translated_kafka_errors
from niwaki.stream.kafka.overlap import LAST_US, microseconds, shown_time
from niwaki.stream.kafka.registry import MessageDecoder, new_decoder
from niwaki.stream.kafka.source import EventSource

log = logging.getLogger("niwaki.kafka")

_EARLIER_S = (3_600, 86_400, 30 * 86_400)
"""Seconds by which the messages that are looked for are older than the recording's end. After the
last one comes the beginning of the partition."""
_SAMPLE_MESSAGES = 200
_POLL_S = 0.5
_WAIT_S = 30.0


class _Span(NamedTuple):
    """Messages of a partition, from `start` until before `stop`."""

    start: int
    stop: int


class _Times(NamedTuple):
    """Event times of a sample, microseconds since the epoch."""

    earliest_us: int
    latest_us: int


def offsets_after(
    config: KafkaConfig, schema: Schema, events: EventsConfig, end_us: int
) -> dict[int, int]:
    """By partition of ours, the offset at which to go on after a recording whose last event time is
    `end_us`, microseconds since the epoch.

    Logs where the topic begins after the recording ends. Raises `BrokerError` if the topic can't be
    read.
    """
    with TimeSource(config) as source, translated_kafka_errors(f"no position in {config.topic}"):
        return _Search(source, new_decoder(config, schema, events), end_us).offsets()


class TimeSource(EventSource):
    """A reader of a topic that finds messages by time."""

    def begins(self) -> dict[int, int]:
        """By partition, the offset of its first message."""
        places = list(map(self._at, self.partitions))
        found = self._consumer.beginning_offsets(places, REQUEST_MS)
        return {at.partition: offset for at, offset in found.items()}

    def stops(self) -> dict[int, int]:
        """By partition, the offset after the last message that can be read now."""
        return self._ends(list(map(self._at, self.partitions))) if self.partitions else {}

    def first_from(self, partitions: Iterable[int], time_ms: int) -> dict[int, int | None]:
        """By partition, the offset of the first message of that time or later; None: there is
        none."""
        asked = {self._at(p): max(time_ms, 0) for p in partitions}
        found = self._consumer.offsets_for_times(asked, REQUEST_MS) if asked else {}
        return {at.partition: one.offset if one else None for at, one in found.items()}

    def sample(self, spans: Mapping[int, _Span]) -> dict[int, list[Record]]:
        """By partition, the messages of its span; the position is anywhere afterwards. Raises
        `BrokerError` if they do not come."""
        found: dict[int, list[Record]] = {p: [] for p in spans}
        if not spans:
            return found
        self.seek(self.positions | {p: span.start for p, span in spans.items()})
        self._consumer.pause(*(self._at(p) for p in self.partitions if p not in spans))
        self._consumer.resume(*map(self._at, spans))
        waiting, until_s = dict(spans), time.monotonic() + _WAIT_S
        while waiting:
            for record in self.poll(_POLL_S):
                if record.partition in waiting and record.offset < spans[record.partition].stop:
                    found[record.partition].append(record)
            read = self.positions
            done = [p for p, span in waiting.items() if read[p] >= span.stop]
            for p in done:
                del waiting[p]
            if done:
                self._consumer.pause(*map(self._at, done))
                until_s = time.monotonic() + _WAIT_S
            elif time.monotonic() > until_s:
                places = ", ".join(f"{self.topic}[{p}]@{span.start}" for p, span in waiting.items())
                raise BrokerError(f"the messages at {places} do not come")
        return found


class _Search:
    """The search for the offsets at which a topic goes on after a recording."""

    def __init__(self, source: TimeSource, decoder: MessageDecoder, end_us: int):
        self._source = source
        self._decoder = decoder
        self._end_us = end_us
        self._begins = source.begins()
        # Asked for first: a message that arrives later can't be missed by what is found by time.
        self._stops = source.stops()

    def offsets(self) -> dict[int, int]:
        offsets = dict(self._begins)
        wanted = {p for p, begin in self._begins.items() if begin < self._stops[p]}
        for earlier_s in _EARLIER_S:
            found = self._source.first_from(wanted, self._end_us // 1000 - earlier_s * 1000)
            places = {p: self._stops[p] if at is None else at for p, at in found.items()}
            places = {p: min(at, self._stops[p]) for p, at in places.items()}
            places = {p: at for p, at in places.items() if at > self._begins[p]}
            wanted = {p for p, late in self._late_before(places).items() if late}
            offsets |= {p: at for p, at in places.items() if p not in wanted}
            if not wanted:
                break
        offsets = dict(sorted(offsets.items()))
        self._log(offsets)
        return offsets

    def _late_before(self, places: Mapping[int, int]) -> dict[int, bool]:
        """By partition, True where events just before the place are of the recording's last minute
        or later, or where messages have no times to be found by."""
        spans = {
            p: _Span(max(self._begins[p], at - _SAMPLE_MESSAGES), at) for p, at in places.items()
        }
        late = {}
        for p, records in self._source.sample(spans).items():
            times = self._times(records)
            untimed = any(record.timestamp_ms < 0 for record in records)
            late_us = self._end_us - LAST_US
            late[p] = untimed or (times is not None and times.latest_us >= late_us)
        return late

    def _times(self, records: list[Record]) -> _Times | None:
        """The event times of messages; None where they hold no events."""
        values, until_s = [record.value for record in records], time.monotonic() + _WAIT_S
        while (decoded := self._decoder.decode(values)) is None:
            if time.monotonic() > until_s:
                raise BrokerError(f"the schema registry of {self._source.topic} does not answer")
        if not len(decoded.batch):
            return None
        times_us_B = microseconds(decoded.batch)
        return _Times(int(times_us_B.min()), int(times_us_B.max()))

    def _log(self, offsets: Mapping[int, int]) -> None:
        """Log the outcome, and each gap between the recording and the topic: partitions that begin
        after the recording ends, if that is so of all or messages of theirs were deleted."""
        topic, end = self._source.topic, shown_time(self._end_us)
        filled = {p for p, begin in self._begins.items() if begin < self._stops[p]}
        whole = {p for p in filled if offsets[p] == self._begins[p]}
        spans = {
            p: _Span(offsets[p], min(offsets[p] + _SAMPLE_MESSAGES, self._stops[p])) for p in whole
        }
        first_us = {}
        for p, records in self._source.sample(spans).items():
            times = self._times(records)
            if times is not None and times.earliest_us > self._end_us:
                first_us[p] = times.earliest_us
        for p, time_us in first_us.items():
            if self._begins[p] or first_us.keys() == filled:
                deleted = ": messages before were deleted" if self._begins[p] else ""
                log.warning(
                    "a gap: the recording ends at %s, and %s[%d] begins at %s, offset %d%s; what"
                    " lies between them is not learned",
                    *(end, topic, p, shown_time(time_us), self._begins[p], deleted),
                )
        if not filled:
            log.info("the recording ends at %s; %s is empty, and read from here on", end, topic)
        elif all(offsets[p] == self._stops[p] for p in filled):
            log.info(
                "the recording ends at %s; %s ends more than an hour before, and is read from here"
                " on, at offsets %s",
                *(end, topic, offsets),
            )
        else:
            log.info(
                "the recording ends at %s; %s is read from an hour or more before on, at offsets"
                " %s, without what was learned",
                *(end, topic, offsets),
            )
