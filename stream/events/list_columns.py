"""List columns of Arrow tables: lists, maps to weights, and text that holds them.

In: a column of a table. Out: an array of type `LIST`, read as `niwaki.model.features.list_values`
says, and a `Reject` for each row with a list that breaks a rule. Columns of Arrow's own lists are
taken whole: no Python object is made of a value.

Shapes: B rows, V values of all their lists.
"""

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from niwaki.model.errors import FeatureError
from niwaki.model.features.list_text import LIST_RULE, SPACES
from niwaki.model.features.list_values import (
    VALUE_WEIGHT_RULE,
    FlatLists,
    flat_lists,
    pack_lists,
)
from niwaki.model.features.schema import LIST, Schema
from niwaki.model.features.values import BEYOND_32_BITS, Odd
from niwaki.pruning.errors import shorten
from niwaki.stream.errors import EventError
from niwaki.stream.events.arrow_columns import (
    NAME_TYPES,
    NUMBER_TYPES,
    TEXT_TYPES,
    by_value,
    find_column,
    float64,
    is_one,
    names_of,
)
from niwaki.stream.events.rejects import Reject

_is = pa.types
_VIEW_TYPES = (_is.is_list_view, _is.is_large_list_view)
_LIST_TYPES = (_is.is_list, _is.is_large_list, _is.is_fixed_size_list, *_VIEW_TYPES)


def read_list_column(
    table: pa.Table, name: str, schema: Schema, wrong: dict[int, Reject], odd: list[Odd]
) -> pa.Array:
    """The lists of a column, type `LIST`; all missing where the column is absent.

    `wrong`: takes rows with a list that breaks a rule. `odd`: takes how many lists were too long.
    Raises `EventError` for a column of a type that holds no lists.
    """
    column = find_column(table, name)
    if column is None:
        return pa.nulls(len(table), LIST)
    lists = _Column(name, schema, wrong).lists(column)
    return pack_lists(lists, name, schema, odd)


class _Column(NamedTuple):
    """Reads one column."""

    name: str
    schema: Schema
    wrong: dict[int, Reject]

    def lists(self, column: pa.ChunkedArray) -> FlatLists:
        """The lists of a column of any type that holds some."""
        kind = column.type
        if is_one(kind, TEXT_TYPES):
            return self._of_text(column)
        array = column.combine_chunks()
        if _is.is_map(kind):
            pair = pa.struct([("value", kind.key_type), ("weight", kind.item_type)])
            array = array.cast(pa.list_(pair))
        missing_B = array.is_null().to_numpy(False)
        if _is.is_struct(kind):
            return self._of_structs(array, missing_B)
        if not is_one(array.type, _LIST_TYPES):
            return self._single(array)
        counts_B = pc.list_value_length(array).fill_null(0).to_numpy(False).astype(np.int64)
        if is_one(kind, _VIEW_TYPES) and counts_B.sum() > len(array.values):
            # A short message could hold more values than memory does.
            raise EventError("list", self.name, "must not have lists that share their values")
        values = array.flatten()
        if _is.is_struct(values.type) and values.type.num_fields == 2:
            return self._pairs(values, counts_B, missing_B)
        return FlatLists(self._values(values, counts_B), None, counts_B, missing_B)

    def _single(self, values_B: pa.Array) -> FlatLists:
        """Lists of one value each; missing where the value is."""
        names_B = self._values(values_B, np.ones(len(values_B), np.int64))
        missing_B = names_B.is_null().to_numpy(False)
        return FlatLists(names_B.drop_null(), None, np.where(missing_B, 0, 1), missing_B)

    def _values(self, values_V: pa.Array, counts_B: np.ndarray) -> pa.Array:
        """Values of lists as names."""
        if _is.is_dictionary(values_V.type):
            values_V = values_V.dictionary_decode()
        if not is_one(values_V.type, NAME_TYPES):
            raise EventError("list", self.name, f"{LIST_RULE}, got a column of {values_V.type}")
        names_V, broken = names_of(pa.chunked_array([values_V]), self.name)
        for place, value in broken.items():
            self._reject(_row(counts_B, place), "must be UTF-8", value)
        return names_V

    def _pairs(
        self, pairs_V: pa.StructArray, counts_B: np.ndarray, missing_B: np.ndarray
    ) -> FlatLists:
        """Lists of pairs: a value and its weight."""
        values_V, weights = pc.struct_field(pairs_V, [0]), pc.struct_field(pairs_V, [1])
        if not is_one(weights.type, NUMBER_TYPES):
            rule = f"{VALUE_WEIGHT_RULE}, got weights of {weights.type}"
            raise EventError("list", self.name, rule)
        names_V = self._values(values_V, counts_B)
        weights_V = self._weights(weights, names_V, counts_B)
        return FlatLists(names_V, weights_V, counts_B, missing_B)

    def _weights(self, weights: pa.Array, names_V: pa.Array, counts_B: np.ndarray) -> np.ndarray:
        """float64 (V,), 0 where a weight is null; rows with a wrong one are rejects."""
        weights_V = float64(pa.chunked_array([weights]))
        weights_V = np.where(weights.is_null().to_numpy(False), 0.0, weights_V)
        wrong_V = ~((weights_V >= 0) & (weights_V < BEYOND_32_BITS))
        wrong_V &= names_V.is_valid().to_numpy(False)  # the others are left out
        for place in np.flatnonzero(wrong_V).tolist():
            value = {names_V[place].as_py(): weights[place].as_py()}
            self._reject(_row(counts_B, place), VALUE_WEIGHT_RULE, value)
        return np.where(weights_V > 0, weights_V, 0.0)

    def _of_structs(self, structs: pa.StructArray, missing_B: np.ndarray) -> FlatLists:
        """Maps as structs, of which each field is a value, and null where a map lacks it."""
        fields = [structs.type.field(at) for at in range(structs.type.num_fields)]
        for field in fields:
            if not is_one(field.type, NUMBER_TYPES):
                rule = f"{VALUE_WEIGHT_RULE}, got {field.type} in the field {field.name!r}"
                raise EventError("list", self.name, rule)
        known = structs.filter(pa.array(~missing_B))
        columns = [_floats(pc.struct_field(known, [at])) for at in range(len(fields))]
        places = np.arange(len(known) * len(fields)).reshape(len(fields), len(known)).T.ravel()
        empty = pa.array([], pa.float64())
        weights = pa.concat_arrays([empty, *columns]).take(pa.array(places))
        names = pa.array([field.name for field in fields], pa.string())
        names_V = names.take(pa.array(np.tile(np.arange(len(fields)), len(known))))
        counts_B = np.where(missing_B, 0, len(fields))
        weights_V = self._weights(weights, names_V, counts_B)
        return FlatLists(names_V, weights_V, counts_B, missing_B)

    def _of_text(self, column: pa.ChunkedArray) -> FlatLists:
        split = _split(column, self.schema.list_separator)
        return self._by_value(column) if split is None else split

    def _by_value(self, column: pa.ChunkedArray) -> FlatLists:
        """Text of any form; each different one is read once."""
        texts, _, codes_B = by_value(column, lambda text: text)
        failed = {
            at: FeatureError(self.name, "must be UTF-8", text)
            for at, text in enumerate(texts)
            if isinstance(text, bytes)
        }
        readable = [None if at in failed else text for at, text in enumerate(texts)]
        lists = flat_lists(readable, self.name, self.schema, failed)
        for row in np.flatnonzero(np.isin(codes_B, list(failed))).tolist():
            error = failed[int(codes_B[row])]
            self.wrong[row] = Reject(row, "list", self.name, error.rule, error.value)
        return _take(lists, codes_B)

    def _reject(self, row: int, rule: str, value: object) -> None:
        self.wrong[row] = Reject(row, "list", self.name, rule, shorten(value))


def _split(column: pa.ChunkedArray, separator: str) -> FlatLists | None:
    """Text with separators; None where some of it is JSON, perhaps, or is no text."""
    try:
        text = column.cast(pa.string()).combine_chunks()
    except pa.ArrowInvalid:
        return None
    trimmed = pc.utf8_ltrim(text, SPACES)
    for bracket in "[{":
        if pc.any(pc.starts_with(trimmed, bracket)).as_py():
            return None
    pieces = pc.split_pattern(text, separator)
    counts_B = pc.list_value_length(pieces).fill_null(0).to_numpy(False).astype(np.int64)
    names_V = pc.utf8_trim(pieces.flatten(), SPACES)
    lists = FlatLists(names_V, None, counts_B, text.is_null().to_numpy(False))
    filled_V = pc.binary_length(names_V).to_numpy(False) > 0
    return lists if filled_V.all() else lists.keep(filled_V)


def _take(lists: FlatLists, codes_B: np.ndarray) -> FlatLists:
    """For each of `codes_B`, the list at that place."""
    counts_B = lists.counts_B[codes_B]
    starts_B = (np.cumsum(lists.counts_B) - lists.counts_B)[codes_B]
    shifts_B = starts_B - (np.cumsum(counts_B) - counts_B)
    places_V = np.repeat(shifts_B, counts_B) + np.arange(counts_B.sum())
    weights_V = None if lists.weights_V is None else lists.weights_V[places_V]
    names_V = lists.names_V.take(pa.array(places_V))
    return FlatLists(names_V, weights_V, counts_B, lists.missing_B[codes_B])


def _floats(values: pa.Array) -> pa.Array:
    return values.cast(pa.float64(), safe=False)  # an integer may lose its last digits


def _row(counts_B: np.ndarray, place: int) -> int:
    """The row of the value at `place`."""
    return int(np.searchsorted(np.cumsum(counts_B), place, "right"))
