"""Beneath `pieces`: rows of Parquet and Arrow files, as columns of the files' own types.

In: the content of a file. Out: `Rows`, some rows at a time, with the number of each row, from 1.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from niwaki.stream.files.content import Content, Rows


def columnar_names(content: Content, kind: str) -> list[str]:
    """The names of the columns of a Parquet or Arrow file."""
    if kind == "arrow stream":
        with pa.ipc.open_stream(pa.PythonFile(content, "r")) as stream:
            return list(stream.schema.names)
    with content.seekable() as (file, _):
        if kind == "parquet":
            return list(pq.ParquetFile(file).schema_arrow.names)
        return list(pa.ipc.open_file(file).schema.names)


def read_columnar(
    content: Content, kind: str, *, columns: Sequence[str] | None, chunk_rows: int
) -> Iterator[Rows]:
    """The rows of a Parquet or Arrow file; at least one `Rows`. `columns`: those to be read; None:
    all."""
    read = {"parquet": _parquet, "arrow": _arrow_file, "arrow stream": _arrow_stream}[kind]
    first = 1
    for table in read(content, columns, chunk_rows):
        for start in range(0, max(len(table), 1), chunk_rows):
            some = table.slice(start, chunk_rows)
            yield Rows(some, np.arange(first, first + len(some)), [])
            first += len(some)


def _parquet(
    content: Content, columns: Sequence[str] | None, chunk_rows: int
) -> Iterator[pa.Table]:
    with content.seekable() as (opened, reached):
        file = pq.ParquetFile(opened)
        schema = file.schema_arrow
        wanted = list(schema.names) if columns is None else list(columns)
        yield pa.table({name: pa.array([], schema.field(name).type) for name in wanted})
        done, total = 0, max(file.metadata.num_rows, 1)
        for batch in file.iter_batches(chunk_rows, columns=wanted):
            yield pa.Table.from_batches([batch]).select(wanted)
            done += len(batch)
            reached(done / total)


def _arrow_file(
    content: Content, columns: Sequence[str] | None, chunk_rows: int
) -> Iterator[pa.Table]:
    with content.seekable() as (opened, reached):
        file = pa.ipc.open_file(opened)
        for at in range(file.num_record_batches):
            yield _selected(pa.Table.from_batches([file.get_batch(at)]), columns)
            reached((at + 1) / file.num_record_batches)
        if not file.num_record_batches:
            yield _selected(file.schema.empty_table(), columns)


def _arrow_stream(
    content: Content, columns: Sequence[str] | None, chunk_rows: int
) -> Iterator[pa.Table]:
    with pa.ipc.open_stream(pa.PythonFile(content, "r")) as stream:
        yield _selected(stream.schema.empty_table(), columns)
        for batch in stream:
            yield _selected(pa.Table.from_batches([batch]), columns)


def _selected(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    return table if columns is None else table.select(list(columns))
