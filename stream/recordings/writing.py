"""Recorded streams written: tables of events into a Parquet, JSON Lines or CSV file, each also
gzipped, by the end of its name.

In: batches or tables of events. Out: a file that gets its name once it is complete, and whose bytes
do not depend on how the tables were cut. Memory does not grow with the file.
"""

import gzip
from collections.abc import Collection
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path
from typing import Self

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from niwaki.model.features.schema import LIST, EventBatch, Schema
from niwaki.model.features.values import UNITS_PER_S
from niwaki.stream.events.encoders import encode_json, json_values
from niwaki.stream.files.content import rechunk, translated_file_errors, written_format

_ROW_GROUP_EVENTS = 131_072


def batch_to_table(batch: EventBatch, schema: Schema) -> pa.Table:
    """A batch as columns that give the batch again where they are read with the schema: missing
    values as null, event times and labels in the schema's own form, lists as lists of strings, or
    as maps where some value has another weight than 1."""
    columns: dict[str, pa.Array | np.ndarray] = {}
    if schema.timestamp:
        columns[schema.timestamp] = format_times(batch.times_s_B, schema.timestamp_format)
    columns[schema.label] = _labels(batch.labels_B, schema)
    if schema.weight and batch.weights_B is not None:
        columns[schema.weight] = batch.weights_B
    if schema.sampling_ratio and batch.sampling_B is not None:
        columns[schema.sampling_ratio] = batch.sampling_B
    columns |= zip(schema.categorical, batch.categorical, strict=True)
    for name, values_B in zip(schema.numeric, batch.numerics_BN.T, strict=True):
        columns[name] = pa.array(np.ascontiguousarray(values_B), mask=np.isnan(values_B))
    columns |= zip(schema.lists, map(_plain_lists, batch.lists), strict=True)
    return pa.table(columns)


def format_times(times_s_B: np.ndarray, shape: str) -> pa.Array | np.ndarray:
    """Event times, float64 seconds (B,), in the form of a schema's `timestamp_format`."""
    if shape in UNITS_PER_S:
        whole_B = np.round(times_s_B * UNITS_PER_S[shape]).astype(np.int64)
        return times_s_B if shape == "s" and (whole_B != times_s_B).any() else whole_B
    times = pa.array(np.round(times_s_B * 1e6).astype(np.int64)).cast(pa.timestamp("us"))
    return pc.strftime(times, "%Y-%m-%dT%H:%M:%S" if shape == "iso" else shape)


def _labels(labels_B: np.ndarray, schema: Schema) -> pa.Array | np.ndarray:
    if schema.label_positive:
        others = "other" if "other" not in schema.label_positive else "another"
        return pa.array(np.where(labels_B > 0, schema.label_positive[0], others))
    if schema.label_threshold is not None:
        return labels_B + np.float32(schema.label_threshold - 1)
    return labels_B


def _plain_lists(lists_B: pa.Array) -> pa.Array:
    """An array of type `LIST` as lists of strings, if all values weigh 1; else as it is."""
    offsets = lists_B.offsets.to_numpy()
    weights_V = lists_B.items.to_numpy()[offsets[0] : offsets[-1]]
    if (weights_V != 1).any():
        return lists_B
    mask = lists_B.is_null() if lists_B.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), lists_B.keys, mask=mask)


def _with_maps(table: pa.Table, names: Collection[str]) -> pa.Table:
    """The table with the columns `names` as maps to weights, 1 in those that were lists."""
    for at, name in enumerate(table.column_names):
        if name in names and pa.types.is_map(table.schema.field(at).type):
            table = table.set_column(at, name, table.column(at).cast(LIST))  # names of its parts
        elif name in names:
            lists = table.column(at).combine_chunks()
            offsets = lists.offsets.to_numpy()
            weights_V = pa.array(np.ones(len(lists.values), np.float32))
            mask = lists.is_null() if lists.null_count else None
            maps = pa.MapArray.from_arrays(
                pa.array(offsets), lists.values, weights_V, type=LIST, mask=mask
            )
            table = table.set_column(at, name, maps)
    return table


def _with_texts(table: pa.Table) -> pa.Table:
    """The table with JSON in the place of lists and maps, which CSV has not."""
    for at, name in enumerate(table.column_names):
        if pa.types.is_nested(table.schema.field(at).type):
            values = json_values(table.column(at))
            texts = [None if one is None else msgspec.json.encode(one).decode() for one in values]
            table = table.set_column(at, name, pa.array(texts, pa.string()))
    return table


def write_recording(path: str | Path) -> "RecordingWriter":
    """For a `with` statement: the tables written in it become the file `path`."""
    return RecordingWriter(Path(path))


class RecordingWriter:
    """A recording being written. The file gets its name at the end, if all went well; without
    events there is none.

    A column is one of lists until the first weight in it that is not 1. Then it is one of maps from
    its first row: a Parquet file, which has one type for all of a column, is written again.
    """

    def __init__(self, path: Path):
        self._path, self._unfinished = path, path.with_name(f".{path.name}.part")
        self._format, self._gzipped = written_format(path)
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | pyarrow.csv.CSVWriter | None = None
        self._held: list[pa.Table] = []
        self._maps: set[str] = set()
        self.events = 0
        """Events written so far."""

    def __enter__(self) -> Self:
        with translated_file_errors(self._path):
            self._open()
        return self

    def _open(self) -> None:
        self._file: BufferedIOBase = self._stack.enter_context(self._unfinished.open("wb"))
        if self._gzipped:  # without name and time in it, so that the same events are the same bytes
            self._file = self._stack.enter_context(gzip.GzipFile("", "wb", 6, self._file, 0))

    def write(self, table: pa.Table) -> None:
        """Add the rows of `table`. All tables have the same columns, but for lists and maps."""
        with translated_file_errors(self._path):
            if self._format == "jsonl":
                self._file.writelines(line + b"\n" for line in encode_json(table))
            elif self._format == "csv":
                texts = _with_texts(table)
                self._open_writer(pyarrow.csv.CSVWriter, texts.schema).write_table(texts)
            else:
                self._hold(table)
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

    def _hold(self, table: pa.Table) -> None:
        """Keep a table for the next row group, with columns of the types of those before."""
        maps = {field.name for field in table.schema if pa.types.is_map(field.type)}
        if maps <= self._maps:
            self._held.append(_with_maps(table, self._maps))
            return
        self._maps |= maps
        self._held = [_with_maps(held, self._maps) for held in (*self._held, table)]
        if self._writer is not None:
            self._write_again()

    def _write_again(self) -> None:
        """Write what is in the file once more, now that more of its columns are maps."""
        self._stack.close()
        self._writer = None
        before = self._unfinished.with_name(f".{self._path.name}.before")
        self._unfinished.replace(before)
        try:
            self._open()
            with gzip.open(before) if self._gzipped else before.open("rb") as file:
                parquet = pq.ParquetFile(file)
                for at in range(parquet.num_row_groups):
                    self._write_group(_with_maps(parquet.read_row_group(at), self._maps))
        finally:
            before.unlink()

    def _write_group(self, group: pa.Table) -> None:
        writer = self._open_writer(pq.ParquetWriter, group.schema, compression="zstd")
        writer.write_table(group.combine_chunks())  # pages of lists end where pieces end

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
            self._write_group(group)
