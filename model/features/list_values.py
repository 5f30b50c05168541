"""Values of a list column: lists of names, and maps from names to weights.

In: a list as JSON, a text file, a request or River has it, or the flat values of a whole column.
Out: an array of type `LIST`, or a `FeatureError` that names the column, the rule and the value. All
ways into niwaki read lists by the rules of this module. An element that is null is left out, and so
is one of weight 0; a missing list is null, which is not the same as an empty one.

Shapes: B events, V values of all their lists.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from decimal import Decimal
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.model.errors import FeatureError
from niwaki.model.features.list_text import LIST_RULE, list_of_text
from niwaki.model.features.schema import LIST, Schema
from niwaki.model.features.values import BEYOND_32_BITS, Odd, as_name, clean_names

VALUE_WEIGHT_RULE = "must have weights that are numbers >= 0, finite in 32 bits"


class ListValue(NamedTuple):
    """One list as it was read."""

    names: list[str]
    weights: list[float] | None
    """Weight of each value; None: all weigh 1."""


class FlatLists(NamedTuple):
    """The lists of a column: the values of all of them, one list after the other."""

    names_V: pa.Array
    """Strings; null where a value is to be left out."""
    weights_V: np.ndarray | None
    """float64, >= 0; None: all weigh 1."""
    counts_B: np.ndarray
    """int64, the number of values of each list."""
    missing_B: np.ndarray
    """bool, True where there is no list; it has no values."""

    def keep(self, kept_V: np.ndarray) -> "FlatLists":
        """The lists with those values for which `kept_V` is True."""
        before = np.concatenate([[0], np.cumsum(kept_V)])
        bounds = np.concatenate([[0], np.cumsum(self.counts_B)])
        weights_V = None if self.weights_V is None else self.weights_V[kept_V]
        names_V = self.names_V.filter(pa.array(kept_V))
        return FlatLists(names_V, weights_V, np.diff(before[bounds]), self.missing_B)


def pack_lists(
    lists: FlatLists, column: str, schema: Schema, odd: list[Odd] | None = None
) -> pa.Array:
    """The lists as an array of type `LIST`, each with its last `schema.max_list_values` values.
    `odd`: takes how many lists were longer."""
    kept_V = None
    if lists.names_V.null_count:
        kept_V = lists.names_V.is_valid().to_numpy(False)
    if lists.weights_V is not None:
        lists = lists._replace(weights_V=lists.weights_V.astype(np.float32))
        heavy_V = lists.weights_V > 0  # type: ignore[operator]
        kept_V = heavy_V if kept_V is None else kept_V & heavy_V
    if kept_V is not None and not kept_V.all():
        lists = lists.keep(kept_V)
    most, counts_B = schema.max_list_values, lists.counts_B
    longer_B = counts_B > most
    if longer_B.any():
        if odd is not None:
            done = f"lists had more than {most} values, of which the last ones were read"
            first = f"{counts_B[np.argmax(longer_B)]} values"
            odd.append(Odd(column, int(longer_B.sum()), first, done))
        ends_V = np.repeat(np.cumsum(counts_B), counts_B)
        lists = lists.keep(ends_V - np.arange(len(ends_V)) <= most)
    offsets = np.concatenate([[0], np.cumsum(lists.counts_B)]).astype(np.int32)
    weights_V = lists.weights_V
    if weights_V is None:
        weights_V = np.ones(len(lists.names_V), np.float32)
    mask = pa.array(lists.missing_B) if lists.missing_B.any() else None
    return pa.MapArray.from_arrays(
        pa.array(offsets), lists.names_V, pa.array(weights_V), type=LIST, mask=mask
    )


def read_lists(
    values: Sequence[Any],
    column: str,
    schema: Schema,
    odd: list[Odd] | None = None,
    failed: dict[int, FeatureError] | None = None,
) -> pa.Array:
    """Values of a list column, one for each event, as an array of type `LIST`.

    `odd`: takes how many lists were too long. `failed`: see `flat_lists`.
    """
    return pack_lists(flat_lists(values, column, schema, failed), column, schema, odd)


def flat_lists(
    values: Sequence[Any],
    column: str,
    schema: Schema,
    failed: dict[int, FeatureError] | None = None,
) -> FlatLists:
    """Values of a list column, one for each event, as lists.

    `failed`: takes the error of each value that breaks a rule, by its place, and the value counts
    as missing; None: the first such error is raised.
    """

    def of_each(read: Callable[[Any], Any]) -> list[Any]:
        found = []
        for at, value in enumerate(values):
            try:
                found.append(read(value))
                continue
            except FeatureError as broken:
                error = broken
            except RecursionError:  # in showing a value
                error = FeatureError(column, LIST_RULE, shown="lists that are nested too deeply")
            if failed is None:
                raise error
            failed[at] = error
            found.append(None)
        return found

    def parsed(value: Any) -> Any:
        return (
            list_of_text(value, column, schema.list_separator) if isinstance(value, str) else value
        )

    if str in set(map(type, values)):
        values = of_each(parsed)
    lists = _alike(values)
    return lists or _joined(of_each(lambda value: read_list(value, column, schema)))


def _joined(found: Sequence[ListValue | None]) -> FlatLists:
    names_V = pa.array(list(chain.from_iterable(one.names for one in found if one)), pa.string())
    counts_B = np.array([len(one.names) if one else 0 for one in found], np.int64)
    weights_V = None
    if any(one and one.weights is not None for one in found):
        all_weights = (one.weights or [1.0] * len(one.names) for one in found if one)
        weights_V = np.array(list(chain.from_iterable(all_weights)), np.float64)
    return FlatLists(names_V, weights_V, counts_B, np.array([one is None for one in found], bool))


def read_list(value: Any, column: str, schema: Schema) -> ListValue | None:
    """A value of a list column; None for a missing one.

    A list, a set (in the order of names) or a map; a list of pairs, objects of two members each, is
    a map, too. Text is read by `list_of_text`. A number or a boolean is a list of one.
    """
    if isinstance(value, str):
        value = list_of_text(value, column, schema.list_separator)
    if isinstance(value, dict):
        return _read_map(value.items(), column)
    if isinstance(value, set | frozenset):
        return ListValue(sorted(_names(value, column)), None)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if isinstance(value, list | tuple):
        if any(isinstance(one, dict) for one in value):
            return _read_map(_pairs(value, column), column)
        return ListValue(_names(value, column), None)
    name = _name(value, column)
    return None if name is None else ListValue([name], None)


def _alike(values: Sequence[Any]) -> FlatLists | None:
    """The lists of a column, all of it at once, where it is clean and of one kind; else None."""
    kinds = set(map(type, values))
    if not (kinds <= {list, NoneType} or kinds <= {dict, NoneType}):
        return None
    names_V = clean_names(list(chain.from_iterable(value for value in values if value)))
    if names_V is None:
        return None
    weights_V = None
    if dict in kinds:
        weights = list(chain.from_iterable(value.values() for value in values if value))
        if not set(map(type, weights)) <= {int, float, bool}:
            return None
        try:
            weights_V = np.array(weights, np.float64)
        except OverflowError:
            return None
        if not ((weights_V >= 0) & (weights_V < BEYOND_32_BITS)).all():
            return None
    counts_B = np.array([len(value) if value else 0 for value in values], np.int64)
    missing_B = np.array([value is None for value in values], bool)
    return FlatLists(names_V, weights_V, counts_B, missing_B)


def _name(value: Any, column: str) -> str | None:
    if isinstance(value, list | tuple | dict | set | frozenset | np.ndarray):
        raise FeatureError(column, LIST_RULE, value)
    return as_name(value, column)


def _names(values: Iterable[Any], column: str) -> list[str]:
    names = (_name(value, column) for value in values)
    return [name for name in names if name is not None]


def _pairs(values: Iterable[Any], column: str) -> Iterable[tuple[Any, Any]]:
    """A map that is written as a list of objects, each with a value and its weight."""
    for pair in values:
        if pair is None:
            continue
        if not isinstance(pair, dict) or len(pair) != 2:
            raise FeatureError(column, LIST_RULE, pair)
        yield tuple(pair.values())


def _read_map(pairs: Iterable[tuple[Any, Any]], column: str) -> ListValue:
    found = ListValue([], [])
    for value, weight in pairs:
        name = _name(value, column)
        if weight is None or name is None:
            continue
        number = math.nan
        if isinstance(weight, bool | int | float | Decimal | np.bool_):
            try:
                number = float(weight)
            except OverflowError:
                number = math.inf
        if not 0 <= number < BEYOND_32_BITS:
            raise FeatureError(column, VALUE_WEIGHT_RULE, {value: weight})
        found.names.append(name)
        found.weights.append(number)  # type: ignore[union-attr]
    return found
