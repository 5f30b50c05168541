"""Recorded streams written: tables of events into a Parquet, JSON Lines or CSV file, each also
gzipped, by the end of its name.

In: batches or tables of events. Out: a file that gets its name once it is complete, and whose bytes
do not depend on how the tables were cut. Memory does not grow with the file.
"""

import gzip
from contextlib import ExitStack
from io import BufferedIOBase
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from niwaki.model.features.schema import EventBatch, Schema
from niwaki.model.features.values import UNITS_PER_S
from niwaki.stream.events.encoders import encode_json
from niwaki.stream.files.content import rechunk, translated_file_errors, written_format

_ROW_GROUP_EVENTS = 131_072


def batch_to_table(batch: EventBatch, schema: Schema) -> pa.Table:
    """A batch as columns that give the batch again where they are read with the schema: missing
    values as null, event times and labels in the schema's own form."""
    columns: dict[str, pa.Array | np.ndarray] = {}
    if schema.timestamp:
        columns[schema.timestamp] = format_times(batch.times_s_B, schema.timestamp_format)
    columns[schema.label] = _labels(batch.labels_B, schema)
    columns |= zip(schema.categorical, batch.categorical, strict=True)
    for name, values_B in zip(schema.numeric, batch.numerics_BN.T, strict=True):
        columns[name] = pa.array(np.ascontiguousarray(values_B), mask=np.isnan(values_B))
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


def write_recording(path: str | Path) -> "RecordingWriter":
    """For a `with` statement: the tables written in it become the file `path`."""
    return RecordingWriter(Path(path))


class RecordingWriter:
    """A recording being written. The file gets its name at the end, if all went well; without
    events there is none."""

    def __init__(self, path: Path):
        self._path, self._unfinished = path, path.with_name(f".{path.name}.part")
        self._format, self._gzipped = written_format(path)
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
