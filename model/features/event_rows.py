"""Dictionaries to batches of events: requests, River's rows, and messages that are not plain.

In: one dictionary for each event, values as JSON or River has them, nested objects included. Out:
an `EventBatch`, or a `FeatureError` that names the column, the rule and the value.

Shapes: B events.
"""

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from operator import itemgetter
from types import MappingProxyType, NoneType
from typing import Any

import numpy as np
import pyarrow as pa

from niwaki.model.errors import FeatureError
from niwaki.model.features.list_values import read_lists
from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.features.values import (
    BEYOND_32_BITS,
    SAMPLING_RATIO,
    WEIGHT,
    Bounds,
    Odd,
    as_name,
    as_number,
    clean_names,
    label_rule,
    read_bounded,
    read_label,
    read_time,
    time_rule,
)
from niwaki.pruning.errors import shorten


def rows_to_batch(
    rows: Sequence[Mapping[str, Any]],
    schema: Schema,
    *,
    labelled: bool = False,
    timed: bool = False,
    shared: Mapping[str, Any] = MappingProxyType({}),
    unknown_columns: str = "reject",
    decimal: str = ".",
    odd: list[Odd] | None = None,
) -> EventBatch:
    """Columns from dictionaries, one for each event.

    `labelled`: a label must be present, and so must a weight and a sampling ratio, where the schema
    has them; otherwise an absent label becomes NaN, and weights are not read. `timed`: so must a
    time, where the schema has one; otherwise an absent one becomes 0. `shared`: columns that all
    events have in common and that no row has. `unknown_columns`: "ignore" takes rows with columns
    that the schema does not know. `decimal`: see `as_number`. `odd`: takes what was no number, and
    which lists were too long; None: text that is no number is an error. Raises `FeatureError` for a
    value that the schema does not allow, and for an unknown column.
    """
    known = {*schema.columns, *schema.ignore}
    if any("." in name for name in known):
        rows = [_flat(row, known) for row in rows]
        shared = _flat(shared, known)
    given: set[str] = set().union(*rows)
    if unknown_columns == "reject":
        for row in (shared, *(() if given <= known else rows)):
            if not row.keys() <= known:
                name = next(name for name in row if name not in known)
                raise FeatureError(str(name), "must be a column of the schema", row[name])

    def column(name: str) -> list[Any]:
        """The values of all events, or the one value that they share."""
        if name not in given:
            return [shared.get(name)]
        try:
            return list(map(itemgetter(name), rows))
        except KeyError:
            return [row.get(name) for row in rows]

    return _to_batch(
        column, len(rows), {*given, *shared}, schema, labelled, timed, decimal=decimal, odd=odd
    )


def columns_to_batch(columns: Mapping[str, list[Any]], count: int, schema: Schema) -> EventBatch:
    """A batch of `count` events to score, from the values of each column. Raises `FeatureError` as
    `rows_to_batch` does."""
    known = {*schema.columns, *schema.ignore}
    for name, values in columns.items():
        if name not in known:
            value = values[0] if values else None
            raise FeatureError(name, "must be a column of the schema", value)

    def column(name: str) -> list[Any]:
        return columns.get(name) or [None] * count

    return _to_batch(column, count, columns.keys(), schema)


def _to_batch(
    column: Callable[[str], list[Any]],
    count: int,
    given: Set[str],
    schema: Schema,
    labelled: bool = False,
    timed: bool = False,
    *,
    decimal: str = ".",
    odd: list[Odd] | None = None,
) -> EventBatch:
    """A batch of `count` events. `column`: all values of a column, or the one that all events
    share. `given`: names of the columns that are there. Others: see `rows_to_batch`."""
    labels_B = np.full(count, np.nan, np.float32)
    times_s_B = np.zeros(count)
    if labelled or schema.label in given:
        required = label_rule(schema) if labelled else None
        read = partial(read_label, schema=schema)
        labels_B[:] = _required(schema.label, column(schema.label), read, required)
    timestamp = schema.timestamp
    if timestamp is not None and (timed or timestamp in given):
        required = time_rule(schema) if timed else None
        read = partial(read_time, schema=schema)
        times_s_B[:] = np.nan_to_num(_required(timestamp, column(timestamp), read, required))
    categorical = []
    for name in schema.categorical:
        values = _names(column(name), name)
        categorical.append(values if len(values) == count else pa.repeat(values[0], count))
    numerics_BN = np.empty((count, len(schema.numeric)), np.float32)
    for i, name in enumerate(schema.numeric):
        numerics_BN[:, i] = _numbers(column(name), name, decimal, odd)
    lists = []
    for name in schema.lists:
        found = read_lists(column(name), name, schema, odd)
        lists.append(
            found if len(found) == count else found.take(pa.array(np.zeros(count, np.int64)))
        )

    def bounded(name: str | None, bounds: Bounds) -> np.ndarray | None:
        """A column that must be there in events to learn from, and is not read in others."""
        if name is None or not labelled:
            return None
        values = [read_bounded(value, name, bounds, decimal) for value in column(name)]
        return np.full(count, values, np.float32)

    return EventBatch(
        labels_B,
        times_s_B,
        tuple(categorical),
        numerics_BN,
        tuple(lists),
        bounded(schema.weight, WEIGHT),
        bounded(schema.sampling_ratio, SAMPLING_RATIO),
    )


def _flat(row: Mapping[str, Any], known: set[str], path: str = "") -> dict[str, Any]:
    """The row with a column for each leaf of its nested objects, under the leaf's path. A path that
    the schema knows is a leaf."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        whole = f"{path}{name}"
        if isinstance(value, dict) and whole not in known:
            flat |= _flat(value, known, f"{whole}.")
        else:
            flat[whole] = value
    return flat


def _required(
    column: str, values: list[Any], read: Callable[[Any], float], rule: str | None
) -> list[float]:
    """The values as `read` reads them, NaN where one is missing. `rule`: the rule that a missing
    one breaks; None: it breaks none."""
    found = [read(value) for value in values]
    if rule is not None:
        for number, value in zip(found, values, strict=True):
            if math.isnan(number):
                raise FeatureError(column, rule, value)
    return found


def _names(values: list[Any], column: str) -> pa.Array:
    """Strings or null."""
    names = clean_names(values)
    if names is None:
        names = pa.array([as_name(value, column) for value in values], pa.string())
    return names


def _numbers(values: list[Any], column: str, decimal: str, odd: list[Odd] | None) -> np.ndarray:
    """float64, NaN for a missing value."""
    if set(map(type, values)) <= {float, int, bool, NoneType}:
        with contextlib.suppress(OverflowError):
            found_B = np.array(values, np.float64)  # None becomes NaN
            if not (np.abs(found_B) >= BEYOND_32_BITS).any():
                return found_B
    numbers = [as_number(value, column, decimal) for value in values]
    strange = [value for value, number in zip(values, numbers, strict=True) if number is None]
    if strange:
        if odd is None:
            raise FeatureError(column, "must be a number", strange[0])
        odd.append(Odd(column, len(strange), shorten(strange[0])))
    return np.array(numbers, np.float64)
