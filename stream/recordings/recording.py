"""Recorded streams: Parquet, JSON Lines and CSV, each also gzipped, told apart by the ends of their
names.

In: a file and a `Schema`, or a file only, for which a schema is proposed. Out: `EventBatch`es, and
`Reject`s with the row in the file for what a trainer would dead-letter. And the other way: tables
into a file, which gets its name once it is complete, and whose bytes do not depend on how the
tables were cut. Memory does not grow with the file.
"""

import gzip
from collections.abc import Iterator
from contextlib import ExitStack
from io import BufferedIOBase
from itertools import chain, islice
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.pruning.errors import nearest
from niwaki.stream.errors import ConfigError, EventError
from niwaki.stream.events.decoder import EventDecoder
from niwaki.stream.events.encoders import encode_json
from niwaki.stream.events.rejects import Reject
from niwaki.stream.events.tables import table_to_batch
from niwaki.stream.recordings.csv_rows import read_csv, sample_csv
from niwaki.stream.recordings.files import (
    open_parquet,
    open_recording,
    rechunk,
    recording_format,
    require_columns,
    schema_columns,
    translated_file_errors,
)

CHUNK_EVENTS = 65_536
LABELS = ("label", "click", "clicked", "y", "target")
TIMESTAMPS = ("ts", "timestamp", "time", "event_time")
_SAMPLE_EVENTS = 20_000  # from which a schema is proposed
_FEW_VALUES = 1_000  # integers with no more than that in the sample are names rather than amounts
_ROW_GROUP_EVENTS = 131_072

Chunks = Iterator[tuple[EventBatch, list[Reject]]]


def propose_schema(path: str | Path) -> Schema:
    """The schema that the first 20,000 events of a recording suggest, by names and types:

    1. The label is the column called label, click, clicked, y or target (the first of these that is
       there); the event time is one of integers or timestamps called ts, timestamp, time or
       event_time. Case does not matter.
    2. Where columns are called c_* or n_*, those are the categorical and the numeric ones, and all
       others are ignored.
    3. Otherwise strings are categorical, and so are integers that are called id or *_id or have at
       most 1,000 different values; all other numbers and booleans are numeric. Columns of other
       types, and those that are always null, are ignored.
    """
    path = Path(path)
    with translated_file_errors(path):
        sample = _sample(path)
    names = {name.lower(): name for name in reversed(sample.column_names)}
    label = next((names[name] for name in LABELS if name in names), None)
    if label is None:
        there = ", ".join(sample.column_names)
        raise ConfigError(
            str(path), f"has no column called {', '.join(LABELS)}; it has {there or 'none'}"
        )
    times = [names[name] for name in TIMESTAMPS if name in names]
    times = [name for name in times if _is(sample[name], "integer", "timestamp")]
    others = [name for name in sample.column_names if name not in (label, *times[:1])]
    prefixed = any(name.startswith(("c_", "n_")) for name in others)
    roles: dict[str, list[str]] = {"categorical": [], "numeric": [], "ignore": []}
    for name in others:
        by_prefix = {"c_": "categorical", "n_": "numeric"}.get(name[:2], "ignore")
        roles[by_prefix if prefixed else _role(name, sample[name])].append(name)
    if not roles["categorical"] and not roles["numeric"]:
        raise ConfigError(str(path), f"has no column to learn from beside {label!r}")
    timestamp = times[0] if times else None
    return Schema(
        label=label,
        timestamp=timestamp,
        categorical=tuple(roles["categorical"]),
        numeric=tuple(roles["numeric"]),
        ignore=tuple(roles["ignore"]),
    )


def read_recording(
    path: str | Path,
    schema: Schema,
    *,
    chunk_events: int = CHUNK_EVENTS,
    limit_events: int | None = None,
) -> Chunks:
    """Events of a recording, from `chunk_events` rows at a time; `Reject.position` is the row in
    the file, from 0.

    Columns that the schema does not name are not read. Raises `ConfigError` if the file can't be
    read or lacks a column of the schema; in JSON Lines, which leave null out, only if it has one of
    a similar name instead.
    """
    path = Path(path)
    read = {"parquet": _read_parquet, "csv": _read_csv, "jsonl": _read_jsonl}[
        recording_format(path)[0]
    ]
    chunks = read(path, schema, chunk_events, limit_events)
    # The first chunk is read now, so that a fault of the file is reported at once.
    return chain(list(islice(chunks, 1)), chunks)


def read_tables(
    path: str | Path,
    schema: Schema,
    *,
    chunk_events: int = CHUNK_EVENTS,
    limit_events: int | None = None,
) -> Iterator[pa.Table]:
    """The columns of the schema, to be passed on: of Parquet as they are, of text those rows that
    are events."""
    path = Path(path)
    if recording_format(path)[0] == "parquet":
        yield from _parquet_tables(path, schema, chunk_events, limit_events)
    else:
        batches = read_recording(path, schema, chunk_events=chunk_events, limit_events=limit_events)
        yield from rechunk((batch_to_table(batch, schema) for batch, _ in batches), chunk_events)


def read_lines(path: str | Path) -> Iterator[bytes]:
    """The lines of a JSON Lines recording as they are, without empty ones."""
    with translated_file_errors(Path(path)), open_recording(Path(path)) as file:
        yield from filter(None, map(bytes.strip, file))


def batch_to_table(batch: EventBatch, schema: Schema) -> pa.Table:
    """A batch as columns under the schema's names: event time in milliseconds, missing values as
    null."""
    columns: dict[str, pa.Array | np.ndarray] = {}
    if schema.timestamp:
        columns[schema.timestamp] = np.round(batch.times_s_B * 1000).astype(np.int64)
    columns[schema.label] = batch.labels_B
    columns |= zip(schema.categorical, batch.categorical, strict=True)
    for name, values_B in zip(schema.numeric, batch.numerics_BN.T, strict=True):
        columns[name] = pa.array(np.ascontiguousarray(values_B), mask=np.isnan(values_B))
    return pa.table(columns)


def write_recording(path: str | Path) -> "RecordingWriter":
    """For a `with` statement: the tables written in it become the file `path`."""
    return RecordingWriter(Path(path))


class RecordingWriter:
    """A recording being written. The file gets its name at the end, if all went well; without
    events there is none."""

    def __init__(self, path: Path):
        self._path, self._unfinished = path, path.with_name(f".{path.name}.part")
        self._format, self._gzipped = recording_format(path)
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | pyarrow.csv.CSVWriter | None = None
        self._held: list[pa.Table] = []
        self.events = 0
        """Events written so far."""

    def __enter__(self) -> Self:
        with translated_file_errors(self._path):
            self._file: BufferedIOBase = self._stack.enter_context(self._unfinished.open("wb"))
        if self._gzipped:  # without name and time in it, so that the same events are the same bytes
            self._file = self._stack.enter_context(gzip.GzipFile("", "wb", 6, self._file, 0))
        return self

    def write(self, table: pa.Table) -> None:
        """Add the rows of `table`. All tables have the same columns."""
        with translated_file_errors(self._path):
            if self._format == "jsonl":
                self._file.writelines(line + b"\n" for line in encode_json(table))
            elif self._format == "csv":
                self._open_writer(pyarrow.csv.CSVWriter, table.schema).write_table(table)
            else:
                self._held.append(table)
                if sum(map(len, self._held)) >= _ROW_GROUP_EVENTS:
                    self._write_row_groups(last=False)
        self.events += len(table)

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        try:
            with translated_file_errors(self._path):
                if not kind:
                    self._write_row_groups(last=True)
                self._stack.close()
                if self.events and not kind:
                    self._unfinished.replace(self._path)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _open_writer(
        self, kind: type, schema: pa.Schema, **options: str
    ) -> pq.ParquetWriter | pyarrow.csv.CSVWriter:
        self._writer = self._writer or self._stack.enter_context(
            kind(self._file, schema, **options)
        )
        return self._writer

    def _write_row_groups(self, *, last: bool) -> None:
        groups = list(rechunk(self._held, _ROW_GROUP_EVENTS))
        self._held = (
            [] if last or not groups or len(groups[-1]) == _ROW_GROUP_EVENTS else [groups.pop()]
        )
        for group in groups:
            self._open_writer(pq.ParquetWriter, group.schema, compression="zstd").write_table(group)


def _read_parquet(
    path: Path, schema: Schema, chunk_events: int, limit_events: int | None
) -> Chunks:
    first = 0
    for table in _parquet_tables(path, schema, chunk_events, limit_events):
        yield _to_batch(path, table, np.arange(first, first + len(table)), schema)
        first += len(table)


def _parquet_tables(
    path: Path, schema: Schema, chunk_events: int, limit_events: int | None
) -> Iterator[pa.Table]:
    with translated_file_errors(path), open_parquet(path) as file:
        columns = schema_columns(schema)
        require_columns(path, columns, file.schema_arrow.names)
        tables = (
            pa.Table.from_batches([one]).select(columns)
            for one in file.iter_batches(CHUNK_EVENTS, columns=columns)
        )
        yield from rechunk(tables, chunk_events, limit_events)


def _read_csv(path: Path, schema: Schema, chunk_events: int, limit_events: int | None) -> Chunks:
    for rows in read_csv(path, schema, chunk_events, limit_events):
        batch, more = _to_batch(path, rows.table, rows.row_B, schema)
        yield batch, sorted(rows.rejects + more)


def _to_batch(
    path: Path, table: pa.Table, row_B: np.ndarray, schema: Schema
) -> tuple[EventBatch, list[Reject]]:
    try:
        batch, rejects, _ = table_to_batch(table, schema)
    except EventError as error:  # a whole column is of the wrong type
        raise ConfigError(str(path), str(error)) from error
    return batch, [reject._replace(position=int(row_B[reject.position])) for reject in rejects]


def _read_jsonl(path: Path, schema: Schema, chunk_events: int, limit_events: int | None) -> Chunks:
    lines = islice(read_lines(path), limit_events)
    head = list(islice(lines, _SAMPLE_EVENTS))
    names = list(dict.fromkeys(chain.from_iterable(_objects(head))))
    columns = schema_columns(schema)
    others = [name for name in names if name not in (*columns, *schema.ignore)]
    absent = [name for name in columns if name not in names] if names else []
    must = (schema.label, schema.timestamp)
    require_columns(
        path, [name for name in absent if name in must or nearest(name, others, cutoff=0.6)], names
    )
    decoder = EventDecoder(msgspec.structs.replace(schema, ignore=(*schema.ignore, *others)))
    first, rest = 0, chain(head, lines)
    while chunk := list(islice(rest, chunk_events)):
        decoded = decoder.decode(chunk)
        rejects = decoded.rejects
        moved = [reject._replace(position=first + reject.position) for reject in rejects]
        yield decoded.batch, moved
        first += len(chunk)


def _objects(lines: list[bytes]) -> Iterator[dict[str, object]]:
    """Those lines that are JSON objects."""
    for line in lines:
        try:
            value = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        if isinstance(value, dict):
            yield value


def _sample(path: Path) -> pa.Table:
    """The first events of a recording, with the types that their values have."""
    kind, _ = recording_format(path)
    if kind == "parquet":
        with open_parquet(path) as file:
            batch = next(file.iter_batches(_SAMPLE_EVENTS), None)
            return (
                file.schema_arrow.empty_table() if batch is None else pa.Table.from_batches([batch])
            )
    if kind == "csv":
        return sample_csv(path).slice(0, _SAMPLE_EVENTS)
    rows = list(_objects(list(islice(read_lines(path), _SAMPLE_EVENTS))))
    return pa.table(
        {
            name: _column([row.get(name) for row in rows])
            for name in dict.fromkeys(chain.from_iterable(rows))
        }
    )


def _column(values: list[object]) -> pa.Array:
    """JSON values as a column of their type, or as strings if there are several."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError):
        return pa.array([None if value is None else str(value) for value in values])


def _role(name: str, column: pa.ChunkedArray) -> str:
    if column.null_count == len(column):
        return "ignore"
    if _is(column, "integer"):
        named = name.lower() == "id" or name.lower().endswith("_id")
        return (
            "categorical"
            if named or pc.count_distinct(column).as_py() <= _FEW_VALUES
            else "numeric"
        )
    if _is(column, "string", "large_string", "string_view"):
        return "categorical"
    return "numeric" if _is(column, "floating", "decimal", "boolean") else "ignore"


def _is(column: pa.ChunkedArray, *kinds: str) -> bool:
    """True if a column's values are of one of these kinds, as `pyarrow.types` names them."""
    value_type = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    return any(getattr(pa.types, f"is_{kind}")(value_type) for kind in kinds)
