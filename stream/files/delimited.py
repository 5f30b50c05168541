"""Beneath `pieces`: rows of delimited text, as columns of strings.

In: text. Out: `Rows`, a block of the text at a time, with the line of each row. A bare empty field
or `\\N` is null, a quoted "" is the value "". A row that is broken costs that row: one with a wrong
number of fields, with a quote that is never closed, or with bytes that are no text.

Blocks are cut here and handed to Arrow whole: its streaming reader would read the file from a
thread of its own, which the end of the interpreter does not wait for.
"""

from collections.abc import Generator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.rejects import Reject
from niwaki.stream.files.content import Bytes, Rows
from niwaki.stream.files.dialect import (
    LONGEST_LINE_BYTES,
    Dialect,
    find_dialect,
    without_escapes,
)
from niwaki.stream.files.records import Lines, Records, Splitter, row_reject
from niwaki.stream.files.text import Text

BLOCK_BYTES = 2 * 2**20
_STAND_INS = [bytes([byte]) for byte in (*range(31, 13, -1), *range(8, 0, -1))]
"""Control characters, one of which takes the place of a separator of several characters."""


def column_names(name: Path, text: Text, config: EventsConfig) -> list[str]:
    """The names of the columns of a delimited file."""
    return list(find_dialect(name, text, config).names)


def read_delimited(
    name: Path,
    text: Text,
    config: EventsConfig,
    *,
    columns: Sequence[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> Generator[Rows, None, None]:
    """The rows of a delimited file; at least one `Rows`. `columns`: those to be converted; None:
    all."""
    dialect = find_dialect(name, text, config)
    text.data.read(dialect.skip_bytes)
    wanted = [name for name in dialect.names if columns is None or name in columns]
    data = _with_doubled_quotes(text.data) if dialect.escaped else text.data
    yield from _Reader(dialect, wanted, text.encoding).rows(data, block_bytes)


def _with_doubled_quotes(text: Bytes) -> Bytes:
    """The same text, with quotes doubled that a backslash escapes."""
    held = b""

    def read(size: int) -> bytes:
        nonlocal held
        more = text.read(size)
        whole = held + more
        if not more:
            held = b""
            return whole
        alone = (len(whole) - len(whole.rstrip(b"\\"))) % 2  # what it escapes is not read yet
        held = whole[len(whole) - alone :]
        found = without_escapes(whole[: len(whole) - alone])
        return found or read(size)

    return Bytes(read)


class _Reader:
    """Reads the rows of one file."""

    def __init__(self, dialect: Dialect, wanted: list[str], encoding: str):
        names = list(dialect.names)
        self._dialect, self._wanted = dialect, wanted
        self._separator = dialect.separator  # or what stands in for it
        self._splitter = Splitter(dialect, encoding)
        self._invalid: list[csv.InvalidRow] = []
        # With threads, invalid rows have no numbers.
        self._read = csv.ReadOptions(use_threads=False, block_size=2**30, column_names=names)
        self._convert = csv.ConvertOptions(
            include_columns=wanted or names[:1],
            column_types=dict.fromkeys(names, pa.string()),
            null_values=["", r"\N"],
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
            check_utf8=False,  # the splitter does it
        )

    def rows(self, text: Bytes, block_bytes: int) -> Generator[Rows, None, None]:
        """The rows of `text`, which begins with the first of them."""
        yield self._no_rows([])
        line, held, last, too_long = self._dialect.first_line, b"", False, False
        line_end = self._dialect.line_end
        while not last:
            size = max(block_bytes, len(held))
            more = text.read(size)
            last = len(more) < size
            held = held + more if held else more
            if last and held and held[-1:] not in b"\r\n":
                held += line_end  # else Arrow takes a bare last field after a quoted one for ""
            if too_long:
                end = held.find(line_end) + 1
                held, too_long, line = held[end:] if end else b"", not end, line + bool(end)
            # A return at the very end may belong to a line feed that follows.
            end = len(held) if last else held.rfind(line_end, 0, len(held) - 1) + 1
            end += held[end : end + 1] == b"\n"
            if end:
                rows, records = self._take(Lines(held, end, line, last))
                line += records.lines
                held = held[records.used :]
                yield rows
            elif len(held) > LONGEST_LINE_BYTES:
                rule = f"must be at most {LONGEST_LINE_BYTES // 2**20} MB"
                yield self._no_rows([row_reject(line, "row", rule, held)])
                held, too_long = b"", True

    def _take(self, lines: Lines) -> tuple[Rows, Records]:
        """Rows of `lines`, and the records that they were."""
        for records in self._splitter.ways(lines):
            table = self._parse(records)
            if table is None:
                continue
            lines_R = records.lines_of(len(table) + len(self._invalid))
            wrong = [row.number - 1 for row in self._invalid]
            if lines_R is None or (records.sound_R is not None and records.sound_R[wrong].any()):
                continue
            return self._rows(table, records, lines_R), records
        raise AssertionError("the last way is always right")

    def _rows(self, table: pa.Table, records: Records, lines_R: np.ndarray) -> Rows:
        places_B, rejects = lines_R, records.rejects
        if self._invalid:
            wrong = [row.number - 1 for row in self._invalid]
            places_B = np.delete(lines_R, wrong)
            for row, line in zip(self._invalid, lines_R[wrong].tolist(), strict=True):
                rule = f"must have {row.expected_columns} fields, has {row.actual_columns}"
                text = row.text.replace(self._separator, self._dialect.separator)
                rejects.append(row_reject(line, "row", rule, text.encode()))
            rejects.sort()
        return Rows(table.select(self._wanted), places_B, rejects)

    def _parse(self, records: Records) -> pa.Table | None:
        """The records as a table; those with a wrong number of fields are left out of it, and are
        in `_invalid`. None if a quote is open at their end."""
        self._invalid = []
        if not records.text.size:
            return self._no_rows([]).rows
        text, separator = records.text, self._dialect.separator.encode()
        if len(separator) > 1:
            whole = text.to_pybytes()
            stand_in = next((byte for byte in _STAND_INS if byte not in whole), _STAND_INS[0])
            text = pa.py_buffer(whole.replace(separator, stand_in))
            self._separator = stand_in.decode()
        parse = csv.ParseOptions(
            delimiter=self._separator,
            quote_char='"' if self._dialect.quoted else False,
            invalid_row_handler=self._skip,
        )
        try:
            return csv.read_csv(pa.BufferReader(text), self._read, parse, self._convert)
        except pa.ArrowInvalid:
            return None

    def _skip(self, row: csv.InvalidRow) -> str:
        self._invalid.append(row)
        return "skip"

    def _no_rows(self, rejects: list[Reject]) -> Rows:
        table = pa.table({name: pa.array([], pa.string()) for name in self._wanted})
        return Rows(table, np.array([], np.int64), rejects)
