"""Columns of Arrow tables as numbers and as names, whole columns at once where they are clean.

Beneath `tables` and `list_columns`. In: a column of any type. Out: its values as
`niwaki.model.features.values` reads them, by the functions of that module where they are not clean.

Shapes: B rows.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from niwaki.model.errors import FeatureError
from niwaki.model.features.values import MISSING, as_name

_is = pa.types
NUMBER_TYPES = (_is.is_integer, _is.is_floating, _is.is_boolean, _is.is_decimal, _is.is_null)
TEXT_TYPES = (
    _is.is_string,
    _is.is_large_string,
    _is.is_string_view,
    _is.is_binary,
    _is.is_large_binary,
)
NAME_TYPES = (*NUMBER_TYPES, *TEXT_TYPES, _is.is_date, _is.is_timestamp)


def find_column(table: pa.Table, name: str) -> pa.ChunkedArray | None:
    """The column called `name`, or the leaf of nested columns at the path `name`, with the plain
    values of a dictionary in place of their codes; None if it is not there."""
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
        plain = column.type.value_type
        column = column if _is.is_nested(plain) else column.cast(plain)
    return column


def numbers_or_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A column of text as integers or floats if all of it is such; else as it is."""
    for kind in (pa.int64(), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return column


def is_one(kind: pa.DataType, tests: Collection[Callable[[pa.DataType], bool]]) -> bool:
    """True if a type passes one of `tests`."""
    return any(test(kind) for test in tests)


def float64(column: pa.ChunkedArray) -> np.ndarray:
    """Numbers, or text that is plain numbers, as float64 (B,); NaN where null."""
    values_B: np.ndarray = column.cast(pa.float64(), safe=False).to_numpy()
    return values_B


def plain_numbers(column: pa.ChunkedArray) -> np.ndarray | None:
    """Text as float64 if all of it is plain numbers or missing; else None."""
    if not (_is.is_string(column.type) or _is.is_large_string(column.type)):
        return None
    for words in (False, True):
        if words:
            column = pc.utf8_trim_whitespace(column)
            gone = pc.is_in(pc.utf8_lower(column), pa.array(sorted(MISSING), column.type))
            column = pc.if_else(gone, pa.scalar(None, column.type), column)
        try:
            return float64(column)
        except pa.ArrowInvalid:
            continue
    return None


class ByValue(NamedTuple):
    text: list[Any]
    """The different values of a column; None, last, for null."""
    read: list[Any]
    """Each as it was read."""
    codes_B: np.ndarray
    """The place of each row's value."""


def by_value(column: pa.ChunkedArray, read: Callable[[Any], Any]) -> ByValue:
    """The column's values as `read` reads each different one, once."""
    encoded = column.combine_chunks().dictionary_encode()
    if isinstance(encoded, pa.ChunkedArray):
        encoded = pa.concat_arrays(encoded.chunks)
    text = [*map(decoded, encoded.dictionary.to_pylist()), None]
    codes_B = encoded.indices.fill_null(len(text) - 1).to_numpy(False)
    return ByValue(text, [read(value) for value in text], codes_B)


def floats_by_value(column: pa.ChunkedArray, read: Callable[[Any], float]) -> np.ndarray:
    """The column's values as `read` reads them, float64 (B,); NaN where it raises."""

    def read_or_nan(value: Any) -> float:
        try:
            return read(value)
        except FeatureError:
            return np.nan

    found = by_value(column, read_or_nan)
    values_B: np.ndarray = np.array(found.read, np.float64)[found.codes_B]
    return values_B


def decoded(value: Any) -> Any:
    """Bytes as text; what is not UTF-8 stays as it is."""
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return value
    return value


class Names(NamedTuple):
    """A column of names."""

    names_B: pa.Array
    """Strings, null where missing."""
    broken: dict[int, bytes]
    """By place, the values that are not UTF-8; they are null in `names_B`."""


def names_of(column: pa.ChunkedArray, name: str) -> Names:
    """A column of one of `NAME_TYPES` as names."""
    if _is.is_floating(column.type):
        return Names(float_names(column, name), {})
    try:
        return Names(column.cast(pa.string()).combine_chunks(), {})
    except pa.ArrowInvalid:  # bytes that are not UTF-8
        found = list(map(decoded, column.to_pylist()))
    broken = {at: value for at, value in enumerate(found) if isinstance(value, bytes)}
    return Names(pa.array([None if at in broken else one for at, one in enumerate(found)]), broken)


def float_names(column: pa.ChunkedArray, name: str) -> pa.Array:
    """Floating-point numbers as names: integers where they are whole."""
    values_B = float64(column)
    known_B = ~np.isnan(values_B)
    if (values_B[known_B] == np.floor(values_B[known_B])).all() and (
        np.abs(values_B[known_B]) < 2**53
    ).all():
        whole = np.where(known_B, values_B, 0).astype(np.int64)
        return pa.array(whole, mask=~known_B).cast(pa.string())
    return pa.array([as_name(value, name) for value in column.to_pylist()], pa.string())
