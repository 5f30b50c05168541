"""Beneath `recording`: rows of CSV to typed columns, where one bad row or number costs one event
and no more.

Everything is read as text and made numbers here, since Arrow would give up on a whole block for one
word. A bare empty field is missing, a quoted one is the value ""; in numbers NA, NaN, null and the
like are missing, too.
"""

from collections.abc import Callable, Iterator
from io import BufferedIOBase
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from niwaki.model.features.schema import Schema
from niwaki.pruning.errors import shorten
from niwaki.stream.events.rejects import Reject
from niwaki.stream.recordings.files import (
    open_recording,
    rechunk,
    require_columns,
    schema_columns,
    translated_file_errors,
)

_BLOCK_BYTES = 4 * 2**20
_NO_NUMBER = pa.array(["", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"])
_TYPES = {
    "label": (pa.float64(),),
    "timestamp": (pa.int64(), pa.timestamp("ms"), pa.timestamp("ms", "UTC")),
    # not by way of 64 bits, in which the largest one written with 32 is too large
    "numeric": (pa.float32(),),
}
_RULES = {
    "label": "a number",
    "timestamp": "an integer number of milliseconds",
    "numeric": "a number",
}


class TypedRows(NamedTuple):
    """Rows of a CSV file as the columns of a schema."""

    table: pa.Table
    row_B: np.ndarray
    """int64, the place of each row of `table` in the file."""
    rejects: list[Reject]
    """One for each broken row."""


def read_csv(
    path: Path, schema: Schema, chunk_events: int, limit_events: int | None
) -> Iterator[TypedRows]:
    """The schema's columns, typed, `chunk_events` rows at a time."""
    columns = schema_columns(schema)
    with translated_file_errors(path), open_recording(path) as file:
        require_columns(path, columns, _open(file, lambda row: "skip").schema.names)
    malformed: list[Reject] = []

    def reject(row: csv.InvalidRow) -> str:
        fields = f"must have {row.expected_columns} fields, has {row.actual_columns}"
        # The header is row 1.
        malformed.append(Reject(row.number - 2, "row", "row", fields, shorten(row.text)))
        return "skip"

    convert = csv.ConvertOptions(
        include_columns=columns,
        column_types=dict.fromkeys(columns, pa.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    with translated_file_errors(path), open_recording(path) as file:
        blocks = (pa.Table.from_batches([block]) for block in _open(file, reject, convert))
        first = sent = 0
        table = None
        for table in rechunk(blocks, chunk_events, limit_events):
            bad = np.array([reject.position for reject in malformed], np.int64)
            # each is as many rows further down as bad ones are above it
            good_B = np.arange(first, first + len(table))
            row_B = good_B + np.searchsorted(bad - np.arange(len(bad)), good_B, "right")
            typed = _typed(table, row_B, schema)
            yield typed._replace(rejects=sorted(typed.rejects + malformed[sent:]))
            first, sent = first + len(table), len(malformed)
        if malformed[sent:] and table is not None:
            none = _typed(table.slice(0, 0), row_B[:0], schema)
            yield none._replace(rejects=malformed[sent:])


def sample_csv(path: Path) -> pa.Table:
    """The first megabytes, with the types that Arrow reads from them."""
    with open_recording(path) as file:
        reader = _open(file, lambda row: "skip")
        block = next(iter(reader), None)
        return reader.schema.empty_table() if block is None else pa.Table.from_batches([block])


def _open(
    file: BufferedIOBase,
    reject: Callable[[csv.InvalidRow], str],
    convert: csv.ConvertOptions | None = None,
) -> csv.CSVStreamingReader:
    # with threads, rows have no numbers
    read = csv.ReadOptions(use_threads=False, block_size=_BLOCK_BYTES)
    parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=reject)
    return csv.open_csv(file, read, parse, convert)


def _typed(table: pa.Table, row_B: np.ndarray, schema: Schema) -> TypedRows:
    """The rows with numbers where numbers belong, their places, and rejects for the others."""
    roles = {schema.label: "label", schema.timestamp: "timestamp"} | dict.fromkeys(
        schema.numeric, "numeric"
    )
    columns, wrong = {}, {}
    for name in table.column_names:
        text = table[name]
        if name in roles:
            text = pc.utf8_trim_whitespace(text)
            text = pc.if_else(pc.is_in(text, _NO_NUMBER), pa.scalar(None, pa.string()), text)
            columns[name], words = _numbers(text, *_TYPES[roles[name]])
            for at, word in words.items():
                rule = f"must be {_RULES[roles[name]]}"
                wrong[at] = Reject(int(row_B[at]), roles[name], name, rule, shorten(word))
        else:
            columns[name] = text
    table = pa.table(columns)
    if wrong:
        kept = np.delete(np.arange(len(table)), list(wrong))
        table, row_B = table.take(pa.array(kept)), row_B[kept]
    return TypedRows(table, row_B, list(wrong.values()))


def _numbers(
    text: pa.ChunkedArray, *types: pa.DataType
) -> tuple[pa.ChunkedArray | pa.Array, dict[int, str]]:
    """`text` as the first of `types` that fits; else as the first one without the words that do not
    fit, by row."""
    for kind in types:
        try:
            return text.cast(kind), {}
        except pa.ArrowInvalid:
            continue
    numbers, words = [], {}
    read = int if pa.types.is_integer(types[0]) else float
    for at, word in enumerate(text.to_pylist()):
        try:
            numbers.append(None if word is None else pa.scalar(read(word), types[0]).as_py())
        except (ValueError, OverflowError):
            numbers.append(None)
            words[at] = word
    return pa.array(numbers, types[0]), words
