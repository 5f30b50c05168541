"""Events inside other objects, as change data capture and event brokers write them.

In: a message or a table, and the path of the event in it. Out: the event's own bytes or columns.
"""

from typing import Any

import msgspec
import pyarrow as pa

from niwaki.pruning.errors import shorten
from niwaki.stream.errors import EventError
from niwaki.stream.events.arrow_columns import find_column
from niwaki.stream.events.structs import new_struct


class Envelope:
    """The path from a message to the event in it."""

    def __init__(self, path: str):
        self._path = path
        *outer, last = path.split(".")
        kind: Any = new_struct([(last, msgspec.Raw, msgspec.Raw(b""))])
        for name in reversed(outer):
            kind = new_struct([(name, kind | None, None)])
        self._decode = msgspec.json.Decoder(kind).decode

    def event_of(self, value: bytes) -> bytes:
        """The bytes of the event. Raises `EventError` where there is none."""
        try:
            inner = self._decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise EventError("json", "value", f"must be JSON ({error})", value[:80]) from error
        while isinstance(inner, msgspec.Struct):
            (inner,) = msgspec.structs.astuple(inner)
        event = b"" if inner is None else bytes(inner)
        if not event.startswith(b"{"):
            got = shorten(event.decode(errors="replace")) if event else "nothing"
            raise EventError("envelope", self._path, f"must hold an object, got {got}")
        return event

    def table_of(self, table: pa.Table) -> pa.Table:
        """The columns of the events. Raises `EventError` where there are none."""
        column = find_column(table, self._path)
        if column is None or not pa.types.is_struct(column.type):
            raise EventError("envelope", self._path, "must be a column of structs")
        return pa.Table.from_batches(
            [pa.RecordBatch.from_struct_array(chunk) for chunk in column.chunks],
            pa.schema(list(column.type)),
        )
