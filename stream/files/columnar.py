"""Beneath `pieces`: rows of Parquet and Arrow files, with the types that the files have.

In: the content of a part whose kind is parquet, arrow (a file, which Feather of version 2 is) or
arrow stream. Out: `Rows`, some at a time, with the number of each row.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from niwaki.pruning.errors import shorten
from niwaki.stream.errors import ConfigError
from niwaki.stream.files.content import Content, Rows

_Batches = Iterator[tuple[pa.RecordBatch, float]]
"""Batches, each with the share of the file that is read after it, 0..1."""


def column_names(content: Content, kind: str) -> list[str]:
    """The names of the columns. Raises `ConfigError` if two have the same."""
    with _opened(content, kind) as (schema, _, _):
        return _names(content, schema)


def read_columnar(
    content: Content, kind: str, *, columns: Sequence[str] | None, batch_rows: int
) -> Generator[Rows, None, None]:
    """The rows, at most `batch_rows` at a time; at least one `Rows`. `columns`: those to be read;
    None: all."""
    with _opened(content, kind) as (schema, batches, reached):
        names = _names(content, schema)
        wanted = [name for name in names if columns is None or name in columns]
        yield Rows(schema.empty_table().select(wanted), np.array([], np.int64), [])
        first = 1
        for batch, share in batches(wanted, batch_rows):
            reached(share)
            for start in range(0, len(batch), batch_rows):
                some = pa.Table.from_batches([batch.slice(start, batch_rows)]).select(wanted)
                count = min(batch_rows, len(batch) - start)
                yield Rows(some, np.arange(first, first + count), [])
                first += count


@contextmanager
def _opened(
    content: Content, kind: str
) -> Iterator[tuple[pa.Schema, Callable[[list[str], int], _Batches], Callable[[float], object]]]:
    """The types of the columns, a function that reads those with the names given, and one that
    learns which share is read."""
    if kind == "arrow stream":
        with pa.ipc.open_stream(pa.PythonFile(content, "r")) as stream:
            batches = ((batch, 0.0) for batch in stream)  # the content itself tells what is read
            yield stream.schema, lambda wanted, rows: _checked(batches), lambda share: None
        return
    with content.seekable() as (file, reached):
        if kind == "parquet":
            with pq.ParquetFile(file) as parquet:
                yield parquet.schema_arrow, lambda *which: _of_parquet(parquet, *which), reached
        else:
            schema = pa.ipc.open_file(file).schema
            yield schema, lambda names, rows: _checked(_of_arrow(file, schema, names)), reached


def _of_parquet(file: pq.ParquetFile, wanted: list[str], batch_rows: int) -> _Batches:
    done, rows = 0, file.metadata.num_rows
    for batch in file.iter_batches(batch_rows, columns=wanted):
        done += batch.num_rows
        yield batch, done / rows


def _of_arrow(file: pa.NativeFile, schema: pa.Schema, wanted: list[str]) -> _Batches:
    fields = [schema.get_field_index(name) for name in wanted]
    file.seek(0)
    opened = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields or [0]))
    for at in range(opened.num_record_batches):
        yield opened.get_batch(at), (at + 1) / opened.num_record_batches


def _checked(batches: Any) -> _Batches:
    for batch, share in batches:
        batch.validate(full=True)  # a read of what damaged ones point at could crash
        yield batch, share


def _names(content: Content, schema: pa.Schema) -> list[str]:
    names: list[str] = schema.names
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(str(content.name), f"has two columns called {shorten(name)}")
    return names
