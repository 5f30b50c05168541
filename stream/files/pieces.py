"""Recorded files as pieces of raw rows, whatever the format, the compression and the encoding.

In: a part of a recording. Out: `Piece`s in order, with the columns or the JSON values that the file
has, the place of each row, and a `Reject` for each row that is broken as such. The roles of columns
are not known here. Memory does not grow with the file.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa

from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.rejects import Reject
from niwaki.stream.files.columnar import columnar_names, read_columnar
from niwaki.stream.files.content import Content, Part, Rows, open_part
from niwaki.stream.files.delimited import column_names as delimited_names
from niwaki.stream.files.delimited import read_delimited
from niwaki.stream.files.json_values import read_json
from niwaki.stream.files.parts import parts
from niwaki.stream.files.text import Text, open_text

__all__ = ["Part", "Piece", "column_names", "parts", "read_pieces"]

CHUNK_ROWS = 65_536


class Piece(NamedTuple):
    """Some rows of a file, as its owner has them."""

    path: Path
    """The file, or the member of an archive, as it is shown."""
    rows: pa.Table | list[bytes]
    """Columns, of delimited text as strings; or JSON values."""
    places_B: np.ndarray
    """int64, the line or row at which each begins, from 1."""
    rejects: list[Reject]
    """Broken rows; `position` is the line or row."""
    unit: Literal["line", "row"]
    """The unit of places."""

    def placed(self, reject: Reject) -> Reject:
        """A reject, whose position is a line or row, with its place."""
        return reject._replace(place=f"{self.path.name}, {self.unit} {reject.position}")

    def located(self, reject: Reject) -> Reject:
        """A reject, whose position is an index of `rows`, with its line or row and its place."""
        return self.placed(reject._replace(position=int(self.places_B[reject.position])))


def column_names(part: Part, config: EventsConfig) -> list[str] | None:
    """The names of a file's columns; None for JSON, where each value has its own."""
    with open_part(part) as content:
        kind, text = _opened(content, config)
        if kind == "json":
            return None
        if text is not None:
            names = delimited_names(content.name, text, config)
        else:
            names = columnar_names(content, kind)
    return [*names, *(name for name, _ in part.constants if name not in names)]


def read_pieces(
    part: Part,
    config: EventsConfig,
    *,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
    chunk_rows: int = CHUNK_ROWS,
    on_bytes: Callable[[int], object] | None = None,
) -> Iterator[Piece]:
    """The rows of a part. `columns`: the columns to be read; None: all. `limit`: rows to be read,
    without broken ones. `on_bytes` learns how many more bytes on disk are read."""
    constants = [one for one in part.constants if columns is None or one[0] in columns]
    fixed = {name for name, _ in constants}
    stored = None if columns is None else [name for name in columns if name not in fixed]
    left = limit
    with open_part(part, on_bytes or (lambda count: None)) as content:
        kind, text = _opened(content, config)
        unit: Literal["line", "row"] = "row" if text is None else "line"
        for rows in _rows(content, kind, text, config, stored, chunk_rows):
            for start in range(0, max(len(rows.rows), 1), chunk_rows):
                piece = _slice(rows, start, chunk_rows if left is None else min(chunk_rows, left))
                rejects = rows.rejects if start == 0 else []
                yield Piece(part.name, _with(piece.rows, constants), piece.places_B, rejects, unit)
                if left is not None:
                    left -= len(piece.rows)
                    if left <= 0:
                        return


def _opened(content: Content, config: EventsConfig) -> tuple[str, Text | None]:
    """The kind of a file: json, delimited, or a columnar one; and the text of a text file."""
    kind = content.kind()
    if kind != "text":
        return kind, None
    text = open_text(content.name, content, config.encoding)
    head, size = b"", 2**10
    while not head and size < 2**20:
        head, size = text.data.peek(size).lstrip(), 4 * size
    return ("json" if head[:1] in (b"{", b"[") else "delimited"), text


def _rows(
    content: Content,
    kind: str,
    text: Text | None,
    config: EventsConfig,
    columns: Sequence[str] | None,
    chunk_rows: int,
) -> Iterator[Rows]:
    if text is None:
        return read_columnar(content, kind, columns=columns, chunk_rows=chunk_rows)
    if kind == "json":
        return read_json(text, chunk_rows=chunk_rows)
    return read_delimited(content.name, text, config, columns=columns)


def _slice(rows: Rows, start: int, count: int) -> Rows:
    places_B = rows.places_B[start : start + count]
    if isinstance(rows.rows, list):
        return Rows(rows.rows[start : start + count], places_B, [])
    return Rows(rows.rows.slice(start, count), places_B, [])


def _with(
    rows: pa.Table | list[bytes], constants: Sequence[tuple[str, str | None]]
) -> pa.Table | list[bytes]:
    """The rows with a column of one value for each constant; JSON values stay as they are."""
    if isinstance(rows, list):
        return rows
    for name, value in constants:
        if name not in rows.column_names:
            column = pa.repeat(pa.scalar(value, pa.string()), len(rows))
            rows = rows.append_column(name, column)
    return rows
