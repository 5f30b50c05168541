"""Wire formats: bytes of Kafka messages <-> columns of events.

First stop after the poll. In: message values, each one event as a JSON object or many events as an
Arrow IPC stream; the first bytes distinguish them. Out: one `EventBatch` in the order of the
messages, and a `Reject` with its reason for each message or row that cannot be learned from. One
bad event never costs another one. The decoder repairs nothing: a wrong type is rejected.
A further format takes an entry in `ENCODERS` and a branch in `EventDecoder.decode`.
"""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.errors import FeatureError
from niwaki.model.features.schema import EventBatch, Schema, rows_to_batch
from niwaki.pruning.errors import check_rules
from niwaki.stream.errors import ConfigError, EventError
from niwaki.stream.tables import (
    LABEL_RULE,
    LARGEST_TIME_MS,
    TIME_RULE,
    Reject,
    narrow,
    numeric_rejects,
    table_to_batch,
    take_events,
    without_events,
)

ARROW_START = b"\xff\xff\xff\xff"
"""Continuation marker with which every Arrow IPC stream begins, and no JSON text."""
MAX_EVENT_BYTES = 1_000_000
"""Default of the largest size of a message for each of its events."""


class EventsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way that events are read, from a topic or a file (the `[events]` section)."""

    envelope: str = ""
    """Path of the event in its message or row, names separated by points, such as
    "payload.after"; "": the message is the event."""
    unknown_columns: Literal["reject", "ignore"] = "reject"
    """Treatment of an event of a topic with a column that the schema does not name."""
    max_rejected_ratio: float = 0.01
    """Share of a file's events that may be left out, 0..1; with more, a command fails."""
    separator: str = ""
    """Text between the fields of a delimited file, such as ";" or "::"; "": seen in the file."""
    names: tuple[str, ...] = ()
    """Names of the columns of a delimited file without a header; empty: its first line has them."""
    encoding: str = ""
    """Encoding of a text file, such as "latin-1"; "": UTF-8, or what its byte order mark says."""

    def __post_init__(self) -> None:
        rules = {
            "max_rejected_ratio": (0 <= self.max_rejected_ratio <= 1, "must be in 0..1"),
            "envelope": (all(self.envelope.split(".")) or not self.envelope, "must be names"),
            "names": (
                len(set(self.names)) == len(self.names) and all(self.names),
                "must be different names",
            ),
        }
        check_rules(self, rules)


_ROWS_AT_ONCE = 1_024
"""JSON events that are made into columns together: few enough to be still in the processor's
cache."""


class Decoded(NamedTuple):
    """The events of messages, and the messages that hold none."""

    batch: EventBatch
    message_B: np.ndarray
    """int64, the index of each event's message."""
    rejects: list[Reject]
    """In the order of their messages."""


class EventDecoder:
    """Decodes messages to columns: about a microsecond for a JSON event, far less in an Arrow
    message."""

    def __init__(self, schema: Schema, *, max_event_bytes: int = MAX_EVENT_BYTES):
        self.schema, self.max_event_bytes = schema, max_event_bytes
        self._row_type = _row_type(schema)
        self._decode_row: Callable[[bytes], msgspec.Struct] = msgspec.json.Decoder(
            self._row_type
        ).decode

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The events of the messages `values`; None is a message without a value, a reject."""
        rows: list[msgspec.Struct] = []
        row_at: list[int] = []
        tables: dict[pa.Schema, list[tuple[int, pa.Table]]] = {}
        rejects: list[Reject] = []
        pieces: list[tuple[EventBatch, np.ndarray]] = []
        for index, value in enumerate(values):
            if len(rows) == _ROWS_AT_ONCE:
                pieces.append(self._rows_to_batch(rows, row_at, rejects))
                rows, row_at = [], []
            if value is not None and len(value) <= self.max_event_bytes:
                try:
                    rows.append(self._decode_row(value))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    pass  # an Arrow message, or a broken one: see below
                else:
                    row_at.append(index)
                    continue
            try:
                if value is not None and value.startswith(ARROW_START):
                    table = self._open_arrow(value)
                    tables.setdefault(table.schema, []).append((index, table))
                else:
                    rows.append(self._decode_leniently(value))
                    row_at.append(index)
            except EventError as error:
                rejects.append(Reject(index, error.kind, error.field, error.rule, error.value))
        pieces.append(self._rows_to_batch(rows, row_at, rejects))
        pieces += [self._tables_to_batch(alike, rejects) for alike in tables.values()]
        batch = EventBatch.concat([piece for piece, _ in pieces])
        index_B = np.concatenate([index_B for _, index_B in pieces])
        if (index_B[1:] < index_B[:-1]).any():  # both kinds of message in one poll
            order_B = np.argsort(index_B, kind="stable")
            batch, index_B = take_events(batch, order_B), index_B[order_B]
        return Decoded(batch, index_B, sorted(rejects))

    def _decode_leniently(self, value: bytes | None) -> msgspec.Struct:
        """The row of an object with `NaN`, which Python writes though it is not JSON. Raises
        `EventError` for a broken message."""
        if value is None:
            raise EventError("null", "value", "must not be null")
        if len(value) > self.max_event_bytes:
            raise EventError(
                "size",
                "value",
                f"must be at most {self.max_event_bytes} bytes, got {len(value)} bytes",
            )
        try:
            row = json.loads(value.decode())
        except (ValueError, RecursionError) as error:
            raise EventError("json", "value", f"must be JSON ({error})", value[:80]) from error
        if not isinstance(row, dict):
            raise EventError("json", "value", "must be a JSON object", row)
        try:
            event = msgspec.convert(row, self._row_type)
        # A UnicodeEncodeError: half of a surrogate pair in a key.
        except (msgspec.ValidationError, UnicodeEncodeError) as error:
            self._check(row)
            raise EventError("column", "value", str(error)) from error
        label = msgspec.structs.astuple(event)[0]
        if label != label or b"\\u" in value:  # a label that is NaN; half of a surrogate pair
            self._check(row)
        return event

    def _check(self, row: dict[str, object]) -> None:
        """Raise the `EventError` that names the field and rule that `row` breaks, if any."""
        schema = self.schema
        if isinstance(row.get(schema.label), bool):
            raise EventError("label", schema.label, LABEL_RULE, row[schema.label])
        if schema.timestamp and row.get(schema.timestamp) is None:
            raise EventError("timestamp", schema.timestamp, TIME_RULE, None)
        try:
            rows_to_batch([row], schema, labelled=True)
        except FeatureError as error:
            roles = dict.fromkeys(schema.categorical, "categorical")
            roles |= dict.fromkeys(schema.numeric, "numeric") | {schema.label: "label"}
            if schema.timestamp:
                roles[schema.timestamp] = "timestamp"
            rule = f"{error.rule}, got {error.value}" if error.value else error.rule
            raise EventError(roles.get(error.field, "column"), error.field, rule) from error

    def _open_arrow(self, value: bytes) -> pa.Table:
        try:
            table = pa.ipc.open_stream(value).read_all()
            # Of offsets and UTF-8: a read of what a damaged message points at could crash.
            table.validate(full=True)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise EventError("arrow", "value", f"must be an Arrow IPC stream ({error})") from error
        if table.num_rows > len(value):
            raise EventError(
                "arrow",
                "value",
                f"must hold no more events than bytes, got {table.num_rows} events",
            )
        if len(value) > self.max_event_bytes * max(table.num_rows, 1):
            got = f"{len(value)} bytes for {table.num_rows} events"
            raise EventError(
                "size", "value", f"must be at most {self.max_event_bytes} bytes an event, got {got}"
            )
        return table

    def _tables_to_batch(
        self, tables: list[tuple[int, pa.Table]], rejects: list[Reject]
    ) -> tuple[EventBatch, np.ndarray]:
        """The events of tables of one schema, decoded together: the cost of a column is paid
        once."""
        lengths = [len(table) for _, table in tables]
        index_B = np.repeat(np.array([index for index, _ in tables], np.int64), lengths)
        try:
            batch, wrong = table_to_batch(
                pa.concat_tables([table for _, table in tables]), self.schema
            )
        except EventError as error:
            rejects += [
                Reject(index, error.kind, error.field, error.rule, error.value, len(table))
                for index, table in tables
            ]
            return self._rows_to_batch([], [], rejects)
        first_row = dict(
            zip((index for index, _ in tables), np.cumsum([0, *lengths[:-1]]).tolist(), strict=True)
        )
        by_message: dict[int, list[Reject]] = {}
        for reject in wrong:
            by_message.setdefault(int(index_B[reject.position]), []).append(reject)
        # One reject for each message, since a message is dead-lettered as a whole.
        for index, those in by_message.items():
            first = those[0]
            row = first.position - first_row[index]
            rule = f"{first.rule} (row {row}, the first of {len(those)} wrong ones)"
            rejects.append(Reject(index, first.kind, first.field, rule, first.value, len(those)))
        return batch, np.delete(index_B, [reject.position for reject in wrong])

    def _rows_to_batch(
        self, rows: list[msgspec.Struct], row_at: list[int], rejects: list[Reject]
    ) -> tuple[EventBatch, np.ndarray]:
        columns = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
        columns = columns or [()] * len(self._row_type.__struct_fields__)
        labels_B = np.array(columns.pop(0), np.float32)
        times_s_B = (
            np.array(columns.pop(0), np.float64) / 1000
            if self.schema.timestamp
            else np.zeros(len(rows))
        )
        first, fields = len(self.schema.categorical), len(self.schema.numeric)
        categorical = tuple(_strings(column) for column in columns[:first])
        numerics_NB = np.array(columns[first : first + fields], np.float64).reshape(
            fields, len(rows)
        )
        batch = EventBatch(labels_B, times_s_B, categorical, narrow(numerics_NB))
        wrong = numeric_rejects(numerics_NB, self.schema)
        rejects += [reject._replace(position=row_at[reject.position]) for reject in wrong.values()]
        return without_events(batch, wrong), np.delete(np.array(row_at, np.int64), list(wrong))


def encode_json(table: pa.Table) -> list[bytes]:
    """Each row as a JSON object: nulls left out, timestamps in milliseconds, booleans as 0 and
    1."""
    columns = [_plain(column).to_pylist() for column in table.columns]
    row = _struct([(name, object, None) for name in table.column_names], omit_defaults=True)
    return list(map(msgspec.json.Encoder().encode, map(row, *columns)))


def encode_arrow(table: pa.Table, events_per_message: int) -> list[bytes]:
    """The rows as Arrow IPC streams of `events_per_message` events each (the last one may have
    fewer)."""
    messages = []
    for start in range(0, len(table), events_per_message):
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table.slice(start, events_per_message).combine_chunks())
        messages.append(sink.getvalue().to_pybytes())
    return messages


ENCODERS: dict[str, Callable[[pa.Table, int], list[bytes]]] = {
    "json": lambda table, events_per_message: encode_json(table),
    "arrow": encode_arrow,
}
"""By name of a wire format, the function that makes messages of a table; the second argument is the
number of events per message, which only formats with many events use."""


def _row_type(schema: Schema) -> type[msgspec.Struct]:
    """A struct with one field for each column, in the order: label, timestamp, categorical,
    numeric, ignored."""
    time = Annotated[int, msgspec.Meta(ge=-LARGEST_TIME_MS, le=LARGEST_TIME_MS)]
    columns: list[tuple[str, Any, object]] = [
        (schema.label, Annotated[float, msgspec.Meta(ge=0, le=1)], msgspec.NODEFAULT),
        *([(schema.timestamp, time, msgspec.NODEFAULT)] if schema.timestamp else []),
        *((name, str | int | None, None) for name in schema.categorical),
        *((name, float | None, None) for name in schema.numeric),
        *((name, msgspec.Raw, msgspec.Raw()) for name in schema.ignore),
    ]
    return _struct(columns, forbid_unknown_fields=True)


def _struct(
    columns: Sequence[tuple[str, Any, object]],
    *,
    omit_defaults: bool = False,
    forbid_unknown_fields: bool = False,
) -> type[msgspec.Struct]:
    """A struct type with fields f0, f1, ..., which in JSON have the names of their columns. A
    column may be called "class" or "a b"."""
    names = {f"f{at}": column[0] for at, column in enumerate(columns)}
    fields = [(field, *column[1:]) for field, column in zip(names, columns, strict=True)]
    try:
        return msgspec.defstruct(
            "Event",
            fields,
            rename=names,
            gc=False,
            omit_defaults=omit_defaults,
            forbid_unknown_fields=forbid_unknown_fields,
        )
    except ValueError as error:
        raise ConfigError("schema", f"a column can't have that name ({error})") from error


def _strings(column: Sequence[str | int | None]) -> pa.Array:
    for kind in (pa.string(), pa.int64()):  # nearly every column holds one kind only
        try:
            return pa.array(column, kind).cast(pa.string())
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
            continue
    return pa.array([None if value is None else str(value) for value in column], pa.string())


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` in a type whose Python values JSON has."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column
