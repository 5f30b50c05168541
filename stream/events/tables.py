"""Columns of an Arrow table, read as a batch of events.

Beneath `events`, which reads messages, and the recordings, which read files. In: a table and a
`Schema`. Out: an `EventBatch` without the rows that break the schema, a `Reject` for each of those,
and the text in numeric columns that is no number. Values are read as
`niwaki.model.features.values` says, whole columns at once where they are clean.

Shapes: B rows, N numeric columns.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from niwaki.model.errors import FeatureError
from niwaki.model.features.event_rows import Odd
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.features.values import (
    BEYOND_32_BITS,
    LARGEST_TIME_S,
    MISSING,
    NUMERIC_RULE,
    UNITS_PER_S,
    as_name,
    as_number,
    label_rule,
    parse_times,
    read_label,
    read_time,
    time_rule,
)
from niwaki.pruning.errors import shorten
from niwaki.stream.errors import EventError
from niwaki.stream.events.rejects import Reject

_is = pa.types
_NUMBER_TYPES = (_is.is_integer, _is.is_floating, _is.is_boolean, _is.is_decimal, _is.is_null)
_TEXT_TYPES = (
    _is.is_string,
    _is.is_large_string,
    _is.is_string_view,
    _is.is_binary,
    _is.is_large_binary,
)
_NAME_TYPES = (*_NUMBER_TYPES, *_TEXT_TYPES, _is.is_date, _is.is_timestamp)


class TableEvents(NamedTuple):
    """The events of a table."""

    batch: EventBatch
    rejects: list[Reject]
    """In the order of rows; `position` is the row, from 0."""
    odd: list[Odd]
    """One for each numeric column with text that is no number."""


def table_to_batch(
    table: pa.Table | pa.RecordBatch,
    schema: Schema,
    *,
    unknown_columns: str = "reject",
    decimal: str = ".",
) -> TableEvents:
    """The events of `table`, without the rows that break the schema.

    A categorical or numeric column may be absent. `unknown_columns`: "ignore" takes tables with
    columns that the schema does not know. `decimal`: see `as_number`. Raises `EventError` where a
    whole column has a wrong type.
    """
    if isinstance(table, pa.RecordBatch):
        table = pa.Table.from_batches([table])
    if len(set(table.column_names)) < len(table.column_names):
        name = max(table.column_names, key=table.column_names.count)
        raise EventError("column", name, "must be there once")
    if unknown_columns == "reject":
        _refuse_unknown(table, schema)
    wrong: dict[int, Reject] = {}
    odd: list[Odd] = []
    numerics = [_numbers(table, name, decimal, wrong, odd) for name in schema.numeric]
    numerics_NB = np.array(numerics, np.float64).reshape(len(numerics), len(table))
    categorical = tuple(_names(table, name, wrong) for name in schema.categorical)
    times_s_B = _times(table, schema, wrong) if schema.timestamp else np.zeros(len(table))
    labels_B = _labels(table, schema, wrong)
    batch = EventBatch(labels_B.astype(np.float32), times_s_B, categorical, narrow(numerics_NB))
    rejects = [wrong[row] for row in sorted(wrong)]
    return TableEvents(without_events(batch, wrong), rejects, odd)


def _refuse_unknown(table: pa.Table, schema: Schema) -> None:
    known = {schema.label, schema.timestamp, *schema.categorical, *schema.numeric, *schema.ignore}
    parents = {name.split(".")[0] for name in known if name}
    for name in table.column_names:
        if name not in known and name not in parents:
            raise EventError("column", shorten(name), "must be a column of the schema")


def narrow(numerics_NB: np.ndarray) -> np.ndarray:
    """Numerics of 64 bits, (N, B), as float32 (B, N)."""
    with np.errstate(over="ignore"):  # numbers that overflow are rejected
        return np.ascontiguousarray(numerics_NB.T, np.float32)


def numeric_rejects(numerics_NB: np.ndarray, schema: Schema) -> dict[int, Reject]:
    """A `Reject` for each row with a number that 32 bits can't hold, by row."""
    rejects: dict[int, Reject] = {}
    if not (np.abs(numerics_NB) >= BEYOND_32_BITS).any():
        return rejects
    for name, values_B in zip(schema.numeric, numerics_NB, strict=True):
        _refuse_infinite(name, values_B, rejects)
    return rejects


def _refuse_infinite(name: str, values_B: np.ndarray, wrong: dict[int, Reject]) -> None:
    for row in np.flatnonzero(np.abs(values_B) >= BEYOND_32_BITS).tolist():
        wrong[row] = Reject(row, "numeric", name, NUMERIC_RULE, str(values_B[row]))


def without_events(batch: EventBatch, rows: Collection[int]) -> EventBatch:
    """The events of `batch` without those of `rows`."""
    return batch.take(np.delete(np.arange(len(batch)), list(rows))) if rows else batch


def find_column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """The column called `name`, or the leaf of nested columns at the path `name`, with the values
    of a dictionary in place of their codes; None if it is not there."""
    column, path = None, ""
    if name in table.column_names:
        column = table.column(name)
    else:
        heads = [one for one in table.column_names if name.startswith(f"{one}.")]
        if heads:
            column, path = table.column(heads[0]), name[len(heads[0]) + 1 :]
    while column is not None and path:
        kind = column.type
        fields = (
            [kind.field(at).name for at in range(kind.num_fields)] if _is.is_struct(kind) else []
        )
        step = path if path in fields else path.split(".")[0]
        if step not in fields:
            return None
        column, path = pc.struct_field(column, step), path[len(step) + 1 :]
    if column is not None and _is.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column


def event_times(table: pa.Table, schema: Schema) -> np.ndarray:
    """The event time of each row, float64 seconds (B,); NaN where there is none."""
    wrong: dict[int, Reject] = {}
    times_s_B = _times(table, schema, wrong)
    times_s_B[list(wrong)] = np.nan
    return times_s_B


def numbers_or_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text as integers or floats if all of it is such; else as it is."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return column


def _is_one(kind: pa.DataType, tests: Collection[Callable[[pa.DataType], bool]]) -> bool:
    return any(test(kind) for test in tests)


def _float64(column: pa.ChunkedArray) -> np.ndarray:
    values_B: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy()
    return values_B


def _numbers(
    table: pa.Table, name: str, decimal: str, wrong: dict[int, Reject], odd: list[Odd]
) -> np.ndarray:
    """float64 (B,), NaN where null, no number, or where the column is absent."""
    column = find_column(table, name)
    if column is None:
        return np.full(len(table), np.nan)
    if _is_one(column.type, _NUMBER_TYPES):
        values_B = _float64(column)
    elif _is_one(column.type, _TEXT_TYPES):
        values_B = _text_numbers(column, name, decimal, odd)
    else:
        raise EventError("numeric", name, f"must be numbers, got a column of {column.type}")
    _refuse_infinite(name, values_B, wrong)
    return values_B


def _text_numbers(column: pa.ChunkedArray, name: str, decimal: str, odd: list[Odd]) -> np.ndarray:
    plain = _plain_numbers(column) if decimal == "." else None
    if plain is not None:
        return plain

    def read(value: Any) -> float | None:
        try:
            return as_number(value, name, decimal)
        except FeatureError:  # infinite
            return np.inf

    text, values, codes_B = _by_value(column, read)
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    strange_B = np.array([value is None for value in values], bool)[codes_B]
    if strange_B.any():
        first = text[codes_B[np.argmax(strange_B)]]
        odd.append(Odd(name, int(strange_B.sum()), shorten(first)))
    numbers_B: np.ndarray = numbers[codes_B]
    return numbers_B


def _plain_numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """Text as float64 if all of it is plain numbers or missing; else None."""
    if not (_is.is_string(column.type) or _is.is_large_string(column.type)):
        return None
    for words in (False, True):
        if words:
            column = pc.utf8_trim_whitespace(column)
            gone = pc.is_in(pc.utf8_lower(column), pa.array(sorted(MISSING), column.type))
            column = pc.if_else(gone, pa.scalar(None, column.type), column)
        try:
            return _float64(column)
        except pa.ArrowInvalid:
            continue
    return None


class _ByValue(NamedTuple):
    text: list[Any]
    """The different values of a column; None, last, for null."""
    read: list[Any]
    """Each as it was read."""
    codes_B: np.ndarray
    """The place of each row's value."""


def _by_value(column: pa.ChunkedArray, read: Callable[[Any], Any]) -> _ByValue:
    """The column's values as `read` reads each different one, once."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.chunks)
    text = [*map(_decoded, encoded.dictionary.to_pylist()), None]
    codes_B = encoded.indices.fill_null(len(text) - 1).to_numpy(False)
    return _ByValue(text, [read(value) for value in text], codes_B)


def _floats_by_value(column: pa.ChunkedArray, read: Callable[[Any], float]) -> np.ndarray:
    """The column's values as `read` reads them, float64 (B,); NaN where it raises."""

    def read_or_nan(value: Any) -> float:
        try:
            return read(value)
        except FeatureError:
            return np.nan

    by_value = _by_value(column, read_or_nan)
    values_B: np.ndarray = np.array(by_value.read, np.float64)[by_value.codes_B]
    return values_B


def _decoded(value: Any) -> Any:
    """Bytes as text; what is not UTF-8 stays as it is."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


def _labels(table: pa.Table, schema: Schema, wrong: dict[int, Reject]) -> np.ndarray:
    """float64 (B,); a row without a label that counts is in `wrong`."""
    column = find_column(table, schema.label)
    if column is None:
        if schema.missing_label == "negative":
            return np.zeros(len(table))
        raise EventError("label", schema.label, "must be there")
    if not _is_one(column.type, (*_NUMBER_TYPES, *_TEXT_TYPES)):
        rule = f"{label_rule(schema)}, got a column of {column.type}"
        raise EventError("label", schema.label, rule)
    labels_B = None
    if not schema.label_positive:
        numbers = _is_one(column.type, _NUMBER_TYPES)
        labels_B = _float64(column) if numbers else _plain_numbers(column)
    if labels_B is None:
        labels_B = _floats_by_value(column, lambda value: read_label(value, schema))
    else:
        missing_B = np.isnan(labels_B)
        if schema.label_threshold is not None:
            labels_B = np.where(missing_B, np.nan, labels_B >= schema.label_threshold)
        if schema.missing_label == "negative":
            labels_B = np.where(missing_B, 0.0, labels_B)
    for row in np.flatnonzero(~((labels_B >= 0) & (labels_B <= 1))).tolist():
        value = shorten(column[row].as_py())
        wrong[row] = Reject(row, "label", schema.label, label_rule(schema), value)
    return labels_B


def _times(table: pa.Table, schema: Schema, wrong: dict[int, Reject]) -> np.ndarray:
    """float64 (B,) seconds since the epoch; a row without a time is in `wrong`."""
    name = schema.timestamp or ""
    column = find_column(table, name)
    if column is None:
        raise EventError("timestamp", name, "must be there")
    shape = schema.timestamp_format
    if _is.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    if _is.is_timestamp(column.type):
        # Microseconds since 1970 are whole numbers that 64 bits hold exactly.
        column = column.cast(pa.timestamp("us", column.type.tz), safe=False).cast(pa.int64())
        times_s_B = _float64(column) / UNITS_PER_S["us"]
    elif shape in UNITS_PER_S and _is_one(column.type, _NUMBER_TYPES[:2]):
        times_s_B = _float64(column) / UNITS_PER_S[shape]
    elif _is_one(column.type, (*_TEXT_TYPES, *_NUMBER_TYPES[:2])):
        times_s_B = _text_times(column, schema)
    else:
        rule = f"{time_rule(schema)}, got a column of {column.type}"
        raise EventError("timestamp", name, rule)
    for row in np.flatnonzero(~(np.abs(times_s_B) <= LARGEST_TIME_S)).tolist():
        value = shorten(column[row].as_py())
        wrong[row] = Reject(row, "timestamp", name, time_rule(schema), value)
    return times_s_B


def _text_times(column: pa.ChunkedArray, schema: Schema) -> np.ndarray:
    shape = schema.timestamp_format
    if shape not in UNITS_PER_S:
        floats = _is.is_floating(column.type)  # integers of pandas, some of which are missing
        text = _float_names(column, schema.timestamp or "") if floats else column.cast(pa.string())
        return parse_times(text, shape)
    plain = _plain_numbers(column)
    if plain is not None:
        return plain / UNITS_PER_S[shape]
    return _floats_by_value(column, lambda value: read_time(value, schema))


def _names(table: pa.Table, name: str, wrong: dict[int, Reject]) -> pa.Array:
    """Strings (B,), null where missing or where the column is absent."""
    column = find_column(table, name)
    if column is None:
        return pa.nulls(len(table), pa.string())
    kind = column.type
    if not _is_one(kind, _NAME_TYPES):
        rule = f"must be strings or integers, got a column of {kind}"
        raise EventError("categorical", name, rule)
    if _is.is_floating(kind):
        return _float_names(column, name)
    try:
        return column.cast(pa.string()).combine_chunks()
    except pa.ArrowInvalid:  # bytes that are not UTF-8
        names = [_decoded(value) for value in column.to_pylist()]
    for row, value in enumerate(names):
        if isinstance(value, bytes):
            wrong[row] = Reject(row, "categorical", name, "must be UTF-8", shorten(value))
            names[row] = None
    return pa.array(names, pa.string())


def _float_names(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Floating-point numbers as names: integers where they are whole."""
    values_B = _float64(column)
    known_B = ~np.isnan(values_B)
    if (values_B[known_B] == np.floor(values_B[known_B])).all() and (
        np.abs(values_B[known_B]) < 2**53
    ).all():
        whole = np.where(known_B, values_B, 0).astype(np.int64)
        return pa.array(whole, mask=~known_B).cast(pa.string())
    return pa.array([as_name(value, name) for value in column.to_pylist()], pa.string())
