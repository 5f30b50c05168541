"""Recorded files as their owners have them, in pieces of raw rows.

In: paths of files, folders and zip archives, and the settings of the section `[events]`. Out:
`Piece`s: delimited text as columns of strings, Parquet and Arrow files with their own types, JSON
as the bytes of each value; with the line or row of each, and `Reject`s of what is no row. The
content decides the format, and the name does not. Memory does not grow with the file, and a reader
that is closed early leaves no file open.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import chain
from pathlib import Path
from typing import Literal, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from niwaki.stream.events.config import EventsConfig
from niwaki.stream.events.rejects import Reject
from niwaki.stream.files import columnar, delimited, json_values
from niwaki.stream.files.content import Part, Rows, open_part
from niwaki.stream.files.parts import parts
from niwaki.stream.files.text import open_text

__all__ = ["CHUNK_ROWS", "Part", "Piece", "column_names", "parts", "read_pieces"]

CHUNK_ROWS = 65_536
_HEAD_BYTES = 4096  # tell JSON from delimited text


class Piece(NamedTuple):
    """Some rows of a part."""

    path: Path
    """The part, as it is shown."""
    rows: pa.Table | list[bytes]
    """Columns, or the bytes of one JSON value for each row.

    Of delimited text all columns are strings, and only a bare empty field and `\\\\N` are null; of
    Parquet and Arrow they have the file's own types. The columns that folders called `key=value`
    stand for come last, as strings; they are the first members of JSON objects.
    """
    places_B: np.ndarray
    """int64, the line (of text) or the row of the part at which each row begins, from 1."""
    rejects: list[Reject]
    """Rows that can't be read; `Reject.position` is a line or row, too."""
    unit: Literal["line", "row"]
    """The unit of places and positions."""

    def placed(self, reject: Reject) -> Reject:
        """A reject, whose position is a line or row, with its place."""
        return reject._replace(place=f"{self.path.name}, {self.unit} {reject.position}")

    def located(self, reject: Reject) -> Reject:
        """A reject, whose position is an index of `rows`, with its line or row and its place."""
        return self.placed(reject._replace(position=int(self.places_B[reject.position])))


def read_pieces(
    part: Part,
    config: EventsConfig,
    *,
    columns: Sequence[str] | None = None,
    limit: int | None = None,
    chunk_rows: int = CHUNK_ROWS,
    on_bytes: Callable[[int], object] | None = None,
) -> Iterator[Piece]:
    """The rows of a part in order, in pieces of `chunk_rows` but for the last; at least one piece.

    `columns`: those to be read, and of them those that are there; None: all. JSON values are always
    whole. `limit`: as many rows, rejects not counted. `on_bytes` learns how many more bytes on disk
    are read; the sum is `part.size_bytes`, once all is read. Raises `ConfigError` for what can't
    be read, when the first piece or the one with the damage is asked for.
    """
    at_once = min(chunk_rows, limit or chunk_rows)
    with _rows(part, config, columns, at_once, on_bytes or _ignore) as (found, unit):
        for rows in _cut(found, chunk_rows, limit):
            rows = _with_constants(rows, part, columns)
            yield Piece(part.name, rows.rows, rows.places_B, rows.rejects, unit)


def column_names(part: Part, config: EventsConfig) -> list[str] | None:
    """The names of a part's columns; None for JSON, where each value has its own."""
    with open_part(part) as content:
        kind = content.kind()
        if kind != "text":
            names = columnar.column_names(content, kind)
        else:
            text = open_text(part.name, content, config.encoding)
            if json_values.is_json(text.data.peek(_HEAD_BYTES)):
                return None
            names = delimited.column_names(part.name, text, config)
    return [*names, *(name for name, _ in part.constants if name not in names)]


def _ignore(count: int) -> None:
    """Take no note of the bytes read."""


@contextmanager
def _rows(
    part: Part,
    config: EventsConfig,
    columns: Sequence[str] | None,
    chunk_rows: int,
    on_bytes: Callable[[int], object],
) -> Iterator[tuple[Iterator[Rows], Literal["line", "row"]]]:
    """The rows of a part, as many at a time as its reader finds, and what their places count."""
    with open_part(part, on_bytes) as content:
        kind = content.kind()
        if kind != "text":
            rows = columnar.read_columnar(content, kind, columns=columns, batch_rows=chunk_rows)
        else:
            text = open_text(part.name, content, config.encoding)
            if json_values.is_json(text.data.peek(_HEAD_BYTES)):
                rows = json_values.read_values(text.data)
            else:
                rows = delimited.read_delimited(part.name, text, config, columns=columns)
        with closing(rows):
            yield rows, "line" if kind == "text" else "row"


def _cut(found: Iterator[Rows], chunk_rows: int, limit: int | None) -> Iterator[Rows]:
    """The same rows, `chunk_rows` at a time; with each the rejects before it and, at the end, after
    it."""
    held: list[Rows] = []
    count, left, sent = 0, limit, False
    for rows in found:
        if left is not None:
            rows, left = _first(rows, left), left - len(rows.places_B)
        while count + len(rows.places_B) >= chunk_rows:
            some, rows = _split(rows, chunk_rows - count)
            yield _join([*held, some])
            held, count, sent = [], 0, True
        held.append(rows)
        count += len(rows.places_B)
        if left is not None and left <= 0:
            break
    if count or not sent or any(rows.rejects for rows in held):
        yield _join(held)


def _join(some: list[Rows]) -> Rows:
    """Rows that follow on one another, as one."""
    places_B = np.concatenate([rows.places_B for rows in some])
    rejects = [reject for rows in some for reject in rows.rejects]
    if isinstance(some[0].rows, pa.Table):
        return Rows(pa.concat_tables([rows.rows for rows in some]), places_B, rejects)
    return Rows(list(chain.from_iterable(rows.rows for rows in some)), places_B, rejects)


def _split(rows: Rows, at: int) -> tuple[Rows, Rows]:
    """The rows before `at` and the others; rejects before the row at `at` go with the former."""
    first, second = rows.rejects, []
    if first and at < len(rows.places_B):
        place = rows.places_B[at]
        second = [reject for reject in first if reject.position >= place]
        first = first[: len(first) - len(second)]
    return (
        Rows(rows.rows[:at], rows.places_B[:at], first),
        Rows(rows.rows[at:], rows.places_B[at:], second),
    )


def _first(rows: Rows, limit: int) -> Rows:
    """The first `limit` rows and the rejects before the last one of them, or all."""
    if len(rows.places_B) < limit:
        return rows
    last = rows.places_B[limit - 1] if limit else 0
    rejects = [reject for reject in rows.rejects if reject.position < last]
    return Rows(rows.rows[:limit], rows.places_B[:limit], rejects)


def _with_constants(rows: Rows, part: Part, columns: Sequence[str] | None) -> Rows:
    """The rows with the columns that folders stand for, unless they are there already."""
    constants = {n: v for n, v in part.constants if columns is None or n in columns}
    if not constants:
        return rows
    if isinstance(rows.rows, pa.Table):
        table = rows.rows
        columns_there = dict(zip(table.column_names, table.columns, strict=True))
        for name, value in constants.items():
            alike = pa.repeat(pa.scalar(value, pa.string()), len(rows.places_B))
            columns_there.setdefault(name, alike)
        return rows._replace(rows=pa.table(columns_there))
    there = {name: value for name, value in constants.items() if value is not None}
    return rows._replace(rows=[_with_members(value, there) for value in rows.rows])


def _with_members(value: bytes, members: dict[str, str]) -> bytes:
    """A JSON object with more members before its own, of which the last of a name counts."""
    if not members or not value.startswith(b"{"):
        return value
    comma = b"" if value[1:].lstrip().startswith(b"}") else b","
    return msgspec.json.encode(members)[:-1] + comma + value[1:]
