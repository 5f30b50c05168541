"""Columns of an Arrow table, read as a batch of events.

Beneath `events`, which reads messages, and the recordings, which read files. In: a table and a
`Schema`. Out: an `EventBatch` without the rows that break the schema, and a `Reject` for each of
those. A wrong type is rejected, not converted; a wrong type of a whole column is an `EventError`.
"""

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning.errors import shorten
from niwaki.stream.errors import EventError, reason_of

KINDS = (
    "null",
    "size",
    "encoding",
    "row",
    "json",
    "arrow",
    "registry",
    "envelope",
    "column",
    "label",
    "timestamp",
    "categorical",
    "numeric",
)
"""Kinds of rules that an event can break, few enough to be labels of a metric."""

LARGEST_TIME_MS = 2**53
_LARGEST_NUMERIC = float(np.finfo(np.float32).max)
LABEL_RULE = "must be a number in [0, 1]"
TIME_RULE = "must be an integer number of milliseconds since the epoch"
_NUMERIC_RULE = "must be finite in 32 bits"
_is = pa.types
_NUMBER_TYPES = (_is.is_integer, _is.is_floating, _is.is_boolean, _is.is_decimal, _is.is_null)
_STRING_TYPES = (
    _is.is_string,
    _is.is_large_string,
    _is.is_string_view,
    _is.is_integer,
    _is.is_null,
)


class Reject(NamedTuple):
    """A message or row that cannot be learned from, with the reason."""

    position: int
    """Position in the decoded sequence: of a message, or of a row of a table. Of a recording: the
    line or row in the file, from 1."""
    kind: str
    """The kind of rule that it breaks, one of `KINDS`."""
    field: str
    """The column, or "value" for a message as a whole, or "row" for a row as a whole."""
    rule: str
    value: str = ""
    """The value as it is shown; empty where there is none."""
    events: int = 1
    """Number of rejected events. Other events of the same message, if any, are decoded."""

    @property
    def reason(self) -> str:
        """The field, the rule and the value in one line."""
        return reason_of(self.field, self.rule, self.value)


def table_to_batch(
    table: pa.Table | pa.RecordBatch, schema: Schema
) -> tuple[EventBatch, list[Reject]]:
    """The events of `table`, without the rows that break the schema, and a `Reject` for each of
    those; `Reject.position` is the row.

    A categorical column may hold strings or integers; Arrow timestamps are read as milliseconds,
    booleans as 0 and 1. A categorical or numeric column may be absent. Raises `EventError` where a
    whole column has a wrong type.
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    known = {schema.label, schema.timestamp, *schema.categorical, *schema.numeric, *schema.ignore}
    for name in table.column_names:
        if name not in known:
            raise EventError("column", shorten(name), "must be a column of the schema")
        if table.column_names.count(name) > 1:
            raise EventError("column", name, "must be there once")
    for name in (schema.label, schema.timestamp):
        if name is not None and name not in table.column_names:
            kind = "label" if name == schema.label else "timestamp"
            raise EventError(kind, name, "must be there")
    labels_B = _number_column(table, schema.label, schema)
    times_ms_B = _time_column(table, schema.timestamp) if schema.timestamp else np.zeros(len(table))
    categorical = tuple(_string_column(table, name) for name in schema.categorical)
    numerics = [_number_column(table, name, schema) for name in schema.numeric]
    numerics_NB = np.array(numerics, np.float64).reshape(len(numerics), len(table))
    with np.errstate(over="ignore"):  # a label too large for 32 bits is rejected below
        batch = EventBatch(
            labels_B.astype(np.float32), times_ms_B / 1000, categorical, narrow(numerics_NB)
        )
    wrong = numeric_rejects(numerics_NB, schema)
    for row in np.flatnonzero(~(np.abs(times_ms_B) <= LARGEST_TIME_MS)).tolist():
        field = schema.timestamp or ""
        wrong[row] = Reject(row, "timestamp", field, TIME_RULE, str(times_ms_B[row]))
    for row in np.flatnonzero(~((labels_B >= 0) & (labels_B <= 1))).tolist():
        wrong[row] = Reject(row, "label", schema.label, LABEL_RULE, str(labels_B[row]))
    return without_events(batch, wrong), [wrong[row] for row in sorted(wrong)]


def narrow(numerics_NB: np.ndarray) -> np.ndarray:
    """Numerics of 64 bits, (N, B), as float32 (B, N)."""
    with np.errstate(over="ignore"):  # numbers that overflow are rejected
        return np.ascontiguousarray(numerics_NB.T, np.float32)


def numeric_rejects(numerics_NB: np.ndarray, schema: Schema) -> dict[int, Reject]:
    """A `Reject` for each row with a number that 32 bits can't hold, by row."""
    rejects = {}
    for field, row in zip(*np.nonzero(np.abs(numerics_NB) > _LARGEST_NUMERIC), strict=True):
        value = str(numerics_NB[field, row])
        name = schema.numeric[field]
        rejects[int(row)] = Reject(int(row), "numeric", name, _NUMERIC_RULE, value)
    return rejects


def take_events(batch: EventBatch, order_B: np.ndarray) -> EventBatch:
    """The events of `batch` at the indices `order_B`, in that order."""
    categorical = tuple(column.take(pa.array(order_B)) for column in batch.categorical)
    return EventBatch(
        batch.labels_B[order_B], batch.times_s_B[order_B], categorical, batch.numerics_BN[order_B]
    )


def without_events(batch: EventBatch, rows: Collection[int]) -> EventBatch:
    """The events of `batch` without those of `rows`."""
    return take_events(batch, np.delete(np.arange(len(batch)), list(rows))) if rows else batch


def _value_type(column: pa.ChunkedArray) -> pa.DataType:
    return column.type.value_type if pa.types.is_dictionary(column.type) else column.type


def _number_column(table: pa.Table, name: str, schema: Schema) -> np.ndarray:
    """float64 (B,), NaN where null or where the column is absent."""
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    column = table.column(name)
    kind = _value_type(column)
    if not any(test(kind) for test in _NUMBER_TYPES):
        role = "label" if name == schema.label else "numeric"
        raise EventError(role, name, f"must be numbers, got a column of {kind}")
    return _float64(column.cast(kind))


def _time_column(table: pa.Table, name: str) -> np.ndarray:
    """float64 (B,) milliseconds since the epoch, NaN where null."""
    column = table.column(name)
    if pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
    if not pa.types.is_integer(column.type):
        raise EventError("timestamp", name, f"{TIME_RULE}, got a column of {column.type}")
    return _float64(column)


def _float64(column: pa.ChunkedArray) -> np.ndarray:
    values_B: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy()
    return values_B


def _string_column(table: pa.Table, name: str) -> pa.Array:
    if name not in table.column_names:
        return pa.nulls(len(table), pa.string())
    column = table.column(name)
    kind = _value_type(column)
    if not any(test(kind) for test in _STRING_TYPES):
        raise EventError(
            "categorical", name, f"must be strings or integers, got a column of {kind}"
        )
    return column.cast(kind).cast(pa.string()).combine_chunks()
