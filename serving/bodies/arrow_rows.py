"""Arrow IPC streams as bodies of `POST /score` and of its answer.

In: a stream of record batches, one row an event or candidate, one column a column of the schema.
Columns that all rows share may be in the metadata of its schema, under `context`, as a JSON object;
they are read and hashed once. Out: `HashedEvents`, or a `RequestError`. Clean columns are read
whole; a table with any other is read row by row, by the rules of requests in JSON.

Shapes: B rows.
"""

import struct
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.model.errors import FeatureError
from niwaki.model.features.encoder import Encoder, HashedEvents
from niwaki.model.features.list_values import read_lists
from niwaki.model.features.schema import Schema
from niwaki.model.features.values import BEYOND_32_BITS, LARGEST_TIME_S, UNITS_PER_S
from niwaki.pruning.errors import shorten
from niwaki.serving.bodies.wire import (
    Answer,
    RequestError,
    check_count,
    decode,
    hash_score,
    to_batch,
)

ARROW = "application/vnd.apache.arrow.stream"
CONTEXT = b"context"
"""Key of the context in the metadata of a request's schema."""
_RULE = "must be an Arrow IPC stream"
_BATCHES = {2: 1, 3: None}
"""By the type of a message with rows, the member that holds its record batch; None: itself."""
_is = pa.types
_VERSION = b"version"


class _Context(msgspec.Struct, forbid_unknown_fields=True):
    context: dict[str, Any]


class _NotClean(Exception):
    """A column must be read value by value."""


def hash_arrow(body: bytes, encoder: Encoder, max_events: int) -> HashedEvents:
    """The events in an Arrow body, hashed for the model of `encoder`."""
    table = _read(body)
    check_count("rows", len(table), max_events)
    schema = encoder.schema
    context, shared = _context(table, encoder)
    _check_columns(table, context, schema)
    try:
        return _hash(table, shared, encoder)
    except (_NotClean, FeatureError, pa.ArrowException):
        pass

    def place(i: int, column: str) -> str:
        return f"context.{column}" if column in context else f"rows[{i}].{column}"

    try:
        columns = [_values(table.column(name)) for name in table.column_names]
    except (ValueError, pa.ArrowException) as error:
        raise RequestError(400, "body", f"{_RULE} of plain values: {error}") from error
    rows = [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]
    return encoder.encode(to_batch(rows, schema, place, context))


def arrow_answer(version: int, probabilities_B: np.ndarray) -> Answer:
    """The body that answers `POST /score` in Arrow: the column `probability`, and the version in
    the metadata of its schema."""
    column = pa.array(probabilities_B)
    schema = pa.schema([("probability", pa.float32())], {_VERSION: str(version)})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema) as stream:
        stream.write_batch(pa.record_batch([column], schema=schema))
    return Answer(sink.getvalue().to_pybytes(), type=ARROW)


def _read(body: bytes) -> pa.Table:
    try:
        if _compressed(body):
            raise RequestError(400, "body", "must not have compressed buffers")
        with pa.ipc.open_stream(body) as stream:
            table = stream.read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, RequestError):
            raise
        raise RequestError(400, "body", f"{_RULE}: {error}") from error
    return table


def _compressed(body: bytes) -> bool:
    """True where a message says that its buffers are compressed: they could become so long that
    there is no memory for them. Arrow's own reader says nothing of it."""
    messages = pa.ipc.MessageReader.open_stream(body)
    while True:
        try:
            message = messages.read_next_message()
        except StopIteration:
            return False
        data = message.metadata.to_pybytes()
        try:
            if _says_compressed(data):
                return True
        except struct.error:
            continue  # it is no message, as its reader will find


def _says_compressed(data: bytes) -> bool:
    """True where a message's metadata, a FlatBuffer of Arrow's Message.fbs, have a codec."""
    (root,) = struct.unpack_from("<I", data)
    kind, header = _member(data, root, 1), _member(data, root, 2)
    if not kind or not header or data[kind] not in _BATCHES:
        return False
    batch = header + struct.unpack_from("<I", data, header)[0]
    member = _BATCHES[data[kind]]
    if member is not None:  # of a dictionary
        at = _member(data, batch, member)
        batch = at + struct.unpack_from("<I", data, at)[0]
    return bool(_member(data, batch, 3))


def _member(data: bytes, table: int, number: int) -> int:
    """The place of a member of a FlatBuffer's table; 0 where it has none."""
    start = table - struct.unpack_from("<i", data, table)[0]
    (size,) = struct.unpack_from("<H", data, start)
    if 4 + 2 * number >= size:
        return 0
    (offset,) = struct.unpack_from("<H", data, start + 4 + 2 * number)
    return table + offset if offset else 0


def _context(table: pa.Table, encoder: Encoder) -> tuple[dict[str, Any], HashedEvents]:
    """The context, and the event that it makes alone."""
    text = (table.schema.metadata or {}).get(CONTEXT, b"{}")
    try:
        found = decode(b'{"context": ' + text + b"}", _Context).context
        return found, hash_score(b'{"events": [' + text + b"]}", encoder, 1)
    except RequestError as error:
        field = error.field.removeprefix("context").removeprefix("events[0]").lstrip(".")
        field = f"context.{field}" if field and field != "body" else "context"
        raise RequestError(400, field, error.rule, error.value) from error


def _check_columns(table: pa.Table, context: Mapping[str, Any], schema: Schema) -> None:
    """Raise `RequestError` unless each column is known, and there once."""
    known = {*schema.columns, *schema.ignore}
    known |= {name.split(".")[0] for name in known}
    seen: set[str] = set()
    for name in table.column_names:
        if name not in known:
            raise RequestError(
                400, f"rows.{shorten(name)}", "must be a column of the schema", shorten(name)
            )
        if name in seen:
            raise RequestError(400, f"rows.{name}", "must be there once")
        if name in context:
            raise RequestError(400, f"rows.{name}", "must not be in the context too")
        seen.add(name)


def _hash(table: pa.Table, shared: HashedEvents, encoder: Encoder) -> HashedEvents:
    """The events of a clean table, with the columns of `shared`, one event, where it has none.
    Raises `_NotClean`."""
    schema, count = encoder.schema, len(table)
    columns = dict(zip(table.column_names, table.columns, strict=True))
    if schema.label in columns or not columns.keys() <= {*schema.columns}:
        raise _NotClean
    hashes_BF = encoder.empty_hashes(count)
    hashes_BF[:] = shared.hashes_BF.numpy().view(np.uint64)
    numerics_BN = np.empty((count, len(schema.numeric)), np.float32)
    numerics_BN[:] = shared.raw_numerics_BN.numpy()[:, : len(schema.numeric)]
    times_s_B = np.full(count, shared.times_s_B.numpy()[0])
    for f, name in enumerate(schema.categorical):
        if name in columns:
            hashes_BF[:, f] = encoder.hash_column(_names(columns[name]), f)
    for n, name in enumerate(schema.numeric):
        if name in columns:
            numerics_BN[:, n] = _numbers(columns[name])
    if schema.timestamp in columns:
        times_s_B = _times(columns[schema.timestamp], schema)
    lists = []
    for place, name in enumerate(schema.lists):
        if name in columns:
            values = read_lists(_values(columns[name]), name, schema)
            lists.append(encoder.encode_list(values, place))
        else:
            lists.append(shared.lists[place].repeat(count))
    return encoder.encode_hashes(hashes_BF, numerics_BN, times_s_B, tuple(lists))


def _values(column: pa.ChunkedArray) -> list[Any]:
    """The values of a column, as JSON would have them."""
    values: list[Any] = column.to_pylist()
    if _is.is_map(column.type):
        values = [None if pairs is None else dict(pairs) for pairs in values]
    return values


def _whole(column: pa.ChunkedArray) -> pa.Array:
    if _is.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _names(column: pa.ChunkedArray) -> pa.Array:
    array = _whole(column)
    if _is.is_string(array.type):
        return array
    if _is.is_integer(array.type) or _is.is_large_string(array.type) or _is.is_null(array.type):
        return array.cast(pa.string())
    raise _NotClean


def _numbers(column: pa.ChunkedArray) -> np.ndarray:
    """float64, NaN where missing, finite in 32 bits."""
    array = _whole(column)
    if not (_is.is_floating(array.type) or _is.is_integer(array.type)):
        raise _NotClean
    values_B: np.ndarray = array.to_numpy(zero_copy_only=False).astype(np.float64)
    if (np.abs(values_B) >= BEYOND_32_BITS).any():
        raise _NotClean
    return values_B


def _times(column: pa.ChunkedArray, schema: Schema) -> np.ndarray:
    """float64 seconds since the epoch, 0 where missing."""
    array = _whole(column)
    if _is.is_timestamp(array.type):
        array = array.cast(pa.timestamp("us", array.type.tz), safe=False).cast(pa.int64())
        per_s = UNITS_PER_S["us"]
    elif schema.timestamp_format in UNITS_PER_S:
        per_s = UNITS_PER_S[schema.timestamp_format]
    else:
        raise _NotClean
    times_s_B = np.nan_to_num(_numbers(pa.chunked_array([array])) / per_s)
    if (np.abs(times_s_B) > LARGEST_TIME_S).any():
        raise _NotClean
    return times_s_B
