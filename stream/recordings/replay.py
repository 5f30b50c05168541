"""Recordings into Kafka and back: `replay` plays a file, `record` keeps the events of a topic in
one.

In: a recorded stream and a sink, or a source and the name of a file. Out: messages in the order of
the file, at a rate or at a multiple of the file's own timing; or a file of what could be decoded.
Lines of JSON Lines are sent as they are, so what is wrong with them arrives, too. Messages carry
the time at which they are sent, not that of their events: a broker would soon delete those of last
year.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import Schema
from niwaki.model.features.values import read_time
from niwaki.pruning.errors import NiwakiError
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.arrow_columns import numbers_or_text
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import ENCODERS
from niwaki.stream.events.envelope import Envelope
from niwaki.stream.events.rejects import Reject, Tally
from niwaki.stream.events.tables import event_times, table_to_batch
from niwaki.stream.kafka.registry import MessageDecoder
from niwaki.stream.kafka.source import Record
from niwaki.stream.recordings.recording import Recording
from niwaki.stream.recordings.writing import batch_to_table, format_times, write_recording

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
    recording: Recording,
    sink: Sink,
    schema: Schema,
    *,
    tally: Tally,
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
    """Send the events of a recording in order; returns how many, when all are delivered. `tally`
    counts what could not be sent, such as malformed rows.

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
        rows = _Rows(recording, schema, timed=speed is not None)
        account = tally if sent == 0 else Tally()  # of the first lap only
        for message in rows.messages(wire, events_per_message, left, account):
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


def at_end(source: Source) -> bool:
    """True if all that can be read of every partition has been polled."""
    lag = source.lag()
    return set(lag) >= set(source.partitions) and not any(lag.values())


def record(
    source: Source,
    path: str | Path,
    schema: Schema,
    *,
    tally: Tally,
    decoder: MessageDecoder | None = None,
    limit_events: int | None = None,
    follow: bool = False,
    stop: Callable[[], bool] = lambda: False,
    on_events: Callable[[int], object] = lambda events: None,
) -> int:
    """Write the events of `source` to a file; returns their number. Messages that can't be decoded
    are left out, and counted by `tally`.

    Ends with `stop()`, after `limit_events`, or at the end of the topic unless it is to `follow`
    what comes. `decoder`: that of the messages; None: one without a registry.
    """
    decoder = decoder or EventDecoder(schema)
    held: list[Record] = []
    with write_recording(path) as recording:
        while recording.events != limit_events and not stop():
            records = held or source.poll(_POLL_S)
            if not records and not follow and at_end(source):
                break
            decoded = decoder.decode([record.value for record in records])
            held = records if decoded is None else []
            if decoded is None:
                continue
            batch, rejects = decoded.batch, decoded.rejects
            if limit_events is not None:
                batch = batch.slice(0, min(len(batch), limit_events - recording.events))
            if len(batch):
                recording.write(batch_to_table(batch, schema))
                on_events(len(batch))
            placed = [reject._replace(place=records[reject.position].place) for reject in rejects]
            tally.add(len(batch), placed, decoded.odd)
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


class _Rows:
    """The rows of a recording as messages."""

    def __init__(self, recording: Recording, schema: Schema, *, timed: bool):
        """`timed`: event times are wanted."""
        self._recording = recording
        self._schema = schema
        self._timed = timed and schema.timestamp is not None
        path = recording.config.envelope
        self._envelope = Envelope(path) if path else None

    def messages(
        self, wire: str, events_per_message: int, limit_events: int | None, tally: Tally
    ) -> Iterator[_Message]:
        """JSON values as they are; rows of tables in the format `wire`."""
        size = 1 if wire == "json" else events_per_message
        chunk_events = max(_CHUNK_EVENTS // size, 1) * size
        encoded = ENCODERS[wire]
        for piece in self._recording.pieces(
            self._schema, chunk_events=chunk_events, limit=limit_events
        ):
            rejects = list(map(piece.placed, piece.rejects))
            if isinstance(piece.rows, list):
                if wire == "json":
                    tally.add(len(piece.rows), rejects)
                    yield from (_Message(value, 1, self._time_of(value)) for value in piece.rows)
                    continue
                table, more = self._decoded(piece.rows)
            elif piece.unit == "line":
                table, more = self._typed(piece.rows)
            else:
                table, more = self._untyped(piece.rows), []
            tally.add(len(table), rejects + list(map(piece.located, more)))
            yield from self._encoded(table, encoded, size)

    def _encoded(
        self, table: pa.Table, encode: Callable[[pa.Table, int], list[bytes]], size: int
    ) -> Iterator[_Message]:
        values = encode(table, size)
        last = np.minimum(np.arange(1, len(values) + 1) * size, len(table)) - 1
        times_s = np.full(len(values), math.nan)
        if self._timed:
            times_s = event_times(table, self._schema)[last]
        return map(_Message, values, np.diff(last, prepend=-1).tolist(), times_s.tolist())

    def _untyped(self, table: pa.Table) -> pa.Table:
        """Columns as they are, but an event time that is a time of Arrow's in the schema's form."""
        name = self._schema.timestamp
        if name is None or name not in table.column_names:
            return table
        kind = table[name].type
        if not (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
            return table
        times = format_times(event_times(table, self._schema), self._schema.timestamp_format)
        return table.set_column(table.column_names.index(name), name, pa.array(times))

    def _typed(self, table: pa.Table) -> tuple[pa.Table, list[Reject]]:
        """Rows of text with numbers where numbers belong; labels and times as they are written.
        Rows that break the schema are left out."""
        schema = self._schema
        batch, rejects, _ = table_to_batch(
            table,
            schema,
            unknown_columns="ignore",
            decimal=self._recording.config.decimal,
        )
        kept = np.delete(np.arange(len(table)), [reject.position for reject in rejects])
        typed = batch_to_table(batch, schema)
        for name in (schema.timestamp, schema.label):
            if name:
                raw = numbers_or_text(table[name].take(pa.array(kept)))
                typed = typed.set_column(typed.column_names.index(name), name, raw)
        return typed, rejects

    def _decoded(self, values: list[bytes]) -> tuple[pa.Table, list[Reject]]:
        """JSON values as columns, for a format that has columns."""
        lenient = msgspec.structs.replace(self._recording.config, unknown_columns="ignore")
        decoded = EventDecoder(self._schema, lenient).decode(values)
        return batch_to_table(decoded.batch, self._schema), decoded.rejects

    def _time_of(self, value: bytes) -> float:
        """Event time of a JSON value; NaN where it is not asked for, or can't be read: whoever
        reads the message will say what is wrong."""
        if not self._timed:
            return math.nan
        try:
            event = value if self._envelope is None else self._envelope.event_of(value)
            found = msgspec.json.decode(event)
            for step in self._steps(found):
                found = found[step]
            return read_time(found, self._schema)
        except (NiwakiError, msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
            return math.nan

    def _steps(self, event: Any) -> list[str]:
        name = self._schema.timestamp or ""
        return [name] if isinstance(event, dict) and name in event else name.split(".")
