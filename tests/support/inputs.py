"""One small click stream in the forms in which people have theirs, and the program that reads
it."""

import bz2
import csv
import gzip
import io
import json
import lzma
import random
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import zstandard

from niwaki.stream.cli.main import main

EVENTS = 400
_BEGIN_MS = 1_700_000_002_401


def rows(events: int = EVENTS) -> list[dict[str, Any]]:
    """Clicks with the columns ts, label, user, item and price."""
    random_ = random.Random(7)
    made, ts = [], _BEGIN_MS
    for _ in range(events):
        user, item = random_.randrange(40), random_.randrange(60)
        label = int(random_.random() < (0.6 if (user + item) % 3 == 0 else 0.2))
        price = round(random_.uniform(2, 99), 2) + 0.005
        made.append(
            {"ts": ts, "label": label, "user": f"u{user}", "item": 4000 + item, "price": price}
        )
        ts += random_.randrange(100, 9000)
    return made


BASE = rows()


def changed(**columns: Callable[[dict[str, Any]], Any]) -> list[dict[str, Any]]:
    """The rows with columns replaced, or added, by functions of the row."""
    return [row | {name: make(row) for name, make in columns.items()} for row in BASE]


def iso(row: dict[str, Any], form: str = "%Y-%m-%dT%H:%M:%S") -> str:
    """The event time of a row as text."""
    return datetime.fromtimestamp(row["ts"] / 1000, UTC).strftime(form)


def csv_text(
    table: list[dict[str, Any]], separator: str = ",", *, header: bool = True, end: str = "\n"
) -> str:
    """Rows as delimited text."""
    out = io.StringIO()
    writer = csv.writer(out, delimiter=separator, lineterminator=end)
    if header:
        writer.writerow(table[0])
    writer.writerows(row.values() for row in table)
    return out.getvalue()


def json_lines(table: list[dict[str, Any]]) -> str:
    """Rows as JSON, one a line."""
    return "".join(json.dumps(row) + "\n" for row in table)


def parquet(table: list[dict[str, Any]] | pa.Table) -> bytes:
    """Rows as a Parquet file."""
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table) if isinstance(table, list) else table, out)
    return out.getvalue()


def arrow_file(table: list[dict[str, Any]], compression: str = "uncompressed") -> bytes:
    """Rows as an Arrow file (Feather V2)."""
    out = io.BytesIO()
    pyarrow.feather.write_feather(pa.Table.from_pylist(table), out, compression=compression)
    return out.getvalue()


def zipped(name: str, data: bytes) -> bytes:
    """An archive with one file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return out.getvalue()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.ZstdCompressor().compress,
}


class Ran(NamedTuple):
    """What a command has printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object on stdout."""
        return json.loads(self.out)


@pytest.fixture
def niwaki(monkeypatch, capsys) -> Callable[..., Ran]:
    """niwaki("check", path, ...) -> Ran: the program, in this process."""

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr("sys.argv", ["niwaki", *map(str, arguments)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return Ran(code, printed.out, printed.err)

    return run


@pytest.fixture
def put(tmp_path) -> Callable[[str, str | bytes], Path]:
    """put("clicks.csv", content) -> its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write
