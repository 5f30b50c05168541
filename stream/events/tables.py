"""Columns of an Arrow table, read as a batch of events.

Beneath `events`, which reads messages, and the recordings, which read files. In: a table and a
`Schema`. Out: an `EventBatch` without the rows that break the schema, a `Reject` for each of those,
and the text in numeric columns that is no number. Values are read as
`niwaki.model.features.values` says, whole columns at once where they are clean.

Shapes: B rows, N numeric columns.
"""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.errors import FeatureError
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.features.values import (
    BEYOND_32_BITS,
    LARGEST_TIME_S,
    NUMERIC_RULE,
    SAMPLING_RATIO,
    UNITS_PER_S,
    WEIGHT,
    Bounds,
    Odd,
    as_number,
    label_rule,
    parse_times,
    read_bounded,
    read_label,
    read_time,
    time_rule,
)
from niwaki.pruning.errors import shorten
from niwaki.stream.errors import EventError
from niwaki.stream.events.arrow_columns import (
    NAME_TYPES,
    NUMBER_TYPES,
    TEXT_TYPES,
    by_value,
    find_column,
    float64,
    float_names,
    floats_by_value,
    is_one,
    names_of,
    plain_numbers,
)
from niwaki.stream.events.list_columns import read_list_column
from niwaki.stream.events.rejects import Reject

_is = pa.types


class TableEvents(NamedTuple):
    """The events of a table."""

    batch: EventBatch
    rejects: list[Reject]
    """In the order of rows; `position` is the row, from 0."""
    odd: list[Odd]
    """One for each numeric column with text that is no number, and each with lists too long."""


def table_to_batch(
    table: pa.Table | pa.RecordBatch,
    schema: Schema,
    *,
    unknown_columns: str = "reject",
    decimal: str = ".",
) -> TableEvents:
    """The events of `table`, without the rows that break the schema.

    A categorical, numeric or list column may be absent. `unknown_columns`: "ignore" takes tables
    with columns that the schema does not know. `decimal`: see `as_number`. Raises `EventError`
    where a whole column has a wrong type.
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
    lists = tuple(read_list_column(table, name, schema, wrong, odd) for name in schema.lists)
    weights_B = _bounded(table, schema.weight, WEIGHT, decimal, wrong)
    sampling_B = _bounded(table, schema.sampling_ratio, SAMPLING_RATIO, decimal, wrong)
    times_s_B = _times(table, schema, wrong) if schema.timestamp else np.zeros(len(table))
    labels_B = _labels(table, schema, wrong)
    batch = EventBatch(
        labels_B.astype(np.float32),
        times_s_B,
        categorical,
        narrow(numerics_NB),
        lists,
        weights_B,
        sampling_B,
    )
    rejects = [wrong[row] for row in sorted(wrong)]
    return TableEvents(without_events(batch, wrong), rejects, odd)


def _refuse_unknown(table: pa.Table, schema: Schema) -> None:
    known = {*schema.columns, *schema.ignore}
    parents = {name.split(".")[0] for name in known}
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


def event_times(table: pa.Table, schema: Schema) -> np.ndarray:
    """The event time of each row, float64 seconds (B,); NaN where there is none."""
    wrong: dict[int, Reject] = {}
    times_s_B = _times(table, schema, wrong)
    times_s_B[list(wrong)] = np.nan
    return times_s_B


def _numbers(
    table: pa.Table, name: str, decimal: str, wrong: dict[int, Reject], odd: list[Odd]
) -> np.ndarray:
    """float64 (B,), NaN where null, no number, or where the column is absent."""
    column = find_column(table, name)
    if column is None:
        return np.full(len(table), np.nan)
    if is_one(column.type, NUMBER_TYPES):
        values_B = float64(column)
    elif is_one(column.type, TEXT_TYPES):
        values_B = _text_numbers(column, name, decimal, odd)
    else:
        raise EventError("numeric", name, f"must be numbers, got a column of {column.type}")
    _refuse_infinite(name, values_B, wrong)
    return values_B


def _text_numbers(column: pa.ChunkedArray, name: str, decimal: str, odd: list[Odd]) -> np.ndarray:
    plain = plain_numbers(column) if decimal == "." else None
    if plain is not None:
        return plain

    def read(value: Any) -> float | None:
        try:
            return as_number(value, name, decimal)
        except FeatureError:  # infinite
            return np.inf

    text, values, codes_B = by_value(column, read)
    numbers = np.array([np.nan if value is None else value for value in values], np.float64)
    strange_B = np.array([value is None for value in values], bool)[codes_B]
    if strange_B.any():
        first = text[codes_B[np.argmax(strange_B)]]
        odd.append(Odd(name, int(strange_B.sum()), shorten(first)))
    numbers_B: np.ndarray = numbers[codes_B]
    return numbers_B


def _labels(table: pa.Table, schema: Schema, wrong: dict[int, Reject]) -> np.ndarray:
    """float64 (B,); a row without a label that counts is in `wrong`."""
    column = find_column(table, schema.label)
    if column is None:
        if schema.missing_label == "negative":
            return np.zeros(len(table))
        raise EventError("label", schema.label, "must be there")
    if not is_one(column.type, (*NUMBER_TYPES, *TEXT_TYPES)):
        rule = f"{label_rule(schema)}, got a column of {column.type}"
        raise EventError("label", schema.label, rule)
    labels_B = None
    if not schema.label_positive:
        numbers = is_one(column.type, NUMBER_TYPES)
        labels_B = float64(column) if numbers else plain_numbers(column)
    if labels_B is None:
        labels_B = floats_by_value(column, lambda value: read_label(value, schema))
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
        times_s_B = float64(column) / UNITS_PER_S["us"]
    elif shape in UNITS_PER_S and is_one(column.type, NUMBER_TYPES[:2]):
        times_s_B = float64(column) / UNITS_PER_S[shape]
    elif is_one(column.type, (*TEXT_TYPES, *NUMBER_TYPES[:2])):
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
        text = float_names(column, schema.timestamp or "") if floats else column.cast(pa.string())
        return parse_times(text, shape)
    plain = plain_numbers(column)
    if plain is not None:
        return plain / UNITS_PER_S[shape]
    return floats_by_value(column, lambda value: read_time(value, schema))


def _names(table: pa.Table, name: str, wrong: dict[int, Reject]) -> pa.Array:
    """Strings (B,), null where missing or where the column is absent."""
    column = find_column(table, name)
    if column is None:
        return pa.nulls(len(table), pa.string())
    if not is_one(column.type, NAME_TYPES):
        rule = f"must be strings or integers, got a column of {column.type}"
        raise EventError("categorical", name, rule)
    names_B, broken = names_of(column, name)
    for row, value in broken.items():
        wrong[row] = Reject(row, "categorical", name, "must be UTF-8", shorten(value))
    return names_B


def _bounded(
    table: pa.Table, name: str | None, bounds: Bounds, decimal: str, wrong: dict[int, Reject]
) -> np.ndarray | None:
    """float32 (B,); a row without a number within bounds is in `wrong`. None without a `name`."""
    if name is None:
        return None
    column = find_column(table, name)
    if column is None:
        raise EventError(bounds.option, name, "must be there")
    if is_one(column.type, NUMBER_TYPES):
        values_B = float64(column)
    elif is_one(column.type, TEXT_TYPES):
        values_B = floats_by_value(column, lambda value: read_bounded(value, name, bounds, decimal))
    else:
        rule = f"{bounds.rule}, got a column of {column.type}"
        raise EventError(bounds.option, name, rule)
    held_B = bounds.hold(values_B)
    for row in np.flatnonzero(~held_B).tolist():
        value = shorten(column[row].as_py())
        wrong[row] = Reject(row, bounds.option, name, bounds.rule, value)
    return np.where(held_B, values_B, 1.0).astype(np.float32)
