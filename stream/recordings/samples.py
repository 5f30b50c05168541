"""The first rows of a stream as values by column, whatever form the rows have.

In: tables, JSON objects, messages, pieces of files. Out: a `Sample`: the values of each column as
Python has them, nested objects as paths. What can never be read is marked as `Unread`.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from niwaki.pruning.errors import shorten
from niwaki.stream.errors import ConfigError
from niwaki.stream.events.decoder import ARROW_START
from niwaki.stream.files.pieces import Piece

_MOST_OTHERS = 0.05
"""Share of objects that may be no maps to weights where all others of their path are."""
_DEEPEST = 8
_SHOWN_CHARACTERS = 40
_EXAMPLES = 3
_is = pa.types
_PLAIN_TYPES = (
    _is.is_null,
    _is.is_boolean,
    _is.is_integer,
    _is.is_decimal,
    _is.is_string,
    _is.is_large_string,
    _is.is_string_view,
)
_LIST_TYPES = (
    _is.is_list,
    _is.is_large_list,
    _is.is_fixed_size_list,
    _is.is_list_view,
    _is.is_large_list_view,
)


class Unread(NamedTuple):
    """A value of a kind that is not read."""

    kind: str
    """The kind in plain words, such as "lists of objects"."""
    text: str
    """The value as it is shown; empty where it is not."""


class Sample:
    """Values of the first rows of a stream, by column: text, numbers, booleans, times, None, lists
    of such values, maps from them to weights, or `Unread`."""

    def __init__(
        self,
        rows: int,
        columns: Mapping[str, list[Any]],
        maps: Mapping[str, list[Any]] = MappingProxyType({}),
    ):
        self.rows = rows
        self.columns = dict(columns)
        self.maps = dict(maps)
        """By path, JSON objects that may be maps to weights, since all of their members are numbers
        >= 0. Their members are columns, too."""

    @classmethod
    def of_table(cls, table: pa.Table) -> "Sample":
        """The columns of a table; those of structs as paths."""
        for name in table.column_names:
            if table.column_names.count(name) > 1:
                raise ConfigError(name, "there are two columns of that name; rename one")
        leaves: dict[str, tuple[int, list[Any]]] = {}
        for name, column, depth in _leaf_columns(table):
            # A column of that very name goes before a path.
            if name not in leaves or depth < leaves[name][0]:
                leaves[name] = depth, _values(column)
        return cls(len(table), {name: values for name, (_, values) in leaves.items()})

    @classmethod
    def of_objects(cls, objects: Sequence[Mapping[str, Any]]) -> "Sample":
        """The keys of JSON objects; those of objects in them as paths."""
        columns: dict[str, list[Any]] = {}
        for at, row in enumerate(objects):
            own = [name for name in row if "." in name]
            for name, value, depth in _leaves(row):
                if depth and name in own:
                    continue
                column = columns.setdefault(name, [])
                column += [None] * (at - len(column))
                column[at:] = [value]
        for column in columns.values():
            column += [None] * (len(objects) - len(column))
        # An object that is null in some rows is no column beside those of its leaves.
        steps = [name.split(".") for name in columns]
        parents = {".".join(path[:end]) for path in steps for end in range(1, len(path))}
        kept = {
            name: column
            for name, column in columns.items()
            if name not in parents or any(value is not None for value in column)
        }
        maps = _maps(objects)
        return cls(len(objects), kept, {path: maps[path] for path in maps if path not in kept})

    @classmethod
    def of_messages(cls, values: Iterable[bytes | None]) -> "Sample":
        """The columns of messages, JSON or Arrow; broken ones are left out."""
        objects: list[Mapping[str, Any]] = []
        tables: list[pa.Table] = []
        for value in values:
            if value is not None and value.startswith(ARROW_START):
                tables += _arrow_tables(value)
            elif value is not None and (row := _parsed(value)) is not None:
                objects.append(row)
        return cls._joined([*_of_alike(tables), *([cls.of_objects(objects)] if objects else [])])

    @classmethod
    def of_pieces(cls, pieces: Iterable[Piece]) -> "Sample":
        """The columns of pieces of files."""
        found = list(pieces)
        tables = [piece.rows for piece in found if not isinstance(piece.rows, list)]
        messages = [
            value for piece in found if isinstance(piece.rows, list) for value in piece.rows
        ]
        return cls._joined([*_of_alike(tables), *([cls.of_messages(messages)] if messages else [])])

    @classmethod
    def _joined(cls, samples: Sequence["Sample"]) -> "Sample":
        """The rows of samples one after the other; what one of them lacks is missing."""
        if len(samples) == 1:
            return samples[0]
        names = dict.fromkeys(name for sample in samples for name in sample.columns)
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for sample in samples:
            for name, column in columns.items():
                column += sample.columns.get(name) or [None] * sample.rows
        maps = [sample.maps for sample in samples if len(sample.maps) or sample.rows]
        paths = [path for path in maps[0] if all(path in one for one in maps)] if maps else []
        joined = {path: [value for one in maps for value in one[path]] for path in paths}
        return cls(sum(sample.rows for sample in samples), columns, joined)

    def within(self, path: str) -> "Sample":
        """The columns beneath a path, under their names there, without rows that have none."""
        start = f"{path}."
        inner = {
            name[len(start) :]: column
            for name, column in self.columns.items()
            if name.startswith(start)
        }
        kept = [
            at
            for at, row in enumerate(zip(*inner.values(), strict=True))
            if row.count(None) < len(row)
        ]
        maps = {p[len(start) :]: values for p, values in self.maps.items() if p.startswith(start)}
        columns, maps = (
            {name: [values[at] for at in kept] for name, values in those.items()}
            for those in (inner, maps)
        )
        return Sample(len(kept), columns, maps)

    def with_map(self, path: str) -> "Sample":
        """The sample with the objects at `path` as one column of maps, in the place of the columns
        of their members."""
        columns: dict[str, list[Any]] = {}
        for name, values in self.columns.items():
            if name.startswith(f"{path}."):
                columns[path] = self.maps[path]
            else:
                columns[name] = values
        maps = {other: values for other, values in self.maps.items() if other != path}
        return Sample(self.rows, columns, maps)


def _of_alike(tables: Sequence[pa.Table]) -> Iterator[Sample]:
    """A sample of the tables of each schema."""
    alike: dict[pa.Schema, list[pa.Table]] = {}
    for table in tables:
        if len(table):
            alike.setdefault(table.schema.remove_metadata(), []).append(table)
    for schema, those in alike.items():
        yield Sample.of_table(pa.concat_tables([one.cast(schema) for one in those]))
    if tables and not alike:
        yield Sample.of_table(tables[0])


def _leaf_columns(table: pa.Table, depth: int = 0) -> Iterator[tuple[str, pa.ChunkedArray, int]]:
    """The columns with their depth; those of structs in the place of these, by path."""
    for name, column in zip(table.column_names, table.columns, strict=True):
        kind = column.type
        if _is.is_struct(kind) and kind.num_fields and depth < _DEEPEST:
            names = [f"{name}.{kind.field(at).name}" for at in range(kind.num_fields)]
            yield from _leaf_columns(pa.table(column.flatten(), names), depth + 1)
        else:
            yield name, column, depth


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Values of a column as Python has them; times as text."""
    if _is.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    values: list[Any]
    if _is.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
        column = column.cast(pa.timestamp("us")).cast(pa.string())  # a time in a zone as one of UTC
    elif _is.is_date(kind):
        column = column.cast(pa.string())
    elif _is.is_float32(kind):
        column = column.cast(pa.string()).cast(pa.float64())  # as it would be written
    elif _is.is_floating(kind):
        column = column.cast(pa.float64())
    elif _is.is_binary(kind) or _is.is_large_binary(kind):
        try:
            column = column.cast(pa.string())
        except pa.ArrowInvalid:
            return _unread(column, "bytes that are no text")
    elif _is.is_map(kind):
        if not _is_plain(kind.key_type) or not _is_plain(kind.item_type):
            return _unread(column, "maps to objects")
        return [one if one is None else dict(one) for one in column.to_pylist()]
    elif any(test(kind) for test in _LIST_TYPES):
        return _lists(column)
    elif _is.is_struct(kind):
        return _unread(column, "objects")
    elif not any(test(kind) for test in _PLAIN_TYPES):
        return _unread(column, f"values of Arrow's type {kind}")
    values = column.to_pylist()
    return values


def _is_plain(kind: pa.DataType) -> bool:
    return _is.is_floating(kind) or any(test(kind) for test in _PLAIN_TYPES)


def _lists(column: pa.ChunkedArray) -> list[Any]:
    """The lists of a column as Python has them; those of pairs as lists of objects."""
    values = pc.list_flatten(column)
    kind = values.type
    if _is.is_struct(kind) and kind.num_fields == 2:
        if _is_plain(kind.field(0).type) and _is_plain(kind.field(1).type):
            return list(column.to_pylist())
    flat = _values(values.cast(pa.string()) if _is.is_decimal(kind) else values)
    if unread := next((one for one in flat if isinstance(one, Unread)), None):
        return _unread(column, f"lists of {unread.kind}")
    if any(isinstance(one, list | dict) for one in flat):
        return _unread(column, "lists of lists")
    each = iter(flat)
    counts = pc.list_value_length(column).to_pylist()
    return [None if count is None else list(islice(each, count)) for count in counts]


def _unread(column: pa.ChunkedArray, kind: str) -> list[Any]:
    """A mark in the place of each value, the first ones with their text."""
    valid, left = column.is_valid().to_pylist(), _EXAMPLES
    values: list[Any] = [Unread(kind, "") if one else None for one in valid]
    for at, one in enumerate(valid):
        if one and left:
            values[at], left = Unread(kind, str(column[at])[:_SHOWN_CHARACTERS]), left - 1
    return values


def _leaves(
    row: Mapping[str, Any], path: str = "", depth: int = 0
) -> Iterator[tuple[str, Any, int]]:
    """Path, value and depth of all that is no object."""
    for name, value in row.items():
        if not isinstance(value, dict):
            yield f"{path}{name}", value, depth
        elif not value:
            yield f"{path}{name}", None, depth
        elif depth < _DEEPEST:
            yield from _leaves(value, f"{path}{name}.", depth + 1)
        else:
            yield f"{path}{name}", Unread("objects", shorten(value, _SHOWN_CHARACTERS)), depth


def _maps(objects: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """The objects in `objects`, by their path, wherever nearly all of a path are maps to
    weights."""
    found: dict[str, list[Any]] = {}
    known, others = Counter[str](), Counter[str]()
    for at, row in enumerate(objects):
        for path, value in _inner(row):
            known[path] += 1
            others[path] += not all(map(_is_weight, value.values()))
            column = found.setdefault(path, [])
            column += [None] * (at - len(column))
            column[at:] = [value]
    for column in found.values():
        column += [None] * (len(objects) - len(column))
    return {
        path: column
        for path, column in found.items()
        if any(column) and others[path] <= _MOST_OTHERS * known[path]
    }


def _inner(row: Mapping[str, Any], path: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The objects in an object, with their paths."""
    for name, value in row.items():
        if isinstance(value, dict) and depth < _DEEPEST:
            yield f"{path}{name}", value
            yield from _inner(value, f"{path}{name}.", depth + 1)


def _is_weight(value: Any) -> bool:
    """True for a number >= 0, and for null."""
    if value is None:
        return True
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _parsed(value: bytes) -> dict[str, Any] | None:
    for read in (msgspec.json.decode, lambda text: json.loads(text.decode("utf-8-sig"))):
        try:
            row = read(value)
        except (ValueError, RecursionError):
            continue
        return row if isinstance(row, dict) else None
    return None


def _arrow_tables(value: bytes) -> list[pa.Table]:
    try:
        table = pa.ipc.open_stream(value).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError):
        return []
    return [table]
