import bz2
import gzip
import io
import lzma
import os
import pickle
import re
import sqlite3
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import lz4.frame
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from pyarrow import orc

from niwaki.stream.errors import ConfigError
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.pieces import Part, Piece, column_names, parts, read_pieces

ROWS = [{"ts": at, "user": f"u{at % 7}"} for at in range(3000)]
TABLE = pa.Table.from_pylist(ROWS)
CSV = "ts,user\n" + "".join(f"{row['ts']},{row['user']}\n" for row in ROWS)
JSON = "".join(f'{{"ts": {row["ts"]}, "user": "{row["user"]}"}}\n' for row in ROWS)


def parquet_bytes(table: pa.Table = TABLE) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, row_group_size=700)
    return sink.getvalue()


CONTENTS = {"csv": CSV.encode(), "jsonl": JSON.encode(), "parquet": parquet_bytes()}
PACKERS = {
    "plain": bytes,
    "gzip": gzip.compress,
    "gzip in two members": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
    "zstd in two frames": lambda data: b"".join(
        zstandard.ZstdCompressor().compress(some) for some in (data[:999], data[999:])
    ),
    "lz4": lz4.frame.compress,
    "gzip twice": lambda data: gzip.compress(gzip.compress(data)),
}


def pieces(*paths: Path, **options) -> list[Piece]:
    config = options.pop("config", EventsConfig())
    return [piece for part in parts(paths) for piece in read_pieces(part, config, **options)]


def count(*paths: Path, **options) -> int:
    return sum(len(piece.rows) for piece in pieces(*paths, **options))


def values(*paths: Path, name: str = "name") -> list[str | None]:
    """A column of the rows, in order."""
    return [value for piece in pieces(*paths) for value in piece.rows[name].to_pylist()]


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("suffix", ["", ".jsonl", ".csv", ".gz", ".parquet", ".dat"])
def test_the_content_tells_the_format_whatever_the_name(tmp_path, kind, packer, suffix):
    path = tmp_path / f"events{suffix}"
    path.write_bytes(PACKERS[packer](CONTENTS[kind]))
    found = pieces(path, chunk_rows=1000)
    assert [len(piece.rows) for piece in found] == [1000, 1000, 1000]
    assert isinstance(found[0].rows, list) == (kind == "jsonl")
    assert column_names(Part(path), EventsConfig()) == (None if kind == "jsonl" else ["ts", "user"])
    assert {piece.path for piece in found} == {path}


@pytest.mark.parametrize("packer", PACKERS)
@pytest.mark.parametrize("kind", CONTENTS)
def test_the_bytes_read_are_told_as_they_are_read_and_add_up_to_the_file(tmp_path, kind, packer):
    path = tmp_path / "events"
    path.write_bytes(PACKERS[packer](CONTENTS[kind]))
    told: list[int] = []
    assert count(path, on_bytes=told.append, chunk_rows=500) == 3000
    assert sum(told) == parts([path])[0].size_bytes == path.stat().st_size
    assert min(told) > 0


def test_the_share_of_a_large_file_that_is_read_grows_step_by_step(tmp_path):
    path = tmp_path / "events.csv"
    path.write_text("ts,user\n" + "1700000000000,some user of some name\n" * 300_000)
    told = 0

    def add(more: int) -> None:
        nonlocal told
        told += more

    shares = []
    for _ in read_pieces(Part(path), EventsConfig(), chunk_rows=50_000, on_bytes=add):
        shares.append(told / path.stat().st_size)
    assert shares[0] < 0.5 and shares[-1] == 1 and shares == sorted(shares)


@pytest.mark.parametrize("packer", ["gzip", "bz2", "xz", "zstd", "lz4"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_file_that_is_cut_off_or_damaged_is_an_error(tmp_path, kind, packer):
    path = tmp_path / "events"
    data = PACKERS[packer](CONTENTS[kind])
    path.write_bytes(data[:-20])
    with pytest.raises(ConfigError, match="is damaged"):
        count(path)
    if packer in ("zstd", "lz4"):  # without a checksum
        return
    path.write_bytes(data[: len(data) // 2] + bytes(50) + data[len(data) // 2 + 50 :])
    with pytest.raises(ConfigError, match=f"^{path}: is damaged"):
        count(path)


def refused(folder: Path) -> dict[str, bytes]:
    """Files of kinds that are known and not read, by what is said of them."""
    with sqlite3.connect(folder / "db") as database:
        database.execute("CREATE TABLE t (a)")
    database.close()
    orc.write_table(TABLE, folder / "orc")
    with tarfile.open(folder / "tar", "w") as archive:
        archive.add(folder / "orc", "events")
    with zipfile.ZipFile(folder / "zip", "w") as archive:
        archive.writestr("events.csv", CSV)
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    files = {name: (folder / name).read_bytes() for name in ("db", "orc", "tar", "zip")}
    return {
        "SQLite": files["db"],
        "an ORC file": files["orc"],
        "a tar archive": files["tar"],
        "a zip archive in another": gzip.compress(files["zip"]),
        "a NumPy array": array.getvalue(),
        "a pickle": pickle.dumps(ROWS),
        "an Avro file": b"Obj\x01\x04\x14avro.codec",
        "Feather file of version 1": b"FEA1\0\0\0\0" + bytes(50),
        "an Excel workbook": b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(500),
        "an HDF5 file": b"\x89HDF\r\n\x1a\n" + bytes(50),
        "an encrypted Parquet": b"PARE\x15\x04",
        "a web page": b"\n<!DOCTYPE html><html>",
        "an XML file": b'<?xml version="1.0"?>',
        "Git LFS": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "snappy": b"\xff\x06\0\0sNaPpY",
    }


def test_a_kind_of_file_that_is_not_read_is_named_with_the_way_on(tmp_path):
    path = tmp_path / "events.csv"
    for what, data in refused(tmp_path).items():
        path.write_bytes(data)
        with pytest.raises(ConfigError, match=rf"^{path}: is .*{what}.*[;?]") as caught:
            count(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["PAR1", "ORC", "Obj", "FEA1", "PK", "BZh9", "RDX2", "DUCK"])
def test_a_header_that_begins_like_another_kind_of_file_is_a_header(tmp_path, name):
    path = tmp_path / "events.csv"
    path.write_text(f"{name},label\na,1\n")
    assert values(path, name=name) == ["a"]


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf", b"\n \n", gzip.compress(b"")])
def test_an_empty_file_is_said_to_be_empty(tmp_path, data):
    path = tmp_path / "events.csv"
    path.write_bytes(data)
    with pytest.raises(ConfigError, match=f"^{path}: is empty"):
        count(path)


def test_an_excel_workbook_of_today_is_named(tmp_path):
    with zipfile.ZipFile(tmp_path / "events.xlsx", "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    with pytest.raises(ConfigError, match="is an Office document; save its sheet as CSV"):
        parts([tmp_path / "events.xlsx"])


def test_what_is_not_there_is_an_error_with_the_nearest_name(tmp_path):
    (tmp_path / "events.csv").write_text(CSV)
    with pytest.raises(ConfigError, match="is not there; the nearest in .* is 'events.csv'"):
        parts([tmp_path / "event.csv"])
    with pytest.raises(ConfigError, match="is not there; nor is the folder"):
        parts([tmp_path / "no" / "event.csv"])


def write(folder: Path, **files: str) -> None:
    """Small files of one column, whose one value is given."""
    for name, value in files.items():
        path = folder / name.replace("__in__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"name\n{value}\n")


def test_a_folder_as_spark_writes_it_is_read_in_the_order_of_its_parts(tmp_path):
    for name in ("part-10", "part-2", "part-1"):
        write(tmp_path, **{name: name})
    for name in ("_SUCCESS", ".part-1.crc", "_temporary/part-7", "README.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("name\nno data\n")
    (tmp_path / "part-3").write_text("")
    assert values(tmp_path) == ["part-1", "part-2", "part-10"]


def test_a_folder_or_an_archive_without_data_is_an_error(tmp_path):
    (tmp_path / "_SUCCESS").write_text("")
    with pytest.raises(ConfigError, match=f"^{tmp_path}: has no files with data in it"):
        parts([tmp_path])
    with zipfile.ZipFile(tmp_path / "events.zip", "w") as archive:
        archive.writestr("__MACOSX/events.csv", CSV)
    with pytest.raises(ConfigError, match="events.zip: has no files with data in it"):
        parts([tmp_path])


def test_folders_called_key_and_value_are_columns(tmp_path):
    write(
        tmp_path,
        **{
            "day=2024-01-10__in__a%2Fb=x%20y__in__part-0": "second",
            "day=2024-01-9__in__a%2Fb=__HIVE_DEFAULT_PARTITION____in__part-0": "first",
        },
    )
    found = pieces(tmp_path)
    assert [piece.rows.to_pylist() for piece in found] == [
        [{"name": "first", "day": "2024-01-9", "a/b": None}],
        [{"name": "second", "day": "2024-01-10", "a/b": "x y"}],
    ]
    assert column_names(parts([tmp_path])[0], EventsConfig()) == ["name", "day", "a/b"]
    assert pieces(tmp_path, limit=1)[0].rows.column_names == ["name", "day", "a/b"]
    (only,) = pieces(tmp_path / "day=2024-01-10", columns=["a/b"])
    assert only.rows.to_pylist() == [{"a/b": "x y"}]


def test_columns_of_folders_are_members_of_json_objects(tmp_path):
    folder = tmp_path / "day=1" / "hour=__HIVE_DEFAULT_PARTITION__"
    folder.mkdir(parents=True)
    (folder / "part-0").write_text('{"a": 1}\n{}\n{"day": 2}\n[1]\n')
    (piece,) = pieces(tmp_path)
    assert piece.rows == [b'{"day":"1","a": 1}', b'{"day":"1"}', b'{"day":"1","day": 2}', b"[1]"]


def test_a_column_of_the_file_goes_before_that_of_its_folder(tmp_path):
    write(tmp_path, **{"name=folder__in__part-0": "file"})
    assert values(tmp_path) == ["file"]


def test_the_members_of_a_zip_archive_are_read_by_name(tmp_path):
    path = tmp_path / "events.gz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("part-10.csv", "part-2.csv", "day=1/part-1.csv", "._part-2.csv", "in/"):
            archive.writestr(name, f"name\n{name}\n" if name != "in/" else "")
        archive.writestr("part-11.csv.gz", gzip.compress(b"name\nlast\n"))
    assert values(path) == ["day=1/part-1.csv", "part-2.csv", "part-10.csv", "last"]
    assert pieces(path)[0].path == path / "day=1/part-1.csv"
    assert pieces(path)[0].rows.column_names == ["name", "day"]


def test_an_encrypted_member_of_an_archive_is_named(tmp_path):
    path = tmp_path / "events.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("events.csv", CSV)
    data = bytearray(path.read_bytes())
    for start in (data.index(b"PK\3\4") + 6, data.index(b"PK\1\2") + 8):
        data[start] |= 1
    path.write_bytes(data)
    with pytest.raises(ConfigError, match="events.zip/events.csv: can't be unpacked .*encrypted"):
        count(path)


def test_several_files_keep_their_order_unless_it_is_that_of_the_alphabet(tmp_path):
    write(tmp_path, **{"f-1": "1", "f-2": "2", "f-10": "10"})
    one, two, ten = (tmp_path / name for name in ("f-1", "f-2", "f-10"))
    assert values(one, ten, two) == ["1", "2", "10"]
    assert values(two, one, ten) == ["2", "1", "10"]


@pytest.mark.parametrize("inside", ["_delta_log", ".hoodie"])
def test_a_table_whose_folder_holds_old_rows_is_refused(tmp_path, inside):
    write(tmp_path, a="a")
    (tmp_path / inside).mkdir()
    with pytest.raises(ConfigError, match="table, whose folder holds old rows too"):
        parts([tmp_path])


def open_files() -> set[str]:
    folder = Path("/proc/self/fd")
    return {os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).exists()}


@pytest.mark.parametrize("packer", ["plain", "gzip", "zstd"])
@pytest.mark.parametrize("kind", CONTENTS)
def test_a_reader_that_is_closed_early_leaves_no_file_and_no_thread(tmp_path, kind, packer):
    path = tmp_path / "events"
    path.write_bytes(PACKERS[packer](CONTENTS[kind]))
    threads = threading.active_count()
    before = open_files()
    reader = read_pieces(Part(path), EventsConfig(), chunk_rows=100)
    assert len(next(reader).rows) == 100
    reader.close()
    assert (open_files() - before, threading.active_count()) == (set(), threads)


@pytest.mark.parametrize("kind", CONTENTS)
def test_an_interpreter_that_ends_while_it_reads_ends_well(tmp_path, kind):
    path = tmp_path / "events"
    path.write_bytes(CONTENTS[kind])
    code = f"""
import pathlib
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.pieces import Part, read_pieces
reader = read_pieces(Part(pathlib.Path({str(path)!r})), EventsConfig(), chunk_rows=10)
next(reader)
"""
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_memory_does_not_grow_with_the_file(tmp_path):
    path = tmp_path / "events.csv.gz"
    with gzip.open(path, "wb", 1) as file:
        for _ in range(60):
            file.write(b"ts,user\n" * (_ == 0) + b"1700000000000,a name of some length\n" * 100_000)
    code = f"""
import pathlib, resource
from niwaki.stream.events.config import EventsConfig
from niwaki.stream.files.pieces import Part, read_pieces
reader = read_pieces(Part(pathlib.Path({str(path)!r})), EventsConfig())
rows = len(next(reader).rows)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rows += sum(len(piece.rows) for piece in reader)
print(rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    rows, grown_kb = re.fullmatch(r"(\d+) (\d+)\n", done.stdout).groups()
    assert int(rows) == 6_000_000 and int(grown_kb) < 60_000  # of 216 MB
