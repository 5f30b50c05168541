"""Recordings into Kafka and back: `replay` plays a file, `record` keeps the events of a topic in
one.

In: a recorded stream and a sink, or a source and the name of a file. Out: messages in the order of
the file, at a rate or at a multiple of the file's own timing; or a file of what could be decoded.
Lines of JSON Lines are sent as they are, so what is wrong with them arrives, too. Messages carry
the time at which they are sent, not that of their events: a broker would soon delete those of last
year.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import Schema
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import ENCODERS
from niwaki.stream.kafka.source import Record
from niwaki.stream.recordings.files import recording_format
from niwaki.stream.recordings.recording import (
    batch_to_table,
    read_lines,
    read_tables,
    write_recording,
)

log = logging.getLogger("niwaki")

_CHUNK_EVENTS = 8192
_SHORTEST_WAIT_S = (
    0.005  # below it, falling behind and catching up in bursts is cheaper than sleeping
)
_LONGEST_WAIT_S = 0.5  # after it, `stop` is asked again
_POLL_S = 0.5


class Sink(Protocol):
    """The part of an `EventSink` that a replay uses."""

    def send(self, value: bytes) -> None: ...
    def flush(self) -> None: ...


class Source(Protocol):
    """The part of an `EventSource` that a recording uses."""

    @property
    def partitions(self) -> tuple[int, ...]: ...
    def poll(self, timeout_s: float) -> list[Record]: ...
    def lag(self) -> Mapping[int, int]: ...


def replay(
    path: str | Path,
    sink: Sink,
    schema: Schema,
    *,
    wire: str = "json",
    events_per_message: int = 256,
    rate: float | None = None,
    speed: float | None = None,
    loop: bool = False,
    limit_events: int | None = None,
    stop: Callable[[], bool] = lambda: False,
    on_events: Callable[[int], object] = lambda events: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> int:
    """Send the events of a recording in order; returns how many, when all are delivered.

    `wire`: a JSON object for each event, or Arrow messages of `events_per_message`. `rate`: events
    per second. `speed`: so many times as fast as recorded. With neither: as fast as the sink takes
    them. `loop`: again from the beginning, the events as they are, until `stop()` or
    `limit_events`. `on_events` learns of each message how many it had.
    """
    given = {
        "rate": rate,
        "speed": speed,
        "limit_events": limit_events,
        "events_per_message": events_per_message,
    }
    for name, value in given.items():
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(name, "must be above 0", value)
    if wire not in ENCODERS:
        raise ConfigError("wire", f"must be one of {', '.join(ENCODERS)}", wire)
    if rate and speed:
        raise ConfigError("rate", "can't be set together with speed", rate)
    if speed and schema.timestamp is None:
        raise ConfigError("speed", "needs events with a timestamp", speed)
    pace = _Pace(rate, speed, clock())
    sent, lap_events = 0, -1
    while sent != limit_events and lap_events and not stop():
        lap_events = 0
        left = None if limit_events is None else limit_events - sent
        for message in _messages(
            Path(path), schema, wire, events_per_message, left, timed=speed is not None
        ):
            due_s = pace.due_s(sent, message.time_s)
            while not stop() and (wait_s := due_s - clock()) > _SHORTEST_WAIT_S:
                sleep(min(wait_s, _LONGEST_WAIT_S))
            if stop():
                break
            sink.send(message.value)
            sent += message.events
            lap_events += message.events
            on_events(message.events)
        if not loop:
            break
        pace.begin_lap()
    sink.flush()
    return sent


def record(
    source: Source,
    path: str | Path,
    schema: Schema,
    *,
    limit_events: int | None = None,
    follow: bool = False,
    stop: Callable[[], bool] = lambda: False,
    on_events: Callable[[int], object] = lambda events: None,
) -> int:
    """Write the events of `source` to a file; returns their number. Messages that can't be decoded
    are left out.

    Ends with `stop()`, after `limit_events`, or at the end of the topic unless it is to `follow`
    what comes.
    """
    decoder, rejected = EventDecoder(schema), 0
    with write_recording(path) as recording:
        while recording.events != limit_events and not stop():
            records = source.poll(_POLL_S)
            lag = source.lag()
            if (
                not records
                and not follow
                and set(lag) >= set(source.partitions)
                and not any(lag.values())
            ):
                break
            decoded = decoder.decode([record.value for record in records])
            batch, rejects = decoded.batch, decoded.rejects
            if limit_events is not None:
                batch = batch.slice(0, min(len(batch), limit_events - recording.events))
            if len(batch):
                recording.write(batch_to_table(batch, schema))
                on_events(len(batch))
            if rejects and not rejected:
                log.warning("left out what can't be decoded; the first: %s", rejects[0].reason)
            rejected += sum(reject.events for reject in rejects)
    if rejected:
        log.warning("left out %d events that can't be decoded", rejected)
    return recording.events


class _Message(NamedTuple):
    value: bytes
    events: int
    time_s: float
    """Event time of its last event; NaN where it is not asked for or not known."""


class _Pace:
    """When messages are due."""

    def __init__(self, rate: float | None, speed: float | None, start_s: float):
        self._rate = rate
        self._speed = speed
        self._start_s = start_s
        self._lap_s = self._latest_s = start_s
        self._first_time_s = math.nan

    def due_s(self, sent_events: int, time_s: float) -> float:
        """When the message after `sent_events` is due; never before the one before it."""
        if self._rate:
            return self._start_s + sent_events / self._rate
        if self._speed:
            if math.isnan(self._first_time_s):
                self._first_time_s = time_s
            due_s = self._lap_s + (time_s - self._first_time_s) / self._speed
            if due_s > self._latest_s:
                self._latest_s = due_s
        return self._latest_s

    def begin_lap(self) -> None:
        """The first event of a recording follows on its last."""
        self._lap_s, self._first_time_s = self._latest_s, math.nan


def _messages(
    path: Path,
    schema: Schema,
    wire: str,
    events_per_message: int,
    limit_events: int | None,
    *,
    timed: bool,
) -> Iterator[_Message]:
    if wire == "json" and recording_format(path)[0] == "jsonl":
        time_of = msgspec.json.Decoder(
            msgspec.defstruct(
                "Time",
                [("time_ms", float | None, None)],
                rename={"time_ms": schema.timestamp or ""},
            )
        )
        for line in islice(read_lines(path), limit_events):
            yield _Message(line, 1, _time_s(time_of, line) if timed else math.nan)
        return
    size = 1 if wire == "json" else events_per_message
    chunk_events = max(_CHUNK_EVENTS // size, 1) * size
    for table in read_tables(path, schema, chunk_events=chunk_events, limit_events=limit_events):
        values = ENCODERS[wire](table, size)
        last = np.minimum(np.arange(1, len(values) + 1) * size, len(table)) - 1
        times_s = (
            _times_s(table[schema.timestamp])[last] if timed else np.full(len(values), math.nan)
        )
        events = np.diff(last, prepend=-1)
        yield from map(_Message, values, events.tolist(), times_s.tolist())


def _time_s(time_of: msgspec.json.Decoder[Any], line: bytes) -> float:
    try:
        time_ms = time_of.decode(line).time_ms
    except (
        msgspec.DecodeError,
        UnicodeDecodeError,
        RecursionError,
    ):  # whoever reads it will say what is wrong
        return math.nan
    return math.nan if time_ms is None else time_ms / 1000


def _times_s(column: pa.ChunkedArray) -> np.ndarray:
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
    times_s_B: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy() / 1000
    return times_s_B
