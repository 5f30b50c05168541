"""Tables to messages, one function for each wire format, for replays.

In: an Arrow table of events. Out: the bytes of messages, one event or many in each.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import pyarrow as pa

from niwaki.stream.events.structs import can_be_fields, new_struct


def encode_json(table: pa.Table) -> list[bytes]:
    """Each row as a JSON object: nulls left out, timestamps in milliseconds, booleans as 0 and 1,
    maps as objects."""
    columns = list(map(json_values, table.columns))
    if not can_be_fields(table.column_names):
        rows = (zip(table.column_names, row, strict=True) for row in zip(*columns, strict=True))
        kept = ({name: value for name, value in row if value is not None} for row in rows)
        return list(map(msgspec.json.Encoder().encode, kept))
    row = new_struct([(name, object, None) for name in table.column_names], omit_defaults=True)
    return list(map(msgspec.json.Encoder().encode, map(row, *columns)))


def json_values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column as JSON has them."""
    if pa.types.is_map(column.type):
        return [None if pairs is None else _object(pairs) for pairs in column.to_pylist()]
    values: list[Any] = _plain(column).to_pylist()
    return values


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


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """`column` in a type whose Python values JSON has."""
    if pa.types.is_boolean(column.type):
        return column.cast(pa.int8())
    if pa.types.is_timestamp(column.type):
        return column.cast(pa.timestamp("ms", column.type.tz), safe=False).cast(pa.int64())
    return column.cast(pa.float64()) if pa.types.is_decimal(column.type) else column


def _object(pairs: Sequence[tuple[Any, Any]]) -> dict[Any, Any] | list[dict[str, Any]]:
    """A map; one that has a value twice as a list of pairs, which is read as a map, too."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    return [{"value": value, "weight": weight} for value, weight in pairs]
