"""Wire formats: bytes of Kafka messages -> columns of events.

First stop after the poll. In: message values, each one event as a JSON object or many events as an
Arrow IPC stream; the first bytes distinguish them. Out: one `EventBatch` in the order of the
messages, and a `Reject` with its reason for each message or row that cannot be learned from. One
bad event never costs another one.
A further format takes a branch in `EventDecoder.decode`, and an entry in `encoders.ENCODERS`.
"""

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.errors import FeatureError
from niwaki.model.features.event_rows import rows_to_batch
from niwaki.model.features.list_values import read_lists
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.features.values import (
    LARGEST_TIME_S,
    SAMPLING_RATIO,
    UNITS_PER_S,
    WEIGHT,
    Odd,
    as_name,
)
from niwaki.stream.errors import EventError
from niwaki.stream.events.config import MAX_EVENT_BYTES, EventsConfig
from niwaki.stream.events.envelope import Envelope
from niwaki.stream.events.rejects import Reject
from niwaki.stream.events.structs import can_be_fields, new_struct
from niwaki.stream.events.tables import (
    narrow,
    numeric_rejects,
    table_to_batch,
    without_events,
)

ARROW_START = b"\xff\xff\xff\xff"
"""Continuation marker with which every Arrow IPC stream begins, and no JSON text."""
CONFLUENT_BYTES = 5
"""Length of the beginning of a message in Confluent's wire format: a byte 0 and a schema's id."""

_UNIT_OF_ROWS = "ms"
"""The timestamp format of plain rows."""
_LARGEST_TIME_MS = int(LARGEST_TIME_S) * 1000
_TIME_MS = Annotated[int, msgspec.Meta(ge=-_LARGEST_TIME_MS, le=_LARGEST_TIME_MS)]
_WEIGHT = Annotated[float, msgspec.Meta(ge=WEIGHT.least, le=WEIGHT.most)]
_SAMPLING_RATIO = Annotated[float, msgspec.Meta(ge=SAMPLING_RATIO.least, le=SAMPLING_RATIO.most)]
_NAME = str | int | float | bool | None
_LIST = list[_NAME] | dict[str, _WEIGHT | None] | _NAME
_DEFAULTS = EventsConfig()
_NO_EVENT = bytes(bytearray(b"no event"))
"""The place of a message that was rejected already; known by its identity."""
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
    odd: list[Odd]
    """Values that were read otherwise than they are written; several entries of a column are
    possible."""


class _Piece(NamedTuple):
    """Some of the events of a poll, with the index of each one's message."""

    batch: EventBatch
    message_B: np.ndarray


def confluent_id(value: bytes) -> int | None:
    """The id of the schema of a message in Confluent's wire format; None if it is in none."""
    if len(value) < CONFLUENT_BYTES or value[0]:
        return None
    return int.from_bytes(value[1:CONFLUENT_BYTES], "big")


class EventDecoder:
    """Decodes messages to columns: about a microsecond for a plain JSON event, some microseconds
    for one with nested objects or values to convert, far less in an Arrow message."""

    def __init__(
        self,
        schema: Schema,
        config: EventsConfig = _DEFAULTS,
        *,
        max_event_bytes: int = MAX_EVENT_BYTES,
    ):
        self.schema, self.max_event_bytes = schema, max_event_bytes
        self._unknown_columns, self._decimal = config.unknown_columns, config.decimal
        self._envelope = Envelope(config.envelope) if config.envelope else None
        self._row_type = _row_type(schema, config.unknown_columns)
        self._decode_row: Callable[[bytes], msgspec.Struct] | None = None
        if self._row_type is not None:
            self._decode_row = msgspec.json.Decoder(self._row_type).decode

    def decode(self, values: Sequence[bytes | None]) -> Decoded:
        """The events of the messages `values`; None is a message without a value, a reject."""
        tables: dict[pa.Schema, list[tuple[int, pa.Table]]] = {}
        rejects: list[Reject] = []
        odd: list[Odd] = []
        pieces: list[_Piece] = []
        rows: list[msgspec.Struct] = []
        row_at: list[int] = []
        objects: list[dict[str, Any]] = []
        object_at: list[int] = []
        decode_row, limit = self._decode_row, self.max_event_bytes
        for index, value in enumerate(self._opened(values, rejects)):
            if len(rows) == _ROWS_AT_ONCE:
                pieces.append(self._rows_to_batch(rows, row_at, rejects, odd))
                rows, row_at = [], []
            if value is not None and decode_row is not None and len(value) <= limit:
                try:
                    rows.append(decode_row(value))
                except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                    pass  # an Arrow message, a row to convert, or a broken one: see below
                else:
                    row_at.append(index)
                    continue
            if value is _NO_EVENT:
                continue
            try:
                if value is not None and value.startswith(ARROW_START):
                    table = self._open_arrow(value)
                    tables.setdefault(table.schema, []).append((index, table))
                else:
                    objects.append(self._parse(value))
                    object_at.append(index)
            except EventError as error:
                rejects.append(Reject.of(index, error))
        pieces.append(self._rows_to_batch(rows, row_at, rejects, odd))
        if objects:
            pieces += self._objects_to_pieces(objects, object_at, rejects, odd)
        pieces += [self._tables_to_batch(alike, rejects, odd) for alike in tables.values()]
        batch = EventBatch.concat([piece.batch for piece in pieces])
        index_B = np.concatenate([piece.message_B for piece in pieces])
        if (index_B[1:] < index_B[:-1]).any():  # several kinds of message in one poll
            order_B = np.argsort(index_B, kind="stable")
            batch, index_B = batch.take(order_B), index_B[order_B]
        return Decoded(batch, index_B, sorted(rejects), odd)

    def _opened(
        self, values: Sequence[bytes | None], rejects: list[Reject]
    ) -> Sequence[bytes | None]:
        """The events within the messages; `_NO_EVENT` where there is none. An Arrow message stays
        as it is until it is a table, and so does what `_parse` refuses."""
        if self._envelope is None:
            return values
        opened: list[bytes | None] = []
        for index, value in enumerate(values):
            if value is not None and len(value) <= self.max_event_bytes:
                try:
                    value = self._envelope.event_of(value)
                except EventError as error:
                    if not value.startswith((ARROW_START, b"\0")):
                        rejects.append(Reject.of(index, error))
                        value = _NO_EVENT
            opened.append(value)
        return opened

    def _parse(self, value: bytes | None) -> dict[str, Any]:
        """The object of a message, read as Python reads JSON: with `NaN`, which Python writes, and
        a byte order mark. Raises `EventError` for a broken message."""
        if value is None:
            raise EventError("null", "value", "must not be null")
        if len(value) > self.max_event_bytes:
            raise EventError(
                "size",
                "value",
                f"must be at most {self.max_event_bytes} bytes, got {len(value)} bytes",
            )
        if (schema_id := confluent_id(value)) is not None:
            rule = f"looks like Confluent's wire format with schema id {schema_id}"
            raise EventError(
                "registry", "value", f"{rule}; to read it, set kafka.schema_registry_url"
            )
        try:
            row = json.loads(value.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            raise EventError("json", "value", f"must be JSON ({error})", value[:80]) from error
        if not isinstance(row, dict):
            raise EventError("json", "value", "must be a JSON object", row)
        return row

    def _objects_to_pieces(
        self,
        objects: list[dict[str, Any]],
        object_at: list[int],
        rejects: list[Reject],
        odd: list[Odd],
    ) -> list[_Piece]:
        """The events of objects: together, or one by one if one of them is bad."""
        together: list[Odd] = []
        try:
            batch = self._objects_to_batch(objects, together)
        except (FeatureError, UnicodeEncodeError, RecursionError):
            pieces = []
            for row, at in zip(objects, object_at, strict=True):
                try:
                    batch = self._objects_to_batch([row], odd)
                except FeatureError as error:
                    kind = self._role(error.field)
                    rejects.append(Reject(at, kind, error.field, error.rule, error.value))
                except (UnicodeEncodeError, RecursionError) as wrong:
                    rejects.append(Reject(at, "column", "value", f"must be valid ({wrong})"))
                else:
                    pieces.append(_Piece(batch, np.array([at])))
            return pieces
        odd += together
        return [_Piece(batch, np.array(object_at))]

    def _objects_to_batch(self, objects: list[dict[str, Any]], odd: list[Odd]) -> EventBatch:
        return rows_to_batch(
            objects,
            self.schema,
            labelled=True,
            timed=True,
            unknown_columns=self._unknown_columns,
            decimal=self._decimal,
            odd=odd,
        )

    def _role(self, column: str) -> str:
        """The kind of rule that a value of `column` breaks."""
        schema = self.schema
        roles = dict.fromkeys(schema.categorical, "categorical")
        roles |= dict.fromkeys(schema.numeric, "numeric") | dict.fromkeys(schema.lists, "list")
        roles[schema.label] = "label"
        for role in ("timestamp", "weight", "sampling_ratio"):
            roles[getattr(schema, role)] = role
        return roles.get(column, "column")

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
        return table if self._envelope is None else self._envelope.table_of(table)

    def _tables_to_batch(
        self, tables: list[tuple[int, pa.Table]], rejects: list[Reject], odd: list[Odd]
    ) -> _Piece:
        """The events of tables of one schema, decoded together: the cost of a column is paid
        once."""
        lengths = [len(table) for _, table in tables]
        index_B = np.repeat(np.array([index for index, _ in tables], np.int64), lengths)
        table = pa.concat_tables([table for _, table in tables])
        try:
            events = table_to_batch(
                table, self.schema, unknown_columns=self._unknown_columns, decimal=self._decimal
            )
        except (EventError, UnicodeDecodeError) as error:
            refused = (
                error
                if isinstance(error, EventError)
                else EventError("arrow", "value", f"must have names in UTF-8 ({error})")
            )
            rejects += [Reject.of(index, refused, len(table)) for index, table in tables]
            return self._rows_to_batch([], [], rejects, odd)
        odd += events.odd
        first_row = dict(
            zip((index for index, _ in tables), np.cumsum([0, *lengths[:-1]]).tolist(), strict=True)
        )
        by_message: dict[int, list[Reject]] = {}
        for reject in events.rejects:
            by_message.setdefault(int(index_B[reject.position]), []).append(reject)
        # One reject for each message, since a message is dead-lettered as a whole.
        for index, those in by_message.items():
            first = those[0]
            row = first.position - first_row[index]
            rule = f"{first.rule} (row {row}, the first of {len(those)} wrong ones)"
            rejects.append(Reject(index, first.kind, first.field, rule, first.value, len(those)))
        wrong = [reject.position for reject in events.rejects]
        return _Piece(events.batch, np.delete(index_B, wrong))

    def _rows_to_batch(
        self,
        rows: list[msgspec.Struct],
        places: list[int],
        rejects: list[Reject],
        odd: list[Odd],
    ) -> _Piece:
        """The events of plain rows. `places`: the index of each one's message."""
        schema, row_at = self.schema, np.array(places, np.int64)
        columns = list(zip(*map(msgspec.structs.astuple, rows), strict=True))
        columns = columns or [()] * len(schema.columns)
        labels_B = np.array(columns.pop(0), np.float32)
        times_s_B = np.zeros(len(row_at))
        if schema.timestamp:
            times_s_B = np.array(columns.pop(0), np.float64) / UNITS_PER_S[_UNIT_OF_ROWS]
        weights_B = np.array(columns.pop(0), np.float32) if schema.weight else None
        sampling_B = np.array(columns.pop(0), np.float32) if schema.sampling_ratio else None
        first, fields = len(schema.categorical), len(schema.numeric)
        categorical = tuple(_strings(column) for column in columns[:first])
        numerics_NB = np.array(columns[first : first + fields], np.float64)
        numerics_NB = numerics_NB.reshape(fields, len(row_at))
        wrong = numeric_rejects(numerics_NB, schema)
        lists = []
        for name, column in zip(schema.lists, columns[first + fields :], strict=False):
            failed: dict[int, FeatureError] = {}
            lists.append(read_lists(column, name, schema, odd, failed))
            for row, error in failed.items():
                wrong[row] = Reject(row, "list", name, error.rule, error.value)
        numerics_BN = narrow(numerics_NB)
        batch = EventBatch(
            labels_B, times_s_B, categorical, numerics_BN, tuple(lists), weights_B, sampling_B
        )
        rejects += [one._replace(position=places[one.position]) for one in wrong.values()]
        return _Piece(without_events(batch, wrong), np.delete(row_at, list(wrong)))


def _row_type(schema: Schema, unknown_columns: str) -> type[msgspec.Struct] | None:
    """A struct with one field for each of the schema's columns, in their order, and each ignored
    one. It takes plain rows only; all others are read as dictionaries.

    None where no row is plain: labels or times are to be converted, columns are paths, or have
    names that a struct can't have.
    """
    columns: list[tuple[str, Any, object]] = [
        (schema.label, bool | Annotated[float, msgspec.Meta(ge=0, le=1)], msgspec.NODEFAULT),
        *([(schema.timestamp, _TIME_MS, msgspec.NODEFAULT)] if schema.timestamp else []),
        *([(schema.weight, _WEIGHT, msgspec.NODEFAULT)] if schema.weight else []),
        *(
            [(schema.sampling_ratio, _SAMPLING_RATIO, msgspec.NODEFAULT)]
            if schema.sampling_ratio
            else []
        ),
        *((name, str | int | float | None, None) for name in schema.categorical),
        *((name, float | bool | None, None) for name in schema.numeric),
        *((name, _LIST, None) for name in schema.lists),
        *((name, msgspec.Raw, msgspec.Raw()) for name in schema.ignore),
    ]
    converted = (
        schema.label_threshold is not None
        or bool(schema.label_positive)
        or (schema.timestamp is not None and schema.timestamp_format != _UNIT_OF_ROWS)
        or any("." in column[0] for column in columns)
    )
    if converted or not can_be_fields(column[0] for column in columns):
        return None
    return new_struct(columns, forbid_unknown_fields=unknown_columns == "reject")


def _strings(column: Sequence[str | int | float | None]) -> pa.Array:
    try:  # nearly every column holds one kind only
        return pa.array(column, pa.string())
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass
    try:
        found = pa.array(column)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        found = None
    if found is not None and pa.types.is_integer(found.type):
        return found.cast(pa.string())
    return pa.array([as_name(value, "") for value in column], pa.string())
